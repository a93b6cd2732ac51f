//! The errors of a kubelet that does not start.

use k8s_runtime::RuntimeError;

/// The reason for which a kubelet does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KubeletError {
    /// No runtime was given.
    #[error("a kubelet needs a runtime and an image store")]
    NoRuntime,
    /// The runtime does not answer.
    #[error("list what the runtime has: {0}")]
    Runtime(#[from] RuntimeError),
    /// The configuration allows what cannot be allowed.
    #[error("allowed unsafe sysctls: {0}")]
    Sysctls(String),
    /// The kubelet's directory cannot be used.
    #[error("make {path:?}: {source}")]
    Directory {
        /// The directory that was to be made.
        path: std::path::PathBuf,
        /// The error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// The kubelet's API cannot be served.
    #[error("listen on {address}: {source}")]
    Listen {
        /// Address and port of the listener.
        address: std::net::SocketAddr,
        /// The error of the operating system.
        #[source]
        source: std::io::Error,
    },
}
