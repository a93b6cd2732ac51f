//! A fake runtime without processes: the command of a container is its script.
//!
//! `run` runs until it is stopped; `stubborn` ignores the stop signal; `exit N` ends at once; `after S N`
//! ends after S seconds with code N; `bad` cannot be started.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use futures::{FutureExt, StreamExt, stream::BoxStream};
use k8s_core::clock::Clock;
use k8s_net::pod::{PodAttachment, PodNetwork, PodNetworkError};
use k8s_runtime::*;
use tokio::sync::broadcast;

#[derive(Default)]
struct State {
    sandboxes: Vec<SandboxStatus>,
    next: u32,
    log: Vec<String>,
    /// Exit codes of exec commands.
    exec: HashMap<String, i32>,
    images: Vec<String>,
    fail_sandboxes: u32,
    stats_read: usize,
    /// Bytes of writable layers by the container's name.
    layers: HashMap<String, u64>,
}

#[derive(Clone)]
pub struct FakeRuntime {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<RuntimeEvent>,
    clock: Clock,
}

impl FakeRuntime {
    pub fn new(clock: Clock) -> Self {
        let state = State { images: vec!["here:1".into()], ..State::default() };
        FakeRuntime { state: Arc::new(Mutex::new(state)), events: broadcast::channel(1000).0, clock }
    }

    fn now(&self) -> SystemTime {
        self.clock.now().into()
    }

    /// The calls of the runtime so far.
    pub fn log(&self) -> Vec<String> {
        self.state.lock().unwrap().log.clone()
    }

    fn note(&self, text: String) {
        self.state.lock().unwrap().log.push(text);
    }

    pub fn set_exec(&self, command: &str, code: i32) {
        self.state.lock().unwrap().exec.insert(command.to_owned(), code);
    }

    pub fn add_image(&self, image: &str) {
        self.state.lock().unwrap().images.push(image.to_owned());
    }

    pub fn set_layer(&self, container: &str, bytes: u64) {
        self.state.lock().unwrap().layers.insert(container.to_owned(), bytes);
    }

    pub fn fail_sandboxes(&self, times: u32) {
        self.state.lock().unwrap().fail_sandboxes = times;
    }

    /// The number of calls of [`Runtime::stats`] so far.
    pub fn stats_read(&self) -> usize {
        self.state.lock().unwrap().stats_read
    }

    pub fn sandboxes(&self) -> Vec<SandboxStatus> {
        self.state.lock().unwrap().sandboxes.clone()
    }

    /// Returns the newest container with a name.
    pub fn container(&self, name: &str) -> Option<ContainerStatus> {
        let all = self.sandboxes().into_iter().flat_map(|s| s.containers);
        all.filter(|c| c.spec.name == name).max_by_key(|c| c.spec.attempt)
    }

    /// Lets a container's process exit.
    pub fn end(&self, id: &ContainerId, code: i32) {
        let now = self.now();
        let mut state = self.state.lock().unwrap();
        for sandbox in &mut state.sandboxes {
            for container in &mut sandbox.containers {
                let ContainerState::Running { started_at, .. } = container.state else { continue };
                if &container.id == id {
                    container.state = ContainerState::Exited {
                        started_at: Some(started_at),
                        finished_at: now,
                        code,
                        oom_killed: false,
                        message: String::new(),
                    };
                    let _ = self.events.send(RuntimeEvent::Exited(sandbox.id.clone(), id.clone()));
                }
            }
        }
    }

    /// Lets a sandbox die with everything in it.
    pub fn kill_sandbox(&self, id: &SandboxId) {
        let containers = {
            let mut state = self.state.lock().unwrap();
            let sandbox = state.sandboxes.iter_mut().find(|s| &s.id == id).unwrap();
            sandbox.ready = false;
            sandbox.containers.iter().map(|c| c.id.clone()).collect::<Vec<_>>()
        };
        for container in containers {
            self.end(&container, 137);
        }
        let _ = self.events.send(RuntimeEvent::SandboxGone(id.clone()));
    }
}

fn not_found(id: &str) -> RuntimeError {
    RuntimeError::NotFound { what: "container", id: id.to_owned() }
}

impl FakeRuntime {
    /// A command that reads all of its input, goes on for a while, and then says (in the log) what it read,
    /// unless it was killed.
    fn collect(&self) -> Attached {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (write, mut read) = tokio::io::duplex(16);
        let (mut out, stdout) = tokio::io::duplex(16);
        let (ended, end) = tokio::sync::oneshot::channel();
        let runtime = self.clone();
        tokio::spawn(async move {
            let mut text = String::new();
            read.read_to_string(&mut text).await.unwrap();
            // More than the pipe holds: the reader must keep reading.
            out.write_all(&[b'x'; 1000]).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            let how = if ended.is_closed() { "killed" } else { "collected" };
            runtime.note(format!("{how} {text}"));
            let _ = ended.send(());
        });
        Attached {
            stdin: Some(Box::new(write)),
            stdout: Some(Box::new(stdout)),
            stderr: None,
            resize: None,
            exit: async move {
                let _ = end.await;
                Ok(0)
            }
            .boxed(),
        }
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn run_sandbox(&self, spec: &SandboxSpec) -> Result<SandboxStatus, RuntimeError> {
        let now = self.now();
        let mut state = self.state.lock().unwrap();
        if state.fail_sandboxes > 0 {
            state.fail_sandboxes -= 1;
            return Err(RuntimeError::Other("no luck".into()));
        }
        state.next += 1;
        let id = SandboxId(format!("s{}", state.next));
        state.log.push(format!("sandbox {} {}", spec.name, spec.attempt));
        let sandbox = SandboxStatus {
            netns: Some(format!("/fake/{id}").into()),
            id,
            created_at: now,
            ready: true,
            ips: Vec::new(),
            spec: spec.clone(),
            containers: Vec::new(),
        };
        state.sandboxes.push(sandbox.clone());
        Ok(sandbox)
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let mut state = self.state.lock().unwrap();
        state.log.push(format!("stop-sandbox {id}"));
        if let Some(sandbox) = state.sandboxes.iter_mut().find(|s| &s.id == id) {
            sandbox.ready = false;
        }
        Ok(())
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let mut state = self.state.lock().unwrap();
        state.log.push(format!("remove-sandbox {id}"));
        state.sandboxes.retain(|s| &s.id != id);
        Ok(())
    }

    async fn create(&self, sandbox: &SandboxId, spec: &ContainerSpec) -> Result<ContainerId, RuntimeError> {
        let now = self.now();
        let mut state = self.state.lock().unwrap();
        state.next += 1;
        let id = ContainerId(format!("c{}", state.next));
        state.log.push(format!("create {} {}", spec.name, spec.attempt));
        let owner =
            state.sandboxes.iter_mut().find(|s| &s.id == sandbox).ok_or_else(|| not_found(&sandbox.0))?;
        owner.containers.push(ContainerStatus {
            id: id.clone(),
            sandbox: sandbox.clone(),
            created_at: now,
            state: ContainerState::Created,
            spec: spec.clone(),
        });
        Ok(id)
    }

    async fn start(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let now = self.now();
        let command = {
            let mut state = self.state.lock().unwrap();
            let mut all = state.sandboxes.iter_mut().flat_map(|s| &mut s.containers);
            let container = all.find(|c| &c.id == id).ok_or_else(|| not_found(&id.0))?;
            if container.spec.command.first().is_some_and(|c| c == "bad") {
                container.state = ContainerState::Exited {
                    started_at: None,
                    finished_at: now,
                    code: 128,
                    oom_killed: false,
                    message: "not executable".into(),
                };
                return Err(RuntimeError::Start("not executable".into()));
            }
            container.state = ContainerState::Running { started_at: now, pid: 1 };
            let (name, sandbox) = (container.spec.name.clone(), container.sandbox.clone());
            let command = container.spec.command.clone();
            state.log.push(format!("start {name}"));
            let _ = self.events.send(RuntimeEvent::Started(sandbox, id.clone()));
            command
        };
        let number = |n: usize| command.get(n).and_then(|t| t.parse::<u64>().ok()).unwrap_or(0);
        match command.first().map(String::as_str) {
            Some("exit") => self.end(id, number(1) as i32),
            Some("after") => {
                let (this, id, wait, code) = (self.clone(), id.clone(), number(1), number(2) as i32);
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs(wait)).await;
                    this.end(&id, code);
                });
            }
            _ => {}
        }
        Ok(())
    }

    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        let status = self.status(id).await?;
        self.note(format!("stop {} {}", status.spec.name, grace.as_secs()));
        let stubborn = status.spec.command.first().is_some_and(|c| c == "stubborn");
        if stubborn {
            tokio::time::sleep(grace).await;
        }
        self.end(id, if stubborn { 137 } else { 0 });
        Ok(())
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let mut state = self.state.lock().unwrap();
        for sandbox in &mut state.sandboxes {
            sandbox.containers.retain(|c| &c.id != id);
        }
        state.log.push(format!("remove {id}"));
        Ok(())
    }

    async fn list(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        Ok(self.sandboxes())
    }

    fn events(&self) -> BoxStream<'static, RuntimeEvent> {
        let receiver = self.events.subscribe();
        futures::stream::unfold(receiver, |mut receiver| async move {
            match receiver.recv().await {
                Ok(event) => Some((event, receiver)),
                Err(broadcast::error::RecvError::Lagged(_)) => Some((RuntimeEvent::Resync, receiver)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        })
        .boxed()
    }

    async fn update(
        &self,
        id: &ContainerId,
        resources: &Resources,
        requests: Requests,
    ) -> Result<(), RuntimeError> {
        let name = self.status(id).await?.spec.name;
        self.note(format!("update {name}"));
        let mut state = self.state.lock().unwrap();
        let mut all = state.sandboxes.iter_mut().flat_map(|s| &mut s.containers);
        let container = all.find(|c| &c.id == id).unwrap();
        container.spec.resources.merge(resources);
        container.spec.requests = requests;
        Ok(())
    }

    async fn update_sandbox(&self, id: &SandboxId, resources: &Resources) -> Result<(), RuntimeError> {
        self.note("update sandbox".into());
        let mut state = self.state.lock().unwrap();
        let sandbox = state.sandboxes.iter_mut().find(|s| &s.id == id).ok_or_else(|| not_found(&id.0))?;
        sandbox.spec.resources.merge(resources);
        Ok(())
    }

    /// Every running container uses half a CPU and 64 MiB.
    async fn stats(&self, id: &ContainerId) -> Result<ContainerStats, RuntimeError> {
        let ContainerState::Running { started_at, .. } = self.status(id).await?.state else {
            return Err(not_found(&id.0));
        };
        self.state.lock().unwrap().stats_read += 1;
        let age = self.now().duration_since(started_at).unwrap();
        let memory = 64 << 20;
        Ok(ContainerStats {
            cpu_nanos: u64::try_from(age.as_nanos() / 2).unwrap(),
            memory_bytes: memory,
            working_set_bytes: memory,
            rss_bytes: memory,
            pids: 1,
        })
    }

    async fn disk_usage(&self, id: &ContainerId, _: u64) -> Result<DiskUsage, RuntimeError> {
        let name = self.status(id).await?.spec.name;
        let bytes = self.state.lock().unwrap().layers.get(&name).copied().unwrap_or(0);
        Ok(DiskUsage { bytes, inodes: 1 })
    }

    async fn exec(&self, _: &ContainerId, request: &ExecRequest) -> Result<Attached, RuntimeError> {
        let command = request.command.join(" ");
        self.note(format!("exec {command}"));
        let code = self.state.lock().unwrap().exec.get(&command).copied().unwrap_or(0);
        if command == "collect" {
            return Ok(self.collect());
        }
        // `cat` echoes its input; every other command prints its own name.
        let (stdin, stdout): (_, Box<dyn tokio::io::AsyncRead + Send + Unpin>) = if command == "cat" {
            let (write, read) = tokio::io::duplex(1024);
            (Some(Box::new(write) as Box<dyn tokio::io::AsyncWrite + Send + Unpin>), Box::new(read))
        } else {
            (None, Box::new(std::io::Cursor::new(command.into_bytes())))
        };
        Ok(Attached {
            stdin,
            stdout: Some(stdout),
            stderr: None,
            resize: None,
            exit: async move { Ok(code) }.boxed(),
        })
    }

    async fn attach(&self, _: &ContainerId) -> Result<Attached, RuntimeError> {
        Ok(Attached {
            stdin: None,
            stdout: Some(Box::new(std::io::Cursor::new(b"attached".to_vec()))),
            stderr: None,
            resize: None,
            exit: async { Ok(3) }.boxed(),
        })
    }

    async fn port_forward(&self, _: &SandboxId, port: u16) -> Result<Box<dyn Stream>, RuntimeError> {
        if port == 1 {
            return Err(RuntimeError::Other("connection refused".into()));
        }
        let (here, there) = tokio::io::duplex(1024);
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(there);
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
        Ok(Box::new(here))
    }

    fn version(&self) -> String {
        "fake://1".into()
    }
}

#[async_trait]
impl Images for FakeRuntime {
    async fn find(&self, reference: &str) -> Result<Option<ImageInfo>, RuntimeError> {
        if reference.contains("..") {
            return Err(RuntimeError::Invalid("invalid reference format".into()));
        }
        let there = self.state.lock().unwrap().images.iter().any(|i| i == reference);
        Ok(there.then(|| image(reference)))
    }

    async fn pull(&self, reference: &str, _: Option<(String, String)>) -> Result<ImageInfo, RuntimeError> {
        self.note(format!("pull {reference}"));
        let found = self.find(reference).await?;
        found.ok_or_else(|| RuntimeError::Other(format!("{reference}: not found")))
    }

    async fn list(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        Ok(self.state.lock().unwrap().images.iter().map(|name| image(name)).collect())
    }

    async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        self.note(format!("remove-image {id}"));
        self.state.lock().unwrap().images.retain(|name| image(name).id != id);
        Ok(())
    }
}

fn image(name: &str) -> ImageInfo {
    let id = if name == "here:1" { "sha256:1".into() } else { format!("sha256:{name}") };
    ImageInfo { id, tags: vec![name.into()], ..ImageInfo::default() }
}

#[async_trait]
impl PodNetwork for FakeRuntime {
    async fn attach(&self, pod: &PodAttachment) -> Result<Vec<std::net::IpAddr>, PodNetworkError> {
        self.note(format!("attach {}", pod.name));
        let number: u8 = pod.sandbox[1..].parse().unwrap_or(0);
        Ok(vec![[10, 42, 0, number].into()])
    }

    async fn detach(&self, pod: &PodAttachment) -> Result<(), PodNetworkError> {
        self.note(format!("detach {}", pod.name));
        Ok(())
    }

    async fn retain(&self, _: &[String]) -> Result<(), PodNetworkError> {
        Ok(())
    }
}
