//! Pod garbage collection: deletes pods on deleted nodes, deleted pods that were never scheduled, and the
//! oldest terminated pods beyond a threshold.

#![expect(clippy::disallowed_methods, reason = "an interval of the loop, in virtual time as well")]

use std::{collections::HashMap, sync::Arc, time::Duration};

use k8s_core::{
    api::api::core::v1::{Node, Pod},
    client::{Client, DeleteOptions, Patch},
    meta::ObjectExt,
};
use serde_json::json;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::pods;
use k8s_controllers::Environment;

const PERIOD: Duration = Duration::from_secs(20);
/// Time that a node must be missing before its pods are deleted: it may be registering again.
const QUARANTINE: Duration = Duration::from_secs(40);

pub(super) async fn run(environment: Environment, threshold: usize) {
    let client = environment.client.named("pod-garbage-collector");
    let (pods, nodes) = (environment.caches.of::<Pod>(), environment.caches.of::<Node>());
    let mut missing: HashMap<String, Instant> = HashMap::new();
    loop {
        tokio::select! {
            biased;
            () = environment.shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        if !pods.is_synced() || !nodes.is_synced() {
            continue;
        }
        let all = pods.list();
        let now = Instant::now();
        let absent = |pod: &Arc<Pod>| {
            let name = pods::node_name(pod);
            (!name.is_empty() && nodes.get("", name).is_none()).then(|| name.to_owned())
        };
        let absent: Vec<String> = all.iter().filter_map(absent).collect();
        missing.retain(|name, _| absent.contains(name));
        for name in absent {
            missing.entry(name).or_insert(now);
        }
        let gone: Vec<&String> =
            missing.iter().filter(|(_, since)| since.elapsed() >= QUARANTINE).map(|(name, _)| name).collect();
        for pod in &all {
            let node = pods::node_name(pod);
            let on_gone = gone.iter().any(|n| *n == node) && is_gone(&client, node).await;
            if on_gone || (node.is_empty() && pod.is_deleting()) {
                delete(&client, pod, on_gone).await;
            }
        }
        for pod in surplus(&all, threshold) {
            delete(&client, &pod, false).await;
        }
    }
}

/// Returns the oldest terminated pods beyond the threshold.
fn surplus(all: &[Arc<Pod>], threshold: usize) -> Vec<Arc<Pod>> {
    let mut ended: Vec<Arc<Pod>> =
        all.iter().filter(|p| pods::is_terminal(p) && !p.is_deleting()).cloned().collect();
    if threshold == 0 || ended.len() <= threshold {
        return Vec::new();
    }
    ended.sort_by_key(|p| (p.metadata.creation_timestamp.as_ref().map(|t| t.0), p.name().to_owned()));
    ended.truncate(ended.len() - threshold);
    ended
}

/// Asks the API server, because the cache may be stale.
async fn is_gone(client: &Client, node: &str) -> bool {
    matches!(client.all::<Node>().get_opt(node).await, Ok(None))
}

async fn delete(client: &Client, pod: &Pod, node_is_gone: bool) {
    let api = client.namespaced::<Pod>(pod.namespace());
    debug!(pod = %pod.key(), "collecting pod");
    if node_is_gone && !pods::is_terminal(pod) {
        // Owners and users should see that the pod ended.
        let condition = json!({
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByPodGC",
            "message": "PodGC: node no longer exists",
        });
        let patch =
            json!({"metadata": {"uid": pod.uid()}, "status": {"phase": "Failed", "conditions": [condition]}});
        if let Err(e) = api.patch_status(pod.name(), &Patch::Strategic(patch)).await {
            debug!(pod = %pod.key(), error = %e, "pod not marked as failed");
        }
    }
    let options = DeleteOptions::default().grace(0).with_uid(pod.uid());
    if let Err(e) = api.delete_if_exists(pod.name(), &options).await {
        warn!(pod = %pod.key(), error = %e, "pod not collected");
    }
}
