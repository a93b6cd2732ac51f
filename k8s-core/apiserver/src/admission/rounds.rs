//! Rounds of the plugins that change objects: a webhook or policy may ask to be called again if the object
//! changes after it.

use std::collections::HashSet;

use serde_json::Value;

/// The rounds of one request; there are two at most.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    /// True in the second round.
    pub(crate) again: bool,
    /// A plugin asks for a second round.
    pub(crate) wanted: bool,
    /// Webhooks and policies that were called, and are called again if the object changes after them.
    waiting: HashSet<String>,
    /// Those after which the object has changed.
    due: HashSet<String>,
    /// The object after the last call.
    last: Option<Value>,
}

impl Rounds {
    /// Notes a call of one that is to be called again.
    pub(crate) fn wait(&mut self, id: &str) {
        self.waiting.insert(id.to_owned());
    }

    /// Returns true if the second round calls this one.
    pub(crate) fn is_due(&self, id: &str) -> bool {
        self.due.contains(id)
    }

    /// The object has changed: all that wait are called again.
    pub(crate) fn call_again(&mut self) {
        self.due.extend(self.waiting.drain());
    }

    /// Keeps the object as it is after the calls, if a second round may need it.
    pub(crate) fn remember(&mut self, object: &Value) {
        if !self.again && self.wanted && !self.waiting.is_empty() {
            self.last = Some(object.clone());
        }
    }

    /// Returns true if the object differs from the remembered one.
    pub(crate) fn changed_since(&self, object: &Value) -> bool {
        self.last.as_ref().is_some_and(|last| last != object)
    }
}
