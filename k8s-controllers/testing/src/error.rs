//! Errors of a [`TestCluster`](crate::TestCluster).

use std::time::Duration;

use k8s_core::client;

/// Errors of a test cluster.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The API server did not start.
    #[error("start the API server: {0}")]
    Start(k8s_apiserver::BuildError),
    /// The API server returned an error.
    #[error(transparent)]
    Api(#[from] client::Error),
    /// A manifest does not match its type.
    #[error("not a {kind}: {source}")]
    NotOne {
        /// Kind of the type.
        kind: &'static str,
        /// The deserialization error.
        source: serde_json::Error,
    },
    /// [`TestCluster::listen`](crate::TestCluster::listen) in virtual time: sockets need the real one. Start
    /// the runtime without `start_paused`.
    #[error("a cluster in virtual time cannot listen on a socket: start the runtime without start_paused")]
    VirtualTime,
    /// The port cannot be opened, or the kubeconfig cannot be written.
    #[error("listen on a loopback port: {0}")]
    Listen(#[source] std::io::Error),
    /// A manifest cannot be applied.
    #[error("{0}")]
    Manifest(String),
    /// [`TestCluster::until`](crate::TestCluster::until) timed out.
    #[error("{name} did not reach the wanted state within {within:?}; last state: {last}")]
    Late {
        /// Namespace and name of the object.
        name: String,
        /// The timeout, in virtual time.
        within: Duration,
        /// The object's last seen state.
        last: String,
    },
}
