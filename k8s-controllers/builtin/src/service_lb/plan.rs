//! The addresses that a Service may have: those of nodes that take its traffic, with free ports. Pure.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use k8s_core::{
    api::api::{
        core::v1::{Node, Service},
        discovery::v1::EndpointSlice,
    },
    meta::ObjectExt,
};

/// The `loadBalancerClass` of this load balancer. Services without a class are served, too.
pub const CLASS: &str = "hyperkube.dev/servicelb";

/// Label of nodes that no load balancer leads to.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// Taint of nodes that the autoscaler is about to remove.
const LEAVING: &str = "ToBeDeletedByClusterAutoscaler";

/// Protocol and number of a Service's port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Port {
    pub(super) protocol: String,
    pub(super) number: i32,
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol)
    }
}

/// Returns true if this load balancer serves a Service.
pub(super) fn is_ours(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    let class = spec.load_balancer_class.as_deref();
    is_balanced(service) && class.is_none_or(|class| class == CLASS) && !service.is_deleting()
}

/// Returns true if a Service is of type LoadBalancer.
pub(super) fn is_balanced(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer")
}

/// Returns true if only nodes with endpoints serve a Service's load balancer.
pub(super) fn is_local(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.external_traffic_policy.as_deref()) == Some("Local")
}

/// Returns the ports of a Service.
pub(super) fn ports(service: &Service) -> Vec<Port> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    ports.map(|port| Port { protocol: protocol(port.protocol.as_ref()), number: port.port }).collect()
}

/// Returns the node ports of a Service.
pub(super) fn node_ports(service: &Service) -> Vec<Port> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let given = ports.filter_map(|port| Some((port.node_port.filter(|p| *p > 0)?, port)));
    given.map(|(number, port)| Port { protocol: protocol(port.protocol.as_ref()), number }).collect()
}

fn protocol(name: Option<&String>) -> String {
    name.cloned().unwrap_or_else(|| "TCP".to_owned())
}

/// Returns the addresses in a Service's status.
pub(super) fn given(service: &Service) -> Vec<IpAddr> {
    let ingress = service.status.iter().flat_map(|s| &s.load_balancer).flat_map(|l| l.ingress.iter());
    ingress.flatten().filter_map(|point| point.ip.as_ref()?.parse().ok()).collect()
}

/// A node to which load balancers may lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) node: String,
    /// Its external addresses, or without any its internal ones.
    pub(super) addresses: Vec<IpAddr>,
    /// Ports that it uses itself: on one address, or on all.
    pub(super) own: Vec<(Option<IpAddr>, Port)>,
}

/// Reads a node; `None` if no load balancer leads to it. `own` lists the ports that it uses itself, as
/// `TCP/22` or `UDP/192.0.2.2:53` separated by blanks; what cannot be read is skipped.
pub(super) fn place(node: &Node, own: &str) -> Option<Place> {
    let status = node.status.as_ref()?;
    let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let leaves = taints.into_iter().any(|taint| taint.key == LEAVING);
    if !ready || leaves || node.is_deleting() || node.label(EXCLUDED).is_some() {
        return None;
    }
    let of = |kind: &str| -> Vec<IpAddr> {
        let all = status.addresses.iter().flatten().filter(|address| address.type_ == kind);
        all.filter_map(|address| address.address.parse().ok()).collect()
    };
    let external = of("ExternalIP");
    let addresses = if external.is_empty() { of("InternalIP") } else { external };
    let own = own.split_whitespace().filter_map(own_port).collect();
    Some(Place { node: node.name().to_owned(), addresses, own })
}

fn own_port(text: &str) -> Option<(Option<IpAddr>, Port)> {
    let (protocol, rest) = text.split_once('/')?;
    let (address, number) = match rest.rsplit_once(':') {
        Some((address, number)) => (Some(address.parse().ok()?), number),
        None => (None, rest),
    };
    Some((address, Port { protocol: protocol.to_owned(), number: number.parse().ok()? }))
}

impl Place {
    /// Returns the first of these ports that the node uses itself. A port on one of the node's other
    /// addresses counts where clients use an external address, which the node does not know.
    pub(super) fn used<'a>(&self, address: IpAddr, ports: &'a [Port]) -> Option<&'a Port> {
        ports
            .iter()
            .find(|port| self.own.iter().any(|(at, own)| own == *port && at.is_none_or(|at| at == address)))
    }
}

/// Returns the nodes with ready endpoints of a Service.
pub(super) fn nodes_with_endpoints(slices: &[Arc<EndpointSlice>]) -> BTreeSet<&str> {
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = endpoints.filter(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true));
    ready.filter_map(|endpoint| endpoint.node_name.as_deref()).collect()
}

/// Returns the places and addresses that a Service asks for: of its IP families, and only
/// `spec.loadBalancerIP` if that is set.
pub(super) fn candidates<'a>(
    service: &'a Service,
    places: &'a [Place],
) -> impl Iterator<Item = (&'a Place, IpAddr)> {
    let spec = service.spec.as_ref();
    let families: Vec<&str> =
        spec.iter().flat_map(|s| s.ip_families.iter().flatten()).map(String::as_str).collect();
    let wanted = requested(service);
    let all = places.iter().flat_map(|place| place.addresses.iter().map(move |address| (place, *address)));
    all.filter(move |(_, address)| {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        let fits = if families.is_empty() { address.is_ipv4() } else { families.contains(&family) };
        fits && wanted.is_none_or(|wanted| address.to_string() == wanted)
    })
}

/// Returns the address that a Service asks for.
pub(super) fn requested(service: &Service) -> Option<&str> {
    let wanted = service.spec.as_ref().and_then(|spec| spec.load_balancer_ip.as_deref());
    wanted.filter(|wanted| !wanted.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(more: Value) -> Node {
        let mut node = json!({"metadata": {"name": "a"}, "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": "192.0.2.2"}, {"type": "Hostname", "address": "a"}]}});
        for (key, value) in more.as_object().unwrap() {
            node[key] = value.clone();
        }
        serde_json::from_value(node).unwrap()
    }

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": spec})).unwrap()
    }

    #[test]
    fn ready_nodes_give_their_external_or_internal_addresses() {
        let addresses = |node: &Node| {
            place(node, "").map(|place| place.addresses.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(addresses(&node(json!({}))).unwrap(), ["192.0.2.2"]);
        let mut external = node(json!({}));
        let both = json!([{"type": "InternalIP", "address": "192.0.2.2"}, {"type": "ExternalIP", "address": "203.0.113.9"}]);
        external.status.as_mut().unwrap().addresses = serde_json::from_value(both).unwrap();
        assert_eq!(addresses(&external).unwrap(), ["203.0.113.9"]);
        let conditions = json!({"conditions": [{"type": "Ready", "status": "Unknown"}]});
        assert_eq!(addresses(&node(json!({"status": conditions}))), None);
        let labels = json!({"name": "a", "labels": {EXCLUDED: ""}});
        assert_eq!(addresses(&node(json!({"metadata": labels}))), None);
        let taints = json!({"taints": [{"key": LEAVING, "effect": "NoSchedule"}]});
        assert_eq!(addresses(&node(json!({"spec": taints}))), None);
        assert!(
            addresses(&node(json!({"spec": {"unschedulable": true}}))).is_some(),
            "a cordoned node serves"
        );
    }

    #[test]
    fn ports_of_the_node_are_known() {
        let place =
            place(&node(json!({})), "TCP/22 UDP/192.0.2.2:53 TCP/10.0.0.1:81 x TCP/ /1 TCP/a:1").unwrap();
        let used = |address: &str, protocol: &str, number| {
            let port = Port { protocol: protocol.into(), number };
            place.used(address.parse().unwrap(), &[port]).is_some()
        };
        assert!(used("192.0.2.2", "TCP", 22) && used("192.0.2.2", "UDP", 53));
        assert!(
            !used("192.0.2.2", "UDP", 22) && !used("192.0.2.3", "UDP", 53) && !used("192.0.2.2", "TCP", 81)
        );
    }

    #[test]
    fn services_ask_for_addresses_of_their_families_or_for_one() {
        let mut place = place(&node(json!({})), "").unwrap();
        place.addresses.push("2001:db8::2".parse().unwrap());
        let asks = |spec: Value| -> Vec<String> {
            let (service, places) = (service(spec), [place.clone()]);
            candidates(&service, &places).map(|(_, address)| address.to_string()).collect()
        };
        assert_eq!(asks(json!({})), ["192.0.2.2"]);
        assert_eq!(asks(json!({"ipFamilies": ["IPv6"]})), ["2001:db8::2"]);
        assert_eq!(asks(json!({"ipFamilies": ["IPv4", "IPv6"]})), ["192.0.2.2", "2001:db8::2"]);
        assert_eq!(asks(json!({"loadBalancerIP": "192.0.2.2"})), ["192.0.2.2"]);
        assert_eq!(asks(json!({"loadBalancerIP": "192.0.2.9"})), Vec::<String>::new());
        for (spec, ours) in [
            (json!({"type": "LoadBalancer"}), true),
            (json!({"type": "LoadBalancer", "loadBalancerClass": CLASS}), true),
            (json!({"type": "LoadBalancer", "loadBalancerClass": "metallb.io/metallb"}), false),
            (json!({"type": "NodePort"}), false),
        ] {
            assert_eq!(is_ours(&service(spec.clone())), ours, "{spec}");
        }
    }
}
