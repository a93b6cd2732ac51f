//! Taint-based eviction: deletes pods from nodes with `NoExecute` taints that they do not tolerate (any
//! longer).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_core::{
    api::api::core::v1::{Node, Pod, Taint, Toleration},
    client::DeleteOptions,
    meta::{ObjectExt, node::tolerates},
};

use super::{
    awake::{Awake, LOOK_EVERY},
    lifecycle::{NOT_READY, UNREACHABLE},
};
use crate::pods::{self, pods_on};
use k8s_controllers::{Action, Context, Error, EventType, Reconcile};

/// Default toleration of not-ready and unreachable nodes, in seconds. (The admission plugin
/// DefaultTolerationSeconds adds it to pods; older pods may lack it.)
const DEFAULT_SECONDS: u64 = 300;

/// Evicts pods from tainted nodes. As upstream, toleration time runs from when this process first saw the
/// taint, and only while it runs: neither a restart nor a suspended machine makes all pods overdue at once.
#[derive(Default)]
pub(super) struct TaintEviction {
    seen: Mutex<HashMap<String, Vec<Seen>>>,
}

/// A taint and the time since it was first seen.
struct Seen {
    taint: Taint,
    awake: Awake,
}

impl TaintEviction {
    /// Returns the node's `NoExecute` taints with the time since each was first seen.
    fn ages(&self, node: &Node, now: Timestamp) -> Vec<(Taint, Duration)> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let taints = no_execute(node);
        if taints.is_empty() {
            seen.remove(node.name());
            return Vec::new();
        }
        let known = seen.entry(node.name().to_owned()).or_default();
        known.retain(|s| taints.contains(&&s.taint));
        for taint in taints {
            if !known.iter().any(|s| s.taint == *taint) {
                known.push(Seen { taint: taint.clone(), awake: Awake::begin(now) });
            }
        }
        known.iter_mut().map(|s| (s.taint.clone(), s.awake.look(now))).collect()
    }
}

fn no_execute(node: &Node) -> Vec<&Taint> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    taints.into_iter().flatten().filter(|t| t.effect == "NoExecute").collect()
}

pub(super) fn is_tainted(node: &Node) -> bool {
    !no_execute(node).is_empty()
}

/// Returns the toleration time of a taint; `None` means for ever.
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
        let taints = self.ages(&node, cx.clock().now());
        if taints.is_empty() {
            return Ok(Action::await_change());
        }
        let mut next: Option<Duration> = None;
        for pod in pods_on(cx.caches(), node.name()) {
            if pod.is_deleting() || pods::is_terminal(&pod) {
                continue;
            }
            let left = taints.iter().filter_map(|(taint, age)| Some(stay(&pod, taint)?.saturating_sub(*age)));
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
        Ok(Action::maybe_after(next.map(|left| left.min(LOOK_EVERY))))
    }

    async fn gone(&self, cx: &Context) -> Result<Action, Error> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(&cx.key().name);
        Ok(Action::await_change())
    }
}
