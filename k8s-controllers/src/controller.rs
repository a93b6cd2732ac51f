//! One controller: what wakes it, its queue, its workers.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures::{FutureExt, future::BoxFuture};
use k8s_core::{
    cache::Change,
    client::Client,
    meta::{Object, ObjectExt, ObjectKey},
};
use tokio::task::JoinSet;
use tracing::{Instrument, debug, error, warn};

use crate::{Action, Backoff, Caches, Context, Environment, Error, Recorder, WorkQueue, context::Ledger};

/// Brings the world closer to what an object asks for.
pub trait Reconcile: Send + Sync + 'static {
    /// What is reconciled.
    type Kind: Object;

    /// Looks at the object and what belongs to it, and does what is missing. Called again after every change; must do nothing when nothing is
    /// missing.
    fn reconcile(
        &self,
        cx: &Context,
        object: Arc<Self::Kind>,
    ) -> impl Future<Output = Result<Action, Error>> + Send;

    /// The object is gone; its key is `cx.key()`. Owned objects are the garbage collector's.
    fn gone(&self, cx: &Context) -> impl Future<Output = Result<Action, Error>> + Send {
        let _ = cx;
        async { Ok(Action::await_change()) }
    }
}

type Queue = Arc<WorkQueue<ObjectKey>>;
type Wire = Box<dyn FnOnce(Environment, Queue) -> BoxFuture<'static, ()> + Send>;
type Synced = Box<dyn Fn(&Caches) -> BoxFuture<'static, ()> + Send>;

/// How a controller of `K` is driven.
pub struct Controller<K> {
    name: String,
    component: Option<String>,
    wires: Vec<Wire>,
    needs: Vec<Synced>,
    workers: usize,
    backoff: Backoff,
    kind: std::marker::PhantomData<fn() -> K>,
}

impl<K> std::fmt::Debug for Controller<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<K: Object> Default for Controller<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Object> Controller<K> {
    /// A controller that is woken by its own objects alone and works on up to four of them at once.
    #[must_use]
    pub fn new() -> Self {
        Controller {
            name: K::KIND.to_lowercase() + "-controller",
            component: None,
            wires: Vec::new(),
            needs: Vec::new(),
            workers: 4,
            backoff: Backoff::default(),
            kind: std::marker::PhantomData,
        }
    }

    /// Under this name in logs, events and field managers.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// With at most so many objects at once.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers.max(1);
        self
    }

    /// With this back-off for objects that fail.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Also woken by objects of `T` that an object of `K` controls.
    #[must_use]
    pub fn owns<T: Object>(self) -> Self {
        self.watches::<T>(|_, object| {
            let owner = object.controller_ref().filter(|o| {
                let group = o.api_version.rsplit_once('/').map_or("", |(group, _)| group);
                o.kind == K::KIND && group == K::GROUP
            });
            owner.map(|o| ObjectKey::new(object.namespace(), &o.name)).into_iter().collect()
        })
    }

    /// Also woken by objects of `T`: `map` says which objects of `K` a changed one concerns (asked for what it was and for what it is).
    #[must_use]
    pub fn watches<T: Object>(
        mut self,
        map: impl Fn(&Caches, &T) -> Vec<ObjectKey> + Send + Sync + 'static,
    ) -> Self {
        self = self.reads::<T>();
        self.wires.push(Box::new(move |environment, queue| {
            let cache = environment.caches.of::<T>();
            let mut changes = cache.subscribe();
            async move {
                let add = |object: &T| {
                    for key in map(&environment.caches, object) {
                        queue.add(key);
                    }
                };
                cache.list().iter().for_each(|object| add(object));
                while let Some(change) = changes.next().await {
                    match change {
                        Change::Added(object) | Change::Deleted(object) => add(&object),
                        Change::Modified(old, new) => {
                            add(&old);
                            add(&new);
                        }
                        Change::Resync => cache.list().iter().for_each(|object| add(object)),
                    }
                }
            }
            .boxed()
        }));
        self
    }

    /// Reads the cache of `T` without being woken by it: nothing is reconciled before that cache is complete. What is owned or watched needs
    /// not be named again.
    #[must_use]
    pub fn reads<T: Object>(mut self) -> Self {
        self.needs.push(Box::new(|caches| {
            let cache = caches.of::<T>();
            async move { cache.synced().await }.boxed()
        }));
        self
    }

    /// Runs alone, with caches of its own, until the future is dropped.
    pub async fn run<R: Reconcile<Kind = K>>(self, client: Client, reconciler: R) {
        self.start(Environment::new(client), reconciler).await;
    }

    /// Runs in an environment until that shuts down; reconciles that have begun are finished first.
    pub fn start<R: Reconcile<Kind = K>>(
        mut self,
        mut environment: Environment,
        reconciler: R,
    ) -> BoxFuture<'static, ()> {
        environment.client = environment.client.named(&self.name);
        let component = self.component.take().unwrap_or_else(|| self.name.clone());
        // Each controller has its own sequence, so that adding one does not change what the others do.
        let seed = self.name.bytes().fold(environment.seed, |s, b| s.wrapping_mul(31).wrapping_add(b.into()));
        let queue: Queue = Arc::new(WorkQueue::new(self.backoff, seed));
        let own = self.watches::<K>(|_, object| vec![object.key()]);
        async move {
            let recorder = Recorder::new(&environment.client, environment.clock.clone(), &component);
            let shared = Arc::new(Shared {
                reconciler,
                queue: queue.clone(),
                ledger: Arc::new(Ledger::default()),
                environment: environment.clone(),
                recorder,
                name: own.name,
            });
            let mut wires = JoinSet::new();
            for wire in own.wires {
                wires.spawn(wire(environment.clone(), queue.clone()));
            }
            let complete = futures::future::join_all(own.needs.iter().map(|n| n(&environment.caches)));
            tokio::select! {
                _ = complete => {}
                () = environment.shutdown.cancelled() => return,
            }
            let mut workers = JoinSet::new();
            for _ in 0..own.workers {
                workers.spawn(work(shared.clone()));
            }
            environment.shutdown.cancelled().await;
            queue.close();
            while workers.join_next().await.is_some() {}
        }
        .boxed()
    }
}

struct Shared<R> {
    reconciler: R,
    queue: Queue,
    ledger: Arc<Ledger>,
    environment: Environment,
    recorder: Recorder,
    name: String,
}

async fn work<R: Reconcile>(shared: Arc<Shared<R>>) {
    let cache = shared.environment.caches.of::<R::Kind>();
    while let Some(key) = shared.queue.get().await {
        shared.ledger.settled(&key).await;
        let cx = Context {
            environment: shared.environment.clone(),
            recorder: shared.recorder.clone(),
            ledger: shared.ledger.clone(),
            key: key.clone(),
        };
        let step = async {
            match cache.by_key(&key) {
                Some(object) => shared.reconciler.reconcile(&cx, object).await,
                None => shared.reconciler.gone(&cx).await,
            }
        };
        let span = tracing::debug_span!("reconcile", controller = %shared.name, %key);
        let result = AssertUnwindSafe(step).catch_unwind().instrument(span).await;
        shared.finish(&key, result);
    }
}

impl<R> Shared<R> {
    fn finish(&self, key: &ObjectKey, result: Result<Result<Action, Error>, Box<dyn std::any::Any + Send>>) {
        match result {
            Ok(Ok(action)) => {
                self.queue.forget(key);
                if let Some(after) = action.after {
                    self.queue.add_after(key.clone(), after);
                }
            }
            Ok(Err(e)) if e.is_conflict() => {
                let delay = self.queue.retry(key.clone());
                debug!(controller = %self.name, %key, ?delay, error = %e, "conflict, trying again");
            }
            Ok(Err(e)) => {
                let delay = self.queue.retry(key.clone());
                warn!(controller = %self.name, %key, ?delay, error = %e, "reconcile failed");
            }
            Err(panic) => {
                let text = panic
                    .downcast_ref::<&str>()
                    .map(ToString::to_string)
                    .or_else(|| panic.downcast_ref::<String>().cloned());
                let delay = self.queue.retry(key.clone());
                error!(controller = %self.name, %key, ?delay, panic = text.as_deref(), "reconcile panicked");
            }
        }
        self.queue.done(key);
    }
}
