//! A naive model of the API: is a connection allowed? Straight from its text, for tests.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::Ipv4Net;
use k8s_core::{
    api::{
        api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
        apimachinery::pkg::{apis::meta::v1::LabelSelector as ApiSelector, util::intstr::IntOrString},
    },
    meta::{ObjectExt, selector::LabelSelector},
};

use super::facts::PodFacts;

/// A pod of the model.
#[derive(Clone, Debug)]
pub(crate) struct ModelPod {
    pub(crate) namespace: String,
    pub(crate) facts: PodFacts,
}

/// The objects of a cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pub(crate) pods: Vec<ModelPod>,
    pub(crate) policies: Vec<NetworkPolicy>,
}

type Labels = BTreeMap<String, String>;

fn matches(selector: &ApiSelector, labels: &Labels) -> bool {
    LabelSelector::from_api(selector).is_ok_and(|selector| selector.matches(Some(labels)))
}

impl Model {
    fn pod_at(&self, address: Ipv4Addr) -> Option<&ModelPod> {
        self.pods.iter().find(|pod| pod.facts.addresses.contains(&address))
    }

    /// Returns true if both ends allow the connection.
    pub(crate) fn allows(&self, from: Ipv4Addr, to: Ipv4Addr, protocol: u8, port: u16) -> bool {
        let both = self.end(from, to, to, protocol, port, "Egress")
            && self.end(to, from, to, protocol, port, "Ingress");
        from == to || both
    }

    fn end(
        &self,
        own: Ipv4Addr,
        peer: Ipv4Addr,
        server: Ipv4Addr,
        protocol: u8,
        port: u16,
        direction: &str,
    ) -> bool {
        let Some(pod) = self.pod_at(own).filter(|pod| pod.facts.is_local) else { return true };
        let mut isolated = false;
        for policy in self.policies.iter().filter(|policy| policy.namespace() == pod.namespace) {
            let spec = policy.spec.clone().unwrap_or_default();
            let types = spec.policy_types.clone().unwrap_or_else(|| {
                let egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
                if egress { vec!["Ingress".into(), "Egress".into()] } else { vec!["Ingress".into()] }
            });
            let selector = spec.pod_selector.clone().unwrap_or_default();
            if !matches(&selector, &pod.facts.labels) || !types.iter().any(|t| t == direction) {
                continue;
            }
            isolated = true;
            let rules: Vec<_> = if direction == "Ingress" {
                spec.ingress.into_iter().flatten().map(|rule| (rule.from, rule.ports)).collect()
            } else {
                spec.egress.into_iter().flatten().map(|rule| (rule.to, rule.ports)).collect()
            };
            let allowed = rules.into_iter().any(|(peers, ports)| {
                let (peers, ports) = (peers.unwrap_or_default(), ports.unwrap_or_default());
                let by_peer = peers.is_empty() || peers.iter().any(|p| self.is_peer(p, peer, &pod.namespace));
                let by_port =
                    ports.is_empty() || ports.iter().any(|p| self.is_port(p, server, protocol, port));
                by_peer && by_port
            });
            if allowed {
                return true;
            }
        }
        !isolated
    }

    fn is_peer(&self, peer: &NetworkPolicyPeer, address: Ipv4Addr, namespace: &str) -> bool {
        if let Some(block) = &peer.ip_block {
            let inside =
                |range: &String| range.parse::<Ipv4Net>().is_ok_and(|range| range.contains(&address));
            return inside(&block.cidr) && !block.except.iter().flatten().any(inside);
        }
        let Some(pod) = self.pod_at(address) else { return false };
        let in_namespace = match &peer.namespace_selector {
            None => pod.namespace == namespace,
            Some(selector) => {
                self.namespaces.get(&pod.namespace).is_some_and(|labels| matches(selector, labels))
            }
        };
        in_namespace && peer.pod_selector.as_ref().is_none_or(|s| matches(s, &pod.facts.labels))
    }

    fn is_port(&self, wanted: &NetworkPolicyPort, server: Ipv4Addr, protocol: u8, port: u16) -> bool {
        let own = match wanted.protocol.as_deref().unwrap_or("TCP") {
            "TCP" => 6,
            "UDP" => 17,
            _ => 132,
        };
        own == protocol
            && match &wanted.port {
                None => true,
                Some(IntOrString::Int(first)) => {
                    (*first..=wanted.end_port.unwrap_or(*first)).contains(&i32::from(port))
                }
                Some(IntOrString::String(name)) => self.pod_at(server).is_some_and(|pod| {
                    let mut named = pod.facts.ports.iter();
                    named.any(|n| n.name == *name && n.protocol == protocol && n.port == port)
                }),
            }
    }
}
