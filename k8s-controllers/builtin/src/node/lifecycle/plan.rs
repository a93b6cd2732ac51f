//! Conditions, taints and labels that a node should have. Pure.

use k8s_core::{
    api::{
        api::core::v1::{Node, NodeCondition, Taint},
        apimachinery::pkg::apis::meta::v1::Time,
    },
    meta::ObjectExt,
};

use crate::conditions::{self, Condition};

pub(in crate::node) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(in crate::node) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
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
/// Labels, and the older names that have the same value.
const LABELS: [(&str, &str); 2] =
    [("kubernetes.io/os", "beta.kubernetes.io/os"), ("kubernetes.io/arch", "beta.kubernetes.io/arch")];

/// Returns the condition `Ready`.
pub(in crate::node) fn ready(node: &Node) -> Option<&NodeCondition> {
    conditions::find(node.status.as_ref().and_then(|s| s.conditions.as_ref()), "Ready")
}

/// Returns true if the node is ready.
pub(in crate::node) fn is_ready(node: &Node) -> bool {
    ready(node).is_some_and(|c| c.status == "True")
}

/// Sets the kubelet's conditions to `Unknown`, after a time without heartbeats.
pub(super) fn set_unknown(node: &mut Node, now: &Time) {
    let created = node.metadata.creation_timestamp.clone();
    let all = &mut node.status.get_or_insert_default().conditions;
    for kind in KUBELET_CONDITIONS {
        let (heartbeat, reason, message) = match conditions::find(all.as_ref(), kind) {
            Some(live) if live.status == "Unknown" => continue,
            Some(live) => (
                live.last_heartbeat_time.clone(),
                "NodeStatusUnknown",
                "Kubelet stopped posting node status.",
            ),
            None => (created.clone(), "NodeStatusNeverUpdated", "Kubelet never posted node status."),
        };
        let mut next = NodeCondition::make(kind, "Unknown", reason, message, now);
        next.last_heartbeat_time = heartbeat;
        conditions::set(all, next);
    }
}

/// What is to happen with the taints that evict pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evict {
    /// A node that is not ready is tainted.
    Taint,
    /// A taint that is there stays, under the key of the present condition.
    Keep,
    /// Neither key is there.
    Clear,
}

/// Returns the key of the taint that evicts pods, by the condition `Ready`; `None` if the node is ready or
/// never reported.
pub(super) fn evicting(node: &Node) -> Option<&'static str> {
    match ready(node)?.status.as_str() {
        "False" => Some(NOT_READY),
        "Unknown" => Some(UNREACHABLE),
        _ => None,
    }
}

fn taints_of(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

fn evicts(taint: &Taint) -> bool {
    taint.effect == "NoExecute" && (taint.key == NOT_READY || taint.key == UNREACHABLE)
}

/// Returns true if the node has a taint of this controller that evicts pods.
pub(super) fn has_evicting(node: &Node) -> bool {
    taints_of(node).iter().any(evicts)
}

/// Returns the taints for the node's conditions; `None` if it has them already.
pub(super) fn taints(node: &Node, evict: Evict, now: &Time) -> Option<Vec<Taint>> {
    let before = taints_of(node);
    let all = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let holds = |(kind, status, _): &&(&str, &str, &str)| {
        conditions::find(all, kind).is_some_and(|c| c.status == *status)
    };
    let mut wanted: Vec<(&str, &str)> =
        CONDITION_TAINTS.iter().filter(holds).map(|(_, _, key)| (*key, "NoSchedule")).collect();
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let key = evicting(node);
    let tainted = match evict {
        Evict::Taint => true,
        Evict::Keep => has_evicting(node),
        Evict::Clear => false,
    };
    wanted.extend(key.filter(|_| tainted).map(|key| (key, "NoExecute")));
    // A node without a Ready condition keeps the taints of its registration.
    let reported = ready(node).is_some();
    let ours = |t: &Taint| {
        let scheduling = t.effect == "NoSchedule"
            && (t.key == UNSCHEDULABLE || CONDITION_TAINTS.iter().any(|(_, _, key)| *key == t.key));
        (reported || t.key != NOT_READY) && (scheduling || evicts(t))
    };
    let is_wanted = |t: &Taint| wanted.iter().any(|(key, effect)| *key == t.key && *effect == t.effect);
    let mut after: Vec<Taint> = before.iter().filter(|t| !ours(t) || is_wanted(t)).cloned().collect();
    for (key, effect) in wanted {
        if !after.iter().any(|t| t.key == key && t.effect == effect) {
            let time_added = Some(now.clone());
            after.push(Taint { key: key.into(), effect: effect.into(), time_added, value: None });
        }
    }
    (after != before).then_some(after)
}

/// Returns the labels to set: the older names of labels that the node has.
pub(super) fn labels(node: &Node) -> Vec<(&'static str, String)> {
    let missing = |(label, older): &(&str, &'static str)| {
        let value = node.label(label)?;
        (node.label(older) != Some(value)).then(|| (*older, value.to_owned()))
    };
    LABELS.iter().filter_map(missing).collect()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;

    const NOW: Time = Time(Timestamp::UNIX_EPOCH);

    /// A node with a condition `Ready`, or none for an empty status, and the taints `key:effect`.
    fn node(ready: &str, taints: &[&str]) -> Node {
        let taint = |text: &&str| {
            let (key, effect) = text.split_once(':').unwrap();
            json!({"key": key, "effect": effect})
        };
        let taints: Vec<_> = taints.iter().map(taint).collect();
        let conditions: Vec<_> = Some(json!({"type": "Ready", "status": ready, "reason": "KubeletReady",
            "lastHeartbeatTime": "2026-11-28T11:00:00Z"}))
        .into_iter()
        .filter(|_| !ready.is_empty())
        .collect();
        serde_json::from_value(json!({
            "metadata": {"name": "n", "creationTimestamp": "2026-11-28T10:00:00Z"},
            "spec": {"taints": taints}, "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    /// The taints without the key's prefix; `None` if they stay.
    fn after(ready: &str, taints: &[&str], evict: Evict) -> Option<Vec<String>> {
        let all = super::taints(&node(ready, taints), evict, &NOW)?;
        Some(all.iter().map(|t| format!("{}:{}", t.key.rsplit('/').next().unwrap(), t.effect)).collect())
    }

    fn own(name: &str) -> String {
        format!("node.kubernetes.io/{name}")
    }

    #[test]
    fn taints_follow_conditions_and_leave_others_alone() {
        let some = |list: &[&str]| Some(list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(after("True", &["mine:NoSchedule"], Evict::Keep), None);
        let unreachable = ["mine:NoSchedule", "unreachable:NoSchedule"];
        assert_eq!(after("Unknown", &["mine:NoSchedule"], Evict::Keep), some(&unreachable));
        let both = ["unreachable:NoSchedule", "unreachable:NoExecute"];
        assert_eq!(after("Unknown", &[], Evict::Taint), some(&both));
        let (schedule, execute) = (own("unreachable:NoSchedule"), own("unreachable:NoExecute"));
        let there = [schedule.as_str(), execute.as_str()];
        assert_eq!(after("Unknown", &there, Evict::Keep), None, "nothing to write twice");
        assert_eq!(after("Unknown", &there, Evict::Clear), some(&["unreachable:NoSchedule"]));
        assert_eq!(after("True", &there, Evict::Keep), some(&[]));
        let swapped = ["not-ready:NoSchedule", "not-ready:NoExecute"];
        assert_eq!(after("False", &there, Evict::Keep), some(&swapped), "without a turn of its own");
        let registered = own("not-ready:NoSchedule");
        assert_eq!(after("", &[registered.as_str()], Evict::Clear), None);
    }

    #[test]
    fn conditions_become_unknown_each_with_its_reason() {
        let mut silent = node("True", &[]);
        set_unknown(&mut silent, &NOW);
        let all = silent.status.clone().unwrap().conditions.unwrap();
        let of = |kind: &str| all.iter().find(|c| c.type_ == kind).unwrap();
        assert_eq!((all.len(), of("Ready").status.as_str()), (4, "Unknown"));
        assert_eq!(of("Ready").reason.as_deref(), Some("NodeStatusUnknown"));
        assert_eq!(of("Ready").message.as_deref(), Some("Kubelet stopped posting node status."));
        assert_eq!(of("Ready").last_heartbeat_time.as_ref().unwrap().0.to_string(), "2026-11-28T11:00:00Z");
        assert_eq!(of("DiskPressure").reason.as_deref(), Some("NodeStatusNeverUpdated"));
        assert_eq!(of("DiskPressure").message.as_deref(), Some("Kubelet never posted node status."));
        assert_eq!(of("DiskPressure").last_heartbeat_time, silent.metadata.creation_timestamp);
        let again = silent.clone();
        set_unknown(&mut silent, &Time(Timestamp::from_second(9).unwrap()));
        assert_eq!(silent, again);
    }

    #[test]
    fn older_labels_follow_the_newer() {
        let mut node = node("True", &[]);
        assert_eq!(labels(&node), []);
        let both = [("kubernetes.io/os", "linux"), ("beta.kubernetes.io/os", "plan9")];
        node.metadata.labels = Some(both.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        assert_eq!(labels(&node), [("beta.kubernetes.io/os", "linux".to_owned())]);
        node.metadata.labels.as_mut().unwrap().insert("beta.kubernetes.io/os".into(), "linux".into());
        assert_eq!(labels(&node), []);
    }
}
