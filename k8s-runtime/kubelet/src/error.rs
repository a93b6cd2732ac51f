//! Errors at the start of a kubelet.

use k8s_runtime::RuntimeError;

/// A kubelet cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KubeletError {
    /// The builder has no runtime or no image store.
    #[error("a kubelet needs a runtime and an image store")]
    NoRuntime,
    /// Listing the runtime's sandboxes failed.
    #[error("list what the runtime has: {0}")]
    Runtime(#[from] RuntimeError),
    /// An allowed unsafe sysctl is invalid or not namespaced.
    #[error("allowed unsafe sysctls: {0}")]
    Sysctls(String),
    /// A directory of the kubelet cannot be created.
    #[error("make {path:?}: {source}")]
    Directory {
        /// Path of the directory.
        path: std::path::PathBuf,
        /// The error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// The listener of the kubelet's API cannot be opened.
    #[error("listen on {address}: {source}")]
    Listen {
        /// Address and port of the listener.
        address: std::net::SocketAddr,
        /// The error of the operating system.
        #[source]
        source: std::io::Error,
    },
}
