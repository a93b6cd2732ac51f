//! Errors of environments and servers.

/// Errors of the creation of a server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnvironmentError {
    /// The server does not start.
    #[error("start the server: {0}")]
    StartEnvironment(String),
    /// A file or directory of definitions cannot be read.
    #[error("{path}: {source}")]
    NoSuchFileOrDirectory {
        /// The path, as it was given.
        path: String,
        /// The I/O error.
        #[source]
        source: std::io::Error,
    },
    /// A definition is not a CustomResourceDefinition, or the server refuses it.
    #[error("{0}")]
    DecodeCrd(String),
    /// A definition does not serialize.
    #[error("serialize a definition: {0}")]
    CrdSerialize(#[from] serde_json::Error),
    /// A value is neither a definition nor a list of definitions.
    #[error("a definition must be an object or an array of objects")]
    UnsupportedCrdType,
}

/// Errors of a running server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The server was destroyed before.
    #[error("the server was destroyed before")]
    EnvironmentDestroyed,
    /// The kubeconfig does not have the wanted type.
    #[error("read the kubeconfig: {0}")]
    Kubeconfig(String),
    /// A client cannot be made.
    #[cfg(feature = "kube")]
    #[error("make a client: {0}")]
    Client(#[from] kube::Error),
}
