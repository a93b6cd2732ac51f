//! The scheduler's loop: applies changes, decides for one pod at a time, binds in the background.

#![expect(
    clippy::disallowed_methods,
    reason = "the queue takes the time as values; a binding outlives no client and reports its end to the loop"
)]

mod binding;
mod builder;
mod explain;
mod report;

pub use builder::Builder;
pub use explain::{ExplainError, Explanation, PluginScore, Preemption, Refusal as NodeRefusal, Verdict};

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures::FutureExt;
use k8s_controllers::{Environment, EventType, Recorder, involved};
use k8s_core::{
    api::{
        api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod},
        api::{
            resource::v1::{DeviceClass, ResourceClaim, ResourceSlice},
            storage::v1::{CSINode, StorageClass},
        },
    },
    cache::{Cache, Change, Subscription},
    client::{Client, Patch},
    meta::ObjectExt,
};
use rand::{SeedableRng, rngs::StdRng};
use tokio::{sync::mpsc, time::Instant};
use tracing::debug;

use self::binding::{Bound, Failed};
use crate::{
    Cluster, Event, Nomination, Placement, PodInfo, Points, WakeOn,
    config::ConfigError,
    decide::{Decision, Profile, Unschedulable},
    failures::{Failure, Failures},
    metrics::{Metrics, Outcome},
    queue::{Attempt, Queue, Refusal},
    volumes::{Controllers, Devices, Lists},
};

/// A profile with the rows shared by the tasks that bind.
struct Shared {
    profile: Profile,
    rows: Arc<Vec<Points>>,
    recorder: Recorder,
    metrics: Metrics,
}

/// Message to the loop from a task.
enum Report {
    Bound(Box<Bound>),
    /// The deletion of victims failed: the preemptor is tried again.
    NotEvicted(String),
}

/// A running scheduler.
pub struct Scheduler {
    profiles: Vec<Shared>,
    by_name: HashMap<String, usize>,
    cluster: Cluster,
    queue: Queue,
    failures: Failures,
    environment: Environment,
    client: Client,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    namespaces: Cache<Namespace>,
    lists: Lists,
    rng: StdRng,
    start_at: usize,
    report: mpsc::UnboundedSender<Report>,
    reports: mpsc::UnboundedReceiver<Report>,
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.profiles.iter().map(|p| &*p.profile.name).collect();
        f.debug_struct("Scheduler").field("profiles", &names).finish_non_exhaustive()
    }
}

/// Subscriptions to the caches.
struct Changes {
    pods: Subscription<Pod>,
    nodes: Subscription<Node>,
    claims: Subscription<PersistentVolumeClaim>,
    volumes: Subscription<PersistentVolume>,
    classes: Subscription<StorageClass>,
    csi_nodes: Subscription<CSINode>,
    namespaces: Subscription<Namespace>,
    resource_claims: Subscription<ResourceClaim>,
    device_classes: Subscription<DeviceClass>,
    slices: Subscription<ResourceSlice>,
}

enum Input {
    Pod(Change<Pod>),
    Node(Change<Node>),
    /// A change of an object of this kind, by namespace and name; after missed changes without a name.
    Object(WakeOn, String, String),
    Report(Report),
    Due,
}

/// Returns the input of a change of an object that only wakes pods.
fn object<K: ObjectExt>(what: WakeOn, change: &Change<K>) -> Input {
    match change {
        Change::Resync => Input::Object(WakeOn::ANYTHING, String::new(), String::new()),
        Change::Added(o) | Change::Modified(_, o) | Change::Deleted(o) => {
            Input::Object(what, o.namespace().to_owned(), o.name().to_owned())
        }
    }
}

/// Returns the kinds of an update of a node.
fn node_changes(old: &Node, new: &Node) -> WakeOn {
    let mut what = WakeOn::NOTHING;
    let allocatable = |n: &Node| n.status.as_ref().and_then(|s| s.allocatable.clone());
    if allocatable(old) != allocatable(new) {
        what = what.or(WakeOn::NODE_ALLOCATABLE);
    }
    if old.metadata.labels != new.metadata.labels {
        what = what.or(WakeOn::NODE_LABELS);
    }
    if old.spec != new.spec {
        what = what.or(WakeOn::NODE_TAINTS);
    }
    what
}

fn is_terminal(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

fn nominated_node(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.nominated_node_name.as_deref().filter(|node| !node.is_empty())
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}

impl Scheduler {
    /// Returns a builder with the built-in plugins.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::new()
    }

    fn new(builder: &Builder, environment: Environment) -> Result<Self, ConfigError> {
        let caches = &environment.caches;
        let lists = Lists {
            claims: caches.of(),
            volumes: caches.of(),
            classes: caches.of(),
            csi_nodes: caches.of(),
            budgets: caches.of(),
            services: caches.of(),
            controllers: Controllers {
                replication: caches.of(),
                replica_sets: caches.of(),
                stateful_sets: caches.of(),
            },
            devices: Devices { claims: caches.of(), classes: caches.of(), slices: caches.of() },
        };
        let (report, reports) = mpsc::unbounded_channel();
        let profiles = builder.profiles()?;
        let sort = profiles.iter().flat_map(|p| &p.rows).find_map(|row| row.queue_sort.clone());
        let sort = sort.unwrap_or_else(|| Arc::new(crate::plugins::PrioritySort));
        let client = environment.client.named(profiles.first().map_or("", |p| &p.name));
        let profiles: Vec<Shared> = profiles
            .into_iter()
            .map(|profile| Shared {
                rows: Arc::new(profile.rows.clone()),
                recorder: Recorder::new(&client, environment.clock.clone(), &profile.name),
                metrics: Metrics::new(environment.metrics.registry(), &profile.name),
                profile,
            })
            .collect();
        Ok(Scheduler {
            cluster: Cluster::watching(caches.of::<Namespace>(), lists.clone()),
            by_name: profiles.iter().enumerate().map(|(at, p)| (p.profile.name.clone(), at)).collect(),
            profiles,
            queue: Queue::new(sort, builder.backoff()),
            failures: Failures::new(Instant::now()),
            pods: caches.of(),
            nodes: caches.of(),
            namespaces: caches.of(),
            lists,
            rng: StdRng::seed_from_u64(environment.seed),
            start_at: 0,
            client,
            environment,
            report,
            reports,
        })
    }

    async fn run(&mut self) {
        let mut changes = Changes {
            pods: self.pods.subscribe(),
            nodes: self.nodes.subscribe(),
            claims: self.lists.claims.subscribe(),
            volumes: self.lists.volumes.subscribe(),
            classes: self.lists.classes.subscribe(),
            csi_nodes: self.lists.csi_nodes.subscribe(),
            namespaces: self.namespaces.subscribe(),
            resource_claims: self.lists.devices.claims.subscribe(),
            device_classes: self.lists.devices.classes.subscribe(),
            slices: self.lists.devices.slices.subscribe(),
        };
        let lists = self.lists.clone();
        let controllers = &lists.controllers;
        tokio::join!(
            self.nodes.synced(),
            self.pods.synced(),
            self.namespaces.synced(),
            lists.claims.synced(),
            lists.volumes.synced(),
            lists.classes.synced(),
            lists.csi_nodes.synced(),
            lists.budgets.synced(),
            lists.services.synced(),
            controllers.replication.synced(),
            controllers.replica_sets.synced(),
            controllers.stateful_sets.synced(),
        );
        self.resync();
        loop {
            while let Some(input) = self.next_input(&mut changes).now_or_never() {
                self.take_in(input);
            }
            while let Some(failure) = self.failures.next(Instant::now()) {
                self.tell(&failure, None);
            }
            let next = self.queue.pop(Instant::now());
            if let Some(first) = self.profiles.first() {
                first.metrics.pending(&self.queue);
            }
            match next {
                Some(attempt) => {
                    self.try_one(attempt);
                    // Let bind tasks and watches run.
                    tokio::task::yield_now().await;
                }
                None => {
                    let input = self.next_input(&mut changes).await;
                    self.take_in(input);
                }
            }
        }
    }

    async fn next_input(&mut self, changes: &mut Changes) -> Input {
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
            Some(change) = changes.nodes.next() => Input::Node(change),
            Some(change) = changes.pods.next() => Input::Pod(change),
            Some(report) = self.reports.recv() => Input::Report(report),
            Some(change) = changes.claims.next() => object(WakeOn::CLAIM, &change),
            Some(change) = changes.volumes.next() => object(WakeOn::PERSISTENT_VOLUME, &change),
            Some(change) = changes.classes.next() => object(WakeOn::CLASS, &change),
            Some(change) = changes.csi_nodes.next() => object(WakeOn::CSI_NODE, &change),
            Some(change) = changes.namespaces.next() => object(WakeOn::NAMESPACE, &change),
            Some(change) = changes.resource_claims.next() => object(WakeOn::RESOURCE_CLAIM, &change),
            Some(change) = changes.device_classes.next() => object(WakeOn::DEVICE_CLASS, &change),
            Some(change) = changes.slices.next() => object(WakeOn::RESOURCE_SLICE, &change),
            () = due => Input::Due,
        }
    }

    /// Wakes the pods that a change may help, as the plugins that refused them say.
    fn wake(&mut self, event: &Event<'_>) {
        wake(&mut self.queue, &self.profiles, &self.by_name, &self.cluster, event);
    }

    fn take_in(&mut self, input: Input) {
        match input {
            Input::Pod(Change::Resync) | Input::Node(Change::Resync) => self.resync(),
            Input::Pod(Change::Added(pod)) | Input::Pod(Change::Modified(_, pod)) => self.pod_changed(&pod),
            Input::Pod(Change::Deleted(pod)) => self.pod_gone(pod.uid()),
            Input::Node(Change::Added(node)) => self.node_changed(WakeOn::NODE_ADDED, None, node),
            Input::Node(Change::Modified(old, new)) => {
                let what = node_changes(&old, &new);
                self.node_changed(what, Some(&old), new);
            }
            Input::Node(Change::Deleted(node)) => {
                self.cluster.remove_node(node.name());
                // One topology domain less can make a spread constraint satisfiable.
                self.wake(&Event::node(WakeOn::NODE_GONE, None, Some(&node)));
            }
            Input::Object(what, namespace, name) => self.wake(&Event::object(what, &namespace, &name)),
            Input::Report(Report::Bound(bound)) => self.bound(*bound),
            Input::Report(Report::NotEvicted(uid)) => self.queue.hurry(&uid),
            Input::Due => {}
        }
    }

    fn node_changed(&mut self, what: WakeOn, old: Option<&Node>, node: Arc<Node>) {
        let name = node.name().to_owned();
        self.cluster.set_node(node);
        if what != WakeOn::NOTHING {
            let event = Event::node(what, self.cluster.node(&name), old);
            wake(&mut self.queue, &self.profiles, &self.by_name, &self.cluster, &event);
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
        self.queue.wake(WakeOn::ANYTHING, Instant::now(), &mut |_, _| true);
    }

    fn pod_changed(&mut self, pod: &Arc<Pod>) {
        if is_terminal(pod) {
            return self.pod_gone(pod.uid());
        }
        let Some(node) = node_of(pod) else { return self.pending(pod) };
        self.queue.remove(pod.uid());
        self.failures.remove(pod.uid());
        let known = self.cluster.has_confirmed(pod.uid(), node).cloned();
        let same = known.as_ref().is_some_and(|known| {
            known.pod.metadata.labels == pod.metadata.labels
                && known.pod.spec == pod.spec
                && known.pod.is_deleting() == pod.is_deleting()
                && allocated(&known.pod) == allocated(pod)
        });
        if same {
            return;
        }
        let info = Arc::new(PodInfo::new(pod.clone()));
        self.cluster.set_pod(info.clone(), node);
        let Some(known) = known else {
            return self.wake(&Event::pod(WakeOn::POD_PLACED, &info, None));
        };
        if known.pod.metadata.labels != pod.metadata.labels {
            self.wake(&Event::pod(WakeOn::POD_LABELS, &info, Some(&known)));
        }
        if info.requests.is_below(&known.requests) {
            self.wake(&Event::pod(WakeOn::POD_SCALED_DOWN, &info, Some(&known)));
        }
        if !known.pod.is_deleting() && pod.is_deleting() {
            // A pod that is being deleted no longer counts for spreading.
            self.wake(&Event::pod(WakeOn::POD_LABELS, &info, Some(&known)));
        }
    }

    /// Returns the profile of a pod.
    fn profile_of(&self, pod: &Pod) -> Option<&Shared> {
        let name = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref()).unwrap_or("default-scheduler");
        self.profiles.get(*self.by_name.get(name)?)
    }

    fn pending(&mut self, pod: &Arc<Pod>) {
        let uid = pod.uid();
        let profile = self.profile_of(pod).filter(|_| !pod.is_deleting());
        let Some(profile) = profile else { return self.leave_queue(uid) };
        if self.cluster.is_placed(uid) {
            return;
        }
        let gates: Vec<_> = profile.rows.iter().filter_map(|row| row.pre_enqueue.clone()).collect();
        let info = self.queue.get(pod).unwrap_or_else(|| Arc::new(PodInfo::new(pod.clone())));
        if let Some(reject) = gates.iter().find_map(|gate| gate.pre_enqueue(&info).err()) {
            debug!(pod = %info.key, reasons = ?reject.reasons, "held back");
            return self.leave_queue(uid);
        }
        // Without a name before and now, a nomination of ours may not be written yet.
        let nominated = nominated_node(pod);
        if nominated.is_some() || self.queue.object(uid).is_some_and(|old| nominated_node(old).is_some()) {
            self.cluster.nominate(&info, nominated);
        }
        self.queue.set(info);
    }

    fn leave_queue(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.failures.remove(uid);
        if let Some(node) = self.cluster.withdraw(uid) {
            self.freed(&node);
        }
    }

    /// Wakes pods after room on a node is no longer kept for another one.
    fn freed(&mut self, node: &str) {
        let event = Event::node(WakeOn::NODE_ALLOCATABLE, self.cluster.node(node), None);
        wake(&mut self.queue, &self.profiles, &self.by_name, &self.cluster, &event);
    }

    fn pod_gone(&mut self, uid: &str) {
        self.leave_queue(uid);
        if let Some(pod) = self.cluster.remove_pod(uid) {
            self.wake(&Event::pod(WakeOn::POD_GONE, &pod, None));
        }
    }

    fn try_one(&mut self, attempt: Attempt) {
        let (pod, begun) = (attempt.pod.clone(), Instant::now());
        let Some(at) = self.profile_of(&pod.pod).and_then(|p| self.by_name.get(&p.profile.name).copied())
        else {
            return;
        };
        let shared = &self.profiles[at];
        match shared.profile.decide(&self.cluster, &pod, &mut self.start_at, &mut self.rng, &mut ()) {
            Decision::Fits(fit) => {
                debug!(pod = %pod.key, node = fit.node, evaluated = fit.evaluated, feasible = fit.feasible, "placed");
                self.failures.remove(pod.uid());
                self.place(at, attempt, fit.node, begun);
            }
            Decision::Nowhere(why) => {
                shared.metrics.attempted(Outcome::Unschedulable, begun.elapsed(), attempt.failures);
                self.nowhere(at, attempt, why);
            }
        }
    }

    /// Reserves the node for the pod and binds the pod in a task.
    fn place(&mut self, at: usize, attempt: Attempt, node: String, begun: Instant) {
        let (shared, pod) = (&self.profiles[at], attempt.pod.clone());
        let reserving = || shared.rows.iter().filter_map(|row| Some((row, row.reserve.as_ref()?)));
        let there = self.cluster.node(&node);
        let refused = there.and_then(|there| {
            reserving().find_map(|(row, plugin)| {
                let reject = plugin.reserve(&self.cluster, &pod, there).err()?;
                Some(Failed::Refused { plugin: row.name.to_string(), reasons: reject.reasons.join(", ") })
            })
        });
        if refused.is_some() {
            return self.bound(Bound { attempt, node, begun, failure: refused });
        }
        let (rows, recorder, report) = (shared.rows.clone(), shared.recorder.clone(), self.report.clone());
        self.cluster.assume(pod.clone(), &node);
        let placement = Placement { client: self.client.clone(), pod, node };
        let shutdown = self.environment.shutdown.clone();
        tokio::spawn(async move {
            let failure = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                result = binding::bind(rows, &placement, &recorder) => result.err(),
            };
            // The receiver is gone only if the scheduler has ended.
            let _ =
                report.send(Report::Bound(Box::new(Bound { attempt, node: placement.node, begun, failure })));
        });
    }

    fn bound(&mut self, Bound { attempt, node, begun, failure }: Bound) {
        let pod = attempt.pod.clone();
        let Some(shared) = self.profile_of(&pod.pod) else { return };
        let outcome = if failure.is_none() { Outcome::Scheduled } else { Outcome::Error };
        shared.metrics.attempted(outcome, begun.elapsed(), attempt.failures);
        let Some(failure) = failure else { return };
        for plugin in shared.rows.iter().rev().filter_map(|row| row.reserve.as_ref()) {
            plugin.unreserve(&pod, &node);
        }
        let recorder = shared.recorder.clone();
        if self.cluster.forget(pod.uid()) {
            self.wake(&Event::pod(WakeOn::POD_GONE, &pod, None));
        }
        let live = self.pods.by_key(&pod.key).filter(|live| live.uid() == pod.uid());
        let waits = live.is_some_and(|live| node_of(&live).is_none() && !live.is_deleting());
        if let Failed::Refused { plugin, .. } = &failure {
            debug!(pod = %pod.key, plugin, reasons = %failure, "refused after the decision");
        } else {
            debug!(pod = %pod.key, error = %failure, "not bound");
        }
        if waits {
            let message = match &failure {
                Failed::Refused { .. } => failure.to_string(),
                Failed::Request(error) => format!("binding rejected: {error}"),
            };
            recorder.event(involved(&*pod.pod), EventType::Warning, "FailedScheduling", message);
            self.queue.retry(attempt, Instant::now());
        }
    }

    fn nowhere(&mut self, at: usize, attempt: Attempt, why: Unschedulable) {
        let pod = attempt.pod.clone();
        let shared = &self.profiles[at];
        let mut message = why.message.clone();
        let refusal = Refusal { by: why.refused_by, wakes_on: why.wakes_on };
        match shared.profile.post_filter(&self.cluster, &pod, &why) {
            Nomination::Wait(reason) => append(&mut message, &reason),
            Nomination::No(reason) => {
                append(&mut message, &reason);
                self.release(at, &pod);
                let kept = self.cluster.withdraw(pod.uid());
                if kept.is_some() || nominated_node(&pod.pod).is_some() {
                    // Nothing makes room there any more.
                    if let Some(node) = kept {
                        self.freed(&node);
                    }
                    self.failures.remove(pod.uid());
                    self.tell(&Failure { pod, message }, Some(""));
                    return self.queue.wait(attempt, refusal, Instant::now());
                }
            }
            Nomination::Preempt { node, victims } => {
                shared.metrics.preempted(victims.len());
                self.cluster.nominate(&pod, Some(&node));
                self.evict(at, &pod, &node, victims);
                // Written at once: `nominatedNodeName` must reserve the freed room for this pod.
                self.failures.remove(pod.uid());
                self.tell(&Failure { pod, message }, Some(&node));
                return self.queue.wait(attempt, refusal, Instant::now());
            }
        }
        self.failures.add(Failure { pod, message });
        self.queue.wait(attempt, refusal, Instant::now());
    }

    /// Sends the requests of plugins that give up what keeps the pod from other nodes.
    fn release(&self, at: usize, pod: &Arc<PodInfo>) {
        for plugin in self.profiles[at].rows.iter().filter_map(|row| row.post_filter.as_ref()) {
            let Some(request) = plugin.release(&self.cluster, pod, &self.client) else { continue };
            let shutdown = self.environment.shutdown.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = request => {}
                }
            });
        }
    }

    fn evict(&self, at: usize, pod: &Arc<PodInfo>, node: &str, victims: Vec<Arc<PodInfo>>) {
        debug!(pod = %pod.key, node, victims = victims.len(), "preempting");
        let shared = &self.profiles[at];
        let (client, recorder, report) = (self.client.clone(), shared.recorder.clone(), self.report.clone());
        let (clock, name) = (self.environment.clock.clone(), shared.profile.name.clone());
        let (pod, node) = (pod.clone(), node.to_owned());
        tokio::spawn(async move {
            if report::evict(&client, &recorder, &clock, &name, &pod, &node, &victims).await.is_err() {
                // The receiver is gone only if the scheduler has ended.
                let _ = report.send(Report::NotEvicted(pod.uid().to_owned()));
            }
        });
    }

    /// Reports an unschedulable pod by an event, and in its status unless that says so already.
    fn tell(&self, failure: &Failure, nominated: Option<&str>) {
        let pod = &failure.pod;
        let Some(shared) = self.profile_of(&pod.pod) else { return };
        let message = failure.message.clone();
        shared.recorder.event(involved(&*pod.pod), EventType::Warning, "FailedScheduling", message);
        let Some(patch) = report::unschedulable(failure, nominated, &self.environment.clock) else { return };
        let (api, name) = (self.client.namespaced::<Pod>(&pod.key.namespace), pod.key.name.clone());
        tokio::spawn(async move {
            if let Err(e) = api.patch_status(&name, &Patch::Strategic(patch)).await {
                debug!(pod = name, error = %e, "condition not written");
            }
        });
    }
}

/// Appends a plugin's message, if it has one, to that of a failure.
fn append(message: &mut String, reason: &str) {
    if !reason.is_empty() {
        message.push(' ');
        message.push_str(reason);
    }
}

/// Returns the parts of a pod's status that say what its node has given it.
fn allocated(pod: &Pod) -> Vec<(&str, String)> {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let given = statuses.filter(|s| s.allocated_resources.is_some() || s.resources.is_some());
    given.map(|s| (s.name.as_str(), format!("{:?}{:?}", s.allocated_resources, s.resources))).collect()
}

/// Wakes the waiting pods for which a plugin that refused them says that the change may help.
fn wake(
    queue: &mut Queue,
    profiles: &[Shared],
    by_name: &HashMap<String, usize>,
    cluster: &Cluster,
    event: &Event<'_>,
) {
    queue.wake(event.what, Instant::now(), &mut |pod, refused_by| {
        let name =
            pod.pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref()).unwrap_or("default-scheduler");
        let Some(shared) = by_name.get(name).and_then(|at| profiles.get(*at)) else { return true };
        // Without refusals there was no node at all.
        refused_by == 0
            || shared.profile.refusers(refused_by).any(|row| {
                row.wakes_on().meets(event.what)
                    && row.enqueue.as_ref().is_none_or(|plugin| plugin.hint(cluster, pod, event))
            })
    });
}
