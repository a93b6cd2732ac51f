//! The [`Context`] of a reconcile: client, caches, clock, recorder, and writes that the queue waits for.

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
    json,
    meta::{Object, ObjectExt, ObjectKey, owner_reference},
};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    Caches, Error, EventType, Recorder, StatusOf, involved,
    metrics::{Metrics, counted},
};

/// Resources shared by all controllers of a process.
#[derive(Clone, Debug)]
pub struct Environment {
    /// API client; controllers write under their own names. Like the caches, it does not decode
    /// `managedFields`.
    pub client: Client,
    /// Shared caches.
    pub caches: Caches,
    /// The only source of time.
    pub clock: Clock,
    /// Seed of all randomness.
    pub seed: u64,
    /// Cancelled on shutdown of the process.
    pub shutdown: CancellationToken,
    /// Metrics of queues and controllers.
    pub metrics: Metrics,
}

impl Environment {
    /// Creates an environment over a client, with its own caches, wall time and a random seed. The client's
    /// requests are counted in the environment's metrics, unless the client has an observer already, such as
    /// [`counted`].
    #[must_use]
    pub fn new(client: Client) -> Self {
        let metrics = Metrics::default();
        let client = client.without_managed_fields();
        let client = if client.is_observed() { client } else { counted(&client, metrics.registry()) };
        Environment {
            caches: Caches::new(client.clone()),
            client,
            clock: Clock::system(),
            seed: k8s_core::random::number(),
            shutdown: CancellationToken::new(),
            metrics,
        }
    }
}

/// An object, or an `Arc` of it as reconcilers and caches hold it.
pub trait Owner<K> {
    /// Returns the object.
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
    /// By type: the newest written revision, and a future that ends when the cache has it. Ordered, so that a
    /// seeded run is deterministic.
    revisions: BTreeMap<TypeId, (u64, BoxFuture<'static, ()>)>,
    /// Other conditions: the cache has seen a deletion, or objects that may have been created.
    others: Vec<BoxFuture<'static, ()>>,
}

/// Pending writes by key.
#[derive(Default)]
pub(crate) struct Ledger(Mutex<HashMap<ObjectKey, Pending>>);

/// Time after which a lagging cache is ignored, so that progress continues. The same as the expectations
/// timeout of upstream's controllers: watches may lag for half a minute, and going on without them would
/// create pods twice.
const TIMEOUT: Duration = Duration::from_secs(300);

impl Ledger {
    fn with(&self, key: &ObjectKey, change: impl FnOnce(&mut Pending)) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(all.entry(key.clone()).or_default());
    }

    /// Returns a future that ends when the caches have all writes of this key; `None` if they have them now.
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
        // The caller polls it again, so no wake-up is lost.
        if (&mut all).now_or_never().is_some() {
            return None;
        }
        let key = key.clone();
        let patient = async move {
            if tokio::time::timeout(TIMEOUT, all).await.is_err() {
                tracing::warn!(%key, "the cache has not seen a write within {TIMEOUT:?}; reconciling anyway");
            }
        };
        Some(patient.boxed())
    }
}

/// Everything that a reconcile works with. Created for each reconcile.
///
/// Reads come from the caches and may be slightly stale. Writes go to the API server, and the queue holds the
/// key back until the caches have them.
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
    /// Returns the client, whose field manager is the controller's name.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.environment.client
    }

    /// Returns the shared caches.
    #[must_use]
    pub fn caches(&self) -> &Caches {
        &self.environment.caches
    }

    /// Returns the clock.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.environment.clock
    }

    /// Returns the key that is being reconciled.
    #[must_use]
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// Returns a cached object by name, in the reconciled object's namespace if `T` is namespaced.
    ///
    /// ```
    /// use k8s_controllers::prelude::*;
    /// use k8s_core::api::{ConfigMap, Secret};
    /// # async fn example(cx: &Context, map: Arc<ConfigMap>) -> Result<Action, Error> {
    /// // A read of memory: no request.
    /// let Some(secret) = cx.cached::<Secret>("credentials") else {
    ///     return Err(Error::invalid("secret credentials", "does not exist yet"));
    /// };
    /// println!("{} entries", secret.data.iter().flatten().count());
    /// Ok(Action::await_change())
    /// # }
    /// ```
    #[must_use]
    pub fn cached<T: Object>(&self, name: &str) -> Option<Arc<T>> {
        let namespace = if is_namespaced::<T>() { self.key.namespace.as_str() } else { "" };
        self.caches().of::<T>().get(namespace, name)
    }

    /// Returns cached objects of `T` that `owner` controls.
    ///
    /// ```
    /// use k8s_controllers::prelude::*;
    /// use k8s_core::api::{ConfigMap, Secret};
    /// # async fn example(cx: &Context, map: Arc<ConfigMap>) -> Result<Action, Error> {
    /// // At most three Secrets for each map; the rest is deleted.
    /// for extra in cx.owned::<Secret>(&*map).iter().skip(3) {
    ///     cx.delete(&**extra, Default::default()).await?;
    /// }
    /// Ok(Action::await_change())
    /// # }
    /// ```
    #[must_use]
    pub fn owned<T: Object>(&self, owner: &impl ObjectExt) -> Vec<Arc<T>> {
        self.caches().owned_by(owner.uid())
    }

    /// Returns a client for a type in a namespace. The queue does not wait for writes through it.
    #[must_use]
    pub fn api<T: Object>(&self, namespace: &str) -> Api<T> {
        self.client().namespaced(namespace)
    }

    /// Delays the next reconcile of this key until `until` has ended, or five minutes have passed. For work
    /// that goes on after the reconcile returned, such as a batch of deletions.
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

    /// Creates an object in its namespace.
    ///
    /// # Errors
    /// As [`Api::create`].
    pub async fn create<T: Object>(&self, object: &T) -> Result<T, Error> {
        let made = self.api::<T>(object.namespace()).create(object).await?;
        self.wrote(&made);
        Ok(made)
    }

    /// Replaces an object, with its resourceVersion as optimistic lock.
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

    /// Changes an object's status; writes only if `change` makes a difference. If the resource has no status
    /// subresource (a ThirdPartyResource), the whole object is replaced.
    ///
    /// ```
    /// use k8s_controllers::prelude::*;
    /// use k8s_core::api::PersistentVolumeClaim;
    /// # async fn example(cx: &Context, claim: Arc<PersistentVolumeClaim>) -> Result<Action, Error> {
    /// let bound = claim.spec.as_ref().is_some_and(|spec| spec.volume_name.is_some());
    /// // Nothing is written if the condition is as it was.
    /// cx.status(&claim, |status| status.set_condition("Bound", bound, "VolumeChosen")).await?;
    /// Ok(Action::await_change())
    /// # }
    /// ```
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
        let (was, is) = (json::to_value(object), json::to_value(&next));
        if was.ok() != is.ok() {
            match self.replace_status(&next).await {
                // The 404 is for the subresource, not for the object.
                Err(Error::Api(e)) if is_unserved(&e) => drop(self.replace(&next).await?),
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// Applies a JSON merge patch.
    ///
    /// # Errors
    /// As [`Api::patch`].
    pub async fn merge<T: Object>(&self, object: &T, patch: &impl Serialize) -> Result<T, Error> {
        let live = self.api::<T>(object.namespace()).patch(object.name(), &Patch::Merge(patch)).await?;
        self.wrote(&live);
        Ok(live)
    }

    /// Deletes this object, with its uid as precondition. An object that is already gone is not an error.
    ///
    /// # Errors
    /// Any other failure.
    pub async fn delete<T: Object>(&self, object: &T, options: DeleteOptions) -> Result<(), Error> {
        let options = if object.uid().is_empty() { options } else { options.with_uid(object.uid()) };
        let api = self.api::<T>(object.namespace());
        match api.delete(object.name(), &options).await {
            Ok(()) => {}
            Err(e) if e.is_not_found() => {}
            Err(e) if e.is_conflict() => {
                // Either the name belongs to another object now, or another client changed this one.
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

    /// Adds a finalizer and returns the object; writes nothing if it is present.
    ///
    /// ```
    /// use k8s_controllers::prelude::*;
    /// use k8s_core::api::{ConfigMap, Secret};
    /// # async fn example(cx: &Context, map: Arc<ConfigMap>) -> Result<Action, Error> {
    /// const BUCKET: &str = "example.com/bucket";
    /// if map.is_deleting() {
    ///     // Delete the bucket first, then let the object go.
    ///     cx.remove_finalizer(&map, BUCKET).await?;
    /// } else {
    ///     cx.add_finalizer(&map, BUCKET).await?;
    /// }
    /// Ok(Action::await_change())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Api::patch`]: a conflict if the object changed meanwhile.
    pub async fn add_finalizer<T: Object>(&self, object: &impl Owner<T>, name: &str) -> Result<T, Error> {
        let object = object.object();
        let mut all = object.metadata().finalizers.clone().unwrap_or_default();
        if all.iter().any(|f| f == name) {
            return Ok(object.clone());
        }
        all.push(name.to_owned());
        self.set_finalizers(object, &all).await
    }

    /// Removes a finalizer; a deleted object disappears with its last one. An object that is already gone is
    /// not an error.
    ///
    /// # Errors
    /// As [`Api::patch`]: a conflict if the object changed meanwhile.
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
        // The patch replaces the whole list, so it has the resourceVersion as precondition.
        let metadata = serde_json::json!({
            "finalizers": all, "resourceVersion": object.metadata().resource_version, "uid": object.uid(),
        });
        self.merge(object, &serde_json::json!({"metadata": metadata})).await
    }

    /// Applies an object by server-side apply, with `owner` as its controller, so that it is garbage
    /// collected with the owner.
    ///
    /// ```
    /// use k8s_controllers::prelude::*;
    /// use k8s_core::api::{ConfigMap, Secret};
    /// # async fn example(cx: &Context, map: Arc<ConfigMap>) -> Result<Action, Error> {
    /// let mut secret = Secret { string_data: map.data.clone(), ..Secret::default() };
    /// secret.metadata.name = Some(map.name().to_owned());
    /// cx.apply(&map, &secret).await?; // in the map's namespace, owned by the map
    /// Ok(Action::await_change())
    /// # }
    /// ```
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

    /// Returns the cached object of this name, or creates one with `owner` as its controller.
    ///
    /// ```
    /// use k8s_controllers::prelude::*;
    /// use k8s_core::api::{ConfigMap, Secret};
    /// # async fn example(cx: &Context, map: Arc<ConfigMap>) -> Result<Action, Error> {
    /// // Made once: a password must not change with each reconcile.
    /// let secret = cx.get_or_create(&map, || {
    ///     let mut secret = Secret::default();
    ///     secret.metadata.name = Some(map.name().to_owned());
    ///     secret.string_data = Some([("password".into(), k8s_core::random::uuid().to_string())].into());
    ///     secret
    /// }).await?;
    /// println!("{}", secret.name());
    /// Ok(Action::await_change())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Api::create`]. AlreadyExists if the cache is behind; the reconcile is retried and then finds it.
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

    /// Records an event about an object.
    ///
    /// ```
    /// use k8s_controllers::prelude::*;
    /// use k8s_core::api::{ConfigMap, Secret};
    /// # async fn example(cx: &Context, map: Arc<ConfigMap>) -> Result<Action, Error> {
    /// cx.event(&*map, EventType::Warning, "Malformed", "key `colour` is missing");
    /// Ok(Action::await_change())
    /// # }
    /// ```
    pub fn event<T: Object>(&self, object: &T, kind: EventType, reason: &str, message: impl Into<String>) {
        self.recorder.event(involved(object), kind, reason, message.into());
    }
}

/// Returns the object in its owner's namespace, with a controller reference.
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

/// Returns true if a 404 is for the path and not for an object.
fn is_unserved(error: &k8s_core::client::Error) -> bool {
    let about = error.status().and_then(|s| s.status().details.as_ref()).and_then(|d| d.name.as_ref());
    error.is_not_found() && about.is_none()
}

fn is_namespaced<T: Object>() -> bool {
    TypeId::of::<T::Scope>() == TypeId::of::<k8s_core::api::NamespaceResourceScope>()
}
