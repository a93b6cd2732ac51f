//! The trait between the kubelet and whatever connects pods.

use std::{net::IpAddr, path::PathBuf};

use async_trait::async_trait;

/// What can go wrong when a pod is connected or disconnected. Every variant is retryable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PodNetworkError {
    /// All of the node's pod addresses are in use.
    #[error("no free address in {range}")]
    Exhausted {
        /// The node's pod range.
        range: String,
    },
    /// The system refused something.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Anything else, with its whole story.
    #[error("{0}")]
    Other(String),
}

/// A port of the node that leads to a port of the pod (`hostPort`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The node's address to listen on; `None`: all.
    pub host_ip: Option<IpAddr>,
    /// Port on the node.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
}

/// A pod's sandbox that wants a network.
#[derive(Clone, Debug)]
pub struct PodAttachment {
    /// The sandbox's id; addresses are allocated to it.
    pub sandbox: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// File that holds the network namespace.
    pub netns: PathBuf,
    /// Ports of the node that lead here.
    pub host_ports: Vec<HostPort>,
}

/// Connects pods. Both calls are idempotent; `detach` succeeds when the namespace is gone already.
#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Connects the pod and returns its addresses, the primary one first. Called again (after a restart of the node agent)
    /// it returns the same addresses.
    async fn attach(&self, pod: &PodAttachment) -> Result<Vec<IpAddr>, PodNetworkError>;
    /// Disconnects the pod and frees its addresses.
    async fn detach(&self, pod: &PodAttachment) -> Result<(), PodNetworkError>;
    /// Frees the addresses of every sandbox that is not in `live` (after a crash).
    async fn retain(&self, live: &[String]) -> Result<(), PodNetworkError>;
}
