//! Chooses the endpoints of one port of a Service.
//!
//! New connections go to ready endpoints; if there is none, to terminating ones that still serve, so that a
//! rolling update loses no request. Of the ready ones, those whose hints name this node, or else its zone,
//! are preferred if every ready endpoint has such hints.

use std::{collections::BTreeSet, sync::Arc};

use k8s_core::api::api::{
    core::v1::ServicePort,
    discovery::v1::{Endpoint, EndpointSlice},
};

use super::{Backend, Here};

/// Endpoints of one port, sorted and without duplicates.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Chosen {
    /// Of all nodes, as hints prefer them.
    pub(super) all: Vec<Backend>,
    /// Of this node.
    pub(super) local: Vec<Backend>,
}

struct Seen<'a> {
    backend: Backend,
    endpoint: &'a Endpoint,
    ready: bool,
}

impl Seen<'_> {
    fn is_on(&self, node: &str) -> bool {
        self.endpoint.node_name.as_deref() == Some(node)
    }

    fn node_hints(&self) -> impl Iterator<Item = &str> {
        let hints = self.endpoint.hints.iter().flat_map(|hints| hints.for_nodes.iter().flatten());
        hints.map(|hint| hint.name.as_str())
    }

    fn zone_hints(&self) -> impl Iterator<Item = &str> {
        let hints = self.endpoint.hints.iter().flat_map(|hints| hints.for_zones.iter().flatten());
        hints.map(|hint| hint.name.as_str())
    }
}

/// Chooses the endpoints of a port for connections that arrive at this node.
pub(super) fn choose(slices: &[Arc<EndpointSlice>], port: &ServicePort, here: &Here) -> Chosen {
    let seen = usable(slices, port);
    let pick = |of: &dyn Fn(&Seen<'_>) -> bool| -> Vec<Backend> {
        let chosen: BTreeSet<_> = seen.iter().filter(|seen| of(seen)).map(|seen| seen.backend).collect();
        chosen.into_iter().collect()
    };
    let first_of = |of: &dyn Fn(&Seen<'_>) -> bool| {
        let ready = pick(&|seen| seen.ready && of(seen));
        if ready.is_empty() { pick(&|seen| !seen.ready && of(seen)) } else { ready }
    };
    let ready = || seen.iter().filter(|seen| seen.ready);
    let hinted = |any: &dyn Fn(&Seen<'_>) -> bool, here: &dyn Fn(&Seen<'_>) -> bool| {
        let all_have = ready().next().is_some() && ready().all(any);
        Some(pick(&|seen| seen.ready && here(seen))).filter(|chosen| all_have && !chosen.is_empty())
    };
    let by_node = || {
        hinted(&|seen| seen.node_hints().next().is_some(), &|seen| {
            seen.node_hints().any(|name| name == here.node)
        })
    };
    let by_zone = || {
        hinted(&|seen| seen.zone_hints().next().is_some(), &|seen| {
            seen.zone_hints().any(|name| name == here.zone)
        })
    };
    let all = by_node().or_else(by_zone).unwrap_or_else(|| first_of(&|_| true));
    Chosen { all, local: first_of(&|seen| seen.is_on(&here.node)) }
}

/// Returns the endpoints that are ready, and those that leave and still serve.
fn usable<'a>(slices: &'a [Arc<EndpointSlice>], port: &ServicePort) -> Vec<Seen<'a>> {
    let wanted_protocol = port.protocol.as_deref().unwrap_or("TCP");
    let mut found = Vec::new();
    for slice in slices.iter().filter(|s| s.address_type == "IPv4") {
        let number = slice.ports.iter().flatten().find(|p| {
            p.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
                && p.protocol.as_deref().unwrap_or("TCP") == wanted_protocol
        });
        let Some(number) = number.and_then(|p| u16::try_from(p.port?).ok()) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let conditions = endpoint.conditions.as_ref();
            let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            let serves = conditions.and_then(|c| c.serving).unwrap_or(ready);
            let leaves = serves && conditions.and_then(|c| c.terminating).unwrap_or(false);
            // All addresses of one endpoint are the same pod; the first is enough.
            let address = endpoint.addresses.first().and_then(|address| address.parse().ok());
            if let Some(address) = address.filter(|_| ready || leaves) {
                found.push(Seen { backend: Backend { address, port: number }, endpoint, ready });
            }
        }
    }
    found
}

/// Returns the number of ready endpoints on a node, of all ports.
pub(super) fn ready_on(slices: &[Arc<EndpointSlice>], node: &str) -> usize {
    let all = slices.iter().filter(|s| s.address_type == "IPv4").flat_map(|s| s.endpoints.iter().flatten());
    let ready = all.filter(|e| {
        let ready = e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
        ready && e.node_name.as_deref() == Some(node)
    });
    ready.filter_map(|e| e.addresses.first()).collect::<BTreeSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn slice(endpoints: serde_json::Value) -> Arc<EndpointSlice> {
        let slice = json!({"addressType": "IPv4", "metadata": {"name": "web-1"}, "endpoints": endpoints,
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]});
        Arc::new(serde_json::from_value(slice).expect("valid"))
    }

    fn endpoint(address: u8, node: &str, zones: &[&str], nodes: &[&str]) -> serde_json::Value {
        let hints = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
        json!({"addresses": [format!("10.42.0.{address}")], "nodeName": node,
            "hints": {"forZones": hints(zones), "forNodes": hints(nodes)}})
    }

    /// Last bytes of the addresses that a node of a zone uses.
    fn used(node: &str, zone: &str, endpoints: serde_json::Value) -> Vec<u8> {
        let here = Here { node: node.into(), zone: zone.into(), ..Here::default() };
        let port: ServicePort = serde_json::from_value(json!({"name": "http", "port": 80})).unwrap();
        let chosen = choose(&[slice(endpoints)], &port, &here);
        chosen.all.iter().map(|backend| backend.address.octets()[3]).collect()
    }

    #[test]
    fn hints_choose_the_node_first_then_the_zone() {
        let all = || {
            let (a, b) = (endpoint(1, "a", &["z1"], &["a"]), endpoint(2, "b", &["z1"], &["b"]));
            json!([a, b, endpoint(3, "c", &["z2"], &["c"])])
        };
        assert_eq!(used("a", "z1", all()), [1], "its own node's");
        assert_eq!(used("d", "z1", all()), [1, 2], "of its zone, no hint names its node");
        assert_eq!(used("d", "z9", all()), [1, 2, 3], "no hint names its zone");
        assert_eq!(used("d", "", all()), [1, 2, 3], "a node without a zone");
        let one_without = json!([endpoint(1, "a", &["z1"], &[]), endpoint(2, "b", &[], &[])]);
        assert_eq!(used("a", "z1", one_without), [1, 2], "hints count if all have them");
        let mut leaving = endpoint(4, "d", &[], &[]);
        leaving["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
        let with_leaving = json!([endpoint(1, "a", &["z1"], &[]), endpoint(2, "b", &["z2"], &[]), leaving]);
        assert_eq!(used("a", "z1", with_leaving), [1], "those that are not ready need none");
    }

    #[test]
    fn ready_endpoints_of_a_node_are_counted_once() {
        let mut broken = endpoint(3, "a", &[], &[]);
        broken["conditions"] = json!({"ready": false});
        let one = slice(json!([endpoint(1, "a", &[], &[]), endpoint(2, "b", &[], &[]), broken]));
        assert_eq!(ready_on(&[one.clone(), one], "a"), 1);
    }

    proptest! {
        /// A Service with a ready endpoint has one on every node, whatever the hints.
        #[test]
        fn no_hint_leaves_a_node_without_endpoints(
            hints in prop::collection::vec((0..4usize, 0..4usize, any::<bool>()), 1..6),
            node in 0..4usize, zone in 0..4usize,
        ) {
            let names = ["", "x", "y", "z"];
            let named = |i: usize| Some(names[i]).filter(|name| !name.is_empty());
            let all: Vec<_> = hints.iter().enumerate().map(|(i, (zone, node, ready))| {
                let zones: Vec<&str> = named(*zone).into_iter().collect();
                let nodes: Vec<&str> = named(*node).into_iter().collect();
                let mut made = endpoint(u8::try_from(i).unwrap(), "n", &zones, &nodes);
                made["conditions"] = json!({"ready": ready});
                made
            }).collect();
            let some_ready = hints.iter().any(|(_, _, ready)| *ready);
            prop_assert_eq!(!used(names[node], names[zone], json!(all)).is_empty(), some_ready);
        }
    }
}
