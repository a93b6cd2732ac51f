//! The facts of a pod that policies are about. Pure.

use std::{collections::BTreeMap, net::Ipv4Addr};

use k8s_core::{api::Pod, meta::ObjectKey};

use super::ports::NamedPort;

/// A pod with addresses of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodFacts {
    pub(crate) labels: BTreeMap<String, String>,
    /// Sorted.
    pub(crate) addresses: Vec<Ipv4Addr>,
    /// Sorted.
    pub(crate) ports: Vec<NamedPort>,
    /// The pod runs on this node, so its own policies apply here.
    pub(crate) is_local: bool,
}

/// Returns the facts of a pod. `None` for a pod of the host network, which counts as the node, and for one
/// that has ended. `assigned` are addresses that the pod network gave it, of which its status may not tell
/// yet.
pub(crate) fn facts(pod: &Pod, node: &str, assigned: &[Ipv4Addr]) -> Option<PodFacts> {
    let spec = pod.spec.as_ref()?;
    let status = pod.status.as_ref();
    let phase = status.and_then(|s| s.phase.as_deref()).unwrap_or_default();
    if spec.host_network == Some(true) || (matches!(phase, "Succeeded" | "Failed") && assigned.is_empty()) {
        return None;
    }
    let ips = status.into_iter().flat_map(|s| s.pod_ips.iter().flatten().map(|ip| &ip.ip).chain(&s.pod_ip));
    let mut addresses: Vec<Ipv4Addr> = ips.filter_map(|ip| ip.parse().ok()).collect();
    if !assigned.is_empty() {
        addresses = assigned.to_vec();
    }
    addresses.sort_unstable();
    addresses.dedup();
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let named = ports.filter_map(|port| {
        let protocol = crate::protocol_number(port.protocol.as_deref().unwrap_or_default())?;
        Some(NamedPort { protocol, name: port.name.clone()?, port: u16::try_from(port.container_port).ok()? })
    });
    let mut ports: Vec<_> = named.collect();
    ports.sort_unstable();
    ports.dedup();
    Some(PodFacts {
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        addresses,
        ports,
        is_local: spec.node_name.as_deref() == Some(node),
    })
}

/// Drops what policies do not read: with many pods it is most of the memory.
pub(crate) fn trim(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    pod.metadata.annotations = None;
    pod.metadata.owner_references = None;
    pod.metadata.finalizers = None;
    if let Some(spec) = pod.spec.take() {
        let ports = |containers: Vec<k8s_core::api::api::core::v1::Container>| {
            let kept = containers.into_iter().filter(|c| c.ports.is_some());
            kept.map(|c| k8s_core::api::api::core::v1::Container {
                name: c.name,
                ports: c.ports,
                restart_policy: c.restart_policy,
                ..Default::default()
            })
            .collect::<Vec<_>>()
        };
        pod.spec = Some(k8s_core::api::api::core::v1::PodSpec {
            containers: ports(spec.containers),
            init_containers: spec.init_containers.map(ports).filter(|all| !all.is_empty()),
            host_network: spec.host_network,
            node_name: spec.node_name,
            ..Default::default()
        });
    }
    if let Some(status) = pod.status.take() {
        pod.status = Some(k8s_core::api::api::core::v1::PodStatus {
            phase: status.phase,
            pod_ip: status.pod_ip,
            pod_ips: status.pod_ips,
            ..Default::default()
        });
    }
}

/// Key and facts of the cluster's DNS server, which runs in the node itself. It counts as a pod of
/// `kube-system` with the label `k8s-app: kube-dns`, so that the usual policies that allow DNS do.
pub(crate) fn dns(address: Ipv4Addr) -> (ObjectKey, PodFacts) {
    let port = |protocol, name: &str, port| NamedPort { protocol, name: name.into(), port };
    let mut ports = vec![port(6, "dns-tcp", 53), port(17, "dns", 53)];
    ports.sort_unstable();
    let labels = [("k8s-app", "kube-dns"), ("kubernetes.io/name", "CoreDNS")];
    let facts = PodFacts {
        labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        addresses: vec![address],
        ports,
        is_local: false,
    };
    // No pod has such a name.
    (ObjectKey::new("kube-system", "kube-dns (node)"), facts)
}
