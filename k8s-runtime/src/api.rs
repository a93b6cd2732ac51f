//! Traits between the kubelet and a container runtime.
//!
//! The operations are those of the Container Runtime Interface (CRI), so a CRI socket can be an
//! implementation. Unlike the CRI, events are part of the contract, and byte streams are plain `AsyncRead +
//! AsyncWrite`.

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

use crate::beneath::DiskUsage;

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
    /// Id of a sandbox (the namespaces of one pod). Unique on the node and never reused.
    SandboxId
);
id!(
    /// Id of a container. Unique on the node and never reused; a restarted container gets a new one.
    ContainerId
);

/// An error of a runtime or an image store.
///
/// ```
/// use k8s_runtime::RuntimeError;
/// let error = std::fs::read("/nowhere").map_err(RuntimeError::io("read the image")).unwrap_err();
/// assert!(error.to_string().starts_with("read the image: No such file"));
/// assert_eq!(RuntimeError::Unsupported("exec").to_string(), "exec is not supported by this runtime");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// Not retryable: the object does not exist (any more).
    #[error("{what} {id:?} not found")]
    NotFound {
        /// "container", "sandbox" or "image".
        what: &'static str,
        /// Id or name in the request.
        id: String,
    },
    /// The runtime does not implement this operation.
    #[error("{0} is not supported by this runtime")]
    Unsupported(&'static str),
    /// Not retryable: an invalid image, command or option. The kubelet reports it in the container's status.
    #[error("{0}")]
    Invalid(String),
    /// The program could not be started (not found, not executable). The kubelet reports `StartError` or
    /// `RunContainerError`.
    #[error("{0}")]
    Start(String),
    /// Retryable: a system call failed.
    #[error("{context}: {source}")]
    Io {
        /// The operation, with the path or name.
        context: String,
        /// The error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// Retryable: any other error, with its causes.
    #[error("{0}")]
    Other(String),
}

impl RuntimeError {
    /// For `map_err`: an I/O error with the operation as context.
    pub fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> RuntimeError {
        let context = context.into();
        move |source| RuntimeError::Io { context, source }
    }
}

/// Specification of a sandbox: the pod's namespaces and its cgroup.
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
    /// Contents of the pod's `/etc/resolv.conf`. Empty: the image's file is kept.
    pub resolv_conf: String,
    /// Use the host's network namespace.
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

/// Cgroup limits and weights. `None`: unlimited, or the kernel's default.
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

impl Resources {
    /// Replaces the values that `newer` has.
    pub fn merge(&mut self, newer: &Resources) {
        fn take<T: Copy>(old: &mut Option<T>, newer: Option<T>) {
            *old = newer.or(*old);
        }
        take(&mut self.cpu_shares, newer.cpu_shares);
        take(&mut self.cpu_quota_us, newer.cpu_quota_us);
        take(&mut self.cpu_period_us, newer.cpu_period_us);
        take(&mut self.memory_bytes, newer.memory_bytes);
        take(&mut self.pids, newer.pids);
        take(&mut self.oom_score_adj, newer.oom_score_adj);
    }
}

/// CPU and memory that a container requests. Not enforced: [`Resources`] has the weights and limits. A
/// runtime without processes reports them as the container's usage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

/// The user and groups of a container's process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct User {
    /// Numeric user. `None`: the image's user.
    pub uid: Option<u32>,
    /// Numeric primary group. `None`: the group of the user in the image.
    pub gid: Option<u32>,
    /// Supplementary groups, in addition to the image's.
    pub supplementary_gids: Vec<u32>,
}

/// A bind mount of a host path into a container, or a mount of an image's files.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    /// Path on the host: an existing file or directory.
    pub host_path: PathBuf,
    /// Id of an image whose files are mounted instead of `host_path`: read-only, without devices, and no file
    /// can be executed. Empty: none.
    #[serde(default)]
    pub image: String,
    /// Existing path below the directory `host_path` or in the image. Empty: `host_path` itself. It is
    /// resolved beneath `host_path` when the container is created: symbolic links that lead out of it are
    /// refused, even if they change during the resolution.
    #[serde(default)]
    pub sub_path: PathBuf,
    /// Absolute path in the container; created if missing.
    pub container_path: PathBuf,
    /// The container cannot write to the mount, nor to mounts below it.
    pub readonly: bool,
    /// Mount propagation: `true` for HostToContainer (rslave) or Bidirectional (rshared).
    pub propagate_to_container: bool,
    /// `true` for Bidirectional: mounts made in the container appear on the host.
    pub propagate_to_host: bool,
}

/// Specification of a container in a sandbox.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Container name in the pod.
    pub name: String,
    /// The number of containers of this name before (the restart count).
    pub attempt: u32,
    /// The image's id, as [`Images::pull`] or [`Images::find`] returned it.
    pub image: String,
    /// Replaces the image's entrypoint, if not empty.
    pub command: Vec<String>,
    /// Replaces the image's command, if it or `command` is not empty.
    pub args: Vec<String>,
    /// Added to the image's environment, in order.
    pub env: Vec<(String, String)>,
    /// Replaces the image's working directory. `None`: the image's.
    pub working_dir: Option<String>,
    /// Bind mounts, in order.
    pub mounts: Vec<Mount>,
    /// User and groups of the process.
    pub user: User,
    /// Privileged: all capabilities and devices, no masked paths, no seccomp filter.
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
    /// CPU and memory that the container requests.
    #[serde(default)]
    pub requests: Requests,
    /// Keep standard input open, so that clients can attach to it.
    pub stdin: bool,
    /// Close standard input when the first attached client disconnects.
    pub stdin_once: bool,
    /// Allocate a terminal for the process.
    pub tty: bool,
    /// Log file in CRI format (`time stream F|P line`), inside the sandbox's log directory.
    pub log_path: PathBuf,
    /// Size in bytes above which the log is rotated. 0: never.
    #[serde(default)]
    pub log_max_bytes: u64,
    /// Maximum number of log files, the current one included (at least 2).
    #[serde(default)]
    pub log_max_files: usize,
    /// Signal that [`Runtime::stop`] sends first, such as `SIGTERM`. `None`: the image's, else SIGTERM.
    pub stop_signal: Option<String>,
    /// Free-form labels that [`Runtime::list`] gives back.
    pub labels: BTreeMap<String, String>,
    /// Free-form annotations that [`Runtime::list`] gives back.
    pub annotations: BTreeMap<String, String>,
}

/// The state of a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Created; its first process waits for [`Runtime::start`].
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
        /// The OOM killer ended it.
        oom_killed: bool,
        /// Error of the start. Empty: it started.
        message: String,
    },
}

/// State of a container as reported by the runtime.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Id of the container.
    pub id: ContainerId,
    /// Id of its sandbox.
    pub sandbox: SandboxId,
    /// Time of its creation.
    pub created_at: SystemTime,
    /// State at the time of the call.
    pub state: ContainerState,
    /// The specification that it was created with.
    pub spec: ContainerSpec,
}

/// State of a sandbox as reported by the runtime.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// Id of the sandbox.
    pub id: SandboxId,
    /// Time of its creation.
    pub created_at: SystemTime,
    /// Its namespaces exist, so containers can be created in it.
    pub ready: bool,
    /// File of its network namespace. `None` with `host_network` and for runtimes without namespaces.
    pub netns: Option<PathBuf>,
    /// IP addresses, for runtimes that assign them. Empty: the kubelet's pod network assigns them.
    pub ips: Vec<IpAddr>,
    /// The specification that it was created with.
    pub spec: SandboxSpec,
    /// Its containers, exited ones included until they are removed.
    pub containers: Vec<ContainerStatus>,
}

/// A change of a container or sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RuntimeEvent {
    /// The container's first process was started.
    Started(SandboxId, ContainerId),
    /// The container's first process has exited; the status has the exit code.
    Exited(SandboxId, ContainerId),
    /// The container was removed.
    Removed(SandboxId, ContainerId),
    /// The sandbox is no longer ready (its shim or its namespaces died).
    SandboxGone(SandboxId),
    /// Events may have been lost: call [`Runtime::list`].
    Resync,
}

/// Resource usage of a container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ContainerStats {
    /// CPU time since its creation, nanoseconds.
    pub cpu_nanos: u64,
    /// Memory usage in bytes, page cache included.
    pub memory_bytes: u64,
    /// Memory usage minus reclaimable page cache, bytes.
    pub working_set_bytes: u64,
    /// Anonymous memory in bytes.
    #[serde(default)]
    pub rss_bytes: u64,
    /// Number of processes and threads.
    pub pids: u64,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Width in columns of characters.
    pub width: u16,
    /// Height in rows of characters.
    pub height: u16,
}

/// A command to execute in a running container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program and its arguments; no shell is involved.
    pub command: Vec<String>,
    /// Connect standard input. Without it the command reads an end of file.
    pub stdin: bool,
    /// Allocate a terminal; standard error is then part of standard output.
    pub tty: bool,
    /// The command is killed after this time. `None`: no limit.
    pub timeout: Option<Duration>,
}

/// A bidirectional byte stream, such as a TCP connection.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The standard streams of a process.
///
/// Dropping it kills a process of [`Runtime::exec`] and detaches from one of [`Runtime::attach`].
pub struct Attached {
    /// Standard input; dropping it closes the stream. `None`: not open.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Standard output; with a terminal its whole output.
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Standard error. `None`: not open, or the process has a terminal.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Accepts new terminal sizes. `None`: no terminal.
    pub resize: Option<tokio::sync::mpsc::Sender<TerminalSize>>,
    /// Resolves to the exit code of the command, or of the container for attach.
    pub exit: futures::future::BoxFuture<'static, Result<i32, RuntimeError>>,
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").finish_non_exhaustive()
    }
}

/// A container runtime.
///
/// Implementations need the methods without a default body. Unless a default says otherwise, an operation is
/// [`RuntimeError::Unsupported`].
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use k8s_runtime::{ContainerSpec, ExecRequest, Runtime, RuntimeError, SandboxSpec};
///
/// /// Runs one container for a second, on any runtime.
/// async fn run_once(runtime: Arc<dyn Runtime>, spec: &ContainerSpec) -> Result<(), RuntimeError> {
///     let sandbox = runtime.run_sandbox(&SandboxSpec::default()).await?;
///     let id = runtime.create(&sandbox.id, spec).await?;
///     runtime.start(&id).await?;
///     tokio::time::sleep(Duration::from_secs(1)).await;
///     if let Err(RuntimeError::Unsupported(what)) = runtime.exec(&id, &ExecRequest::default()).await {
///         println!("{what} is not for this runtime"); // a provided method
///     }
///     runtime.stop(&id, Duration::from_secs(30)).await?;
///     runtime.remove_sandbox(&sandbox.id).await
/// }
/// ```
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Creates a sandbox. It is ready when this returns.
    async fn run_sandbox(&self, spec: &SandboxSpec) -> Result<SandboxStatus, RuntimeError>;
    /// Kills all processes of the sandbox and releases its namespaces. The containers' statuses and logs
    /// stay.
    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError>;
    /// Removes a sandbox with its containers; stops it first if needed.
    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError>;
    /// Creates a container without starting its process.
    async fn create(&self, sandbox: &SandboxId, spec: &ContainerSpec) -> Result<ContainerId, RuntimeError>;
    /// Starts the process of a created container.
    async fn start(&self, id: &ContainerId) -> Result<(), RuntimeError>;
    /// Sends the stop signal, waits up to `grace`, then sends SIGKILL. Returns when the process has exited.
    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError>;
    /// Removes a container and its root filesystem; kills it first if needed. Its log file stays.
    async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError>;
    /// Returns all sandboxes and containers, including those created before a restart of the runtime or the
    /// caller.
    async fn list(&self) -> Result<Vec<SandboxStatus>, RuntimeError>;
    /// Subscribes to the events from now on. Any number of subscribers.
    fn events(&self) -> BoxStream<'static, RuntimeEvent>;

    /// Returns the state of one container.
    async fn status(&self, id: &ContainerId) -> Result<ContainerStatus, RuntimeError> {
        let all = self.list().await?;
        all.into_iter()
            .flat_map(|s| s.containers)
            .find(|c| &c.id == id)
            .ok_or_else(|| RuntimeError::NotFound { what: "container", id: id.0.clone() })
    }
    /// Executes a command in a running container.
    async fn exec(&self, _id: &ContainerId, _request: &ExecRequest) -> Result<Attached, RuntimeError> {
        Err(RuntimeError::Unsupported("exec"))
    }
    /// Attaches to the standard streams of a running container.
    async fn attach(&self, _id: &ContainerId) -> Result<Attached, RuntimeError> {
        Err(RuntimeError::Unsupported("attach"))
    }
    /// Connects to a TCP port on the sandbox's loopback address.
    async fn port_forward(&self, _id: &SandboxId, _port: u16) -> Result<Box<dyn Stream>, RuntimeError> {
        Err(RuntimeError::Unsupported("port-forward"))
    }
    /// Reopens the container's log file, after a rotation.
    async fn reopen_log(&self, _id: &ContainerId) -> Result<(), RuntimeError> {
        Ok(())
    }
    /// Changes limits and requests of a running container without a restart, in its status, too. A limit that
    /// is `None` stays.
    async fn update(
        &self,
        _id: &ContainerId,
        _resources: &Resources,
        _requests: Requests,
    ) -> Result<(), RuntimeError> {
        Err(RuntimeError::Unsupported("update"))
    }
    /// Changes limits of a whole sandbox, in its status, too. A limit that is `None` stays.
    async fn update_sandbox(&self, _id: &SandboxId, _resources: &Resources) -> Result<(), RuntimeError> {
        Err(RuntimeError::Unsupported("update"))
    }
    /// Returns the resource usage of a container.
    async fn stats(&self, _id: &ContainerId) -> Result<ContainerStats, RuntimeError> {
        Err(RuntimeError::Unsupported("stats"))
    }
    /// Measures what a container, running or exited, has written to its own root filesystem. It reads the
    /// whole tree, and stops once it has counted more than `enough` bytes, or after some time.
    async fn disk_usage(&self, _id: &ContainerId, _enough: u64) -> Result<DiskUsage, RuntimeError> {
        Err(RuntimeError::Unsupported("disk usage"))
    }
    /// Name and version as `name://version`, for `containerRuntimeVersion`.
    fn version(&self) -> String {
        "embedded://0.1.0".to_owned()
    }
}

/// An image on the node.
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
