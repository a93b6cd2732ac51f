//! Reconciliation of default roles and bindings with those in the store.
//!
//! Missing rules, subjects, labels and annotations are added; what an administrator added stays. An object
//! with the annotation `rbac.authorization.kubernetes.io/autoupdate: "false"` is left alone.

use serde_json::{Value, json};

use crate::{
    auth::rbac::Rule,
    request::Attributes,
    value::{array_at, object_at, str_at},
};

/// The annotation of objects that are reconciled; `false` turns it off.
pub(super) const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// A change that makes a stored object grant what the default one does.
#[derive(Debug, PartialEq)]
pub(super) enum Change {
    /// The object with what was missing.
    Update(Value),
    /// The binding is to another role, which cannot be changed: it is deleted and created.
    Recreate,
}

/// Returns the change of a stored role or binding; `None` if it has all of the default one or is protected.
pub(super) fn change(stored: &Value, default: &Value) -> Option<Change> {
    let annotations = object_at(stored, "/metadata/annotations");
    if annotations.and_then(|all| all.get(AUTO_UPDATE)).is_some_and(|value| value == "false") {
        return None;
    }
    if default.get("roleRef").is_some_and(|role| !same_role(role, &stored["roleRef"])) {
        return Some(Change::Recreate);
    }
    let mut next = stored.clone();
    for field in ["labels", "annotations"] {
        for (key, value) in object_at(default, &format!("/metadata/{field}")).into_iter().flatten() {
            let place = &mut next["metadata"][field];
            if place.get(key).is_none() {
                place[key] = value.clone();
            }
        }
    }
    let aggregates = |role: &Value| role.get("aggregationRule").is_some_and(Value::is_object);
    if !(aggregates(stored) && aggregates(default)) {
        let missing = missing_rules(array_at(stored, "/rules"), array_at(default, "/rules"));
        append(&mut next, "/rules", missing);
    }
    let selectors = "/aggregationRule/clusterRoleSelectors";
    if aggregates(default) {
        let missing = absent(array_at(stored, selectors), array_at(default, selectors));
        if !aggregates(stored) && !missing.is_empty() {
            next["aggregationRule"] = json!({"clusterRoleSelectors": []});
        }
        append(&mut next, selectors, missing);
    }
    append(&mut next, "/subjects", absent(array_at(stored, "/subjects"), array_at(default, "/subjects")));
    (next != *stored).then_some(Change::Update(next))
}

fn same_role(a: &Value, b: &Value) -> bool {
    ["/kind", "/name"].iter().all(|field| str_at(a, field) == str_at(b, field))
}

/// Appends elements to a list, which is created if there are any.
fn append(object: &mut Value, pointer: &str, more: Vec<Value>) {
    if more.is_empty() {
        return;
    }
    let mut all = array_at(object, pointer).to_vec();
    all.extend(more);
    crate::value::set(object, pointer, all.into());
}

/// Returns the elements of `wanted` that `have` lacks.
fn absent(have: &[Value], wanted: &[Value]) -> Vec<Value> {
    wanted.iter().filter(|element| !have.contains(element)).cloned().collect()
}

/// Returns the rules of `wanted`, or the parts of them, that `have` does not grant.
fn missing_rules(have: &[Value], wanted: &[Value]) -> Vec<Value> {
    let have: Vec<Rule> = have.iter().map(Rule::from_json).collect();
    let mut missing = Vec::new();
    for rule in wanted {
        let parts = parts(rule);
        let lacking: Vec<Value> = parts.iter().filter(|part| !is_granted(&have, part)).cloned().collect();
        // A rule of which nothing is granted is added as it is written.
        if lacking.len() == parts.len() {
            missing.push(rule.clone());
        } else {
            missing.extend(lacking);
        }
    }
    missing
}

/// Splits a rule into rules of one verb, group, resource and name, or of one verb and path.
fn parts(rule: &Value) -> Vec<Value> {
    let rule = Rule::from_json(rule);
    let mut parts = Vec::new();
    for verb in &rule.verbs {
        for path in &rule.paths {
            parts.push(json!({"verbs": [verb], "nonResourceURLs": [path]}));
        }
        for group in &rule.groups {
            for resource in &rule.resources {
                let part = json!({"verbs": [verb], "apiGroups": [group], "resources": [resource]});
                if rule.names.is_empty() {
                    parts.push(part.clone());
                }
                parts.extend(rule.names.iter().map(|name| {
                    let mut part = part.clone();
                    part["resourceNames"] = json!([name]);
                    part
                }));
            }
        }
    }
    parts
}

fn is_granted(have: &[Rule], part: &Value) -> bool {
    let first = |field: &str| array_at(part, field).first().and_then(Value::as_str).unwrap_or_default();
    let (resource, subresource) = match first("/resources").split_once('/') {
        Some((resource, subresource)) => (resource, subresource),
        None => (first("/resources"), ""),
    };
    let names = array_at(part, "/resourceNames");
    let wanted = Attributes {
        verb: first("/verbs"),
        group: first("/apiGroups"),
        resource,
        subresource,
        name: first("/resourceNames"),
        path: first("/nonResourceURLs"),
        ..Attributes::default()
    };
    have.iter().any(|rule| rule.allows(&wanted) && (!names.is_empty() || rule.names.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(rules: Value) -> Value {
        json!({"metadata": {"name": "r", "annotations": {AUTO_UPDATE: "true"}}, "rules": rules})
    }

    fn updated(stored: &Value, default: &Value) -> Value {
        match change(stored, default) {
            Some(Change::Update(next)) => next,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_missing_is_added_and_what_is_more_is_kept() {
        let get =
            |resources: Value| json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": resources});
        let default =
            role(json!([get(json!(["pods", "pods/log"])), {"verbs": ["get"], "nonResourceURLs": ["/x/*"]}]));
        assert_eq!(change(&default, &default), None);
        let more = role(
            json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}, {"verbs": ["get"], "nonResourceURLs": ["*"]}]),
        );
        assert_eq!(change(&more, &default), None, "wider rules cover it");
        let own = json!({"verbs": ["delete"], "apiGroups": [""], "resources": ["secrets"]});
        let less = role(
            json!([own, {"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]}, {"verbs": ["get"], "apiGroups": [""], "resources": ["*/log"]},
            {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["one"]}]),
        );
        let next = updated(&less, &default);
        let rules = next["rules"].as_array().unwrap();
        assert_eq!(rules[..4], less["rules"].as_array().unwrap()[..]);
        let part =
            |verb: &str, resource: &str| json!({"verbs": [verb], "apiGroups": [""], "resources": [resource]});
        assert_eq!(
            rules[4..],
            [
                part("get", "pods"),
                part("list", "pods/log"),
                json!({"verbs": ["get"], "nonResourceURLs": ["/x/*"]})
            ]
        );
        assert_eq!(change(&next, &default), None, "once");
        assert_eq!(updated(&role(json!([])), &default)["rules"], default["rules"]);
    }

    #[test]
    fn protected_objects_stay_and_labels_are_added() {
        let default = json!({"metadata": {"labels": {"a": "b"}, "annotations": {AUTO_UPDATE: "true"}}, "rules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]});
        let mut stored = json!({"metadata": {"name": "r", "labels": {"a": "mine"}, "annotations": {AUTO_UPDATE: "false"}}});
        assert_eq!(change(&stored, &default), None);
        stored["metadata"]["annotations"] = json!({"x": "y"});
        let next = updated(&stored, &default);
        assert_eq!(
            next["metadata"],
            json!({"name": "r", "labels": {"a": "mine"}, "annotations": {"x": "y", AUTO_UPDATE: "true"}})
        );
    }

    #[test]
    fn aggregated_roles_get_selectors_and_their_controller_the_rules() {
        let selector = |value: &str| json!({"matchLabels": {"to": value}});
        let aggregated = |selectors: Value| json!({"metadata": {"annotations": {AUTO_UPDATE: "true"}}, "aggregationRule": {"clusterRoleSelectors": selectors}});
        let mut stored = aggregated(json!([selector("own")]));
        stored["rules"] = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
        let next = updated(&stored, &aggregated(json!([selector("edit")])));
        assert_eq!(
            next["aggregationRule"]["clusterRoleSelectors"],
            json!([selector("own"), selector("edit")])
        );
        assert_eq!(next["rules"], stored["rules"]);
        let plain = role(json!([]));
        let next = updated(&plain, &aggregated(json!([selector("edit")])));
        assert_eq!(next["aggregationRule"]["clusterRoleSelectors"], json!([selector("edit")]));
    }

    #[test]
    fn bindings_get_subjects_and_their_role() {
        let binding = |role: &str, subjects: Value| json!({"metadata": {"annotations": {AUTO_UPDATE: "true"}}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}, "subjects": subjects});
        let user =
            |name: &str| json!({"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name});
        let default = binding("r", json!([user("a")]));
        assert_eq!(change(&binding("r", json!([user("a"), user("b")])), &default), None);
        let next = updated(&binding("r", json!([user("b")])), &default);
        assert_eq!(next["subjects"], json!([user("b"), user("a")]));
        assert_eq!(change(&binding("other", json!([user("a")])), &default), Some(Change::Recreate));
    }
}
