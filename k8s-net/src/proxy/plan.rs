//! Computes the desired proxy state of a Service from its EndpointSlices. Pure.
//!
//! [`endpoints`] chooses the endpoints; here are the addresses and ports at which they are reached.

mod endpoints;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use k8s_core::{
    api::api::{
        core::v1::{Node, Service},
        discovery::v1::EndpointSlice,
    },
    meta::ObjectExt,
};

use ipnet::Ipv4Net;

/// Address and port of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Backend {
    pub(crate) address: Ipv4Addr,
    pub(crate) port: u16,
}

/// Origin of a connection (inside or outside of the cluster) and kind of its destination (address or node
/// port).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Zone {
    /// To the cluster IP, from anywhere.
    Cluster = 0,
    /// To an external IP or a load balancer's, from pods and nodes.
    Inside = 1,
    /// To an external IP or a load balancer's, from elsewhere.
    Outside = 2,
    /// To a node port, from pods and nodes.
    InsidePort = 3,
    /// To a node port, from elsewhere.
    OutsidePort = 4,
}

/// Traffic policy: the endpoints that may serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// All endpoints.
    Cluster,
    /// Endpoints on this node (`...TrafficPolicy: Local`). If there is none, packets are dropped: another
    /// node may have some.
    Local,
}

/// An address and port at which the service is reachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Front {
    pub(crate) zone: Zone,
    /// Unspecified for node ports.
    pub(crate) address: Ipv4Addr,
    pub(crate) port: u16,
    pub(crate) reach: Reach,
    /// The endpoint sees the node's address, so that its replies return through this node.
    pub(crate) masquerade: bool,
    /// Only clients of the port's `sources` may connect.
    pub(crate) limited: bool,
}

impl Front {
    /// Returns the CIDRs from which clients may connect; `None`: from everywhere.
    pub(crate) fn sources<'a>(&self, port: &'a PortPlan) -> Option<&'a [Ipv4Net]> {
        port.sources.as_deref().filter(|_| self.limited)
    }
}

/// Desired state of one port of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortPlan {
    pub(crate) name: String,
    pub(crate) protocol: u8,
    /// Session affinity timeout in milliseconds.
    pub(crate) affinity_ms: Option<u64>,
    /// CIDRs from which clients may connect to limited fronts. `None`: from everywhere.
    pub(crate) sources: Option<Vec<Ipv4Net>>,
    /// Sorted and without duplicates.
    pub(crate) all: Vec<Backend>,
    /// Backends on this node, selected by the same rule.
    pub(crate) local: Vec<Backend>,
    pub(crate) fronts: Vec<Front>,
}

impl PortPlan {
    pub(crate) fn backends(&self, reach: Reach) -> &[Backend] {
        match reach {
            Reach::Cluster => &self.all,
            Reach::Local => &self.local,
        }
    }
}

/// The node that a plan is for, and its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Here {
    /// Name of the node.
    pub(crate) node: String,
    /// Zone of the node; empty without one.
    pub(crate) zone: String,
    /// Internal and external IPv4 addresses of the node.
    pub(crate) addresses: Vec<Ipv4Addr>,
    /// CIDRs of pods and Services.
    pub(crate) ranges: Vec<Ipv4Net>,
}

impl Here {
    /// Takes zone and addresses from the node's object.
    pub(crate) fn learn(&mut self, node: Option<&Node>) {
        let label = node.and_then(|node| node.label("topology.kubernetes.io/zone"));
        self.zone = label.unwrap_or_default().to_owned();
        let all = node.and_then(|n| n.status.as_ref()).into_iter().flat_map(|s| s.addresses.iter().flatten());
        let own = all.filter(|a| a.type_ == "InternalIP" || a.type_ == "ExternalIP");
        self.addresses = own.filter_map(|a| a.address.parse().ok()).collect();
    }
}

/// Label with the name of an EndpointSlice's service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Annotation of before `loadBalancerSourceRanges`: CIDRs, separated by commas.
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// Plans a service. Empty for services that the proxy must ignore (headless, ExternalName, another proxy's).
pub(crate) fn plan(service: &Service, slices: &[Arc<EndpointSlice>], here: &Here) -> Vec<PortPlan> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let cluster_ips: Vec<Ipv4Addr> = spec
        .cluster_ips
        .iter()
        .flatten()
        .chain(&spec.cluster_ip)
        .filter_map(|ip| ip.parse().ok())
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    if is_of_another(service) || cluster_ips.is_empty() {
        return Vec::new();
    }
    let affinity_ms = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let configured =
            spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
        u64::from(configured.and_then(|s| u32::try_from(s).ok()).unwrap_or(10_800).max(1)) * 1000
    });
    let reach_of = |policy: Option<&str>| if policy == Some("Local") { Reach::Local } else { Reach::Cluster };
    let inner = reach_of(spec.internal_traffic_policy.as_deref());
    let outer = reach_of(spec.external_traffic_policy.as_deref());
    let external = external_addresses(service, here);

    let mut plans = Vec::new();
    for port in spec.ports.iter().flatten() {
        let Some(protocol) = crate::protocol_number(port.protocol.as_deref().unwrap_or_default()) else {
            continue;
        };
        let Some(number) = u16::try_from(port.port).ok().filter(|p| *p > 0) else { continue };
        let mut fronts: Vec<Front> = cluster_ips
            .iter()
            .map(|ip| Front {
                zone: Zone::Cluster,
                address: *ip,
                port: number,
                reach: inner,
                masquerade: false,
                limited: false,
            })
            .collect();
        for (address, limited) in &external {
            let both = both_sides([Zone::Inside, Zone::Outside], *address, number, outer);
            fronts.extend(both.map(|front| Front { limited: *limited, ..front }));
        }
        if let Some(node_port) = port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0) {
            let zones = [Zone::InsidePort, Zone::OutsidePort];
            fronts.extend(both_sides(zones, Ipv4Addr::UNSPECIFIED, node_port, outer));
        }
        let chosen = endpoints::choose(slices, port, here);
        plans.push(PortPlan {
            name: port.name.clone().unwrap_or_default(),
            protocol,
            affinity_ms,
            sources: source_ranges(service),
            all: chosen.all,
            local: chosen.local,
            fronts,
        });
    }
    plans
}

/// Returns true if a load balancer gave a Service an address.
pub(crate) fn has_balancer(service: &Service) -> bool {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    status.is_some_and(|balancer| balancer.ingress.as_ref().is_some_and(|all| !all.is_empty()))
}

/// Number of external IPs of a Service that are answered. Each port of each is an entry in the kernel.
const MOST_EXTERNAL: usize = 256;

fn is_of_another(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName")
        || service.label("service.kubernetes.io/service-proxy-name").is_some()
}

/// Returns the addresses that clients outside of the cluster use, and whether only some clients may.
///
/// External IPs in the cluster's CIDRs are left out. Otherwise a user who may write a Service could take over
/// the address of the cluster DNS, of another Service, of a pod or of the node's bridge. A load balancer's
/// addresses are written by its controller; one of this node stands for all addresses of this node, because a
/// cloud translates an external address to an internal one.
fn external_addresses(service: &Service, here: &Here) -> BTreeMap<Ipv4Addr, bool> {
    let Some(spec) = &service.spec else { return BTreeMap::new() };
    let is_foreign = |address: &Ipv4Addr| !here.ranges.iter().any(|range| range.contains(address));
    let external = spec.external_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).filter(is_foreign);
    let external = external.take(MOST_EXTERNAL);
    let mut all: BTreeMap<_, _> = external.map(|address| (address, false)).collect();
    if spec.type_.as_deref() == Some("LoadBalancer") {
        let limited = source_ranges(service).is_some();
        let ingress = service.status.iter().flat_map(|s| &s.load_balancer).flat_map(|l| l.ingress.iter());
        for point in ingress.flatten().filter(|i| i.ip_mode.as_deref() != Some("Proxy")) {
            let Some(address) = point.ip.as_ref().and_then(|ip| ip.parse().ok()) else { continue };
            if here.addresses.contains(&address) {
                all.extend(here.addresses.iter().map(|address| (*address, limited)));
            } else if is_foreign(&address) {
                all.insert(address, limited);
            }
        }
    }
    all
}

/// Returns the CIDRs whose clients may use a load balancer's addresses; `None`: all may. What cannot be read
/// allows nobody.
fn source_ranges(service: &Service) -> Option<Vec<Ipv4Net>> {
    let spec = service.spec.as_ref()?;
    let listed = spec.load_balancer_source_ranges.iter().flatten().map(String::as_str);
    let annotated = || service.annotation(SOURCE_RANGES).unwrap_or_default().split(',');
    let of_field: Vec<&str> = listed.collect();
    let texts = if of_field.is_empty() { annotated().collect() } else { of_field };
    let texts: Vec<&str> = texts.into_iter().map(str::trim).filter(|text| !text.is_empty()).collect();
    if texts.is_empty() {
        return None;
    }
    let ranges: BTreeSet<Ipv4Net> =
        texts.iter().filter_map(|text| text.parse::<Ipv4Net>().ok()).map(|range| range.trunc()).collect();
    let is_open = ranges.iter().any(|range| range.prefix_len() == 0);
    (!is_open).then(|| ranges.into_iter().collect())
}

/// Returns the health check node port of a Service and the number of its ready endpoints on this node.
pub(crate) fn health(service: &Service, slices: &[Arc<EndpointSlice>], node: &str) -> Option<(u16, usize)> {
    let spec = service.spec.as_ref().filter(|spec| {
        spec.type_.as_deref() == Some("LoadBalancer")
            && spec.external_traffic_policy.as_deref() == Some("Local")
            && !is_of_another(service)
    })?;
    let port = spec.health_check_node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0)?;
    Some((port, endpoints::ready_on(slices, node)))
}

/// Fronts of an external address. Clients inside the cluster reach every endpoint even if the policy is
/// `Local`.
fn both_sides([inside, outside]: [Zone; 2], address: Ipv4Addr, port: u16, reach: Reach) -> [Front; 2] {
    let front = |zone, reach, masquerade| Front { zone, address, port, reach, masquerade, limited: false };
    [front(inside, Reach::Cluster, true), front(outside, reach, reach == Reach::Cluster)]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(spec: serde_json::Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "demo"}, "spec": spec}))
            .expect("valid")
    }

    fn slice(endpoints: serde_json::Value) -> Arc<EndpointSlice> {
        let slice = json!({"addressType": "IPv4", "metadata": {"name": "web-1"}, "endpoints": endpoints,
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]});
        Arc::new(serde_json::from_value(slice).expect("valid"))
    }

    fn here(node: &str) -> Here {
        let ranges = ["10.42.0.0/16", "10.43.0.0/16"].map(|range| range.parse().unwrap());
        Here { node: node.into(), ranges: ranges.to_vec(), ..Here::default() }
    }

    fn addresses(backends: &[Backend]) -> Vec<String> {
        backends.iter().map(|b| format!("{}:{}", b.address, b.port)).collect()
    }

    #[test]
    fn ready_endpoints_first_then_those_that_still_serve() {
        let service = service(json!({"clusterIP": "10.43.0.7", "ports": [{"name": "http", "port": 80}]}));
        let leaving = json!({"addresses": ["10.42.0.9"], "conditions": {"ready": false, "serving": true, "terminating": true}});
        let broken = json!({"addresses": ["10.42.0.8"], "conditions": {"ready": false, "serving": false}});
        let ready = json!({"addresses": ["10.42.0.5"], "nodeName": "a"});
        let got = plan(&service, &[slice(json!([leaving, broken, ready]))], &here("b"));
        assert_eq!(addresses(&got[0].all), ["10.42.0.5:8080"]);
        assert!(got[0].local.is_empty());
        let got = plan(&service, &[slice(json!([leaving, broken]))], &here("b"));
        assert_eq!(addresses(&got[0].all), ["10.42.0.9:8080"]);
        assert!(plan(&service, &[slice(json!([broken]))], &here("b"))[0].all.is_empty());
    }

    #[test]
    fn external_addresses_are_never_the_clusters_own() {
        let service = service(json!({"clusterIP": "10.43.0.7", "type": "NodePort",
            "externalIPs": ["198.51.100.7", "10.43.0.10", "10.42.0.1"], "ports": [{"port": 80, "nodePort": 30080}]}));
        let plans = plan(&service, &[], &here("a"));
        let left: BTreeSet<String> = plans[0].fronts.iter().map(|f| f.address.to_string()).collect();
        assert!(left.contains("10.43.0.7") && left.contains("198.51.100.7"), "{left:?}");
        assert!(!left.contains("10.43.0.10") && !left.contains("10.42.0.1"), "{left:?}");
    }

    #[test]
    fn local_policy_keeps_outside_traffic_on_the_node() {
        let service =
            service(json!({"clusterIP": "10.43.0.7", "type": "NodePort", "externalTrafficPolicy": "Local",
            "externalIPs": ["198.51.100.7"], "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}));
        let both = json!([{"addresses": ["10.42.0.5"], "nodeName": "a"}, {"addresses": ["10.42.1.5"], "nodeName": "b"}]);
        let plan = &plan(&service, &[slice(both)], &here("b"))[0];
        assert_eq!(addresses(&plan.local), ["10.42.1.5:8080"]);
        let zones: Vec<_> = plan.fronts.iter().map(|f| (f.zone, f.reach, f.masquerade)).collect();
        assert_eq!(
            zones,
            [
                (Zone::Cluster, Reach::Cluster, false),
                (Zone::Inside, Reach::Cluster, true),
                (Zone::Outside, Reach::Local, false),
                (Zone::InsidePort, Reach::Cluster, true),
                (Zone::OutsidePort, Reach::Local, false),
            ]
        );
    }

    #[test]
    fn headless_and_foreign_services_are_left_alone() {
        for spec in [
            json!({"clusterIP": "None", "ports": [{"port": 80}]}),
            json!({"type": "ExternalName", "externalName": "example.com"}),
            json!({"clusterIP": "fd00::1", "ports": [{"port": 80}]}),
        ] {
            assert_eq!(plan(&service(spec.clone()), &[], &here("a")), [], "{spec}");
        }
    }

    /// External addresses of a Service on a node at 192.0.2.2 and 10.42.0.1: limited ones have a `!`.
    fn external(spec: serde_json::Value, annotation: &str, ingress: &[&str]) -> Vec<String> {
        let mut service = service(spec);
        service.metadata.annotations = Some([(SOURCE_RANGES.to_owned(), annotation.to_owned())].into());
        let points: Vec<_> = ingress.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
        service.status = serde_json::from_value(json!({"loadBalancer": {"ingress": points}})).unwrap();
        let mut here = here("a");
        here.addresses = vec!["192.0.2.2".parse().unwrap(), "10.42.0.1".parse().unwrap()];
        let all = external_addresses(&service, &here);
        all.iter().map(|(a, limited)| format!("{a}{}", if *limited { "!" } else { "" })).collect()
    }

    #[test]
    fn load_balancer_addresses_are_served_and_limited() {
        let balanced = |more: serde_json::Value| {
            let mut spec = json!({"clusterIP": "10.43.0.7", "type": "LoadBalancer", "ports": [{"port": 80}]});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            spec
        };
        let plain = balanced(json!({}));
        assert_eq!(external(plain.clone(), "", &["203.0.113.1"]), ["203.0.113.1"]);
        assert_eq!(external(plain.clone(), "", &["192.0.2.2"]), ["10.42.0.1", "192.0.2.2"], "this node");
        assert_eq!(external(plain.clone(), "", &["10.42.1.1", "10.43.0.10"]), Vec::<String>::new());
        assert_eq!(external(plain.clone(), "10.0.0.0/8 , 192.0.2.0/24", &["203.0.113.1"]), ["203.0.113.1!"]);
        let field = |ranges: &[&str]| balanced(json!({"loadBalancerSourceRanges": ranges}));
        assert_eq!(external(field(&["10.0.0.0/8"]), "0.0.0.0/0", &["203.0.113.1"]), ["203.0.113.1!"]);
        assert_eq!(external(field(&["10.0.0.0/8", "0.0.0.0/0"]), "", &["203.0.113.1"]), ["203.0.113.1"]);
        for nobody in ["fd00::/8", "nonsense"] {
            let service = service(field(&[nobody]));
            assert_eq!(source_ranges(&service), Some(vec![]), "{nobody}");
        }
        // Ranges are for the load balancer's addresses.
        let both =
            balanced(json!({"loadBalancerSourceRanges": ["10.0.0.0/8"], "externalIPs": ["198.51.100.7"]}));
        assert_eq!(external(both, "", &["203.0.113.1"]), ["198.51.100.7", "203.0.113.1!"]);
        let mut no_more = plain;
        no_more["type"] = "NodePort".into();
        assert_eq!(external(no_more, "", &["203.0.113.1"]), Vec::<String>::new(), "of before");
    }
}
