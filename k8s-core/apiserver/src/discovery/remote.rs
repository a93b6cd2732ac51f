//! Versions of aggregated servers, in both forms of discovery.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    aggregate::Remote,
    resources::Registry,
    state::State,
    value::{array_at, bool_at, str_at},
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
        let group = items.iter_mut().find(|i| str_at(i, "/metadata/name") == remote.group);
        match group.and_then(|g| g.get_mut("versions")).and_then(Value::as_array_mut) {
            Some(versions) => {
                versions.retain(|v| str_at(v, "/version") != remote.version);
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
    let all = array_at(&discovered, "/resources");
    let kind = |r: &Value| {
        let or = |field: &str, own: &str| match str_at(r, field) {
            "" => own.to_owned(),
            said => said.to_owned(),
        };
        json!({"group": or("/group", &remote.group), "version": or("/version", &remote.version), "kind": str_at(r, "/kind")})
    };
    all.iter()
        .filter(|r| !str_at(r, "/name").contains('/'))
        .map(|r| {
            let name = str_at(r, "/name");
            let mut one = json!({
                "resource": name, "responseKind": kind(r), "singularResource": str_at(r, "/singularName"), "verbs": r["verbs"],
                "scope": if bool_at(r, "/namespaced") { "Namespaced" } else { "Cluster" },
            });
            for field in ["shortNames", "categories"] {
                if let Some(value) = r.get(field) {
                    one[field] = value.clone();
                }
            }
            let parts: Vec<Value> = all
                .iter()
                .filter_map(|s| Some((str_at(s, "/name").strip_prefix(name)?.strip_prefix('/')?, s)))
                .map(|(part, s)| json!({"subresource": part, "responseKind": kind(s), "verbs": s["verbs"]}))
                .collect();
            if !parts.is_empty() {
                one["subresources"] = parts.into();
            }
            one
        })
        .collect()
}
