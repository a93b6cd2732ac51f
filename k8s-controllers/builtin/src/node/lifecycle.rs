//! Node health.
//!
//! A node is alive while its Lease is renewed or its status is written. If neither is seen for the grace
//! period, its conditions become `Unknown`. The period is measured by this process's clock, because the
//! node's is not trusted, and excludes pauses (see [`Awake`]). Conditions are translated to taints, and pods
//! of a node that is not ready are marked not ready.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_core::{
    api::{
        api::{
            coordination::v1::Lease,
            core::v1::{Node, NodeCondition, PodCondition, Taint},
        },
        apimachinery::pkg::apis::meta::v1::Time,
    },
    meta::ObjectExt,
};
use serde_json::json;

use super::{
    LEASES,
    awake::{Awake, LOOK_EVERY},
    pods::pods_on,
};
use crate::{
    conditions::{self, Condition},
    pods,
};
use k8s_controllers::{Action, Context, Error, EventType, Reconcile};

pub(super) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(super) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Conditions that become unknown without heartbeats.
const KUBELET_CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Conditions with the status that leads to a taint, and the taint's key.
const CONDITION_TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// The last heartbeat, and the time since it was seen.
#[derive(Clone, PartialEq)]
struct Sign {
    lease: Option<String>,
    heartbeat: Option<Time>,
    seen: Awake,
}

pub(super) struct Lifecycle {
    grace: Duration,
    signs: Mutex<HashMap<String, Sign>>,
}

impl Lifecycle {
    pub(super) fn new(grace: Duration) -> Self {
        Lifecycle { grace, signs: Mutex::default() }
    }

    /// Returns the time since the last heartbeat.
    fn silence(&self, cx: &Context, node: &Node) -> Duration {
        let lease = cx.caches().of::<Lease>().get(LEASES, node.name());
        let lease = lease.and_then(|l| l.spec.as_ref()?.renew_time.as_ref().map(|t| t.0.to_string()));
        let heartbeat = ready(node).and_then(|c| c.last_heartbeat_time.clone());
        let mut signs = self.signs.lock().unwrap_or_else(PoisonError::into_inner);
        let now = cx.clock().now();
        let sign = signs.entry(node.name().to_owned()).or_insert_with(|| Sign {
            lease: lease.clone(),
            heartbeat: heartbeat.clone(),
            seen: Awake::begin(now),
        });
        // A status written by this controller is not a heartbeat.
        let ours = ready(node).is_some_and(|c| c.status == "Unknown");
        if sign.lease != lease || (sign.heartbeat != heartbeat && !ours) {
            *sign = Sign { lease, heartbeat, seen: Awake::begin(now) };
        }
        sign.seen.look(now)
    }
}

fn ready(node: &Node) -> Option<&NodeCondition> {
    conditions::find(node.status.as_ref().and_then(|s| s.conditions.as_ref()), "Ready")
}

impl Reconcile for Lifecycle {
    type Kind = Node;

    async fn reconcile(&self, cx: &Context, node: Arc<Node>) -> Result<Action, Error> {
        let silence = self.silence(cx, &node);
        let was_ready = ready(&node).is_some_and(|c| c.status == "True");
        let mut node = node;
        if silence >= self.grace {
            let mut next = (*node).clone();
            let heard = ready(&node).is_some();
            set_unknown(&mut next, heard, &cx.clock().time());
            if next != *node {
                node = Arc::new(cx.replace_status(&next).await?);
            }
        }
        if let Some(taints) = taints(&node, &cx.clock().time()) {
            let patch = json!({
                "metadata": {"resourceVersion": node.metadata.resource_version},
                "spec": {"taints": taints},
            });
            cx.merge(&*node, &patch).await?;
        }
        let is_ready = ready(&node).is_some_and(|c| c.status == "True");
        if !is_ready {
            if was_ready {
                let message = format!("Node {} status is now: NodeNotReady", node.name());
                cx.event(&*node, EventType::Normal, "NodeNotReady", message);
            }
            mark_pods_not_ready(cx, &node).await?;
        }
        if silence >= self.grace {
            Ok(Action::await_change())
        } else {
            Ok(Action::requeue_after((self.grace - silence).min(LOOK_EVERY)))
        }
    }

    async fn gone(&self, cx: &Context) -> Result<Action, Error> {
        self.signs.lock().unwrap_or_else(PoisonError::into_inner).remove(&cx.key().name);
        Ok(Action::await_change())
    }
}

fn set_unknown(node: &mut Node, heard: bool, now: &Time) {
    let (reason, message) = if heard {
        ("NodeStatusUnknown", "Kubelet stopped posting node status.")
    } else {
        ("NodeStatusNeverUpdated", "Kubelet never posted node status.")
    };
    let all = &mut node.status.get_or_insert_default().conditions;
    for kind in KUBELET_CONDITIONS {
        let live = conditions::find(all.as_ref(), kind);
        if live.is_some_and(|c| c.status == "Unknown") {
            continue;
        }
        let heartbeat = live.and_then(|c| c.last_heartbeat_time.clone());
        let mut next = NodeCondition::make(kind, "Unknown", reason, message, now);
        next.last_heartbeat_time = heartbeat.or_else(|| Some(now.clone()));
        conditions::set(all, next);
    }
}

/// Returns the taints for the node's conditions; `None` if it has them already.
fn taints(node: &Node, now: &Time) -> Option<Vec<Taint>> {
    let before = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let all = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (kind, status, taint) in CONDITION_TAINTS {
        if conditions::find(all, kind).is_some_and(|c| c.status == status) {
            wanted.push((taint, "NoSchedule"));
            if kind == "Ready" {
                wanted.push((taint, "NoExecute"));
            }
        }
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    // A node without a Ready condition keeps the taints of its registration.
    let reported = conditions::find(all, "Ready").is_some();
    let ours = |t: &Taint| {
        (reported || t.key != NOT_READY)
            && (t.key == UNSCHEDULABLE && t.effect == "NoSchedule"
                || CONDITION_TAINTS.iter().any(|(_, _, key)| *key == t.key))
    };
    let is_wanted = |t: &Taint| wanted.iter().any(|(key, effect)| *key == t.key && *effect == t.effect);
    let mut after: Vec<Taint> = before.iter().filter(|t| !ours(t) || is_wanted(t)).cloned().collect();
    for (key, effect) in wanted {
        if !after.iter().any(|t| t.key == key && t.effect == effect) {
            after.push(Taint {
                key: key.into(),
                effect: effect.into(),
                time_added: Some(now.clone()),
                value: None,
            });
        }
    }
    (after != before).then_some(after)
}

async fn mark_pods_not_ready(cx: &Context, node: &Node) -> Result<(), Error> {
    for pod in pods_on(cx.caches(), node.name()) {
        if !pods::is_ready(&pod) {
            continue;
        }
        let mut next = (*pod).clone();
        let all = &mut next.status.get_or_insert_default().conditions;
        // The kubelet's message is kept.
        if let Some(live) = all.iter_mut().flatten().find(|c: &&mut PodCondition| c.type_ == "Ready") {
            live.status = "False".into();
            live.last_transition_time = Some(cx.clock().time());
        }
        match cx.replace_status(&next).await {
            Err(Error::Api(e)) if e.is_not_found() => {}
            Err(e) => return Err(e),
            Ok(_) => cx.event(&*pod, EventType::Warning, "NodeNotReady", "Node is not ready"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_core::api::api::core::v1::{NodeSpec, NodeStatus};

    use super::*;

    fn keys(taints: &[Taint]) -> Vec<(&str, &str)> {
        taints.iter().map(|t| (t.key.as_str(), t.effect.as_str())).collect()
    }

    #[test]
    fn taints_follow_conditions_and_leave_others_alone() {
        let now = Time(Timestamp::UNIX_EPOCH);
        let mut node = Node {
            spec: Some(NodeSpec {
                taints: Some(vec![Taint {
                    key: "mine".into(),
                    effect: "NoSchedule".into(),
                    ..Taint::default()
                }]),
                ..NodeSpec::default()
            }),
            status: Some(NodeStatus {
                conditions: Some(vec![NodeCondition::make("Ready", "True", "", "", &now)]),
                ..NodeStatus::default()
            }),
            ..Node::default()
        };
        assert_eq!(taints(&node, &now), None);
        set_unknown(&mut node, true, &now);
        let all = taints(&node, &now).unwrap();
        assert_eq!(
            keys(&all),
            [("mine", "NoSchedule"), (UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]
        );
        node.spec.as_mut().unwrap().taints = Some(all);
        assert_eq!(taints(&node, &now), None, "nothing to write twice");
        let ready = NodeCondition::make("Ready", "True", "", "", &now);
        conditions::set(&mut node.status.as_mut().unwrap().conditions, ready);
        assert_eq!(keys(&taints(&node, &now).unwrap()), [("mine", "NoSchedule")]);
    }
}
