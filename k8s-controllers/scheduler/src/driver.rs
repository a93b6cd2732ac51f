//! The scheduler's loop: applies changes, decides for one pod at a time, binds in the background.

#![expect(
    clippy::disallowed_methods,
    reason = "the queue takes the time as values; a binding outlives no client and reports its end to the loop"
)]

use std::{collections::HashSet, sync::Arc};

use futures::{FutureExt, future::BoxFuture};
use k8s_controllers::{Environment, EventType, Handle, Recorder, involved};
use k8s_core::{
    api::{
        api::core::v1::{
            Binding, Namespace, Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod,
            PodCondition,
        },
        api::storage::v1::StorageClass,
        apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status},
    },
    cache::{Cache, Change, Subscription},
    client::{Client, DeleteOptions, Error, Patch},
    meta::ObjectExt,
};
use rand::{SeedableRng, rngs::StdRng};
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};
use tracing::{debug, warn};

use crate::{
    Cluster, Filter, Plugin, PodInfo, Score, WakeOn,
    decide::{Decision, Profile, Unschedulable},
    failures::{Failure, Failures},
    metrics::{Metrics, Outcome},
    plugins,
    preemption::{self, Preempt},
    queue::{Attempt, Queue},
    volumes::{self, VolumeCaches},
};

/// Builder of a [`Scheduler`].
pub struct Builder {
    name: String,
    filters: Vec<Box<dyn Filter>>,
    scores: Vec<(i64, Box<dyn Score>)>,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Builder {
    /// Sets the `schedulerName` of the pods to schedule. Default: `default-scheduler`.
    ///
    /// ```
    /// use k8s_core::client::Client;
    /// use k8s_scheduler::{Scheduler, plugins};
    ///
    /// // A second scheduler, for pods with `schedulerName: packer`, that only looks at resources.
    /// async fn packer(client: Client) {
    ///     Scheduler::builder().named("packer").bare().filter(plugins::NodeResourcesFit).run(client).await;
    /// }
    /// ```
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Adds a plugin.
    #[must_use]
    pub fn plugin(mut self, plugin: impl Plugin) -> Self {
        plugin.register(&mut self.filters, &mut self.scores);
        self
    }

    /// Adds a filter.
    #[must_use]
    pub fn filter(mut self, filter: impl Filter) -> Self {
        self.filters.push(Box::new(filter));
        self
    }

    /// Removes the built-in plugins.
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.filters.clear();
        self.scores.clear();
        self
    }

    /// Runs with caches of its own until the future is dropped.
    pub async fn run(self, client: Client) {
        self.run_in(Environment::new(client)).await;
    }

    /// Starts in a task, with caches of its own.
    ///
    /// # Panics
    /// Called outside of a tokio runtime.
    ///
    /// ```
    /// use k8s_controllers::Stopped;
    /// use k8s_core::client::Client;
    /// use k8s_scheduler::Scheduler;
    ///
    /// async fn for_a_while(client: Client) -> Result<(), Stopped> {
    ///     let running = Scheduler::builder().start(client);
    ///     tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    ///     running.shutdown().await
    /// }
    /// ```
    pub fn start(self, client: Client) -> Handle {
        let mut environment = Environment::new(client);
        Handle::start(|stop| {
            environment.shutdown = stop;
            self.run_in(environment)
        })
    }

    /// Runs in an environment until that is shut down.
    pub fn run_in(self, environment: Environment) -> BoxFuture<'static, ()> {
        async move {
            let shutdown = environment.shutdown.clone();
            let mut scheduler = Scheduler::new(self, environment);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {}
                () = scheduler.run() => {}
            }
        }
        .boxed()
    }
}

/// Result of a bind task.
struct Bound {
    attempt: Attempt,
    /// Start of the decision.
    begun: Instant,
    error: Option<Error>,
}

/// A running scheduler.
pub struct Scheduler {
    name: String,
    profile: Profile,
    cluster: Cluster,
    queue: Queue,
    failures: Failures,
    metrics: Metrics,
    environment: Environment,
    recorder: Recorder,
    client: Client,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    volumes: VolumeCaches,
    rng: StdRng,
    start_at: usize,
    report: mpsc::UnboundedSender<Bound>,
    reports: mpsc::UnboundedReceiver<Bound>,
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduler").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Subscriptions to the caches.
struct Changes {
    pods: Subscription<Pod>,
    nodes: Subscription<Node>,
    claims: Subscription<PersistentVolumeClaim>,
    volumes: Subscription<PersistentVolume>,
    classes: Subscription<StorageClass>,
}

enum Event {
    Pod(Change<Pod>),
    Node(Change<Node>),
    Volume,
    Bound(Box<Bound>),
    Due,
}

fn is_terminal(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}

impl Scheduler {
    /// Returns a builder with the built-in plugins.
    #[must_use]
    pub fn builder() -> Builder {
        Builder { name: "default-scheduler".into(), filters: plugins::filters(), scores: plugins::scores() }
    }

    fn new(builder: Builder, environment: Environment) -> Self {
        let client = environment.client.named(&builder.name);
        let caches = &environment.caches;
        let volumes = VolumeCaches { claims: caches.of(), volumes: caches.of(), classes: caches.of() };
        let (report, reports) = mpsc::unbounded_channel();
        let metrics = Metrics::new(environment.metrics.registry(), &builder.name);
        Scheduler {
            cluster: Cluster::watching(caches.of::<Namespace>(), volumes.clone()),
            recorder: Recorder::new(&client, environment.clock.clone(), &builder.name),
            name: builder.name,
            profile: Profile { filters: builder.filters, scores: builder.scores },
            queue: Queue::default(),
            failures: Failures::new(Instant::now()),
            metrics,
            pods: caches.of(),
            nodes: caches.of(),
            volumes,
            rng: StdRng::seed_from_u64(environment.seed),
            start_at: 0,
            client,
            environment,
            report,
            reports,
        }
    }

    async fn run(&mut self) {
        let mut changes = Changes {
            pods: self.pods.subscribe(),
            nodes: self.nodes.subscribe(),
            claims: self.volumes.claims.subscribe(),
            volumes: self.volumes.volumes.subscribe(),
            classes: self.volumes.classes.subscribe(),
        };
        self.nodes.synced().await;
        self.pods.synced().await;
        self.volumes.claims.synced().await;
        self.volumes.volumes.synced().await;
        self.volumes.classes.synced().await;
        self.resync();
        loop {
            while let Some(event) = self.next_event(&mut changes).now_or_never() {
                self.take_in(event);
            }
            while let Some(failure) = self.failures.next(Instant::now()) {
                self.tell(&failure, None);
            }
            let next = self.queue.pop(Instant::now());
            self.metrics.pending(&self.queue);
            match next {
                Some(attempt) => {
                    self.try_one(attempt);
                    // Let bind tasks and watches run.
                    tokio::task::yield_now().await;
                }
                None => {
                    let event = self.next_event(&mut changes).await;
                    self.take_in(event);
                }
            }
        }
    }

    async fn next_event(&mut self, changes: &mut Changes) -> Event {
        let due = self.queue.next_due().into_iter().chain(self.failures.next_due()).min();
        let due = async {
            match due {
                Some(when) => tokio::time::sleep_until(when).await,
                None => std::future::pending().await,
            }
        };
        // Changes come before timers, so that a decision sees everything known. The caches live as long as
        // this loop.
        tokio::select! {
            biased;
            Some(change) = changes.nodes.next() => Event::Node(change),
            Some(change) = changes.pods.next() => Event::Pod(change),
            Some(bound) = self.reports.recv() => Event::Bound(Box::new(bound)),
            Some(_) = changes.claims.next() => Event::Volume,
            Some(_) = changes.volumes.next() => Event::Volume,
            Some(_) = changes.classes.next() => Event::Volume,
            () = due => Event::Due,
        }
    }

    fn take_in(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Pod(Change::Resync) | Event::Node(Change::Resync) => self.resync(),
            Event::Pod(Change::Added(pod)) | Event::Pod(Change::Modified(_, pod)) => self.pod_changed(&pod),
            Event::Pod(Change::Deleted(pod)) => self.pod_gone(pod.uid()),
            Event::Node(Change::Added(node)) => {
                self.cluster.set_node(node);
                self.queue.wake(WakeOn::NODE, now);
            }
            Event::Node(Change::Modified(old, new)) => {
                let helps = old.spec != new.spec
                    || old.metadata.labels != new.metadata.labels
                    || old.status.as_ref().map(|s| &s.allocatable)
                        != new.status.as_ref().map(|s| &s.allocatable);
                self.cluster.set_node(new);
                if helps {
                    self.queue.wake(WakeOn::NODE, now);
                }
            }
            Event::Node(Change::Deleted(node)) => {
                self.cluster.remove_node(node.name());
                // One topology domain less can make a spread constraint satisfiable.
                self.queue.wake(WakeOn::NODE, now);
            }
            Event::Volume => self.queue.wake(WakeOn::VOLUME, now),
            Event::Bound(bound) => self.bound(*bound),
            Event::Due => {}
        }
    }

    /// Rebuilds everything from the caches after changes were missed.
    fn resync(&mut self) {
        let nodes = self.nodes.list();
        let names: HashSet<&str> = nodes.iter().map(|n| n.name()).collect();
        let gone: Vec<String> = self
            .cluster
            .nodes()
            .iter()
            .map(|n| n.name().to_owned())
            .filter(|n| !names.contains(n.as_str()))
            .collect();
        for name in gone {
            self.cluster.remove_node(&name);
        }
        for node in &nodes {
            self.cluster.set_node(node.clone());
        }
        let pods = self.pods.list();
        let uids: HashSet<&str> = pods.iter().map(|p| p.uid()).collect();
        for uid in self.cluster.confirmed() {
            if !uids.contains(uid.as_str()) {
                self.pod_gone(&uid);
            }
        }
        for pod in &pods {
            self.pod_changed(pod);
        }
        self.queue.wake(WakeOn::ANYTHING, Instant::now());
    }

    fn pod_changed(&mut self, pod: &Arc<Pod>) {
        if is_terminal(pod) {
            return self.pod_gone(pod.uid());
        }
        let Some(node) = node_of(pod) else { return self.pending(pod) };
        self.queue.remove(pod.uid());
        self.failures.remove(pod.uid());
        let known = self.cluster.has_confirmed(pod.uid(), node);
        let same = known.is_some_and(|known| {
            known.pod.metadata.labels == pod.metadata.labels
                && known.pod.spec == pod.spec
                && known.pod.is_deleting() == pod.is_deleting()
        });
        if same {
            return;
        }
        let change = if known.is_some() { WakeOn::ANYTHING } else { WakeOn::POD_PLACED };
        self.cluster.set_pod(Arc::new(PodInfo::new(pod.clone())), node);
        self.queue.wake(change, Instant::now());
    }

    fn pending(&mut self, pod: &Arc<Pod>) {
        let spec = pod.spec.as_ref();
        let ours = spec.and_then(|s| s.scheduler_name.as_deref()).unwrap_or("default-scheduler") == self.name;
        let gated = spec.and_then(|s| s.scheduling_gates.as_ref()).is_some_and(|g| !g.is_empty());
        if !ours || gated || pod.is_deleting() {
            self.queue.remove(pod.uid());
            self.failures.remove(pod.uid());
        } else if !self.cluster.is_placed(pod.uid()) {
            self.queue.set(pod.clone());
        }
    }

    fn pod_gone(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.failures.remove(uid);
        if self.cluster.remove_pod(uid) {
            self.queue.wake(WakeOn::POD_GONE, Instant::now());
        }
    }

    fn try_one(&mut self, attempt: Attempt) {
        let (pod, begun) = (attempt.pod.clone(), Instant::now());
        match self.profile.decide(&self.cluster, &pod, &mut self.start_at, &mut self.rng) {
            Decision::Fits(fit) => {
                debug!(pod = %pod.key, node = fit.node, evaluated = fit.evaluated, feasible = fit.feasible, "placed");
                self.failures.remove(pod.uid());
                self.cluster.assume(pod, &fit.node);
                self.bind(attempt, fit.node, begun);
            }
            Decision::Nowhere(why) => {
                self.metrics.attempted(Outcome::Unschedulable, begun.elapsed(), attempt.failures);
                self.nowhere(attempt, why);
            }
        }
    }

    fn bind(&self, attempt: Attempt, node: String, begun: Instant) {
        let (client, recorder, report) = (self.client.clone(), self.recorder.clone(), self.report.clone());
        let volumes = self.volumes.clone();
        let shutdown = self.environment.shutdown.clone();
        tokio::spawn(async move {
            let work = async {
                let pod = &attempt.pod.pod;
                bind_volumes(&client, &volumes, pod, &node).await?;
                bind(&client, pod, &node).await?;
                let message = format!("Successfully assigned {} to {node}", attempt.pod.key);
                recorder.event(involved(&**pod), EventType::Normal, "Scheduled", message);
                Ok(())
            };
            let error = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                result = work => result.err(),
            };
            // The receiver is gone only if the scheduler has ended.
            let _ = report.send(Bound { attempt, begun, error });
        });
    }

    fn bound(&mut self, Bound { attempt, begun, error }: Bound) {
        let outcome = if error.is_none() { Outcome::Scheduled } else { Outcome::Error };
        self.metrics.attempted(outcome, begun.elapsed(), attempt.failures);
        let Some(error) = error else { return };
        let pod = &attempt.pod;
        if self.cluster.forget(pod.uid()) {
            self.queue.wake(WakeOn::POD_GONE, Instant::now());
        }
        let live = self.pods.by_key(&pod.key).filter(|live| live.uid() == pod.uid());
        let waits = live.is_some_and(|live| node_of(&live).is_none() && !live.is_deleting());
        debug!(pod = %pod.key, error = %error, "not bound");
        if waits {
            let message = format!("binding rejected: {error}");
            self.recorder.event(involved(&*pod.pod), EventType::Warning, "FailedScheduling", message);
            self.queue.retry(attempt, Instant::now());
        }
    }

    fn nowhere(&mut self, attempt: Attempt, why: Unschedulable) {
        let pod = attempt.pod.clone();
        let mut message = why.message.clone();
        match preemption::plan(&self.profile, &self.cluster, &pod, &why) {
            Preempt::No(reason) if why.nodes > 0 => {
                message.push(' ');
                message.push_str(&reason);
            }
            Preempt::No(_) => {}
            Preempt::Victims { node, victims } => {
                self.metrics.preempted(victims.len());
                self.evict(&pod, &node, victims);
                // Written at once: `nominatedNodeName` must reserve the freed room for this pod.
                self.failures.remove(pod.uid());
                self.tell(&Failure { pod, message }, Some(node));
                return self.queue.wait(attempt, why.wakes_on.or(WakeOn::NODE), Instant::now());
            }
        }
        self.failures.add(Failure { pod, message });
        self.queue.wait(attempt, why.wakes_on.or(WakeOn::NODE), Instant::now());
    }

    fn evict(&self, pod: &PodInfo, node: &str, victims: Vec<Arc<PodInfo>>) {
        debug!(pod = %pod.key, node, victims = victims.len(), "preempting");
        let (client, recorder) = (self.client.clone(), self.recorder.clone());
        let by = format!("Preempted by pod {} on node {node}", pod.uid());
        tokio::spawn(async move {
            for victim in victims.iter().filter(|v| !v.pod.is_deleting()) {
                recorder.event(involved(&*victim.pod), EventType::Normal, "Preempted", by.clone());
                let api = client.namespaced::<Pod>(&victim.key.namespace);
                let options = DeleteOptions::default().with_uid(victim.uid());
                if let Err(e) = api.delete_if_exists(&victim.key.name, &options).await {
                    warn!(pod = %victim.key, error = %e, "victim not deleted");
                }
            }
        });
    }

    /// Reports an unschedulable pod by an event, and in its status unless that says so already.
    fn tell(&self, Failure { pod, message }: &Failure, nominated: Option<String>) {
        self.recorder.event(involved(&*pod.pod), EventType::Warning, "FailedScheduling", message.clone());
        let status = pod.pod.status.as_ref();
        let old = status
            .and_then(|s| s.conditions.as_ref())
            .and_then(|all| all.iter().find(|c| c.type_ == "PodScheduled"));
        let said = old.is_some_and(|c| c.status == "False" && c.message.as_ref() == Some(message));
        let nominated_before = status.and_then(|s| s.nominated_node_name.as_ref());
        if said && (nominated.is_none() || nominated.as_ref() == nominated_before) {
            return;
        }
        let transition = old
            .filter(|c| c.status == "False")
            .and_then(|c| c.last_transition_time.clone())
            .unwrap_or_else(|| self.environment.clock.time());
        let condition = PodCondition {
            type_: "PodScheduled".into(),
            status: "False".into(),
            reason: Some("Unschedulable".into()),
            message: Some(message.clone()),
            last_transition_time: Some(transition),
            ..PodCondition::default()
        };
        let mut status = json!({"conditions": [condition]});
        if let Some(node) = nominated {
            status["nominatedNodeName"] = node.into();
        }
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": status});
        let (api, name) = (self.client.namespaced::<Pod>(&pod.key.namespace), pod.key.name.clone());
        tokio::spawn(async move {
            if let Err(e) = api.patch_status(&name, &Patch::Strategic(patch)).await {
                debug!(pod = name, error = %e, "condition not written");
            }
        });
    }
}

async fn bind(client: &Client, pod: &Pod, node: &str) -> Result<(), Error> {
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(pod.name().to_owned()),
            namespace: Some(pod.namespace().to_owned()),
            uid: Some(pod.uid().to_owned()),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let api = client.namespaced::<Pod>(pod.namespace());
    api.create_subresource::<_, Status>(pod.name(), "binding", &binding).await.map(drop)
}

/// Timeout for binding the claims of a placed pod.
const VOLUME_BINDING_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(600);

/// Sets the selected node on claims with delayed binding, and waits until the volume controllers have bound
/// them.
async fn bind_volumes(client: &Client, caches: &VolumeCaches, pod: &Pod, node: &str) -> Result<(), Error> {
    let waiting = volumes::waiting_claims(pod, caches);
    if waiting.is_empty() {
        return Ok(());
    }
    let api = client.namespaced::<PersistentVolumeClaim>(pod.namespace());
    let mut changes = caches.claims.subscribe();
    for name in &waiting {
        let patch = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": node}}});
        api.patch(name, &Patch::Merge(patch)).await?;
    }
    let bound = |name: &String| {
        let claim = caches.claims.get(pod.namespace(), name);
        claim.is_some_and(|c| c.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound"))
    };
    let all = async {
        while !waiting.iter().all(bound) {
            if changes.next().await.is_none() {
                return;
            }
        }
    };
    tokio::time::timeout(VOLUME_BINDING_TIMEOUT, all).await.map_err(|_| {
        Error::Request(format!("volumes of {} were not bound in {VOLUME_BINDING_TIMEOUT:?}", pod.key()))
    })
}
