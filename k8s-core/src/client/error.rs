//! What can go wrong in a call.

use crate::status::ApiStatus;

/// A failed API call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server said no. Its code and reason say whether to retry.
    #[error("{0}")]
    Api(#[from] ApiStatus),
    /// The server was not reached or the connection broke. Retryable; a write may have happened.
    #[error("{context}: {source}")]
    Transport {
        /// Method and path.
        context: String,
        /// What broke.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer was not what the type expects. Not retryable.
    #[error("decode {what}: {source}")]
    Decode {
        /// Type or path.
        what: String,
        /// Where it does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// The request could not be built. Not retryable.
    #[error("invalid request: {0}")]
    Request(String),
}

impl Error {
    /// The server's status, if it answered.
    #[must_use]
    pub fn status(&self) -> Option<&ApiStatus> {
        match self {
            Error::Api(status) => Some(status),
            Error::Transport { .. } | Error::Decode { .. } | Error::Request(_) => None,
        }
    }

    fn is(&self, code: u16, reason: &str) -> bool {
        self.status().is_some_and(|s| s.code() == code && (reason.is_empty() || s.reason() == reason))
    }

    /// 404.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.is(404, "")
    }

    /// 409 because it exists already.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        self.is(409, "AlreadyExists")
    }

    /// 409 because it changed meanwhile: read again and retry.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.is(409, "Conflict")
    }

    /// 410: the revision is no longer in history; list again.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.is(410, "")
    }

    /// 422 or 400: the object is not acceptable as it is.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        self.is(422, "") || self.is(400, "")
    }

    /// 403.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        self.is(403, "")
    }
}
