//! One reflector per type and process, shared by all controllers and started when first asked for.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use k8s_core::{
    cache::{Cache, Reflector, reflect_trimmed},
    client::{Client, ListParams},
    meta::{Object, ObjectExt},
};

/// Index by the uid of the owner that controls the object, or by namespace for those without one. Every shared cache has it.
pub(crate) const BY_OWNER: &str = "controller-uid";

/// The index entry of objects that nobody controls; no uid has a slash.
fn orphans_of(namespace: &str) -> String {
    format!("orphan/{namespace}")
}

/// A cache with what fills it.
struct Entry {
    cache: Box<dyn Any + Send + Sync>,
    _reflector: Option<Reflector>,
}

/// A type, and whether its objects are trimmed.
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
    entries: Arc<Mutex<HashMap<Slot, Entry>>>,
    /// What this clone and its clones see of some types instead.
    scoped: HashMap<TypeId, Arc<Entry>>,
    /// What this clone and its clones do without: a `fn(&mut K)` for some types.
    trims: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
}

impl std::fmt::Debug for Caches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner).len();
        f.debug_struct("Caches").field("types", &entries).finish_non_exhaustive()
    }
}

impl Caches {
    /// Caches filled through `client`.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Caches { client: Some(client), ..Self::detached() }
    }

    /// Caches that no reflector fills: tests put objects in.
    #[must_use]
    pub fn detached() -> Self {
        Caches { client: None, entries: Arc::default(), scoped: HashMap::new(), trims: HashMap::new() }
    }

    /// These caches, but with only the objects of `K` that `params` selects. For a controller that needs few of many objects: they are all that
    /// is kept in memory for it. Starts a reflector (inside a tokio runtime), which runs as long as any clone of what is returned lives.
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
        let entry = self.start::<K>(params);
        self.scoped.insert(TypeId::of::<K>(), Arc::new(entry));
        self
    }

    /// These caches for readers who need only parts of the objects of `K`: `trim` takes out the rest before an object is kept. All trimmed clones share one
    /// cache of the type; so a type is trimmed in one way only, and the first to ask for it decides. Whoever has untrimmed clones has another cache.
    ///
    /// A trimmed object must not be written back whole: a patch or an apply of some fields is fine.
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
        Entry { cache: Box::new(cache), _reflector: reflector }
    }

    fn slot<K: Object>(&self) -> Slot {
        (TypeId::of::<K>(), self.trims.contains_key(&TypeId::of::<K>()))
    }

    /// The cache of a type, over all namespaces. The first call starts its reflector (inside a tokio runtime), which runs as long as any clone
    /// of these caches lives.
    #[must_use]
    pub fn of<K: Object>(&self) -> Cache<K> {
        if let Some(entry) = self.scoped.get(&TypeId::of::<K>()) {
            return entry.cache_of().unwrap_or_default();
        }
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.entry(self.slot::<K>()).or_insert_with(|| self.start::<K>(ListParams::default()));
        // The entry was made for this very type.
        entry.cache_of().unwrap_or_default()
    }

    /// The cache of a type if its reflector was started.
    pub(crate) fn started<K: Object>(&self) -> Option<Cache<K>> {
        if let Some(entry) = self.scoped.get(&TypeId::of::<K>()) {
            return entry.cache_of();
        }
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(&self.slot::<K>())?.cache_of()
    }

    /// Objects of `T` that the object with this uid controls.
    #[must_use]
    pub fn owned_by<T: Object>(&self, uid: &str) -> Vec<Arc<T>> {
        self.of::<T>().by_index(BY_OWNER, uid)
    }

    /// Objects of `T` in a namespace that nobody controls.
    #[must_use]
    pub fn orphans<T: Object>(&self, namespace: &str) -> Vec<Arc<T>> {
        self.of::<T>().by_index(BY_OWNER, &orphans_of(namespace))
    }
}
