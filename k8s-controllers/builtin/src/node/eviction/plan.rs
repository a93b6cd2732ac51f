//! The time that a pod may stay on a node with `NoExecute` taints. Pure.

use std::time::Duration;

use k8s_core::{
    api::api::core::v1::{Node, Pod, Taint, Toleration},
    meta::node::tolerates,
};

/// Returns the taints of a node that evict pods.
pub(super) fn no_execute(node: &Node) -> Vec<&Taint> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    taints.into_iter().flatten().filter(|t| t.effect == "NoExecute").collect()
}

/// Returns the time that a pod tolerates all taints; `None` means for ever. For each taint the first matching
/// toleration counts.
pub(super) fn stay(pod: &Pod, taints: &[&Taint]) -> Option<Duration> {
    let all = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let of = |taint: &&Taint| -> Option<Duration> {
        let Some(used): Option<&Toleration> = all.iter().find(|t| tolerates(t, taint)) else {
            return Some(Duration::ZERO);
        };
        used.toleration_seconds.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    };
    taints.iter().filter_map(of).min()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_shortest_toleration_decides() {
        let exists = |key: &str, seconds: Value| json!({"key": key, "operator": "Exists", "tolerationSeconds": seconds});
        let seconds = |n| Some(Duration::from_secs(n));
        for (tolerations, want) in [
            (json!([]), seconds(0)),
            (json!([exists("a", json!(60))]), seconds(0)),
            (json!([exists("a", json!(60)), exists("b", json!(30))]), seconds(30)),
            (json!([exists("a", json!(60)), exists("b", Value::Null)]), seconds(60)),
            (json!([exists("a", Value::Null), exists("b", Value::Null)]), None),
            (json!([exists("a", json!(-1)), exists("b", Value::Null)]), seconds(0)),
            // The first one of a taint counts.
            (json!([exists("a", json!(60)), exists("a", json!(5)), exists("b", Value::Null)]), seconds(60)),
            (json!([{"operator": "Exists"}]), None),
        ] {
            let taints = json!([{"key": "a", "effect": "NoExecute"}, {"key": "b", "effect": "NoExecute"},
                {"key": "c", "effect": "NoSchedule"}]);
            let node: Node =
                serde_json::from_value(json!({"metadata": {}, "spec": {"taints": taints}})).unwrap();
            let spec = json!({"containers": [], "tolerations": tolerations.clone()});
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
            assert_eq!(stay(&pod, &no_execute(&node)), want, "{tolerations}");
        }
    }
}
