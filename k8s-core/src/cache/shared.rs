//! The cache and its subscriptions.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, RwLock},
};

use tokio::sync::broadcast;

use super::{state::State, weigh::weigh};
use crate::{
    client::Unreadable,
    meta::{Object, ObjectExt, ObjectKey},
};
use k8s_progress::Progress;

/// Number of changes that a subscriber may fall behind before it gets [`Change::Resync`].
const BACKLOG: usize = 4096;

/// Sample size of the memory estimate.
const SAMPLE: usize = 256;
/// Bytes per object for its key, its slot in B-tree nodes, and its numbers in about two indexes.
const PLACE: usize = 160;

/// A change of the cache. Objects are shared with the cache.
#[derive(Clone, Debug)]
pub enum Change<K> {
    /// An object was added.
    Added(Arc<K>),
    /// An object was changed: old and new version.
    Modified(Arc<K>, Arc<K>),
    /// An object was removed: its last version.
    Deleted(Arc<K>),
    /// The subscriber fell behind and must read the whole cache.
    Resync,
}

struct Inner<K> {
    state: RwLock<State<K>>,
    changes: broadcast::Sender<Change<K>>,
    /// The cache is complete up to this revision; 0 before the first list.
    revision: Progress,
    /// Number of changes so far.
    changed: Progress,
}

/// The current objects of one type. Cheap to clone; clones share their state.
///
/// ```
/// use k8s_core::{api::ConfigMap, cache::Cache};
/// let maps = Cache::<ConfigMap>::new();
/// let mut map = ConfigMap::default();
/// (map.metadata.name, map.metadata.namespace) = (Some("a".into()), Some("default".into()));
/// maps.upsert(map);
/// assert!(maps.get("default", "a").is_some() && maps.get("default", "b").is_none());
/// assert_eq!((maps.len(), maps.in_namespace("kube-system").len()), (1, 0));
/// ```
pub struct Cache<K>(Arc<Inner<K>>);

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Cache(self.0.clone())
    }
}

impl<K> std::fmt::Debug for Cache<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("revision", &self.0.revision.get()).finish_non_exhaustive()
    }
}

impl<K: Object> Default for Cache<K> {
    fn default() -> Self {
        Self::new()
    }
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    // A poisoned lock means that an index function panicked; the map itself is consistent.
    lock.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl<K: Object> Cache<K> {
    /// Creates an empty cache, to be filled by a reflector or a test.
    #[must_use]
    pub fn new() -> Self {
        Cache(Arc::new(Inner {
            state: RwLock::default(),
            changes: broadcast::channel(BACKLOG).0,
            revision: Progress::new(0),
            changed: Progress::new(0),
        }))
    }

    /// Adds an index: `keys_of` returns the index keys of an object for [`Cache::by_index`]. Adding the same
    /// name again has no effect.
    ///
    /// ```
    /// use k8s_core::{api::Pod, cache::Cache};
    /// let pod = |name: &str, node: &str| {
    ///     let mut pod = Pod::default();
    ///     pod.metadata.name = Some(name.into());
    ///     pod.metadata.namespace = Some("default".into());
    ///     pod.spec.get_or_insert_default().node_name = Some(node.into());
    ///     pod
    /// };
    /// let pods = Cache::<Pod>::new();
    /// pods.add_index("node", |pod| pod.spec.iter().filter_map(|spec| spec.node_name.clone()).collect());
    /// pods.replace(vec![pod("a", "n1"), pod("b", "n2"), pod("c", "n1")], 7);
    /// assert_eq!(pods.by_index("node", "n1").len(), 2);
    /// ```
    pub fn add_index(&self, name: &'static str, keys_of: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) {
        write(&self.0.state).add_index(name, keys_of);
    }

    /// Returns an object; the namespace is empty for cluster-scoped ones.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.by_key(&ObjectKey::new(namespace, name))
    }

    /// Returns an object by key.
    #[must_use]
    pub fn by_key(&self, key: &ObjectKey) -> Option<Arc<K>> {
        read(&self.0.state).get(key).cloned()
    }

    /// Returns all objects, ordered by namespace and name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<K>> {
        read(&self.0.state).iter().cloned().collect()
    }

    /// Returns all objects in a namespace, ordered by name.
    #[must_use]
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        read(&self.0.state).in_namespace(namespace).cloned().collect()
    }

    /// Returns the objects with an index key, in no particular order. Empty if the index does not exist.
    #[must_use]
    pub fn by_index(&self, index: &str, entry: &str) -> Vec<Arc<K>> {
        read(&self.0.state).by_index(index, entry).cloned().collect()
    }

    /// Returns the number of objects.
    #[must_use]
    pub fn len(&self) -> usize {
        read(&self.0.state).len()
    }

    /// Returns true if the cache is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the approximate memory of the objects and their keys, in bytes. Extrapolates from a sample, so
    /// it is cheap for a large cache.
    #[must_use]
    pub fn memory(&self) -> usize {
        let (count, sample) = {
            let state = read(&self.0.state);
            let step = state.len().div_ceil(SAMPLE).max(1);
            (state.len(), state.iter().step_by(step).cloned().collect::<Vec<_>>())
        };
        let each =
            |object: &Arc<K>| weigh(&**object) + PLACE + object.namespace().len() + object.name().len();
        sample.iter().map(each).sum::<usize>().saturating_mul(count) / sample.len().max(1)
    }

    /// Subscribes to changes from now on.
    ///
    /// ```
    /// use k8s_core::{api::ConfigMap, cache::{Cache, Change}};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let maps = Cache::<ConfigMap>::new();
    /// let mut changes = maps.subscribe();
    /// let mut map = ConfigMap::default();
    /// map.metadata.name = Some("a".into());
    /// maps.upsert(map);
    /// assert!(matches!(changes.next().await, Some(Change::Added(_))));
    /// # }
    /// ```
    #[must_use]
    pub fn subscribe(&self) -> Subscription<K> {
        Subscription(self.0.changes.subscribe())
    }

    /// Returns the revision up to which the cache is complete; 0 before the first list.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.0.revision.get()
    }

    /// Waits until the first list is in the cache.
    pub async fn synced(&self) {
        self.reached(1).await;
    }

    /// Returns true once the first list is in the cache.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.revision() > 0
    }

    /// Waits until the cache is complete up to `revision`, as returned by a write.
    pub async fn reached(&self, revision: u64) {
        self.0.revision.reached(revision).await;
    }

    /// Waits until `done` returns true. Calls it now and after changes. Cheaper than a subscription if the
    /// changes themselves do not matter.
    pub async fn until(&self, mut done: impl FnMut() -> bool) {
        loop {
            let seen = self.0.changed.get();
            if done() {
                return;
            }
            self.0.changed.reached(seen + 1).await;
        }
    }

    /// Inserts or replaces an object. For reflectors and tests.
    pub fn upsert(&self, object: K) {
        let key = object.key();
        let revision = object.revision();
        let object = Arc::new(object);
        let change = {
            let mut state = write(&self.0.state);
            match state.insert(key, object.clone()) {
                Some(old) => Change::Modified(old, object),
                None => Change::Added(object),
            }
        };
        self.tell(change);
        self.advance(revision);
    }

    /// Removes an object. For reflectors and tests.
    pub fn remove(&self, object: K) {
        let revision = object.revision();
        let known = write(&self.0.state).remove(&object.key()).is_some();
        if known {
            self.tell(Change::Deleted(Arc::new(object)));
        }
        self.advance(revision);
    }

    /// Handles an object that does not deserialize. The cached version of the same object (uid) stays,
    /// because an older version is better than none; an earlier object of this name is removed, and so is a
    /// `gone` object. Returns true if a version stays.
    pub(super) fn see_unreadable(&self, one: &Unreadable, gone: bool) -> bool {
        let removed = {
            let mut state = write(&self.0.state);
            match state.get(&one.key) {
                None => return false,
                Some(old) if !gone && old.uid() == one.uid => return true,
                Some(_) => state.remove(&one.key),
            }
        };
        if let Some(old) = removed {
            self.tell(Change::Deleted(old));
        }
        false
    }

    /// Replaces the whole content with a list at `revision`. For reflectors and tests.
    pub fn replace(&self, objects: Vec<K>, revision: u64) {
        self.replace_readable(objects, &[], revision);
    }

    /// As [`Cache::replace`], for a list with unreadable objects; their cached versions stay.
    pub(super) fn replace_readable(&self, objects: Vec<K>, unreadable: &[Unreadable], revision: u64) {
        let mut changes = Vec::new();
        {
            let mut state = write(&self.0.state);
            let mut gone: BTreeSet<ObjectKey> = state.keys().cloned().collect();
            for one in unreadable {
                if state.get(&one.key).is_some_and(|old| old.uid() == one.uid) {
                    gone.remove(&one.key);
                }
            }
            for object in objects {
                let key = object.key();
                gone.remove(&key);
                let new_revision = object.revision();
                let object = Arc::new(object);
                match state.insert(key, object.clone()) {
                    Some(old) if old.revision() == new_revision && old.uid() == object.uid() => {}
                    Some(old) => changes.push(Change::Modified(old, object)),
                    None => changes.push(Change::Added(object)),
                }
            }
            for key in gone {
                changes.extend(state.remove(&key).map(Change::Deleted));
            }
        }
        for change in changes {
            self.tell(change);
        }
        self.advance(revision.max(1));
    }

    /// Marks the cache as complete up to `revision` (a bookmark).
    pub fn advance(&self, revision: u64) {
        self.0.revision.advance(revision);
    }

    /// As [`Cache::upsert`], but without completing the revision: initial events arrive in any order.
    pub(super) fn upsert_initial(&self, object: K) {
        let key = object.key();
        let object = Arc::new(object);
        let old = write(&self.0.state).insert(key, object.clone());
        match old {
            Some(old) if old.revision() == object.revision() => {}
            Some(old) => self.tell(Change::Modified(old, object)),
            None => self.tell(Change::Added(object)),
        }
    }

    /// As [`Cache::remove`], but without completing the revision.
    pub(super) fn remove_initial(&self, object: K) {
        if write(&self.0.state).remove(&object.key()).is_some() {
            self.tell(Change::Deleted(Arc::new(object)));
        }
    }

    /// Removes objects that are missing in a complete initial state.
    pub(super) fn retain_keys(&self, keep: &HashSet<ObjectKey>) {
        let gone: Vec<Arc<K>> = {
            let mut state = write(&self.0.state);
            let keys: Vec<ObjectKey> = state.keys().filter(|k| !keep.contains(*k)).cloned().collect();
            keys.iter().filter_map(|key| state.remove(key)).collect()
        };
        for object in gone {
            self.tell(Change::Deleted(object));
        }
    }

    fn tell(&self, change: Change<K>) {
        // Without subscribers the change is dropped.
        let _ = self.0.changes.send(change);
        self.0.changed.step();
    }
}

/// A subscription to the changes of a cache, in order.
#[derive(Debug)]
pub struct Subscription<K>(broadcast::Receiver<Change<K>>);

impl<K: Object> Subscription<K> {
    /// Returns the next change; `None` after the cache was dropped.
    pub async fn next(&mut self) -> Option<Change<K>> {
        match self.0.recv().await {
            Ok(change) => Some(change),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Change::Resync),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn config_map(name: &str, revision: u64, label: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some("ns".into()),
                resource_version: Some(revision.to_string()),
                labels: Some([("l".to_owned(), label.to_owned())].into()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        }
    }

    #[tokio::test]
    async fn indexes_follow_changes_and_replace_tells_the_difference() {
        let cache = Cache::new();
        cache.add_index("l", |c: &ConfigMap| c.label("l").map(str::to_owned).into_iter().collect());
        let mut changes = cache.subscribe();
        cache.upsert(config_map("a", 1, "x"));
        cache.upsert(config_map("a", 2, "y"));
        assert!(cache.by_index("l", "x").is_empty());
        assert_eq!(cache.by_index("l", "y").len(), 1);
        cache.replace(vec![config_map("b", 3, "y")], 5);
        assert!(matches!(changes.next().await, Some(Change::Added(_))));
        assert!(matches!(changes.next().await, Some(Change::Modified(..))));
        assert!(matches!(changes.next().await, Some(Change::Added(b)) if b.name() == "b"));
        assert!(matches!(changes.next().await, Some(Change::Deleted(a)) if a.name() == "a"));
        assert_eq!(cache.revision(), 5);
        cache.reached(5).await;
    }
}
