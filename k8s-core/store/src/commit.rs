//! Writes: checked, numbered, and handed to those who make them durable.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use super::{
    Backend, BackendError, Event, EventKind, Meta, Record, Snapshot, Stored, WatchCursor,
    collection::Collection,
    group::{self, Overlay, Pending},
    index::{Candidates, Term},
};

/// Why a write or an exact read failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The object is not in the state that the writer expects. Read again and retry.
    #[error("{key} is at {have:?}")]
    Conflict {
        /// The object.
        key: String,
        /// Its revision; `None`: it is not there.
        have: Option<u64>,
    },
    /// The backend cannot write, and nothing was written. Retryable: the store writes again within seconds after the cause is mended.
    #[error("the store cannot write: {0}")]
    Unavailable(String),
    /// The asked-for revision is no longer in history.
    #[error("revision {0} is no longer in history")]
    Expired(u64),
}

/// The state that a writer expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Not there.
    Absent,
    /// At this revision.
    Revision(u64),
}

/// What writers share, under one lock.
pub(super) struct Writer {
    pub(super) revision: u64,
    pub(super) overlay: Overlay,
    queue: Queue,
}

enum Queue {
    /// The backend does not block: commits happen in the writer's own call.
    Inline(Box<dyn Backend>),
    Thread(mpsc::Sender<Pending>),
}

pub(super) struct Inner {
    collections: RwLock<HashMap<Arc<str>, Arc<Collection>>>,
    pub(super) writer: Mutex<Writer>,
    /// The newest revision that is durable and visible.
    pub(super) visible: AtomicU64,
    /// The newest revision whose write has come to its end: is visible, or was refused. The commit thread has the sender.
    settled: watch::Receiver<u64>,
    /// Why not all writes can be made durable now.
    pub(super) ailment: RwLock<Option<String>>,
}

/// Every object of a cluster. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("revision", &self.revision()).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens a store over a backend. `describe` tells uid, labels and fields of a stored object (resource, JSON).
    ///
    /// # Errors
    /// When the backend cannot be read.
    pub fn open(
        mut backend: impl Backend,
        describe: &dyn Fn(&str, &[u8]) -> Meta,
    ) -> Result<Self, BackendError> {
        let mut collections: HashMap<Arc<str>, Arc<Collection>> = HashMap::new();
        let mut newest = 0;
        let revision = backend.load(&mut |record| {
            let Record { resource, key, revision, json: Some(json), .. } = record else { return };
            newest = newest.max(revision);
            let Meta { uid, labels, fields } = describe(&resource, &json);
            let collection = collections.entry(resource).or_insert_with(|| Arc::new(Collection::new(0)));
            collection.load(Stored { key, revision, uid, labels, fields, json });
        })?;
        let revision = revision.max(newest);
        for collection in collections.values() {
            collection.loaded(revision);
        }
        let ailment = (!backend.is_well()).then(|| "no space left on the disk".to_owned());
        if let Some(why) = &ailment {
            tracing::error!(why, "the store opens for reading only");
        }
        let blocks = backend.blocks();
        let (sender, receiver) = mpsc::channel();
        let (settle, settled) = watch::channel(revision);
        let mut boxed: Option<Box<dyn Backend>> = Some(Box::new(backend));
        let queue = match boxed.take_if(|_| !blocks) {
            Some(backend) => Queue::Inline(backend),
            None => Queue::Thread(sender),
        };
        let inner = Arc::new(Inner {
            collections: RwLock::new(collections),
            writer: Mutex::new(Writer { revision, overlay: HashMap::new(), queue }),
            visible: AtomicU64::new(revision),
            settled,
            ailment: RwLock::new(ailment),
        });
        if let Some(backend) = boxed {
            let weak = Arc::downgrade(&inner);
            std::thread::Builder::new()
                .name("store-commit".into())
                .spawn(move || group::commit_loop(backend, &receiver, &settle, &weak))
                .map_err(|e| BackendError(format!("start the commit thread: {e}")))?;
        }
        Ok(Store(inner))
    }

    /// A store that keeps nothing beyond its process.
    #[must_use]
    pub fn memory() -> Self {
        Store::open(super::Memory, &|_, _| Meta::default())
            .unwrap_or_else(|e| unreachable!("memory cannot fail: {e}"))
    }

    /// A store of its own with the same objects, which keeps nothing beyond its process. Costs O(1) per type: what neither changes is shared. Watches
    /// of it begin now; older history is left behind.
    #[must_use]
    pub fn fork(&self) -> Self {
        let poisoned = std::sync::PoisonError::into_inner;
        // No write is half visible while the lock is held.
        let _writers = self.0.writer.lock().unwrap_or_else(poisoned);
        let revision = self.revision();
        let all = self.0.collections.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let collections = all.iter().map(|(name, c)| (name.clone(), Arc::new(c.fork(revision)))).collect();
        Store(Arc::new(Inner {
            collections: RwLock::new(collections),
            writer: Mutex::new(Writer {
                revision,
                overlay: HashMap::new(),
                queue: Queue::Inline(Box::new(super::Memory)),
            }),
            visible: AtomicU64::new(revision),
            settled: watch::channel(revision).1,
            ailment: RwLock::default(),
        }))
    }

    fn collection(&self, resource: &str) -> Arc<Collection> {
        let poisoned = std::sync::PoisonError::into_inner;
        if let Some(found) = self.0.collections.read().unwrap_or_else(poisoned).get(resource) {
            return found.clone();
        }
        let mut all = self.0.collections.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.entry(resource.into()).or_insert_with(|| Arc::new(Collection::new(0))).clone()
    }

    /// The newest revision that is durable and visible.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.0.visible.load(Ordering::Acquire)
    }

    /// Returns why the store does not take all writes now (a full disk, for example); `None`: it takes them.
    #[must_use]
    pub fn ailment(&self) -> Option<String> {
        self.0.ailment.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// One object.
    #[must_use]
    pub fn get(&self, resource: &str, key: &str) -> Option<Arc<Stored>> {
        self.collection(resource).get(key)
    }

    /// All objects of a type, as they are now.
    #[must_use]
    pub fn snapshot(&self, resource: &str) -> Snapshot {
        let revision = self.revision();
        self.collection(resource).snapshot(revision)
    }

    /// All objects of a type, as they were at `revision`.
    ///
    /// # Errors
    /// [`StoreError::Expired`] when history does not reach back that far.
    pub fn snapshot_at(&self, resource: &str, revision: u64) -> Result<Snapshot, StoreError> {
        self.collection(resource).snapshot_at(revision).ok_or(StoreError::Expired(revision))
    }

    /// A type's objects now, or as they were at a revision, with the keys of those that may match a selector, in order. Each element of `wanted` lists terms
    /// of which a matching object has at least one; without keys in the answer, any object may match.
    ///
    /// # Errors
    /// [`StoreError::Expired`] when history does not reach back that far.
    pub fn select(
        &self,
        resource: &str,
        at: Option<u64>,
        wanted: &[Vec<Term<'_>>],
    ) -> Result<(Snapshot, Candidates), StoreError> {
        let newest = self.revision();
        let expired = || StoreError::Expired(at.unwrap_or(newest));
        self.collection(resource).select(newest, at, wanted).ok_or_else(expired)
    }

    /// Shows a type's objects as they are now understood (their definition changed): `reshape` returns the bytes and what the store needs to know of them, or
    /// `None` for an object that stays as it is. Not a write: revisions stay, nobody is told, and what is on disk is as it was until it is written again.
    pub fn reshape(&self, resource: &str, reshape: impl Fn(&Stored) -> Option<(Bytes, Meta)>) {
        let now = self.snapshot(resource);
        let reshaped = now.range("", "").filter_map(|old| {
            let (json, Meta { uid, labels, fields }) = reshape(old)?;
            Some(Stored { key: old.key.clone(), revision: old.revision, uid, labels, fields, json })
        });
        // The lock is not held while they are made.
        let reshaped: Vec<Stored> = reshaped.collect();
        self.collection(resource).reshape(reshaped);
    }

    /// The revision of the newest change of a type; tells cheaply whether what was made from a snapshot is still right.
    #[must_use]
    pub fn last_change(&self, resource: &str) -> u64 {
        self.collection(resource).last_change()
    }

    /// A place in a type's history, after `revision`.
    #[must_use]
    pub fn watch(&self, resource: &str, revision: u64) -> WatchCursor {
        self.collection(resource).cursor(revision)
    }

    /// Writes an object. `encode` gets the write's revision and returns the object's bytes with that revision in them.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] or [`StoreError::Unavailable`].
    pub async fn put(
        &self,
        resource: &str,
        key: &str,
        expect: Expect,
        meta: Meta,
        encode: impl FnOnce(u64) -> Bytes,
    ) -> Result<Arc<Stored>, StoreError> {
        self.write(Write { resource, key, expect, change: Change::Put(meta) }, encode).await
    }

    /// Deletes an object. `encode` gets the deletion's revision and returns the object's last state with that revision in it.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] or [`StoreError::Unavailable`].
    pub async fn delete(
        &self,
        resource: &str,
        key: &str,
        expect: u64,
        encode: impl FnOnce(u64) -> Bytes,
    ) -> Result<Arc<Stored>, StoreError> {
        let expect = Expect::Revision(expect);
        self.write(Write { resource, key, expect, change: Change::Delete }, encode).await
    }

    async fn write(
        &self,
        write: Write<'_>,
        encode: impl FnOnce(u64) -> Bytes,
    ) -> Result<Arc<Stored>, StoreError> {
        let (done, acknowledged) = oneshot::channel();
        let key = write.key;
        if let Err(Lost { have, pending }) = self.submit(write, encode, done) {
            if let Some(revision) = pending {
                // Who reads and retries sooner would read what it read before. (When the commit thread has ended, nothing is pending any more.)
                let _ = self.0.settled.clone().wait_for(|settled| *settled >= revision).await;
            }
            return Err(StoreError::Conflict { key: key.to_owned(), have });
        }
        acknowledged
            .await
            .unwrap_or_else(|_| Err(StoreError::Unavailable("the commit thread has ended".into())))
    }

    /// Checks and numbers a write and hands it to the commit thread, which tells `done` (or drops it, when it has ended).
    fn submit(
        &self,
        Write { resource, key, expect, change }: Write<'_>,
        encode: impl FnOnce(u64) -> Bytes,
        done: oneshot::Sender<Result<Arc<Stored>, StoreError>>,
    ) -> Result<(), Lost> {
        let collection = self.collection(resource);
        let mut writer = self.0.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let slot: (Arc<str>, Arc<str>) = (resource.into(), key.into());
        let (pending, before) = match writer.overlay.get(&slot) {
            Some((revision, pending)) => (Some(*revision), pending.clone()),
            None => (None, collection.get(key)),
        };
        let have = before.as_ref().map(|b| b.revision);
        let want = match expect {
            Expect::Absent => None,
            Expect::Revision(revision) => Some(revision),
        };
        if have != want {
            return Err(Lost { have, pending });
        }
        let revision = writer.revision + 1;
        writer.revision = revision;
        let json = encode(revision);
        let (kind, meta) = match (&before, change) {
            (None, Change::Put(meta)) => (EventKind::Added, meta),
            (Some(_), Change::Put(meta)) => (EventKind::Modified, meta),
            (before, Change::Delete) => {
                (EventKind::Deleted, before.as_ref().map(|b| b.meta()).unwrap_or_default())
            }
        };
        let object = Arc::new(Stored {
            key: before.as_ref().map_or_else(|| slot.1.clone(), |b| b.key.clone()),
            revision,
            uid: meta.uid,
            labels: meta.labels,
            fields: meta.fields,
            json,
        });
        let left = (kind != EventKind::Deleted).then(|| object.clone());
        let record = Record {
            resource: slot.0.clone(),
            key: object.key.clone(),
            revision,
            json: left.as_ref().map(|object| object.json.clone()),
            before: before.as_ref().map(|before| (before.revision, before.json.clone())),
        };
        let event = Arc::new(Event::new(kind, object, before));
        let write = Pending { collection, record, event, done };
        let writer = &mut *writer;
        match &mut writer.queue {
            Queue::Inline(backend) => {
                group::commit(&mut **backend, vec![write], &self.0, &mut writer.overlay);
            }
            Queue::Thread(queue) => {
                // Without a thread the write is dropped here, and its writer told.
                if queue.send(write).is_ok() {
                    writer.overlay.insert(slot, (revision, left));
                }
            }
        }
        Ok(())
    }
}

/// A write, but for its bytes: those have its revision in them.
struct Write<'a> {
    resource: &'a str,
    key: &'a str,
    expect: Expect,
    change: Change,
}

/// What a write does.
enum Change {
    Put(Meta),
    Delete,
}

/// A write that came too late.
struct Lost {
    /// The object's revision; `None`: it is not there.
    have: Option<u64>,
    /// The write that came before and is not durable yet.
    pending: Option<u64>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{Embedded, OpenError};

    fn bytes(value: u8) -> impl FnOnce(u64) -> Bytes {
        move |revision| format!("{{\"v\":{value},\"rv\":{revision}}}").into()
    }

    #[tokio::test]
    async fn survives_reopening_and_refuses_a_second_opener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let open = || Store::open(Embedded::open(&path).unwrap(), &|_, _| Meta::default()).unwrap();
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
        let store = Store::open(again.unwrap(), &|_, _| Meta::default()).unwrap();
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
    impl Backend for Full {
        fn load(&mut self, _: &mut dyn FnMut(Record)) -> Result<u64, BackendError> {
            Ok(0)
        }
        fn commit(&mut self, _: &[Record]) -> Result<(), BackendError> {
            if self.0 { Err(BackendError("no space left".into())) } else { Ok(()) }
        }
    }

    #[tokio::test]
    async fn a_full_disk_refuses_writes_and_keeps_the_state() {
        let store = Store::open(Full(true), &|_, _| Meta::default()).unwrap();
        let error = store.put("pods", "a", Expect::Absent, Meta::default(), bytes(1)).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)));
        assert!(store.get("pods", "a").is_none());
        assert_eq!(store.revision(), 0);
    }

    /// A disk on which every flush takes a while.
    struct Slow;
    impl Backend for Slow {
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
        let store = Store::open(Slow, &|_, _| Meta::default()).unwrap();
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
        let store = Store::open(Full(false), &|_, _| Meta::default()).unwrap();
        let mut cursor = store.watch("pods", 0);
        let writes = (0..100).map(|i| {
            let store = store.clone();
            async move {
                store
                    .put("pods", &format!("k{i:03}"), Expect::Absent, Meta::default(), bytes(1))
                    .await
                    .unwrap()
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
}
