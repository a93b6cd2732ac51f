//! A plugin's reasons against a node.

use std::borrow::Cow;

/// Reasons of a rejection: by one node, or from `prepare` by all nodes. Users see them in events.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reject {
    /// One or more reasons.
    pub reasons: Vec<Cow<'static, str>>,
    /// True if preemption could help.
    pub resolvable: bool,
}

impl Reject {
    /// Creates a rejection that preemption could resolve.
    #[must_use]
    pub fn full(reason: impl Into<Cow<'static, str>>) -> Self {
        Reject { reasons: vec![reason.into()], resolvable: true }
    }

    /// Creates a rejection that preemption cannot resolve.
    #[must_use]
    pub fn never(reason: impl Into<Cow<'static, str>>) -> Self {
        Reject { reasons: vec![reason.into()], resolvable: false }
    }
}
