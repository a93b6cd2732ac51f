//! What ReplicaSet and ReplicationController have in common.

use k8s_core::{
    api::{
        api::{
            apps::v1::{ReplicaSet, ReplicaSetCondition},
            core::v1::{PodTemplateSpec, ReplicationController, ReplicationControllerCondition},
        },
        apimachinery::pkg::apis::meta::v1::Time,
    },
    meta::{LabelSelector, Object, selector::SelectorError},
};

use crate::conditions::{self, Condition};

/// What is found out about the pods of an owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReplicaStatus {
    /// Active pods.
    pub(crate) replicas: i32,
    /// Those with all labels of the template.
    pub(crate) fully_labeled: i32,
    /// Those that are ready.
    pub(crate) ready: i32,
    /// Those that have been ready for long enough.
    pub(crate) available: i32,
    /// Pods that are being deleted.
    pub(crate) terminating: i32,
    /// Reason and message of a write that failed.
    pub(crate) failure: Option<(String, String)>,
}

/// A kind that keeps so many pods of a template.
pub(crate) trait Replicated: Object + PartialEq {
    /// How many.
    fn replicas(&self) -> i32;
    /// Which pods count.
    ///
    /// # Errors
    /// When the selector is malformed.
    fn selector(&self) -> Result<LabelSelector, SelectorError>;
    /// What they are like.
    fn template(&self) -> PodTemplateSpec;
    /// How long a pod must be ready before it is available.
    fn min_ready_seconds(&self) -> i32;
    /// Writes down what was found out.
    fn set_status(&mut self, found: &ReplicaStatus, now: &Time);
}

/// A failure that lasts keeps its first message: messages name the pods that could not be made, and those differ each time.
fn set_failure<C: Condition>(conditions: &mut Option<Vec<C>>, found: &ReplicaStatus, now: &Time) {
    match &found.failure {
        Some(_) if conditions::find(conditions.as_ref(), "ReplicaFailure").is_some() => {}
        Some((reason, message)) => {
            conditions::set(conditions, C::make("ReplicaFailure", "True", reason, message, now));
        }
        None => conditions::remove(conditions, "ReplicaFailure"),
    }
}

impl Replicated for ReplicaSet {
    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }
    fn selector(&self) -> Result<LabelSelector, SelectorError> {
        self.spec
            .as_ref()
            .map_or_else(|| Ok(LabelSelector::default()), |s| LabelSelector::from_api(&s.selector))
    }
    fn template(&self) -> PodTemplateSpec {
        self.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default()
    }
    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }
    fn set_status(&mut self, found: &ReplicaStatus, now: &Time) {
        let generation = self.metadata.generation;
        let status = self.status.get_or_insert_default();
        status.replicas = found.replicas;
        count(&mut status.fully_labeled_replicas, found.fully_labeled);
        count(&mut status.ready_replicas, found.ready);
        count(&mut status.available_replicas, found.available);
        // Zero too is written: without it, nobody could tell whether it was looked at.
        status.terminating_replicas = Some(found.terminating);
        status.observed_generation = generation;
        set_failure::<ReplicaSetCondition>(&mut status.conditions, found, now);
    }
}

impl Replicated for ReplicationController {
    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }
    fn selector(&self) -> Result<LabelSelector, SelectorError> {
        let spec = self.spec.as_ref();
        Ok(spec.and_then(|s| s.selector.as_ref()).map(LabelSelector::from_labels).unwrap_or_default())
    }
    fn template(&self) -> PodTemplateSpec {
        self.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default()
    }
    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }
    fn set_status(&mut self, found: &ReplicaStatus, now: &Time) {
        let generation = self.metadata.generation;
        let status = self.status.get_or_insert_default();
        status.replicas = found.replicas;
        count(&mut status.fully_labeled_replicas, found.fully_labeled);
        count(&mut status.ready_replicas, found.ready);
        count(&mut status.available_replicas, found.available);
        status.observed_generation = generation;
        set_failure::<ReplicationControllerCondition>(&mut status.conditions, found, now);
    }
}

/// Writes a count the way the API leaves zeros out, so that an unchanged status compares equal.
pub(crate) fn count(field: &mut Option<i32>, value: i32) {
    if field.unwrap_or(0) != value {
        *field = (value != 0).then_some(value);
    }
}
