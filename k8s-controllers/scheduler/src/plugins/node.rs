//! Plugins that examine the node alone: name, cordon, taints, affinity, ports, images.

use k8s_core::{
    api::api::core::v1::{Node, NodeAffinity as ApiNodeAffinity, Taint},
    meta::node::{NodeTerm, is_tolerated},
};

use super::proportional;
use crate::{
    Cluster, Cycle, EnqueueExtensions, Event, Filter, NodeInfo, NormalizeScore, Plugin, PodInfo, Points,
    PreFilter, PreScore, Reject, Score, WakeOn,
    args::NodeAffinityArgs,
    feasible::Feasible,
    many::{AtOnce, Passes, PerNode},
    node_info::normalized,
};

/// Requires the node named in `spec.nodeName`.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeName;

impl PreFilter for NodeName {
    fn pre_filter(&self, _: &mut Cycle<'_>, pod: &PodInfo) -> Result<bool, Reject> {
        Ok(pod.pod.spec.as_ref().is_some_and(|s| s.node_name.is_some()))
    }
}

impl Filter for NodeName {
    fn filter(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        let wanted = pod.pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
        if wanted.is_none_or(|w| w.is_empty() || w == node.name()) {
            Ok(())
        } else {
            Err(Reject::never("node(s) didn't match the requested node name"))
        }
    }
}

impl EnqueueExtensions for NodeName {
    fn wakes_on(&self) -> WakeOn {
        WakeOn::NODE_ADDED
    }
}

impl Plugin for NodeName {
    fn points(self) -> Points {
        Points::of(self).pre_filters().filters().wakes().per_node().points()
    }
}

impl PerNode for NodeName {}

/// Returns true if the pod does not tolerate one of the node's taints (`NoSchedule`, `NoExecute`).
pub(crate) fn is_tainted(pod: &PodInfo, taints: &[Taint]) -> bool {
    let hard = |t: &&Taint| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute");
    taints.iter().filter(hard).any(|taint| !is_tolerated(taint, pod.tolerations()))
}

fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default()
}

/// Rejects cordoned nodes.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeUnschedulable;

fn is_cordoned_for(pod: &PodInfo, node: &Node) -> bool {
    if node.spec.as_ref().and_then(|s| s.unschedulable) != Some(true) {
        return false;
    }
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    !is_tolerated(&taint, pod.tolerations())
}

impl Filter for NodeUnschedulable {
    fn filter(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        if node.flags.cordoned && is_cordoned_for(pod, &node.node) {
            Err(Reject::never("node(s) were unschedulable"))
        } else {
            Ok(())
        }
    }
}

impl EnqueueExtensions for NodeUnschedulable {
    fn wakes_on(&self) -> WakeOn {
        WakeOn::NODE_ADDED.or(WakeOn::NODE_TAINTS)
    }

    fn hint(&self, _: &Cluster, pod: &PodInfo, event: &Event<'_>) -> bool {
        event.node.is_none_or(|node| !is_cordoned_for(pod, &node.node))
            && event.old_node.is_none_or(|old| is_cordoned_for(pod, old))
    }
}

impl Plugin for NodeUnschedulable {
    fn points(self) -> Points {
        Points::of(self).filters().wakes().per_node().points()
    }
}

impl PerNode for NodeUnschedulable {
    fn passes(&self, cluster: &Cluster, _: &PodInfo) -> Passes {
        if cluster.flagged().cordoned == 0 { Passes::All } else { Passes::Ask }
    }
}

/// Rejects nodes with untolerated taints; `PreferNoSchedule` taints lower the score.
#[derive(Clone, Copy, Debug, Default)]
pub struct TaintToleration;

impl Filter for TaintToleration {
    fn filter(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        if node.flags.hard_taints && is_tainted(pod, node.taints()) {
            Err(Reject::never("node(s) had untolerated taint(s)"))
        } else {
            Ok(())
        }
    }
}

impl PreScore for TaintToleration {
    fn pre_score(&self, cx: &mut Cycle<'_>, _: &PodInfo, _: &[&NodeInfo]) -> bool {
        // Without such taints all nodes get the same score.
        cx.cluster().flagged().soft_taints > 0
    }
}

impl Score for TaintToleration {
    fn score(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let disliked = |t: &&Taint| t.effect == "PreferNoSchedule" && !is_tolerated(t, pod.tolerations());
        node.taints().iter().filter(disliked).count().try_into().unwrap_or(i64::MAX)
    }
}

impl NormalizeScore for TaintToleration {
    fn normalize(&self, _: &Cycle<'_>, _: &PodInfo, _: &[&NodeInfo], scores: &mut [i64]) {
        proportional(scores, true);
    }
}

impl EnqueueExtensions for TaintToleration {
    fn wakes_on(&self) -> WakeOn {
        WakeOn::NODE_ADDED.or(WakeOn::NODE_TAINTS)
    }

    fn hint(&self, _: &Cluster, pod: &PodInfo, event: &Event<'_>) -> bool {
        event.node.is_none_or(|node| !is_tainted(pod, node.taints()))
            && event.old_node.is_none_or(|old| is_tainted(pod, taints(old)))
    }
}

impl Plugin for TaintToleration {
    fn points(self) -> Points {
        Points::of(self).filters().pre_scores().scores(3).normalizes().wakes().per_node().points()
    }
}

impl PerNode for TaintToleration {
    fn passes(&self, cluster: &Cluster, _: &PodInfo) -> Passes {
        if cluster.flagged().hard_taints == 0 { Passes::All } else { Passes::Ask }
    }

    fn scores(&self, cluster: &Cluster, _: &PodInfo, scores: &mut [i64]) -> bool {
        scores.fill(0);
        cluster.flagged().soft_taints == 0
    }
}

/// Required and preferred node affinity, and `nodeSelector`.
#[derive(Clone, Debug, Default)]
pub struct NodeAffinity {
    required: Option<Vec<NodeTerm>>,
    preferred: Vec<(i64, NodeTerm)>,
}

impl NodeAffinity {
    pub(crate) fn new(args: NodeAffinityArgs) -> Self {
        let added = args.added_affinity.unwrap_or_default();
        NodeAffinity { required: required(&added), preferred: preferred(&added) }
    }

    fn allows(&self, pod: &PodInfo, node: &Node) -> bool {
        self.is_added(node) && pod.allows_node(node)
    }

    fn is_added(&self, node: &Node) -> bool {
        self.required.as_ref().is_none_or(|terms| terms.iter().any(|t| t.matches(node)))
    }
}

/// Returns the required terms.
pub(crate) fn required(affinity: &ApiNodeAffinity) -> Option<Vec<NodeTerm>> {
    affinity.required_during_scheduling_ignored_during_execution.as_ref().map(NodeTerm::of)
}

/// Returns the preferred terms with their weights.
pub(crate) fn preferred(affinity: &ApiNodeAffinity) -> Vec<(i64, NodeTerm)> {
    let all = affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten();
    all.filter_map(|p| Some((i64::from(p.weight), NodeTerm::parse(&p.preference)?))).collect()
}

/// Returns the names that the required terms allow, if each of them names nodes.
fn named_nodes(pod: &PodInfo) -> Option<Vec<String>> {
    let affinity = pod.pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let mut all = Vec::new();
    for term in terms {
        let mut names: Option<Vec<String>> = None;
        for field in term.match_fields.iter().flatten() {
            if field.key == "metadata.name" && field.operator == "In" {
                let values = field.values.clone().unwrap_or_default();
                names = Some(match names {
                    None => values,
                    Some(before) => before.into_iter().filter(|name| values.contains(name)).collect(),
                });
            }
        }
        all.extend(names?);
    }
    (!terms.is_empty()).then_some(all)
}

impl PreFilter for NodeAffinity {
    fn pre_filter(&self, cx: &mut Cycle<'_>, pod: &PodInfo) -> Result<bool, Reject> {
        if self.required.is_none() && pod.node_labels.is_none() && pod.node_terms.is_none() {
            return Ok(false);
        }
        if pod.node_terms.is_some()
            && let Some(names) = named_nodes(pod)
        {
            if names.is_empty() {
                return Err(Reject::never("pod affinity terms conflict"));
            }
            cx.restrict(names);
        }
        Ok(true)
    }
}

impl Filter for NodeAffinity {
    fn filter(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        if !self.is_added(&node.node) {
            return Err(Reject::never("node(s) didn't match scheduler-enforced node affinity"));
        }
        if pod.allows_node(&node.node) {
            Ok(())
        } else {
            Err(Reject::never("node(s) didn't match Pod's node affinity/selector"))
        }
    }
}

impl PreScore for NodeAffinity {
    fn pre_score(&self, _: &mut Cycle<'_>, pod: &PodInfo, _: &[&NodeInfo]) -> bool {
        !pod.preferred_nodes.is_empty() || !self.preferred.is_empty()
    }
}

impl Score for NodeAffinity {
    fn score(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let all = self.preferred.iter().chain(&pod.preferred_nodes);
        all.filter(|(_, term)| term.matches(&node.node)).map(|(w, _)| w).sum()
    }
}

impl NormalizeScore for NodeAffinity {
    fn normalize(&self, _: &Cycle<'_>, _: &PodInfo, _: &[&NodeInfo], scores: &mut [i64]) {
        proportional(scores, false);
    }
}

impl EnqueueExtensions for NodeAffinity {
    fn wakes_on(&self) -> WakeOn {
        WakeOn::NODE_ADDED.or(WakeOn::NODE_LABELS)
    }

    fn hint(&self, _: &Cluster, pod: &PodInfo, event: &Event<'_>) -> bool {
        event.node.is_none_or(|node| self.allows(pod, &node.node))
            && event.old_node.is_none_or(|old| !self.allows(pod, old))
    }
}

impl Plugin for NodeAffinity {
    fn points(self) -> Points {
        let points = Points::of(self).pre_filters().filters().pre_scores().scores(2).normalizes();
        points.wakes().per_node().points()
    }
}

impl PerNode for NodeAffinity {
    fn scores(&self, _: &Cluster, pod: &PodInfo, scores: &mut [i64]) -> bool {
        scores.fill(0);
        pod.preferred_nodes.is_empty() && self.preferred.is_empty()
    }
}

/// Rejects nodes on which a host port of the pod is in use.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodePorts;

impl PreFilter for NodePorts {
    fn pre_filter(&self, _: &mut Cycle<'_>, pod: &PodInfo) -> Result<bool, Reject> {
        Ok(!pod.host_ports.is_empty())
    }
}

impl Filter for NodePorts {
    fn filter(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
        if pod.host_ports.iter().any(|port| node.has_port(port)) {
            return Err(Reject::full("node(s) didn't have free ports for the requested pod ports"));
        }
        Ok(())
    }
}

impl EnqueueExtensions for NodePorts {
    fn wakes_on(&self) -> WakeOn {
        WakeOn::NODE_ADDED.or(WakeOn::POD_GONE)
    }

    fn hint(&self, _: &Cluster, pod: &PodInfo, event: &Event<'_>) -> bool {
        let Some(gone) = event.pod else { return true };
        let clash = |(_, protocol, number): &(String, String, i32)| {
            gone.host_ports.iter().any(|(_, p, n)| n == number && p == protocol)
        };
        pod.host_ports.iter().any(clash)
    }
}

impl Plugin for NodePorts {
    fn points(self) -> Points {
        Points::of(self).pre_filters().filters().wakes().per_node().points()
    }
}

impl PerNode for NodePorts {}

/// Prefers nodes that have the pod's images.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImageLocality;

/// The pod's images that are on any node, with the share of the nodes that have them; and their number.
struct Images(Vec<(String, f64)>, usize);

impl ImageLocality {
    fn prepare(cx: &mut Cycle<'_>, pod: &PodInfo) -> bool {
        let Some(spec) = &pod.pod.spec else { return false };
        let cluster = cx.cluster();
        let total = cluster.nodes().len().max(1) as f64;
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        let images = containers.filter_map(|c| c.image.as_deref());
        let volumes = spec.volumes.iter().flatten().filter_map(|v| v.image.as_ref()?.reference.as_deref());
        let known: Vec<(String, f64)> = images
            .chain(volumes)
            .map(normalized)
            .filter_map(|image| match cluster.nodes_with(&image) {
                0 => None,
                nodes => Some((image, nodes as f64 / total)),
            })
            .collect();
        let any = !known.is_empty();
        let containers = spec.containers.len() + spec.init_containers.as_ref().map_or(0, Vec::len);
        cx.put(Images(known, containers));
        any
    }
}

impl Images {
    fn score(&self, node: &NodeInfo) -> i64 {
        const MIB: i64 = 1024 * 1024;
        let Images(images, containers) = self;
        let size = |(image, share): &(String, f64)| {
            (node.images.get(image).copied().unwrap_or(0) as f64 * share) as i64
        };
        let sum: i64 = images.iter().map(size).sum();
        // Sizes count from 23 MiB in total up to 1000 MiB per container.
        let (least, most) = (23 * MIB, 1000 * MIB * i64::try_from(*containers).unwrap_or(1).max(1));
        (sum.clamp(least, most) - least) * 100 / (most - least)
    }
}

impl PreScore for ImageLocality {
    fn pre_score(&self, cx: &mut Cycle<'_>, pod: &PodInfo, _: &[&NodeInfo]) -> bool {
        Self::prepare(cx, pod)
    }
}

impl Score for ImageLocality {
    fn score(&self, cx: &Cycle<'_>, _: &PodInfo, node: &NodeInfo) -> i64 {
        cx.get::<Images>().map_or(0, |images| images.score(node))
    }
}

impl AtOnce for ImageLocality {
    fn pre_score(&self, cx: &mut Cycle<'_>, pod: &PodInfo, _: &Feasible<'_>) -> bool {
        Self::prepare(cx, pod)
    }

    fn score(&self, cx: &Cycle<'_>, _: &PodInfo, nodes: &[u32], scores: &mut [i64]) {
        let Some(images) = cx.get::<Images>() else { return scores.fill(0) };
        for (score, slot) in scores.iter_mut().zip(nodes) {
            *score = cx.cluster().nodes().get(*slot as usize).map_or(0, |node| images.score(node));
        }
    }
}

impl Plugin for ImageLocality {
    fn points(self) -> Points {
        Points::of(self).pre_scores().scores(1).at_once().points()
    }
}
