//! Computes the status of a budget. Pure.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_core::{
    api::{
        api::{
            core::v1::Pod,
            policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
        },
        apimachinery::pkg::{
            apis::meta::v1::{Condition, Time},
            util::intstr::IntOrString,
        },
    },
    meta::ObjectExt,
};

use crate::{deployment::scaled, pods};

/// Condition of a budget.
const ALLOWED: &str = "DisruptionAllowed";
/// Time after which an eviction without a deletion is taken back.
const DELETION: Duration = Duration::from_secs(120);

/// What decides how many pods a budget expects.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Basis {
    /// The pods themselves.
    Pods,
    /// The sum of the sizes of their controllers.
    Scale,
}

/// Returns the basis of a budget.
pub(super) fn basis(budget: &PodDisruptionBudget) -> Basis {
    let spec = budget.spec.as_ref();
    match spec.and_then(|s| s.min_available.as_ref()) {
        Some(IntOrString::Int(_)) if spec.is_none_or(|s| s.max_unavailable.is_none()) => Basis::Pods,
        None if spec.is_none_or(|s| s.max_unavailable.is_none()) => Basis::Pods,
        _ => Basis::Scale,
    }
}

/// A status, and what to do besides.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) status: PodDisruptionBudgetStatus,
    /// Pods that were evicted and not deleted in time.
    pub(super) overdue: Vec<Arc<Pod>>,
    /// Time until an eviction is overdue.
    pub(super) after: Option<Duration>,
}

/// Computes the status of a budget over the pods that it selects; `expected`: the sum of its controllers.
pub(super) fn plan(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], expected: i32, now: &Time) -> Plan {
    let spec = budget.spec.clone().unwrap_or_default();
    let had = budget.status.clone().unwrap_or_default();
    let desired = match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => (expected - scaled(most, expected, true).unwrap_or(0)).max(0),
        (None, Some(least)) => scaled(least, expected, true).unwrap_or(0),
        (None, None) => 0,
    };
    let mut plan = Plan::default();
    let mut disrupted = BTreeMap::new();
    for pod in pods.iter().filter(|pod| !pod.is_deleting()) {
        let Some(since) = had.disrupted_pods.as_ref().and_then(|all| all.get(pod.name())) else { continue };
        let left = left(since.0, now.0);
        if left.is_zero() {
            plan.overdue.push(pod.clone());
        } else {
            disrupted.insert(pod.name().to_owned(), since.clone());
            plan.after = plan.after.into_iter().chain([left]).min();
        }
    }
    let healthy = pods
        .iter()
        .filter(|pod| !pod.is_deleting() && !disrupted.contains_key(pod.name()) && pods::is_ready(pod))
        .count();
    let healthy = i32::try_from(healthy).unwrap_or(i32::MAX);
    // A budget without pods allows none: their status may be older than they are.
    let allowed = if expected > 0 { healthy.saturating_sub(desired).max(0) } else { 0 };
    let generation = budget.metadata.generation;
    let (status, reason) =
        if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    plan.status = PodDisruptionBudgetStatus {
        conditions: Some(condition(&had, status, reason, "", generation, now)),
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: Some(disrupted).filter(|all| !all.is_empty()),
        observed_generation: generation,
    };
    plan
}

/// Returns the time that a deletion still has.
fn left(since: Timestamp, now: Timestamp) -> Duration {
    let passed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    DELETION.saturating_sub(passed)
}

/// Returns the status of a budget that could not be computed: nothing may be disrupted.
pub(super) fn failed(budget: &PodDisruptionBudget, why: &str, now: &Time) -> PodDisruptionBudgetStatus {
    let had = budget.status.clone().unwrap_or_default();
    let conditions = condition(&had, "False", "SyncFailed", why, had.observed_generation, now);
    PodDisruptionBudgetStatus {
        conditions: Some(conditions),
        disruptions_allowed: Some(0),
        current_healthy: had.current_healthy.or(Some(0)),
        desired_healthy: had.desired_healthy.or(Some(0)),
        expected_pods: had.expected_pods.or(Some(0)),
        ..had
    }
}

/// Returns the conditions of a status with this one. Its time stays while the status is the same.
fn condition(
    had: &PodDisruptionBudgetStatus,
    status: &str,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    now: &Time,
) -> Vec<Condition> {
    let mut all = had.conditions.clone().unwrap_or_default();
    let before = all.iter().find(|one| one.type_ == ALLOWED);
    let since = before.filter(|one| one.status == status).map(|one| one.last_transition_time.clone());
    let next = Condition {
        type_: ALLOWED.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: generation,
        last_transition_time: since.unwrap_or_else(|| now.clone()),
    };
    match all.iter_mut().find(|one| one.type_ == ALLOWED) {
        Some(one) => *one = next,
        None => all.push(next),
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: &str = "2026-11-28T12:00:00Z";

    fn now() -> Time {
        Time(NOW.parse().unwrap())
    }

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        let metadata = json!({"name": "b", "namespace": "a", "generation": 4});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap()
    }

    fn pod(name: &str, state: &str) -> Arc<Pod> {
        let ready = if state == "ailing" { "False" } else { "True" };
        let mut pod = json!({"metadata": {"name": name, "namespace": "a"},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        if state == "leaving" {
            pod["metadata"]["deletionTimestamp"] = NOW.into();
        }
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    /// Healthy, desired, expected and allowed, of three ready pods, one ailing and one leaving.
    fn counts(spec: Value, expected: i32) -> [i32; 4] {
        let pods = [
            pod("a", "ready"),
            pod("b", "ready"),
            pod("c", "ready"),
            pod("d", "ailing"),
            pod("e", "leaving"),
        ];
        let status = plan(&budget(spec, json!({"disruptionsAllowed": 0})), &pods, expected, &now()).status;
        let of = |count: Option<i32>| count.unwrap();
        [
            of(status.current_healthy),
            of(status.desired_healthy),
            of(status.expected_pods),
            of(status.disruptions_allowed),
        ]
    }

    #[test]
    fn what_is_above_the_least_may_go() {
        assert_eq!(counts(json!({"minAvailable": 2}), 5), [3, 2, 5, 1]);
        assert_eq!(counts(json!({"minAvailable": 3}), 5), [3, 3, 5, 0]);
        assert_eq!(counts(json!({"minAvailable": 9}), 5), [3, 9, 5, 0]);
        assert_eq!(counts(json!({"minAvailable": "50%"}), 4), [3, 2, 4, 1]);
        assert_eq!(counts(json!({"minAvailable": "51%"}), 4), [3, 3, 4, 0], "rounded up");
        assert_eq!(counts(json!({"maxUnavailable": 1}), 4), [3, 3, 4, 0]);
        assert_eq!(counts(json!({"maxUnavailable": 2}), 4), [3, 2, 4, 1]);
        assert_eq!(counts(json!({"maxUnavailable": "100%"}), 4), [3, 0, 4, 3]);
        assert_eq!(counts(json!({"maxUnavailable": 9}), 4), [3, 0, 4, 3]);
        assert_eq!(counts(json!({"minAvailable": 0}), 0), [3, 0, 0, 0], "no pods are expected");
    }

    #[test]
    fn the_basis_is_pods_only_for_a_number_of_them() {
        let of = |spec: Value| basis(&budget(spec, json!({"disruptionsAllowed": 0})));
        assert_eq!(of(json!({"minAvailable": 2})), Basis::Pods);
        assert_eq!(of(json!({})), Basis::Pods);
        assert_eq!(of(json!({"minAvailable": "20%"})), Basis::Scale);
        assert_eq!(of(json!({"maxUnavailable": 1})), Basis::Scale);
    }

    #[test]
    fn an_evicted_pod_counts_until_it_is_overdue() {
        let spec = json!({"minAvailable": 1});
        let disrupted = json!({"disruptionsAllowed": 0, "disruptedPods": {
            "a": "2026-11-28T11:59:00Z", "b": "2026-11-28T11:00:00Z", "gone": "2026-11-28T11:59:00Z"}});
        let pods = [pod("a", "ready"), pod("b", "ready")];
        let Plan { status, overdue, after } = plan(&budget(spec, disrupted), &pods, 2, &now());
        assert_eq!((status.current_healthy, status.disruptions_allowed), (Some(1), Some(0)));
        assert_eq!(status.disrupted_pods.unwrap().into_keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(overdue.iter().map(|pod| pod.name()).collect::<Vec<_>>(), ["b"]);
        assert_eq!(after, Some(Duration::from_secs(60)));
    }

    #[test]
    fn the_condition_says_why_and_since_when() {
        let spec = json!({"minAvailable": 1});
        let condition = |status: &PodDisruptionBudgetStatus| {
            let one = status.conditions.as_ref().unwrap()[0].clone();
            (one.status, one.reason, one.message, one.last_transition_time.0.to_string())
        };
        let old = json!({"type": "DisruptionAllowed", "status": "True", "reason": "SufficientPods", "message": "",
            "lastTransitionTime": "2026-11-28T01:00:00Z"});
        let before = budget(spec, json!({"disruptionsAllowed": 1, "conditions": [old]}));
        let pods = [pod("a", "ready"), pod("b", "ready")];
        let is = |status: &str, reason: &str, why: &str, at: &str| {
            (status.to_owned(), reason.to_owned(), why.to_owned(), at.to_owned())
        };
        let kept = plan(&before, &pods, 2, &now()).status;
        assert_eq!(condition(&kept), is("True", "SufficientPods", "", "2026-11-28T01:00:00Z"));
        let short = plan(&before, &pods[..1], 1, &now()).status;
        assert_eq!(condition(&short), is("False", "InsufficientPods", "", NOW));
        let failed = failed(&before, "no", &now());
        assert_eq!(condition(&failed), is("False", "SyncFailed", "no", NOW));
        assert_eq!(failed.disruptions_allowed, Some(0));
    }
}
