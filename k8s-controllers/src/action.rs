//! Result of a reconcile: the next [`Action`], or an [`Error`].

use std::time::Duration;

use k8s_core::api::apimachinery::pkg::apis::meta::v1::StatusCause;

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

    /// Returns true if a stale cache caused the error: a conflict, an object that exists already or was made
    /// anew under its name, or `name` itself was deleted. Expected; the retry resolves it.
    pub(crate) fn is_race(&self, name: &str) -> bool {
        let Error::Api(e) = self else { return false };
        let about = || e.status()?.status().details.as_ref()?.name.as_deref();
        // A write by uid came to another object of that name.
        let is_other =
            || e.is_invalid() && self.causes().any(|cause| cause.field.as_deref() == Some("metadata.uid"));
        e.is_conflict() || e.is_already_exists() || (e.is_not_found() && about() == Some(name)) || is_other()
    }

    /// Returns true for what passes on an ordinary day: something was deleted meanwhile, or is not served
    /// yet. If it lasts, it is worth a warning.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Error::Api(e) if e.is_not_found())
    }

    /// Returns true if a create was refused because its namespace is being deleted. There is nothing to report
    /// or to retry.
    #[must_use]
    pub fn is_namespace_terminating(&self) -> bool {
        let Error::Api(e) = self else { return false };
        let named = self.causes().any(|cause| cause.reason.as_deref() == Some("NamespaceTerminating"));
        named || (e.is_forbidden() && e.to_string().contains("is being terminated"))
    }

    fn causes(&self) -> impl Iterator<Item = &StatusCause> {
        let status = match self {
            Error::Api(e) => e.status(),
            Error::Invalid { .. } | Error::Other(_) => None,
        };
        let details = status.and_then(|status| status.status().details.as_ref());
        details.into_iter().flat_map(|details| details.causes.iter().flatten())
    }

    /// Returns true for an optimistic lock conflict: the retry reads the newer version.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Error::Api(e) if e.is_conflict())
    }
}

#[cfg(test)]
mod tests {
    use k8s_core::{api::apimachinery::pkg::apis::meta::v1::Status, status::ApiStatus};
    use serde_json::{Value, json};

    use super::*;

    fn error(status: Value) -> Error {
        let status: Status = serde_json::from_value(status).unwrap();
        Error::Api(ApiStatus::from_status(status).into())
    }

    #[test]
    fn an_ordinary_day_is_known_from_a_failure() {
        let of = |code: u16, reason: &str, details: Value| {
            error(json!({"status": "Failure", "code": code, "reason": reason, "details": details}))
        };
        let gone = of(404, "NotFound", json!({"name": "web", "kind": "pods"}));
        assert!(gone.is_race("web") && gone.may_pass());
        assert!(!gone.is_race("other") && !gone.is_namespace_terminating());
        let unserved = of(404, "NotFound", json!({}));
        assert!(unserved.may_pass() && !unserved.is_race("web"));
        let anew =
            of(422, "Invalid", json!({"causes": [{"field": "metadata.uid", "reason": "FieldValueInvalid"}]}));
        assert!(anew.is_race("web"));
        let wrong = of(422, "Invalid", json!({"causes": [{"field": "spec", "reason": "FieldValueInvalid"}]}));
        assert!(!wrong.is_race("web") && !wrong.may_pass());
        let ending = of(
            403,
            "Forbidden",
            json!({"causes": [{"reason": "NamespaceTerminating", "field": "metadata.namespace"}]}),
        );
        assert!(ending.is_namespace_terminating() && !ending.is_race("web"));
        assert!(!of(403, "Forbidden", json!({})).is_namespace_terminating());
    }
}
