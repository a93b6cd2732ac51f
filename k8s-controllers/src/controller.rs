//! One controller: what wakes it, its queue, its workers.

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
    Action, Backoff, Caches, Context, Environment, Error, Recorder, WorkQueue,
    context::Ledger,
    metrics::{Outcome, ReconcileMetrics},
    predicates::Predicate,
};

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

    /// Keeps objects with this finalizer until [`Reconcile::cleanup`] is done: for what the garbage collector does not know, such as something outside of
    /// the cluster. Every object gets it before it is reconciled for the first time.
    const FINALIZER: Option<&'static str> = None;

    /// The object is being deleted and has [`Reconcile::FINALIZER`]: undo what was done for it. The finalizer is taken off when this succeeds with
    /// [`Action::await_change`]; another action asks for another look.
    fn cleanup(
        &self,
        cx: &Context,
        object: Arc<Self::Kind>,
    ) -> impl Future<Output = Result<Action, Error>> + Send {
        let _ = (cx, object);
        async { Ok(Action::await_change()) }
    }

    /// The object is gone; its key is `cx.key()`. Owned objects are the garbage collector's.
    fn gone(&self, cx: &Context) -> impl Future<Output = Result<Action, Error>> + Send {
        let _ = cx;
        async { Ok(Action::await_change()) }
    }
}

type Queue = Arc<WorkQueue<ObjectKey>>;
type Wire = Arc<dyn Fn(Environment, Queue) -> BoxFuture<'static, ()> + Send + Sync>;
type Synced = Arc<dyn Fn(&Caches) -> BoxFuture<'static, ()> + Send + Sync>;

/// How a controller of `K` is driven. Cheap to clone: a test kit starts it again after a crash.
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
            own: Predicate::any(),
            kind: std::marker::PhantomData,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
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

    /// Woken only by those changes of its own objects: see [`crate::predicates`].
    #[must_use]
    pub fn when(mut self, predicate: Predicate<K>) -> Self {
        self.own = predicate;
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
        self,
        map: impl Fn(&Caches, &T) -> Vec<ObjectKey> + Send + Sync + 'static,
    ) -> Self {
        self.watches_when(Predicate::any(), map)
    }

    /// As [`Controller::watches`], but woken only by those changes: see [`crate::predicates`].
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

    /// Reads the cache of `T` without being woken by it: nothing is reconciled before that cache is complete. What is owned or watched needs
    /// not be named again.
    #[must_use]
    pub fn reads<T: Object>(mut self) -> Self {
        self.needs.push(Arc::new(|caches| {
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
        environment.metrics.account(&environment.caches);
        let component = self.component.take().unwrap_or_else(|| self.name.clone());
        // Each controller has its own sequence, so that adding one does not change what the others do.
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
            Ok(Err(e)) if e.is_race(&key.name) => {
                let delay = self.queue.retry(key.clone());
                debug!(controller = %self.name, %key, ?delay, error = %e, "changed meanwhile, trying again");
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
        // Until the caches have what was written, nobody looks at this key again; the worker goes on with others.
        match self.ledger.lag(key) {
            None => self.queue.done(key),
            Some(lag) => {
                self.queue.rest(key);
                // Fails where the controller is about to end, and then nobody asks for the key.
                let _ = self.lagging.send((key.clone(), lag));
            }
        }
    }
}

/// A key, and what it waits for.
type Lagging = (ObjectKey, BoxFuture<'static, ()>);

/// Gives keys back when the caches have what was written for them.
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
