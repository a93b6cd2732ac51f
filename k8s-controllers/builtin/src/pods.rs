//! Pod helpers for controllers.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_core::{
    api::api::core::v1::{ContainerStatus, Pod, PodCondition, PodStatus, PodTemplateSpec},
    api::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    client::{Client, DeleteOptions, Error as ApiError, Patch},
    meta::{Object, ObjectExt, owner_reference},
};

use serde_json::json;

use super::batch::is_namespace_terminating;
use k8s_controllers::{Caches, Context, Error, EventType};

const BY_NODE: &str = "node";

/// Adds the index that [`pods_on`] needs.
pub fn index_by_node(caches: &Caches) {
    caches.of::<Pod>().add_index(BY_NODE, |pod| {
        Some(node_name(pod).to_owned()).filter(|n| !n.is_empty()).into_iter().collect()
    });
}

/// Returns the pods of a node. Requires [`index_by_node`].
#[must_use]
pub fn pods_on(caches: &Caches, node: &str) -> Vec<Arc<Pod>> {
    caches.of::<Pod>().by_index(BY_NODE, node)
}

/// Creates a pod of `owner` and sends an event. A terminating namespace is not an error.
///
/// # Errors
/// As [`Context::create`].
pub async fn create_one<K: Object>(cx: Arc<Context>, owner: Arc<K>, pod: Pod) -> Result<(), Error> {
    match cx.create(&pod).await {
        Ok(pod) => {
            cx.event(&*owner, EventType::Normal, "SuccessfulCreate", format!("Created pod: {}", pod.name()));
            Ok(())
        }
        Err(e) if is_namespace_terminating(&e) => Ok(()),
        Err(e) => {
            cx.event(&*owner, EventType::Warning, "FailedCreate", format!("Error creating: {e}"));
            Err(e)
        }
    }
}

/// Deletes a pod of `owner` and sends an event.
///
/// # Errors
/// As [`Context::delete`].
pub async fn delete_one<K: Object>(cx: Arc<Context>, owner: Arc<K>, pod: Arc<Pod>) -> Result<(), Error> {
    match cx.delete(&*pod, DeleteOptions::default()).await {
        Ok(()) => {
            cx.event(&*owner, EventType::Normal, "SuccessfulDelete", format!("Deleted pod: {}", pod.name()));
            Ok(())
        }
        Err(e) => {
            cx.event(&*owner, EventType::Warning, "FailedDelete", format!("Error deleting: {e}"));
            Err(e)
        }
    }
}

/// Returns the phase; empty if no kubelet has reported it.
#[must_use]
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Returns true if the pod has succeeded or failed.
#[must_use]
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Returns true if the pod counts as a replica: neither terminated nor being deleted.
#[must_use]
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !pod.is_deleting()
}

/// Returns a condition of the pod.
#[must_use]
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// Returns true if the pod is ready.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Returns the condition `DisruptionTarget`, which says that the pod is about to be deleted by the system.
#[must_use]
pub fn disruption_target(pod: &Pod, reason: &str, message: &str, now: Time) -> PodCondition {
    PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        observed_generation: pod.metadata.generation,
        last_transition_time: Some(now),
        ..PodCondition::default()
    }
}

/// Changes the phase and a condition of a pod of this uid, and nothing else of its status: cached pods are
/// trimmed. Returns false if the pod no longer exists.
///
/// # Errors
/// Any other failure of the request.
pub async fn patch_status(
    client: &Client,
    pod: &Pod,
    phase: Option<&str>,
    condition: Option<PodCondition>,
) -> Result<bool, ApiError> {
    let status = PodStatus {
        phase: phase.map(str::to_owned),
        conditions: condition.map(|condition| vec![condition]),
        ..PodStatus::default()
    };
    let patch = json!({"metadata": {"uid": pod.uid()}, "status": status});
    let api = client.namespaced::<Pod>(pod.namespace());
    match api.patch_status(pod.name(), &Patch::Strategic(patch)).await {
        Ok(_) => Ok(true),
        Err(e) if e.is_not_found() => Ok(false),
        Err(e) => Err(e),
    }
}

/// Returns the time since which the pod is ready.
#[must_use]
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready").filter(|c| c.status == "True")?.last_transition_time.as_ref().map(|t| t.0)
}

/// Returns the time until a ready pod is available (`minReadySeconds`): zero if it is, `None` if it is not
/// ready.
#[must_use]
pub fn available_in(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    if !is_ready(pod) {
        return None;
    }
    let needed = Duration::from_secs(u64::try_from(min_ready_seconds).unwrap_or(0));
    if needed.is_zero() {
        return Some(Duration::ZERO);
    }
    let since = ready_since(pod)?;
    let passed = Duration::try_from(now.duration_since(since)).unwrap_or(Duration::ZERO);
    Some(needed.saturating_sub(passed))
}

/// Returns the node's name; empty if the pod is not scheduled.
#[must_use]
pub fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

/// Returns the highest restart count of the containers, and of the sidecars.
#[must_use]
pub fn restarts(pod: &Pod) -> (i32, i32) {
    let status = pod.status.as_ref();
    let most = |all: Option<&Vec<ContainerStatus>>, counts: &dyn Fn(&str) -> bool| {
        all.into_iter().flatten().filter(|c| counts(&c.name)).map(|c| c.restart_count).max().unwrap_or(0)
    };
    let init = pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
    let is_sidecar =
        |name: &str| init.iter().any(|c| c.name == name && c.restart_policy.as_deref() == Some("Always"));
    let containers = most(status.and_then(|s| s.container_statuses.as_ref()), &|_| true);
    (containers, most(status.and_then(|s| s.init_container_statuses.as_ref()), &is_sidecar))
}

fn deletion_cost(pod: &Pod) -> i32 {
    pod.annotation("controller.kubernetes.io/pod-deletion-cost").and_then(|c| c.parse().ok()).unwrap_or(0)
}

fn phase_rank(pod: &Pod) -> u8 {
    match phase(pod) {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    }
}

/// Returns the binary logarithm of an age. Pods of similar age compare as equal, so that the youngest, which
/// may all be in one place, are not always deleted first. Without a time the class is 0.
fn age_class(since: Option<Timestamp>, now: Timestamp) -> u32 {
    let age = since.map_or(0, |t| now.as_second() - t.as_second());
    u64::try_from(age).unwrap_or(0).checked_ilog2().map_or(0, |class| class + 1)
}

/// Returns a key that orders pods for deletion, smaller first: unassigned before assigned, pending before
/// running, not ready before ready, lower before higher deletion cost, more before fewer related pods on the
/// node (`sharing`), recently before long ready, more before fewer restarts, younger before older
/// (`k8s.io/kubernetes/pkg/controller.ActivePodsWithRanks`). Ties are broken by uid.
pub fn deletion_order(pod: &Pod, sharing: usize, now: Timestamp) -> impl Ord + use<> {
    let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    (
        (!node_name(pod).is_empty(), phase_rank(pod), is_ready(pod), deletion_cost(pod)),
        Reverse(sharing),
        age_class(ready_since(pod), now),
        Reverse(restarts(pod)),
        age_class(created, now),
        (pod.uid().to_owned(), pod.name().to_owned()),
    )
}

/// Sorts pods for deletion, first to be deleted first. `related` are all pods that count as sharing a node.
pub fn sort_for_deletion(pods: &mut [Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) {
    let mut on_node = std::collections::HashMap::<&str, usize>::new();
    for pod in related.iter().filter(|p| is_active(p) && !node_name(p).is_empty()) {
        *on_node.entry(node_name(pod)).or_default() += 1;
    }
    let rank = |pod: &Pod| on_node.get(node_name(pod)).copied().unwrap_or(0);
    pods.sort_by_cached_key(|pod| deletion_order(pod, rank(pod), now));
}

/// Builds a pod from a template, controlled by `owner`, with `generateName: <owner>-`.
#[must_use]
pub fn from_template<K: Object>(owner: &K, template: &PodTemplateSpec) -> Pod {
    let metadata = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(pod_prefix(owner.name())),
            namespace: Some(owner.namespace().to_owned()),
            labels: metadata.labels,
            annotations: metadata.annotations,
            finalizers: metadata.finalizers,
            owner_references: Some(vec![owner_reference(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Returns `<owner>-`, or the owner's name alone if that would be too long.
fn pod_prefix(owner: &str) -> String {
    // 253 for a name, five for the random end, one for the dash.
    if owner.len() <= 247 { format!("{owner}-") } else { owner.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, status: Value, meta: Value) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": "n1", "containers": []},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            ]},
        });
        for (part, with) in [("status", status), ("metadata", meta)] {
            for (key, value) in with.as_object().unwrap() {
                if key == "nodeName" {
                    pod["spec"]["nodeName"] = value.clone();
                } else {
                    pod[part][key] = value.clone();
                }
            }
        }
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn the_least_useful_goes_first() {
        let ready_at = |time: &str| json!([{"type": "Ready", "status": "True", "lastTransitionTime": time}]);
        let restarted = json!([{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 3}]);
        // In order of deletion. Names are in the opposite order, so that sorting by name would fail.
        let mut want = vec![
            pod("z", json!({"nodeName": ""}), json!({})),
            pod("y", json!({"phase": "Pending"}), json!({})),
            pod("x", json!({"phase": "Unknown"}), json!({})),
            pod("w", json!({"conditions": []}), json!({})),
            pod("v", json!({}), json!({"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-5"}})),
            pod("u", json!({"nodeName": "full"}), json!({})),
            pod("t", json!({"conditions": ready_at("2026-01-02T23:00:00Z")}), json!({})),
            pod("s", json!({"containerStatuses": restarted}), json!({})),
            pod("r", json!({}), json!({"creationTimestamp": "2026-01-02T23:00:00Z"})),
            pod("p", json!({}), json!({})),
            pod("q", json!({"conditions": ready_at("2025-12-31T23:59:59Z")}), json!({})),
            pod("a", json!({}), json!({"annotations": {"controller.kubernetes.io/pod-deletion-cost": "7"}})),
        ];
        let mut related = want.clone();
        // Twenty more pods on one node: it has the most related pods.
        related.extend((0..20).map(|i| pod(&format!("n{i}"), json!({"nodeName": "full"}), json!({}))));
        let names = |pods: &[Arc<Pod>]| pods.iter().map(|p| p.name().to_owned()).collect::<Vec<_>>();
        let expected = names(&want);
        want.reverse();
        sort_for_deletion(&mut want, &related, "2026-01-03T00:00:00Z".parse().unwrap());
        assert_eq!(names(&want), expected);
    }
}
