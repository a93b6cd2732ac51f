//! Errors of building a server.

use crate::{admission::PluginError, auth::tokens::KeyError};

/// An [`ApiServer`](crate::ApiServer) cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The service account key cannot be used. Give another key, or none.
    #[error(transparent)]
    ServiceAccountKey(#[from] KeyError),
    /// The definition of a Rust type is invalid. Change the type.
    #[error("{kind} cannot be served: {}", problems.join("; "))]
    Definition {
        /// Kind of the type.
        kind: String,
        /// Each problem as `field: message`.
        problems: Vec<String>,
    },
    /// A Rust type has the name of a built-in resource. Change its group or name.
    #[error("{kind} cannot be served: {resource} is a built-in resource")]
    BuiltIn {
        /// Kind of the type.
        kind: String,
        /// The built-in resource.
        resource: String,
    },
    /// The admission plugins cannot be made as asked. Correct the name or configuration.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The front proxy's certificate or key cannot be used. Give another pair, or none.
    #[error("front proxy: {reason}")]
    FrontProxy {
        /// The unusable part.
        reason: String,
    },
    /// The bootstrap objects (namespaces, roles, priority classes) cannot be written.
    #[error("write the bootstrap objects: {0}")]
    Bootstrap(#[source] k8s_core::client::Error),
}

impl BuildError {
    /// Returns true if a setting has a wrong value; another start does not help.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        matches!(self, BuildError::Plugin(_))
    }
}
