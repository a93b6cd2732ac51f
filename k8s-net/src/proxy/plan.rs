//! Computes the desired proxy state of a Service from its EndpointSlices. Pure.
//!
//! New connections go to ready endpoints; if there is none, to terminating ones that still serve, so that a
//! rolling update loses no request.

use std::{collections::BTreeSet, net::Ipv4Addr, sync::Arc};

use k8s_core::{
    api::api::{
        core::v1::{Service, ServicePort},
        discovery::v1::{Endpoint, EndpointSlice},
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
    /// To an external IP, from pods and nodes.
    Inside = 1,
    /// To an external IP, from elsewhere.
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
}

/// Desired state of one port of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortPlan {
    pub(crate) name: String,
    pub(crate) protocol: u8,
    /// Session affinity timeout in milliseconds.
    pub(crate) affinity_ms: Option<u64>,
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

/// Drops external IPs that lie in the cluster's CIDRs. Otherwise a user who may write a Service could take
/// over the address of the cluster DNS, of another Service, of a pod or of the node's bridge.
pub(crate) fn drop_addresses_of_the_cluster(plans: &mut [PortPlan], ranges: &[Ipv4Net]) {
    let is_own = |front: &Front| ranges.iter().any(|range| range.contains(&front.address));
    for plan in plans {
        plan.fronts.retain(|front| !matches!(front.zone, Zone::Inside | Zone::Outside) || !is_own(front));
    }
}

/// Label with the name of an EndpointSlice's service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Plans a service. Empty for services that the proxy must ignore (headless, ExternalName, another proxy's).
pub(crate) fn plan(service: &Service, slices: &[Arc<EndpointSlice>], node: &str) -> Vec<PortPlan> {
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
    let skipped = spec.type_.as_deref() == Some("ExternalName")
        || service.label("service.kubernetes.io/service-proxy-name").is_some();
    if skipped || cluster_ips.is_empty() {
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
    let balancers =
        service.status.iter().flat_map(|s| &s.load_balancer).flat_map(|l| l.ingress.iter().flatten());
    let balancers = balancers.filter(|i| i.ip_mode.as_deref() != Some("Proxy")).filter_map(|i| i.ip.as_ref());
    let external: BTreeSet<Ipv4Addr> =
        spec.external_ips.iter().flatten().chain(balancers).filter_map(|ip| ip.parse().ok()).collect();

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
            })
            .collect();
        for address in &external {
            fronts.extend(both_sides([Zone::Inside, Zone::Outside], *address, number, outer));
        }
        if let Some(node_port) = port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0) {
            let zones = [Zone::InsidePort, Zone::OutsidePort];
            fronts.extend(both_sides(zones, Ipv4Addr::UNSPECIFIED, node_port, outer));
        }
        plans.push(PortPlan {
            name: port.name.clone().unwrap_or_default(),
            protocol,
            affinity_ms,
            all: serving(slices, port, |_| true),
            local: serving(slices, port, |e| e.node_name.as_deref() == Some(node)),
            fronts,
        });
    }
    plans
}

/// Fronts of an external address. Clients inside the cluster reach every endpoint even if the policy is
/// `Local`.
fn both_sides([inside, outside]: [Zone; 2], address: Ipv4Addr, port: u16, reach: Reach) -> [Front; 2] {
    [
        Front { zone: inside, address, port, reach: Reach::Cluster, masquerade: true },
        Front { zone: outside, address, port, reach, masquerade: reach == Reach::Cluster },
    ]
}

fn serving(
    slices: &[Arc<EndpointSlice>],
    port: &ServicePort,
    here: impl Fn(&Endpoint) -> bool,
) -> Vec<Backend> {
    let wanted_protocol = port.protocol.as_deref().unwrap_or("TCP");
    let (mut ready, mut leaving) = (BTreeSet::new(), BTreeSet::new());
    for slice in slices.iter().filter(|s| s.address_type == "IPv4") {
        let number = slice.ports.iter().flatten().find(|p| {
            p.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
                && p.protocol.as_deref().unwrap_or("TCP") == wanted_protocol
        });
        let Some(number) = number.and_then(|p| u16::try_from(p.port?).ok()) else { continue };
        for endpoint in slice.endpoints.iter().flatten().filter(|e| here(e)) {
            let conditions = endpoint.conditions.as_ref();
            let is_ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            let serves = conditions.and_then(|c| c.serving).unwrap_or(is_ready);
            let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
            let into = match (is_ready, serves && terminating) {
                (true, _) => &mut ready,
                (false, true) => &mut leaving,
                (false, false) => continue,
            };
            // All addresses of one endpoint are the same pod; the first is enough.
            if let Some(address) = endpoint.addresses.first().and_then(|a| a.parse().ok()) {
                into.insert(Backend { address, port: number });
            }
        }
    }
    if ready.is_empty() { leaving } else { ready }.into_iter().collect()
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

    fn addresses(backends: &[Backend]) -> Vec<String> {
        backends.iter().map(|b| format!("{}:{}", b.address, b.port)).collect()
    }

    #[test]
    fn ready_endpoints_first_then_those_that_still_serve() {
        let service = service(json!({"clusterIP": "10.43.0.7", "ports": [{"name": "http", "port": 80}]}));
        let leaving = json!({"addresses": ["10.42.0.9"], "conditions": {"ready": false, "serving": true, "terminating": true}});
        let broken = json!({"addresses": ["10.42.0.8"], "conditions": {"ready": false, "serving": false}});
        let ready = json!({"addresses": ["10.42.0.5"], "nodeName": "a"});
        let got = plan(&service, &[slice(json!([leaving, broken, ready]))], "b");
        assert_eq!(addresses(&got[0].all), ["10.42.0.5:8080"]);
        assert!(got[0].local.is_empty());
        let got = plan(&service, &[slice(json!([leaving, broken]))], "b");
        assert_eq!(addresses(&got[0].all), ["10.42.0.9:8080"]);
        assert!(plan(&service, &[slice(json!([broken]))], "b")[0].all.is_empty());
    }

    #[test]
    fn external_addresses_are_never_the_clusters_own() {
        let service = service(json!({"clusterIP": "10.43.0.7", "type": "NodePort",
            "externalIPs": ["198.51.100.7", "10.43.0.10", "10.42.0.1"], "ports": [{"port": 80, "nodePort": 30080}]}));
        let mut plans = plan(&service, &[], "a");
        drop_addresses_of_the_cluster(
            &mut plans,
            &["10.42.0.0/16".parse().unwrap(), "10.43.0.0/16".parse().unwrap()],
        );
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
        let plan = &plan(&service, &[slice(both)], "b")[0];
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
            assert_eq!(plan(&service(spec.clone()), &[], "a"), [], "{spec}");
        }
    }
}
