//! A simulated runtime: sandboxes and containers exist in memory and follow a script. For tests without root
//! and for scale tests.
//!
//! Time is tokio's, so a test with a paused clock controls it. Guarantee: states and events are consistent as
//! in a real runtime (the status has the exit before the event is sent). Not here: streams (exec, attach and
//! port-forward are not supported).

#![expect(
    clippy::disallowed_methods,
    reason = "scripts follow virtual time, from one wall time on; an exit by itself needs a task"
)]

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::{
    api::{
        ContainerId, ContainerSpec, ContainerState, ContainerStats, ContainerStatus, ImageInfo, Images,
        Requests, Resources, Runtime, RuntimeError, RuntimeEvent, SandboxId, SandboxSpec, SandboxStatus,
    },
    images::Reference,
};

/// Behaviour of a simulated container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Behavior {
    /// Duration of the start.
    pub start_latency: Duration,
    /// Error message of the start. `None`: it succeeds.
    pub start_error: Option<String>,
    /// Delay and exit code of an exit by itself. `None`: it runs until it is stopped.
    pub exit: Option<(Duration, i32)>,
    /// Ignores the stop signal, so that it is killed after the grace period.
    pub ignores_stop: bool,
}

type Script = dyn Fn(&SandboxSpec, &ContainerSpec) -> Behavior + Send + Sync;

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<String, SandboxStatus>,
}

struct Inner {
    state: Mutex<State>,
    events: broadcast::Sender<RuntimeEvent>,
    script: Box<Script>,
    next: AtomicU64,
    /// The creation of the runtime, as wall time and on tokio's timer.
    epoch: (SystemTime, tokio::time::Instant),
}

/// The simulated runtime. Cheap to clone; clones share the state.
#[derive(Clone)]
pub struct Simulated(Arc<Inner>);

impl fmt::Debug for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulated").field("sandboxes", &self.state().sandboxes.len()).finish()
    }
}

impl Default for Simulated {
    /// Every container starts without delay and runs until it is stopped.
    fn default() -> Simulated {
        Simulated::scripted(|_, _| Behavior::default())
    }
}

impl Simulated {
    /// Calls `script` at each start of a container for its behaviour.
    ///
    /// ```
    /// use std::time::Duration;
    /// use k8s_runtime::{ContainerSpec, ContainerState, Runtime, SandboxSpec};
    /// use k8s_runtime::simulated::{Behavior, Simulated};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let runtime = Simulated::scripted(|_pod, container| match container.name.as_str() {
    ///     "job" => Behavior { exit: Some((Duration::ZERO, 3)), ..Behavior::default() },
    ///     _ => Behavior::default(),
    /// });
    /// let sandbox = runtime.run_sandbox(&SandboxSpec::default()).await?;
    /// let job = ContainerSpec { name: "job".into(), ..ContainerSpec::default() };
    /// let id = runtime.create(&sandbox.id, &job).await?;
    /// runtime.start(&id).await?;
    /// runtime.stop(&id, Duration::ZERO).await?; // does nothing if it has exited
    /// assert!(matches!(runtime.status(&id).await?.state, ContainerState::Exited { .. }));
    /// # Ok(()) }
    /// ```
    pub fn scripted(
        script: impl Fn(&SandboxSpec, &ContainerSpec) -> Behavior + Send + Sync + 'static,
    ) -> Simulated {
        Simulated(Arc::new(Inner {
            state: Mutex::default(),
            events: broadcast::channel(65_536).0,
            script: Box::new(script),
            next: AtomicU64::new(1),
            epoch: (SystemTime::now(), tokio::time::Instant::now()),
        }))
    }

    /// Lets a running container exit, as on a crash.
    ///
    /// ```
    /// use futures::StreamExt;
    /// use k8s_runtime::{ContainerSpec, Runtime, RuntimeEvent, SandboxSpec, simulated::Simulated};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let runtime = Simulated::default();
    /// let sandbox = runtime.run_sandbox(&SandboxSpec::default()).await?;
    /// let id = runtime.create(&sandbox.id, &ContainerSpec::default()).await?;
    /// runtime.start(&id).await?;
    /// let mut events = runtime.events();
    /// runtime.crash(&id, 139);
    /// assert_eq!(events.next().await, Some(RuntimeEvent::Exited(sandbox.id, id)));
    /// # Ok(()) }
    /// ```
    pub fn crash(&self, id: &ContainerId, code: i32) {
        self.end(id, code, false);
    }

    /// Lets a sandbox die with all of its containers.
    pub fn lose_sandbox(&self, id: &SandboxId) {
        let containers: Vec<ContainerId> = match self.state().sandboxes.get_mut(&id.0) {
            Some(sandbox) if sandbox.ready => {
                sandbox.ready = false;
                sandbox.containers.iter().map(|c| c.id.clone()).collect()
            }
            _ => return,
        };
        containers.iter().for_each(|c| self.end(c, 137, false));
        self.emit(RuntimeEvent::SandboxGone(id.clone()));
    }

    /// The time of tokio's timer.
    fn now(&self) -> SystemTime {
        self.0.epoch.0 + self.0.epoch.1.elapsed()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn emit(&self, event: RuntimeEvent) {
        // Fails without subscribers.
        let _ = self.0.events.send(event);
    }

    fn new_id(&self, what: &str) -> String {
        format!("{what}-{:08x}", self.0.next.fetch_add(1, Ordering::Relaxed))
    }

    fn with<T>(
        &self,
        id: &ContainerId,
        f: impl FnOnce(&SandboxSpec, &mut ContainerStatus) -> T,
    ) -> Result<T, RuntimeError> {
        self.state()
            .sandboxes
            .values_mut()
            .find_map(|s| s.containers.iter_mut().find(|c| &c.id == id).map(|c| (&s.spec, c)))
            .map(|(spec, container)| f(spec, container))
            .ok_or_else(|| RuntimeError::NotFound { what: "container", id: id.0.clone() })
    }

    /// Lets a running container exit, once. `created`: also a container that was never started.
    fn end(&self, id: &ContainerId, code: i32, created: bool) {
        let ended = self.with(id, |_, container| {
            let started_at = match &container.state {
                ContainerState::Running { started_at, .. } => Some(*started_at),
                ContainerState::Created if created => None,
                _ => return None,
            };
            let finished_at = self.now();
            container.state = ContainerState::Exited {
                started_at,
                finished_at,
                code,
                oom_killed: false,
                message: String::new(),
            };
            Some(container.sandbox.clone())
        });
        if let Ok(Some(sandbox)) = ended {
            self.emit(RuntimeEvent::Exited(sandbox, id.clone()));
        }
    }
}

#[async_trait]
impl Runtime for Simulated {
    async fn run_sandbox(&self, spec: &SandboxSpec) -> Result<SandboxStatus, RuntimeError> {
        let status = SandboxStatus {
            id: SandboxId(self.new_id("sandbox")),
            created_at: self.now(),
            ready: true,
            netns: None,
            ips: Vec::new(),
            spec: spec.clone(),
            containers: Vec::new(),
        };
        self.state().sandboxes.insert(status.id.0.clone(), status.clone());
        Ok(status)
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let containers: Vec<ContainerId> = match self.state().sandboxes.get_mut(&id.0) {
            Some(sandbox) => {
                sandbox.ready = false;
                sandbox.containers.iter().map(|c| c.id.clone()).collect()
            }
            None => return Ok(()),
        };
        containers.iter().for_each(|c| self.end(c, 137, true));
        Ok(())
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        self.stop_sandbox(id).await?;
        let removed = self.state().sandboxes.remove(&id.0);
        for container in removed.into_iter().flat_map(|s| s.containers) {
            self.emit(RuntimeEvent::Removed(id.clone(), container.id));
        }
        Ok(())
    }

    async fn create(&self, sandbox: &SandboxId, spec: &ContainerSpec) -> Result<ContainerId, RuntimeError> {
        let id = ContainerId(self.new_id("container"));
        let mut state = self.state();
        let found = state
            .sandboxes
            .get_mut(&sandbox.0)
            .ok_or_else(|| RuntimeError::NotFound { what: "sandbox", id: sandbox.0.clone() })?;
        if !found.ready {
            return Err(RuntimeError::Other(format!("sandbox {sandbox} is not ready")));
        }
        found.containers.push(ContainerStatus {
            id: id.clone(),
            sandbox: sandbox.clone(),
            created_at: self.now(),
            state: ContainerState::Created,
            spec: spec.clone(),
        });
        Ok(id)
    }

    async fn start(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let behavior = self.with(id, |sandbox, container| match container.state {
            ContainerState::Created => Ok((self.0.script)(sandbox, &container.spec)),
            _ => Err(RuntimeError::Other(format!(
                "container {id} cannot be started: it is not in state created"
            ))),
        })??;
        if !behavior.start_latency.is_zero() {
            tokio::time::sleep(behavior.start_latency).await;
        }
        let pid = self.0.next.fetch_add(1, Ordering::Relaxed) as i32;
        let error = behavior.start_error.clone();
        let sandbox = self.with(id, |_, container| {
            let now = self.now();
            container.state = match &error {
                None => ContainerState::Running { started_at: now, pid },
                Some(message) => ContainerState::Exited {
                    started_at: None,
                    finished_at: now,
                    code: 128,
                    oom_killed: false,
                    message: message.clone(),
                },
            };
            container.sandbox.clone()
        })?;
        if let Some(message) = error {
            return Err(RuntimeError::Start(message));
        }
        self.emit(RuntimeEvent::Started(sandbox, id.clone()));
        if let Some((after, code)) = behavior.exit {
            let (runtime, id) = (self.clone(), id.clone());
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                runtime.end(&id, code, false);
            });
        }
        Ok(())
    }

    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        let script = &self.0.script;
        let Ok(behavior) = self.with(id, |sandbox, container| script(sandbox, &container.spec)) else {
            return Ok(());
        };
        if behavior.ignores_stop {
            tokio::time::sleep(grace).await;
            self.end(id, 137, true);
        } else {
            self.end(id, if grace.is_zero() { 137 } else { 143 }, true);
        }
        Ok(())
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.end(id, 137, true);
        let mut removed = None;
        for sandbox in self.state().sandboxes.values_mut() {
            let before = sandbox.containers.len();
            sandbox.containers.retain(|c| &c.id != id);
            if sandbox.containers.len() < before {
                removed = Some(sandbox.id.clone());
            }
        }
        if let Some(sandbox) = removed {
            self.emit(RuntimeEvent::Removed(sandbox, id.clone()));
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        Ok(self.state().sandboxes.values().cloned().collect())
    }

    fn events(&self) -> BoxStream<'static, RuntimeEvent> {
        futures::stream::unfold(self.0.events.subscribe(), |mut receiver| async move {
            match receiver.recv().await {
                Ok(event) => Some((event, receiver)),
                Err(RecvError::Lagged(_)) => Some((RuntimeEvent::Resync, receiver)),
                Err(RecvError::Closed) => None,
            }
        })
        .boxed()
    }

    async fn status(&self, id: &ContainerId) -> Result<ContainerStatus, RuntimeError> {
        self.with(id, |_, container| container.clone())
    }

    async fn update(
        &self,
        id: &ContainerId,
        resources: &Resources,
        requests: Requests,
    ) -> Result<(), RuntimeError> {
        self.with(id, |_, container| {
            container.spec.resources.merge(resources);
            container.spec.requests = requests;
        })
    }

    async fn update_sandbox(&self, id: &SandboxId, resources: &Resources) -> Result<(), RuntimeError> {
        let mut state = self.state();
        let sandbox = state
            .sandboxes
            .get_mut(&id.0)
            .ok_or_else(|| RuntimeError::NotFound { what: "sandbox", id: id.0.clone() })?;
        sandbox.spec.resources.merge(resources);
        Ok(())
    }

    async fn stats(&self, id: &ContainerId) -> Result<ContainerStats, RuntimeError> {
        let now = self.now();
        self.with(id, |_, container| match container.state {
            ContainerState::Running { started_at, .. } => usage(&container.spec, started_at, now),
            ContainerState::Created | ContainerState::Exited { .. } => ContainerStats::default(),
        })
    }

    fn version(&self) -> String {
        format!("simulated://{}", env!("CARGO_PKG_VERSION"))
    }
}

/// Usage of a running container: what it requests.
fn usage(spec: &ContainerSpec, started_at: SystemTime, now: SystemTime) -> ContainerStats {
    let running = now.duration_since(started_at).unwrap_or_default().as_nanos();
    let cpu = running * u128::from(spec.requests.cpu_milli) / 1000;
    let memory = spec.requests.memory_bytes;
    ContainerStats {
        cpu_nanos: u64::try_from(cpu).unwrap_or(u64::MAX),
        memory_bytes: memory,
        working_set_bytes: memory,
        rss_bytes: memory,
        pids: 1,
    }
}

/// A simulated image store in which every valid reference exists.
#[derive(Clone, Copy, Debug, Default)]
pub struct SimulatedImages;

impl SimulatedImages {
    fn image(reference: &str) -> Result<ImageInfo, RuntimeError> {
        if reference.starts_with("sha256:") {
            return Ok(ImageInfo { id: reference.to_owned(), ..ImageInfo::default() });
        }
        let name = Reference::parse(reference)?.to_string();
        // Any stable number in the format of a digest.
        let seed = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let id = format!("sha256:{:064x}", seed);
        Ok(ImageInfo { id, tags: vec![name], size: 1 << 20, ..ImageInfo::default() })
    }
}

#[async_trait]
impl Images for SimulatedImages {
    async fn find(&self, reference: &str) -> Result<Option<ImageInfo>, RuntimeError> {
        Self::image(reference).map(Some)
    }

    async fn pull(
        &self,
        reference: &str,
        _auth: Option<(String, String)>,
    ) -> Result<ImageInfo, RuntimeError> {
        Self::image(reference)
    }

    async fn list(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        Ok(Vec::new())
    }

    async fn remove(&self, _reference: &str) -> Result<(), RuntimeError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_scripted_life() {
        let runtime = Simulated::scripted(|_, container| match container.name.as_str() {
            "job" => Behavior { exit: Some((Duration::from_secs(5), 3)), ..Behavior::default() },
            "broken" => Behavior { start_error: Some("no".into()), ..Behavior::default() },
            "deaf" => Behavior { ignores_stop: true, ..Behavior::default() },
            _ => Behavior::default(),
        });
        let mut events = runtime.events();
        let sandbox = runtime.run_sandbox(&SandboxSpec::default()).await.expect("sandbox").id;
        let mut ids = BTreeMap::new();
        for name in ["job", "web", "deaf"] {
            let spec = ContainerSpec { name: name.into(), ..ContainerSpec::default() };
            let id = runtime.create(&sandbox, &spec).await.expect("create");
            runtime.start(&id).await.expect("start");
            assert_eq!(events.next().await, Some(RuntimeEvent::Started(sandbox.clone(), id.clone())));
            ids.insert(name, id);
        }
        assert_eq!(events.next().await, Some(RuntimeEvent::Exited(sandbox.clone(), ids["job"].clone())));
        let code = |state| match state {
            ContainerState::Exited { code, .. } => Some(code),
            _ => None,
        };
        assert_eq!(code(runtime.status(&ids["job"]).await.expect("status").state), Some(3));
        runtime.stop(&ids["web"], Duration::from_secs(30)).await.expect("stop");
        let begin = tokio::time::Instant::now();
        runtime.stop(&ids["deaf"], Duration::from_secs(30)).await.expect("stop");
        assert_eq!(begin.elapsed(), Duration::from_secs(30));
        assert_eq!(code(runtime.status(&ids["web"]).await.expect("status").state), Some(143));
        assert_eq!(code(runtime.status(&ids["deaf"]).await.expect("status").state), Some(137));
        let broken = ContainerSpec { name: "broken".into(), ..ContainerSpec::default() };
        let broken = runtime.create(&sandbox, &broken).await.expect("create");
        assert!(matches!(runtime.start(&broken).await, Err(RuntimeError::Start(_))));
        runtime.remove_sandbox(&sandbox).await.expect("remove");
        assert!(runtime.list().await.expect("list").is_empty());
        assert!(runtime.status(&ids["web"]).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn containers_use_their_requests() {
        let runtime = Simulated::default();
        let sandbox = runtime.run_sandbox(&SandboxSpec::default()).await.expect("sandbox").id;
        let requests = Requests { cpu_milli: 250, memory_bytes: 64 << 20 };
        let spec = ContainerSpec { requests, ..ContainerSpec::default() };
        let id = runtime.create(&sandbox, &spec).await.expect("create");
        assert_eq!(runtime.stats(&id).await.expect("stats").working_set_bytes, 0);
        runtime.start(&id).await.expect("start");
        tokio::time::sleep(Duration::from_secs(8)).await;
        let stats = runtime.stats(&id).await.expect("stats");
        assert_eq!((stats.cpu_nanos, stats.working_set_bytes), (2_000_000_000, 64 << 20));
    }

    #[tokio::test]
    async fn every_image_exists() {
        let image = SimulatedImages.find("nginx").await.expect("find").expect("exists");
        assert_eq!(image.tags, ["docker.io/library/nginx:latest"]);
        assert!(SimulatedImages.pull("NOT valid", None).await.is_err());
    }
}
