//! APIServices of this server's own versions and of local APIs: clients list all versions in one place.

use std::sync::Arc;

use k8s_store::Expect;
use serde_json::{Value, json};

use super::STORAGE;
use crate::{
    aggregate::LOCAL_PRIORITY,
    state::State,
    storage::{put, timestamp},
    value::str_at,
};

/// Upstream's priorities of the groups that it serves; groups of custom resources have [`CUSTOM`].
const PRIORITIES: [(&str, i64); 21] = [
    ("", 18_000),
    ("apps", 17_800),
    ("events.k8s.io", 17_750),
    ("authentication.k8s.io", 17_700),
    ("authorization.k8s.io", 17_600),
    ("autoscaling", 17_500),
    ("batch", 17_400),
    ("certificates.k8s.io", 17_300),
    ("networking.k8s.io", 17_200),
    ("policy", 17_100),
    ("rbac.authorization.k8s.io", 17_000),
    ("storage.k8s.io", 16_800),
    ("apiextensions.k8s.io", 16_700),
    ("admissionregistration.k8s.io", 16_700),
    ("scheduling.k8s.io", 16_600),
    ("coordination.k8s.io", 16_500),
    ("node.k8s.io", 16_300),
    ("discovery.k8s.io", 16_200),
    ("flowcontrol.apiserver.k8s.io", 16_100),
    ("resource.k8s.io", 15_900),
    ("extensions", 15_000),
];
const CUSTOM: i64 = 1000;
/// Label of an automatically managed APIService: created at the start (`onstart`) or for a definition
/// (`true`).
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// Creates missing APIServices, and deletes its own of versions that are no longer served.
pub(crate) async fn register(state: &Arc<State>) {
    let registry = state.registry.now();
    let Some(resource) = registry.find("apiregistration.k8s.io", "v1", "apiservices") else { return };
    let now = timestamp(state.clock.now());
    let mut names = Vec::new();
    let mut missing = Vec::new();
    let mut wanted = Vec::new();
    // The group of APIServices has no APIService.
    for (group, versions) in registry.groups().iter().filter(|(g, _)| g != "apiregistration.k8s.io") {
        let built_in = PRIORITIES.iter().find(|(g, _)| g == group);
        let managed = if built_in.is_some() { "onstart" } else { "true" };
        for (i, version) in versions.iter().enumerate() {
            let version_priority = (100 - i64::try_from(i).unwrap_or(0)).max(1);
            wanted.push((group, version, built_in.map_or(CUSTOM, |(_, p)| *p), version_priority, managed));
        }
    }
    for local in state.aggregator.locals() {
        wanted.push((&local.group, &local.version, LOCAL_PRIORITY, LOCAL_PRIORITY, "onstart"));
    }
    for (group, version, group_priority, version_priority, managed) in wanted {
        let name = format!("{version}.{group}");
        if state.store.get(STORAGE, &name).is_none() {
            missing.push(json!({
                "kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1",
                "metadata": {"name": name, "uid": k8s_core::random::uuid().to_string(), "creationTimestamp": now, "generation": 1, "labels": {MANAGED: managed}},
                "spec": {"group": group, "version": version, "groupPriorityMinimum": group_priority, "versionPriority": version_priority},
                "status": {"conditions": [{"type": "Available", "status": "True", "reason": "Local", "message": "Local APIServices are always available", "lastTransitionTime": now}]},
            }));
        }
        names.push(name);
    }
    // Written concurrently, so that they share flushes. After a conflict, another writer has created the same
    // object.
    let writes = missing.iter().map(|service| {
        let key = str_at(service, "/metadata/name");
        put(state, resource, key, Expect::Absent, service)
    });
    futures::future::join_all(writes).await;
    for stored in state.store.snapshot(STORAGE).range("", "") {
        // One that somebody gave to a Service is theirs.
        let given =
            || serde_json::from_slice::<Value>(&stored.json).is_ok_and(|s| s["spec"]["service"].is_object());
        let own = stored.label(MANAGED).is_some() && !given();
        if own && !names.contains(&stored.key.to_string()) {
            let json = stored.json.clone();
            let _ = state.store.delete(STORAGE, &stored.key, stored.revision, |_| json).await;
        }
    }
}
