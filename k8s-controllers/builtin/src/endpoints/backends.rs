//! The endpoints of a Service: addresses, conditions, ports of its pods. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_core::{
    api::{
        api::core::v1::{ObjectReference, Pod, Service, ServicePort},
        apimachinery::pkg::util::intstr::IntOrString,
    },
    meta::ObjectExt,
};

use crate::pods;

/// Label of endpoints of a Service without a cluster IP.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// A port with the pod's number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) protocol: String,
    pub(super) number: i32,
    pub(super) app_protocol: Option<String>,
}

/// One address behind a Service.
#[derive(Clone, Debug)]
pub(super) struct Backend {
    pub(super) ip: String,
    pub(super) pod: Arc<Pod>,
    /// Receives traffic: ready and not terminating, or the Service publishes addresses that are not ready.
    pub(super) ready: bool,
    /// Ready, even if terminating.
    pub(super) serving: bool,
    pub(super) terminating: bool,
    /// Host name in DNS.
    pub(super) hostname: Option<String>,
}

impl Backend {
    /// Returns the name of the pod's node; `None` before it is scheduled.
    pub(super) fn node_name(&self) -> Option<String> {
        Some(pods::node_name(&self.pod).to_owned()).filter(|name| !name.is_empty())
    }

    /// Returns a reference to the pod.
    pub(super) fn target_ref(&self) -> ObjectReference {
        ObjectReference {
            kind: Some("Pod".into()),
            namespace: Some(self.pod.namespace().to_owned()),
            name: Some(self.pod.name().to_owned()),
            uid: Some(self.pod.uid().to_owned()),
            ..ObjectReference::default()
        }
    }
}

/// Backends by identical ports.
pub(super) type Groups = BTreeMap<Vec<Port>, Vec<Backend>>;

pub(super) fn publishes_unready(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|s| s.publish_not_ready_addresses).unwrap_or(false)
        || service.annotation("service.alpha.kubernetes.io/tolerate-unready-endpoints") == Some("true")
}

pub(super) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// Returns the labels of an object with the endpoints of a Service: those of the Service, and [`HEADLESS`]
/// exactly if it is headless.
pub(super) fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    } else {
        labels.remove(HEADLESS);
    }
    labels
}

/// Returns the Service's address families: `IPv4`, `IPv6`.
pub(super) fn families(service: &Service) -> Vec<String> {
    let spec = service.spec.clone().unwrap_or_default();
    if let Some(families) = spec.ip_families.filter(|f| !f.is_empty()) {
        return families;
    }
    let v6 = spec.cluster_ip.is_some_and(|ip| ip.contains(':'));
    vec![if v6 { "IPv6" } else { "IPv4" }.to_owned()]
}

fn address(pod: &Pod, family: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).chain(status.pod_ip.as_deref());
    let fits = |text: &&str| match text.parse() {
        Ok(IpAddr::V4(_)) => family == "IPv4",
        Ok(IpAddr::V6(_)) => family == "IPv6",
        Err(_) => false,
    };
    all.filter(|ip| !ip.is_empty()).find(fits).map(str::to_owned)
}

/// Resolves a Service port to the pod's port number; `None` if the pod has no port of that name.
pub(super) fn target(pod: &Pod, port: &ServicePort) -> Option<i32> {
    match port.target_port.as_ref() {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            if let Ok(number) = name.parse() {
                return Some(number);
            }
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let spec = pod.spec.as_ref()?;
            // Sidecars (init containers that keep running) serve ports, too.
            let sidecars = spec
                .init_containers
                .iter()
                .flatten()
                .filter(|c| c.restart_policy.as_deref() == Some("Always"));
            let named = |p: &&k8s_core::api::api::core::v1::ContainerPort| {
                p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol
            };
            let all = spec.containers.iter().chain(sidecars);
            all.flat_map(|c| c.ports.iter().flatten()).find(named).map(|p| p.container_port)
        }
    }
}

fn ports(pod: &Pod, service: &Service) -> Vec<Port> {
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
    let mut found: Vec<Port> = ports
        .iter()
        .filter_map(|port| {
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                number: target(pod, port)?,
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    found.sort();
    found
}

/// Returns all backends of a family by ports. Terminated pods are omitted, terminating ones are marked.
pub(super) fn groups(service: &Service, pods: &[Arc<Pod>], family: &str) -> Groups {
    let mut groups = Groups::new();
    let mut seen = BTreeSet::new();
    for pod in pods.iter().filter(|p| !pods::is_terminal(p)) {
        let Some(ip) = address(pod, family) else { continue };
        if !seen.insert((ip.clone(), pod.uid().to_owned())) {
            continue;
        }
        let serving = pods::is_ready(pod);
        let terminating = pod.is_deleting();
        let spec = pod.spec.as_ref();
        let subdomain = spec.and_then(|s| s.subdomain.as_deref());
        let hostname = spec.and_then(|s| s.hostname.clone()).filter(|h| !h.is_empty());
        groups.entry(ports(pod, service)).or_default().push(Backend {
            ip,
            pod: pod.clone(),
            ready: publishes_unready(service) || (serving && !terminating),
            serving,
            terminating,
            hostname: hostname.filter(|_| subdomain == Some(service.name())),
        });
    }
    groups
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn endpoints_are_headless_exactly_if_their_service_is() {
        for (cluster_ip, has_label, want) in [
            ("None", false, true),
            ("None", true, true),
            ("10.0.0.1", false, false),
            ("10.0.0.1", true, false),
        ] {
            let mut labels = BTreeMap::from([("app".to_owned(), "web")]);
            if has_label {
                labels.insert(HEADLESS.to_owned(), "");
            }
            let service = json!({"metadata": {"labels": labels}, "spec": {"clusterIP": cluster_ip}});
            let found = super::labels(&serde_json::from_value(service).unwrap());
            assert_eq!(found.get("app").map(String::as_str), Some("web"));
            assert_eq!(found.contains_key(HEADLESS), want, "{cluster_ip}, label of the Service: {has_label}");
        }
    }
}
