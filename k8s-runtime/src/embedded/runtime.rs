//! Implements [`Runtime`] for [`Embedded`].

#![expect(clippy::disallowed_methods, reason = "the kernel runs containers in real time")]

use std::{
    collections::BTreeMap,
    os::unix::net::UnixStream,
    path::Path,
    sync::{Arc, PoisonError},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use tokio::sync::{broadcast::error::RecvError, watch};

use super::{
    Embedded,
    client::ShimClient,
    model::{Container, Sandbox},
    protocol::{ContainerRecord, Reply, Request, SandboxRecord, write_json},
    sandbox_files, streams,
    zygote::Zygote,
};
use crate::{
    api::{
        Attached, ContainerId, ContainerSpec, ContainerState, ContainerStats, ContainerStatus, ExecRequest,
        Requests, Resources, Runtime, RuntimeError, RuntimeEvent, SandboxId, SandboxSpec, SandboxStatus,
        Stream,
    },
    beneath::{self, DiskUsage},
    images::ResolvedImage,
};

/// Maximum wait for a container to exit after SIGKILL. (A process in uninterruptible sleep does not exit.)
const DYING: Duration = Duration::from_secs(30);

/// Maximum time to measure a container's disk usage.
const MEASURING: Duration = Duration::from_secs(30);

fn new_id() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

impl Embedded {
    fn sandbox_record(&self, spec: &SandboxSpec) -> SandboxRecord {
        let id = new_id();
        let parent = spec.cgroup_parent.trim_matches('/');
        let cgroup = if parent.is_empty() { format!("pod{id}") } else { parent.to_owned() };
        SandboxRecord {
            created_at: SystemTime::now(),
            netns: (!spec.host_network).then(|| self.config.run.join("netns").join(&id)),
            shm: (!spec.host_ipc).then(|| self.config.run.join("shm").join(&id)),
            cgroup: format!("{}/{cgroup}", self.config.cgroup_root),
            spec: spec.clone(),
            id,
        }
    }

    /// Makes the zygote fork a shim; restarts the zygote if it has ended.
    fn fork_shim(&self, dir: &Path) -> Result<UnixStream, RuntimeError> {
        let mut slot = self.zygote.lock().unwrap_or_else(PoisonError::into_inner);
        for attempt in 0..2 {
            let zygote = match slot.take() {
                Some(zygote) => zygote,
                None => Zygote::start(&self.config.name, &self.config.shims_cgroup())
                    .map_err(RuntimeError::io("start the zygote"))?,
            };
            let (ours, theirs) = UnixStream::pair().map_err(RuntimeError::io("socketpair"))?;
            match zygote.spawn(dir, theirs.into()) {
                Ok(()) => {
                    *slot = Some(zygote);
                    return Ok(ours);
                }
                Err(error) if attempt == 0 => tracing::warn!(%error, "the zygote is gone; starting another"),
                Err(error) => return Err(RuntimeError::io("ask the zygote for a shim")(error)),
            }
        }
        Err(RuntimeError::Other("no zygote".to_owned()))
    }

    async fn make_sandbox(&self, dir: &Path, record: &SandboxRecord) -> Result<ShimClient, RuntimeError> {
        let file = dir.join("sandbox.json");
        std::fs::create_dir_all(dir.join("c")).map_err(RuntimeError::io(format!("make {dir:?}")))?;
        write_json(&file, record).map_err(RuntimeError::io(format!("write {file:?}")))?;
        let stream = self.fork_shim(dir)?;
        let (client, greeting) = self.model.listen(&record.id, stream)?;
        match greeting.await {
            Ok(Ok(_pid)) => Ok(client),
            Ok(Err(message)) => Err(RuntimeError::Other(format!("make the sandbox: {message}"))),
            Err(_) => {
                let log = std::fs::read_to_string(dir.join("shim.log")).unwrap_or_default();
                Err(RuntimeError::Other(format!("the sandbox's shim died at its start: {}", log.trim())))
            }
        }
    }

    fn client(&self, id: &SandboxId) -> Result<ShimClient, RuntimeError> {
        let sandboxes = self.model.sandboxes();
        let sandbox = sandboxes
            .get(&id.0)
            .ok_or_else(|| RuntimeError::NotFound { what: "sandbox", id: id.0.clone() })?;
        sandbox.client.clone().ok_or_else(|| RuntimeError::Other(format!("sandbox {id} is not ready")))
    }

    /// Returns the client of a container's shim. `None`: the container or its shim is gone.
    fn container_client(&self, id: &ContainerId) -> Result<Option<ShimClient>, RuntimeError> {
        self.model.with_container(id, |sandbox, _| sandbox.client.clone())
    }

    async fn call(
        &self,
        id: &ContainerId,
        request: Request,
    ) -> Result<(Reply, Vec<std::os::fd::OwnedFd>), RuntimeError> {
        let client = self
            .container_client(id)?
            .ok_or_else(|| RuntimeError::Other(format!("the sandbox of container {id} is not ready")))?;
        client.call("container", &id.0, request).await
    }

    fn watch(&self, id: &ContainerId) -> Result<watch::Receiver<ContainerState>, RuntimeError> {
        self.model.with_container(id, |_, container| container.state.subscribe())
    }

    async fn signal(&self, id: &ContainerId, signal: i32, all: bool) -> Result<(), RuntimeError> {
        match self.call(id, Request::Signal { id: id.0.clone(), signal, all }).await {
            Ok(_) | Err(RuntimeError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Waits for the exit code.
async fn ended(mut state: watch::Receiver<ContainerState>) -> Option<i32> {
    loop {
        if let ContainerState::Exited { code, .. } = &*state.borrow_and_update() {
            return Some(*code);
        }
        state.changed().await.ok()?;
    }
}

fn container_record(
    id: String,
    spec: &ContainerSpec,
    image: &ResolvedImage,
    pod_cgroup: &str,
) -> Result<ContainerRecord, RuntimeError> {
    let mut args = if spec.command.is_empty() { image.entrypoint.clone() } else { spec.command.clone() };
    if !spec.args.is_empty() {
        args.extend(spec.args.iter().cloned());
    } else if spec.command.is_empty() {
        args.extend(image.cmd.iter().cloned());
    }
    if args.is_empty() {
        return Err(RuntimeError::Start("no command specified".to_owned()));
    }
    let mut env: Vec<(String, String)> = Vec::new();
    for (name, value) in image.env.iter().chain(&spec.env) {
        match env.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => old.clone_from(value),
            None => env.push((name.clone(), value.clone())),
        }
    }
    let working_dir = spec.working_dir.as_ref().filter(|w| !w.is_empty()).unwrap_or(&image.working_dir);
    let stop_signal = spec.stop_signal.as_deref().or(image.stop_signal.as_deref()).unwrap_or("SIGTERM");
    Ok(ContainerRecord {
        created_at: SystemTime::now(),
        args,
        env,
        working_dir: if working_dir.is_empty() { "/".to_owned() } else { working_dir.clone() },
        image_user: image.user.clone(),
        layers_dir: image.layers_dir.clone(),
        layers: image.layers.clone(),
        volume_layers: BTreeMap::new(),
        stop_signal: parse_signal(stop_signal)
            .ok_or_else(|| RuntimeError::Invalid(format!("invalid stop signal {stop_signal:?}")))?,
        cgroup: format!("{pod_cgroup}/{id}"),
        spec: spec.clone(),
        id,
    })
}

/// Parses a signal: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.
fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    if let Some(offset) = name.strip_prefix("SIGRTMIN") {
        let offset: i32 = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse().ok()? };
        return (0..=30).contains(&offset).then_some(34 + offset);
    }
    name.parse::<nix::sys::signal::Signal>().ok().map(|s| s as i32)
}

#[async_trait]
impl Runtime for Embedded {
    async fn run_sandbox(&self, spec: &SandboxSpec) -> Result<SandboxStatus, RuntimeError> {
        let record = self.sandbox_record(spec);
        let dir = self.config.sandbox(&record.id);
        match self.make_sandbox(&dir, &record).await {
            Ok(client) => {
                let sandbox = Sandbox { record, client: Some(client), containers: BTreeMap::new() };
                let status = sandbox.status();
                self.model.sandboxes().insert(status.id.0.clone(), sandbox);
                Ok(status)
            }
            Err(error) => {
                let _ = sandbox_files::release(&record, &self.cgroups);
                let _ = beneath::remove_all(&dir);
                Err(error)
            }
        }
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        let Ok(client) = self.client(id) else { return Ok(()) };
        let result = client.call("sandbox", &id.0, Request::Shutdown).await;
        match result {
            Ok((reply, _)) => {
                if let Some(sandbox) = self.model.sandboxes().get_mut(&id.0) {
                    sandbox.client = None;
                }
                if let Reply::States(states) = reply {
                    self.model.set_states(&id.0, &states);
                }
                Ok(())
            }
            // The shim has died in between: the end of its connection triggers the clean-up.
            Err(_) if self.client(id).is_err() => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        self.stop_sandbox(id).await?;
        let Some((record, cgroups)) = self.model.sandboxes().get(&id.0).map(|s| {
            (s.record.clone(), s.containers.values().map(|c| c.record.cgroup.clone()).collect::<Vec<_>>())
        }) else {
            return Ok(());
        };
        let (all, dir) = (self.cgroups.clone(), self.config.sandbox(&id.0));
        // Check all resources again: the shim may have died, or the clean-up may run at the same time.
        blocking(move || {
            sandbox_files::release_by_force(&record, &cgroups, &all)?;
            match beneath::remove_all(&dir) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            }
        })
        .await
        .map_err(RuntimeError::io(format!("remove sandbox {id}")))?;
        let removed = self.model.sandboxes().remove(&id.0);
        for container in removed.into_iter().flat_map(|s| s.containers.into_keys()) {
            self.model.emit(RuntimeEvent::Removed(id.clone(), ContainerId(container)));
        }
        Ok(())
    }

    async fn create(&self, sandbox: &SandboxId, spec: &ContainerSpec) -> Result<ContainerId, RuntimeError> {
        let client = self.client(sandbox)?;
        let image = self.images.resolve(&spec.image)?;
        let pod_cgroup = self
            .model
            .sandboxes()
            .get(&sandbox.0)
            .map(|s| s.record.cgroup.clone())
            .ok_or_else(|| RuntimeError::NotFound { what: "sandbox", id: sandbox.0.clone() })?;
        let mut record = container_record(new_id(), spec, &image, &pod_cgroup)?;
        for id in spec.mounts.iter().map(|mount| &mount.image).filter(|id| !id.is_empty()) {
            record.volume_layers.insert(id.clone(), self.images.resolve(id)?.layers.clone());
        }
        let id = record.id.clone();
        let dir = self.config.sandbox(&sandbox.0);
        let own = dir.join("c").join(&id);
        std::fs::create_dir_all(&own).map_err(RuntimeError::io(format!("make {own:?}")))?;
        let file = own.join("container.json");
        let made = match write_json(&file, &record).map_err(RuntimeError::io(format!("write {file:?}"))) {
            Ok(()) => client.call("sandbox", &sandbox.0, Request::Create { id: id.clone() }).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = made {
            let cleanup_id = id.clone();
            let _ = blocking(move || sandbox_files::remove_container(&dir, &cleanup_id)).await;
            return Err(error);
        }
        if let Some(known) = self.model.sandboxes().get_mut(&sandbox.0) {
            let state = watch::Sender::new(ContainerState::Created);
            known.containers.insert(id.clone(), Container { record, state });
        }
        Ok(ContainerId(id))
    }

    async fn start(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let sandbox = self.model.with_container(id, |s, _| SandboxId(s.record.id.clone()))?;
        let result = self.call(id, Request::Start { id: id.0.clone() }).await;
        match result {
            // The shim's event precedes this reply and has updated the model.
            Ok(_) => Ok(()),
            Err(error) => {
                if let Ok(client) = self.client(&sandbox)
                    && let Ok((Reply::States(states), _)) =
                        client.call("sandbox", &sandbox.0, Request::List).await
                {
                    self.model.set_states(&sandbox.0, &states);
                }
                Err(error)
            }
        }
    }

    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        let (client, signal, state) = match self
            .model
            .with_container(id, |s, c| (s.client.clone(), c.record.stop_signal, c.state.subscribe()))
        {
            Ok((Some(client), signal, state)) => (client, signal, state),
            Ok((None, ..)) | Err(_) => return Ok(()),
        };
        drop(client);
        if matches!(&*state.borrow(), ContainerState::Exited { .. }) {
            return Ok(());
        }
        let created = matches!(&*state.borrow(), ContainerState::Created);
        if !grace.is_zero() && !created {
            self.signal(id, signal, false).await?;
            if tokio::time::timeout(grace, ended(state.clone())).await.is_ok() {
                return Ok(());
            }
        }
        self.signal(id, libc::SIGKILL, true).await?;
        if created {
            return Ok(());
        }
        match tokio::time::timeout(DYING, ended(state)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(RuntimeError::Other(format!("container {id} does not die"))),
        }
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let Ok((sandbox, client, cgroup)) = self.model.with_container(id, |s, c| {
            (SandboxId(s.record.id.clone()), s.client.clone(), c.record.cgroup.clone())
        }) else {
            return Ok(());
        };
        if let Some(client) = client {
            client.call("container", &id.0, Request::Remove { id: id.0.clone() }).await?;
        }
        let (all, dir, own) = (self.cgroups.clone(), self.config.sandbox(&sandbox.0), id.0.clone());
        blocking(move || {
            all.remove(&cgroup, Duration::from_secs(5))?;
            sandbox_files::remove_container(&dir, &own)
        })
        .await
        .map_err(RuntimeError::io(format!("remove container {id}")))?;
        if let Some(known) = self.model.sandboxes().get_mut(&sandbox.0) {
            known.containers.remove(&id.0);
        }
        self.model.emit(RuntimeEvent::Removed(sandbox, id.clone()));
        Ok(())
    }

    async fn list(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        Ok(self.model.sandboxes().values().map(Sandbox::status).collect())
    }

    fn events(&self) -> BoxStream<'static, RuntimeEvent> {
        futures::stream::unfold(self.model.subscribe(), |mut receiver| async move {
            match receiver.recv().await {
                Ok(event) => Some((event, receiver)),
                Err(RecvError::Lagged(_)) => Some((RuntimeEvent::Resync, receiver)),
                Err(RecvError::Closed) => None,
            }
        })
        .boxed()
    }

    async fn status(&self, id: &ContainerId) -> Result<ContainerStatus, RuntimeError> {
        self.model.with_container(id, |sandbox, container| container.status(&sandbox.record.id))
    }

    async fn exec(&self, id: &ContainerId, request: &ExecRequest) -> Result<Attached, RuntimeError> {
        let client = self
            .container_client(id)?
            .ok_or_else(|| RuntimeError::Other(format!("the sandbox of container {id} is not ready")))?;
        let exec = uuid::Uuid::new_v4().as_u64_pair().0;
        let mut code = self.model.expect_exec(exec);
        let call = Request::Exec {
            id: id.0.clone(),
            exec,
            command: request.command.clone(),
            stdin: request.stdin,
            tty: request.tty,
        };
        // From here on, dropping the guard kills the command unless its exit was received.
        let mut guard = ExecGuard { client: Some(client.clone()), exec, model: Arc::clone(&self.model) };
        let (reply, fds) = client.call("container", &id.0, call).await?;
        let Reply::Streams(given) = reply else {
            return Err(RuntimeError::Other("a shim answered exec with something else".to_owned()));
        };
        let timeout = request.timeout;
        let exit = async move {
            let gone = |_| RuntimeError::Other("the command's container or its shim ended".to_owned());
            let code = match timeout {
                None => (&mut code).await.map_err(gone)?,
                Some(limit) => match tokio::time::timeout(limit, &mut code).await {
                    Ok(code) => code.map_err(gone)?,
                    Err(_) => return Err(RuntimeError::Other(format!("command timed out after {limit:?}"))),
                },
            };
            guard.disarm();
            Ok(code)
        };
        streams::attached(given, fds, request.stdin, Box::pin(exit))
            .map_err(RuntimeError::io("take over streams"))
    }

    async fn attach(&self, id: &ContainerId) -> Result<Attached, RuntimeError> {
        let state = self.watch(id)?;
        let (reply, fds) = self.call(id, Request::Attach { id: id.0.clone() }).await?;
        let Reply::Streams(given) = reply else {
            return Err(RuntimeError::Other("a shim answered attach with something else".to_owned()));
        };
        let removed = || RuntimeError::Other("the container was removed".to_owned());
        let exit = async move { ended(state).await.ok_or_else(removed) };
        streams::attached(given, fds, true, Box::pin(exit)).map_err(RuntimeError::io("take over streams"))
    }

    async fn port_forward(&self, id: &SandboxId, port: u16) -> Result<Box<dyn Stream>, RuntimeError> {
        let client = self.client(id)?;
        let mut last = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        for v6 in [false, true] {
            let (_, fds) = match client.call("sandbox", &id.0, Request::PortForward { port, v6 }).await {
                Ok(answer) => answer,
                // No IPv6: the IPv4 result counts.
                Err(_) if v6 => break,
                Err(error) => return Err(error),
            };
            let Some(fd) = fds.into_iter().next() else { continue };
            let connected = async {
                let stream = tokio::net::TcpStream::from_std(std::net::TcpStream::from(fd))?;
                stream.writable().await?;
                match stream.take_error()? {
                    Some(error) => Err(error),
                    None => Ok(stream),
                }
            };
            match connected.await {
                Ok(stream) => return Ok(Box::new(stream)),
                Err(error) => {
                    if !v6 {
                        last = error;
                    }
                }
            }
        }
        Err(RuntimeError::Io { context: format!("connect to port {port} in sandbox {id}"), source: last })
    }

    async fn reopen_log(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.call(id, Request::ReopenLog { id: id.0.clone() }).await.map(drop)
    }

    async fn update(
        &self,
        id: &ContainerId,
        resources: &Resources,
        requests: Requests,
    ) -> Result<(), RuntimeError> {
        let (sandbox, cgroup) =
            self.model.with_container(id, |s, c| (s.record.id.clone(), c.record.cgroup.clone()))?;
        let failed = || RuntimeError::io(format!("update container {id}"));
        self.cgroups.limit(&cgroup, resources).map_err(failed())?;
        let file = self.config.sandbox(&sandbox).join("c").join(&id.0).join("container.json");
        let mut sandboxes = self.model.sandboxes();
        let Some(container) = sandboxes.get_mut(&sandbox).and_then(|s| s.containers.get_mut(&id.0)) else {
            return Err(RuntimeError::NotFound { what: "container", id: id.0.clone() });
        };
        container.record.spec.resources.merge(resources);
        container.record.spec.requests = requests;
        write_json(&file, &container.record).map_err(failed())
    }

    async fn update_sandbox(&self, id: &SandboxId, resources: &Resources) -> Result<(), RuntimeError> {
        let not_found = || RuntimeError::NotFound { what: "sandbox", id: id.0.clone() };
        let cgroup = self.model.sandboxes().get(&id.0).map(|s| s.record.cgroup.clone());
        let failed = || RuntimeError::io(format!("update sandbox {id}"));
        self.cgroups.limit(&cgroup.ok_or_else(not_found)?, resources).map_err(failed())?;
        let file = self.config.sandbox(&id.0).join("sandbox.json");
        let mut sandboxes = self.model.sandboxes();
        let sandbox = sandboxes.get_mut(&id.0).ok_or_else(not_found)?;
        sandbox.record.spec.resources.merge(resources);
        write_json(&file, &sandbox.record).map_err(failed())
    }

    async fn stats(&self, id: &ContainerId) -> Result<ContainerStats, RuntimeError> {
        let cgroup = self.model.with_container(id, |_, c| c.record.cgroup.clone())?;
        self.cgroups.stats(&cgroup).map_err(RuntimeError::io(format!("statistics of container {id}")))
    }

    async fn disk_usage(&self, id: &ContainerId, enough: u64) -> Result<DiskUsage, RuntimeError> {
        let sandbox = self.model.with_container(id, |s, _| s.record.id.clone())?;
        let upper = self.config.sandbox(&sandbox).join("c").join(&id.0).join("upper");
        match beneath::measure(upper, enough, MEASURING).await {
            // The root filesystem is not made yet.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(DiskUsage::default()),
            other => other.map_err(RuntimeError::io(format!("disk usage of container {id}"))),
        }
    }

    fn version(&self) -> String {
        format!("embedded://{}", env!("CARGO_PKG_VERSION"))
    }
}

/// Kills an exec command whose caller has gone.
struct ExecGuard {
    client: Option<ShimClient>,
    exec: u64,
    model: Arc<super::model::Model>,
}

impl ExecGuard {
    fn disarm(&mut self) {
        self.client = None;
    }
}

impl Drop for ExecGuard {
    fn drop(&mut self) {
        self.model.forget_exec(self.exec);
        let Some(client) = self.client.take() else { return };
        let exec = self.exec;
        if let Ok(handle) = tokio::runtime::Handle::try_current() {
            handle.spawn(async move {
                let _ = client.call("exec", "", Request::KillExec { exec }).await;
            });
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals() {
        let check = |text, want| assert_eq!(parse_signal(text), want, "{text}");
        check("SIGTERM", Some(15));
        check("quit", Some(3));
        check("9", Some(9));
        check("SIGRTMIN+3", Some(37));
        check("0", None);
        check("SIGNOTHING", None);
    }

    #[test]
    fn command_and_environment() {
        let image = ResolvedImage {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["default".into()],
            env: vec![("A".into(), "image".into()), ("B".into(), "image".into())],
            ..ResolvedImage::default()
        };
        let args = |command: &[&str], args: &[&str]| {
            let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
            let spec = ContainerSpec { command: own(command), args: own(args), ..ContainerSpec::default() };
            container_record("id".into(), &spec, &image, "pod").map(|r| r.args).unwrap_or_default()
        };
        assert_eq!(args(&[], &[]), ["/entry", "default"]);
        assert_eq!(args(&[], &["x"]), ["/entry", "x"]);
        assert_eq!(args(&["/c"], &[]), ["/c"]);
        assert_eq!(args(&["/c"], &["x"]), ["/c", "x"]);
        let env = vec![("B".to_owned(), "spec".to_owned()), ("C".to_owned(), "spec".to_owned())];
        let record =
            container_record("id".into(), &ContainerSpec { env, ..ContainerSpec::default() }, &image, "pod");
        let want = [("A", "image"), ("B", "spec"), ("C", "spec")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(record.expect("record").env, want);
    }
}
