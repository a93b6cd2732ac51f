//! Errors of API calls.

use crate::status::ApiStatus;

/// A failed API call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server returned an error status. Its code and reason tell whether to retry.
    #[error("{0}")]
    Api(#[from] ApiStatus),
    /// The server was not reached or the connection broke. Retryable; a write may have taken effect.
    #[error("{context}: {source}")]
    Transport {
        /// Method and path of the request.
        context: String,
        /// Cause: DNS, connection, TLS or HTTP.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The response does not deserialize. Not retryable.
    #[error("decode {what}: {source}")]
    Decode {
        /// Rust type, or path of the request.
        what: String,
        /// Cause, with line and column in the response.
        #[source]
        source: serde_json::Error,
    },
    /// The request could not be built. Not retryable.
    #[error("invalid request: {0}")]
    Request(String),
    /// The kubeconfig or the service account is not usable. Not retryable.
    #[error(transparent)]
    Config(#[from] super::KubeconfigError),
}

impl Error {
    /// Returns the server's status, if it responded.
    #[must_use]
    pub fn status(&self) -> Option<&ApiStatus> {
        match self {
            Error::Api(status) => Some(status),
            Error::Transport { .. } | Error::Decode { .. } | Error::Request(_) | Error::Config(_) => None,
        }
    }

    /// Returns true if the same call may succeed later: connection errors, 410, 429 and server errors.
    ///
    /// ```
    /// use k8s_core::{client::Error, status::ApiStatus};
    /// assert!(Error::from(ApiStatus::new(429, "TooManyRequests", "busy")).is_transient());
    /// let taken = Error::from(ApiStatus::already_exists("", "pods", "web"));
    /// assert!(taken.is_already_exists() && !taken.is_transient());
    /// assert_eq!(taken.status().map(ApiStatus::message), Some(r#"pods "web" already exists"#));
    /// ```
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Transport { .. } => true,
            Error::Api(status) => matches!(status.code(), 410 | 429 | 500..),
            Error::Decode { .. } | Error::Request(_) | Error::Config(_) => false,
        }
    }

    fn is(&self, code: u16, reason: &str) -> bool {
        self.status().is_some_and(|s| s.code() == code && (reason.is_empty() || s.reason() == reason))
    }

    /// Returns true for 404.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.is(404, "")
    }

    /// Returns true for 409 AlreadyExists.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        self.is(409, "AlreadyExists")
    }

    /// Returns true for 409 Conflict, the optimistic lock: read again and retry.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.is(409, "Conflict")
    }

    /// Returns true for 410: the revision is no longer in history; list again.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.is(410, "")
    }

    /// Returns true for 422 and 400: the object is invalid.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        self.is(422, "") || self.is(400, "")
    }

    /// Returns true for 403.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        self.is(403, "")
    }
}
