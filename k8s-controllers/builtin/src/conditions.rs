//! Conditions of built-in types: each type has its own struct with the same fields, so one trait covers them.

use k8s_core::api::{
    api::{
        apps::v1::{DeploymentCondition, ReplicaSetCondition},
        autoscaling::v2::HorizontalPodAutoscalerCondition,
        batch::v1::JobCondition,
        core::v1::{
            NamespaceCondition, NodeCondition, PersistentVolumeClaimCondition, PodCondition,
            ReplicationControllerCondition,
        },
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

/// The fields that all condition types have.
pub trait Condition: Clone {
    /// Creates a condition with all times set to `now`.
    fn make(kind: &str, status: &str, reason: &str, message: &str, now: &Time) -> Self;
    /// `type`.
    fn kind(&self) -> &str;
    /// `status`.
    fn status(&self) -> &str;
    /// `reason`.
    fn reason(&self) -> &str;
    /// `message`.
    fn message(&self) -> &str;
    /// Copies the transition time of `earlier`.
    fn transitioned_as(&mut self, earlier: &Self);
}

macro_rules! condition {
    ($($type:ident { $($extra:ident),* }),* $(,)?) => {$(
        impl Condition for $type {
            // Some of the types have no further fields.
            #[allow(clippy::needless_update)]
            fn make(kind: &str, status: &str, reason: &str, message: &str, now: &Time) -> Self {
                let some = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
                $type {
                    type_: kind.to_owned(),
                    status: status.to_owned(),
                    reason: some(reason),
                    message: some(message),
                    last_transition_time: Some(now.clone()),
                    $($extra: Some(now.clone()),)*
                    ..$type::default()
                }
            }
            fn kind(&self) -> &str {
                &self.type_
            }
            fn status(&self) -> &str {
                &self.status
            }
            fn reason(&self) -> &str {
                self.reason.as_deref().unwrap_or_default()
            }
            fn message(&self) -> &str {
                self.message.as_deref().unwrap_or_default()
            }
            fn transitioned_as(&mut self, earlier: &Self) {
                self.last_transition_time = earlier.last_transition_time.clone();
            }
        }
    )*};
}

condition!(
    DeploymentCondition { last_update_time },
    HorizontalPodAutoscalerCondition {},
    ReplicaSetCondition {},
    ReplicationControllerCondition {},
    JobCondition { last_probe_time },
    NamespaceCondition {},
    NodeCondition { last_heartbeat_time },
    PersistentVolumeClaimCondition { last_probe_time },
    PodCondition {},
);

/// Returns the condition of a type.
pub fn find<'a, C: Condition>(conditions: Option<&'a Vec<C>>, kind: &str) -> Option<&'a C> {
    conditions?.iter().find(|c| c.kind() == kind)
}

/// Returns true if the condition exists and is true.
pub fn is_true<C: Condition>(conditions: Option<&Vec<C>>, kind: &str) -> bool {
    find(conditions, kind).is_some_and(|c| c.status() == "True")
}

/// Sets a condition. An equal one is left unchanged; the transition time changes only with the status.
pub fn set<C: Condition>(conditions: &mut Option<Vec<C>>, mut next: C) {
    if let Some(live) = conditions.as_mut().and_then(|all| all.iter_mut().find(|c| c.kind() == next.kind())) {
        let same_status = live.status() == next.status();
        if same_status && live.reason() == next.reason() && live.message() == next.message() {
            return;
        }
        if same_status {
            next.transitioned_as(live);
        }
        *live = next;
    } else {
        conditions.get_or_insert_default().push(next);
    }
}

/// Removes a condition.
pub fn remove<C: Condition>(conditions: &mut Option<Vec<C>>, kind: &str) {
    if let Some(all) = conditions {
        all.retain(|c| c.kind() != kind);
        if all.is_empty() {
            *conditions = None;
        }
    }
}
