//! Drives a pod: its inbox, its timer, and the effects of its [`World`].
//!
//! Flow: all messages in the inbox are passed to [`World::on`] with the time. The effects are performed in
//! order; long ones run in tasks whose results are messages. Then probes, watches and the status are updated
//! from the world.
//! Not here: decisions and transitions, which are the world's.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use k8s_core::{events::involved_container, meta::ObjectExt};
use k8s_runtime::{ContainerId, RuntimeEvent, SandboxId, SandboxStatus};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    actuate, admit, allocate, claims,
    life::Life,
    probes::Probes,
    records,
    sandbox::{self, Extent, PodFiles},
    start, status, stop,
    watches::Watches,
    world::*,
    writer::Writer,
};
use crate::{
    allocation::Allocation,
    context::Context,
    ledger::Leash,
    types::*,
    view::{ContainerView, PodView},
    volumes::{self, Mounted},
};

/// Time for running operations to finish at a shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);
const RECONNECT_DELAY: Duration = Duration::from_secs(2);
const DELETE_DELAY: Duration = Duration::from_secs(1);
/// Time for a changed container to start again before the pod's status tells that it does not run. Upstream
/// stops and starts it in one step, and looks at its containers once a second.
const REPLACEMENT: Duration = Duration::from_secs(1);

/// A message to a worker.
#[derive(Debug)]
enum Mail {
    World(Box<Message>),
    /// An event of the runtime about the pod's sandboxes or containers.
    Runtime(RuntimeEvent),
    /// The pod's sandboxes after a listing, since events may have been lost.
    Listed(Vec<SandboxStatus>),
}

/// Sends messages to a worker. Cheap to clone. Messages to an ended worker are dropped.
#[derive(Clone, Debug)]
pub(crate) struct Mailbox(mpsc::UnboundedSender<Mail>);

impl Mailbox {
    pub(crate) fn send(&self, message: Message) {
        let _ = self.0.send(Mail::World(Box::new(message)));
    }

    /// Sends an event of one of the pod's sandboxes.
    pub(crate) fn runtime(&self, event: RuntimeEvent) {
        let _ = self.0.send(Mail::Runtime(event));
    }

    /// Sends the pod's sandboxes, after events may have been lost.
    pub(crate) fn listed(&self, sandboxes: Vec<SandboxStatus>) {
        let _ = self.0.send(Mail::Listed(sandboxes));
    }
}

/// The router's handle of a running worker.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) mailbox: Mailbox,
    pub(crate) pod: Arc<Pod>,
}

/// Arguments of [`start`].
pub(crate) struct Start {
    pub(crate) cx: Arc<Context>,
    pub(crate) pod: Arc<Pod>,
    /// Existing sandboxes of this pod.
    pub(crate) known: Vec<SandboxStatus>,
    /// What an earlier kubelet allocated to the pod.
    pub(crate) allocation: Option<Allocation>,
    pub(crate) services_known: bool,
    pub(crate) shutdown: CancellationToken,
}

struct Worker {
    cx: Arc<Context>,
    world: World,
    mailbox: Mailbox,
    inbox: mpsc::UnboundedReceiver<Mail>,
    /// Time of the next tick, from the last effects.
    wake: Option<Timestamp>,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
    writer: Writer,
    leash: Leash,
    probes: Probes,
    watches: Watches,
    /// The status reported last.
    status: Option<PodStatus>,
    /// Cancelled when the pod terminates.
    ending: CancellationToken,
    /// End of the grace period, once the pod terminates.
    kill_at: watch::Sender<Timestamp>,
}

/// Starts a pod's worker. The future resolves when the pod is finished, or at shutdown.
pub(crate) fn start(start: Start) -> (Handle, impl Future<Output = ()> + Send + 'static) {
    let (sender, inbox) = mpsc::unbounded_channel();
    let mailbox = Mailbox(sender);
    let handle = Handle { mailbox: mailbox.clone(), pod: start.pod.clone() };
    (handle, async move {
        let Start { cx, pod, known, allocation, services_known, shutdown } = start;
        let now = cx.clock.now();
        let mut world = World::new(pod.clone(), now);
        world.services_known = services_known;
        if let Some(allocation) = allocation {
            world.restore(allocation);
        }
        let worker = Worker {
            writer: Writer::start(cx.client.clone(), pod.clone()),
            status: pod.status.clone().filter(|s| s.start_time.is_some()),
            mailbox,
            inbox,
            wake: None,
            shutdown,
            tasks: JoinSet::new(),
            leash: Leash::default(),
            probes: Probes::default(),
            watches: Watches::default(),
            ending: CancellationToken::new(),
            kill_at: watch::channel(now).0,
            world,
            cx,
        };
        worker.run(known).await;
    })
}

impl Worker {
    async fn run(mut self, known: Vec<SandboxStatus>) {
        for sandbox in &known {
            self.cx.own_sandbox(&sandbox.id, self.world.pod.uid());
        }
        let pod = self.world.pod.clone();
        let admitted = tokio::select! {
            admitted = admit::admit(&self.cx, &pod, !known.is_empty()) => admitted,
            () = self.shutdown.cancelled() => return self.leave().await,
        };
        let (leash, refusal) = match admitted {
            Ok(leash) => (leash, None),
            Err(refusal) => (Leash::default(), Some(refusal)),
        };
        self.leash = leash.clone();
        let seen = self.seen(known);
        if self.cx.ledger.requests(pod.uid()).is_some() {
            self.save(&self.world.allocation);
        }
        self.on([Message::Adopt { seen, refusal }]);
        loop {
            // The node may have decided on a resize at once: the status tells of both.
            self.drain().await;
            self.probes.follow(&self.cx, &self.world, &self.mailbox);
            self.watches.follow(&self.cx, &self.world, &self.mailbox);
            self.report();
            if self.world.is_finished() {
                break;
            }
            let timer = async {
                match self.wake {
                    Some(at) => self.cx.clock.sleep(self.cx.clock.until(at)).await,
                    None => std::future::pending().await,
                }
            };
            let mail = tokio::select! {
                mail = self.inbox.recv() => mail,
                () = timer => None,
                why = leash.ended(), if self.world.disrupted.is_none() => {
                    Some(Mail::World(Box::new(Message::Disrupt(why))))
                }
                () = self.shutdown.cancelled() => return self.leave().await,
            };
            let mut messages = Vec::new();
            messages.extend(self.read(mail.unwrap_or_else(|| Mail::World(Box::new(Message::Tick)))).await);
            // Handle all queued mail in the same step.
            while let Ok(mail) = self.inbox.try_recv() {
                messages.extend(self.read(mail).await);
            }
            self.on(messages);
            while self.tasks.try_join_next().is_some() {}
        }
        let uid = self.world.pod.uid();
        allocate::release(&self.cx, uid);
        self.cx.retract(uid);
        self.cx.tokens.forget(uid);
        self.cx.certificates.forget(uid);
        self.cx.images.forget(uid);
    }

    /// Handles the mail that is there.
    async fn drain(&mut self) {
        let mut messages = Vec::new();
        while let Ok(mail) = self.inbox.try_recv() {
            messages.extend(self.read(mail).await);
        }
        if !messages.is_empty() {
            self.on(messages);
        }
    }

    /// Writes the allocation for the next kubelet, unless the file has it already.
    fn save(&self, allocation: &Allocation) {
        let dir = self.cx.config.pod_dir(self.world.pod.uid());
        if Allocation::load(&dir).is_some_and(|known| known.same(allocation)) {
            return;
        }
        if let Err(e) = allocation.save(&dir) {
            warn!(pod = %self.world.pod.key(), error = %e, "allocation not saved");
        }
    }

    /// Ends at a shutdown: short operations finish, no new ones start, and containers keep running.
    async fn leave(mut self) {
        self.ending.cancel();
        let rest = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, rest).await;
    }

    /// Converts mail into a message. For a runtime event it reads the state from the runtime.
    async fn read(&self, mail: Mail) -> Option<Message> {
        match mail {
            Mail::World(message) => {
                if let Message::Pod(pod) = &*message {
                    self.writer.observe(pod);
                }
                Some(*message)
            }
            Mail::Listed(sandboxes) => Some(Message::Listed(self.seen(sandboxes))),
            Mail::Runtime(RuntimeEvent::Exited(_, id) | RuntimeEvent::Started(_, id)) => {
                self.look_at(&id).await.map(Message::Container)
            }
            Mail::Runtime(RuntimeEvent::SandboxGone(id)) => {
                let containers = self.containers_of(&id).await;
                Some(Message::SandboxGone { id, containers })
            }
            Mail::Runtime(_) => None,
        }
    }

    async fn look_at(&self, id: &ContainerId) -> Option<Observed> {
        let status = self.cx.runtime.status(id).await.ok()?;
        Some(records::observed(&self.cx, &status))
    }

    async fn containers_of(&self, id: &SandboxId) -> Vec<Observed> {
        let all = self.cx.runtime.list().await.unwrap_or_default();
        let sandbox = all.into_iter().find(|s| s.id == *id);
        sandbox.map(|s| records::seen(&self.cx, s).containers).unwrap_or_default()
    }

    fn seen(&self, sandboxes: Vec<SandboxStatus>) -> Vec<Seen> {
        sandboxes.into_iter().map(|s| records::seen(&self.cx, s)).collect()
    }

    fn on(&mut self, messages: impl IntoIterator<Item = Message>) {
        let effects = self.world.on(self.cx.clock.now(), messages);
        self.release_if_over();
        self.wake = None;
        for effect in effects {
            self.perform(effect);
        }
    }

    /// Frees the pod's resources once nothing of it runs, or others count it as gone.
    fn release_if_over(&self) {
        if self.world.gone || self.world.ending.is_some_and(|ending| ending.stage.is_down()) {
            self.leash.down.cancel();
            allocate::release(&self.cx, self.world.pod.uid());
        }
    }

    fn perform(&mut self, effect: Effect) {
        let (cx, pod, mailbox) = (self.cx.clone(), self.world.pod.clone(), self.mailbox.clone());
        match effect {
            Effect::WakeAt(at) => self.wake = Some(self.wake.map_or(at, |wake| wake.min(at))),
            Effect::Event(PodEvent { warning: true, container, reason, message }) => {
                cx.events.warning(involved_container(&pod, container.as_deref()), &reason, message);
            }
            Effect::Event(PodEvent { warning: false, container, reason, message }) => {
                cx.events.normal(involved_container(&pod, container.as_deref()), &reason, message);
            }
            Effect::End { kill_at } => {
                self.ending.cancel();
                self.kill_at.send_replace(kill_at);
            }
            Effect::SetUpVolumes => self.answer(async move {
                Message::Volumes(volumes::set_up(&cx, &pod).await.map_err(|e| e.to_string()))
            }),
            Effect::MakeSandbox { attempt, old } => self.answer(async move {
                if let Err(why) = claims::prepare(&cx, &pod).await {
                    return Message::Unprepared(why);
                }
                let made = sandbox::make(&cx, &pod, attempt, old.as_deref()).await;
                Message::Sandbox(made.map(|(sandbox, ips)| (Arc::new(sandbox), ips)))
            }),
            Effect::Connect { sandbox, known_ips } => {
                let ending = self.ending.clone();
                self.answer(async move {
                    let ips = connect(&cx, &pod, &sandbox, known_ips, &ending).await;
                    Message::Sandbox(Ok((sandbox, ips)))
                });
            }
            Effect::Start(what) => {
                let name = what.container.name.clone();
                let (pod_ips, mounted) = (self.world.pod_ips.clone(), self.mounted());
                let cancel = self.ending.clone();
                let job = start::Job { cx, pod, what: *what, pod_ips, mounted, cancel, mailbox };
                self.answer(async move { Message::Started { name, outcome: job.run().await } });
            }
            Effect::Stop(what) => {
                let name = what.container.name.clone();
                let kill_at = match what.kill_at {
                    // A fixed time: the sender may be dropped.
                    Some(at) => watch::channel(at).1,
                    None => self.kill_at.subscribe(),
                };
                let job = stop::Job { cx, pod, what: *what, pod_ips: self.world.pod_ips.clone(), kill_at };
                self.answer(async move { Message::Stopped { name, record: job.run().await } });
            }
            Effect::Propose(Some(asks)) => allocate::push(&cx, asks, mailbox),
            Effect::Propose(None) => cx.resizes.forget(pod.uid()),
            Effect::SaveAllocation(allocation) => self.save(&allocation),
            Effect::Resize(plan) => {
                self.answer(async move { Message::Resized(actuate::resize(&cx, *plan).await) });
            }
            Effect::TakeDown { sandboxes, extent } => {
                // Report the exit codes before the containers are removed.
                self.report();
                self.answer(
                    async move { Message::TakenDown(take_down(&cx, &pod, &sandboxes, extent).await) },
                );
            }
            Effect::Delete { gone: true } => mailbox.send(Message::Deleted(Ok(()))),
            Effect::Delete { gone: false } => {
                self.report();
                let flushed = self.writer.flushed();
                self.answer(async move {
                    flushed.await;
                    Message::Deleted(delete(&cx, &pod).await)
                });
            }
        }
    }

    /// Runs a task whose result is sent to this worker as a message.
    fn answer(&mut self, work: impl Future<Output = Message> + Send + 'static) {
        let mailbox = self.mailbox.clone();
        self.tasks.spawn(async move { mailbox.send(work.await) });
    }

    fn mounted(&self) -> Arc<Mounted> {
        match &self.world.volumes {
            Volumes::Ready { mounted, .. } => mounted.clone(),
            Volumes::Absent | Volumes::Busy { .. } | Volumes::Failed { .. } => Arc::default(),
        }
    }

    /// Computes the status, and queues it for writing if it changed.
    fn report(&mut self) {
        let facts = status::Facts { host_ips: self.cx.node_ips(), pod_ips: &self.world.pod_ips };
        let status = status::compute(self.cx.clock.now(), &self.world, &facts, self.status.as_ref());
        if self.status.as_ref() == Some(&status) {
            return;
        }
        if matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
            // The scheduler counts it as gone once it reads this.
            allocate::release(&self.cx, self.world.pod.uid());
        }
        if !self.world.gone {
            let between = self.world.ending.is_none() && self.world.containers.iter().any(Life::is_between);
            self.writer.write(status.clone(), if between { REPLACEMENT } else { Duration::ZERO });
        }
        self.cx.publish(self.world.pod.uid(), view(&self.world, &status));
        self.status = Some(status);
    }
}

/// Connects a sandbox with running containers. It retries until the network succeeds or the pod terminates.
async fn connect(
    cx: &Context,
    pod: &Pod,
    sandbox: &SandboxStatus,
    known_ips: Vec<IpAddr>,
    ending: &CancellationToken,
) -> Vec<IpAddr> {
    loop {
        match sandbox::connect(cx, pod, sandbox).await {
            Ok(ips) => return ips,
            Err(e) => warn!(pod = %pod.key(), error = e, "pod not connected, trying again"),
        }
        tokio::select! {
            () = cx.clock.sleep(RECONNECT_DELAY) => {}
            () = ending.cancelled() => return known_ips,
        }
    }
}

async fn take_down(
    cx: &Context,
    pod: &Pod,
    sandboxes: &[Arc<SandboxStatus>],
    extent: Extent,
) -> Result<(), String> {
    let files = PodFiles {
        dir: cx.config.pod_dir(pod.uid()),
        logs: cx.config.pod_log_dir(pod.namespace(), pod.name(), pod.uid()),
    };
    let result = sandbox::take_down(cx, sandboxes, &files, extent).await;
    result.inspect_err(|why| warn!(pod = %pod.key(), error = why, "pod not taken down, trying again"))
}

async fn delete(cx: &Context, pod: &Pod) -> Result<(), String> {
    let options = k8s_core::client::DeleteOptions::default().grace(0).with_uid(pod.uid());
    match cx.client.namespaced::<Pod>(pod.namespace()).delete(pod.name(), &options).await {
        Ok(()) => Ok(()),
        // The object is deleted, or its name belongs to a new object (other uid).
        Err(e) if e.is_not_found() || e.status().is_some_and(|s| s.code() == 409) => Ok(()),
        Err(e) => {
            debug!(pod = %pod.key(), error = %e, "pod not deleted, trying again");
            cx.clock.sleep(DELETE_DELAY).await;
            Err(e.to_string())
        }
    }
}

/// Builds the state that the kubelet's API reads.
fn view(world: &World, status: &PodStatus) -> PodView {
    let containers = world.containers.iter().map(|life| {
        let view = ContainerView {
            id: life.current.as_ref().and_then(|r| r.id.clone()),
            running: life.is_running(),
            running_since: life.running_since(),
            waiting: life.hold.as_ref().map(|h| h.reason.clone()),
            log: life.current.as_ref().map(|r| r.log.clone()),
            previous_log: life.last.as_ref().map(|r| r.log.clone()),
        };
        (life.name.clone(), view)
    });
    PodView {
        sandbox: world.sandbox.status().map(|s| s.id.clone()),
        containers: containers.collect::<HashMap<_, _>>(),
        status: status.clone(),
    }
}
