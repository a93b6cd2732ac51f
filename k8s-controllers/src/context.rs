//! What a reconcile works with: client, caches, clock, recorder, and writes that the queue waits for.

use std::{
    any::TypeId,
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use k8s_core::{
    client::{Api, Client, DeleteOptions, Patch},
    clock::Clock,
    meta::{Object, ObjectExt, ObjectKey, owner_reference},
};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{Caches, Error, EventType, Recorder, StatusOf, involved, metrics::Metrics};

/// What all controllers of a process share.
#[derive(Clone, Debug)]
pub struct Environment {
    /// The client; controllers write under their own names. It leaves `managedFields` unread, as the caches do.
    pub client: Client,
    /// The shared caches.
    pub caches: Caches,
    /// The only source of time.
    pub clock: Clock,
    /// Where all randomness comes from.
    pub seed: u64,
    /// Cancelled when the process should end.
    pub shutdown: CancellationToken,
    /// What controllers count.
    pub metrics: Metrics,
}

impl Environment {
    /// An environment of its own over a client, with wall time and a random seed.
    #[must_use]
    pub fn new(client: Client) -> Self {
        let client = client.lean();
        Environment {
            caches: Caches::new(client.clone()),
            client,
            clock: Clock::system(),
            seed: k8s_core::random::number(),
            shutdown: CancellationToken::new(),
            metrics: Metrics::default(),
        }
    }
}

/// An object, or a shared one as reconciles and caches give it.
pub trait Owner<K> {
    /// The object.
    fn object(&self) -> &K;
}

impl<K: Object> Owner<K> for K {
    fn object(&self) -> &K {
        self
    }
}

impl<K: Object> Owner<K> for Arc<K> {
    fn object(&self) -> &K {
        self
    }
}

/// Writes of one key that the caches may not have yet.
#[derive(Default)]
struct Pending {
    /// Per type: the newest revision written, and a future that ends when the type's cache has it.
    /// (In an order that is the same in every run: a seed is a run.)
    revisions: BTreeMap<TypeId, (u64, BoxFuture<'static, ()>)>,
    /// End when a cache has something else: a deleted object is marked or gone, what may have been made is there.
    others: Vec<BoxFuture<'static, ()>>,
}

/// What keys wait for.
#[derive(Default)]
pub(crate) struct Ledger(Mutex<HashMap<ObjectKey, Pending>>);

/// A cache that does not see a write for so long is broken; then progress is worth more than certainty. As long as upstream's controllers keep their
/// expectations: a watch that lags for half a minute happens, and whoever goes on without it makes its pods twice.
const PATIENCE: Duration = Duration::from_secs(300);

impl Ledger {
    fn with(&self, key: &ObjectKey, change: impl FnOnce(&mut Pending)) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(all.entry(key.clone()).or_default());
    }

    /// Ends when the caches have everything that was written for this key; `None` where they have it now.
    pub(crate) fn lag(&self, key: &ObjectKey) -> Option<BoxFuture<'static, ()>> {
        let pending = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key)?;
        let mut all = async move {
            for (_, wait) in pending.revisions.into_values() {
                wait.await;
            }
            for wait in pending.others {
                wait.await;
            }
        }
        .boxed();
        // Polled again by whoever waits for it, so that nothing is missed.
        if (&mut all).now_or_never().is_some() {
            return None;
        }
        let key = key.clone();
        let patient = async move {
            if tokio::time::timeout(PATIENCE, all).await.is_err() {
                tracing::warn!(%key, "the cache has not seen a write of {PATIENCE:?} ago");
            }
        };
        Some(patient.boxed())
    }
}

/// What a reconcile works with. Made anew for each reconcile of a key.
///
/// Reads that may be a moment old come from the caches; writes go to the API server, and the queue holds the key back until the caches have
/// them.
#[derive(Clone)]
pub struct Context {
    pub(crate) environment: Environment,
    pub(crate) recorder: Recorder,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) key: ObjectKey,
}

impl Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Context {
    /// The client, under the controller's name.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.environment.client
    }

    /// The shared caches.
    #[must_use]
    pub fn caches(&self) -> &Caches {
        &self.environment.caches
    }

    /// The clock.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.environment.clock
    }

    /// The key that is being reconciled.
    #[must_use]
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// A cached object of this name, in the reconciled object's namespace or without one, as `T` has it.
    #[must_use]
    pub fn cached<T: Object>(&self, name: &str) -> Option<Arc<T>> {
        let namespace = if is_namespaced::<T>() { self.key.namespace.as_str() } else { "" };
        self.caches().of::<T>().get(namespace, name)
    }

    /// Cached objects of `T` that `owner` controls.
    #[must_use]
    pub fn owned<T: Object>(&self, owner: &impl ObjectExt) -> Vec<Arc<T>> {
        self.caches().owned_by(owner.uid())
    }

    /// A client for a type in a namespace. Writes through it are not waited for.
    #[must_use]
    pub fn api<T: Object>(&self, namespace: &str) -> Api<T> {
        self.client().namespaced(namespace)
    }

    /// Delays the next reconcile of this key until `until` has ended, or five minutes have passed: for work that goes on
    /// after the reconcile returned, such as a batch of deletions.
    pub fn hold(&self, until: impl Future<Output = ()> + Send + 'static) {
        self.ledger.with(&self.key, |pending| pending.others.push(until.boxed()));
    }

    fn wrote<T: Object>(&self, object: &T) {
        let Some(cache) = self.caches().started::<T>() else { return };
        let revision = object.revision();
        self.ledger.with(&self.key, |pending| {
            let known = pending.revisions.get(&TypeId::of::<T>()).map_or(0, |(r, _)| *r);
            if revision > known && revision > cache.revision() {
                let wait = async move { cache.reached(revision).await }.boxed();
                pending.revisions.insert(TypeId::of::<T>(), (revision, wait));
            }
        });
    }

    /// Creates an object in its own namespace.
    ///
    /// # Errors
    /// As [`Api::create`].
    pub async fn create<T: Object>(&self, object: &T) -> Result<T, Error> {
        let made = self.api::<T>(object.namespace()).create(object).await?;
        self.wrote(&made);
        Ok(made)
    }

    /// Replaces an object; its resourceVersion must be the newest.
    ///
    /// # Errors
    /// As [`Api::replace`].
    pub async fn replace<T: Object>(&self, object: &T) -> Result<T, Error> {
        let live = self.api::<T>(object.namespace()).replace(object.name(), object).await?;
        self.wrote(&live);
        Ok(live)
    }

    /// Replaces an object's status.
    ///
    /// # Errors
    /// As [`Api::replace_status`].
    pub async fn replace_status<T: Object>(&self, object: &T) -> Result<T, Error> {
        let live = self.api::<T>(object.namespace()).replace_status(object.name(), object).await?;
        self.wrote(&live);
        Ok(live)
    }

    /// Changes an object's status where `change` makes a difference; nothing is written otherwise. An object of a resource without a status of its
    /// own (a ThirdPartyResource's) is replaced as a whole.
    ///
    /// # Errors
    /// As [`Api::replace_status`].
    pub async fn status<T: Object>(
        &self,
        object: &impl Owner<T>,
        change: impl FnOnce(&mut StatusOf<'_, T>),
    ) -> Result<(), Error> {
        let object = object.object();
        let mut next = object.clone();
        change(&mut StatusOf::new(&mut next, self.clock().time()));
        let (was, is) = (serde_json::to_value(object), serde_json::to_value(&next));
        if was.ok() != is.ok() {
            match self.replace_status(&next).await {
                // It is not the object that is not there: there is no such subresource.
                Err(Error::Api(e)) if is_unserved(&e) => drop(self.replace(&next).await?),
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// Merge-patches an object.
    ///
    /// # Errors
    /// As [`Api::patch`].
    pub async fn merge<T: Object>(&self, object: &T, patch: &impl Serialize) -> Result<T, Error> {
        let live = self.api::<T>(object.namespace()).patch(object.name(), &Patch::Merge(patch)).await?;
        self.wrote(&live);
        Ok(live)
    }

    /// Deletes this very object (not a later one of its name). One that is gone already is fine.
    ///
    /// # Errors
    /// Any failure but that it is gone.
    pub async fn delete<T: Object>(&self, object: &T, options: DeleteOptions) -> Result<(), Error> {
        let options = if object.uid().is_empty() { options } else { options.with_uid(object.uid()) };
        let api = self.api::<T>(object.namespace());
        match api.delete(object.name(), &options).await {
            Ok(()) => {}
            Err(e) if e.is_not_found() => {}
            Err(e) if e.is_conflict() => {
                // Either this object is gone and another has its name, or somebody else was faster.
                let live = api.get_opt(object.name()).await?;
                if live.is_some_and(|live| live.uid() == object.uid()) {
                    return Err(e.into());
                }
            }
            Err(e) => return Err(e.into()),
        }
        if let Some(cache) = self.caches().started::<T>() {
            let (key, uid) = (object.key(), object.uid().to_owned());
            let there = {
                let cache = cache.clone();
                move || cache.by_key(&key).is_some_and(|live| live.uid() == uid && !live.is_deleting())
            };
            self.hold(async move { cache.until(|| !there()).await });
        }
        Ok(())
    }

    /// Adds a finalizer, so that the object stays until it is taken off. Returns the object as it is then; nothing is written where it is there.
    ///
    /// # Errors
    /// As [`Api::patch`]: a conflict when the object changed meanwhile.
    pub async fn add_finalizer<T: Object>(&self, object: &impl Owner<T>, name: &str) -> Result<T, Error> {
        let object = object.object();
        let mut all = object.metadata().finalizers.clone().unwrap_or_default();
        if all.iter().any(|f| f == name) {
            return Ok(object.clone());
        }
        all.push(name.to_owned());
        self.set_finalizers(object, &all).await
    }

    /// Takes a finalizer off; an object that is being deleted goes with its last one.
    ///
    /// # Errors
    /// As [`Api::patch`]: a conflict when the object changed meanwhile. That it is gone is fine.
    pub async fn remove_finalizer<T: Object>(&self, object: &impl Owner<T>, name: &str) -> Result<(), Error> {
        let object = object.object();
        let mut all = object.metadata().finalizers.clone().unwrap_or_default();
        let before = all.len();
        all.retain(|f| f != name);
        if all.len() == before {
            return Ok(());
        }
        match self.set_finalizers(object, &all).await {
            Err(Error::Api(e)) if e.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }

    async fn set_finalizers<T: Object>(&self, object: &T, all: &[String]) -> Result<T, Error> {
        // A list is replaced as a whole: only if nobody else changed it.
        let metadata = serde_json::json!({
            "finalizers": all, "resourceVersion": object.metadata().resource_version, "uid": object.uid(),
        });
        self.merge(object, &serde_json::json!({"metadata": metadata})).await
    }

    /// Server-side apply of an object owned by `owner`, so that it is garbage collected with it.
    ///
    /// # Errors
    /// As [`Api::apply`].
    pub async fn apply<T: Object, K: Object>(&self, owner: &impl Owner<K>, object: &T) -> Result<T, Error> {
        let mut desired = adopted(owner.object(), object);
        desired.metadata_mut().resource_version = None;
        desired.metadata_mut().managed_fields = None;
        let live = self.api::<T>(desired.namespace()).apply(desired.name(), &desired).await?;
        self.wrote(&live);
        Ok(live)
    }

    /// The object of this name if the cache has one, else a new one owned by `owner`.
    ///
    /// # Errors
    /// As [`Api::create`]. One that exists and that the cache does not have yet is found by the retry.
    pub async fn get_or_create<T: Object, K: Object>(
        &self,
        owner: &impl Owner<K>,
        make: impl FnOnce() -> T,
    ) -> Result<Arc<T>, Error> {
        let desired = adopted(owner.object(), &make());
        if let Some(live) = self.caches().of::<T>().by_key(&desired.key()) {
            return Ok(live);
        }
        self.create(&desired).await.map(Arc::new)
    }

    /// Tells users about an object through an event.
    pub fn event<T: Object>(&self, object: &T, kind: EventType, reason: &str, message: impl Into<String>) {
        self.recorder.event(involved(object), kind, reason, message.into());
    }
}

/// The object in its owner's namespace, with a reference to its owner.
fn adopted<T: Object>(owner: &impl Object, object: &T) -> T {
    let mut object = object.clone();
    let metadata = object.metadata_mut();
    if metadata.namespace.is_none() && is_namespaced::<T>() {
        metadata.namespace = Some(owner.namespace().to_owned()).filter(|n| !n.is_empty());
    }
    let owners = metadata.owner_references.get_or_insert_default();
    if !owners.iter().any(|o| o.uid == owner.uid()) {
        owners.push(owner_reference(owner));
    }
    object
}

/// Whether a 404 is about the path, and not about an object.
fn is_unserved(error: &k8s_core::client::Error) -> bool {
    let about = error.status().and_then(|s| s.status().details.as_ref()).and_then(|d| d.name.as_ref());
    error.is_not_found() && about.is_none()
}

fn is_namespaced<T: Object>() -> bool {
    TypeId::of::<T::Scope>() == TypeId::of::<k8s_core::api::NamespaceResourceScope>()
}
