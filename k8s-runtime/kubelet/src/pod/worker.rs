//! Drives one pod: takes messages, keeps the world, has the plan carried out.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use k8s_core::meta::ObjectExt;
use k8s_runtime::{RuntimeEvent, SandboxStatus};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    admit,
    life::*,
    plan::{self, Act},
    records,
    sandbox::{self, Extent, PodFiles},
    start, status, stop,
    world::*,
    writer::Writer,
};
use crate::{
    context::{ContainerView, Context, PodView},
    duration,
    probe::{self, Kind, Probes},
    types::*,
    volumes::{self, Mounted, Reference},
};

/// How long a shutdown waits for work that is nearly done.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(1);
const RECONNECT: Duration = Duration::from_secs(2);
/// Until contents that could not be renewed are tried again.
const REFRESH_RETRY: Duration = Duration::from_secs(10);

/// Something that changes what is known about the pod.
#[derive(Debug)]
pub(crate) enum Msg {
    /// The object changed.
    Pod(Arc<Pod>),
    /// The object is gone; its last state.
    Gone(Arc<Pod>),
    /// Something happened in the runtime.
    Runtime(RuntimeEvent),
    /// Events may have been lost: this is what the runtime has.
    Relist(Vec<SandboxStatus>),
    /// Services are known.
    Services,
    /// The volumes are set up, or why not.
    Volumes(Result<Mounted, String>),
    /// The sandbox is made and connected, or why not.
    Sandbox(Result<Box<(SandboxStatus, Vec<IpAddr>)>, String>),
    /// A container's process runs; its postStart hook may still run.
    Running { name: String, record: Record },
    /// A start is over.
    Started { name: String, outcome: start::Outcome },
    /// A stop is over.
    Stopped { name: String, record: Option<Record> },
    /// A probe turned, or failed without turning.
    Probe(probe::Report),
    /// A ConfigMap or Secret that the pod uses changed.
    Source,
    /// The pod is taken down, or why not.
    TakenDown(Result<(), String>),
    /// The object is deleted, or why not.
    Deleted(Result<(), String>),
}

/// Sends messages to a worker. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Post(mpsc::UnboundedSender<Msg>);

impl Post {
    /// A worker that has ended needs no messages.
    pub(crate) fn send(&self, msg: Msg) {
        let _ = self.0.send(msg);
    }
}

/// A running worker.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) post: Post,
    pub(crate) pod: Arc<Pod>,
}

/// What a worker starts with.
pub(crate) struct Start {
    pub(crate) cx: Arc<Context>,
    pub(crate) pod: Arc<Pod>,
    /// Sandboxes of this pod that the runtime has already.
    pub(crate) known: Vec<SandboxStatus>,
    pub(crate) services_known: bool,
    pub(crate) shutdown: CancellationToken,
}

struct Worker {
    cx: Arc<Context>,
    world: World,
    post: Post,
    inbox: mpsc::UnboundedReceiver<Msg>,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
    writer: Writer,
    probes: Probes,
    mounted: Arc<Mounted>,
    /// The sandbox of the pod, whatever state it is in.
    sandbox: Option<SandboxStatus>,
    /// Older sandboxes, to be removed with the pod.
    old_sandboxes: Vec<SandboxStatus>,
    pod_ips: Vec<IpAddr>,
    status: Option<PodStatus>,
    /// Cancelled when the pod comes to its end.
    ending: CancellationToken,
    kill_at: watch::Sender<Timestamp>,
    /// Watches of the objects that the pod uses.
    watched: BTreeSet<Reference>,
    watches: JoinSet<()>,
    /// A setting up of volumes was asked for while one was under way.
    volumes_stale: bool,
}

/// Starts a pod's worker; the future ends when nothing is left to do for the pod, or at shutdown.
pub(crate) fn start(start: Start) -> (Handle, impl Future<Output = ()> + Send + 'static) {
    let (sender, inbox) = mpsc::unbounded_channel();
    let post = Post(sender);
    let handle = Handle { post: post.clone(), pod: start.pod.clone() };
    (handle, async move { Worker::new(start, post, inbox).run().await })
}

impl Worker {
    fn new(start: Start, post: Post, inbox: mpsc::UnboundedReceiver<Msg>) -> Self {
        let Start { cx, pod, known, services_known, shutdown } = start;
        let now = cx.clock.now();
        let mut world = World::new(pod.clone(), now);
        world.services_known = services_known;
        let mut worker = Worker {
            writer: Writer::start(cx.client.clone(), pod.clone()),
            status: pod.status.clone().filter(|s| s.start_time.is_some()),
            post,
            inbox,
            shutdown,
            tasks: JoinSet::new(),
            probes: Probes::default(),
            mounted: Arc::default(),
            sandbox: None,
            old_sandboxes: Vec::new(),
            pod_ips: Vec::new(),
            ending: CancellationToken::new(),
            kill_at: watch::channel(now).0,
            watched: BTreeSet::new(),
            watches: JoinSet::new(),
            volumes_stale: false,
            world,
            cx,
        };
        worker.adopt(known);
        worker.watch_sources();
        worker
    }

    /// Takes over what runs already, and what an earlier kubelet wrote down.
    fn adopt(&mut self, mut known: Vec<SandboxStatus>) {
        let now = self.cx.clock.now();
        known.sort_by_key(|s| (s.spec.attempt, s.created_at));
        let newest = known.pop();
        self.old_sandboxes = known;
        for sandbox in newest.iter().chain(&self.old_sandboxes) {
            self.cx.own_sandbox(&sandbox.id, self.world.pod.uid());
        }
        let pod_status = self.world.pod.status.clone().unwrap_or_default();
        let statuses = [
            &pod_status.init_container_statuses,
            &pod_status.container_statuses,
            &pod_status.ephemeral_container_statuses,
        ];
        if let Some(sandbox) = &newest {
            self.observe_containers(sandbox);
        }
        for status in statuses.into_iter().flatten().flatten() {
            let (current, last) = records::from_status(status, now);
            let Some(life) = self.world.life_mut(&status.name) else { continue };
            match &life.current {
                None => (life.current, life.last) = (current, last),
                // The runtime may have removed the one before.
                Some(have) if status.container_id.as_ref() == Some(&have.full_id) && life.last.is_none() => {
                    life.last = last;
                }
                Some(_) => {}
            }
        }
        let Some(sandbox) = newest else { return self.admit() };
        let attempt = sandbox.spec.attempt;
        self.world.sandbox = if sandbox.ready {
            Sandbox::Ready { id: sandbox.id.clone(), attempt }
        } else {
            Sandbox::Dead { id: sandbox.id.clone(), attempt }
        };
        let mains_made = self
            .world
            .containers
            .iter()
            .any(|l| l.role == Role::Main && l.current.as_ref().is_some_and(|r| r.in_sandbox));
        self.world.initialized = sandbox.ready && mains_made;
        for life in &mut self.world.containers {
            if life.is_running() {
                // Hooks ran when it was started; probes begin anew.
                life.hook_done = true;
                life.started = life.spec.startup_probe.is_none();
                let old = statuses.into_iter().flatten().flatten().find(|s| s.name == life.name);
                life.ready = life.spec.readiness_probe.is_none() || old.is_some_and(|s| s.ready);
                life.started |= old.is_some_and(|s| s.started == Some(true));
            }
        }
        if sandbox.ready && !sandbox.spec.host_network {
            self.pod_ips = pod_status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
        }
        self.sandbox = Some(sandbox);
        // Connecting again is idempotent and tells the addresses; a pod that is at its end needs none.
        if matches!(self.world.sandbox, Sandbox::Ready { .. }) {
            self.world.network_ready = !self.pod_ips.is_empty();
            self.reconnect();
        }
    }

    /// Decides whether this node runs a pod of which nothing is there yet.
    fn admit(&mut self) {
        let status = self.world.pod.status.as_ref();
        let ended = status.is_some_and(|s| matches!(s.phase.as_deref(), Some("Failed" | "Succeeded")));
        let reason = status.and_then(|s| s.reason.as_deref());
        let refusal = admit::admit(&self.world.pod, &self.cx.sysctls).err();
        // A pod that has ended keeps the status it ended with.
        self.world.refusal = refusal.filter(|r| !ended || reason == Some(r.reason));
    }

    fn reconnect(&mut self) {
        let Some(sandbox) = self.sandbox.clone() else { return };
        let (cx, pod, post) = (self.cx.clone(), self.world.pod.clone(), self.post.clone());
        let (known_ips, ending) = (self.pod_ips.clone(), self.ending.clone());
        self.world.sandbox = Sandbox::Busy { attempt: sandbox.spec.attempt, failures: 0 };
        self.tasks.spawn(async move {
            // What runs in the sandbox runs on: a network that does not answer is asked again.
            let ips = loop {
                match sandbox::connect(&cx, &pod, &sandbox).await {
                    Ok(ips) => break ips,
                    Err(e) => warn!(pod = %pod.key(), error = e, "pod not connected, trying again"),
                }
                tokio::select! {
                    () = cx.clock.sleep(RECONNECT) => {}
                    () = ending.cancelled() => break known_ips,
                }
            };
            post.send(Msg::Sandbox(Ok(Box::new((sandbox, ips)))));
        });
    }

    /// Takes a sandbox's containers into the world: the newest of each name, and the one before.
    fn observe_containers(&mut self, sandbox: &SandboxStatus) {
        let mut found: Vec<_> = sandbox.containers.iter().collect();
        found.sort_by_key(|c| (c.spec.attempt, c.created_at));
        for container in found {
            let record = records::from_runtime(&self.cx, container);
            self.observe(&container.spec.name, record);
        }
    }

    /// Takes one container's state into the world. Never back from ended to running.
    fn observe(&mut self, name: &str, record: Record) {
        let Some(life) = self.world.life_mut(name) else { return };
        match &mut life.current {
            Some(current) if current.id == record.id => {
                if current.exit().is_none() {
                    *current = record;
                }
            }
            Some(current) if current.in_sandbox && current.attempt > record.attempt => {
                if record.exit().is_some() && life.last.as_ref().is_none_or(|l| l.attempt < record.attempt) {
                    life.last = Some(record);
                }
            }
            _ => life.renew(record),
        }
    }

    async fn run(mut self) {
        loop {
            let wake = self.step();
            if self.world.ending.is_some_and(|e| e.stage == Stage::Finished) && self.world.gone {
                break;
            }
            let timer = async {
                match wake {
                    Some(at) => self.cx.clock.sleep(self.cx.clock.until(at)).await,
                    None => std::future::pending().await,
                }
            };
            let msg = tokio::select! {
                msg = self.inbox.recv() => msg,
                () = timer => None,
                () = self.shutdown.cancelled() => return self.leave().await,
            };
            if let Some(msg) = msg {
                self.take(msg).await;
            }
            // Whatever else is there belongs to the same step.
            while let Ok(msg) = self.inbox.try_recv() {
                self.take(msg).await;
            }
            while self.tasks.try_join_next().is_some() {}
        }
        let uid = self.world.pod.uid();
        self.cx.retract(uid);
        self.cx.tokens.forget(uid);
        self.cx.images.forget(uid);
    }

    /// At shutdown: short work is finished, nothing new is begun, no container is touched.
    async fn leave(mut self) {
        self.ending.cancel();
        let rest = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(SHUTDOWN_PATIENCE, rest).await;
    }

    async fn take(&mut self, msg: Msg) {
        match msg {
            Msg::Pod(pod) => self.take_pod(pod),
            Msg::Gone(pod) => {
                self.world.pod = pod;
                self.world.gone = true;
                self.shorten();
            }
            Msg::Runtime(event) => self.take_event(event).await,
            Msg::Relist(sandboxes) => self.take_list(&sandboxes),
            Msg::Services => self.world.services_known = true,
            Msg::Volumes(result) => self.take_volumes(result),
            Msg::Sandbox(result) => self.take_sandbox(result),
            Msg::Running { name, record } => self.observe(&name, record),
            Msg::Started { name, outcome } => self.take_started(&name, outcome),
            Msg::Stopped { name, record } => self.take_stopped(&name, record),
            Msg::Probe(report) => self.take_probe(report),
            Msg::Source => {
                for life in &mut self.world.containers {
                    if life.hold.as_ref().is_some_and(|h| h.on_source) {
                        life.hold = None;
                    }
                }
                self.refresh_volumes();
            }
            Msg::TakenDown(result) => self.take_taken_down(result),
            Msg::Deleted(result) => self.take_deleted(result),
        }
    }

    fn take_pod(&mut self, pod: Arc<Pod>) {
        let meta_changed = pod.metadata.labels != self.world.pod.metadata.labels
            || pod.metadata.annotations != self.world.pod.metadata.annotations;
        self.writer.observe(&pod);
        self.world.pod = pod;
        self.world.take_spec();
        self.watch_sources();
        self.shorten();
        if meta_changed {
            // Downward API volumes show labels and annotations.
            self.refresh_volumes();
        }
    }

    /// A deletion under way may get less time than it had.
    fn shorten(&mut self) {
        let now = self.cx.clock.now();
        let grace = jiff::SignedDuration::from_secs(self.world.grace());
        let Some(ending) = self.world.ending.as_mut().filter(|e| e.cause == Cause::Deleted) else { return };
        let until = now.saturating_add(grace).unwrap_or(now);
        if until < ending.kill_at {
            ending.kill_at = until;
            self.kill_at.send_replace(until);
        }
    }

    async fn take_event(&mut self, event: RuntimeEvent) {
        match event {
            RuntimeEvent::Exited(_, id) | RuntimeEvent::Started(_, id) => {
                if let Ok(status) = self.cx.runtime.status(&id).await {
                    let record = records::from_runtime(&self.cx, &status);
                    let known = self.world.life(&status.spec.name).and_then(|l| l.current.as_ref());
                    // A container that is being started is taken when its start says so.
                    if known.is_some_and(|r| r.id == record.id) {
                        self.observe(&status.spec.name, record);
                    }
                }
            }
            RuntimeEvent::SandboxGone(id) => {
                let attempt = match &self.world.sandbox {
                    Sandbox::Ready { id: have, attempt } if *have == id => *attempt,
                    _ => return,
                };
                if self.world.ending.is_none() {
                    let message = "Pod sandbox changed, it will be killed and re-created.";
                    self.cx.events.normal(&self.world.pod, None, "SandboxChanged", message);
                }
                self.world.sandbox = Sandbox::Dead { id: id.clone(), attempt };
                if let Ok(all) = self.cx.runtime.list().await
                    && let Some(sandbox) = all.iter().find(|s| s.id == id)
                {
                    self.observe_containers(&sandbox.clone());
                }
                self.lose_containers("The pod's sandbox is gone");
            }
            _ => {}
        }
    }

    /// Containers that are not known to have ended cannot run any more.
    fn lose_containers(&mut self, why: &str) {
        let now = self.cx.clock.now();
        for life in &mut self.world.containers {
            let Some(record) = life.current.as_mut().filter(|r| r.exit().is_none() && life.op.is_none())
            else {
                continue;
            };
            let started_at = match record.phase {
                Phase::Running { started_at } => Some(started_at),
                Phase::Created | Phase::Exited(_) => None,
            };
            record.phase = Phase::Exited(Exit {
                code: 137,
                reason: "ContainerStatusUnknown".into(),
                message: why.to_owned(),
                started_at,
                finished_at: now,
            });
        }
    }

    fn take_list(&mut self, sandboxes: &[SandboxStatus]) {
        let Sandbox::Ready { id, attempt } = self.world.sandbox.clone() else { return };
        match sandboxes.iter().find(|s| s.id == id) {
            Some(sandbox) => {
                self.observe_containers(sandbox);
                if !sandbox.ready {
                    self.world.sandbox = Sandbox::Dead { id, attempt };
                    self.lose_containers("The pod's sandbox is gone");
                }
            }
            None => {
                self.world.sandbox = Sandbox::Absent { attempt: attempt + 1 };
                self.sandbox = None;
                self.lose_containers("The pod's sandbox is gone");
                for record in self.world.containers.iter_mut().filter_map(|l| l.current.as_mut()) {
                    record.in_sandbox = false;
                }
                self.world.initialized = false;
            }
        }
    }

    fn take_volumes(&mut self, result: Result<Mounted, String>) {
        self.world.refreshing = false;
        let failures = match self.world.volumes {
            Volumes::Failed { failures, .. } | Volumes::Busy { failures } => failures,
            Volumes::Absent | Volumes::Ready => 0,
        };
        match result {
            Ok(mounted) => {
                self.mounted = Arc::new(mounted);
                self.world.volumes = Volumes::Ready;
            }
            Err(why) => {
                self.cx.events.warning(&self.world.pod, None, "FailedMount", why);
                let delay = Duration::from_millis(500 << failures.min(8)).min(Duration::from_secs(122));
                let retry_at = self.after(if self.mounted.paths.is_empty() { delay } else { REFRESH_RETRY });
                // Contents that cannot be renewed are no reason to hold back what runs.
                if self.mounted.paths.is_empty() {
                    self.world.volumes = Volumes::Failed { retry_at, failures: failures + 1 };
                } else {
                    self.world.volumes = Volumes::Ready;
                    self.mounted =
                        Arc::new(Mounted { refresh_at: Some(retry_at), ..(*self.mounted).clone() });
                }
            }
        }
        if std::mem::take(&mut self.volumes_stale) {
            self.refresh_volumes();
        }
    }

    /// Sets the volumes up again, if they are set up.
    fn refresh_volumes(&mut self) {
        if self.world.ending.is_some() {
            return;
        }
        match self.world.volumes {
            Volumes::Absent => {}
            Volumes::Ready if self.world.refreshing => self.volumes_stale = true,
            Volumes::Busy { .. } => self.volumes_stale = true,
            Volumes::Failed { .. } => self.set_up_volumes(),
            Volumes::Ready => self.set_up_volumes(),
        }
    }

    fn set_up_volumes(&mut self) {
        let (cx, pod, post) = (self.cx.clone(), self.world.pod.clone(), self.post.clone());
        self.world.refreshing = self.world.volumes == Volumes::Ready;
        self.world.volumes = match self.world.volumes {
            Volumes::Ready => Volumes::Ready,
            Volumes::Failed { failures, .. } | Volumes::Busy { failures } => Volumes::Busy { failures },
            Volumes::Absent => Volumes::Busy { failures: 0 },
        };
        self.tasks.spawn(async move {
            let result = volumes::set_up(&cx, &pod).await.map_err(|e| e.to_string());
            post.send(Msg::Volumes(result));
        });
    }

    fn after(&self, delay: Duration) -> Timestamp {
        let now = self.cx.clock.now();
        now.saturating_add(delay).unwrap_or(now)
    }

    fn take_sandbox(&mut self, result: Result<Box<(SandboxStatus, Vec<IpAddr>)>, String>) {
        match result {
            Ok(made) => {
                let (sandbox, ips) = *made;
                let fresh = self.sandbox.as_ref().is_none_or(|s| s.id != sandbox.id);
                if fresh {
                    for record in self.world.containers.iter_mut().filter_map(|l| l.current.as_mut()) {
                        record.in_sandbox = false;
                    }
                    self.world.initialized = false;
                }
                self.world.sandbox = Sandbox::Ready { id: sandbox.id.clone(), attempt: sandbox.spec.attempt };
                self.world.network_ready = true;
                self.pod_ips = ips;
                self.sandbox = Some(sandbox);
            }
            Err(why) => {
                let message = format!("Failed to create pod sandbox: {why}");
                self.cx.events.warning(&self.world.pod, None, "FailedCreatePodSandBox", message);
                let (failures, attempt) = match self.world.sandbox {
                    Sandbox::Busy { failures, attempt } => (failures, attempt),
                    _ => (0, 0),
                };
                let retry_at = self.after(Duration::from_secs(1 << failures.min(5)));
                self.world.sandbox =
                    Sandbox::Failed { retry_at, failures: failures + 1, attempt: attempt + 1 };
            }
        }
    }

    fn take_started(&mut self, name: &str, outcome: start::Outcome) {
        let Some(life) = self.world.life_mut(name) else { return };
        life.op = None;
        match outcome {
            start::Outcome::Held(hold) => life.hold = Some(hold),
            start::Outcome::Cancelled => {}
            start::Outcome::Started(record) | start::Outcome::Failed(record) => {
                self.observe(name, record);
                let Some(life) = self.world.life_mut(name) else { return };
                life.hook_done = true;
                life.started = life.spec.startup_probe.is_none();
                life.ready = life.spec.readiness_probe.is_none();
                if life.role == Role::Main {
                    self.world.initialized = true;
                }
            }
        }
    }

    fn take_stopped(&mut self, name: &str, record: Option<Record>) {
        if let Some(record) = record {
            self.observe(name, record);
        } else if let Some(life) = self.world.life_mut(name) {
            life.op = None;
            self.lose_containers("The container is not known to the runtime");
        }
        if let Some(life) = self.world.life_mut(name) {
            life.op = None;
            life.kill = None;
        }
    }

    fn take_probe(&mut self, report: probe::Report) {
        let pod = self.world.pod.clone();
        let Some(life) = self.world.life_mut(&report.container) else { return };
        if !life.is_running() || life.current.as_ref().and_then(|r| r.id.as_ref()) != Some(&report.id) {
            return;
        }
        let kind = report.kind.title();
        if let Some(failure) = &report.failure {
            let message = format!("{kind} probe failed: {failure}");
            self.cx.events.warning(&pod, Some(&report.container), "Unhealthy", message);
        }
        match (report.kind, report.verdict) {
            (_, None) => {}
            (Kind::Readiness, Some(ready)) => life.ready = ready,
            (Kind::Startup, Some(true)) => life.started = true,
            (Kind::Liveness, Some(true)) => {}
            (Kind::Startup | Kind::Liveness, Some(false)) => {
                let kind = kind.to_lowercase();
                life.kill =
                    Some(format!("Container {} failed {kind} probe, will be restarted", report.container));
            }
        }
    }

    fn take_taken_down(&mut self, result: Result<(), String>) {
        let now = self.cx.clock.now();
        let Some(mut ending) = self.world.ending else { return };
        let failures = match ending.stage {
            Stage::TakingDown { failures } => failures,
            _ => 0,
        };
        ending.stage = match result {
            Ok(()) => {
                let attempt = self.sandbox.as_ref().map_or(0, |s| s.spec.attempt);
                if let Some(sandbox) = &self.sandbox {
                    self.world.sandbox = Sandbox::Dead { id: sandbox.id.clone(), attempt };
                }
                self.world.volumes = Volumes::Absent;
                Stage::Down
            }
            Err(why) => {
                warn!(pod = %self.world.pod.key(), error = why, "pod not taken down, trying again");
                self.cx.events.warning(
                    &self.world.pod,
                    None,
                    "FailedKillPod",
                    format!("error killing pod: {why}"),
                );
                let delay = jiff::SignedDuration::from_secs(1 << failures.min(5));
                Stage::Retry { at: now.saturating_add(delay).unwrap_or(now), failures: failures + 1 }
            }
        };
        self.world.ending = Some(ending);
    }

    fn take_deleted(&mut self, result: Result<(), String>) {
        let Some(mut ending) = self.world.ending else { return };
        ending.stage = match result {
            Ok(()) => Stage::Finished,
            Err(why) => {
                debug!(pod = %self.world.pod.key(), error = why, "pod not deleted, trying again");
                Stage::Down
            }
        };
        self.world.ending = Some(ending);
    }

    /// Decides, acts, and reports. Returns when to do so again.
    fn step(&mut self) -> Option<Timestamp> {
        let mut wake: Option<Timestamp> = None;
        loop {
            let now = self.cx.clock.now();
            let acts = plan::decide(now, &self.world);
            let mut again = false;
            for act in acts {
                match act {
                    Act::WakeAt(at) => wake = Some(wake.map_or(at, |w| w.min(at))),
                    Act::End(cause) => {
                        self.begin_end(cause);
                        again = true;
                    }
                    Act::BackOff(name, until) => {
                        self.back_off(&name, until);
                        wake = Some(wake.map_or(until, |w| w.min(until)));
                    }
                    Act::MountVolumes => self.set_up_volumes(),
                    Act::MakeSandbox => self.make_sandbox(),
                    Act::Start(name) => self.start_container(&name),
                    Act::Stop(name, why) => self.stop_container(&name, why),
                    Act::TakeDown => self.take_down(),
                    Act::Finish => self.finish(),
                }
            }
            if !again {
                break;
            }
        }
        if let Some(at) = self.mounted.refresh_at.filter(|_| self.world.ending.is_none()) {
            if at <= self.cx.clock.now() {
                self.mounted = Arc::new(Mounted { refresh_at: None, ..(*self.mounted).clone() });
                self.refresh_volumes();
            } else {
                wake = Some(wake.map_or(at, |w| w.min(at)));
            }
        }
        self.probes.follow(&self.cx, &self.world, &self.pod_ips, &self.post);
        self.report();
        wake
    }

    fn begin_end(&mut self, cause: Cause) {
        let now = self.cx.clock.now();
        let grace = jiff::SignedDuration::from_secs(self.world.grace());
        let mut kill_at = now.saturating_add(grace).unwrap_or(now);
        if let (Cause::Refused, Some(refusal)) = (cause, &self.world.refusal) {
            self.cx.events.warning(&self.world.pod, None, refusal.reason, &refusal.message);
        }
        if cause == Cause::Deadline {
            let message = "Pod was active on the node longer than the specified deadline";
            self.cx.events.normal(&self.world.pod, None, "DeadlineExceeded", message);
        }
        if let Some(before) = self.world.ending {
            kill_at = kill_at.min(before.kill_at.max(now));
        }
        self.ending.cancel();
        self.kill_at.send_replace(kill_at);
        self.world.ending = Some(Ending { cause, stage: Stage::Stopping, kill_at });
    }

    fn back_off(&mut self, name: &str, until: Timestamp) {
        let pod = self.world.pod.clone();
        let Some(life) = self.world.life_mut(name) else { return };
        let full = status::full_name(&pod);
        let delay = duration::go(life.backoff.delay());
        let message = format!("back-off {delay} restarting failed container={name} pod={full}");
        let event = format!("Back-off restarting failed container {name} in pod {full}");
        life.hold = Some(Hold { until, reason: "CrashLoopBackOff".into(), message, on_source: false });
        self.cx.events.warning(&pod, Some(name), "BackOff", event);
    }

    fn make_sandbox(&mut self) {
        let old = self.sandbox.clone();
        let (attempt, failures) = match &self.world.sandbox {
            Sandbox::Absent { attempt } => (*attempt, 0),
            Sandbox::Failed { attempt, failures, .. } => (*attempt, *failures),
            Sandbox::Dead { attempt, .. } => (attempt + 1, 0),
            Sandbox::Ready { .. } | Sandbox::Busy { .. } => return,
        };
        self.world.sandbox = Sandbox::Busy { attempt, failures };
        self.world.network_ready = false;
        let (cx, pod, post) = (self.cx.clone(), self.world.pod.clone(), self.post.clone());
        self.tasks.spawn(async move {
            let result = sandbox::make(&cx, &pod, attempt, old.as_ref()).await;
            post.send(Msg::Sandbox(result.map(Box::new)));
        });
    }

    fn start_container(&mut self, name: &str) {
        let now = self.cx.clock.now();
        let Some(sandbox) = self.sandbox.as_ref().map(|s| s.id.clone()) else { return };
        let pod = self.world.pod.clone();
        let Some(life) = self.world.life_mut(name) else { return };
        if let Some(exit) = life.exit().cloned() {
            let tried_and_held = life.hold.as_ref().is_some_and(|h| h.reason != "CrashLoopBackOff");
            if !tried_and_held {
                life.backoff.advance(exit.finished_at, now);
            }
        }
        life.op = Some(Op::Starting);
        let created = life.current.as_ref().filter(|r| r.phase == Phase::Created);
        let job = start::Job {
            cx: self.cx.clone(),
            pod,
            container: life.spec.clone(),
            attempt: life.next_attempt(),
            sandbox,
            pod_ips: self.pod_ips.clone(),
            mounted: self.mounted.clone(),
            leftover: created.and_then(|r| r.id.clone()),
            stale: life.last.clone().filter(|_| life.exit().is_some()),
            cancel: self.ending.clone(),
            post: self.post.clone(),
        };
        let (name, post) = (name.to_owned(), self.post.clone());
        self.tasks.spawn(async move {
            let outcome = job.run().await;
            post.send(Msg::Started { name, outcome });
        });
    }

    fn stop_container(&mut self, name: &str, why: String) {
        let kill_at = match self.world.ending {
            Some(_) => self.kill_at.subscribe(),
            None => {
                let grace = self.kill_grace(name);
                // Nobody shortens it: the sender may go.
                watch::channel(self.after(grace)).1
            }
        };
        let pod = self.world.pod.clone();
        let Some(life) = self.world.life_mut(name) else { return };
        let Some(id) = life.current.as_ref().and_then(|r| r.id.clone()) else { return };
        life.op = Some(Op::Stopping);
        let container = life.spec.clone();
        let job = stop::Job {
            cx: self.cx.clone(),
            pod,
            container,
            id,
            why,
            pod_ips: self.pod_ips.clone(),
            kill_at,
        };
        let (name, post) = (name.to_owned(), self.post.clone());
        self.tasks.spawn(async move {
            let record = job.run().await;
            post.send(Msg::Stopped { name, record });
        });
    }

    /// How long a container that fails its probe gets to end: the probe's own grace period, or the pod's.
    fn kill_grace(&self, name: &str) -> Duration {
        let probe = self.world.life(name).and_then(|life| {
            let probe = if life.started { &life.spec.liveness_probe } else { &life.spec.startup_probe };
            probe.as_ref()?.termination_grace_period_seconds
        });
        Duration::from_secs(u64::try_from(probe.unwrap_or_else(|| self.world.grace())).unwrap_or(0))
    }

    fn take_down(&mut self) {
        let Some(ending) = self.world.ending.as_mut() else { return };
        let extent = if ending.cause == Cause::Deleted { Extent::Remove } else { Extent::Stop };
        ending.stage = match ending.stage {
            Stage::Retry { failures, .. } => Stage::TakingDown { failures },
            _ => Stage::TakingDown { failures: 0 },
        };
        // What the containers said at their end is in the API before their traces are removed.
        self.report();
        let pod = &self.world.pod;
        let files = PodFiles {
            dir: self.cx.config.pod_dir(pod.uid()),
            logs: self.cx.config.pod_log_dir(pod.namespace(), pod.name(), pod.uid()),
        };
        let sandboxes: Vec<SandboxStatus> = self.sandbox.iter().chain(&self.old_sandboxes).cloned().collect();
        let (cx, post) = (self.cx.clone(), self.post.clone());
        self.tasks.spawn(async move {
            let result = sandbox::take_down(&cx, &sandboxes, &files, extent).await;
            post.send(Msg::TakenDown(result));
        });
    }

    fn finish(&mut self) {
        if let Some(ending) = self.world.ending.as_mut() {
            ending.stage = Stage::Finishing;
        }
        self.report();
        let (client, pod, post) = (self.cx.client.clone(), self.world.pod.clone(), self.post.clone());
        let (gone, flushed, clock) = (self.world.gone, self.writer.flushed(), self.cx.clock.clone());
        self.tasks.spawn(async move {
            if gone {
                return post.send(Msg::Deleted(Ok(())));
            }
            flushed.await;
            let options = k8s_core::client::DeleteOptions::default().grace(0).with_uid(pod.uid());
            let result = client.namespaced::<Pod>(pod.namespace()).delete(pod.name(), &options).await;
            match result {
                Ok(()) => post.send(Msg::Deleted(Ok(()))),
                // Gone, or another object has the name by now.
                Err(e) if e.is_not_found() || e.status().is_some_and(|s| s.code() == 409) => {
                    post.send(Msg::Deleted(Ok(())));
                }
                Err(e) => {
                    clock.sleep(Duration::from_secs(1)).await;
                    post.send(Msg::Deleted(Err(e.to_string())));
                }
            }
        });
    }

    /// Computes the status and has it written where it changed.
    fn report(&mut self) {
        let now = self.cx.clock.now();
        let facts = status::Facts { host_ips: self.cx.node_ips(), pod_ips: &self.pod_ips };
        let status = status::compute(now, &self.world, &facts, self.status.as_ref());
        if self.status.as_ref() == Some(&status) {
            return;
        }
        if !self.world.gone {
            self.writer.write(status.clone());
        }
        self.cx.publish(self.world.pod.uid(), self.view(&status));
        self.status = Some(status);
    }

    fn view(&self, status: &PodStatus) -> PodView {
        let containers = self.world.containers.iter().map(|life| {
            let view = ContainerView {
                id: life.current.as_ref().and_then(|r| r.id.clone()),
                running: life.is_running(),
                waiting: life.hold.as_ref().map(|h| h.reason.clone()),
                log: life.current.as_ref().map(|r| r.log.clone()),
                previous_log: life.last.as_ref().map(|r| r.log.clone()),
            };
            (life.name.clone(), view)
        });
        PodView {
            sandbox: self.sandbox.as_ref().map(|s| s.id.clone()),
            containers: containers.collect::<HashMap<_, _>>(),
            status: status.clone(),
        }
    }

    /// Watches what volumes and environments are made from.
    fn watch_sources(&mut self) {
        let namespace = self.world.pod.namespace().to_owned();
        for reference in references(&self.world) {
            if !self.watched.insert(reference.clone()) {
                continue;
            }
            let post = self.post.clone();
            match reference {
                Reference::ConfigMap(name) => {
                    let watched = self.cx.sources.watch_config_map(&namespace, &name);
                    let mut changes = watched.subscribe();
                    self.watches.spawn(async move {
                        while changes.next().await.is_some() {
                            post.send(Msg::Source);
                        }
                        drop(watched);
                    });
                }
                Reference::Secret(name) => {
                    let watched = self.cx.sources.watch_secret(&namespace, &name);
                    let mut changes = watched.subscribe();
                    self.watches.spawn(async move {
                        while changes.next().await.is_some() {
                            post.send(Msg::Source);
                        }
                        drop(watched);
                    });
                }
            }
        }
    }
}

/// All objects that a pod's volumes and environments are made from.
fn references(world: &World) -> BTreeSet<Reference> {
    let mut found: BTreeSet<Reference> = volumes::references(&world.pod).into_iter().collect();
    for life in &world.containers {
        for from in life.spec.env_from.iter().flatten() {
            found.extend(from.config_map_ref.as_ref().map(|r| Reference::ConfigMap(r.name.clone())));
            found.extend(from.secret_ref.as_ref().map(|r| Reference::Secret(r.name.clone())));
        }
        for from in life.spec.env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
            found.extend(from.config_map_key_ref.as_ref().map(|r| Reference::ConfigMap(r.name.clone())));
            found.extend(from.secret_key_ref.as_ref().map(|r| Reference::Secret(r.name.clone())));
        }
    }
    found
}
