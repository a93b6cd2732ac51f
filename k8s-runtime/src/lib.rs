//! Container runtimes and image stores: the traits [`Runtime`] and [`Images`], and their implementations.
//!
//! Flow: the kubelet requests a sandbox (the namespaces of a pod), lets a pod network attach to it, and
//! creates and starts containers in it. Later changes are reported by [`Runtime::events`]; nothing polls.
//!
//! Guarantees:
//! 1. A started container outlives the process that started it; [`Runtime::list`] finds it again.
//! 2. Every operation is idempotent: stopping a stopped container and removing a removed one succeed.
//! 3. After [`Runtime::remove_sandbox`] no process, mount, namespace, cgroup or file of the pod remains.
//!
//! Not here: pod semantics (restarts, probes, volume contents; see `k8s-kubelet`), and networks (see
//! `k8s-net`).

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests measure time and start tasks"))]

pub mod api;
pub mod beneath;
pub mod descriptors;
pub mod embedded;
pub mod images;
mod inroot;
mod json;
pub mod log_files;
mod private;
pub mod simulated;
mod sys;
pub mod sysctl;

pub use api::{
    Attached, ContainerId, ContainerSpec, ContainerState, ContainerStats, ContainerStatus, ExecRequest,
    ImageInfo, Images, Mount, Requests, Resources, Runtime, RuntimeError, RuntimeEvent, SandboxId,
    SandboxSpec, SandboxStatus, Stream, TerminalSize, User,
};
pub use beneath::DiskUsage;
pub use private::private_directory;
