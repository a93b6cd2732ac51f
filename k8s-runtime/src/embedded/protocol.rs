//! The protocol between the node process and a shim, and the files of a sandbox.
//!
//! Messages do not contain specifications: the node process writes them to files in the sandbox's directory
//! before it sends the request that names them. Layout of a sandbox's directory:
//!
//! ```text
//! sandbox.json            SandboxRecord, written by the node process
//! hostname, resolv.conf   written by the shim
//! shim.sock, shim.log     the shim's socket and its error log
//! c/<id>/container.json   ContainerRecord, written by the node process
//! c/<id>/state.json       ContainerState, written by the shim (by the node process once the shim is dead)
//! c/<id>/{upper,work,rootfs}  overlayfs
//! ```

use std::{collections::BTreeMap, path::PathBuf, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::api::{ContainerSpec, ContainerState, SandboxSpec};
pub(crate) use crate::json::{read_json, write_json};

/// Record of a sandbox, `sandbox.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) id: String,
    pub(crate) created_at: SystemTime,
    pub(crate) spec: SandboxSpec,
    /// File that pins its network namespace. `None` on the host's network.
    pub(crate) netns: Option<PathBuf>,
    /// Its `/dev/shm`. `None` with the host's IPC namespace.
    pub(crate) shm: Option<PathBuf>,
    /// Its cgroup, relative to the root of each hierarchy.
    pub(crate) cgroup: String,
}

/// Record of a container, `container.json`. Everything in it is resolved; the shim needs no lookups.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) id: String,
    pub(crate) created_at: SystemTime,
    pub(crate) spec: ContainerSpec,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) working_dir: String,
    /// User of the image (`name[:group]`), the default for the specification's user.
    pub(crate) image_user: String,
    /// Directory of unpacked layers, and the names of the image's layers in it, lowest first.
    pub(crate) layers_dir: PathBuf,
    pub(crate) layers: Vec<String>,
    /// Layers of the images that are mounted as volumes, by image id.
    #[serde(default)]
    pub(crate) volume_layers: BTreeMap<String, Vec<String>>,
    pub(crate) stop_signal: i32,
    pub(crate) cgroup: String,
}

/// A request to a shim.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Replies with the states of all containers.
    List,
    Create {
        id: String,
    },
    Start {
        id: String,
    },
    /// `all`: signal every process of the container, not only the first.
    Signal {
        id: String,
        signal: i32,
        all: bool,
    },
    Remove {
        id: String,
    },
    /// Replies with the descriptors of [`Reply::Streams`].
    Exec {
        id: String,
        exec: u64,
        command: Vec<String>,
        stdin: bool,
        tty: bool,
    },
    KillExec {
        exec: u64,
    },
    /// Replies with the descriptors of [`Reply::Streams`].
    Attach {
        id: String,
    },
    /// Replies with one descriptor: a socket whose connection may still be in progress.
    PortForward {
        port: u16,
        v6: bool,
    },
    ReopenLog {
        id: String,
    },
    /// Kills all processes, releases the namespaces, and ends the shim.
    Shutdown,
}

/// A request with its number; the reply repeats the number.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) seq: u64,
    pub(crate) request: Request,
}

/// The streams whose descriptors come with a reply, in this order.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Streams {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    /// The terminal's master side. For an exec it replaces all other streams.
    pub(crate) terminal: bool,
}

/// A shim's reply to a request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    States(BTreeMap<String, ContainerState>),
    Streams(Streams),
}

/// An error of a shim.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    NotFound,
    /// The program cannot be executed.
    Start(String),
    Other(String),
}

impl Failure {
    pub(crate) fn other(context: &str) -> impl FnOnce(std::io::Error) -> Failure {
        let context = context.to_owned();
        move |error| Failure::Other(format!("{context}: {error}"))
    }
}

/// A message from the shim.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    /// First message on the shim's first connection: the process id, or the error of the set-up.
    Ready(Result<i32, String>),
    Reply {
        seq: u64,
        result: Result<Reply, Failure>,
    },
    Started {
        id: String,
        state: ContainerState,
    },
    Exited {
        id: String,
        state: ContainerState,
    },
    ExecExited {
        exec: u64,
        code: i32,
    },
}

/// Message of the node process to the zygote: fork a shim for this directory. Its descriptor is the shim's
/// first connection.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Spawn {
    pub(crate) dir: PathBuf,
}
