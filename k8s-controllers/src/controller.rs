//! A controller: its watches, its queue, its workers.

#![expect(clippy::disallowed_methods, reason = "the duration of a reconcile, in virtual time as well")]

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use k8s_core::{
    cache::Change,
    client::Client,
    meta::{Object, ObjectExt, ObjectKey},
};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tracing::{Instrument, debug, error, warn};

use crate::{
    Action, Backoff, Caches, Context, Environment, Error, Handle, Recorder, WorkQueue,
    context::Ledger,
    metrics::{Outcome, ReconcileMetrics},
    predicates::Predicate,
};

/// Delay of a retry from which on a failure that usually passes is logged as a warning.
const PATIENCE: Duration = Duration::from_secs(30);

/// Brings the actual state closer to an object's desired state.
pub trait Reconcile: Send + Sync + 'static {
    /// Type of the reconciled objects.
    type Kind: Object;

    /// Reconciles the object. Called after every change; must write nothing if the state is as desired.
    fn reconcile(
        &self,
        cx: &Context,
        object: Arc<Self::Kind>,
    ) -> impl Future<Output = Result<Action, Error>> + Send;

    /// Finalizer that is added to every object before its first reconcile and kept until
    /// [`Reconcile::cleanup`] succeeds. For resources that the garbage collector cannot delete, such as those
    /// outside of the cluster.
    const FINALIZER: Option<&'static str> = None;

    /// Undoes the object's external effects. Called for a deleted object with [`Reconcile::FINALIZER`]. The
    /// finalizer is removed after [`Action::await_change`]; another action repeats the call.
    fn cleanup(
        &self,
        cx: &Context,
        object: Arc<Self::Kind>,
    ) -> impl Future<Output = Result<Action, Error>> + Send {
        let _ = (cx, object);
        async { Ok(Action::await_change()) }
    }

    /// Called after the object is gone; its key is `cx.key()`. Owned objects are deleted by the garbage
    /// collector.
    fn gone(&self, cx: &Context) -> impl Future<Output = Result<Action, Error>> + Send {
        let _ = cx;
        async { Ok(Action::await_change()) }
    }
}

type Queue = Arc<WorkQueue<ObjectKey>>;
type Wire = Arc<dyn Fn(Environment, Queue) -> BoxFuture<'static, ()> + Send + Sync>;
type Synced = Arc<dyn Fn(&Caches) -> BoxFuture<'static, ()> + Send + Sync>;

/// Watches, name and concurrency of a controller of `K`. Cheap to clone: a test kit restarts it after a
/// crash.
pub struct Controller<K> {
    name: String,
    component: Option<String>,
    wires: Vec<Wire>,
    needs: Vec<Synced>,
    workers: usize,
    backoff: Backoff,
    own: Predicate<K>,
    kind: std::marker::PhantomData<fn() -> K>,
}

impl<K> Clone for Controller<K> {
    fn clone(&self) -> Self {
        Controller {
            name: self.name.clone(),
            component: self.component.clone(),
            wires: self.wires.clone(),
            needs: self.needs.clone(),
            workers: self.workers,
            backoff: self.backoff,
            own: self.own.clone(),
            kind: self.kind,
        }
    }
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
    /// Creates a controller that watches its own objects and has four workers.
    #[must_use]
    pub fn new() -> Self {
        Controller {
            name: K::KIND.to_lowercase() + "-controller",
            component: None,
            wires: Vec::new(),
            needs: Vec::new(),
            workers: 4,
            backoff: Backoff::default(),
            own: Predicate::any(),
            kind: std::marker::PhantomData,
        }
    }

    /// Returns the controller's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets the name for logs, events and the field manager. Default: derived from the kind.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Sets the number of workers. Default: 4.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers.max(1);
        self
    }

    /// Sets the back-off of failed objects.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Reconciles only on these changes of its own objects: see [`crate::predicates`].
    ///
    /// ```
    /// use k8s_controllers::{Controller, predicates};
    /// use k8s_core::api::{ConfigMap, Deployment};
    /// // Not for changes of the status.
    /// let controller = Controller::<Deployment>::new().when(predicates::generation_changed());
    /// assert_eq!(controller.name(), "deployment-controller");
    /// let labelled = predicates::only(|map: &ConfigMap| map.metadata.labels.is_some());
    /// let maps = Controller::<ConfigMap>::new().named("painter").when(labelled).workers(2);
    /// assert_eq!(maps.name(), "painter");
    /// ```
    #[must_use]
    pub fn when(mut self, predicate: Predicate<K>) -> Self {
        self.own = predicate;
        self
    }

    /// Watches objects of `T`, and reconciles the `K` that controls them.
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

    /// Watches objects of `T`; `map` returns the `K`s to reconcile. It is called for the old and the new
    /// version.
    ///
    /// ```
    /// use k8s_controllers::Controller;
    /// use k8s_core::{api::{Deployment, Secret}, meta::{ObjectExt, ObjectKey}};
    /// // A Deployment names the Secret that it depends on in an annotation.
    /// let controller = Controller::<Deployment>::new().watches::<Secret>(|caches, secret| {
    ///     let users = caches.of::<Deployment>().in_namespace(secret.namespace());
    ///     let users = users.iter().filter(|d| d.annotation("example.com/secret") == Some(secret.name()));
    ///     users.map(|d| ObjectKey::new(d.namespace(), d.name())).collect()
    /// });
    /// # let _ = controller;
    /// ```
    #[must_use]
    pub fn watches<T: Object>(
        self,
        map: impl Fn(&Caches, &T) -> Vec<ObjectKey> + Send + Sync + 'static,
    ) -> Self {
        self.watches_when(Predicate::any(), map)
    }

    /// As [`Controller::watches`], for these changes only: see [`crate::predicates`].
    #[must_use]
    pub fn watches_when<T: Object>(
        mut self,
        predicate: Predicate<T>,
        map: impl Fn(&Caches, &T) -> Vec<ObjectKey> + Send + Sync + 'static,
    ) -> Self {
        self = self.reads::<T>();
        let map = Arc::new(map);
        self.wires.push(Arc::new(move |environment, queue| {
            let (map, predicate) = (map.clone(), predicate.clone());
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
                        Change::Added(object) if predicate.accepts(None, Some(&object)) => add(&object),
                        Change::Deleted(object) if predicate.accepts(Some(&object), None) => add(&object),
                        Change::Modified(old, new) if predicate.accepts(Some(&old), Some(&new)) => {
                            add(&old);
                            add(&new);
                        }
                        Change::Added(_) | Change::Deleted(_) | Change::Modified(..) => {}
                        Change::Resync => cache.list().iter().for_each(|object| add(object)),
                    }
                }
            }
            .boxed()
        }));
        self
    }

    /// Delays all reconciles until the cache of `T` is synced, without watching its changes. Owned and
    /// watched types need not be listed.
    ///
    /// ```
    /// use k8s_controllers::Controller;
    /// use k8s_core::api::{Node, Pod};
    /// // `cx.cached::<Node>` is complete before the first reconcile.
    /// let controller = Controller::<Pod>::new().reads::<Node>();
    /// # let _ = controller;
    /// ```
    #[must_use]
    pub fn reads<T: Object>(mut self) -> Self {
        self.needs.push(Arc::new(|caches| {
            let cache = caches.of::<T>();
            async move { cache.synced().await }.boxed()
        }));
        self
    }

    /// Runs with caches of its own until the future is dropped.
    ///
    /// ```
    /// use k8s_controllers::{Controller, Reconcile};
    /// use k8s_core::{api::{ConfigMap, Secret}, client::{Client, Error}};
    ///
    /// async fn run(secrets: impl Reconcile<Kind = ConfigMap>) -> Result<(), Error> {
    ///     Controller::<ConfigMap>::new().owns::<Secret>().run(Client::try_default()?, secrets).await;
    ///     Ok(())
    /// }
    /// ```
    pub async fn run<R: Reconcile<Kind = K>>(self, client: Client, reconciler: R) {
        self.run_in(Environment::new(client), reconciler).await;
    }

    /// Starts in a task, with caches of its own. The handle's `shutdown` finishes reconciles in progress.
    ///
    /// # Panics
    /// Called outside of a tokio runtime.
    ///
    /// ```
    /// use k8s_controllers::{Controller, Reconcile, Stopped};
    /// use k8s_core::{api::ConfigMap, client::Client};
    ///
    /// async fn for_a_while(client: Client, maps: impl Reconcile<Kind = ConfigMap>) -> Result<(), Stopped> {
    ///     let running = Controller::<ConfigMap>::new().start(client, maps);
    ///     tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    ///     running.shutdown().await
    /// }
    /// ```
    pub fn start<R: Reconcile<Kind = K>>(self, client: Client, reconciler: R) -> Handle {
        let mut environment = Environment::new(client);
        Handle::start(|stop| {
            environment.shutdown = stop;
            self.run_in(environment, reconciler)
        })
    }

    /// Runs in an environment until it is shut down; reconciles in progress are finished first.
    pub fn run_in<R: Reconcile<Kind = K>>(
        mut self,
        mut environment: Environment,
        reconciler: R,
    ) -> BoxFuture<'static, ()> {
        environment.client = environment.client.named(&self.name);
        environment.metrics.account(&environment.caches);
        let component = self.component.take().unwrap_or_else(|| self.name.clone());
        // Each controller has its own random sequence, so that adding one does not change the others'.
        let seed = self.name.bytes().fold(environment.seed, |s, b| s.wrapping_mul(31).wrapping_add(b.into()));
        let queue: Queue = Arc::new(
            WorkQueue::new(self.backoff, seed)
                .most_failing(self.workers.div_ceil(2))
                .measured(environment.metrics.queue(&self.name)),
        );
        let predicate = self.own.clone();
        let own = self.watches_when::<K>(predicate, |_, object| vec![object.key()]);
        async move {
            let recorder = Recorder::new(&environment.client, environment.clock.clone(), &component);
            let (lagging, held) = mpsc::unbounded_channel();
            let shared = Arc::new(Shared {
                reconciler,
                queue: queue.clone(),
                ledger: Arc::new(Ledger::default()),
                environment: environment.clone(),
                recorder,
                metrics: environment.metrics.controller(&own.name),
                lagging,
                name: own.name,
            });
            let mut wires = JoinSet::new();
            wires.spawn(give_back(queue.clone(), held));
            for wire in own.wires {
                wires.spawn(wire(environment.clone(), queue.clone()));
            }
            let complete = futures::future::join_all(own.needs.iter().map(|n| n(&environment.caches)));
            tokio::select! {
                biased;
                () = environment.shutdown.cancelled() => return,
                _ = complete => {}
            }
            shared.metrics.started();
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
    metrics: Arc<ReconcileMetrics>,
    lagging: mpsc::UnboundedSender<Lagging>,
    name: String,
}

async fn work<R: Reconcile>(shared: Arc<Shared<R>>) {
    let cache = shared.environment.caches.of::<R::Kind>();
    while let Some(key) = shared.queue.get().await {
        let cx = Context {
            environment: shared.environment.clone(),
            recorder: shared.recorder.clone(),
            ledger: shared.ledger.clone(),
            key: key.clone(),
        };
        let step = async {
            match cache.by_key(&key) {
                Some(object) => shared.look_at(&cx, object).await,
                None => shared.reconciler.gone(&cx).await,
            }
        };
        let span = tracing::debug_span!("reconcile", controller = %shared.name, %key);
        let begun = Instant::now();
        let result = AssertUnwindSafe(step).catch_unwind().instrument(span).await;
        shared.finish(&key, result, begun.elapsed());
    }
}

impl<R: Reconcile> Shared<R> {
    async fn look_at(&self, cx: &Context, object: Arc<R::Kind>) -> Result<Action, Error> {
        let Some(finalizer) = R::FINALIZER else { return self.reconciler.reconcile(cx, object).await };
        if !object.is_deleting() {
            let kept = Arc::new(cx.add_finalizer(&object, finalizer).await?);
            return self.reconciler.reconcile(cx, kept).await;
        }
        if !k8s_core::api::Metadata::metadata(&*object).finalizers.iter().flatten().any(|f| f == finalizer) {
            return Ok(Action::await_change());
        }
        let action = self.reconciler.cleanup(cx, object.clone()).await?;
        if action == Action::await_change() {
            cx.remove_finalizer(&object, finalizer).await?;
        }
        Ok(action)
    }

    fn finish(
        &self,
        key: &ObjectKey,
        result: Result<Result<Action, Error>, Box<dyn std::any::Any + Send>>,
        took: Duration,
    ) {
        let outcome = match &result {
            Ok(Ok(action)) if action.after.is_some() => Outcome::RequeueAfter,
            Ok(Ok(_)) => Outcome::Success,
            Ok(Err(_)) => Outcome::Error,
            Err(_) => Outcome::Panic,
        };
        self.metrics.ended(outcome, took);
        match result {
            Ok(Ok(action)) => {
                self.queue.forget(key);
                if let Some(after) = action.after {
                    self.queue.add_after(key.clone(), after);
                }
            }
            Ok(Err(e)) => {
                let delay = self.queue.retry(key.clone());
                let expected = e.is_race(&key.name)
                    || e.is_namespace_terminating()
                    || (e.may_pass() && delay < PATIENCE);
                if expected {
                    debug!(controller = %self.name, %key, ?delay, error = %e, "retrying");
                } else {
                    warn!(controller = %self.name, %key, ?delay, error = %e, "reconcile failed");
                }
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
        // The key is held back until the caches have its writes; the worker goes on with other keys.
        match self.ledger.lag(key) {
            None => self.queue.done(key),
            Some(lag) => {
                self.queue.rest(key);
                // Fails only during shutdown, when the key is not needed any more.
                let _ = self.lagging.send((key.clone(), lag));
            }
        }
    }
}

/// A key, and the future that it waits for.
type Lagging = (ObjectKey, BoxFuture<'static, ()>);

/// Returns keys to the queue once the caches have their writes.
async fn give_back(queue: Queue, mut lagging: mpsc::UnboundedReceiver<Lagging>) {
    let mut waits = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(key) = waits.next(), if !waits.is_empty() => queue.done(&key),
            more = lagging.recv() => match more {
                Some((key, lag)) => waits.push(lag.map(move |()| key)),
                None => return,
            },
        }
    }
}
