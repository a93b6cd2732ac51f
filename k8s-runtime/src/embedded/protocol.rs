//! The protocol between the node process and a shim, and the files that both keep.
//!
//! Large things (specifications) never travel: the node process writes them as files in the sandbox's
//! directory before it names them in a request. Layout of a sandbox's directory:
//!
//! ```text
//! sandbox.json            SandboxRecord, written by the node process
//! hostname, resolv.conf   written by the shim
//! shim.sock, shim.log     the shim's socket; what it had to complain about
//! c/<id>/container.json   ContainerRecord, written by the node process
//! c/<id>/state.json       ContainerState, written by the shim (by the node process once the shim is dead)
//! c/<id>/{upper,work,rootfs}  overlayfs
//! ```

use std::{collections::BTreeMap, path::PathBuf, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::api::{ContainerSpec, ContainerState, SandboxSpec};
pub(crate) use crate::json::{read_json, write_json};

/// A sandbox's file on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) id: String,
    pub(crate) created_at: SystemTime,
    pub(crate) spec: SandboxSpec,
    /// The pin of its network namespace; `None` on the host's network.
    pub(crate) netns: Option<PathBuf>,
    /// Its `/dev/shm`; `None` with the host's IPC namespace.
    pub(crate) shm: Option<PathBuf>,
    /// Its cgroup, below every controller's root.
    pub(crate) cgroup: String,
}

/// A container's file on disk. Everything is resolved; the shim asks nobody.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) id: String,
    pub(crate) created_at: SystemTime,
    pub(crate) spec: ContainerSpec,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) working_dir: String,
    /// The image's user (`name[:group]`), for what the specification leaves open.
    pub(crate) image_user: String,
    /// Directory of unpacked layers, and the names of this image's in it, lowest first.
    pub(crate) layers_dir: PathBuf,
    pub(crate) layers: Vec<String>,
    pub(crate) stop_signal: i32,
    pub(crate) cgroup: String,
}

/// A request to a shim.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// All containers' states.
    List,
    Create {
        id: String,
    },
    Start {
        id: String,
    },
    /// `all`: to every process of the container.
    Signal {
        id: String,
        signal: i32,
        all: bool,
    },
    Remove {
        id: String,
    },
    /// Answers with the descriptors of [`Reply::Streams`].
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
    /// Answers with the descriptors of [`Reply::Streams`].
    Attach {
        id: String,
    },
    /// Answers with one descriptor: a socket that may still be connecting.
    PortForward {
        port: u16,
        v6: bool,
    },
    ReopenLog {
        id: String,
    },
    /// Kill everything, give the namespaces back, end.
    Shutdown,
}

/// A request with its number, which the reply repeats.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) seq: u64,
    pub(crate) request: Request,
}

/// The streams that come with a reply, in this order.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Streams {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    /// The terminal's master side (for an exec: in place of all others).
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
    /// The program cannot be run.
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
    /// First on the connection that started it: the sandbox is there, or why not.
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

/// From the node process to the zygote: fork a shim for this directory. With one descriptor, the shim's first
/// connection.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Spawn {
    pub(crate) dir: PathBuf,
}
