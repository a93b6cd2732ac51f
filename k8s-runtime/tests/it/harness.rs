//! A runtime of each test's own, and the check that nothing of it is left.

use std::{
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use k8s_runtime::{
    ContainerId, ContainerSpec, ContainerState, ContainerStatus, Runtime, RuntimeEvent, SandboxId,
    SandboxSpec, SandboxStatus,
    embedded::{Embedded, EmbeddedConfig, leftovers, preflight, reset},
    images::{ImageBuilder, ImageStore},
};
use libtest_mimic::Failed;
use tokio::io::{AsyncRead, AsyncReadExt};

pub type TestFuture = Pin<Box<dyn Future<Output = Result<(), Failed>>>>;
pub type Test = fn(Arc<Fixture>) -> TestFuture;

/// Declares tests as a table of name and function.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub const TESTS: &[(&str, $crate::harness::Test)] =
            &[$((stringify!($name), |fixture| Box::pin($name(fixture)))),*];
    };
}

pub struct Fixture {
    pub dir: PathBuf,
    pub config: EmbeddedConfig,
    pub images: Arc<ImageStore>,
}

pub const IMAGE: &str = "test.local/busybox:1";

pub fn run(test: Test) -> Result<(), Failed> {
    let dir = tempfile::tempdir()?;
    let name = dir.path().file_name().map(|n| n.to_string_lossy().replace('.', "")).unwrap_or_default();
    let config = EmbeddedConfig {
        name: "shopkube".into(),
        root: dir.path().join("state"),
        run: dir.path().join("run"),
        cgroup_root: format!("k8s-runtime-test-{name}"),
    };
    let missing = preflight(&config);
    if !missing.is_empty() {
        let text: Vec<String> = missing.iter().map(ToString::to_string).collect();
        return Err(text.join("; ").into());
    }
    let images = Arc::new(ImageStore::open(dir.path().join("images"))?);
    busybox().import(&images, IMAGE)?;
    let fixture = Arc::new(Fixture { dir: dir.path().to_owned(), config: config.clone(), images });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let limit = Duration::from_secs(60);
    let result = runtime.block_on(async { tokio::time::timeout(limit, test(fixture)).await });
    runtime.shutdown_timeout(Duration::from_secs(5));
    // A failed test may leave things; they go, and a passed one must not have.
    let left = leftovers(&config.root)?;
    reset(&config.root)?;
    let left_after = outside_traces(dir.path(), &config.cgroup_root)?;
    match result {
        Ok(result) => result?,
        Err(_) => return Err("timed out".into()),
    }
    let ours: Vec<&String> =
        left.iter().filter(|l| !l.starts_with("cgroup ") && !l.starts_with("directory ")).collect();
    if !ours.is_empty() {
        return Err(format!("the test left {ours:?}").into());
    }
    if !left_after.is_empty() {
        return Err(format!("reset left {left_after:?}").into());
    }
    Ok(())
}

pub fn busybox() -> ImageBuilder {
    let mut image = ImageBuilder::new()
        .file("/usr/bin/busybox", "/bin/busybox", 0o755)
        .content("root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n", "/etc/passwd", 0o644)
        .content("root:x:0:\nweb:x:34:\nlogs:x:50:web\n", "/etc/group", 0o644)
        .content("not a program", "/bin/text", 0o755)
        .content("#!/bin/sh\n", "/bin/unexecutable", 0o644)
        .directory("/tmp", 0o1777)
        .directory("/root", 0o700)
        .link("/etc", "/outside")
        .env("FROM_IMAGE", "yes")
        .cmd(["/bin/sh", "-c", "echo default command"]);
    for applet in [
        "sh", "echo", "cat", "sleep", "ls", "id", "env", "stty", "tty", "mount", "grep", "touch", "ps",
        "kill", "hostname", "dd", "nc", "mknod", "chmod", "true", "false", "head", "tail", "wc", "seq",
        "umount", "ip", "sync",
    ] {
        image = image.link("busybox", format!("/bin/{applet}"));
    }
    image
}

/// Looks without the runtime's own eyes.
pub fn outside_traces(dir: &Path, cgroup: &str) -> Result<Vec<String>, Failed> {
    let mut found = Vec::new();
    let dir = dir.to_string_lossy().into_owned();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    found.extend(mounts.lines().filter(|l| l.contains(&dir)).map(str::to_owned));
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup")?.flatten() {
        for path in [hierarchy.path().join(cgroup), Path::new("/sys/fs/cgroup").join(cgroup)] {
            if path.exists() {
                found.push(path.display().to_string());
            }
        }
    }
    for process in std::fs::read_dir("/proc")?.flatten() {
        let membership = std::fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        // Whoever adopted a dead one may not have buried it yet.
        let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        if membership.contains(cgroup) && !stat.contains(") Z ") {
            found.push(format!("process {:?}", process.file_name()));
        }
    }
    for directory in ["run/netns", "run/shm", "state/sandboxes"] {
        let path = Path::new(&dir).join(directory);
        found.extend(
            std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path().display().to_string()),
        );
    }
    Ok(found)
}

impl Fixture {
    pub async fn runtime(&self) -> Result<Embedded, Failed> {
        Ok(Embedded::new(self.config.clone(), Arc::clone(&self.images)).await?)
    }

    pub fn sandbox_spec(&self) -> SandboxSpec {
        SandboxSpec {
            name: "pod".into(),
            namespace: "default".into(),
            uid: "uid".into(),
            hostname: "my-pod".into(),
            resolv_conf: "nameserver 10.43.0.10\n".into(),
            cgroup_parent: "burstable/poduid".into(),
            log_directory: self.dir.join("logs"),
            ..SandboxSpec::default()
        }
    }

    pub async fn sandbox(&self, runtime: &Embedded) -> Result<SandboxStatus, Failed> {
        Ok(runtime.run_sandbox(&self.sandbox_spec()).await?)
    }

    /// A container that runs a shell script.
    pub fn spec(&self, name: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            name: name.into(),
            image: IMAGE.into(),
            command: vec!["/bin/sh".into(), "-c".into(), script.into()],
            log_path: self.dir.join("logs").join(format!("{name}.log")),
            ..ContainerSpec::default()
        }
    }

    /// The lines a container wrote, as `stream:line`.
    pub fn log(&self, name: &str) -> Vec<String> {
        let text =
            std::fs::read_to_string(self.dir.join("logs").join(format!("{name}.log"))).unwrap_or_default();
        text.lines()
            .filter_map(|l| {
                let mut parts = l.splitn(4, ' ');
                let (_, stream, _) = (parts.next()?, parts.next()?, parts.next()?);
                Some(format!("{stream}:{}", parts.next().unwrap_or_default()))
            })
            .collect()
    }
}

/// The end of a container.
#[derive(Debug, PartialEq)]
pub struct Ended {
    pub code: i32,
    pub oom: bool,
}

pub async fn wait_end(runtime: &Embedded, id: &ContainerId) -> Result<Ended, Failed> {
    for _ in 0..4000 {
        if let ContainerState::Exited { code, oom_killed, .. } = status(runtime, id).await?.state {
            return Ok(Ended { code, oom: oom_killed });
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Err("the container does not end".into())
}

pub async fn status(runtime: &Embedded, id: &ContainerId) -> Result<ContainerStatus, Failed> {
    Ok(runtime.status(id).await?)
}

/// Creates and starts a container.
pub async fn launch(
    runtime: &Embedded,
    sandbox: &SandboxId,
    spec: &ContainerSpec,
) -> Result<ContainerId, Failed> {
    let id = runtime.create(sandbox, spec).await?;
    runtime.start(&id).await?;
    Ok(id)
}

/// Runs a container in a sandbox of its own to its end, and takes both away. Returns the exit and the log.
pub async fn once(fixture: &Fixture, spec: &ContainerSpec) -> Result<(Ended, Vec<String>), Failed> {
    let runtime = fixture.runtime().await?;
    let sandbox = fixture.sandbox(&runtime).await?;
    let id = launch(&runtime, &sandbox.id, spec).await?;
    let ended = wait_end(&runtime, &id).await?;
    runtime.remove_sandbox(&sandbox.id).await?;
    Ok((ended, fixture.log(&spec.name)))
}

pub async fn read_all(stream: Option<Box<dyn AsyncRead + Send + Unpin>>) -> Result<String, Failed> {
    let mut text = String::new();
    if let Some(mut stream) = stream {
        stream.read_to_string(&mut text).await?;
    }
    Ok(text)
}

/// Waits for an event that fits.
pub async fn event(
    events: &mut (impl futures::Stream<Item = RuntimeEvent> + Unpin),
    wanted: &RuntimeEvent,
) -> Result<(), Failed> {
    use futures::StreamExt;
    let found = async { while events.next().await.is_some_and(|e| &e != wanted) {} };
    tokio::time::timeout(Duration::from_secs(10), found)
        .await
        .map_err(|_| format!("no event {wanted:?}").into())
}

pub fn expect<T: PartialEq + std::fmt::Debug>(got: T, want: T) -> Result<(), Failed> {
    if got == want { Ok(()) } else { Err(format!("got {got:?}, want {want:?}").into()) }
}
