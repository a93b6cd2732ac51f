//! One reflector per type and process, shared by all controllers and started when first asked for. What the caches hold, and about how much memory that
//! takes, is in the metrics of the controllers that read them.

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

/// Index by the uid of the owner that controls the object, or by namespace for those without one. Every shared cache has it.
pub(crate) const BY_OWNER: &str = "controller-uid";

/// The index entry of objects that nobody controls; no uid has a slash.
fn orphans_of(namespace: &str) -> String {
    format!("orphan/{namespace}")
}

/// A cache with what fills it.
struct Entry {
    cache: Box<dyn Any + Send + Sync>,
    usage: Box<dyn Fn() -> Usage + Send + Sync>,
    _reflector: Option<Reflector>,
}

/// What a shared cache holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Whether parts of the objects were left out.
    pub trimmed: bool,
    /// How many objects.
    pub objects: usize,
    /// About how many bytes they take.
    pub bytes: usize,
}

/// The caches of all clones.
#[derive(Default)]
pub(crate) struct Entries {
    shared: HashMap<Slot, Entry>,
    /// Those of [`Caches::scoped`], as long as somebody has them.
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

/// Counts caches without keeping them.
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
    entries: Arc<Mutex<Entries>>,
    /// What this clone and its clones see of some types instead.
    scoped: HashMap<TypeId, Arc<Entry>>,
    /// What this clone and its clones do without: a `fn(&mut K)` for some types.
    trims: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
}

impl std::fmt::Debug for Caches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner).shared.len();
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
        let entry = Arc::new(self.start::<K>(params));
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.scoped.retain(|e| e.strong_count() > 0);
        entries.scoped.push(Arc::downgrade(&entry));
        drop(entries);
        self.scoped.insert(TypeId::of::<K>(), entry);
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

    /// What these caches and those of all clones hold, and about how much memory it takes.
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

    /// The cache of a type, over all namespaces. The first call starts its reflector (inside a tokio runtime), which runs as long as any clone
    /// of these caches lives.
    #[must_use]
    pub fn of<K: Object>(&self) -> Cache<K> {
        if let Some(entry) = self.scoped.get(&TypeId::of::<K>()) {
            return entry.cache_of().unwrap_or_default();
        }
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry =
            entries.shared.entry(self.slot::<K>()).or_insert_with(|| self.start::<K>(ListParams::default()));
        // The entry was made for this very type.
        entry.cache_of().unwrap_or_default()
    }

    /// The cache of a type if its reflector was started.
    pub(crate) fn started<K: Object>(&self) -> Option<Cache<K>> {
        if let Some(entry) = self.scoped.get(&TypeId::of::<K>()) {
            return entry.cache_of();
        }
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.shared.get(&self.slot::<K>())?.cache_of()
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
