//! What controllers ask of pods.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_core::{
    api::api::core::v1::{ContainerStatus, Pod, PodCondition, PodTemplateSpec},
    api::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    client::DeleteOptions,
    meta::{Object, ObjectExt, owner_reference},
};

use super::batch::is_namespace_terminating;
use k8s_controllers::{Caches, Context, Error, EventType};

const BY_NODE: &str = "node";

/// Lets [`pods_on`] find the pods of a node.
pub fn index_by_node(caches: &Caches) {
    caches.of::<Pod>().add_index(BY_NODE, |pod| {
        Some(node_name(pod).to_owned()).filter(|n| !n.is_empty()).into_iter().collect()
    });
}

/// The pods of a node, where [`index_by_node`] was called.
#[must_use]
pub fn pods_on(caches: &Caches, node: &str) -> Vec<Arc<Pod>> {
    caches.of::<Pod>().by_index(BY_NODE, node)
}

/// Makes a pod of `owner`, and says so. A namespace that is going away is no failure.
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

/// Deletes a pod of `owner`, and says so.
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

/// The phase; empty before a kubelet has seen the pod.
#[must_use]
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Whether the pod has ended, well or not.
#[must_use]
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether the pod counts as a replica: neither ended nor being deleted.
#[must_use]
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !pod.is_deleting()
}

/// A condition of the pod.
#[must_use]
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// Whether the pod is ready.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Since when the pod is ready.
#[must_use]
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready").filter(|c| c.status == "True")?.last_transition_time.as_ref().map(|t| t.0)
}

/// How long until a ready pod has been so for `min_ready_seconds`: zero when it has, `None` when it is not ready.
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

/// The node it is on; empty before it is scheduled.
#[must_use]
pub fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

/// How often its containers were restarted, and its sidecars: of each the most restarted one counts.
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

/// Ages that differ by less than half are alike: so that not always the youngest pods go, which may all be in one place. Pods without the
/// time have age 0.
fn age_class(since: Option<Timestamp>, now: Timestamp) -> u32 {
    let age = since.map_or(0, |t| now.as_second() - t.as_second());
    u64::try_from(age).unwrap_or(0).checked_ilog2().map_or(0, |class| class + 1)
}

/// What decides which pods of a controller go first, the smaller first: unassigned before assigned, pending before running, not ready before
/// ready, cheaper before dearer, doubled up on a node before alone, lately ready before long ready, often restarted before never, young
/// before old (`k8s.io/kubernetes/pkg/controller.ActivePodsWithRanks`). `sharing` is how many pods of the same kind share the node. Where
/// all are alike the uid decides, which is as good as chance.
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

/// Orders pods so that those to be deleted first come first; `related` are all pods that count as doubling up on a node.
pub fn sort_for_deletion(pods: &mut [Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) {
    let mut on_node = std::collections::HashMap::<&str, usize>::new();
    for pod in related.iter().filter(|p| is_active(p) && !node_name(p).is_empty()) {
        *on_node.entry(node_name(pod)).or_default() += 1;
    }
    let rank = |pod: &Pod| on_node.get(node_name(pod)).copied().unwrap_or(0);
    pods.sort_by_cached_key(|pod| deletion_order(pod, rank(pod), now));
}

/// A pod from a template, controlled by `owner`; the server completes its name from `<owner>-`.
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

/// `<owner>-`, or the owner's name alone where that would not be a valid start of a pod's name.
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
        // In the order in which they go; the names are in the opposite order, so that names alone would fail.
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
        // Twenty more on one node: pods there are doubled up the most.
        related.extend((0..20).map(|i| pod(&format!("n{i}"), json!({"nodeName": "full"}), json!({}))));
        let names = |pods: &[Arc<Pod>]| pods.iter().map(|p| p.name().to_owned()).collect::<Vec<_>>();
        let expected = names(&want);
        want.reverse();
        sort_for_deletion(&mut want, &related, "2026-01-03T00:00:00Z".parse().unwrap());
        assert_eq!(names(&want), expected);
    }
}
