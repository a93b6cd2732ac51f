//! The runtime's model: the state of every sandbox and container, and the pending calls.
//!
//! The model is loaded from disk and from the shims at the start, and then updated by requests and by the
//! shims' events. Reads are answered from memory. If a shim's connection ends unexpectedly, the shim is dead
//! with all of its containers (see [`Model::shim_gone`]).

#![expect(clippy::disallowed_methods, reason = "the kernel runs containers in real time")]

use std::{
    collections::{BTreeMap, HashMap},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::sync::{broadcast, oneshot, watch};

use super::{
    EmbeddedConfig,
    cgroup::Cgroups,
    client::{self, ShimClient},
    protocol::{ContainerRecord, Message, Reply, Request, SandboxRecord, read_json, write_json},
    sandbox_files,
};
use crate::{
    api::{
        ContainerId, ContainerState, ContainerStatus, RuntimeError, RuntimeEvent, SandboxId, SandboxStatus,
    },
    beneath,
};

/// Timeout for a shim's answer at adoption.
const ADOPTION: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Container {
    pub(super) record: ContainerRecord,
    pub(super) state: watch::Sender<ContainerState>,
}

#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) record: SandboxRecord,
    /// `None` after the sandbox was stopped or its shim died.
    pub(super) client: Option<ShimClient>,
    pub(super) containers: BTreeMap<String, Container>,
}

#[derive(Debug)]
pub(super) struct Model {
    config: EmbeddedConfig,
    cgroups: Cgroups,
    sandboxes: Mutex<BTreeMap<String, Sandbox>>,
    events: broadcast::Sender<RuntimeEvent>,
    execs: Mutex<HashMap<u64, oneshot::Sender<i32>>>,
}

/// No statement leaves the maps inconsistent, so a poisoned lock can be used.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Container {
    pub(super) fn status(&self, sandbox: &str) -> ContainerStatus {
        ContainerStatus {
            id: ContainerId(self.record.id.clone()),
            sandbox: SandboxId(sandbox.to_owned()),
            created_at: self.record.created_at,
            state: self.state.borrow().clone(),
            spec: self.record.spec.clone(),
        }
    }
}

impl Sandbox {
    pub(super) fn status(&self) -> SandboxStatus {
        SandboxStatus {
            id: SandboxId(self.record.id.clone()),
            created_at: self.record.created_at,
            ready: self.client.is_some(),
            netns: self.record.netns.clone(),
            ips: Vec::new(),
            spec: self.record.spec.clone(),
            containers: self.containers.values().map(|c| c.status(&self.record.id)).collect(),
        }
    }
}

impl Model {
    pub(super) fn new(config: EmbeddedConfig, cgroups: Cgroups) -> Model {
        Model {
            config,
            cgroups,
            sandboxes: Mutex::default(),
            events: broadcast::channel(4096).0,
            execs: Mutex::default(),
        }
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.events.subscribe()
    }

    pub(super) fn emit(&self, event: RuntimeEvent) {
        // Fails without subscribers.
        let _ = self.events.send(event);
    }

    pub(super) fn sandboxes(&self) -> MutexGuard<'_, BTreeMap<String, Sandbox>> {
        lock(&self.sandboxes)
    }

    /// Calls `f` with a container and its sandbox.
    pub(super) fn with_container<T>(
        &self,
        id: &ContainerId,
        f: impl FnOnce(&Sandbox, &Container) -> T,
    ) -> Result<T, RuntimeError> {
        let sandboxes = self.sandboxes();
        sandboxes
            .values()
            .find_map(|s| s.containers.get(&id.0).map(|c| (s, c)))
            .map(|(s, c)| f(s, c))
            .ok_or_else(|| RuntimeError::NotFound { what: "container", id: id.0.clone() })
    }

    /// Registers for the exit code of an exec command.
    pub(super) fn expect_exec(&self, exec: u64) -> oneshot::Receiver<i32> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.execs).insert(exec, sender);
        receiver
    }

    pub(super) fn forget_exec(&self, exec: u64) {
        lock(&self.execs).remove(&exec);
    }

    /// Connects the model to a shim's socket. The receiver gets the shim's `Ready` message, if one is sent.
    pub(super) fn listen(
        self: &Arc<Self>,
        id: &str,
        stream: UnixStream,
    ) -> Result<(ShimClient, oneshot::Receiver<Result<i32, String>>), RuntimeError> {
        let (greeter, greeting) = oneshot::channel();
        let mut greeter = Some(greeter);
        // Weak: the model owns the clients. If the model is gone, the connection closes and the shim keeps
        // running.
        let (on_event, on_gone) = (Arc::downgrade(self), Arc::downgrade(self));
        let (event_id, gone_id) = (id.to_owned(), id.to_owned());
        let client = ShimClient::start(
            stream,
            move |message| match message {
                Message::Ready(result) => {
                    if let Some(greeter) = greeter.take() {
                        let _ = greeter.send(result);
                    }
                }
                Message::Started { id, state } => {
                    if let Some(model) = on_event.upgrade() {
                        model.changed(&event_id, id, state, RuntimeEvent::Started);
                    }
                }
                Message::Exited { id, state } => {
                    if let Some(model) = on_event.upgrade() {
                        model.changed(&event_id, id, state, RuntimeEvent::Exited);
                    }
                }
                Message::ExecExited { exec, code } => {
                    let model = on_event.upgrade();
                    if let Some(waiter) = model.and_then(|m| lock(&m.execs).remove(&exec)) {
                        let _ = waiter.send(code);
                    }
                }
                Message::Reply { .. } => {}
            },
            move || {
                if let Some(model) = on_gone.upgrade() {
                    model.shim_gone(&gone_id);
                }
            },
        )
        .map_err(RuntimeError::io("connect to a shim"))?;
        Ok((client, greeting))
    }

    /// Updates the state before the event is sent.
    fn changed(
        &self,
        sandbox: &str,
        id: String,
        state: ContainerState,
        event: fn(SandboxId, ContainerId) -> RuntimeEvent,
    ) {
        if let Some(container) = self.sandboxes().get(sandbox).and_then(|s| s.containers.get(&id)) {
            container.state.send_replace(state);
        }
        self.emit(event(SandboxId(sandbox.to_owned()), ContainerId(id)));
    }

    /// Stores the states reported by a shim.
    pub(super) fn set_states(&self, sandbox: &str, states: &BTreeMap<String, ContainerState>) {
        if let Some(sandbox) = self.sandboxes().get(sandbox) {
            for (id, state) in states {
                if let Some(container) = sandbox.containers.get(id) {
                    container.state.send_replace(state.clone());
                }
            }
        }
    }

    /// Handles the end of a connection. Unless it was requested, the shim and its containers are dead.
    fn shim_gone(&self, id: &str) {
        let Some((record, victims, cgroups)) = self.bury(id) else { return };
        // Processes that survived the shim are killed by their cgroups. That may block until they exit.
        let all = self.cgroups.clone();
        let release = move || {
            if let Err(error) = sandbox_files::release_by_force(&record, &cgroups, &all) {
                tracing::warn!(%error, sandbox = record.id, "release what a dead shim held");
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(handle) => drop(handle.spawn_blocking(release)),
            Err(_) => release(),
        }
        let sandbox = SandboxId(id.to_owned());
        for victim in victims {
            self.emit(RuntimeEvent::Exited(sandbox.clone(), ContainerId(victim)));
        }
        self.emit(RuntimeEvent::SandboxGone(sandbox));
    }

    /// Marks a sandbox as dead. Returns its record, the containers that died with it, and the cgroups of all
    /// containers. `None`: it was not alive.
    fn bury(&self, id: &str) -> Option<(SandboxRecord, Vec<String>, Vec<String>)> {
        let mut sandboxes = self.sandboxes();
        let sandbox = sandboxes.get_mut(id)?;
        sandbox.client.take()?;
        let victims = mark_dead(sandbox, &self.config);
        let cgroups = sandbox.containers.values().map(|c| c.record.cgroup.clone()).collect();
        Some((sandbox.record.clone(), victims, cgroups))
    }

    /// Loads the model from disk and connects to every running shim.
    pub(super) async fn adopt(self: &Arc<Self>) -> Result<(), RuntimeError> {
        let path = self.config.sandboxes();
        let entries = std::fs::read_dir(&path).map_err(RuntimeError::io(format!("read {path:?}")))?;
        for entry in entries.flatten() {
            let dir = entry.path();
            let Ok(record) = read_json::<SandboxRecord>(&dir.join("sandbox.json")) else {
                // Its creation was interrupted before anything but the directory existed.
                let _ = beneath::remove_all(&dir);
                continue;
            };
            self.adopt_one(dir, record).await?;
        }
        Ok(())
    }

    async fn adopt_one(self: &Arc<Self>, dir: PathBuf, record: SandboxRecord) -> Result<(), RuntimeError> {
        let id = record.id.clone();
        let mut containers = BTreeMap::new();
        for entry in std::fs::read_dir(dir.join("c")).into_iter().flatten().flatten() {
            let Ok(record) = read_json::<ContainerRecord>(&entry.path().join("container.json")) else {
                let _ = beneath::remove_all(&entry.path());
                continue;
            };
            let state = read_json(&entry.path().join("state.json")).unwrap_or(ContainerState::Created);
            containers.insert(record.id.clone(), Container { record, state: watch::Sender::new(state) });
        }
        self.sandboxes().insert(id.clone(), Sandbox { record, client: None, containers });
        if let Ok(stream) = client::connect(&dir) {
            let (client, _) = self.listen(&id, stream)?;
            let call = client.call("sandbox", &id, Request::List);
            match tokio::time::timeout(ADOPTION, call).await {
                Ok(Ok((Reply::States(states), _))) => {
                    let mut sandboxes = self.sandboxes();
                    if let Some(sandbox) = sandboxes.get_mut(&id) {
                        // The shim does not know the container, so its creation was interrupted.
                        sandbox.containers.retain(|id, _| states.contains_key(id));
                        sandbox.client = Some(client);
                    }
                    drop(sandboxes);
                    self.set_states(&id, &states);
                    return Ok(());
                }
                other => tracing::warn!(?other, sandbox = id, "a shim does not answer"),
            }
        }
        let mut sandboxes = self.sandboxes();
        if let Some(sandbox) = sandboxes.get_mut(&id) {
            mark_dead(sandbox, &self.config);
            let cgroups: Vec<String> = sandbox.containers.values().map(|c| c.record.cgroup.clone()).collect();
            if let Err(error) = sandbox_files::release_by_force(&sandbox.record, &cgroups, &self.cgroups) {
                tracing::warn!(%error, sandbox = id, "release what a dead shim held");
            }
        }
        Ok(())
    }
}

/// Marks all running containers as exited with the shim.
fn mark_dead(sandbox: &mut Sandbox, config: &EmbeddedConfig) -> Vec<String> {
    let mut victims = Vec::new();
    for (id, container) in &sandbox.containers {
        let started_at = match &*container.state.borrow() {
            ContainerState::Exited { .. } => continue,
            ContainerState::Running { started_at, .. } => Some(*started_at),
            ContainerState::Created => None,
        };
        let state = ContainerState::Exited {
            started_at,
            finished_at: SystemTime::now(),
            code: 137,
            oom_killed: false,
            message: "the pod's shim died".to_owned(),
        };
        let file = config.sandbox(&sandbox.record.id).join("c").join(id).join("state.json");
        if let Err(error) = write_json(&file, &state) {
            tracing::warn!(%error, ?file, "write a container's state");
        }
        container.state.send_replace(state);
        victims.push(id.clone());
    }
    victims
}
