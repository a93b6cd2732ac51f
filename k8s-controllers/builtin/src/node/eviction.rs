//! Taint-based eviction: deletes pods from nodes with `NoExecute` taints that they do not tolerate (any
//! longer).
//!
//! Flow: the eviction of a pod is scheduled when the controller first sees it on a tainted node ([`plan`]).
//! It is cancelled when the taints are gone or the pod comes to tolerate them for ever.
//!
//! Invariants:
//! 1. The seconds of a toleration count from when the eviction was scheduled, not from the time in the taint.
//!    A further taint, or another toleration, does not put it off; one without toleration makes it due.
//! 2. They count only while this process runs: neither a restart nor a suspended machine makes all pods
//!    overdue at once (see [`Awake`]).
//! 3. A pod has the condition `DisruptionTarget` before it is deleted.

mod plan;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_core::{
    api::api::core::v1::{Node, Pod},
    client::DeleteOptions,
    meta::ObjectExt,
};

use super::awake::{Awake, LOOK_EVERY};
use crate::pods::{self, pods_on};
use k8s_controllers::{Action, Context, Error, EventType, Reconcile};

/// A scheduled eviction.
struct Scheduled {
    pod: Arc<Pod>,
    /// Time since it was scheduled.
    awake: Awake,
    /// Time after which it is due.
    after: Duration,
}

/// Scheduled evictions by pod uid.
type Evictions = HashMap<String, Scheduled>;

/// Evicts pods from tainted nodes.
#[derive(Default)]
pub(super) struct TaintEviction {
    /// By node.
    scheduled: Mutex<HashMap<String, Evictions>>,
}

/// What a look at the pods of a node leads to.
#[derive(Default)]
struct Round {
    due: Vec<Arc<Pod>>,
    cancelled: Vec<Arc<Pod>>,
    /// Time until the next eviction is due.
    next: Option<Duration>,
}

pub(super) fn is_tainted(node: &Node) -> bool {
    !plan::no_execute(node).is_empty()
}

impl TaintEviction {
    fn round(&self, node: &Node, pods: &[Arc<Pod>], now: Timestamp) -> Round {
        let mut all = self.scheduled.lock().unwrap_or_else(PoisonError::into_inner);
        let taints = plan::no_execute(node);
        let (mut round, mut kept) = (Round::default(), HashSet::new());
        let evictions = all.entry(node.name().to_owned()).or_default();
        for pod in pods.iter().filter(|pod| !pod.is_deleting()) {
            let Some(stay) = plan::stay(pod, &taints) else { continue };
            let new = Scheduled { pod: pod.clone(), awake: Awake::begin(now), after: stay };
            let eviction = evictions.entry(pod.uid().to_owned()).or_insert(new);
            if stay.is_zero() {
                eviction.after = stay;
            }
            kept.insert(pod.uid().to_owned());
            match eviction.after.saturating_sub(eviction.awake.look(now)) {
                Duration::ZERO => round.due.push(pod.clone()),
                left => round.next = round.next.into_iter().chain([left]).min(),
            }
        }
        let dropped: Vec<String> = evictions.keys().filter(|uid| !kept.contains(*uid)).cloned().collect();
        for uid in dropped {
            round.cancelled.extend(evictions.remove(&uid).map(|eviction| eviction.pod));
        }
        if evictions.is_empty() {
            all.remove(node.name());
        }
        round.cancelled.sort_by_key(|pod| pod.key());
        round
    }

    /// Forgets an eviction that took place.
    fn done(&self, node: &str, pod: &Pod) {
        let mut all = self.scheduled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(evictions) = all.get_mut(node) {
            evictions.remove(pod.uid());
        }
    }
}

impl Reconcile for TaintEviction {
    type Kind = Node;

    async fn reconcile(&self, cx: &Context, node: Arc<Node>) -> Result<Action, Error> {
        let pods = pods_on(cx.caches(), node.name());
        let Round { due, cancelled, next } = self.round(&node, &pods, cx.clock().now());
        for pod in cancelled {
            let message = format!("Cancelling deletion of Pod {}", pod.key());
            cx.event(&*pod, EventType::Normal, "TaintManagerEviction", message);
        }
        for pod in due {
            let message = format!("Marking for deletion Pod {}", pod.key());
            cx.event(&*pod, EventType::Normal, "TaintManagerEviction", message);
            let message = "Taint manager: deleting due to NoExecute taint";
            let condition =
                pods::disruption_target(&pod, "DeletionByTaintManager", message, cx.clock().time());
            if pods::patch_status(cx.client(), &pod, None, Some(condition)).await? {
                cx.delete(&*pod, DeleteOptions::default()).await?;
            }
            self.done(node.name(), &pod);
        }
        Ok(Action::maybe_after(next.map(|left| left.min(LOOK_EVERY))))
    }

    async fn gone(&self, cx: &Context) -> Result<Action, Error> {
        self.scheduled.lock().unwrap_or_else(PoisonError::into_inner).remove(&cx.key().name);
        Ok(Action::await_change())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(taints: &[&str]) -> Node {
        let taints: Vec<Value> =
            taints.iter().map(|key| json!({"key": key, "effect": "NoExecute"})).collect();
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"taints": taints}})).unwrap()
    }

    /// A pod that tolerates the taints `a` and `b` for so many seconds.
    fn pod(seconds: Value) -> Vec<Arc<Pod>> {
        let tolerate = |key: &str| json!({"key": key, "operator": "Exists", "tolerationSeconds": seconds});
        let spec = json!({"containers": [], "tolerations": [tolerate("a"), tolerate("b")]});
        vec![Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}, "spec": spec})).unwrap(),
        )]
    }

    /// Runs rounds at seconds, and gives what each leads to: `due`, `cancelled`, or the seconds left.
    fn rounds(steps: Vec<(i64, Node, Vec<Arc<Pod>>)>) -> Vec<String> {
        let evictions = TaintEviction::default();
        let look = |(second, node, pods): (i64, Node, Vec<Arc<Pod>>)| {
            let round = evictions.round(&node, &pods, Timestamp::from_second(second).unwrap());
            match round {
                Round { due, .. } if !due.is_empty() => "due".to_owned(),
                Round { cancelled, .. } if !cancelled.is_empty() => "cancelled".to_owned(),
                Round { next, .. } => next.map_or("-".into(), |left| left.as_secs().to_string()),
            }
        };
        steps.into_iter().map(look).collect()
    }

    #[test]
    fn seconds_count_from_when_the_eviction_was_scheduled() {
        let minute = || pod(60.into());
        let steps = vec![
            (100, node(&["a"]), minute()),
            (120, node(&["a"]), minute()),
            // A second taint does not put it off, nor does a longer toleration.
            (130, node(&["a", "b"]), minute()),
            (140, node(&["a", "b"]), pod(3600.into())),
            (160, node(&["b"]), minute()),
        ];
        assert_eq!(rounds(steps), ["60", "40", "30", "20", "due"]);
        let intolerable = vec![(100, node(&["a"]), minute()), (101, node(&["a", "c"]), minute())];
        assert_eq!(rounds(intolerable), ["60", "due"]);
    }

    #[test]
    fn a_cancelled_eviction_starts_anew() {
        let steps = vec![
            (100, node(&["a"]), pod(60.into())),
            (120, node(&[]), pod(60.into())),
            (121, node(&[]), pod(60.into())),
            (125, node(&["a"]), pod(60.into())),
            (130, node(&["a"]), pod(Value::Null)),
            (140, node(&["a"]), pod(60.into())),
            (150, node(&["a"]), Vec::new()),
        ];
        assert_eq!(rounds(steps), ["60", "cancelled", "-", "60", "cancelled", "60", "cancelled"]);
    }

    #[test]
    fn a_pause_of_the_process_does_not_count() {
        let steps = vec![
            (100, node(&["a"]), pod(60.into())),
            (110, node(&["a"]), pod(60.into())),
            (10_000, node(&["a"]), pod(60.into())),
            (10_010, node(&["a"]), pod(60.into())),
        ];
        assert_eq!(rounds(steps), ["60", "50", "50", "40"]);
    }
}
