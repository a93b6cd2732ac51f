//! The traits between the kubelet and whatever runs containers.
//!
//! They follow the Container Runtime Interface (CRI) in meaning, so that a CRI socket can stand behind them,
//! but events are part of the contract and byte streams are plain `AsyncRead + AsyncWrite`.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

id!(
    /// A sandbox (one pod's namespaces), unique on the node for ever.
    SandboxId
);
id!(
    /// A container, unique on the node for ever; a restarted container is a new one.
    ContainerId
);

/// An error of a runtime or an image store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// Not retryable: the caller holds an old name.
    #[error("{what} {id:?} not found")]
    NotFound {
        /// "container", "sandbox" or "image".
        what: &'static str,
        /// The name that was asked for.
        id: String,
    },
    /// The runtime does not have this operation.
    #[error("{0} is not supported by this runtime")]
    Unsupported(&'static str),
    /// The request can never work: a bad image, command or option. The kubelet reports it on the container.
    #[error("{0}")]
    Invalid(String),
    /// The program could not be started (not found, not executable): `StartError`/`RunContainerError` on the
    /// container.
    #[error("{0}")]
    Start(String),
    /// Retryable: the system refused something.
    #[error("{context}: {source}")]
    Io {
        /// The operation, with the path or name.
        context: String,
        /// The error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// Retryable: anything else, with its whole story.
    #[error("{0}")]
    Other(String),
}

impl RuntimeError {
    /// For `map_err`: an I/O error with what was being done.
    pub fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> RuntimeError {
        let context = context.into();
        move |source| RuntimeError::Io { context, source }
    }
}

/// A sandbox to make: the pod's shared namespaces and its cgroup.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Name of the pod that it belongs to.
    pub name: String,
    /// Namespace of the pod that it belongs to.
    pub namespace: String,
    /// UID of the pod. [`Runtime::list`] gives it back.
    pub uid: String,
    /// The number of sandboxes that this pod had before.
    pub attempt: u32,
    /// Host name inside the pod (unused with `host_network`).
    pub hostname: String,
    /// Lines for the pod's `/etc/resolv.conf`, whole file. Empty: the runtime leaves the image's file alone.
    pub resolv_conf: String,
    /// Use the host's network namespace instead of an own one.
    pub host_network: bool,
    /// Use the host's process namespace.
    pub host_pid: bool,
    /// Use the host's IPC namespace.
    pub host_ipc: bool,
    /// All containers share one process namespace.
    pub share_process_namespace: bool,
    /// `name = value` of namespaced sysctls.
    pub sysctls: BTreeMap<String, String>,
    /// Parent cgroup below the runtime's root, such as `burstable/pod<uid>`.
    pub cgroup_parent: String,
    /// Limits of the whole pod.
    pub resources: Resources,
    /// Directory under which the containers' logs are written.
    pub log_directory: PathBuf,
    /// Free-form labels that [`Runtime::list`] gives back.
    pub labels: BTreeMap<String, String>,
    /// Free-form annotations that [`Runtime::list`] gives back.
    pub annotations: BTreeMap<String, String>,
}

/// Limits and shares, in the kernel's own terms.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// Relative CPU weight in cgroup v1 shares (1024 = one CPU).
    pub cpu_shares: Option<u64>,
    /// CPU time per period, microseconds.
    pub cpu_quota_us: Option<i64>,
    /// Period of `cpu_quota_us`, microseconds (default 100,000).
    pub cpu_period_us: Option<u64>,
    /// Memory limit in bytes; `None`: unlimited.
    pub memory_bytes: Option<i64>,
    /// Most processes and threads; 0: unlimited.
    pub pids: Option<i64>,
    /// OOM score adjustment, -1000 to 1000.
    pub oom_score_adj: Option<i32>,
}

/// The user and groups of a container's process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct User {
    /// Numeric user; `None`: what the image says.
    pub uid: Option<u32>,
    /// Numeric primary group; `None`: what the image (or its passwd file) says.
    pub gid: Option<u32>,
    /// Supplementary groups, beside those of the image.
    pub supplementary_gids: Vec<u32>,
}

/// A host path seen inside a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    /// Path on the host: a file or a directory that exists.
    pub host_path: PathBuf,
    /// A path that exists below the directory `host_path`; empty: `host_path` itself. It is resolved when the
    /// container is made, beneath `host_path`: links that lead out of it are refused, however often they are
    /// changed meanwhile.
    #[serde(default)]
    pub sub_path: PathBuf,
    /// Absolute path in the container; made where it does not exist.
    pub container_path: PathBuf,
    /// Not writable through this mount.
    pub readonly: bool,
    /// Mount propagation: `true` for HostToContainer (rslave) or Bidirectional (rshared).
    pub propagate_to_container: bool,
    /// `true` for Bidirectional: mounts made in the container appear on the host.
    pub propagate_to_host: bool,
}

/// A container to make in a sandbox.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Container name in the pod.
    pub name: String,
    /// The number of containers of this name before (the restart count).
    pub attempt: u32,
    /// The image's id, as [`Images::pull`] or [`Images::find`] returned it.
    pub image: String,
    /// Replaces the image's entrypoint where not empty.
    pub command: Vec<String>,
    /// Replaces the image's command where not empty (or where `command` is set).
    pub args: Vec<String>,
    /// Set on top of the image's environment, in order.
    pub env: Vec<(String, String)>,
    /// Replaces the image's working directory where set.
    pub working_dir: Option<String>,
    /// Bind mounts, in order.
    pub mounts: Vec<Mount>,
    /// User and groups of the process.
    pub user: User,
    /// All capabilities and devices, no masks, no seccomp.
    pub privileged: bool,
    /// Capabilities to add to the default set, without the `CAP_` prefix; `ALL` for all.
    pub add_capabilities: Vec<String>,
    /// Capabilities to drop from the default set; `ALL` for all.
    pub drop_capabilities: Vec<String>,
    /// Setuid programs gain nothing (`no_new_privs`).
    pub no_new_privileges: bool,
    /// The root filesystem is not writable.
    pub readonly_rootfs: bool,
    /// Run without the default seccomp filter.
    pub seccomp_unconfined: bool,
    /// Keep the sensitive parts of `/proc` visible and writable.
    pub unmasked_proc: bool,
    /// Limits of this container.
    pub resources: Resources,
    /// Standard input is open and can be attached to.
    pub stdin: bool,
    /// Standard input closes when the first attached client leaves.
    pub stdin_once: bool,
    /// The process gets a terminal.
    pub tty: bool,
    /// Log file in CRI format (`time stream F|P line`), inside the sandbox's log directory.
    pub log_path: PathBuf,
    /// The log is rotated when it is larger than this, bytes; 0: never.
    #[serde(default)]
    pub log_max_bytes: u64,
    /// So many files a rotated log has, the one being written included (2 at least).
    #[serde(default)]
    pub log_max_files: usize,
    /// Signal that [`Runtime::stop`] sends first, such as `SIGTERM`; `None`: what the image says, else
    /// SIGTERM.
    pub stop_signal: Option<String>,
    /// Free-form labels that [`Runtime::list`] gives back.
    pub labels: BTreeMap<String, String>,
    /// Free-form annotations that [`Runtime::list`] gives back.
    pub annotations: BTreeMap<String, String>,
}

/// The state of a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, with its first process waiting for the start.
    Created,
    /// The first process runs.
    Running {
        /// Time of its start.
        started_at: SystemTime,
        /// Process id on the host.
        pid: i32,
    },
    /// The first process has ended, or could not be started.
    Exited {
        /// Time of its start; `None`: it never ran.
        started_at: Option<SystemTime>,
        /// Time of its end.
        finished_at: SystemTime,
        /// Exit code; 128 + signal for a killed process.
        code: i32,
        /// The kernel killed it for memory.
        oom_killed: bool,
        /// The reason for which it could not be started; else empty.
        message: String,
    },
}

/// A container as the runtime knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Its id.
    pub id: ContainerId,
    /// The sandbox it is in.
    pub sandbox: SandboxId,
    /// Time of its creation.
    pub created_at: SystemTime,
    /// Present state.
    pub state: ContainerState,
    /// The specification it was made from.
    pub spec: ContainerSpec,
}

/// A sandbox as the runtime knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// Its id.
    pub id: SandboxId,
    /// Time of its creation.
    pub created_at: SystemTime,
    /// Its namespaces are there and can take containers.
    pub ready: bool,
    /// File that holds its network namespace; `None` with `host_network` and for runtimes without namespaces.
    pub netns: Option<PathBuf>,
    /// Addresses, for runtimes that assign them themselves; else empty (the kubelet's pod network assigns
    /// them).
    pub ips: Vec<IpAddr>,
    /// The specification it was made from.
    pub spec: SandboxSpec,
    /// Its containers, dead ones that were not removed included.
    pub containers: Vec<ContainerStatus>,
}

/// Something happened to a container or sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RuntimeEvent {
    /// The container's process runs.
    Started(SandboxId, ContainerId),
    /// The container's process ended; its status has the exit code.
    Exited(SandboxId, ContainerId),
    /// The container is no longer known.
    Removed(SandboxId, ContainerId),
    /// The sandbox is no longer ready (its shim or its namespaces died).
    SandboxGone(SandboxId),
    /// Events may have been lost: list again.
    Resync,
}

/// Use of resources by one container at one moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ContainerStats {
    /// CPU time used since it was made, nanoseconds.
    pub cpu_nanos: u64,
    /// Memory in use, bytes.
    pub memory_bytes: u64,
    /// Memory in use less what could be reclaimed, bytes.
    pub working_set_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Width in columns.
    pub width: u16,
    /// Height in rows.
    pub height: u16,
}

/// A command to run inside a running container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program and its arguments; no shell is involved.
    pub command: Vec<String>,
    /// Connect standard input.
    pub stdin: bool,
    /// Give it a terminal (standard error then comes with standard output).
    pub tty: bool,
    /// Kill it after this long.
    pub timeout: Option<Duration>,
}

/// A byte stream in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A process whose standard streams the caller holds.
///
/// Dropping it ends an exec'd process and detaches from an attached one.
pub struct Attached {
    /// Writes go to standard input; dropping it closes standard input. `None`: not open.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Standard output (with a terminal: everything).
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Standard error; `None` with a terminal.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Send new terminal sizes here.
    pub resize: Option<tokio::sync::mpsc::Sender<TerminalSize>>,
    /// Resolves to the exit code when the process has ended (for attach: when the container has).
    pub exit: futures::future::BoxFuture<'static, Result<i32, RuntimeError>>,
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").finish_non_exhaustive()
    }
}

/// Runs sandboxes and containers.
///
/// A runtime of one's own needs the methods without a body; the others answer "not supported" in the API's
/// words.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Makes a sandbox and returns it, ready.
    async fn run_sandbox(&self, spec: &SandboxSpec) -> Result<SandboxStatus, RuntimeError>;
    /// Kills what runs in the sandbox and gives its namespaces back. Its containers' statuses and logs stay.
    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError>;
    /// Removes a sandbox and everything in it (stops it first where needed).
    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError>;
    /// Makes a container; its process does not run yet.
    async fn create(&self, sandbox: &SandboxId, spec: &ContainerSpec) -> Result<ContainerId, RuntimeError>;
    /// Runs a created container's process.
    async fn start(&self, id: &ContainerId) -> Result<(), RuntimeError>;
    /// Sends the stop signal, waits up to `grace`, then kills; returns when the process has ended.
    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError>;
    /// Removes a container (kills it first where needed) and its root filesystem; its log file stays.
    async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError>;
    /// Everything the runtime knows, after its own or the caller's restart too.
    async fn list(&self) -> Result<Vec<SandboxStatus>, RuntimeError>;
    /// Events from now on. Several callers may listen.
    fn events(&self) -> BoxStream<'static, RuntimeEvent>;

    /// Returns the state of one container.
    async fn status(&self, id: &ContainerId) -> Result<ContainerStatus, RuntimeError> {
        let all = self.list().await?;
        all.into_iter()
            .flat_map(|s| s.containers)
            .find(|c| &c.id == id)
            .ok_or_else(|| RuntimeError::NotFound { what: "container", id: id.0.clone() })
    }
    /// Runs a command in a running container.
    async fn exec(&self, _id: &ContainerId, _request: &ExecRequest) -> Result<Attached, RuntimeError> {
        Err(RuntimeError::Unsupported("exec"))
    }
    /// Attaches to a running container's own streams.
    async fn attach(&self, _id: &ContainerId) -> Result<Attached, RuntimeError> {
        Err(RuntimeError::Unsupported("attach"))
    }
    /// Connects to a TCP port on the sandbox's loopback address.
    async fn port_forward(&self, _id: &SandboxId, _port: u16) -> Result<Box<dyn Stream>, RuntimeError> {
        Err(RuntimeError::Unsupported("port-forward"))
    }
    /// Reopens the container's log file (after rotation).
    async fn reopen_log(&self, _id: &ContainerId) -> Result<(), RuntimeError> {
        Ok(())
    }
    /// Changes a running container's limits.
    async fn update(&self, _id: &ContainerId, _resources: &Resources) -> Result<(), RuntimeError> {
        Err(RuntimeError::Unsupported("update"))
    }
    /// Use of resources by a container.
    async fn stats(&self, _id: &ContainerId) -> Result<ContainerStats, RuntimeError> {
        Err(RuntimeError::Unsupported("stats"))
    }
    /// Name and version, as `kubectl get node -o wide` shows them: `name://version`.
    fn version(&self) -> String {
        "embedded://0.1.0".to_owned()
    }
}

/// An image that is on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Digest of its configuration, `sha256:...`.
    pub id: String,
    /// Names with tags, such as `docker.io/library/nginx:1.7.9`.
    pub tags: Vec<String>,
    /// Names with digests (`name@sha256:...`).
    pub digests: Vec<String>,
    /// Size of the unpacked layers in bytes.
    pub size: u64,
    /// The user the image runs as, as its configuration says (may be empty, a name or a number).
    pub user: String,
}

/// The use of images that are there already in a pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicyHint {
    /// Ask the registry for the newest.
    Always,
    /// Only when the image is not there.
    IfNotPresent,
}

/// The images on a node.
#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// The image by reference (short names mean `docker.io/library/...:latest`) or id; `None`: not on the
    /// node.
    async fn find(&self, reference: &str) -> Result<Option<ImageInfo>, RuntimeError>;
    /// Fetches an image. `auth` is `(user, password)`.
    ///
    /// # Errors
    /// [`RuntimeError::Invalid`] for a malformed reference, else a retryable error with the registry's
    /// answer.
    async fn pull(&self, reference: &str, auth: Option<(String, String)>) -> Result<ImageInfo, RuntimeError>;
    /// Lists all images of the store.
    async fn list(&self) -> Result<Vec<ImageInfo>, RuntimeError>;
    /// Removes a name, and the image with its last name.
    async fn remove(&self, reference: &str) -> Result<(), RuntimeError>;
}
