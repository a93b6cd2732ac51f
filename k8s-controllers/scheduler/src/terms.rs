//! Parsed pod affinity terms.

use std::collections::BTreeMap;

use k8s_core::{
    api::api::core::v1::PodAffinityTerm,
    meta::{
        LabelSelector,
        selector::{Operator, Requirement},
    },
};

/// A pod affinity term: a selector of pods, and the topology key of its domains.
#[derive(Clone, Debug, PartialEq)]
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
        namespaces.sort_unstable();
        namespaces.dedup();
        AffinityTerm { topology_key: term.topology_key.clone(), selector, namespaces, namespace_selector }
    }

    /// Returns the names of the namespaces, sorted, and the selector of pods; without one none is selected.
    pub(crate) fn parts(&self) -> (&[String], Option<&LabelSelector>) {
        (&self.namespaces, self.selector.as_ref())
    }

    /// Returns the selector of further namespaces.
    pub(crate) fn namespace_selector(&self) -> Option<&LabelSelector> {
        self.namespace_selector.as_ref()
    }

    /// Returns true if the term selects namespaces by their labels.
    pub(crate) fn has_namespace_selector(&self) -> bool {
        self.namespace_selector.is_some()
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
