//! Container runtimes and image stores: the traits [`Runtime`] and [`Images`] and their implementations.
//!
//! Flow: the kubelet asks for a sandbox (a pod's namespaces), has a pod network attach to it, creates and
//! starts containers in it, and learns everything that happens afterwards from [`Runtime::events`]; nothing
//! polls.
//!
//! Guarantees:
//! 1. A container that a runtime has started outlives the process that started it; [`Runtime::list`] finds it
//!    again.
//! 2. Every operation is idempotent: stopping what is stopped and removing what is gone succeed.
//! 3. After [`Runtime::remove_sandbox`] nothing of the pod is left: no process, mount, namespace, cgroup or
//!    file.
//!
//! Not here: pod semantics (restarts, probes, volumes' contents), which are `k8s-kubelet`'s, and networks,
//! which are `k8s-net`'s.

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
    ImageInfo, Images, Mount, PullPolicyHint, Resources, Runtime, RuntimeError, RuntimeEvent, SandboxId,
    SandboxSpec, SandboxStatus, Stream, TerminalSize, User,
};
pub use private::private_directory;
