//! Reads and sets conditions of any object by type.
//!
//! They are accessed by API convention in `status.conditions`, whatever the Rust type of the list: built-in
//! types have several, and custom resources have their own. No trait must be implemented.

use std::ops::{Deref, DerefMut};

use k8s_core::{
    api::apimachinery::pkg::apis::meta::v1::Time,
    json,
    meta::{Object, ObjectExt},
};
use serde_json::{Value, json};

/// Reads an object's conditions.
///
/// ```
/// use k8s_controllers::Conditions;
/// use k8s_core::api::Deployment;
/// let web: Deployment = serde_json::from_value(serde_json::json!({
///     "metadata": {"generation": 2},
///     "status": {"observedGeneration": 2, "conditions": [{"type": "Available", "status": "True"}]},
/// }))?;
/// assert!(web.is_available() && !web.is_ready());
/// # Ok::<(), serde_json::Error>(())
/// ```
pub trait Conditions {
    /// Returns true if a condition is `True` for the object's current generation.
    fn condition(&self, kind: &str) -> bool;

    /// Returns true if the object is `Ready`.
    fn is_ready(&self) -> bool {
        self.condition("Ready")
    }

    /// Returns true if the object is `Available`.
    fn is_available(&self) -> bool {
        self.condition("Available")
    }
}

impl<K: Object> Conditions for K {
    fn condition(&self, kind: &str) -> bool {
        let Ok(text) = json::to_vec(self) else { return false };
        let Ok(status) = json::read::<Value>(&text, &["status"]) else { return false };
        let generation = self.metadata().generation.unwrap_or(0);
        let seen = |of: &Value| of["observedGeneration"].as_i64().is_none_or(|seen| seen >= generation);
        let mut all = status["conditions"].as_array().into_iter().flatten();
        let found = all.rfind(|c| c["type"] == kind);
        found.is_some_and(|c| c["status"] == "True" && seen(c)) && seen(&status)
    }
}

/// An object whose status is being changed.
#[derive(Debug)]
pub struct StatusOf<'a, T> {
    object: &'a mut T,
    now: Time,
}

impl<T> Deref for StatusOf<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.object
    }
}

impl<T> DerefMut for StatusOf<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.object
    }
}

impl<'a, T: Object> StatusOf<'a, T> {
    pub(crate) fn new(object: &'a mut T, now: Time) -> Self {
        StatusOf { object, now }
    }

    /// Sets a condition. Its transition time changes with its status.
    pub fn set_condition(&mut self, kind: &str, holds: bool, reason: &str) {
        self.set_condition_because(kind, holds, reason, "");
    }

    /// Sets a condition with a message.
    pub fn set_condition_because(&mut self, kind: &str, holds: bool, reason: &str, message: &str) {
        // An object that cannot be encoded could not be sent either.
        let Ok(mut object) = json::to_value(&*self.object) else { return };
        if !object["status"].is_object() {
            object["status"] = json!({});
        }
        let generation = self.object.metadata().generation;
        let list = &mut object["status"]["conditions"];
        if !list.is_array() {
            *list = json!([]);
        }
        let Some(list) = list.as_array_mut() else { return };
        let now = json!(self.now);
        let mut next = json!({
            "type": kind, "status": if holds { "True" } else { "False" }, "reason": reason, "message": message,
            "lastTransitionTime": now,
        });
        if let Some(generation) = generation {
            next["observedGeneration"] = generation.into();
        }
        match list.iter_mut().find(|c| c["type"] == kind) {
            Some(known) => {
                if known["status"] == next["status"] {
                    next["lastTransitionTime"] = known["lastTransitionTime"].clone();
                }
                if let (Some(known), Value::Object(next)) = (known.as_object_mut(), next) {
                    known.extend(next);
                }
            }
            None => list.push(next),
        }
        match json::from_value(&object) {
            Ok(object) => *self.object = object,
            Err(e) => {
                tracing::error!(object = %self.object.key(), condition = kind, error = %e, "the condition cannot be set in this type of status");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_core::api::{
        api::{apps::v1::Deployment, core::v1::Pod},
        jiff::Timestamp,
    };

    use super::*;

    #[test]
    fn transition_times_change_with_the_status_alone() {
        let at = |second| Time(Timestamp::from_second(second).unwrap());
        let mut pod = Pod::default();
        StatusOf::new(&mut pod, at(1)).set_condition("Ready", false, "Starting");
        StatusOf::new(&mut pod, at(2)).set_condition("Ready", false, "Slow");
        let of = |pod: &Pod| pod.status.clone().unwrap().conditions.unwrap()[0].clone();
        assert_eq!((of(&pod).last_transition_time, of(&pod).reason.as_deref()), (Some(at(1)), Some("Slow")));
        assert!(!pod.is_ready());
        StatusOf::new(&mut pod, at(3)).set_condition("Ready", true, "Up");
        assert_eq!(of(&pod).last_transition_time, Some(at(3)));
        assert!(pod.is_ready() && !pod.condition("Other"));
    }

    #[test]
    fn what_was_said_of_an_older_generation_does_not_count() {
        let mut deployment = Deployment::default();
        StatusOf::new(&mut deployment, Time(Timestamp::UNIX_EPOCH)).set_condition("Available", true, "Yes");
        assert!(deployment.is_available());
        deployment.metadata.generation = Some(2);
        deployment.status.as_mut().unwrap().observed_generation = Some(1);
        assert!(!deployment.is_available());
    }
}
