//! Result of a reconcile: the next [`Action`], or an [`Error`].

use std::time::Duration;

/// Requests the next reconcile of an object.
///
/// ```
/// use std::time::Duration;
/// use k8s_controllers::Action;
/// let (soon, later) = (Duration::from_secs(5), Duration::from_hours(1));
/// let next = Action::requeue_after(later).or_sooner(Action::requeue_after(soon));
/// assert_eq!(next, Action::requeue_after(soon));
/// assert_eq!(Action::maybe_after(None), Action::await_change());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action {
    pub(crate) after: Option<Duration>,
}

impl Action {
    /// Waits for a change of the object or of an object that it owns or watches.
    #[must_use]
    pub const fn await_change() -> Self {
        Action { after: None }
    }

    /// Reconciles again after `after`, or earlier on a change.
    #[must_use]
    pub const fn requeue_after(after: Duration) -> Self {
        Action { after: Some(after) }
    }

    /// Returns the earlier of two actions.
    #[must_use]
    pub fn or_sooner(self, other: Action) -> Self {
        Action {
            after: match (self.after, other.after) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            },
        }
    }

    /// As [`Action::requeue_after`] for `Some`, [`Action::await_change`] for `None`.
    #[must_use]
    pub const fn maybe_after(after: Option<Duration>) -> Self {
        Action { after }
    }
}

/// Failure of a reconcile. All variants are retried with back-off; the variant determines the log level.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An API call failed. Conflicts are expected and logged at debug level.
    #[error(transparent)]
    Api(#[from] k8s_core::client::Error),
    /// The object cannot be processed in its current state. Retried, because objects that it refers to may
    /// change.
    #[error("{what}: {why}")]
    Invalid {
        /// The object or field.
        what: String,
        /// The reason.
        why: String,
    },
    /// Any other failure.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Creates [`Error::Invalid`].
    ///
    /// ```
    /// let error = k8s_controllers::Error::invalid("spec.schedule", "61 is no minute");
    /// assert_eq!(error.to_string(), "spec.schedule: 61 is no minute");
    /// assert!(!error.is_conflict());
    /// ```
    #[must_use]
    pub fn invalid(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Error::Invalid { what: what.into(), why: why.to_string() }
    }

    /// Returns true if a stale cache caused the error: a conflict, an object that exists already, or `name`
    /// itself was deleted. Expected; the retry resolves it.
    pub(crate) fn is_race(&self, name: &str) -> bool {
        let Error::Api(e) = self else { return false };
        let about = || e.status()?.status().details.as_ref()?.name.as_deref();
        e.is_conflict() || e.is_already_exists() || (e.is_not_found() && about() == Some(name))
    }

    /// Returns true for an optimistic lock conflict: the retry reads the newer version.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Error::Api(e) if e.is_conflict())
    }
}
