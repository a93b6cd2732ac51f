//! A pod with everything parsed that decisions need.

use std::sync::Arc;

use k8s_core::{
    api::api::core::v1::{
        Pod, PodAffinityTerm, Toleration, TopologySpreadConstraint, WeightedPodAffinityTerm,
    },
    meta::{LabelSelector, ObjectExt, ObjectKey, node::NodeTerm},
};

use crate::{Resources, terms::AffinityTerm};

/// A host port of a pod: address, protocol, number.
pub(crate) type HostPort = (String, String, i32);

/// A topology spread constraint.
#[derive(Clone, Debug)]
pub(crate) struct Spread {
    /// Maximum permitted difference between domains.
    pub(crate) max_skew: i64,
    /// The node label whose values are the domains.
    pub(crate) topology_key: String,
    /// `DoNotSchedule`: the constraint filters. Otherwise it scores.
    pub(crate) required: bool,
    /// Selects the pods that are counted.
    pub(crate) selector: Option<LabelSelector>,
    /// If there are fewer domains, the global minimum counts as 0.
    pub(crate) min_domains: i64,
    /// Count only nodes that match the pod's node affinity (the default).
    pub(crate) honor_affinity: bool,
    /// Count only nodes whose taints the pod tolerates.
    pub(crate) honor_taints: bool,
}

/// A pod with its requests, ports, affinity and constraints parsed.
#[derive(Clone, Debug)]
pub struct PodInfo {
    /// The Pod object.
    pub pod: Arc<Pod>,
    /// Namespace and name.
    pub key: ObjectKey,
    /// Priority; higher is scheduled first and may preempt.
    pub priority: i32,
    /// Effective resource requests.
    pub requests: Resources,
    /// CPU (milli) and memory (bytes) as scores count them: with defaults if there are no requests.
    pub(crate) counted: (i64, i64),
    /// Host ports.
    pub(crate) host_ports: Vec<HostPort>,
    /// `nodeSelector`, as a label selector.
    pub(crate) node_labels: Option<LabelSelector>,
    /// Required node affinity: at least one term must match.
    pub(crate) node_terms: Option<Vec<NodeTerm>>,
    pub(crate) preferred_nodes: Vec<(i64, NodeTerm)>,
    pub(crate) affinity: Vec<AffinityTerm>,
    pub(crate) anti_affinity: Vec<AffinityTerm>,
    /// Preferred affinity; anti-affinity has negative weights.
    pub(crate) preferred_pods: Vec<(i64, AffinityTerm)>,
    pub(crate) spread: Vec<Spread>,
    /// True if the pod has volumes of any kind but the token's.
    pub(crate) has_volumes: bool,
    /// Names of the claims in its volumes.
    pub(crate) claims: Vec<String>,
}

impl PodInfo {
    /// Parses a pod.
    #[must_use]
    pub fn new(pod: Arc<Pod>) -> Self {
        let default = k8s_core::api::api::core::v1::PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&default);
        let requests = Resources::of_placed(&pod);
        let counted = Resources::counted(&pod);
        let labels = pod.metadata.labels.as_ref();
        let own = pod.namespace();
        let term = |t: &PodAffinityTerm| AffinityTerm::parse(t, own, labels);
        let affinity = spec.affinity.as_ref();
        let node = affinity.and_then(|a| a.node_affinity.as_ref());
        let near = affinity.and_then(|a| a.pod_affinity.as_ref());
        let far = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
        let near_required = near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        let far_required = far.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        let near_preferred =
            near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
        let far_preferred = far.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
        let weighted = |sign: i64, all: Option<&Vec<WeightedPodAffinityTerm>>| -> Vec<(i64, AffinityTerm)> {
            all.into_iter()
                .flatten()
                .map(|w| (sign * i64::from(w.weight), term(&w.pod_affinity_term)))
                .collect()
        };
        let mut preferred_pods = weighted(1, near_preferred);
        preferred_pods.extend(weighted(-1, far_preferred));
        let preferred_nodes = node
            .and_then(|n| n.preferred_during_scheduling_ignored_during_execution.as_ref())
            .into_iter()
            .flatten()
            .filter_map(|p| Some((i64::from(p.weight), NodeTerm::parse(&p.preference)?)))
            .collect();
        let host_network = spec.host_network.unwrap_or(false);
        // A sidecar's ports are in use as long as those of containers.
        let sidecars =
            spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let host_ports = spec
            .containers
            .iter()
            .chain(sidecars)
            .flat_map(|c| c.ports.iter().flatten())
            .filter_map(|p| {
                let number = p.host_port.or(host_network.then_some(p.container_port)).filter(|n| *n > 0)?;
                let address = p.host_ip.clone().filter(|ip| !ip.is_empty() && ip != "::");
                let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".into());
                Some((address.unwrap_or_else(|| "0.0.0.0".into()), protocol, number))
            })
            .collect();
        PodInfo {
            key: pod.key(),
            priority: spec.priority.unwrap_or(0),
            counted: (counted.milli_cpu, counted.memory),
            requests,
            host_ports,
            node_labels: spec
                .node_selector
                .as_ref()
                .filter(|s| !s.is_empty())
                .map(LabelSelector::from_labels),
            node_terms: node
                .and_then(|n| n.required_during_scheduling_ignored_during_execution.as_ref())
                .map(NodeTerm::of),
            preferred_nodes,
            affinity: near_required.into_iter().flatten().map(term).collect(),
            anti_affinity: far_required.into_iter().flatten().map(term).collect(),
            preferred_pods,
            spread: spreads(&pod),
            has_volumes: spec.volumes.iter().flatten().any(|v| v.projected.is_none()),
            claims: spec
                .volumes
                .iter()
                .flatten()
                .filter_map(|v| v.persistent_volume_claim.as_ref().map(|c| c.claim_name.clone()))
                .collect(),
            pod,
        }
    }

    /// Returns the value of an annotation.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.pod.annotation(key)
    }

    /// Returns the value of a label.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.pod.label(key)
    }

    /// Returns the pod's uid.
    #[must_use]
    pub fn uid(&self) -> &str {
        self.pod.uid()
    }

    pub(crate) fn tolerations(&self) -> &[Toleration] {
        self.pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default()
    }

    /// Returns true if the pod has affinity or anti-affinity terms.
    pub(crate) fn has_terms(&self) -> bool {
        !self.anti_affinity.is_empty() || !self.preferred_pods.is_empty() || !self.affinity.is_empty()
    }

    /// Returns true if the node matches the node selector and the required node affinity.
    pub(crate) fn allows_node(&self, node: &k8s_core::api::api::core::v1::Node) -> bool {
        self.node_labels.as_ref().is_none_or(|s| s.matches(node.metadata.labels.as_ref()))
            && self.node_terms.as_ref().is_none_or(|terms| terms.iter().any(|t| t.matches(node)))
    }
}

impl Spread {
    /// Parses a constraint of a pod. `None`: the selector is malformed. An absent one selects no pod.
    pub(crate) fn parse(c: &TopologySpreadConstraint, pod: &Pod) -> Option<Self> {
        let mut selector = match &c.label_selector {
            Some(selector) => Some(LabelSelector::from_api(selector).ok()?),
            None => None,
        };
        for key in c.match_label_keys.iter().flatten() {
            if let (Some(value), Some(selector)) = (pod.label(key), &mut selector) {
                selector.requirements.push(k8s_core::meta::selector::Requirement {
                    key: key.clone(),
                    operator: k8s_core::meta::selector::Operator::In(vec![value.to_owned()]),
                });
            }
        }
        Some(Spread {
            max_skew: c.max_skew.into(),
            topology_key: c.topology_key.clone(),
            required: c.when_unsatisfiable == "DoNotSchedule",
            selector,
            min_domains: c.min_domains.unwrap_or(1).into(),
            honor_affinity: c.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: c.node_taints_policy.as_deref() == Some("Honor"),
        })
    }

    /// Returns true if the constraint counts a pod with the labels of this one.
    pub(crate) fn selects(&self, pod: &PodInfo) -> bool {
        self.selector.as_ref().is_some_and(|s| s.matches(pod.pod.metadata.labels.as_ref()))
    }
}

fn spreads(pod: &Pod) -> Vec<Spread> {
    let all = pod.spec.as_ref().and_then(|s| s.topology_spread_constraints.as_ref());
    all.into_iter().flatten().filter_map(|c| Spread::parse(c, pod)).collect()
}
