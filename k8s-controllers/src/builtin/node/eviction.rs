//! Deletes pods from nodes with `NoExecute` taints that they do not tolerate, or no longer.

use std::{sync::Arc, time::Duration};

use k8s_core::{
    api::{
        api::core::v1::{Node, Pod, Taint, Toleration},
        apimachinery::pkg::apis::meta::v1::Time,
    },
    client::DeleteOptions,
    meta::ObjectExt,
};

use super::lifecycle::{NOT_READY, UNREACHABLE};
use crate::{
    Action, Context, Error, EventType, Reconcile,
    builtin::pods::{self, pods_on},
};

/// How long a pod that says nothing about it stays on a node that is not ready or not reachable. (The admission plugin
/// DefaultTolerationSeconds says it for pods made since it is on.)
const DEFAULT_SECONDS: u64 = 300;

pub(super) struct TaintEviction;

fn no_execute(node: &Node) -> Vec<&Taint> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    taints.into_iter().flatten().filter(|t| t.effect == "NoExecute").collect()
}

pub(super) fn is_tainted(node: &Node) -> bool {
    !no_execute(node).is_empty()
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (key, operator, effect) =
        (text(&toleration.key), text(&toleration.operator), text(&toleration.effect));
    (effect.is_empty() || effect == taint.effect)
        && (key == taint.key || (key.is_empty() && operator == "Exists"))
        && (operator == "Exists" || text(&toleration.value) == text(&taint.value))
}

/// How long after the taint was set the pod may stay: `None` for ever.
fn stay(pod: &Pod, taint: &Taint) -> Option<Duration> {
    let all = pod.spec.as_ref().and_then(|s| s.tolerations.as_ref());
    let matching: Vec<&Toleration> = all.into_iter().flatten().filter(|t| tolerates(t, taint)).collect();
    if matching.is_empty() {
        let of_node = taint.key == NOT_READY || taint.key == UNREACHABLE;
        return Some(Duration::from_secs(if of_node { DEFAULT_SECONDS } else { 0 }));
    }
    let limits = matching.iter().filter_map(|t| t.toleration_seconds);
    limits.min().map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

impl Reconcile for TaintEviction {
    type Kind = Node;

    async fn reconcile(&self, cx: &Context, node: Arc<Node>) -> Result<Action, Error> {
        let taints = no_execute(&node);
        if taints.is_empty() {
            return Ok(Action::await_change());
        }
        let mut next: Option<Duration> = None;
        for pod in pods_on(cx.caches(), node.name()) {
            if pod.is_deleting() || pods::is_terminal(&pod) {
                continue;
            }
            let now = Time(cx.clock().now());
            let left = taints.iter().filter_map(|taint| {
                let since = taint.time_added.as_ref().unwrap_or(&now);
                Some(stay(&pod, taint)?.saturating_sub(cx.clock().since(since.0)))
            });
            match left.min() {
                None => {}
                Some(Duration::ZERO) => {
                    let message = format!("Marking for deletion Pod {}", pod.key());
                    cx.event(&*pod, EventType::Normal, "TaintManagerEviction", message);
                    cx.delete(&*pod, DeleteOptions::default()).await?;
                }
                Some(left) => next = next.into_iter().chain([left]).min(),
            }
        }
        Ok(Action::maybe_after(next))
    }
}
