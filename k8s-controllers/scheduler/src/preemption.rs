//! Preemption: selects pods of lower priority to delete so that a pod fits. Pure.

use std::sync::Arc;

use k8s_core::meta::ObjectExt;

use crate::{
    Cluster, NodeInfo, PodInfo,
    decide::{Profile, Unschedulable},
};

/// Outcome of preemption.
#[derive(Debug)]
pub(crate) enum Preempt {
    /// Delete these pods on this node.
    Victims { node: String, victims: Vec<Arc<PodInfo>> },
    /// Preemption does not help, for this reason.
    No(String),
}

/// Limit of nodes for which victims are computed.
const MOST: usize = 100;

pub(crate) fn plan(profile: &Profile, cluster: &Cluster, pod: &PodInfo, why: &Unschedulable) -> Preempt {
    let no = |counts: &[(usize, &str)]| {
        let mut parts: Vec<String> =
            counts.iter().filter(|(n, _)| *n > 0).map(|(n, reason)| format!("{n} {reason}")).collect();
        parts.sort();
        Preempt::No(format!("preemption: 0/{} nodes are available: {}.", why.nodes, parts.join(", ")))
    };
    let spec = pod.pod.spec.as_ref();
    if spec.and_then(|s| s.preemption_policy.as_deref()) == Some("Never") {
        return Preempt::No("preemption: not eligible due to preemptionPolicy=Never.".into());
    }
    let nominated = pod.pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref());
    if let Some(node) = nominated.and_then(|name| cluster.node(name)) {
        let leaving = |p: &Arc<PodInfo>| p.priority < pod.priority && p.pod.is_deleting();
        if node.pods.iter().any(leaving) {
            let reason = "preemption: not eligible due to a terminating pod on the nominated node.";
            return Preempt::No(reason.into());
        }
    }
    let helpless = why.nodes - why.resolvable.len();
    let candidates = why.resolvable.iter().filter_map(|name| cluster.node(name));
    let best = candidates
        .filter_map(|node| Some((victims(profile, cluster, pod, node)?, node)))
        .take(MOST)
        .min_by_key(|(victims, node)| cost(victims, node));
    match best {
        Some((victims, node)) => Preempt::Victims { node: node.name().to_owned(), victims },
        None => no(&[
            (helpless, "Preemption is not helpful for scheduling"),
            (why.resolvable.len(), "No preemption victims found for incoming pod"),
        ]),
    }
}

/// Cost of a preemption, compared in this order: highest priority of a victim, sum of priorities, number of
/// victims.
fn cost(victims: &[Arc<PodInfo>], node: &NodeInfo) -> (i32, i64, usize, String) {
    let highest = victims.iter().map(|v| v.priority).max().unwrap_or(i32::MIN);
    let sum = victims.iter().map(|v| i64::from(v.priority) + i64::from(i32::MAX) + 1).sum();
    (highest, sum, victims.len(), node.name().to_owned())
}

/// Computes the victims on a node: all pods of lower priority, minus those that can stay. Pods of higher
/// priority are spared first.
fn victims(
    profile: &Profile,
    cluster: &Cluster,
    pod: &PodInfo,
    node: &NodeInfo,
) -> Option<Vec<Arc<PodInfo>>> {
    let mut lower: Vec<Arc<PodInfo>> =
        node.pods.iter().filter(|p| p.priority < pod.priority).cloned().collect();
    if lower.is_empty() {
        return None;
    }
    let mut trial = node.clone();
    for victim in &lower {
        trial.remove(victim.uid());
    }
    if !profile.fits(cluster, pod, &trial) {
        return None;
    }
    lower.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.key.cmp(&b.key)));
    lower.retain(|victim| {
        trial.add(victim.clone());
        let spared = profile.fits(cluster, pod, &trial);
        if !spared {
            trial.remove(victim.uid());
        }
        !spared
    });
    Some(lower)
}
