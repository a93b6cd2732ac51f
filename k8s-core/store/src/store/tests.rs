//! The store over memory, and over backends of the tests' own.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{Embedded, Log, OpenError, Record};

fn bytes(value: u8) -> impl FnOnce(Option<u64>) -> Bytes {
    move |revision| format!("{{\"v\":{value},\"rv\":{}}}", revision.unwrap_or(0)).into()
}

#[tokio::test]
async fn survives_reopening_and_refuses_a_second_opener() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let open = || Store::open(Local::new(Embedded::open(&path).unwrap()), Opaque).unwrap();
    let store = open();
    let a = store.put("pods", "ns/a", Expect::Absent, Meta::default(), bytes(1)).await.unwrap();
    store.put("pods", "ns/b", Expect::Absent, Meta::default(), bytes(2)).await.unwrap();
    store.delete("pods", "ns/a", a.revision, bytes(1)).await.unwrap();
    assert!(matches!(Embedded::open(&path), Err(OpenError::InUse { .. })));
    drop(store);
    // The commit thread lets the file go when it sees that the store is gone.
    let mut again = Embedded::open(&path);
    while again.is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        again = Embedded::open(&path);
    }
    let store = Store::open(Local::new(again.unwrap()), Opaque).unwrap();
    assert_eq!(store.revision(), 3);
    assert!(store.get("pods", "ns/a").is_none());
    assert_eq!(store.get("pods", "ns/b").unwrap().revision, 2);
    assert!(store.watch("pods", 1).take(10).is_err(), "history does not survive");
    assert!(store.watch("pods", 3).take(10).unwrap().is_empty());
}

#[tokio::test]
async fn forks_share_the_past_and_nothing_else() {
    let store = Store::memory();
    let a = store.put("pods", "a", Expect::Absent, Meta::default(), bytes(1)).await.unwrap();
    let fork = store.fork();
    let mut cursor = fork.watch("pods", fork.revision());
    store.delete("pods", "a", a.revision, bytes(1)).await.unwrap();
    let b = fork.put("pods", "b", Expect::Absent, Meta::default(), bytes(2)).await.unwrap();
    assert_eq!(b.revision, a.revision + 1);
    assert!(store.get("pods", "a").is_none() && store.get("pods", "b").is_none());
    assert!(fork.get("pods", "a").is_some());
    assert_eq!(cursor.take(9).unwrap().len(), 1);
    assert!(fork.watch("pods", 0).take(1).is_err(), "history stays behind");
}

struct Full(bool);
impl Log for Full {
    fn load(&mut self, _: &mut dyn FnMut(Record)) -> Result<u64, BackendError> {
        Ok(0)
    }
    fn commit(&mut self, _: &[Record]) -> Result<(), BackendError> {
        if self.0 { Err(BackendError("no space left".into())) } else { Ok(()) }
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_keeps_the_state() {
    let store = Store::open(Local::new(Full(true)), Opaque).unwrap();
    let error = store.put("pods", "a", Expect::Absent, Meta::default(), bytes(1)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)));
    assert!(store.get("pods", "a").is_none());
    assert_eq!(store.revision(), 0);
}

/// A disk on which every flush takes a while.
struct Slow;
impl Log for Slow {
    fn load(&mut self, _: &mut dyn FnMut(Record)) -> Result<u64, BackendError> {
        Ok(0)
    }
    fn commit(&mut self, _: &[Record]) -> Result<(), BackendError> {
        std::thread::sleep(std::time::Duration::from_millis(5));
        Ok(())
    }
}

#[tokio::test]
async fn a_conflict_is_told_when_what_it_is_with_can_be_read() {
    let store = Store::open(Local::new(Slow), Opaque).unwrap();
    let a = store.put("pods", "a", Expect::Absent, Meta::default(), bytes(0)).await.unwrap();
    let expect = Expect::Revision(a.revision);
    let first = store.put("pods", "a", expect, Meta::default(), bytes(1));
    let second = async {
        let error = store.put("pods", "a", expect, Meta::default(), bytes(2)).await.unwrap_err();
        let StoreError::Conflict { have, .. } = error else { panic!("{error}") };
        assert_eq!(store.get("pods", "a").map(|now| now.revision), have);
    };
    let (first, ()) = futures::future::join(first, second).await;
    first.unwrap();
}

#[tokio::test]
async fn group_commit_keeps_order_and_wakes_watchers() {
    let store = Store::open(Local::new(Full(false)), Opaque).unwrap();
    let mut cursor = store.watch("pods", 0);
    let writes = (0..100).map(|i| {
        let store = store.clone();
        async move {
            store.put("pods", &format!("k{i:03}"), Expect::Absent, Meta::default(), bytes(1)).await.unwrap()
        }
    });
    futures::future::join_all(writes).await;
    let mut seen = Vec::new();
    while seen.len() < 100 {
        seen.extend(cursor.take(7).unwrap().iter().map(|e| e.object.revision));
    }
    assert_eq!(seen, (1..=100).collect::<Vec<u64>>());
}

proptest! {
    /// The store against a map: same contents, and a replay of the events gives the same contents again.
    #[test]
    fn behaves_as_a_map(operations in proptest::collection::vec((0u8..8, 0u8..3, any::<u8>()), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let store = Store::memory();
            let mut model: BTreeMap<String, (u64, u8)> = BTreeMap::new();
            let mut states = vec![model.clone()];
            for (key, operation, value) in operations {
                let key = format!("ns/{key}");
                let known = model.get(&key).map(|(revision, _)| *revision);
                let result = match (operation, known) {
                    (0, _) => store.put("r", &key, Expect::Absent, Meta::default(), bytes(value)).await,
                    (1, _) => store.put("r", &key, Expect::Revision(known.unwrap_or(1)), Meta::default(), bytes(value)).await,
                    _ => store.delete("r", &key, known.unwrap_or(1), bytes(value)).await,
                };
                let expected = match operation { 0 => known.is_none(), _ => known.is_some() };
                assert_eq!(result.is_ok(), expected);
                if let Ok(stored) = result {
                    if operation == 2 { model.remove(&key); } else { model.insert(key, (stored.revision, value)); }
                    assert_eq!(stored.revision, states.len() as u64);
                    states.push(model.clone());
                }
            }
            let keys = |snapshot: &Snapshot| snapshot.range("", "").map(|s| (s.key.to_string(), s.revision)).collect::<Vec<_>>();
            for (revision, state) in states.iter().enumerate() {
                let want: Vec<_> = state.iter().map(|(k, (r, _))| (k.clone(), *r)).collect();
                assert_eq!(keys(&store.snapshot_at("r", revision as u64).unwrap()), want);
            }
            let mut replay = BTreeMap::new();
            for event in store.watch("r", 0).take(usize::MAX).unwrap() {
                match event.kind {
                    EventKind::Deleted => { replay.remove(event.object.key.as_ref()); }
                    _ => { replay.insert(event.object.key.to_string(), event.object.revision); }
                }
            }
            assert_eq!(replay.into_iter().collect::<Vec<_>>(), keys(&store.snapshot("r")));
        });
    }
}

#[tokio::test]
async fn a_type_whose_last_object_went_before_the_store_was_opened_has_no_older_history() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let store = Store::open(Local::new(Embedded::open(&path).unwrap()), Opaque).unwrap();
    let a = store.put("pods", "a", Expect::Absent, Meta::default(), bytes(1)).await.unwrap();
    store.delete("pods", "a", a.revision, bytes(1)).await.unwrap();
    drop(store);
    let again = loop {
        match Embedded::open(&path) {
            Ok(again) => break again,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
        }
    };
    let store = Store::open(Local::new(again), Opaque).unwrap();
    assert!(store.watch("pods", a.revision).take(9).is_err(), "the watch would miss the deletion");
    assert!(store.watch("pods", store.revision()).take(9).unwrap().is_empty());
}
