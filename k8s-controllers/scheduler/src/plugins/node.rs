//! Plugins that examine the node alone: name, cordon, taints, affinity, ports, resources, images.

use k8s_core::{api::api::core::v1::Taint, meta::node::is_tolerated};

use crate::{Cycle, Filter, NodeInfo, PodInfo, Reject, Score, WakeOn, plugin::proportional};

/// Requires the node named in `spec.nodeName`.
#[derive(Clone, Copy, Debug)]
pub struct NodeName;

impl Filter for NodeName {
    fn prepare(&self, _: &mut Cycle<'_>, pod: &PodInfo) -> Result<bool, Reject> {
        Ok(pod.pod.spec.as_ref().is_some_and(|s| s.node_name.is_some()))
    }

    fn filter(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        let wanted = pod.pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
        if wanted.is_none_or(|w| w == node.name()) {
            Ok(())
        } else {
            Err(Reject::never("node(s) didn't match the requested node name"))
        }
    }

    fn wakes_on(&self) -> WakeOn {
        WakeOn::NODE
    }
}

/// Returns the first taint that the pod does not tolerate (`NoSchedule`, `NoExecute`).
pub(crate) fn untolerated<'a>(pod: &PodInfo, node: &'a NodeInfo) -> Option<&'a Taint> {
    let hard = |t: &&Taint| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute");
    node.taints().iter().filter(hard).find(|taint| !is_tolerated(taint, pod.tolerations()))
}

/// Rejects cordoned nodes.
#[derive(Clone, Copy, Debug)]
pub struct NodeUnschedulable;

impl Filter for NodeUnschedulable {
    fn filter(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        if node.node.spec.as_ref().and_then(|s| s.unschedulable) != Some(true) {
            return Ok(());
        }
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        if is_tolerated(&taint, pod.tolerations()) {
            return Ok(());
        }
        Err(Reject::never("node(s) were unschedulable"))
    }

    fn wakes_on(&self) -> WakeOn {
        WakeOn::NODE
    }
}

/// Rejects nodes with untolerated taints; `PreferNoSchedule` taints lower the score.
#[derive(Clone, Copy, Debug)]
pub struct TaintToleration;

impl Filter for TaintToleration {
    fn filter(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        match untolerated(pod, node) {
            None => Ok(()),
            Some(taint) => {
                let value = taint.value.as_deref().unwrap_or_default();
                Err(Reject::never(format!("node(s) had untolerated taint {{{}: {value}}}", taint.key)))
            }
        }
    }

    fn wakes_on(&self) -> WakeOn {
        WakeOn::NODE
    }
}

impl Score for TaintToleration {
    fn score(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let disliked = |t: &&Taint| t.effect == "PreferNoSchedule" && !is_tolerated(t, pod.tolerations());
        node.taints().iter().filter(disliked).count().try_into().unwrap_or(i64::MAX)
    }

    fn normalize(&self, scores: &mut [i64]) {
        proportional(scores, true);
    }
}

/// Required and preferred node affinity, and `nodeSelector`.
#[derive(Clone, Copy, Debug)]
pub struct NodeAffinity;

impl Filter for NodeAffinity {
    fn prepare(&self, _: &mut Cycle<'_>, pod: &PodInfo) -> Result<bool, Reject> {
        Ok(pod.node_labels.is_some() || pod.node_terms.is_some())
    }

    fn filter(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        if pod.allows_node(&node.node) {
            Ok(())
        } else {
            Err(Reject::never("node(s) didn't match Pod's node affinity/selector"))
        }
    }

    fn wakes_on(&self) -> WakeOn {
        WakeOn::NODE
    }
}

impl Score for NodeAffinity {
    fn prepare(&self, _: &mut Cycle<'_>, pod: &PodInfo) -> bool {
        !pod.preferred_nodes.is_empty()
    }

    fn score(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> i64 {
        pod.preferred_nodes.iter().filter(|(_, term)| term.matches(&node.node)).map(|(w, _)| w).sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        proportional(scores, false);
    }
}

/// Rejects nodes on which a host port of the pod is in use.
#[derive(Clone, Copy, Debug)]
pub struct NodePorts;

impl Filter for NodePorts {
    fn prepare(&self, _: &mut Cycle<'_>, pod: &PodInfo) -> Result<bool, Reject> {
        Ok(!pod.host_ports.is_empty())
    }

    fn filter(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        if pod.host_ports.iter().any(|port| node.has_port(port)) {
            return Err(Reject::full("node(s) didn't have free ports for the requested pod ports"));
        }
        Ok(())
    }

    fn wakes_on(&self) -> WakeOn {
        WakeOn::NODE.or(WakeOn::POD_GONE)
    }
}

/// Rejects nodes without enough free resources.
#[derive(Clone, Copy, Debug)]
pub struct NodeResourcesFit;

impl Filter for NodeResourcesFit {
    fn filter(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        let (ask, have, used) = (&pod.requests, &node.allocatable, &node.requested);
        let pods = i64::try_from(node.pods.len()).unwrap_or(i64::MAX);
        let short = |ask: i64, have: i64, used: i64| ask > 0 && ask > have.saturating_sub(used);
        let cpu = short(ask.milli_cpu, have.milli_cpu, used.milli_cpu);
        let memory = short(ask.memory, have.memory, used.memory);
        let ephemeral = short(ask.ephemeral, have.ephemeral, used.ephemeral);
        let other = ask.others.iter().any(|(name, n)| short(*n, have.other(name), used.other(name)));
        if pods < node.max_pods && !cpu && !memory && !ephemeral && !other {
            return Ok(());
        }
        let mut reject = Reject { reasons: Vec::new(), resolvable: true };
        let mut note = |short: bool, reason: &'static str, more_than_all: bool| {
            if short {
                reject.reasons.push(reason.into());
                reject.resolvable &= !more_than_all;
            }
        };
        note(pods >= node.max_pods, "Too many pods", node.max_pods == 0);
        note(cpu, "Insufficient cpu", ask.milli_cpu > have.milli_cpu);
        note(memory, "Insufficient memory", ask.memory > have.memory);
        note(ephemeral, "Insufficient ephemeral-storage", ask.ephemeral > have.ephemeral);
        for (name, n) in &ask.others {
            if short(*n, have.other(name), used.other(name)) {
                reject.reasons.push(format!("Insufficient {name}").into());
                reject.resolvable &= *n <= have.other(name);
            }
        }
        Err(reject)
    }

    fn wakes_on(&self) -> WakeOn {
        WakeOn::NODE.or(WakeOn::POD_GONE)
    }
}

/// Prefers nodes with a large share of free resources.
#[derive(Clone, Copy, Debug)]
pub struct LeastAllocated;

impl Score for LeastAllocated {
    fn score(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let free = |have: i64, used: i64, ask: i64| {
            let left = have.saturating_sub(used).saturating_sub(ask);
            // i128: bytes times 100 may overflow i64.
            if have <= 0 || left < 0 { 0 } else { (i128::from(left) * 100 / i128::from(have)) as i64 }
        };
        let cpu = free(node.allocatable.milli_cpu, node.counted.0, pod.counted.0);
        let memory = free(node.allocatable.memory, node.counted.1, pod.counted.1);
        (cpu + memory) / 2
    }
}

/// Prefers nodes with similar CPU and memory utilization.
#[derive(Clone, Copy, Debug)]
pub struct BalancedAllocation;

impl Score for BalancedAllocation {
    fn prepare(&self, _: &mut Cycle<'_>, pod: &PodInfo) -> bool {
        // Skipped for pods without requests: they do not change the balance.
        pod.requests.milli_cpu > 0 || pod.requests.memory > 0
    }

    fn score(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let used = |have: i64, used: i64, ask: i64| {
            if have <= 0 { 1.0 } else { ((used.saturating_add(ask)) as f64 / have as f64).min(1.0) }
        };
        let cpu = used(node.allocatable.milli_cpu, node.requested.milli_cpu, pod.requests.milli_cpu);
        let memory = used(node.allocatable.memory, node.requested.memory, pod.requests.memory);
        ((1.0 - (cpu - memory).abs() / 2.0) * 100.0) as i64
    }
}

/// Prefers nodes that have the pod's images.
#[derive(Clone, Copy, Debug)]
pub struct ImageLocality;

impl Score for ImageLocality {
    fn prepare(&self, cx: &mut Cycle<'_>, _: &PodInfo) -> bool {
        cx.cluster().nodes().len() > 1
    }

    fn score(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let Some(images) = node.node.status.as_ref().and_then(|s| s.images.as_ref()) else { return 0 };
        let Some(spec) = &pod.pod.spec else { return 0 };
        let size = |wanted: &str| {
            let named = |n: &String| n == wanted || n.strip_suffix(":latest") == Some(wanted);
            let found = images.iter().find(|i| i.names.iter().flatten().any(named));
            found.and_then(|i| i.size_bytes).unwrap_or(0)
        };
        let sum: i64 = spec.containers.iter().filter_map(|c| c.image.as_deref()).map(size).sum();
        // Sizes count from 23 MB in total up to 1 GB per container.
        const LEAST: i64 = 23 * 1024 * 1024;
        let most = 1024 * 1024 * 1024 * i64::try_from(spec.containers.len().max(1)).unwrap_or(1);
        (sum.clamp(LEAST, most) - LEAST) * 100 / (most - LEAST)
    }
}
