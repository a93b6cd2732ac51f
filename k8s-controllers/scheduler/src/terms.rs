//! Node selector terms and pod affinity terms, parsed.

use std::collections::BTreeMap;

use k8s_core::{
    api::api::core::v1::{Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm},
    meta::{
        LabelSelector, ObjectExt,
        selector::{Operator, Requirement},
    },
};

/// A node selector term: all of its requirements must match.
#[derive(Clone, Debug)]
pub(crate) struct NodeTerm {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

fn requirement(r: &NodeSelectorRequirement) -> Option<Requirement> {
    let values = r.values.clone().unwrap_or_default();
    let number = || values.first().and_then(|v| v.parse().ok());
    let operator = match r.operator.as_str() {
        "In" => Operator::In(values),
        "NotIn" => Operator::NotIn(values),
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::GreaterThan(number()?),
        "Lt" => Operator::LessThan(number()?),
        _ => return None,
    };
    Some(Requirement { key: r.key.clone(), operator })
}

impl NodeTerm {
    /// `None`: the term is empty or malformed and selects nothing.
    pub(crate) fn parse(term: &NodeSelectorTerm) -> Option<Self> {
        let parse = |all: &Option<Vec<NodeSelectorRequirement>>| {
            all.iter().flatten().map(requirement).collect::<Option<Vec<_>>>()
        };
        let term = NodeTerm { labels: parse(&term.match_expressions)?, fields: parse(&term.match_fields)? };
        (!term.labels.is_empty() || !term.fields.is_empty()).then_some(term)
    }

    /// Parses the terms of a selector; a node must match at least one.
    pub(crate) fn of(selector: &NodeSelector) -> Vec<Self> {
        selector.node_selector_terms.iter().filter_map(NodeTerm::parse).collect()
    }

    /// Returns true if the node matches all requirements.
    #[must_use]
    pub(crate) fn matches(&self, node: &Node) -> bool {
        self.labels.iter().all(|r| r.accepts(node.label(&r.key)))
            && self.fields.iter().all(|r| r.key == "metadata.name" && r.accepts(Some(node.name())))
    }
}

/// A pod affinity term: a selector of pods, and the topology key of its domains.
#[derive(Clone, Debug)]
pub(crate) struct AffinityTerm {
    /// The node label whose values are the domains.
    pub(crate) topology_key: String,
    selector: Option<LabelSelector>,
    namespaces: Vec<String>,
    namespace_selector: Option<LabelSelector>,
}

impl AffinityTerm {
    pub(crate) fn parse(
        term: &PodAffinityTerm,
        own: &str,
        labels: Option<&BTreeMap<String, String>>,
    ) -> Self {
        let mut selector = term.label_selector.as_ref().and_then(|s| LabelSelector::from_api(s).ok());
        let mut extend = |keys: &Option<Vec<String>>, operator: fn(Vec<String>) -> Operator| {
            for key in keys.iter().flatten() {
                if let (Some(value), Some(selector)) = (labels.and_then(|l| l.get(key)), &mut selector) {
                    let operator = operator(vec![value.clone()]);
                    selector.requirements.push(Requirement { key: key.clone(), operator });
                }
            }
        };
        extend(&term.match_label_keys, Operator::In);
        extend(&term.mismatch_label_keys, Operator::NotIn);
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        let namespace_selector =
            term.namespace_selector.as_ref().and_then(|s| LabelSelector::from_api(s).ok());
        if namespaces.is_empty() && namespace_selector.is_none() {
            namespaces.push(own.to_owned());
        }
        AffinityTerm { topology_key: term.topology_key.clone(), selector, namespaces, namespace_selector }
    }

    /// Returns true if the term selects a pod with these labels. `namespace_labels` are those of its
    /// namespace.
    pub(crate) fn selects<'a>(
        &self,
        namespace: &str,
        labels: Option<&BTreeMap<String, String>>,
        namespace_labels: impl FnOnce() -> Option<&'a BTreeMap<String, String>>,
    ) -> bool {
        let Some(selector) = &self.selector else { return false };
        if !selector.matches(labels) {
            return false;
        }
        self.namespaces.iter().any(|n| n == namespace)
            || self.namespace_selector.as_ref().is_some_and(|s| s.matches(namespace_labels()))
    }
}
