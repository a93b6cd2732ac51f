//! A container runtime of one's own: each container is a thread of this process that runs a Rust function.
//! The kubelet is unchanged, so pods, restarts and logs work; `exec`, which this runtime does not implement,
//! says so in the API's words.
//!
//! Run it: `cargo run -p k8s-examples --bin custom_runtime`

#![expect(clippy::disallowed_methods, reason = "a runtime reports wall time")]

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, SystemTime},
};

use anyhow::Context;
use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use hyperkube::Cluster;
use k8s_core::{
    api::api::core::v1::{Pod, ServiceAccount},
    random,
};
use k8s_openapi::jiff::Timestamp;
use k8s_runtime::{
    ContainerId, ContainerSpec, ContainerState, ContainerStatus, Runtime, RuntimeError, RuntimeEvent,
    SandboxId, SandboxSpec, SandboxStatus,
};
use kube::api::AttachParams;
use serde_json::json;
use tokio::sync::broadcast;

/// A container's program: it gets its arguments, and returns its exit code.
type Program = fn(&mut Thread, &[String]) -> i32;

/// The programs that a container's command can name. There are no images.
const PROGRAMS: [(&str, Program); 2] = [
    ("greet", |thread, args| {
        thread.print(&format!("hello, {}", args.join(" ")));
        0
    }),
    ("count", |thread, _| {
        let mut ticks = 0_u64;
        while !thread.is_stopped_within(Duration::from_millis(10)) {
            ticks += 1;
            thread.print(&format!("tick {ticks}"));
        }
        0
    }),
];

/// A container's side of its thread.
struct Thread {
    log: File,
    stop: mpsc::Receiver<()>,
}

impl Thread {
    /// Writes a line in the CRI's log format, which the kubelet serves as the container's log.
    fn print(&mut self, line: &str) {
        // A full disk loses lines, as with any runtime.
        let _ = writeln!(self.log, "{} stdout F {line}", Timestamp::now());
    }

    fn is_stopped_within(&self, time: Duration) -> bool {
        !matches!(self.stop.recv_timeout(time), Err(mpsc::RecvTimeoutError::Timeout))
    }
}

/// The runtime. Cheap to clone; clones share the state.
#[derive(Clone)]
struct Threads {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<RuntimeEvent>,
}

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<SandboxId, SandboxStatus>,
    stops: BTreeMap<ContainerId, mpsc::Sender<()>>,
}

impl State {
    fn container(&mut self, id: &ContainerId) -> Result<&mut ContainerStatus, RuntimeError> {
        let mut all = self.sandboxes.values_mut().flat_map(|sandbox| &mut sandbox.containers);
        let found = all.find(|container| container.id == *id);
        found.ok_or_else(|| RuntimeError::NotFound { what: "container", id: id.0.clone() })
    }
}

impl Threads {
    fn new() -> Self {
        Threads { state: Arc::default(), events: broadcast::channel(1024).0 }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records an exit, once, and sends its event.
    fn exited(&self, id: &ContainerId, code: i32) {
        let mut state = self.state();
        state.stops.remove(id);
        let Ok(container) = state.container(id) else { return };
        let started_at = match container.state {
            ContainerState::Created => None,
            ContainerState::Running { started_at, .. } => Some(started_at),
            ContainerState::Exited { .. } => return,
        };
        container.state = ContainerState::Exited {
            started_at,
            finished_at: SystemTime::now(),
            code,
            oom_killed: false,
            message: String::new(),
        };
        let sandbox = container.sandbox.clone();
        // An error means that nobody subscribed.
        let _ = self.events.send(RuntimeEvent::Exited(sandbox, id.clone()));
    }

    fn containers_of(&self, sandbox: &SandboxId) -> Vec<ContainerId> {
        let state = self.state();
        let containers = state.sandboxes.get(sandbox).into_iter().flat_map(|s| &s.containers);
        containers.map(|container| container.id.clone()).collect()
    }
}

#[async_trait]
impl Runtime for Threads {
    async fn run_sandbox(&self, spec: &SandboxSpec) -> Result<SandboxStatus, RuntimeError> {
        let status = SandboxStatus {
            id: SandboxId(random::uuid().to_string()),
            created_at: SystemTime::now(),
            ready: true,
            netns: None,
            ips: Vec::new(),
            spec: spec.clone(),
            containers: Vec::new(),
        };
        self.state().sandboxes.insert(status.id.clone(), status.clone());
        Ok(status)
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        for container in self.containers_of(id) {
            self.stop(&container, Duration::ZERO).await?;
        }
        if let Some(sandbox) = self.state().sandboxes.get_mut(id) {
            sandbox.ready = false;
        }
        Ok(())
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        self.stop_sandbox(id).await?;
        self.state().sandboxes.remove(id);
        Ok(())
    }

    async fn create(&self, sandbox: &SandboxId, spec: &ContainerSpec) -> Result<ContainerId, RuntimeError> {
        let id = ContainerId(random::uuid().to_string());
        let status = ContainerStatus {
            id: id.clone(),
            sandbox: sandbox.clone(),
            created_at: SystemTime::now(),
            state: ContainerState::Created,
            spec: spec.clone(),
        };
        let mut state = self.state();
        let found = state.sandboxes.get_mut(sandbox);
        let found = found.ok_or_else(|| RuntimeError::NotFound { what: "sandbox", id: sandbox.0.clone() })?;
        found.containers.push(status);
        Ok(id)
    }

    async fn start(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let mut state = self.state();
        let container = state.container(id)?;
        let spec = &container.spec;
        let name = spec.command.first().map(String::as_str).unwrap_or_default();
        let program = PROGRAMS.iter().find(|(program, _)| *program == name);
        let (_, program) =
            *program.ok_or_else(|| RuntimeError::Start(format!("there is no function {name:?}")))?;
        let log = OpenOptions::new().create(true).append(true).open(&spec.log_path);
        let log = log.map_err(RuntimeError::io(format!("open {:?}", spec.log_path)))?;
        let args: Vec<String> = spec.command[1..].iter().chain(&spec.args).cloned().collect();
        container.state = ContainerState::Running { started_at: SystemTime::now(), pid: 0 };
        let started = RuntimeEvent::Started(container.sandbox.clone(), id.clone());
        let (sender, stop) = mpsc::channel();
        state.stops.insert(id.clone(), sender);
        drop(state);

        let _ = self.events.send(started);
        let (runtime, id) = (self.clone(), id.clone());
        std::thread::spawn(move || {
            let code = program(&mut Thread { log, stop }, &args);
            runtime.exited(&id, code);
        });
        Ok(())
    }

    /// Nothing can kill a thread: one that is not done after `grace` is left behind as if it had exited.
    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        let mut events = self.events();
        let asked = self.state().stops.remove(id).is_some_and(|stop| stop.send(()).is_ok());
        if asked {
            let exited = async {
                while let Some(event) = events.next().await {
                    if matches!(event, RuntimeEvent::Exited(_, of) if of == *id) {
                        return;
                    }
                }
            };
            // An error means that the grace period is over.
            let _ = tokio::time::timeout(grace, exited).await;
        }
        self.exited(id, 137);
        Ok(())
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.stop(id, Duration::ZERO).await?;
        for sandbox in self.state().sandboxes.values_mut() {
            sandbox.containers.retain(|container| container.id != *id);
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        Ok(self.state().sandboxes.values().cloned().collect())
    }

    fn events(&self) -> BoxStream<'static, RuntimeEvent> {
        futures::stream::unfold(self.events.subscribe(), async |mut events| match events.recv().await {
            Ok(event) => Some((event, events)),
            Err(broadcast::error::RecvError::Lagged(_)) => Some((RuntimeEvent::Resync, events)),
            Err(broadcast::error::RecvError::Closed) => None,
        })
        .boxed()
    }

    fn version(&self) -> String {
        "threads://0.1.0".to_owned()
    }
}

fn pod(name: &str, command: &[&str]) -> anyhow::Result<Pod> {
    Ok(serde_json::from_value(json!({"metadata": {"name": name}, "spec": {
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": "none", "command": command}],
    }}))?)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let cluster = Cluster::builder()
        .data_dir(directory.path().join("data"))
        .memory()
        .runtime(Threads::new())
        .listen("127.0.0.1:0".parse()?)
        .start()
        .await?;
    cluster.ready(Duration::from_secs(30)).await?;
    let client = cluster.client();
    // Pods are admitted once their service account exists.
    client.namespaced::<ServiceAccount>("default").wait_until("default", |_| true).await?;

    let pods = client.namespaced::<Pod>("default");
    let in_phase = |wanted: &'static str| {
        move |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(wanted)
    };
    pods.create(&pod("greeting", &["greet", "world"])?).await?;
    pods.create(&pod("counter", &["count"])?).await?;
    pods.wait_until("greeting", in_phase("Succeeded")).await?;
    pods.wait_until("counter", in_phase("Running")).await?;

    // Logs and exec as kubectl requests them.
    let kubeconfig = kube::config::Kubeconfig::from_yaml(&cluster.kubeconfig()?)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
    let remote: kube::Api<Pod> = kube::Api::default_namespaced(kube::Client::try_from(config)?);
    println!("log of greeting: {}", remote.logs("greeting", &Default::default()).await?.trim());
    let mut exec = remote.exec("counter", ["date"], &AttachParams::default()).await?;
    let status = exec.take_status().context("exec has no status")?.await.context("exec ended without one")?;
    println!("exec: {}", status.message.unwrap_or_default());

    pods.delete("counter", &Default::default()).await?;
    pods.wait_deleted("counter").await?;
    println!("counter is gone");
    cluster.down().await?;
    Ok(())
}
