//! Questions about a user's rights: the values behind `authorizer`.

use std::{fmt::Debug, sync::Arc};

/// A question whether a user may do something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AccessCheck {
    /// Namespace and name of the service account that is meant; `None` for the user of the request.
    pub service_account: Option<(String, String)>,
    /// Path of a request that is for no resource; empty for a resource.
    pub path: String,
    /// API group of the resource; empty for the core group.
    pub group: String,
    /// Plural name of the resource.
    pub resource: String,
    /// Subresource; empty for none.
    pub subresource: String,
    /// Namespace; empty for all.
    pub namespace: String,
    /// Object name; empty for all.
    pub name: String,
    /// Text of a field selector; empty for none.
    pub field_selector: String,
    /// Text of a label selector; empty for none.
    pub label_selector: String,
    /// Verb, such as `get`.
    pub verb: String,
}

/// An answer to an [`AccessCheck`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessAnswer {
    /// True if the user may do it.
    pub allowed: bool,
    /// Reason of the decision; may be empty.
    pub reason: String,
    /// The reason for which it could not be decided, if so.
    pub error: Option<String>,
}

/// Something that decides about rights, behind the variable `authorizer`.
///
/// An expression runs without waiting. An answer that is not there yet ends it with
/// [`EvalError::Pending`](crate::EvalError::Pending); the caller finds the answer and evaluates again.
pub trait Authority: Debug + Send + Sync {
    /// Returns the answer to a question; `None` if it is not there yet.
    fn decide(&self, check: &AccessCheck) -> Option<AccessAnswer>;
}

/// The part of a question that an expression has composed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Authorizer,
    Path,
    Group,
    Resource,
    Decision,
}

/// A question, or its answer.
#[derive(Clone, Debug)]
pub struct Access {
    pub(crate) stage: Stage,
    pub(crate) authority: Arc<dyn Authority>,
    pub(crate) check: AccessCheck,
    pub(crate) answer: AccessAnswer,
}

impl Access {
    /// Returns the value of the variable `authorizer`.
    #[must_use]
    pub fn authorizer(authority: Arc<dyn Authority>) -> Self {
        Access {
            stage: Stage::Authorizer,
            authority,
            check: AccessCheck::default(),
            answer: AccessAnswer::default(),
        }
    }

    /// Returns the value of a question about a resource, whose verb is open:
    /// the variable `authorizer.requestResource`.
    #[must_use]
    pub fn resource(authority: Arc<dyn Authority>, check: AccessCheck) -> Self {
        Access { stage: Stage::Resource, authority, check, answer: AccessAnswer::default() }
    }
}
