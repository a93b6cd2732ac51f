//! A store on a disk that is really full: a small tmpfs, which needs root to mount.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use super::*;
use crate::{Expect, Meta, Store, StoreError};

/// A file system of its own, unmounted when dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(megabytes: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={megabytes}m,mode=0700");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "k8s-core-test"]).arg(dir.path());
        assert!(mount.status().unwrap().success(), "this test mounts a tmpfs: it needs root");
        Disk(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn store(&self) -> PathBuf {
        self.path().join("state.redb")
    }

    /// Takes all room that is left.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.path().join("filler")).unwrap();
        for size in [64 << 10, 4096, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, since a failed test may still have a file open.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn open(disk: &Disk) -> Store {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match Embedded::open(&disk.store()) {
            Ok(backend) => return Store::open(backend, &|_, _| Meta::default()).unwrap(),
            // The commit thread of the store before lets the file go a moment after it was dropped.
            Err(OpenError::InUse { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(e) => panic!("{e}"),
        }
    }
}

async fn put(store: &Store, key: &str, expect: Expect) -> Result<u64, StoreError> {
    let bytes = |revision| format!("{{\"rv\":{revision},\"data\":\"{}\"}}", "x".repeat(60_000)).into();
    store.put("maps", key, expect, Meta::default(), bytes).await.map(|stored| stored.revision)
}

fn keys(store: &Store) -> Vec<(String, u64)> {
    store.snapshot("maps").range("", "").map(|s| (s.key.to_string(), s.revision)).collect()
}

#[tokio::test]
async fn a_store_writes_again_when_a_full_disk_has_room() {
    let disk = Disk::new(24);
    let store = open(&disk);
    put(&store, "first", Expect::Absent).await.unwrap();
    disk.fill();
    let mut written = 1;
    let error = loop {
        match put(&store, &format!("k{written:04}"), Expect::Absent).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 400, "the disk is full");
    };
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    assert!(store.ailment().is_some());
    // Deletions have the room that was held in reserve.
    for (key, revision) in keys(&store).into_iter().skip(1) {
        store.delete("maps", &key, revision, |_| "{}".into()).await.unwrap();
    }
    assert!(put(&store, "still", Expect::Absent).await.is_err() || store.ailment().is_none());
    disk.free();
    let begun = Instant::now();
    while put(&store, "after", Expect::Absent).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(10), "room came back {:?} ago", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(store.ailment().is_none());
    let before = keys(&store);
    assert!(before.iter().any(|(key, _)| key == "after") && before.iter().any(|(key, _)| key == "first"));
    drop(store);
    assert_eq!(keys(&open(&disk)), before, "on disk is what readers saw");
}

#[tokio::test]
async fn a_store_opens_on_a_full_disk_for_reading() {
    let disk = Disk::new(24);
    let store = open(&disk);
    for i in 0..20 {
        put(&store, &format!("k{i}"), Expect::Absent).await.unwrap();
    }
    disk.fill();
    while put(&store, &format!("more{}", store.revision()), Expect::Absent).await.is_ok() {}
    let before = keys(&store);
    drop(store);
    let store = open(&disk);
    assert_eq!(keys(&store), before);
    assert!(store.ailment().is_some(), "who asks is told");
    assert!(put(&store, "no", Expect::Absent).await.is_err());
    disk.free();
    let begun = Instant::now();
    while put(&store, "after", Expect::Absent).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn a_commit_that_failed_is_undone_where_it_reached_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut backend = Embedded::open(&dir.path().join("state.redb")).unwrap();
    let record = |key: &str, revision, json: &str, before: Option<(u64, &str)>| Record {
        resource: "maps".into(),
        key: key.into(),
        revision,
        json: Some(Bytes::copy_from_slice(json.as_bytes())),
        before: before.map(|(revision, json)| (revision, Bytes::copy_from_slice(json.as_bytes()))),
    };
    backend.commit(&[record("a", 1, "1", None)]).unwrap();
    let lost =
        [record("a", 2, "2", Some((1, "1"))), record("a", 3, "3", Some((2, "2"))), record("b", 4, "4", None)];
    backend.write_all(&lost, 4).unwrap();
    backend.undo = lost.iter().rev().map(Record::undone).collect();
    backend.database = None;
    backend.commit(&[record("c", 5, "5", None)]).unwrap();
    let mut found = Vec::new();
    let revision = backend.load(&mut |r| found.push((r.key.to_string(), r.revision, r.json))).unwrap();
    assert_eq!(revision, 5);
    assert_eq!(found, [("a".into(), 1, Some("1".into())), ("c".into(), 5, Some("5".into()))]);
}
