//! Matching of pods with nodes: tolerations with taints, node selector terms with labels and names. Pure.

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration,
};

use super::{
    ObjectExt,
    selector::{Operator, Requirement},
};

/// Returns true if a toleration matches a taint.
///
/// An empty effect matches every effect, and an empty key with the operator `Exists` every key. The operator
/// `Equal`, the default, also compares the values. `tolerationSeconds` is not looked at.
///
/// ```
/// use k8s_core::{api::{Taint, Toleration}, meta::node::{is_tolerated, tolerates}};
/// let (key, value) = ("gpu".to_owned(), Some("a100".to_owned()));
/// let taint = Taint { key, value, effect: "NoSchedule".into(), time_added: None };
/// let key = Some("gpu".to_owned());
/// let other = Toleration { key: key.clone(), value: Some("h100".into()), ..Toleration::default() };
/// let exists = Toleration { key, operator: Some("Exists".into()), ..Toleration::default() };
/// assert!(tolerates(&exists, &taint) && !tolerates(&other, &taint));
/// assert!(is_tolerated(&taint, &[other, exists]));
/// ```
#[must_use]
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let key = toleration.key.as_deref().unwrap_or_default();
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let is_exists = toleration.operator.as_deref() == Some("Exists");
    (effect.is_empty() || effect == taint.effect)
        && (key == taint.key || (key.is_empty() && is_exists))
        && (is_exists
            || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default())
}

/// Returns true if any of the tolerations matches a taint.
#[must_use]
pub fn is_tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|toleration| tolerates(toleration, taint))
}

/// A parsed node selector term: all of its requirements must match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeTerm {
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
    /// Parses a term. `None`: it is empty or malformed and selects nothing.
    #[must_use]
    pub fn parse(term: &NodeSelectorTerm) -> Option<Self> {
        let parse = |all: &Option<Vec<NodeSelectorRequirement>>| {
            all.iter().flatten().map(requirement).collect::<Option<Vec<_>>>()
        };
        let term = NodeTerm { labels: parse(&term.match_expressions)?, fields: parse(&term.match_fields)? };
        (!term.labels.is_empty() || !term.fields.is_empty()).then_some(term)
    }

    /// Parses the terms of a selector that can select anything; a node must match at least one.
    #[must_use]
    pub fn of(selector: &NodeSelector) -> Vec<Self> {
        selector.node_selector_terms.iter().filter_map(NodeTerm::parse).collect()
    }

    /// Returns true if the node matches all requirements.
    #[must_use]
    pub fn matches(&self, node: &Node) -> bool {
        self.labels.iter().all(|r| r.accepts(node.label(&r.key)))
            && self.fields.iter().all(|r| r.key == "metadata.name" && r.accepts(Some(node.name())))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{option, prelude::*, sample::select};
    use serde_json::{Value, json};

    use super::*;

    fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).expect("an object of the API")
    }

    #[test]
    fn tolerations_match_taints() {
        let taint: Taint = from(json!({"key": "gpu", "value": "a", "effect": "NoSchedule"}));
        for (toleration, wanted) in [
            (json!({"key": "gpu", "value": "a"}), true),
            (json!({"key": "gpu", "operator": "Equal", "value": "a", "effect": "NoSchedule"}), true),
            (json!({"key": "gpu", "operator": "Exists"}), true),
            (json!({"operator": "Exists"}), true),
            (json!({"operator": "Exists", "effect": "NoSchedule"}), true),
            (json!({"key": "gpu", "value": "b"}), false),
            (json!({"key": "gpu"}), false),
            (json!({"key": "cpu", "operator": "Exists"}), false),
            (json!({"key": "gpu", "operator": "Exists", "effect": "NoExecute"}), false),
            (json!({"value": "a"}), false),
        ] {
            assert_eq!(tolerates(&from(toleration.clone()), &taint), wanted, "{toleration}");
        }
        let valueless: Taint = from(json!({"key": "gpu", "effect": "NoSchedule"}));
        assert!(tolerates(&from(json!({"key": "gpu", "value": ""})), &valueless));
        assert!(!is_tolerated(&taint, &[]));
        assert!(is_tolerated(&taint, &[from(json!({"key": "x"})), from(json!({"operator": "Exists"}))]));
    }

    #[test]
    fn terms_match_labels_and_names() {
        let node: Node = from(json!({"metadata": {"name": "n1", "labels": {"zone": "a", "cores": "8"}}}));
        let label = |operator: &str, key: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        for (term, wanted) in [
            (label("In", "zone", &["a", "b"]), Some(true)),
            (label("NotIn", "zone", &["a"]), Some(false)),
            (label("NotIn", "rack", &["a"]), Some(true)),
            (label("Exists", "zone", &[]), Some(true)),
            (label("DoesNotExist", "zone", &[]), Some(false)),
            (label("Gt", "cores", &["4"]), Some(true)),
            (label("Lt", "cores", &["8"]), Some(false)),
            (label("Gt", "zone", &["4"]), Some(false)),
            (label("Gt", "cores", &["many"]), None),
            (label("Near", "zone", &["a"]), None),
            (json!({}), None),
            (
                json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}),
                Some(true),
            ),
            (
                json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}),
                Some(false),
            ),
            (json!({"matchFields": [{"key": "spec.x", "operator": "NotIn", "values": ["n2"]}]}), Some(false)),
        ] {
            let parsed = NodeTerm::parse(&from(term.clone()));
            assert_eq!(parsed.map(|t| t.matches(&node)), wanted, "{term}");
        }
        let selector = from(json!({"nodeSelectorTerms": [{}, label("Exists", "zone", &[])]}));
        assert_eq!(NodeTerm::of(&selector).len(), 1);
    }

    fn word() -> impl Strategy<Value = String> {
        select(vec!["", "a", "b"]).prop_map(str::to_owned)
    }

    proptest! {
        /// A taint is tolerated by a toleration with its own fields, and by a wildcard; and a toleration that
        /// matches still does once its effect is cleared, or its value given up for `Exists`.
        #[test]
        fn a_wider_toleration_matches_no_less(
            (key, value, effect) in (word(), option::of(word()), select(vec!["NoSchedule", "NoExecute"])),
            (its_key, its_value) in (option::of(word()), option::of(word())),
            its_effect in option::of(select(vec!["", "NoSchedule", "NoExecute"])),
            operator in option::of(select(vec!["", "Equal", "Exists"])),
        ) {
            let taint = Taint { key, value, effect: effect.into(), ..Taint::default() };
            let same = Toleration {
                key: Some(taint.key.clone()), value: taint.value.clone(), effect: Some(taint.effect.clone()),
                ..Toleration::default()
            };
            prop_assert!(tolerates(&same, &taint));
            let exists = |t: Toleration| Toleration { operator: Some("Exists".into()), value: None, ..t };
            prop_assert!(tolerates(&exists(Toleration::default()), &taint));
            let narrow = Toleration {
                key: its_key, value: its_value, effect: its_effect.map(Into::into),
                operator: operator.map(Into::into), ..Toleration::default()
            };
            if tolerates(&narrow, &taint) {
                let any_effect = Toleration { effect: None, ..narrow.clone() };
                prop_assert!(tolerates(&any_effect, &taint));
                prop_assert!(tolerates(&exists(narrow), &taint));
            }
        }

        /// `NotIn` and `DoesNotExist` match exactly the nodes that `In` and `Exists` do not.
        #[test]
        fn opposite_operators_split_the_nodes(label in option::of(word()), values in prop::collection::vec(word(), 1..3)) {
            let node: Node = from(json!({"metadata": {"name": "n", "labels": label.map(|l| json!({"k": l}))}}));
            let matches = |operator: &str| {
                let term = json!({"matchExpressions": [{"key": "k", "operator": operator, "values": values}]});
                NodeTerm::parse(&from(term)).is_some_and(|term| term.matches(&node))
            };
            prop_assert_ne!(matches("In"), matches("NotIn"));
            prop_assert_ne!(matches("Exists"), matches("DoesNotExist"));
        }
    }
}
