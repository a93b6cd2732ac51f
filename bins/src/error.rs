//! Errors of a cluster.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use k8s_store::OpenError;

use crate::pki::PkiError;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A cluster cannot be started, used or removed. The variant says what the caller can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// A setting is invalid. Change it.
    #[error("{setting}: {reason}")]
    Invalid {
        /// Name of the setting, or path of the file that has it; change the value there.
        setting: String,
        /// The problem and the valid values, as a text for the user.
        reason: String,
    },
    /// Another program listens on the address. Stop it, or choose another port.
    #[error("listen on {address}: {source}; stop what uses it or choose another port")]
    AddressInUse {
        /// The address of [`listen`](crate::ClusterBuilder::listen) or of a flag. With port 0 the system
        /// picks a free port.
        address: SocketAddr,
        /// The system call's error, of the kind [`io::ErrorKind::AddrInUse`].
        #[source]
        source: io::Error,
    },
    /// Another program, such as a kubelet, listens on the port of the node's kubelet. Stop it, or choose
    /// another port.
    #[error(
        "listen on {address} for the kubelet: {source}; stop what uses it or choose another --kubelet-port (0: none)"
    )]
    KubeletPortInUse {
        /// The node's address with the port of [`kubelet_port`](crate::ClusterBuilder::kubelet_port).
        address: SocketAddr,
        /// The system call's error, of the kind [`io::ErrorKind::AddrInUse`].
        #[source]
        source: io::Error,
    },
    /// The address cannot be listened on: it is not this machine's, or the port needs a privilege.
    #[error("listen on {address}: {source}")]
    Listen {
        /// The address of [`listen`](crate::ClusterBuilder::listen) or of a flag. Choose one of this machine,
        /// and a port from 1024 on if the process is not root.
        address: SocketAddr,
        /// The system call's error: `AddrNotAvailable` for a foreign address, `PermissionDenied` for the
        /// port.
        #[source]
        source: io::Error,
    },
    /// A running cluster holds the data directory. Stop it, or choose another directory.
    #[error(
        "data directory {path:?} is in use by another {owner}; stop that one or choose another with --data-dir"
    )]
    DirectoryInUse {
        /// The data directory. It is free once the running cluster has shut down.
        path: PathBuf,
        /// Name of the running cluster's distribution, which is also the name of its program.
        owner: String,
    },
    /// The data directory cannot be used: not accessible, or with foreign content. Choose another one.
    #[error("data directory {path:?}: {source}; choose another with --data-dir")]
    Directory {
        /// The data directory. A new or empty one is created or used.
        path: PathBuf,
        /// The system call's error; of the kind [`io::ErrorKind::DirectoryNotEmpty`] for foreign content,
        /// which the error names.
        #[source]
        source: io::Error,
    },
    /// A newer program wrote the data directory. Use that program, or another directory.
    #[error(
        "data directory {path:?} has format {have}, this program knows formats up to {known}; use the newer program or another --data-dir"
    )]
    NewerFormat {
        /// The data directory, which is left unchanged.
        path: PathBuf,
        /// Its layout version. A program that knows it can use the directory.
        have: String,
        /// The newest layout version that this program knows.
        known: u32,
    },
    /// The data directory belongs to another distribution. Use that program, or another directory.
    #[error("data directory {path:?} is one of {owner}, not of {name}; use {owner} or another --data-dir")]
    OtherDistribution {
        /// The data directory, which is left unchanged.
        path: PathBuf,
        /// Name of the distribution that created it. The program of this name can use and remove it.
        owner: String,
        /// Name of this distribution: see [`name`](crate::ClusterBuilder::name).
        name: String,
    },
    /// The directory is no data directory, so nothing in it is removed.
    #[error(
        "{} is no data directory of a cluster (there is no file `format` in it); nothing was removed",
        path.display()
    )]
    NoDataDirectory {
        /// The directory that was given. Give the data directory of a cluster instead.
        path: PathBuf,
    },
    /// This machine lacks a requirement of containers or their network. Install or enable it.
    #[error("this machine cannot run containers: {}", missing.join("; "))]
    Machine {
        /// One text for each missing requirement, with its remedy. Without them, use
        /// [`Node::Simulated`](crate::Node::Simulated).
        missing: Vec<String>,
    },
    /// The process lacks a permission. Run it as the named user.
    #[error("{0}")]
    Permission(String),
    /// The store's file lost its content. Restore it, or give it up.
    #[error(
        "the cluster's state {} cannot be used: {reason}. Put a copy of it back, or start with --forget-state: the file is set aside, and the containers of its pods are removed",
        path.display()
    )]
    StateLost {
        /// The store's file. Put a copy of it back, or set
        /// [`forget_state`](crate::ClusterBuilder::forget_state).
        path: PathBuf,
        /// The reason, such as an empty file or containers without a file.
        reason: &'static str,
    },
    /// The store's file cannot be opened: another process holds it, or the disk refuses. The inner error has
    /// the path.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// A certificate or key cannot be read or created. The inner error names the file; remove a damaged one,
    /// and the next start creates another.
    #[error("certificates: {0}")]
    Certificate(#[from] PkiError),
    /// The API server cannot be built from its parts. The inner error names the key or the type to change.
    #[error("start the API server: {0}")]
    ApiServer(#[from] k8s_apiserver::BuildError),
    /// A node is not ready in time. Its log has the reason.
    #[error("node {node} was not ready within {} s", within.as_secs())]
    NotReady {
        /// Name of the node that was waited for. It goes on starting; [`ready`](crate::Cluster::ready) can be
        /// called again.
        node: String,
        /// The timeout that the caller gave.
        within: Duration,
    },
    /// A kubeconfig needs an address, and the cluster listens on none: see
    /// [`listen`](crate::ClusterBuilder::listen).
    #[error("this cluster listens on no address, so there is no kubeconfig for it")]
    NoAddress,
    /// A file, a socket or the kernel refused an operation. Try again after the cause is removed.
    #[error("{what}: {source}")]
    Io {
        /// The operation that was refused, with its path or address.
        what: String,
        /// The system call's error.
        #[source]
        source: io::Error,
    },
    /// Something of a removed cluster remains on the machine. Each line names it and the reason.
    #[error("{}", remains.join("; "))]
    Remains {
        /// One text for each remaining thing. Remove the cause, and remove the cluster again.
        remains: Vec<String>,
    },
    /// A component failed to start or to serve. Its own error says why.
    #[error("{what}: {source}")]
    Component {
        /// The component, or the operation that it failed at.
        what: String,
        /// The component's own error, for [`std::error::Error::source`] chains; its type is no promise.
        #[source]
        source: BoxError,
    },
}

impl ClusterError {
    /// For `map_err`: [`ClusterError::Component`].
    pub(crate) fn of<E: Into<BoxError>>(what: impl Into<String>) -> impl FnOnce(E) -> ClusterError {
        move |e| ClusterError::Component { what: what.into(), source: e.into() }
    }

    /// For `map_err`: [`ClusterError::Io`].
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> ClusterError {
        move |source| ClusterError::Io { what: what.into(), source }
    }

    /// Creates [`ClusterError::Invalid`].
    pub(crate) fn invalid(setting: impl Into<String>, reason: impl std::fmt::Display) -> ClusterError {
        ClusterError::Invalid { setting: setting.into(), reason: reason.to_string() }
    }
}
