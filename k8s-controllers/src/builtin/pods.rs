//! What controllers ask of pods.

use std::{cmp::Ordering, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_core::{
    api::api::core::v1::{Pod, PodCondition, PodTemplateSpec},
    api::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    meta::{Object, ObjectExt, owner_reference},
};

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

/// How often its containers were restarted: the most restarted one counts.
#[must_use]
pub fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|c| c.restart_count).max().unwrap_or(0)
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

/// Which of two pods of a controller is to go first (`Less`): unassigned before assigned, pending before running, not ready before ready,
/// cheaper before dearer, doubled up on a node before alone, lately ready before long ready, often restarted before never, young before old
/// (`k8s.io/kubernetes/pkg/controller.ActivePodsWithRanks`). The ranks are how many pods of the same kind share the node.
#[must_use]
pub fn goes_first(a: (&Pod, usize), b: (&Pod, usize)) -> Ordering {
    let ((a, a_rank), (b, b_rank)) = (a, b);
    // Times of a logarithmic age would make the choice less predictable under load; the API has whole seconds anyway.
    let ready = |pod: &Pod| ready_since(pod).map(|t| t.as_second());
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|t| t.0.as_second());
    node_name(b)
        .is_empty()
        .cmp(&node_name(a).is_empty())
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| b_rank.cmp(&a_rank))
        .then_with(|| ready(b).cmp(&ready(a)))
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| created(b).cmp(&created(a)))
        .then_with(|| a.name().cmp(b.name()))
}

/// Orders pods so that those to be deleted first come first; `related` are all pods that count as doubling up on a node.
pub fn sort_for_deletion(pods: &mut [Arc<Pod>], related: &[Arc<Pod>]) {
    let mut on_node = std::collections::HashMap::<&str, usize>::new();
    for pod in related.iter().filter(|p| is_active(p) && !node_name(p).is_empty()) {
        *on_node.entry(node_name(pod)).or_default() += 1;
    }
    let rank = |pod: &Pod| on_node.get(node_name(pod)).copied().unwrap_or(0);
    pods.sort_by(|a, b| goes_first((a, rank(a)), (b, rank(b))));
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
