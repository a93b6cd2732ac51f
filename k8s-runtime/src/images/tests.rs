//! Tests of the whole store: import, sharing, removal, malicious archives. Needs root (file owners, device
//! files).

use std::{
    fs,
    io::{Cursor, Write},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::Path,
};

use serde_json::json;
use sha2::{Digest, Sha256};

use super::{
    ImageBuilder, ImageStore,
    unpack::{decompress, digest_of, unpack},
};
use crate::api::Images;

fn store() -> (tempfile::TempDir, ImageStore) {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = ImageStore::open(dir.path()).expect("open");
    (dir, store)
}

fn layers(dir: &Path) -> usize {
    fs::read_dir(dir.join("layers")).expect("read").count()
}

#[tokio::test]
async fn import_find_share_remove() {
    let (dir, store) = store();
    let archive = dir.path().join("image.tar");
    let builder = ImageBuilder::new().content("x", "/x", 0o644).env("A", "b=c").user("33:44").label("l", "v");
    builder.write_layout(&archive, "demo/web:v1").expect("layout");
    let imported = store.import_file(&archive).expect("import");
    assert_eq!(imported[0].tags, ["docker.io/demo/web:v1"]);
    assert_eq!(imported[0].user, "33:44");
    let id = imported[0].id.clone();
    // Rebuilding gives the same image; with another configuration, the layer is shared.
    let again = builder.import(&store, "again:v1").expect("import");
    assert_eq!((again.id.as_str(), again.tags.len()), (id.as_str(), 2));
    let other = builder.clone().env("B", "2").import(&store, "other").expect("import");
    assert_eq!(layers(dir.path()), 1);
    for name in [
        "demo/web:v1",
        "docker.io/demo/web:v1",
        "again:v1",
        id.as_str(),
        &id[7..20],
        imported[0].digests[0].as_str(),
    ] {
        assert_eq!(store.find(name).await.expect("find").map(|i| i.id).as_ref(), Some(&id), "{name}");
    }
    assert_eq!(store.find("demo/web:v2").await.expect("find"), None);
    assert_eq!(store.resolve("again:v1").expect("resolve").env, [("A".to_owned(), "b=c".to_owned())]);

    // A tag moves to the newer image.
    builder.clone().env("C", "3").import(&store, "again:v1").expect("import");
    assert_eq!(store.find(&id).await.expect("find").expect("there").tags, ["docker.io/demo/web:v1"]);
    assert_eq!(store.list().await.expect("list").len(), 3);

    // Only the state on disk is kept.
    let store = ImageStore::open(dir.path()).expect("open again");
    assert_eq!(store.list().await.expect("list").len(), 3);
    store.remove("demo/web:v1").await.expect("remove");
    store.remove(&other.id).await.expect("remove");
    assert_eq!(layers(dir.path()), 1);
    store.remove("again:v1").await.expect("remove");
    store.remove("again:v1").await.expect("remove what is gone");
    assert_eq!((store.list().await.expect("list").len(), layers(dir.path())), (0, 0));
    assert_eq!(fs::read_dir(dir.path().join("blobs/sha256")).expect("read").count(), 0);
    assert_eq!(fs::read_dir(dir.path().join("tmp")).expect("read").count(), 0);
}

fn tar_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, *bytes).expect("append");
    }
    archive.into_inner().expect("tar")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("write");
    encoder.finish().expect("gzip")
}

#[tokio::test]
async fn docker_archives_compressed() {
    let (_dir, store) = store();
    let layer = tar_of(&[("etc/motd", b"hi")]);
    let diff_id = digest_of(Sha256::new().chain_update(&layer));
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/x"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
    let config = config.to_string().into_bytes();
    let manifest =
        json!([{"Config": "c.json", "RepoTags": ["a:1", "b:2"], "Layers": ["l/layer.tar"]}]).to_string();
    let plain = tar_of(&[
        ("l/layer.tar", &gzip(&layer)),
        ("c.json", &config),
        ("manifest.json", manifest.as_bytes()),
    ]);
    let zstd =
        ruzstd::encoding::compress_to_vec(plain.as_slice(), ruzstd::encoding::CompressionLevel::Fastest);
    for bytes in [plain.clone(), gzip(&plain), zstd] {
        let added = store.import(Cursor::new(bytes)).expect("import");
        assert_eq!(added[0].tags, ["docker.io/library/a:1", "docker.io/library/b:2"]);
    }
    let image = store.resolve("a:1").expect("resolve");
    assert_eq!(
        fs::read_to_string(image.layers_dir.join(&image.layers[0]).join("etc/motd")).expect("read"),
        "hi"
    );
}

#[test]
fn bad_archives_are_refused() {
    let (dir, store) = store();
    let zero = format!("blobs/sha256/{}", "0".repeat(64));
    let config = json!({"architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", "1".repeat(64))]}});
    let manifest = json!([{"Config": "c", "Layers": ["l"]}]).to_string();
    let cases: [(&str, Vec<u8>); 6] = [
        ("", Vec::new()),
        ("no tar", b"hello, world".repeat(100)),
        ("nothing known", tar_of(&[("a", b"b")])),
        ("digest", tar_of(&[(&zero, b"content")])),
        ("missing member", tar_of(&[("manifest.json", manifest.as_bytes())])),
        (
            "diff id",
            tar_of(&[
                ("manifest.json", manifest.as_bytes()),
                ("c", config.to_string().as_bytes()),
                ("l", &tar_of(&[("x", b"y")])),
            ]),
        ),
    ];
    for (what, bytes) in cases {
        assert!(store.import(Cursor::new(bytes)).is_err(), "{what:?} was taken");
    }
    assert_eq!(layers(dir.path()), 0);
    assert_eq!(fs::read_dir(dir.path().join("tmp")).expect("read").count(), 0);
}

/// Builds a raw header, since the builder refuses malicious names.
fn raw(kind: tar::EntryType, name: &str, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o4755);
    header.set_uid(12);
    header.set_gid(34);
    header.set_mtime(1000);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

#[test]
fn layers_stay_inside() {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let outside = tempfile::tempdir().expect("tempdir");
    fs::write(outside.path().join("secret"), "s").expect("write");
    let target = outside.path().to_string_lossy().into_owned();
    let inside = tempfile::tempdir().expect("tempdir");
    let attempts = [
        vec![raw(Regular, "../../../../../../../../tmp/k8s-runtime-escape", "", b"x")],
        vec![raw(Symlink, "out", &target, b""), raw(Regular, "out/made", "", b"x")],
        vec![
            raw(Symlink, "up", "../../../../../../..", b""),
            raw(Regular, "up/tmp/k8s-runtime-escape", "", b"x"),
        ],
        vec![raw(Link, "hard", &format!("{target}/secret"), b"")],
        vec![
            raw(Symlink, "self", "/proc/self/root", b""),
            raw(Directory, "self/tmp/k8s-runtime-escape", "", b""),
        ],
        vec![raw(Symlink, ".wh..wh..opq", "x", b""), raw(Regular, "a/.wh...", "", b"")],
    ];
    for (index, attempt) in attempts.into_iter().enumerate() {
        let dir = inside.path().join(index.to_string());
        fs::create_dir(&dir).expect("mkdir");
        // The entries are refused or created inside, never outside.
        let _ = unpack(Cursor::new(attempt.concat()), &dir);
    }
    assert!(!Path::new("/tmp/k8s-runtime-escape").exists());
    let names: Vec<_> =
        fs::read_dir(outside.path()).expect("read").flatten().map(|e| e.file_name()).collect();
    assert_eq!(names, ["secret"]);
    assert_eq!(fs::metadata(outside.path().join("secret")).expect("stat").nlink(), 1);
}

#[test]
fn layers_keep_what_matters() {
    use tar::EntryType::{Directory, Fifo, Link, Regular, Symlink};
    let dir = tempfile::tempdir().expect("tempdir");
    let bytes = [
        raw(Directory, "d/", "", b""),
        raw(Regular, "d/file", "", b"content"),
        raw(Link, "d/hard", "d/file", b""),
        raw(Symlink, "d/soft", "/nowhere", b""),
        raw(Fifo, "pipe", "", b""),
        raw(Regular, "d/.wh.gone", "", b""),
        raw(Directory, "opaque", "", b""),
        raw(Regular, "opaque/.wh..wh..opq", "", b""),
        raw(Regular, "twice", "", b"one"),
        raw(Regular, "twice", "", b"two"),
    ]
    .concat();
    let (digest, size) =
        unpack(decompress(Cursor::new(gzip(&bytes))).expect("gzip"), dir.path()).expect("unpack");
    assert_eq!(digest, digest_of(Sha256::new().chain_update(&bytes)));
    assert_eq!(size, 13);
    let stat = |name: &str| fs::symlink_metadata(dir.path().join(name)).expect("stat");
    let file = stat("d/file");
    assert_eq!(
        (file.uid(), file.gid(), file.permissions().mode() & 0o7777, file.mtime(), file.nlink()),
        (12, 34, 0o4755, 1000, 2)
    );
    assert_eq!((stat("d").mtime(), stat("d/soft").uid()), (1000, 12));
    assert_eq!(fs::read_link(dir.path().join("d/soft")).expect("link"), Path::new("/nowhere"));
    assert!(stat("pipe").file_type().is_fifo());
    let whiteout = stat("d/gone");
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    assert_eq!(fs::read_to_string(dir.path().join("twice")).expect("read"), "two");
}
