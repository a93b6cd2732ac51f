//! Computes the nodes that need a pod, the pods to delete, and the status. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_core::{
    api::api::{
        apps::v1::{DaemonSet, DaemonSetStatus},
        core::v1::{Node, Pod, PodSpec},
    },
    meta::{
        ObjectExt,
        node::{NodeTerm, is_tolerated},
    },
};

use super::{HASH, target, tolerations};
use crate::{deployment::scaled, pods, replicas::count};

/// Changes to make.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Nodes to create a pod for.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Failed pods: to be deleted, with an event.
    pub(super) failed: Vec<Arc<Pod>>,
    pub(super) status: DaemonSetStatus,
    /// Every eligible node has an available pod of the current template.
    pub(super) is_complete: bool,
    pub(super) after: Option<Duration>,
}

/// Returns the terms of the required node affinity; `None` without one.
fn terms(spec: &PodSpec) -> Option<Vec<NodeTerm>> {
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    affinity.required_during_scheduling_ignored_during_execution.as_ref().map(NodeTerm::of)
}

/// Computes two things: a pod should run on the node; a running one may stay.
fn suits(spec: &PodSpec, terms: Option<&[NodeTerm]>, node: &Node) -> (bool, bool) {
    let selected = spec.node_selector.iter().flatten().all(|(k, v)| node.label(k) == Some(v));
    let affine = terms.is_none_or(|terms| terms.iter().any(|term| term.matches(node)));
    if !selected || !affine || spec.node_name.as_deref().is_some_and(|n| n != node.name()) {
        return (false, false);
    }
    let tolerations = tolerations(spec);
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    let blocks = |effect: &str| {
        taints.into_iter().flatten().any(|t| t.effect == effect && !is_tolerated(t, &tolerations))
    };
    let evicts = blocks("NoExecute");
    (!evicts && !blocks("NoSchedule"), !evicts)
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

pub(super) fn plan(
    set: &DaemonSet,
    hash: &str,
    nodes: &[Arc<Node>],
    all: &[Arc<Pod>],
    now: Timestamp,
) -> Plan {
    let spec = set.spec.clone().unwrap_or_default();
    let pod_spec = spec.template.spec.clone().unwrap_or_default();
    let terms = terms(&pod_spec);
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let mut by_node: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
    for pod in all {
        by_node.entry(target(pod)).or_default().push(pod.clone());
    }
    let mut plan = Plan::default();
    let (mut desired, mut current, mut misscheduled) = (0, 0, 0);
    let (mut ready, mut available, mut updated) = (0, 0, 0);
    let mut outdated: Vec<(bool, Arc<Pod>)> = Vec::new();
    let mut known = BTreeSet::new();
    for node in nodes {
        known.insert(node.name());
        let mut here = by_node.get(node.name()).cloned().unwrap_or_default();
        let (should_run, may_stay) = suits(&pod_spec, terms.as_deref(), node);
        here.retain(|pod| {
            let failed = pods::phase(pod) == "Failed" && !pod.is_deleting();
            if failed {
                plan.failed.push(pod.clone());
            }
            !failed && !pod.is_deleting()
        });
        // Of several pods on one node the oldest is kept.
        here.sort_by_key(|p| (p.metadata.creation_timestamp.as_ref().map(|t| t.0), p.name().to_owned()));
        if !should_run {
            misscheduled += usize::from(!here.is_empty());
            if !may_stay || here.iter().any(|p| pods::node_name(p).is_empty()) {
                plan.delete.extend(here);
            }
            continue;
        }
        desired += 1;
        let mut here = here.into_iter();
        let Some(pod) = here.next() else {
            // A terminating pod must be gone before its replacement is created.
            if by_node.get(node.name()).is_none_or(|all| !all.iter().any(|p| p.is_deleting())) {
                plan.create.push(node.name().to_owned());
            }
            continue;
        };
        plan.delete.extend(here);
        current += 1;
        ready += usize::from(pods::is_ready(&pod));
        let wait = pods::available_in(&pod, min_ready, now);
        let is_available = wait == Some(Duration::ZERO);
        plan.after = plan.after.into_iter().chain(wait.filter(|w| !w.is_zero())).min();
        available += usize::from(is_available);
        if pod.label(HASH) == Some(hash) {
            updated += 1;
        } else {
            outdated.push((is_available, pod));
        }
    }
    // Unscheduled pods for deleted nodes will never be scheduled.
    for (node, pods) in &by_node {
        if !known.contains(node.as_str()) {
            let waiting = |p: &&Arc<Pod>| pods::node_name(p).is_empty() && !p.is_deleting();
            plan.delete.extend(pods.iter().filter(waiting).cloned());
        }
    }
    let on_delete = spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("OnDelete");
    if !on_delete {
        let rolling = spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        let limit =
            rolling.and_then(|r| r.max_unavailable.as_ref()).and_then(|m| scaled(m, number(desired), true));
        let limit = usize::try_from(limit.unwrap_or(1).max(1)).unwrap_or(1);
        let mut budget = limit.saturating_sub(desired - available);
        for (is_available, pod) in outdated {
            // Deleting an unavailable pod does not use the budget.
            if is_available && budget == 0 {
                continue;
            }
            budget -= usize::from(is_available);
            plan.delete.push(pod);
        }
    }
    let status = &mut plan.status;
    status.current_number_scheduled = number(current);
    status.desired_number_scheduled = number(desired);
    status.number_misscheduled = number(misscheduled);
    status.number_ready = number(ready);
    count(&mut status.updated_number_scheduled, number(updated));
    count(&mut status.number_available, number(available));
    count(&mut status.number_unavailable, number(desired - available));
    status.observed_generation = set.metadata.generation;
    plan.is_complete = updated == desired && available == desired;
    plan
}
