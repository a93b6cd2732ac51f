//! The common interface of ReplicaSet and ReplicationController.

use k8s_core::{
    api::{
        api::{
            apps::v1::ReplicaSet,
            core::v1::{PodTemplateSpec, ReplicationController},
        },
        apimachinery::pkg::apis::meta::v1::Time,
    },
    meta::{LabelSelector, Object, selector::SelectorError},
};

use crate::conditions::{self, Condition};

/// Observed state of the owner's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReplicaStatus {
    /// Number of active pods.
    pub(crate) replicas: i32,
    /// Number of pods with all labels of the template.
    pub(crate) fully_labeled: i32,
    /// Number of ready pods.
    pub(crate) ready: i32,
    /// Number of pods that are ready for `minReadySeconds`.
    pub(crate) available: i32,
    /// Number of pods that are being deleted.
    pub(crate) terminating: i32,
    /// Reason and message of a failed create or delete.
    pub(crate) failure: Option<(String, String)>,
}

/// A kind that maintains a number of pods of a template.
pub(crate) trait Replicated: Object + PartialEq {
    /// Returns the desired number of pods.
    fn replicas(&self) -> i32;
    /// Returns the pod selector.
    ///
    /// # Errors
    /// The selector is malformed.
    fn selector(&self) -> Result<LabelSelector, SelectorError>;
    /// Returns the pod template.
    fn template(&self) -> PodTemplateSpec;
    /// Returns the time that a pod must be ready to be available.
    fn min_ready_seconds(&self) -> i32;
    /// Writes the observed state to the status.
    fn set_status(&mut self, found: &ReplicaStatus, now: &Time);
}

/// A persistent failure keeps its first message: messages contain generated pod names, which differ each
/// time.
fn set_failure<C: Condition>(conditions: &mut Option<Vec<C>>, found: &ReplicaStatus, now: &Time) {
    match &found.failure {
        Some(_) if conditions::find(conditions.as_ref(), "ReplicaFailure").is_some() => {}
        Some((reason, message)) => {
            conditions::set(conditions, C::make("ReplicaFailure", "True", reason, message, now));
        }
        None => conditions::remove(conditions, "ReplicaFailure"),
    }
}

/// Implements [`Replicated`] for a type. The two types have the same fields, except for the type of the
/// selector and `terminating_replicas`.
macro_rules! replicated {
    ($kind:ty, |$spec:ident| $selector:expr, |$status:ident, $found:ident| $rest:expr) => {
        impl Replicated for $kind {
            fn replicas(&self) -> i32 {
                self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
            }
            fn selector(&self) -> Result<LabelSelector, SelectorError> {
                self.spec.as_ref().map_or_else(|| Ok(LabelSelector::default()), |$spec| $selector)
            }
            fn template(&self) -> PodTemplateSpec {
                self.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default()
            }
            fn min_ready_seconds(&self) -> i32 {
                self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
            }
            fn set_status(&mut self, $found: &ReplicaStatus, now: &Time) {
                let generation = self.metadata.generation;
                let $status = self.status.get_or_insert_default();
                $status.replicas = $found.replicas;
                count(&mut $status.fully_labeled_replicas, $found.fully_labeled);
                count(&mut $status.ready_replicas, $found.ready);
                count(&mut $status.available_replicas, $found.available);
                $status.observed_generation = generation;
                set_failure(&mut $status.conditions, $found, now);
                $rest
            }
        }
    };
}

replicated!(ReplicaSet, |spec| LabelSelector::from_api(&spec.selector), |status, found| {
    // Zero is written, too: an absent field means unknown.
    status.terminating_replicas = Some(found.terminating);
});

replicated!(
    ReplicationController,
    |spec| Ok(spec.selector.as_ref().map(LabelSelector::from_labels).unwrap_or_default()),
    |status, found| {}
);

/// Sets a counter, with zero as `None` like the API, so that an unchanged status compares equal.
pub(crate) fn count(field: &mut Option<i32>, value: i32) {
    if field.unwrap_or(0) != value {
        *field = (value != 0).then_some(value);
    }
}
