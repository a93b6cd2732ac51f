//! What other servers serve, in both forms of discovery.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    aggregate::Remote,
    resources::Registry,
    state::State,
    value::{list, text, truth},
};

/// All groups with their versions, those of other servers included.
pub(super) fn groups(state: &Arc<State>, registry: &Registry) -> Vec<(String, Vec<String>)> {
    let mut all = registry.groups().to_vec();
    for remote in state.aggregator.all().iter() {
        match all.iter_mut().find(|(group, _)| *group == remote.group) {
            Some((_, versions)) if versions.contains(&remote.version) => {}
            Some((_, versions)) => versions.push(remote.version.clone()),
            None => all.push((remote.group.clone(), vec![remote.version.clone()])),
        }
    }
    all
}

/// Adds what other servers serve to the aggregated form.
pub(super) fn add(all: &mut Value, state: &Arc<State>) {
    let Some(items) = all.get_mut("items").and_then(Value::as_array_mut) else { return };
    for remote in state.aggregator.all().iter() {
        let freshness = if remote.is_available() { "Current" } else { "Stale" };
        let version =
            json!({"version": remote.version, "freshness": freshness, "resources": resources(remote)});
        let group = items.iter_mut().find(|i| text(i, "/metadata/name") == remote.group);
        match group.and_then(|g| g.get_mut("versions")).and_then(Value::as_array_mut) {
            Some(versions) => {
                versions.retain(|v| text(v, "/version") != remote.version);
                versions.push(version);
            }
            None => items.push(
                json!({"metadata": {"name": remote.group, "creationTimestamp": null}, "versions": [version]}),
            ),
        }
    }
}

/// An APIResourceList, in which subresources are entries of their own, as a tree.
fn resources(remote: &Remote) -> Vec<Value> {
    let discovered = remote.resources();
    let all = list(&discovered, "/resources");
    let kind = |r: &Value| {
        let or = |field: &str, own: &str| match text(r, field) {
            "" => own.to_owned(),
            said => said.to_owned(),
        };
        json!({"group": or("/group", &remote.group), "version": or("/version", &remote.version), "kind": text(r, "/kind")})
    };
    all.iter()
        .filter(|r| !text(r, "/name").contains('/'))
        .map(|r| {
            let name = text(r, "/name");
            let mut one = json!({
                "resource": name, "responseKind": kind(r), "singularResource": text(r, "/singularName"), "verbs": r["verbs"],
                "scope": if truth(r, "/namespaced") { "Namespaced" } else { "Cluster" },
            });
            for field in ["shortNames", "categories"] {
                if let Some(value) = r.get(field) {
                    one[field] = value.clone();
                }
            }
            let parts: Vec<Value> = all
                .iter()
                .filter_map(|s| Some((text(s, "/name").strip_prefix(name)?.strip_prefix('/')?, s)))
                .map(|(part, s)| json!({"subresource": part, "responseKind": kind(s), "verbs": s["verbs"]}))
                .collect();
            if !parts.is_empty() {
                one["subresources"] = parts.into();
            }
            one
        })
        .collect()
}
