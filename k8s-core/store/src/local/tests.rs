//! Backends of other kinds, to show that the seam holds: a database with two writers, and a wrapper that
//! masks bytes.

use std::collections::BTreeMap;

use super::*;
use crate::{Format, Meta, Store, StoreError};

/// Text with its revision behind an `@`.
struct Text;

impl Format for Text {
    fn describe(&self, _: &str, bytes: &[u8]) -> Meta {
        Meta {
            uid: String::from_utf8_lossy(bytes).split('@').next().unwrap_or_default().into(),
            ..Meta::default()
        }
    }

    fn stamp(&self, bytes: Bytes, revision: u64) -> Bytes {
        [&bytes[..], format!("@{revision}").as_bytes()].concat().into()
    }
}

fn text(value: &'static str) -> impl FnOnce(Option<u64>) -> Bytes {
    move |revision| revision.map_or_else(|| value.into(), |revision| format!("{value}@{revision}").into())
}

/// A database that several processes write to: it gives the revisions and stores objects without them.
#[derive(Clone, Default)]
struct Database(Arc<Mutex<Data>>);

#[derive(Default)]
struct Data {
    revision: u64,
    objects: BTreeMap<(String, String), (u64, Bytes)>,
    watchers: Vec<Arc<dyn Sink>>,
}

/// One process' connection.
struct Connection {
    database: Database,
    place: Mutex<Option<usize>>,
}

impl Database {
    fn connect(&self) -> Connection {
        Connection { database: self.clone(), place: Mutex::new(None) }
    }
}

impl Backend for Connection {
    fn start(&self, sink: Arc<dyn Sink>) -> Result<u64, BackendError> {
        let mut data = self.database.0.lock().unwrap();
        for ((resource, key), (revision, bytes)) in &data.objects {
            let (resource, key) = (resource.as_str().into(), key.as_str().into());
            sink.load(Loaded { resource, key, revision: *revision, bytes: bytes.clone(), stamped: false });
        }
        *self.place.lock().unwrap() = Some(data.watchers.len());
        data.watchers.push(sink);
        Ok(data.revision)
    }

    fn write(&self, write: Write<'_>, done: Done) {
        let mut data = self.database.0.lock().unwrap();
        let slot = (write.resource.to_owned(), write.key.to_owned());
        let have = data.objects.get(&slot).map(|(revision, _)| *revision);
        if have
            != (match write.expect {
                Expect::Absent => None,
                Expect::Revision(r) => Some(r),
            })
        {
            return done.conflict(write.key, have);
        }
        let bytes = (write.encode)(None);
        // Others wrote to other databases' types meanwhile.
        data.revision += 10;
        let revision = data.revision;
        match &write.effect {
            Effect::Put(_) => drop(data.objects.insert(slot, (revision, bytes.clone()))),
            Effect::Delete => drop(data.objects.remove(&slot)),
        }
        let mut done = Some(done);
        for (i, sink) in data.watchers.iter().enumerate() {
            let mine = *self.place.lock().unwrap() == Some(i);
            sink.apply(vec![Change {
                resource: write.resource.into(),
                key: write.key.into(),
                revision,
                effect: match &write.effect {
                    Effect::Put(_) => Effect::Put(None),
                    Effect::Delete => Effect::Delete,
                },
                bytes: bytes.clone(),
                stamped: false,
                done: if mine { done.take() } else { None },
            }]);
        }
    }
}

#[tokio::test]
async fn stores_over_one_database_see_each_others_writes_and_conflict() {
    let database = Database::default();
    let first = Store::open(database.connect(), Text).unwrap();
    let second = Store::open(database.connect(), Text).unwrap();
    let mut watch = second.watch("pods", 0);
    let a = first.put("pods", "a", Expect::Absent, Meta::default(), text("one")).await.unwrap();
    assert_eq!((a.revision, &a.json[..], &*a.uid), (10, &b"one@10"[..], "one"), "stamped when it arrives");
    assert_eq!(second.get("pods", "a").unwrap().json, a.json);
    second.put("pods", "a", Expect::Revision(10), Meta::default(), text("two")).await.unwrap();
    let late = first.put("pods", "a", Expect::Revision(10), Meta::default(), text("three")).await;
    assert!(matches!(late, Err(StoreError::Conflict { have: Some(20), .. })), "{late:?}");
    first.delete("pods", "a", 20, text("two")).await.unwrap();
    let seen: Vec<_> = watch.take(9).unwrap().iter().map(|e| (e.kind, e.object.revision)).collect();
    use crate::EventKind::{Added, Deleted, Modified};
    assert_eq!(seen, [(Added, 10), (Modified, 20), (Deleted, 30)]);
    let third = Store::open(database.connect(), Text).unwrap();
    assert_eq!((third.revision(), third.get("pods", "a").is_none()), (30, true));
}

/// A wrapper whose backend never sees the bytes as they are.
struct Masked<B>(B);

fn mask(bytes: &[u8]) -> Bytes {
    bytes.iter().map(|byte| byte ^ 0x55).collect::<Vec<u8>>().into()
}

impl<B: Backend> Backend for Masked<B> {
    fn start(&self, sink: Arc<dyn Sink>) -> Result<u64, BackendError> {
        self.0.start(Arc::new(Unmask(sink)))
    }

    fn write(&self, write: Write<'_>, done: Done) {
        let encode = &mut |revision| mask(&(write.encode)(revision));
        self.0.write(Write { encode, ..write }, done);
    }
}

struct Unmask(Arc<dyn Sink>);

impl Sink for Unmask {
    fn load(&self, object: Loaded) {
        self.0.load(Loaded { bytes: mask(&object.bytes), ..object });
    }
    fn apply(&self, changes: Vec<Change>) -> bool {
        self.0.apply(
            changes.into_iter().map(|change| Change { bytes: mask(&change.bytes), ..change }).collect(),
        )
    }
    fn current(&self, resource: &str, key: &str) -> Option<(u64, Bytes)> {
        self.0.current(resource, key).map(|(revision, bytes)| (revision, mask(&bytes)))
    }
    fn ailing(&self, reason: Option<String>) {
        self.0.ailing(reason);
    }
}

/// A log that others can look into.
#[derive(Clone, Default)]
struct Glass(Arc<Mutex<Vec<Record>>>);

impl Log for Glass {
    fn load(&mut self, each: &mut dyn FnMut(Record)) -> Result<u64, BackendError> {
        self.0.lock().unwrap().iter().cloned().for_each(each);
        Ok(0)
    }
    fn commit(&mut self, batch: &[Record]) -> Result<(), BackendError> {
        self.0.lock().unwrap().extend_from_slice(batch);
        Ok(())
    }
}

#[tokio::test]
async fn a_wrapper_changes_what_is_kept_and_nothing_else() {
    let log = Glass::default();
    let store = Store::open(Masked(Local::new(log.clone())), Text).unwrap();
    let a = store.put("pods", "a", Expect::Absent, Meta::default(), text("one")).await.unwrap();
    store.put("pods", "a", Expect::Revision(a.revision), Meta::default(), text("two")).await.unwrap();
    let records = log.0.lock().unwrap().clone();
    assert_eq!(records[1].bytes.as_deref(), Some(&mask(b"two@2")[..]));
    assert_eq!(records[1].before, Some((1, mask(b"one@1"))));
    *log.0.lock().unwrap() = records[1..].to_vec();
    let again = Store::open(Masked(Local::new(log)), Text).unwrap();
    assert_eq!(&again.get("pods", "a").unwrap().json[..], b"two@2");
    assert_eq!(again.revision(), 2);
}
