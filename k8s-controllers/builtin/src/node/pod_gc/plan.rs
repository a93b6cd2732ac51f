//! Chooses the pods to collect. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_core::{
    api::api::core::v1::{Node, Pod},
    meta::ObjectExt,
};

use crate::{node::lifecycle::is_ready, pods};

/// Taint of a node that an administrator has found to be shut down.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// Time that a node must be missing before its pods are deleted: it may be registering again.
const QUARANTINE: Duration = Duration::from_secs(40);

/// Returns the terminated pods beyond the threshold: evicted ones first, then the oldest. A threshold of 0
/// keeps all.
pub(super) fn terminated(all: &[Arc<Pod>], threshold: usize) -> Vec<Arc<Pod>> {
    let mut ended: Vec<Arc<Pod>> = all.iter().filter(|p| pods::is_terminal(p)).cloned().collect();
    if threshold == 0 || ended.len() <= threshold {
        return Vec::new();
    }
    let reason = |pod: &Pod| pod.status.as_ref().and_then(|status| status.reason.clone());
    ended.sort_by_cached_key(|pod| {
        let evicted = pods::phase(pod) == "Failed" && reason(pod).as_deref() == Some("Evicted");
        (!evicted, pod.metadata.creation_timestamp.as_ref().map(|t| t.0), pod.key())
    });
    ended.truncate(ended.len() - threshold);
    ended
}

/// Returns the pods being deleted on nodes that are not ready and out of service.
pub(super) fn out_of_service(all: &[Arc<Pod>], node: impl Fn(&str) -> Option<Arc<Node>>) -> Vec<Arc<Pod>> {
    let is_down = |node: &Node| {
        let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        !is_ready(node) && taints.any(|taint| taint.key == OUT_OF_SERVICE)
    };
    let stuck =
        |pod: &&Arc<Pod>| pod.is_deleting() && node(pods::node_name(pod)).is_some_and(|n| is_down(&n));
    all.iter().filter(stuck).cloned().collect()
}

/// Returns the pods being deleted that were never scheduled.
pub(super) fn unscheduled(all: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
    all.iter().filter(|pod| pod.is_deleting() && pods::node_name(pod).is_empty()).cloned().collect()
}

/// Nodes that pods name and that do not exist, with the time since when.
#[derive(Debug, Default)]
pub(super) struct Missing(BTreeMap<String, Duration>);

impl Missing {
    /// Records the missing nodes, at a time since some start. Returns those whose quarantine is over.
    pub(super) fn look(
        &mut self,
        all: &[Arc<Pod>],
        exists: impl Fn(&str) -> bool,
        now: Duration,
    ) -> Vec<String> {
        let named: BTreeSet<&str> = all.iter().map(|pod| pods::node_name(pod)).collect();
        let absent: Vec<&str> = named.into_iter().filter(|n| !n.is_empty() && !exists(n)).collect();
        self.0.retain(|name, _| absent.contains(&name.as_str()));
        for name in absent {
            self.0.entry(name.to_owned()).or_insert(now);
        }
        let over = |since: &Duration| now.saturating_sub(*since) >= QUARANTINE;
        self.0.iter().filter(|(_, since)| over(since)).map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, node: &str, phase: &str, extra: Value) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": {"name": name, "creationTimestamp": format!("2026-11-28T10:00:0{}Z", name.len())},
            "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase},
        });
        if extra == "leaving" {
            pod["metadata"]["deletionTimestamp"] = "2026-11-28T11:00:00Z".into();
        } else {
            pod["status"]["reason"] = extra;
        }
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|pod| pod.name()).collect()
    }

    #[test]
    fn evicted_pods_go_first_then_the_oldest() {
        let all = [
            pod("aaaa", "n", "Failed", "Evicted".into()),
            pod("bb", "n", "Succeeded", Value::Null),
            pod("ccc", "n", "Failed", Value::Null),
            pod("d", "n", "Running", Value::Null),
        ];
        assert_eq!(names(&terminated(&all, 1)), ["aaaa", "bb"]);
        assert_eq!(names(&terminated(&all, 2)), ["aaaa"]);
        for kept in [0, 3] {
            assert!(terminated(&all, kept).is_empty(), "{kept}");
        }
    }

    #[test]
    fn pods_that_nobody_will_finish() {
        let node = |ready: &str, taint: &str| {
            let node = json!({"metadata": {}, "spec": {"taints": [{"key": taint, "effect": "NoExecute"}]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}});
            Some(Arc::new(serde_json::from_value::<Node>(node).unwrap()))
        };
        let find = |name: &str| match name {
            "down" => node("Unknown", OUT_OF_SERVICE),
            "up" => node("True", OUT_OF_SERVICE),
            "silent" => node("Unknown", "other"),
            _ => None,
        };
        let all = [
            pod("a", "down", "Running", "leaving".into()),
            pod("b", "down", "Running", Value::Null),
            pod("c", "up", "Running", "leaving".into()),
            pod("d", "silent", "Running", "leaving".into()),
            pod("e", "", "Pending", "leaving".into()),
            pod("f", "", "Pending", Value::Null),
        ];
        assert_eq!(names(&out_of_service(&all, find)), ["a"]);
        assert_eq!(names(&unscheduled(&all)), ["e"]);
    }

    #[test]
    fn a_node_that_comes_back_is_not_missing() {
        let mut missing = Missing::default();
        let all = [pod("a", "x", "Running", Value::Null), pod("b", "y", "Running", Value::Null)];
        let mut look = |exists: &[&str], now| {
            missing.look(&all, |name| exists.contains(&name), Duration::from_secs(now))
        };
        assert!(look(&[], 0).is_empty());
        assert!(look(&["x"], 20).is_empty());
        assert_eq!(look(&[], 40), ["y"]);
        assert_eq!(look(&[], 79), ["y"]);
        assert_eq!(look(&[], 80), ["x", "y"]);
    }
}
