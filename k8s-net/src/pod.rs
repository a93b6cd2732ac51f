//! The trait between the kubelet and a pod network.

use std::{net::IpAddr, path::PathBuf};

use async_trait::async_trait;

/// Errors of attaching and detaching a pod. Every variant is retryable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PodNetworkError {
    /// All of the node's pod addresses are in use.
    #[error("no free address in {range}")]
    Exhausted {
        /// Pod CIDR of the node.
        range: String,
    },
    /// A system call failed.
    #[error("{context}: {source}")]
    Io {
        /// The operation that failed.
        context: String,
        /// Error of the system call.
        #[source]
        source: std::io::Error,
    },
    /// Any other failure; the text includes its causes.
    #[error("{0}")]
    Other(String),
}

/// A host port: a port of the node that is forwarded to a port of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The node's address to listen on; `None` means all.
    pub host_ip: Option<IpAddr>,
    /// Port on the node.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
}

/// A pod sandbox to attach to the network.
#[derive(Clone, Debug)]
pub struct PodAttachment {
    /// Sandbox id; addresses are allocated to it.
    pub sandbox: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Path of the network namespace file.
    pub netns: PathBuf,
    /// Host ports that are forwarded to the pod.
    pub host_ports: Vec<HostPort>,
}

/// A pod network. Both calls are idempotent; `detach` succeeds if the network namespace no longer exists.
///
/// ```
/// use std::net::IpAddr;
/// use async_trait::async_trait;
/// use k8s_net::pod::{PodAttachment, PodNetwork, PodNetworkError};
///
/// /// All pods share the node's address.
/// struct Shared(IpAddr);
///
/// #[async_trait]
/// impl PodNetwork for Shared {
///     async fn attach(&self, _: &PodAttachment) -> Result<Vec<IpAddr>, PodNetworkError> {
///         Ok(vec![self.0])
///     }
///     async fn detach(&self, _: &PodAttachment) -> Result<(), PodNetworkError> {
///         Ok(())
///     }
///     async fn retain(&self, _: &[String]) -> Result<(), PodNetworkError> {
///         Ok(())
///     }
/// }
/// ```
#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Connects the pod and returns its addresses, the primary one first. A repeated call (after a restart of
    /// the node agent) returns the same addresses.
    async fn attach(&self, pod: &PodAttachment) -> Result<Vec<IpAddr>, PodNetworkError>;
    /// Disconnects the pod and frees its addresses.
    async fn detach(&self, pod: &PodAttachment) -> Result<(), PodNetworkError>;
    /// Frees the addresses of all sandboxes that are not in `live` (after a crash).
    async fn retain(&self, live: &[String]) -> Result<(), PodNetworkError>;
}
