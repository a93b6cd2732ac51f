//! Checks a pod against the node and the pods that it has: resources, affinity, name, ports, taints. Pure.
//!
//! Order, names and messages are upstream's (`pkg/kubelet/lifecycle/predicate.go`, `generalFilter`). All
//! failures are found; the first one is the reason of the refusal.

use k8s_core::meta::{
    ObjectExt, Quantity,
    node::{NodeTerm, is_tolerated},
};

use super::{Refusal, ledger::Held};
use crate::{
    resources::{Amounts, pod_requests},
    types::*,
};

/// A failed check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// A resource is short. CPU is in millicores.
    Insufficient { resource: String, requested: i64, used: i64, capacity: i64 },
    /// Another check: its name, and the reason.
    Predicate(&'static str, &'static str),
}

const AFFINITY: Failure =
    Failure::Predicate("NodeAffinity", "node(s) didn't match Pod's node affinity/selector");
const NAME: Failure = Failure::Predicate("NodeName", "node(s) didn't match the requested node name");
const PORTS: Failure =
    Failure::Predicate("NodePorts", "node(s) didn't have free ports for the requested pod ports");
const TAINTS: Failure =
    Failure::Predicate("TaintToleration", "node(s) had taints that the pod didn't tolerate");

impl Failure {
    /// Returns `true` if fresh labels of the node may change the result.
    pub(super) fn is_affinity(&self) -> bool {
        *self == AFFINITY
    }

    /// Returns reason and message for the pod's status.
    pub(super) fn refusal(&self) -> Refusal {
        match self {
            Failure::Insufficient { resource, requested, used, capacity } => Refusal {
                reason: format!("OutOf{resource}").into(),
                message: format!(
                    "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
                ),
            },
            Failure::Predicate(name, reason) => {
                Refusal { reason: (*name).into(), message: format!("Predicate {name} failed: {reason}") }
            }
        }
    }
}

/// Returns all failed checks of a pod.
pub(super) fn failures(pod: &Pod, node: &Node, held: &Held) -> Vec<Failure> {
    let spec = pod.spec.clone().unwrap_or_default();
    let mut found = shortages(&spec, node, held);
    if !matches_affinity(&spec, node) {
        found.push(AFFINITY);
    }
    if spec.node_name.as_deref().is_some_and(|name| !name.is_empty() && name != node.name()) {
        found.push(NAME);
    }
    if host_ports(&spec).any(|port| held.ports().any(|other| port.conflicts(&other))) {
        found.push(PORTS);
    }
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    if taints.filter(|t| t.effect == "NoExecute").any(|taint| !is_tolerated(taint, tolerations)) {
        found.push(TAINTS);
    }
    found
}

/// Returns an allocatable resource of the node, in millicores for CPU. `None`: the node does not list it.
fn allocatable(node: &Node, name: &str) -> Option<i64> {
    let quantity = node.status.as_ref()?.allocatable.as_ref()?.get(name)?;
    let quantity = Quantity::try_from(quantity).unwrap_or(Quantity::ZERO);
    Some(if name == "cpu" { quantity.milli() } else { quantity.units() })
}

/// Returns `true` for resources that neither Kubernetes nor a plain name stands for.
fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.")
}

fn shortages(spec: &PodSpec, node: &Node, held: &Held) -> Vec<Failure> {
    let mut found = Vec::new();
    let mut check = |resource: &str, requested: i64, used: i64, capacity: i64| {
        if requested > 0 && requested > capacity.saturating_sub(used) {
            found.push(Failure::Insufficient { resource: resource.to_owned(), requested, used, capacity });
        }
    };
    let pods = i64::try_from(held.count()).unwrap_or(i64::MAX);
    check("pods", 1, pods, allocatable(node, "pods").unwrap_or(0));
    let requests: Amounts = pod_requests(spec);
    let basic = ["cpu", "memory", "ephemeral-storage"];
    let others = requests.keys().map(String::as_str).filter(|name| !basic.contains(name));
    for name in basic.into_iter().chain(others) {
        let capacity = allocatable(node, name);
        // A resource of the whole cluster, unknown to nodes.
        if capacity.is_none() && is_extended(name) {
            continue;
        }
        let requested = requests.get(name).copied().unwrap_or(0);
        check(name, requested, held.used(name), capacity.unwrap_or(0));
    }
    found
}

fn matches_affinity(spec: &PodSpec, node: &Node) -> bool {
    let labels = spec.node_selector.iter().flatten();
    let selected = labels.into_iter().all(|(key, value)| node.label(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|terms| NodeTerm::of(terms).iter().any(|term| term.matches(node)))
}

/// A port of the node that a container takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostPort {
    protocol: String,
    ip: String,
    port: i32,
}

const ANY_ADDRESS: &str = "0.0.0.0";

impl HostPort {
    fn conflicts(&self, other: &HostPort) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == ANY_ADDRESS || other.ip == ANY_ADDRESS)
    }
}

/// Returns the host ports of the containers and sidecars.
pub(super) fn host_ports(spec: &PodSpec) -> impl Iterator<Item = HostPort> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports.filter_map(|p| {
        let or = |value: Option<&String>, default: &str| {
            value.filter(|v| !v.is_empty()).cloned().unwrap_or_else(|| default.to_owned())
        };
        Some(HostPort {
            protocol: or(p.protocol.as_ref(), "TCP"),
            ip: or(p.host_ip.as_ref(), ANY_ADDRESS),
            port: p.host_port.filter(|port| *port > 0)?,
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(uid: &str, spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": spec})).unwrap()
    }

    fn asks(requests: Value) -> Value {
        json!({"containers": [{"name": "c", "resources": {"requests": requests}}]})
    }

    fn port(port: i32, protocol: &str, ip: &str) -> Value {
        json!({"containers": [{"name": "c", "ports": [
            {"containerPort": 80, "hostPort": port, "protocol": protocol, "hostIP": ip}]}]})
    }

    /// Reasons of all failures on a node with one CPU free of two, on which one pod has the port 80.
    #[test]
    fn reasons_and_their_order() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"disk": "ssd"}},
            "spec": {"taints": [{"key": "k", "effect": "NoExecute"}, {"key": "s", "effect": "NoSchedule"}]},
            "status": {"allocatable": {
                "cpu": "2", "memory": "1Gi", "ephemeral-storage": "1Gi", "pods": "3", "example.com/gpu": "1",
            }},
        }))
        .unwrap();
        let mut held = Held::default();
        let mut there = port(80, "TCP", "");
        there["containers"][0]["resources"] = json!({"requests": {"cpu": "1"}});
        held.insert(&pod("there", there));
        let required = |value: &str| {
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "disk", "operator": "In", "values": [value]}]}]}}})
        };
        for (spec, want) in [
            (asks(json!({"cpu": "1", "memory": "1Gi"})), &[][..]),
            (asks(json!({"cpu": "1001m"})), &["OutOfcpu"]),
            (asks(json!({"memory": "1025Mi", "cpu": "3"})), &["OutOfcpu", "OutOfmemory"]),
            (asks(json!({"ephemeral-storage": "2Gi"})), &["OutOfephemeral-storage"]),
            (asks(json!({"example.com/gpu": "2"})), &["OutOfexample.com/gpu"]),
            (asks(json!({"example.com/other": "2"})), &[]),
            (asks(json!({"hugepages-2Mi": "2Mi"})), &["OutOfhugepages-2Mi"]),
            (json!({"nodeSelector": {"disk": "ssd"}}), &[]),
            (json!({"nodeSelector": {"disk": "hdd"}}), &["NodeAffinity"]),
            (json!({"affinity": required("ssd")}), &[]),
            (json!({"affinity": required("hdd")}), &["NodeAffinity"]),
            (json!({"nodeName": "n2"}), &["NodeName"]),
            (port(80, "TCP", ""), &["NodePorts"]),
            (port(80, "TCP", "127.0.0.1"), &["NodePorts"]),
            (port(80, "UDP", ""), &[]),
            (port(81, "TCP", ""), &[]),
            (json!({"tolerations": []}), &["TaintToleration"]),
            (
                json!({"nodeName": "n2", "nodeSelector": {"x": "y"}, "tolerations": []}),
                &["NodeAffinity", "NodeName", "TaintToleration"],
            ),
        ] {
            let mut spec = spec;
            if spec.get("tolerations").is_none() {
                spec["tolerations"] = json!([{"key": "k", "operator": "Exists"}]);
            }
            if spec.get("containers").is_none() {
                spec["containers"] = json!([]);
            }
            let found = failures(&pod("new", spec.clone()), &node, &held);
            let reasons: Vec<String> = found.iter().map(|f| f.refusal().reason.into_owned()).collect();
            assert_eq!(reasons, want, "{spec}");
        }
        held.insert(&pod("second", json!({"containers": []})));
        held.insert(&pod("third", json!({"containers": []})));
        let full = failures(&pod("new", asks(json!({"cpu": "2"}))), &node, &held);
        let messages: Vec<String> = full.iter().map(|f| f.refusal().message).collect();
        assert_eq!(
            messages,
            [
                "Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3",
                "Node didn't have enough resource: cpu, requested: 2000, used: 1000, capacity: 2000",
                "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate",
            ]
        );
    }

    #[test]
    fn addresses_of_host_ports() {
        let one = |ip: &str| host_ports(&pod("p", port(80, "TCP", ip)).spec.unwrap()).next().unwrap();
        assert!(one("10.0.0.1").conflicts(&one("")) && one("").conflicts(&one("10.0.0.1")));
        assert!(!one("10.0.0.1").conflicts(&one("10.0.0.2")));
    }
}
