//! Pods of a DaemonSet: built for one node, placed on it by the scheduler.

use k8s_core::{
    api::api::{
        apps::v1::DaemonSet,
        core::v1::{
            Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
            Toleration,
        },
    },
    meta::ObjectExt,
};

use crate::pods;

/// Label with the hash of the pod's template.
pub(super) const HASH: &str = "controller-revision-hash";
/// Annotation of DaemonSets with the generation of the template, and label of their pods, until Kubernetes
/// 1.8.
const GENERATION: (&str, &str) = ("deprecated.daemonset.template.generation", "pod-template-generation");

/// Taints that all daemon pods tolerate: daemons must run on impaired nodes, too.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

/// Returns the node that a pod is on or was created for; `None` if there is none.
pub(super) fn target(pod: &Pod) -> Option<&str> {
    let on = pods::node_name(pod);
    if !on.is_empty() {
        return Some(on);
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let mut fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let named = fields.find(|field| field.key == "metadata.name" && field.operator == "In")?;
    Some(named.values.as_ref()?.first()?)
}

/// Returns the tolerations of a daemon pod.
pub(super) fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let host = spec.host_network == Some(true);
    let network = host.then_some(("node.kubernetes.io/network-unavailable", "NoSchedule"));
    for (key, effect) in TOLERATED.into_iter().chain(network) {
        let toleration = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        if !all.contains(&toleration) {
            all.push(toleration);
        }
    }
    all
}

/// Returns true if a pod is of the template that the set's annotation has the generation of.
pub(super) fn is_of_generation(set: &DaemonSet, pod: &Pod) -> bool {
    set.annotation(GENERATION.0).is_some_and(|generation| pod.label(GENERATION.1) == Some(generation))
}

/// Builds the pod for a node.
pub(super) fn build(set: &DaemonSet, hash: &str, node: &str) -> Pod {
    let template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let mut pod = pods::from_template(set, &template);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH.into(), hash.to_owned());
    if let Some(generation) = set.annotation(GENERATION.0) {
        labels.insert(GENERATION.1.into(), generation.to_owned());
    }
    let spec = pod.spec.get_or_insert_default();
    spec.tolerations = Some(tolerations(spec));
    let term = NodeSelectorTerm {
        match_fields: Some(vec![NodeSelectorRequirement {
            key: "metadata.name".into(),
            operator: "In".into(),
            values: Some(vec![node.to_owned()]),
        }]),
        match_expressions: None,
    };
    // The affinity for one node replaces the template's own node terms, which were evaluated when the node
    // was selected.
    let affinity = spec.affinity.get_or_insert_with(Affinity::default);
    affinity
        .node_affinity
        .get_or_insert_with(NodeAffinity::default)
        .required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
    pod
}
