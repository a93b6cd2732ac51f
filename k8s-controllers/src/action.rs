//! What a reconcile says at its end.

use std::time::Duration;

/// When to look at the object again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action {
    pub(crate) after: Option<Duration>,
}

impl Action {
    /// When something it depends on changes.
    #[must_use]
    pub const fn await_change() -> Self {
        Action { after: None }
    }

    /// After so much time, or earlier when something changes.
    #[must_use]
    pub const fn requeue_after(after: Duration) -> Self {
        Action { after: Some(after) }
    }

    /// The earlier of two.
    #[must_use]
    pub fn or_sooner(self, other: Action) -> Self {
        Action {
            after: match (self.after, other.after) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            },
        }
    }

    /// After so much time where there is one.
    #[must_use]
    pub const fn maybe_after(after: Option<Duration>) -> Self {
        Action { after }
    }
}

/// Why a reconcile did not reach its end. All are retried with back-off; what the variant says is how loudly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An API call failed. Conflicts are part of life and not logged as errors.
    #[error(transparent)]
    Api(#[from] k8s_core::client::Error),
    /// The object cannot be acted on as it is. Retried because what it refers to may change.
    #[error("{what}: {why}")]
    Invalid {
        /// The object or field.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// Anything else.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// An object that cannot be acted on.
    #[must_use]
    pub fn invalid(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Error::Invalid { what: what.into(), why: why.to_string() }
    }

    /// Whether the cache was behind: something changed meanwhile, or was made already, or the object called `name` itself is gone. Part of life, and
    /// mended by the retry.
    pub(crate) fn is_race(&self, name: &str) -> bool {
        let Error::Api(e) = self else { return false };
        let about = || e.status()?.status().details.as_ref()?.name.as_deref();
        e.is_conflict() || e.is_already_exists() || (e.is_not_found() && about() == Some(name))
    }

    /// Whether someone else wrote meanwhile: the retry reads anew.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Error::Api(e) if e.is_conflict())
    }
}
