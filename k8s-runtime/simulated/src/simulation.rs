//! [`Simulation`]: follows the shared caches, and writes what the nodes of the pods would write.
//!
//! Flow: a change of a pod or node updates the [`Board`]; a due step becomes a task with one or two requests;
//! its end makes the next step due.

#![expect(clippy::disallowed_methods, reason = "steps follow tokio's timer, virtual or not")]

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use http::Method;
use ipnet::IpNet;
use k8s_core::{
    api::{
        api::core::v1::{Node, Pod},
        apimachinery::pkg::apis::meta::v1::Time,
        jiff::Timestamp,
    },
    cache::{Cache, Change, Subscription},
    client::{Client, DeleteOptions, Error, Resource},
    clock::Clock,
    meta::ObjectExt,
};
use serde_json::Value;
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    api::Kubelets,
    board::{Board, PodState},
    kwok::{self, Kind, drive::Outcome},
    life::{self, Exit, Face, Life, Policy},
    nodes::{self, Beats},
    parts::{Parts, STRATEGIC},
    report::{self, KILLED, Moment, TERMINATED},
    script::Script,
    staging::{self, Staging},
};

/// Writes on their way at a time.
const AT_ONCE: usize = 128;
/// Delay of the repetition of a write that failed.
const RETRY: Duration = Duration::from_secs(1);
/// Grace period of a pod that names none, as the API server's default.
const GRACE: Duration = Duration::from_secs(30);

/// Annotation of Node objects, made by whomever, that are simulated: `fake`.
pub const FAKE_NODE: &str = "kwok.x-k8s.io/node";

type Director = Arc<dyn Fn(&Pod) -> Script + Send + Sync>;
type Waits = Arc<dyn Fn(Duration) + Send + Sync>;
type Joins = Arc<dyn Fn(&str) + Send + Sync>;

/// Nodes and pods without containers, over caches that others fill. See the crate's page.
#[must_use]
pub struct Simulation {
    parts: Parts,
    director: Director,
    waits: Option<Waits>,
    joins: Option<Joins>,
    beats: Option<Duration>,
    own: HashSet<String>,
    stages: Option<Client>,
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation").field("own", &self.own.len()).finish_non_exhaustive()
    }
}

impl Simulation {
    /// Creates a simulation of all pods of `pods` that are bound to a node. `writer` returns the client of a
    /// node's writes: statuses, deletions and leases.
    pub fn new(pods: Cache<Pod>, writer: impl Fn(&str) -> Client + Send + Sync + 'static) -> Self {
        // Where no node has a range of its own.
        let common = IpNet::V4(ipnet::Ipv4Net::new_assert([10, 42, 0, 0].into(), 16));
        Simulation {
            parts: Parts {
                pods,
                nodes: None,
                writer: Arc::new(writer),
                clock: Clock::system(),
                board: Arc::new(Mutex::new(Board::new(common))),
            },
            director: Arc::new(Script::of),
            waits: None,
            joins: None,
            beats: None,
            own: HashSet::new(),
            stages: None,
        }
    }

    /// Simulates the nodes with these names, and those with the annotation [`FAKE_NODE`]; only their pods are
    /// simulated then. Pods get addresses of their node's range.
    pub fn nodes(mut self, nodes: Cache<Node>, own: impl IntoIterator<Item = String>) -> Self {
        self.parts.nodes = Some(nodes);
        self.own = own.into_iter().collect();
        self
    }

    /// Renews the leases of the nodes, each once in `every`. `names` are nodes from the start on.
    pub fn heartbeats(mut self, every: Duration, names: impl IntoIterator<Item = String>) -> Self {
        self.beats = Some(every);
        for name in names {
            self.parts.board().add_node(&name, None, Vec::new());
        }
        self
    }

    /// Sets the clock. Default: the system's.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.parts.clock = clock;
        self
    }

    /// Sets the function that returns a pod's script. Default: [`Script::of`].
    pub fn scripts(mut self, script: impl Fn(&Pod) -> Script + Send + Sync + 'static) -> Self {
        self.director = Arc::new(script);
        self
    }

    /// Sets the range of the pods of nodes without a range. Default: 10.42.0.0/16.
    pub fn addresses(self, range: IpNet) -> Self {
        self.parts.board().set_common(range);
        self
    }

    /// Calls `told` with each delay after which a pod will change by itself, restarts excepted.
    pub fn on_wait(mut self, told: impl Fn(Duration) + Send + Sync + 'static) -> Self {
        self.waits = Some(Arc::new(told));
        self
    }

    /// Calls `told` with the name of each node when it begins to be simulated.
    pub fn on_node(mut self, told: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.joins = Some(Arc::new(told));
        self
    }

    /// Applies kwok's Stages, read and done by a client that may change pods and nodes. A pod that a Stage
    /// has acted on goes on by Stages only; all else is as without them. Default: Stages have no effect.
    pub fn stages(mut self, client: Client) -> Self {
        self.stages = Some(client);
        self
    }

    /// Returns the API of the nodes' kubelets.
    #[must_use]
    pub fn kubelets(&self) -> Kubelets {
        Kubelets::new(self.parts.clone())
    }

    /// Runs until `stop` is cancelled. Writes on their way are abandoned.
    pub async fn run(self, stop: CancellationToken) {
        let beats = self.beats.map(|every| Beats::new(self.parts.clone(), every));
        let beats = async {
            if let Some(beats) = beats {
                beats.run().await;
            }
        };
        let (sender, receiver) = watch::channel(Arc::default());
        let (client, clock) = (self.stages.clone(), self.parts.clock.clone());
        let staging = client.clone().map(|client| Staging::new(client, self.parts.clone(), receiver));
        let stages = async {
            if let Some(client) = client {
                kwok::watch::run(client, clock, sender).await;
            }
        };
        let run = async { tokio::join!(beats, stages, Loop::new(self, staging).run()) };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            _ = run => {}
        }
    }
}

/// End of a task.
struct Done {
    uid: Arc<str>,
    step: Step,
    result: Result<(), Error>,
}

/// What a task did.
enum Step {
    /// Wrote a step of the life.
    Life { then: Life, restart: bool },
    /// Wrote a status anew, because of readiness gates.
    Again,
    /// Ended the pod.
    End,
}

struct Loop {
    simulation: Simulation,
    tasks: JoinSet<Done>,
    staging: Option<Staging>,
}

/// What woke the loop.
enum Event {
    Pod(Option<Change<Pod>>),
    Node(Option<Change<Node>>),
    Done(Done),
    Stages(staging::Event),
    Timer,
}

/// Returns the next change; never without a cache.
async fn next<K: k8s_core::meta::Object>(changes: Option<&mut Subscription<K>>) -> Option<Change<K>> {
    match changes {
        Some(changes) => changes.next().await,
        None => std::future::pending().await,
    }
}

impl Loop {
    fn new(simulation: Simulation, staging: Option<Staging>) -> Self {
        Loop { simulation, tasks: JoinSet::new(), staging }
    }

    fn parts(&self) -> &Parts {
        &self.simulation.parts
    }

    async fn run(mut self) {
        let mut nodes = self.parts().nodes.as_ref().map(Cache::subscribe);
        let mut pods = self.parts().pods.subscribe();
        self.see_all_nodes();
        self.see_all_pods();
        loop {
            self.start_due();
            let timer = self.parts().board().next_timer().filter(|_| self.tasks.len() < AT_ONCE);
            let timer = async {
                match timer {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                // In a fixed order, so that a seeded test is deterministic.
                biased;
                change = next(nodes.as_mut()) => Event::Node(change),
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => Event::Done(done),
                    // The runtime has reported a panic.
                    Err(_) => continue,
                },
                event = staging::next(self.staging.as_mut()) => Event::Stages(event),
                change = pods.next() => Event::Pod(change),
                () = timer => Event::Timer,
            };
            match event {
                Event::Pod(Some(Change::Added(pod) | Change::Modified(_, pod))) => self.see(&pod),
                Event::Pod(Some(Change::Deleted(pod))) => self.parts().board().remove_pod(pod.uid()),
                Event::Pod(Some(Change::Resync)) => self.see_all_pods(),
                Event::Node(Some(Change::Added(node) | Change::Modified(_, node))) => self.see_node(&node),
                Event::Node(Some(Change::Deleted(node))) => self.parts().board().remove_node(node.name()),
                Event::Node(Some(Change::Resync)) => self.see_all_nodes(),
                Event::Done(done) => self.end(done),
                Event::Stages(staging::Event::Changed) => {
                    self.see_all_nodes();
                    self.see_all_pods();
                }
                Event::Stages(staging::Event::Ended(kind, id, outcome)) => self.unstage(kind, &id, outcome),
                Event::Timer => {}
                // The caches are gone.
                Event::Pod(None) | Event::Node(None) => return,
            }
        }
    }

    fn see_all_nodes(&mut self) {
        let Some(nodes) = self.parts().nodes.clone() else { return };
        nodes.list().iter().for_each(|node| self.see_node(node));
        let gone: Vec<Arc<str>> = {
            let board = self.parts().board();
            board.nodes.keys().filter(|name| nodes.get("", name).is_none()).cloned().collect()
        };
        gone.iter().for_each(|name| self.parts().board().remove_node(name));
    }

    fn see_all_pods(&mut self) {
        let all = self.parts().pods.list();
        let known: HashSet<&str> = all.iter().map(|pod| pod.uid()).collect();
        {
            let mut board = self.simulation.parts.board();
            let gone: Vec<Arc<str>> =
                board.pods.keys().filter(|uid| !known.contains(uid.as_ref())).cloned().collect();
            gone.iter().for_each(|uid| board.remove_pod(uid));
        }
        all.iter().for_each(|pod| self.see(pod));
    }

    fn see_node(&mut self, node: &Arc<Node>) {
        let own = self.simulation.own.contains(node.name()) || node.annotation(FAKE_NODE) == Some("fake");
        if !own {
            return;
        }
        let range = node.spec.as_ref().and_then(|s| s.pod_cidr.as_deref()?.parse().ok());
        let addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
        let hosts = addresses.filter(|a| a.type_ == "InternalIP").map(|a| a.address.clone()).collect();
        let is_new = {
            let mut board = self.parts().board();
            let is_new = board.nodes.get(node.name()).is_none_or(|node| !node.known);
            board.add_node(node.name(), range, hosts);
            is_new
        };
        if is_new {
            if let Some(told) = &self.simulation.joins {
                told(node.name());
            }
            // Its pods may have been seen before it.
            let pods = self.parts().pods.list();
            let of_node = |pod: &&Arc<Pod>| node_of(pod) == Some(node.name());
            pods.iter().filter(of_node).for_each(|pod| self.see(pod));
        }
        if let Some(staging) = &mut self.staging
            && staging.drives_node(node)
        {
            return;
        }
        self.keep_node(node);
    }

    /// Writes the status of a node that has none or was found silent.
    fn keep_node(&mut self, node: &Arc<Node>) {
        if nodes::needs_status(node) {
            let client = (self.parts().writer)(node.name());
            let (node, clock) = (node.clone(), self.parts().clock.clone());
            self.tasks.spawn(async move {
                let result = nodes::write_status(&client, &clock, &node).await;
                if let Err(e) = &result
                    && !e.is_not_found()
                {
                    tracing::warn!(node = node.name(), error = %e, "node status not written");
                }
                Done { uid: "".into(), step: Step::Again, result }
            });
        }
    }

    /// Adds a pod of a simulated node, and makes its next step due.
    fn see(&mut self, pod: &Arc<Pod>) {
        let Some(node) = node_of(pod) else { return };
        let now = self.parts().clock.now();
        let mut board = self.simulation.parts.board();
        if self.simulation.parts.nodes.is_some() && !board.nodes.contains_key(node) {
            return;
        }
        let phase = report::phase(pod);
        if !board.pods.contains_key(pod.uid()) {
            let script = (self.simulation.director)(pod);
            let state = first_state(pod, node, phase, &script, now);
            board.add_pod(pod, state);
        }
        let Some(state) = board.pods.get_mut(pod.uid()) else { return };
        if report::is_final(phase) && state.life != Life::Over {
            // Whoever wrote it, a final phase is final.
            (state.life, state.due) = (Life::Over, 0);
            board.release(pod.uid());
        }
        let Some(state) = board.pods.get_mut(pod.uid()) else { return };
        if let Some(staging) = &mut self.staging
            && staging.drives_pod(pod, state)
        {
            return;
        }
        let dies = pod.is_deleting() && !state.dying;
        if !state.busy && (state.due == 0 || dies) {
            self.go_on(board, pod);
        }
    }

    /// Makes the next step due that follows without Stages.
    fn go_on(&self, mut board: MutexGuard<'_, Board>, pod: &Pod) {
        let uid = pod.uid();
        let Some(state) = board.pods.get_mut(uid) else { return };
        if pod.is_deleting() {
            if !state.dying {
                (state.dying, state.at) = (true, None);
            }
            let stop = state.script.as_ref().map(|s| s.stop).unwrap_or_default().min(grace(pod));
            schedule(&mut board, uid, stop, self.simulation.waits.as_ref());
        } else if gates_differ(pod, state) {
            board.schedule(uid, None);
        } else if !state.staged {
            self.follow(board, uid, pod);
        }
    }

    /// Takes note of the end of a task that applied Stages.
    fn unstage(&mut self, kind: Kind, id: &str, outcome: Outcome) {
        if kind == Kind::Node {
            let node = self.parts().nodes.as_ref().and_then(|nodes| nodes.get("", id));
            return match node {
                Some(node) if node.revision() > outcome.revision => self.see_node(&node),
                Some(node) if !outcome.acted => self.keep_node(&node),
                _ => {}
            };
        }
        let pod = self.parts().pod(id);
        let mut board = self.simulation.parts.board();
        let Some(state) = board.pods.get_mut(id) else { return };
        (state.busy, state.wake) = (false, None);
        state.staged |= outcome.acted;
        match pod {
            Some(pod) if pod.revision() > outcome.revision => {
                drop(board);
                self.see(&pod);
            }
            Some(pod) => self.go_on(board, &pod),
            None => {}
        }
    }

    /// Makes the next step of a life due.
    fn follow(&self, mut board: MutexGuard<'_, Board>, uid: &str, pod: &Pod) {
        let Some(state) = board.pods.get_mut(uid) else { return };
        let Some(next) = next_step(state, pod) else { return };
        if report::is_final(report::phase(pod)) {
            return;
        }
        let after = next.after.saturating_sub(std::mem::take(&mut state.elapsed));
        let waits = self.simulation.waits.as_ref().filter(|_| !next.restart);
        schedule(&mut board, uid, after, waits);
    }

    /// Starts the tasks of all steps that are due.
    fn start_due(&mut self) {
        while self.tasks.len() < AT_ONCE {
            let Some(uid) = self.parts().board().pop(Instant::now()) else { return };
            if !self.start(&uid)
                && let Some(state) = self.simulation.parts.board().pods.get_mut(&uid)
            {
                state.busy = false;
            }
        }
    }

    /// Starts the task of a pod's step. Returns false if there is nothing to do.
    fn start(&mut self, uid: &Arc<str>) -> bool {
        let parts = self.simulation.parts.clone();
        let Some(pod) = parts.pod(uid) else { return false };
        let now = parts.clock.now();
        let mut board = parts.board();
        let hosts = match board.pods.get(uid) {
            Some(state) => board.nodes.get(&state.node).map(|node| node.hosts.clone()).unwrap_or_default(),
            None => return false,
        };
        let Some(state) = board.pods.get_mut(uid) else { return false };
        let client = (parts.writer)(&state.node);
        if state.dying {
            let body = (!report::is_final(report::phase(&pod))).then(|| {
                let killed = state.script.as_ref().is_some_and(|s| s.stop > grace(&pod));
                let exit = Exit { code: if killed { KILLED } else { TERMINATED }, message: None };
                report::patch(&moment(&pod, state, &hosts, now), &Face::Ended(exit))
            });
            drop(board);
            let uid = uid.clone();
            self.tasks.spawn(async move {
                let result = end(&client, &pod, body).await;
                Done { uid, step: Step::End, result }
            });
            return true;
        }
        let (body, step) = if gates_differ(&pod, state) {
            let face = Face::Running { ready: state.ready };
            (report::patch(&moment(&pod, state, &hosts, now), &face), Step::Again)
        } else {
            let Some(next) = next_step(state, &pod) else { return false };
            if next.begins {
                state.began = now;
            }
            if next.restart {
                state.restarts += 1;
            }
            state.ready = next.face == Face::Running { ready: true };
            let body = report::patch(&moment(&pod, state, &hosts, now), &next.face);
            (body, Step::Life { then: next.then, restart: next.restart })
        };
        drop(board);
        let uid = uid.clone();
        self.tasks.spawn(async move {
            let result = write(&client, &pod, body).await;
            Done { uid, step, result }
        });
        true
    }

    /// Takes note of the end of a task, and makes the next step due.
    fn end(&mut self, done: Done) {
        let uid = done.uid.as_ref();
        let pod = self.parts().pod(uid);
        let mut board = self.simulation.parts.board();
        let Some(state) = board.pods.get_mut(uid) else { return };
        state.busy = false;
        let Some(pod) = pod else { return };
        match done.result {
            Ok(()) => {
                if !matches!(done.step, Step::Again) {
                    state.at = None;
                }
                if let Step::Life { then, .. } = done.step {
                    state.life = then;
                    if then == Life::Over {
                        // A pod that waits for ever has no address to give back.
                        board.release(uid);
                    }
                }
            }
            Err(e) => {
                if let Step::Life { restart: true, .. } = done.step {
                    state.restarts -= 1;
                }
                if e.is_not_found() || e.is_conflict() {
                    // Another pod has the name, or this one is gone: the cache will tell.
                    return;
                }
                tracing::warn!(pod = %pod.key(), error = %e, "answer for a pod");
                state.at = None;
                schedule(&mut board, uid, RETRY, self.simulation.waits.as_ref());
                return;
            }
        }
        if matches!(done.step, Step::End) {
            return;
        }
        drop(board);
        if pod.is_deleting() || self.staging.as_ref().is_some_and(Staging::has_pod_stages) {
            self.see(&pod);
        } else {
            let board = self.simulation.parts.board();
            self.follow(board, uid, &pod);
        }
    }
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

fn grace(pod: &Pod) -> Duration {
    let seconds = pod.metadata.deletion_grace_period_seconds;
    seconds.map_or(GRACE, |seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// Returns the state of a pod that is new to the simulation.
fn first_state(pod: &Pod, node: &str, phase: &str, script: &Script, now: Timestamp) -> PodState {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let first = statuses.clone().next();
    let state = first.and_then(|c| c.state.as_ref());
    let running = state.and_then(|s| s.running.as_ref()?.started_at.as_ref()).map(|t| t.0);
    let ready = first.is_some() && statuses.clone().all(|c| c.ready);
    let waits = state.is_some_and(|s| s.waiting.is_some());
    let elapsed = running.map(|began| Duration::try_from(now.duration_since(began)).unwrap_or_default());
    let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or(now, |t| t.0);
    PodState {
        key: pod.key(),
        node: node.into(),
        life: life::resumed(phase, waits, ready, script),
        script: (*script != Script::runs()).then(|| Arc::new(script.clone())),
        restarts: statuses.map(|c| u32::try_from(c.restart_count).unwrap_or(0)).max().unwrap_or(0),
        address: None,
        started,
        began: running.unwrap_or(now),
        ready,
        elapsed: elapsed.unwrap_or_default(),
        due: 0,
        busy: false,
        dying: false,
        at: None,
        staged: false,
        wake: None,
    }
}

fn next_step(state: &PodState, pod: &Pod) -> Option<life::Next> {
    let runs = Script::runs();
    let script = state.script.as_deref().unwrap_or(&runs);
    let policy = Policy::parse(pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()));
    life::next(state.life, script, policy, state.restarts)
}

/// Returns true if the readiness gates of a running pod say something else than its condition Ready.
fn gates_differ(pod: &Pod, state: &PodState) -> bool {
    let has_gates =
        pod.spec.as_ref().is_some_and(|s| s.readiness_gates.as_ref().is_some_and(|g| !g.is_empty()));
    let ready = || report::condition(pod, "Ready").is_some_and(|c| c.status == "True");
    has_gates
        && matches!(state.life, Life::Up { .. })
        && report::phase(pod) == "Running"
        && (state.ready && report::gates_hold(pod)) != ready()
}

fn moment<'a>(pod: &'a Pod, state: &PodState, hosts: &'a [String], now: Timestamp) -> Moment<'a> {
    Moment {
        pod,
        address: state.address,
        hosts,
        restarts: state.restarts,
        started: whole(state.started),
        began: whole(state.began),
        now: whole(now),
    }
}

/// Whole seconds, as in statuses.
fn whole(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// Makes the next step due after a time from when it was first decided.
fn schedule(board: &mut Board, uid: &str, after: Duration, waits: Option<&Waits>) {
    let Some(state) = board.pods.get_mut(uid) else { return };
    let at = match state.at {
        Some(at) => at,
        None if after.is_zero() => return board.schedule(uid, None),
        None => {
            if let Some(told) = waits {
                told(after);
            }
            // Beyond the timer's range nothing happens any more.
            let Some(at) = Instant::now().checked_add(after) else { return };
            *state.at.insert(at)
        }
    };
    board.schedule(uid, Some(at));
}

async fn write(client: &Client, pod: &Pod, body: Value) -> Result<(), Error> {
    let path = Resource::of::<Pod>().path(pod.namespace(), pod.name(), "status");
    client.bytes(Method::PATCH, &path, STRATEGIC, body.to_string()).await.map(drop)
}

/// Says that a pod has ended, for holders of finalizers, and deletes it.
async fn end(client: &Client, pod: &Pod, body: Option<Value>) -> Result<(), Error> {
    if let Some(body) = body {
        write(client, pod, body).await?;
    }
    let options = DeleteOptions::default().with_uid(pod.uid()).grace(0);
    client.namespaced::<Pod>(pod.namespace()).delete_if_exists(pod.name(), &options).await
}
