//! The store: reads of what is visible, and writes through the backend.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;

use crate::{
    Backend, BackendError, Change, Done, Effect, Event, EventKind, Expect, Format, Loaded, Local, Meta,
    Opaque, Sink, Snapshot, StoreError, Stored, WatchCursor, Write,
    collection::Collection,
    index::{Candidates, Term},
};

struct Inner {
    collections: RwLock<HashMap<Arc<str>, Arc<Collection>>>,
    /// Held while changes are made visible, so that a fork sees all of a group or none of it.
    applying: Mutex<()>,
    /// The newest revision that is durable and visible.
    visible: AtomicU64,
    /// The revision at which the store was opened. No history reaches back beyond it.
    opened_at: AtomicU64,
    /// The reason why writes fail now.
    ailment: RwLock<Option<String>>,
    format: Arc<dyn Format>,
    backend: Box<dyn Backend>,
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
    /// Opens a store over a backend whose objects have this format.
    ///
    /// ```
    /// use k8s_store::{Embedded, Expect, Local, Meta, Opaque, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let directory = tempfile::tempdir()?;
    /// let file = directory.path().join("state.redb");
    /// let store = Store::open(Local::new(Embedded::open(&file)?), Opaque)?;
    /// store.put("configmaps", "default/a", Expect::Absent, Meta::default(), |_| "{}".into()).await?;
    /// // The file is locked: no other process writes to it meanwhile.
    /// assert!(Embedded::open_existing(&file).is_err());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// When the backend cannot be read.
    pub fn open(backend: impl Backend, format: impl Format) -> Result<Self, BackendError> {
        Store::start(Box::new(backend), Arc::new(format), HashMap::new())
    }

    fn start(
        backend: Box<dyn Backend>,
        format: Arc<dyn Format>,
        collections: HashMap<Arc<str>, Arc<Collection>>,
    ) -> Result<Self, BackendError> {
        let inner = Arc::new(Inner {
            collections: RwLock::new(collections),
            applying: Mutex::new(()),
            visible: AtomicU64::new(0),
            opened_at: AtomicU64::new(0),
            ailment: RwLock::default(),
            format,
            backend,
        });
        // Changes that arrive while objects are still loaded wait.
        let loading = inner.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let revision = inner.backend.start(Arc::new(Entrance(Arc::downgrade(&inner))))?;
        inner.visible.store(revision, Ordering::Release);
        inner.opened_at.store(revision, Ordering::Release);
        for collection in inner.collections.read().unwrap_or_else(PoisonError::into_inner).values() {
            collection.opened(revision);
        }
        drop(loading);
        Ok(Store(inner))
    }

    /// Opens a store that keeps nothing beyond its process.
    #[must_use]
    pub fn memory() -> Self {
        Store::open(Local::memory(0), Opaque).unwrap_or_else(|e| unreachable!("memory cannot fail: {e}"))
    }

    /// Returns a store of its own with the same objects, kept in memory only. Costs O(1) per type: what
    /// neither store changes is shared. Watches of it begin now; older history is left behind.
    ///
    /// ```
    /// use k8s_store::{Expect, Meta, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = Store::memory();
    /// let fork = store.fork();
    /// fork.put("configmaps", "default/a", Expect::Absent, Meta::default(), |_| "{}".into()).await?;
    /// assert_eq!((store.snapshot("configmaps").len(), fork.snapshot("configmaps").len()), (0, 1));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn fork(&self) -> Self {
        // No group of changes is half visible while the lock is held.
        let _applying = self.0.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let revision = self.revision();
        let all = self.0.collections.read().unwrap_or_else(PoisonError::into_inner);
        let collections = all.iter().map(|(name, c)| (name.clone(), Arc::new(c.fork(revision)))).collect();
        Store::start(Box::new(Local::memory(revision)), self.0.format.clone(), collections)
            .unwrap_or_else(|e| unreachable!("memory cannot fail: {e}"))
    }

    /// Forgets events up to a revision, and the states of all types before it: reads of older ones are
    /// answered with [`StoreError::Expired`]. Objects stay as they are.
    ///
    /// ```
    /// use k8s_store::{Expect, Meta, Store, StoreError};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = Store::memory();
    /// let put = |expect| store.put("configmaps", "default/a", expect, Meta::default(), |_| "{}".into());
    /// let first = put(Expect::Absent).await?.revision;
    /// let second = put(Expect::Revision(first)).await?.revision;
    /// assert!(store.snapshot_at("configmaps", first).is_ok());
    /// store.compact(second);
    /// assert!(matches!(store.snapshot_at("configmaps", first), Err(StoreError::Expired(at)) if at == first));
    /// assert!(store.snapshot_at("configmaps", second).is_ok());
    /// # Ok(()) }
    /// ```
    pub fn compact(&self, revision: u64) {
        let all: Vec<_> =
            self.0.collections.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.iter().for_each(|collection| collection.compact(revision));
    }

    fn collection(&self, resource: &str) -> Arc<Collection> {
        self.0.collection(resource)
    }

    /// The newest revision that is durable and visible.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.0.visible.load(Ordering::Acquire)
    }

    /// The reason why writes fail now (a full disk, for example); `None`: they work.
    #[must_use]
    pub fn ailment(&self) -> Option<String> {
        self.0.ailment.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Returns an object by type and key, as it is now; `None` if there is none.
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
    /// ```
    /// use k8s_store::{Expect, Meta, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = Store::memory();
    /// let a = store.put("configmaps", "default/a", Expect::Absent, Meta::default(), |_| "{}".into()).await?;
    /// store.put("configmaps", "default/b", Expect::Absent, Meta::default(), |_| "{}".into()).await?;
    /// let before = store.snapshot_at("configmaps", a.revision)?;
    /// assert_eq!((before.len(), store.snapshot("configmaps").len()), (1, 2));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`StoreError::Expired`] when history does not reach back that far.
    pub fn snapshot_at(&self, resource: &str, revision: u64) -> Result<Snapshot, StoreError> {
        self.collection(resource).snapshot_at(revision).ok_or(StoreError::Expired(revision))
    }

    /// A type's objects now or at an earlier revision, and the keys of candidates for a selector, in order.
    /// Each element of `wanted` lists terms of which a matching object has at least one. `None` instead of
    /// keys: any object may match.
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

    /// Replaces the visible bytes and metadata of a type's objects, after its definition changed. `reshape`
    /// returns the new ones, or `None` for an object that stays. It is not a write: revisions do not change,
    /// watchers get no event, and the backend keeps the old bytes until the next write.
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

    /// The revision of the newest change of a type; tells cheaply whether what was made from a snapshot is
    /// still right.
    #[must_use]
    pub fn last_change(&self, resource: &str) -> u64 {
        self.collection(resource).last_change()
    }

    /// A place in a type's history, after `revision`.
    #[must_use]
    pub fn watch(&self, resource: &str, revision: u64) -> WatchCursor {
        self.collection(resource).cursor(revision)
    }

    /// Writes an object. `encode` returns the object's bytes, with the revision in them where the backend
    /// knows it already; otherwise the revision is put in when the write is visible ([`Format::stamp`]).
    ///
    /// # Errors
    /// [`StoreError::Conflict`] or [`StoreError::Unavailable`].
    pub async fn put(
        &self,
        resource: &str,
        key: &str,
        expect: Expect,
        meta: Meta,
        encode: impl FnOnce(Option<u64>) -> Bytes,
    ) -> Result<Arc<Stored>, StoreError> {
        self.write(resource, key, expect, Effect::Put(Some(meta)), encode).await
    }

    /// Deletes an object. `encode` returns its last state, with the revision of the deletion as
    /// [`Store::put`] has it.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] or [`StoreError::Unavailable`].
    pub async fn delete(
        &self,
        resource: &str,
        key: &str,
        expect: u64,
        encode: impl FnOnce(Option<u64>) -> Bytes,
    ) -> Result<Arc<Stored>, StoreError> {
        let expect = Expect::Revision(expect);
        self.write(resource, key, expect, Effect::Delete, encode).await
    }

    async fn write(
        &self,
        resource: &str,
        key: &str,
        expect: Expect,
        effect: Effect,
        encode: impl FnOnce(Option<u64>) -> Bytes,
    ) -> Result<Arc<Stored>, StoreError> {
        let (done, outcome) = Done::new();
        {
            let mut encode = Some(encode);
            let mut once = |revision| encode.take().map(|encode| encode(revision)).unwrap_or_default();
            self.0.backend.write(Write { resource, key, expect, effect, encode: &mut once }, done);
        }
        outcome.await.unwrap_or_else(|_| Err(StoreError::Unavailable("the store's backend has ended".into())))
    }
}

impl Inner {
    fn collection(&self, resource: &str) -> Arc<Collection> {
        let poisoned = PoisonError::into_inner;
        if let Some(found) = self.collections.read().unwrap_or_else(poisoned).get(resource) {
            return found.clone();
        }
        let mut all = self.collections.write().unwrap_or_else(PoisonError::into_inner);
        // A type without objects may have lost its last one before the store was opened.
        let new = || Arc::new(Collection::new(self.opened_at.load(Ordering::Acquire)));
        all.entry(resource.into()).or_insert_with(new).clone()
    }

    /// The object's bytes with its revision in them.
    fn stamped(&self, bytes: Bytes, stamped: bool, revision: u64) -> Bytes {
        if stamped { bytes } else { self.format.stamp(bytes, revision) }
    }

    /// The event that a change is here. `None`: it deletes an object that is not there.
    fn event(&self, change: Change, collection: &Collection) -> Option<(Arc<Event>, Option<Done>)> {
        let Change { resource, key, revision, effect, bytes, stamped, done } = change;
        let before = collection.get(&key);
        let json = self.stamped(bytes, stamped, revision);
        let (kind, meta) = match (&before, effect) {
            (None, Effect::Delete) => return None,
            (Some(before), Effect::Delete) => (EventKind::Deleted, before.meta()),
            (before, Effect::Put(meta)) => {
                let kind = if before.is_some() { EventKind::Modified } else { EventKind::Added };
                (kind, meta.unwrap_or_else(|| self.format.describe(&resource, &json)))
            }
        };
        let Meta { uid, labels, fields } = meta;
        let key = before.as_ref().map_or(key, |before| before.key.clone());
        let object = Arc::new(Stored { key, revision, uid, labels, fields, json });
        Some((Arc::new(Event::new(kind, object, before)), done))
    }

    fn apply(&self, changes: Vec<Change>) {
        let _applying = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = 0;
        let mut writers: Vec<(Done, Arc<Stored>)> = Vec::with_capacity(changes.len());
        let mut changed: Vec<Arc<Collection>> = Vec::new();
        for change in changes {
            last = change.revision;
            let collection = self.collection(&change.resource);
            let Some((event, done)) = self.event(change, &collection) else { continue };
            writers.extend(done.map(|done| (done, event.object.clone())));
            collection.apply(event);
            if !changed.iter().any(|c| Arc::ptr_eq(c, &collection)) {
                changed.push(collection);
            }
        }
        self.visible.fetch_max(last, Ordering::Release);
        for collection in changed {
            collection.wake(last);
        }
        for (done, object) in writers {
            done.written(object);
        }
    }
}

/// The store's side of its backend. Weak, because the store owns the backend.
struct Entrance(Weak<Inner>);

impl Sink for Entrance {
    fn load(&self, object: Loaded) {
        let Some(inner) = self.0.upgrade() else { return };
        let Loaded { resource, key, revision, bytes, stamped } = object;
        let json = inner.stamped(bytes, stamped, revision);
        let Meta { uid, labels, fields } = inner.format.describe(&resource, &json);
        inner.collection(&resource).load(Stored { key, revision, uid, labels, fields, json });
    }

    fn apply(&self, changes: Vec<Change>) -> bool {
        self.0.upgrade().map(|inner| inner.apply(changes)).is_some()
    }

    fn current(&self, resource: &str, key: &str) -> Option<(u64, Bytes)> {
        let stored = self.0.upgrade()?.collection(resource).get(key)?;
        Some((stored.revision, stored.json.clone()))
    }

    fn ailing(&self, reason: Option<String>) {
        let Some(inner) = self.0.upgrade() else { return };
        let mut ailment = inner.ailment.write().unwrap_or_else(PoisonError::into_inner);
        match (&*ailment, &reason) {
            (None, Some(reason)) => tracing::error!(reason, "the store cannot write"),
            (Some(_), None) => tracing::info!("the store writes again"),
            _ => {}
        }
        *ailment = reason;
    }
}

#[cfg(test)]
mod tests;
