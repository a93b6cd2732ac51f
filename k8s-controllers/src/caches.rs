//! The shared caches of a process: one reflector per type, started on first use. Metrics show the number of
//! objects and the approximate memory of each cache.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use k8s_core::{
    cache::{Cache, Reflector, reflect_trimmed},
    client::{Client, ListParams},
    meta::{Object, ObjectExt},
};

/// Index by the controller's uid, or by namespace for orphans. Every shared cache has it.
pub(crate) const BY_OWNER: &str = "controller-uid";

/// Returns the index key of a namespace's orphans; the slash distinguishes it from uids.
fn orphans_of(namespace: &str) -> String {
    format!("orphan/{namespace}")
}

/// A cache and its reflector.
struct Entry {
    cache: Box<dyn Any + Send + Sync>,
    usage: Box<dyn Fn() -> Usage + Send + Sync>,
    _reflector: Option<Reflector>,
}

/// Content of a shared cache.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Version of the API.
    pub version: &'static str,
    /// Kind of the objects.
    pub kind: &'static str,
    /// True if the objects are trimmed.
    pub trimmed: bool,
    /// Number of objects.
    pub objects: usize,
    /// Approximate memory in bytes.
    pub bytes: usize,
}

/// The caches of all clones.
#[derive(Default)]
pub(crate) struct Entries {
    shared: HashMap<Slot, Entry>,
    /// Caches of [`Caches::scoped`], while in use.
    scoped: Vec<Weak<Entry>>,
}

impl std::fmt::Debug for Entries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entries").field("types", &self.shared.len()).finish_non_exhaustive()
    }
}

impl Entries {
    fn usage(&self) -> Vec<Usage> {
        let scoped: Vec<_> = self.scoped.iter().filter_map(Weak::upgrade).collect();
        let mut all: Vec<Usage> =
            self.shared.values().chain(scoped.iter().map(|e| &**e)).map(|e| (e.usage)()).collect();
        all.sort_by_key(|u| (u.group, u.kind, u.version, u.trimmed, u.objects));
        all
    }
}

/// A weak reference for metrics; does not keep the caches alive.
#[derive(Clone, Debug)]
pub(crate) struct Account(Weak<Mutex<Entries>>);

impl Account {
    pub(crate) fn is_of(&self, caches: &Caches) -> bool {
        std::ptr::eq(self.0.as_ptr(), Arc::as_ptr(&caches.entries))
    }

    pub(crate) fn usage(&self) -> Vec<Usage> {
        let entries = self.0.upgrade();
        entries.map_or_else(Vec::new, |e| e.lock().unwrap_or_else(PoisonError::into_inner).usage())
    }
}

/// Type of a cache; true for trimmed objects.
type Slot = (TypeId, bool);

impl Entry {
    fn cache_of<K: Object>(&self) -> Option<Cache<K>> {
        self.cache.downcast_ref::<Cache<K>>().cloned()
    }
}

/// The shared caches of a process. Cheap to clone.
#[derive(Clone)]
pub struct Caches {
    client: Option<Client>,
    entries: Arc<Mutex<Entries>>,
    /// Caches with a selector, by type; they replace the shared ones in this clone.
    scoped: HashMap<TypeId, Arc<Entry>>,
    /// Per-type field trimmers applied by this handle: a `fn(&mut K)` each.
    trims: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
}

impl std::fmt::Debug for Caches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner).shared.len();
        f.debug_struct("Caches").field("types", &entries).finish_non_exhaustive()
    }
}

impl Caches {
    /// Creates caches filled through `client`.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Caches { client: Some(client), ..Self::detached() }
    }

    /// Creates caches without reflectors: tests insert objects.
    #[must_use]
    pub fn detached() -> Self {
        Caches { client: None, entries: Arc::default(), scoped: HashMap::new(), trims: HashMap::new() }
    }

    /// Returns these caches, but with only the objects of `K` that `params` selects. Use it for a controller
    /// that needs few of many objects, because only they are kept in memory. Starts a reflector (inside a
    /// tokio runtime), which runs as long as any clone of the result lives.
    ///
    /// # Examples
    /// ```no_run
    /// # use k8s_core::{api::api::core::v1::ConfigMap, client::ListParams};
    /// # fn f(caches: k8s_controllers::Caches) {
    /// let only = ListParams { fields: "metadata.name=kube-root-ca.crt".into(), ..ListParams::default() };
    /// let caches = caches.scoped::<ConfigMap>(only);
    /// # }
    /// ```
    #[must_use]
    pub fn scoped<K: Object>(mut self, params: ListParams) -> Self {
        let entry = Arc::new(self.start::<K>(params));
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.scoped.retain(|e| e.strong_count() > 0);
        entries.scoped.push(Arc::downgrade(&entry));
        drop(entries);
        self.scoped.insert(TypeId::of::<K>(), entry);
        self
    }

    /// Returns these caches with objects of `K` trimmed: `trim` drops fields before an object is stored. All
    /// trimmed clones share one cache per type, so the first `trim` of a type applies to all. Untrimmed
    /// clones use a separate cache.
    ///
    /// A trimmed object must not be written back whole; patches and applies of some fields are fine.
    #[must_use]
    pub fn trimmed<K: Object>(mut self, trim: fn(&mut K)) -> Self {
        self.trims.insert(TypeId::of::<K>(), Arc::new(trim));
        self
    }

    fn start<K: Object>(&self, params: ListParams) -> Entry {
        let cache = Cache::<K>::new();
        cache.add_index(BY_OWNER, |object: &K| {
            vec![object.controller_ref().map_or_else(|| orphans_of(object.namespace()), |o| o.uid.clone())]
        });
        let trim = self.trims.get(&TypeId::of::<K>()).and_then(|t| t.downcast_ref::<fn(&mut K)>().copied());
        let fill = |client: &Client| {
            reflect_trimmed(client.all::<K>(), params, cache.clone(), trim.unwrap_or(|_| {}))
        };
        let reflector = self.client.as_ref().map(fill);
        let trimmed = trim.is_some();
        let counted = cache.clone();
        let usage = move || Usage {
            group: K::GROUP,
            version: K::VERSION,
            kind: K::KIND,
            trimmed,
            objects: counted.len(),
            bytes: counted.memory(),
        };
        Entry { cache: Box::new(cache), usage: Box::new(usage), _reflector: reflector }
    }

    /// Returns object count and approximate memory of the caches of all clones.
    #[must_use]
    pub fn usage(&self) -> Vec<Usage> {
        self.account().usage()
    }

    pub(crate) fn account(&self) -> Account {
        Account(Arc::downgrade(&self.entries))
    }

    fn slot<K: Object>(&self) -> Slot {
        (TypeId::of::<K>(), self.trims.contains_key(&TypeId::of::<K>()))
    }

    /// Returns the cache of a type over all namespaces. The first call starts its reflector (inside a tokio
    /// runtime), which runs as long as any clone of these caches lives.
    #[must_use]
    pub fn of<K: Object>(&self) -> Cache<K> {
        if let Some(entry) = self.scoped.get(&TypeId::of::<K>()) {
            return entry.cache_of().unwrap_or_default();
        }
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry =
            entries.shared.entry(self.slot::<K>()).or_insert_with(|| self.start::<K>(ListParams::default()));
        // The entry's type is `K` by construction.
        entry.cache_of().unwrap_or_default()
    }

    /// Returns the cache of a type if its reflector was started.
    pub(crate) fn started<K: Object>(&self) -> Option<Cache<K>> {
        if let Some(entry) = self.scoped.get(&TypeId::of::<K>()) {
            return entry.cache_of();
        }
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.shared.get(&self.slot::<K>())?.cache_of()
    }

    /// Returns objects of `T` that are controlled by the object with this uid.
    #[must_use]
    pub fn owned_by<T: Object>(&self, uid: &str) -> Vec<Arc<T>> {
        self.of::<T>().by_index(BY_OWNER, uid)
    }

    /// Returns objects of `T` in a namespace without a controller.
    #[must_use]
    pub fn orphans<T: Object>(&self, namespace: &str) -> Vec<Arc<T>> {
        self.of::<T>().by_index(BY_OWNER, &orphans_of(namespace))
    }
}
