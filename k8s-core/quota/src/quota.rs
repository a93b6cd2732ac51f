//! A quota: the objects that it is about, and the decision about a charge.

use jiff::Timestamp;
use serde_json::Value;

use crate::{Amounts, Selector, kinds, pod, scopes};

/// The reason why a quota refuses a write, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The object lacks amounts that the quota limits.
    #[error("failed quota: {quota}: {what}")]
    Missing {
        /// Name of the quota.
        quota: String,
        /// `must specify ...`.
        what: String,
    },
    /// The controller has not yet counted what exists. Retry later.
    #[error("status unknown for quota: {quota}, resources: {resources}")]
    Unknown {
        /// Name of the quota.
        quota: String,
        /// Limited names, separated by commas.
        resources: String,
    },
    /// The object asks for less than nothing.
    #[error("quota usage is negative for resource(s): {resources}")]
    Negative {
        /// Names, separated by commas.
        resources: String,
    },
    /// The limit would be exceeded.
    #[error("exceeded quota: {quota}, requested: {requested}, used: {used}, limited: {limited}")]
    Exceeded {
        /// Name of the quota.
        quota: String,
        /// Amounts that the write asks for, of the names that would be exceeded.
        requested: Amounts,
        /// Amounts that are used.
        used: Amounts,
        /// Limits.
        limited: Amounts,
    },
}

/// A ResourceQuota, read once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Name of the object.
    pub name: String,
    /// Limits of the spec.
    pub wanted: Amounts,
    /// Limits in force: those of the status.
    pub hard: Amounts,
    /// Amounts in use, as the status has them.
    pub used: Amounts,
    scopes: Vec<Selector>,
}

impl Quota {
    /// Reads a ResourceQuota.
    #[must_use]
    pub fn of(object: &Value) -> Self {
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        Quota {
            name: name.to_owned(),
            wanted: Amounts::of(object.pointer("/spec/hard")),
            hard: Amounts::of(object.pointer("/status/hard")),
            used: Amounts::of(object.pointer("/status/used")),
            scopes: object.get("spec").map(scopes::of_spec).unwrap_or_default(),
        }
    }

    /// Returns the terms of the quota's scopes.
    #[must_use]
    pub fn scopes(&self) -> &[Selector] {
        &self.scopes
    }

    /// Returns true if an object of a resource is in all scopes of the quota.
    #[must_use]
    pub fn selects(&self, resource: &str, object: &Value) -> bool {
        self.scopes.iter().all(|scope| scope.selects(resource, object))
    }

    /// Returns the amounts that a write adds to `used`. Empty: the quota is not about the object, or its
    /// usage does not grow. `old` is the object before an update; of it, only the difference is charged.
    ///
    /// # Errors
    /// [`Refusal`]: the write must not happen.
    pub fn charge(
        &self,
        resource: &str,
        object: &Value,
        old: Option<&Value>,
        now: Timestamp,
    ) -> Result<Amounts, Refusal> {
        let limits = |name: &str| self.hard.get(name).is_some() && kinds::resource_of(name) == Some(resource);
        let names: Vec<&str> = self.hard.names().filter(|name| limits(name)).collect();
        // Only a resize changes the resources of a pod; its deadline changes the scopes that it is in.
        let is_same = |old: &Value| {
            resource == "pods"
                && pod::has_deadline(old) == pod::has_deadline(object)
                && kinds::usage(resource, old, now) == kinds::usage(resource, object, now)
        };
        if names.is_empty() || old.is_some_and(is_same) || !self.selects(resource, object) {
            return Ok(Amounts::default());
        }
        if resource == "pods"
            && let Some(what) = pod::missing(object, names.iter().copied())
        {
            return Err(Refusal::Missing { quota: self.name.clone(), what });
        }
        if names.iter().any(|name| self.used.get(name).is_none()) {
            return Err(Refusal::Unknown { quota: self.name.clone(), resources: names.join(",") });
        }
        let mut charge = kinds::usage(resource, object, now);
        let negative: Vec<&str> =
            charge.iter().filter(|(_, a)| a.is_negative()).map(|(name, _)| name).collect();
        if !negative.is_empty() {
            return Err(Refusal::Negative { resources: negative.join(",") });
        }
        if let Some(old) = old.filter(|old| self.selects(resource, old)) {
            charge.subtract(&kinds::usage(resource, old, now));
        }
        let charge = charge.only(limits).without_zeros();
        let mut after = self.used.clone();
        after.add(&charge);
        let is_exceeded = |name: &str| charge.get(name).is_some() && after.get(name) > self.hard.get(name);
        if charge.names().any(is_exceeded) {
            return Err(Refusal::Exceeded {
                quota: self.name.clone(),
                requested: charge.clone().only(is_exceeded),
                used: self.used.clone().only(is_exceeded),
                limited: self.hard.clone().only(is_exceeded),
            });
        }
        Ok(charge)
    }
}
