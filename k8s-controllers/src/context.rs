//! What a reconcile works with: client, caches, clock, recorder, and writes that the queue waits for.

use std::{
    any::TypeId,
    collections::HashMap,
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use k8s_core::{
    cache::Cache,
    client::{Api, Client, DeleteOptions, Patch},
    clock::Clock,
    meta::{Object, ObjectExt, ObjectKey, owner_reference},
};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{Caches, Error, EventType, Recorder, involved};

/// What all controllers of a process share.
#[derive(Clone, Debug)]
pub struct Environment {
    /// The client; controllers write under their own names.
    pub client: Client,
    /// The shared caches.
    pub caches: Caches,
    /// The only source of time.
    pub clock: Clock,
    /// Where all randomness comes from.
    pub seed: u64,
    /// Cancelled when the process should end.
    pub shutdown: CancellationToken,
}

impl Environment {
    /// An environment of its own over a client, with wall time and a random seed.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Environment {
            caches: Caches::new(client.clone()),
            client,
            clock: Clock::system(),
            seed: rand::random(),
            shutdown: CancellationToken::new(),
        }
    }
}

/// Writes of one key that the caches may not have yet.
#[derive(Default)]
struct Pending {
    /// Per type: the newest revision written, and a future that ends when the type's cache has it.
    revisions: HashMap<TypeId, (u64, BoxFuture<'static, ()>)>,
    /// End when a deleted object is marked or gone in its cache.
    deletions: Vec<BoxFuture<'static, ()>>,
}

#[derive(Default)]
pub(crate) struct Ledger(Mutex<HashMap<ObjectKey, Pending>>);

/// A cache that does not see a write for so long is broken; then progress is worth more than certainty.
const PATIENCE: Duration = Duration::from_secs(30);

impl Ledger {
    fn with(&self, key: &ObjectKey, change: impl FnOnce(&mut Pending)) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(all.entry(key.clone()).or_default());
    }

    /// Waits until the caches have everything that was written for this key.
    pub(crate) async fn settled(&self, key: &ObjectKey) {
        let pending = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        let Some(pending) = pending else { return };
        let all = async {
            for (_, wait) in pending.revisions.into_values() {
                wait.await;
            }
            for wait in pending.deletions {
                wait.await;
            }
        };
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            tracing::warn!(%key, "the cache has not seen a write of {PATIENCE:?} ago");
        }
    }
}

async fn until_deleted<K: Object>(cache: Cache<K>, key: ObjectKey, uid: String) {
    let mut changes = cache.subscribe();
    while cache.by_key(&key).is_some_and(|live| live.uid() == uid && !live.is_deleting()) {
        if changes.next().await.is_none() {
            return;
        }
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

    /// Changes an object's status where `change` makes a difference; nothing is written otherwise.
    ///
    /// # Errors
    /// As [`Api::replace_status`].
    pub async fn status<T: Object + PartialEq>(
        &self,
        object: &T,
        change: impl FnOnce(&mut T),
    ) -> Result<(), Error> {
        let mut next = object.clone();
        change(&mut next);
        if next != *object {
            self.replace_status(&next).await?;
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
        match self.api::<T>(object.namespace()).delete(object.name(), &options).await {
            Ok(()) => {}
            // A failed uid precondition says that this object is gone and another has its name.
            Err(e) if e.is_not_found() || e.is_conflict() => {}
            Err(e) => return Err(e.into()),
        }
        if let Some(cache) = self.caches().started::<T>() {
            let wait = until_deleted(cache, object.key(), object.uid().to_owned()).boxed();
            self.ledger.with(&self.key, |pending| pending.deletions.push(wait));
        }
        Ok(())
    }

    /// Server-side apply of an object owned by `owner`, so that it is garbage collected with it.
    ///
    /// # Errors
    /// As [`Api::apply`].
    pub async fn apply<T: Object>(&self, owner: &impl Object, object: &T) -> Result<T, Error> {
        let mut desired = self.adopted(owner, object);
        desired.metadata_mut().resource_version = None;
        desired.metadata_mut().managed_fields = None;
        let live = self.api::<T>(desired.namespace()).apply(desired.name(), &desired).await?;
        self.wrote(&live);
        Ok(live)
    }

    /// The object of this name if there is one, else a new one owned by `owner`.
    ///
    /// # Errors
    /// As [`Api::create`].
    pub async fn get_or_create<T: Object>(
        &self,
        owner: &impl Object,
        make: impl FnOnce() -> T,
    ) -> Result<Arc<T>, Error> {
        let desired = self.adopted(owner, &make());
        if let Some(live) = self.caches().of::<T>().by_key(&desired.key()) {
            return Ok(live);
        }
        match self.create(&desired).await {
            Ok(live) => Ok(Arc::new(live)),
            Err(Error::Api(e)) if e.is_already_exists() => {
                Ok(Arc::new(self.api::<T>(desired.namespace()).get(desired.name()).await?))
            }
            Err(e) => Err(e),
        }
    }

    fn adopted<T: Object>(&self, owner: &impl Object, object: &T) -> T {
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

    /// Tells users about an object through an event.
    pub fn event<T: Object>(&self, object: &T, kind: EventType, reason: &str, message: impl Into<String>) {
        self.recorder.event(involved(object), kind, reason, message.into());
    }
}

fn is_namespaced<T: Object>() -> bool {
    TypeId::of::<T::Scope>() == TypeId::of::<k8s_core::api::NamespaceResourceScope>()
}
