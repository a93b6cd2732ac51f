//! The in-memory index of all names of the cluster domain.
//!
//! Names are absolute, in lower case and without trailing dot. A service contributes a list of entries; on a
//! change its old entries are removed one by one and the new ones inserted. Names that only have children
//! (empty non-terminals) are stored as [`Data::Exists`], so that they are answered with NODATA instead of
//! NXDOMAIN.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use k8s_core::{
    api::api::{core::v1::Service, discovery::v1::EndpointSlice},
    meta::{ObjectExt, ObjectKey},
};
use serde::{Deserialize, Serialize};

/// Records of one service. Beyond it, endpoints have no names: whoever may write Services and pods must not fill
/// the memory.
const MOST: usize = 100_000;

/// One record of a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Data {
    Address(IpAddr),
    Service { port: u16, target: String },
    Alias(String),
    Pointer(String),
    Exists,
}

#[derive(Debug, Default)]
pub(crate) struct Index {
    names: HashMap<String, Vec<Data>>,
    by_service: HashMap<ObjectKey, Vec<(String, Data)>>,
}

impl Index {
    /// Returns the records of a name. `None`: NXDOMAIN.
    pub(crate) fn get(&self, name: &str) -> Option<&[Data]> {
        self.names.get(name).map(Vec::as_slice)
    }

    /// Replaces the entries of a service; an empty list removes it.
    pub(crate) fn set(&mut self, key: ObjectKey, mut entries: Vec<(String, Data)>) {
        entries.sort();
        entries.dedup();
        let before = self.by_service.remove(&key).unwrap_or_default();
        // They are sorted, so the records of a name are neighbours. Other services may have equal ones.
        for group in before.chunk_by(|(a, _), (b, _)| a == b) {
            let Some((name, _)) = group.first() else { continue };
            if let Some(known) = self.names.get_mut(name) {
                let mut gone: BTreeSet<&Data> = group.iter().map(|(_, data)| data).collect();
                known.retain(|data| !gone.remove(data));
                if known.is_empty() {
                    self.names.remove(name);
                }
            }
        }
        for (name, data) in &entries {
            self.names.entry(name.clone()).or_default().push(data.clone());
        }
        if !entries.is_empty() {
            self.by_service.insert(key, entries);
        }
    }
}

/// Returns an address as one label: `10-42-0-5`.
pub(crate) fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// Returns the reverse lookup name of an address (`5.0.42.10.in-addr.arpa`).
pub(crate) fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(ip) => {
            let digits = ip.octets().into_iter().rev().flat_map(|b| [b & 15, b >> 4]);
            let mut name: String = digits.map(|d| format!("{d:x}.")).collect();
            name.push_str("ip6.arpa");
            name
        }
    }
}

/// Parses the address in a pod record's label (`10-42-0-5`).
pub(crate) fn undashed(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    v4.or_else(|_| label.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6)).ok()
}

/// Computes the entries of a service in `zone`, per the Kubernetes DNS specification.
pub(crate) fn entries(service: &Service, slices: &[Arc<EndpointSlice>], zone: &str) -> Vec<(String, Data)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let namespace = format!("{}.svc.{zone}", service.namespace());
    let base = format!("{}.{namespace}", service.name());
    let mut out = vec![(namespace, Data::Exists), (base.clone(), Data::Exists)];
    if spec.type_.as_deref() == Some("ExternalName") {
        let target = spec.external_name.as_deref().unwrap_or_default().trim_end_matches('.').to_lowercase();
        out.push((base, Data::Alias(target)));
        return out;
    }
    let ports: Vec<(&str, &str, u16)> = spec
        .ports
        .iter()
        .flatten()
        .filter_map(|p| {
            Some((p.name.as_deref()?, p.protocol.as_deref().unwrap_or("TCP"), u16::try_from(p.port).ok()?))
        })
        .collect();
    let cluster_ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let addresses: Vec<IpAddr> = cluster_ips.clone().filter_map(|ip| ip.parse().ok()).collect();
    if !addresses.is_empty() {
        for address in addresses {
            out.push((base.clone(), Data::Address(address)));
            out.push((reverse(address), Data::Pointer(base.clone())));
        }
        for (name, protocol, port) in ports {
            push_service(&mut out, &base, name, protocol, port, base.clone());
        }
        return out;
    }
    if !cluster_ips.into_iter().any(|ip| ip == "None") {
        return out;
    }
    let publish = spec.publish_not_ready_addresses == Some(true);
    let mut parents = HashSet::new();
    for slice in slices {
        for endpoint in slice.endpoints.iter().flatten() {
            if !publish && endpoint.conditions.as_ref().and_then(|c| c.ready) == Some(false) {
                continue;
            }
            for address in endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok()) {
                if out.len() >= MOST {
                    tracing::warn!(service = base, "only {MOST} of its DNS records are served");
                    return out;
                }
                let host = endpoint.hostname.clone().unwrap_or_else(|| dashed(address)).to_lowercase();
                let target = format!("{host}.{base}");
                out.push((base.clone(), Data::Address(address)));
                out.push((target.clone(), Data::Address(address)));
                out.push((reverse(address), Data::Pointer(target.clone())));
                for port in slice.ports.iter().flatten() {
                    let number = port.port.and_then(|p| u16::try_from(p).ok());
                    if let (Some(name), Some(number)) =
                        (port.name.as_deref().filter(|n| !n.is_empty()), number)
                    {
                        let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
                        let parent = format!("_{protocol}.{base}");
                        let data = Data::Service { port: number, target: target.clone() };
                        out.push((format!("_{}.{parent}", name.to_lowercase()), data));
                        if parents.insert(protocol) {
                            out.push((parent, Data::Exists));
                        }
                    }
                    if out.len() >= MOST {
                        break;
                    }
                }
            }
        }
    }
    out
}

fn push_service(
    out: &mut Vec<(String, Data)>,
    base: &str,
    name: &str,
    protocol: &str,
    port: u16,
    target: String,
) {
    let parent = format!("_{}.{base}", protocol.to_lowercase());
    out.push((format!("_{}.{parent}", name.to_lowercase()), Data::Service { port, target }));
    out.push((parent, Data::Exists));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn service(spec: serde_json::Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "demo"}, "spec": spec}))
            .expect("valid")
    }

    #[test]
    fn cluster_address_port_and_reverse() {
        let mut index = Index::default();
        let service = service(json!({"clusterIP": "10.43.0.7", "ports": [{"name": "http", "port": 80}]}));
        index.set(service.key(), entries(&service, &[], "cluster.local"));
        let address = Data::Address("10.43.0.7".parse().expect("ip"));
        assert!(index.get("web.demo.svc.cluster.local").expect("there").contains(&address));
        let found = index.get("_http._tcp.web.demo.svc.cluster.local").expect("there");
        assert_eq!(found, [Data::Service { port: 80, target: "web.demo.svc.cluster.local".into() }]);
        assert_eq!(index.get("demo.svc.cluster.local"), Some(&[Data::Exists][..]));
        let back = Data::Pointer("web.demo.svc.cluster.local".into());
        assert_eq!(index.get("7.0.43.10.in-addr.arpa"), Some(&[back][..]));
        assert_eq!(index.get("other.demo.svc.cluster.local"), None);
        index.set(service.key(), Vec::new());
        assert!(index.names.is_empty());
    }

    #[test]
    fn headless_services_list_their_endpoints() {
        let service = service(json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]}));
        let slice = json!({"addressType": "IPv4", "metadata": {"name": "web-1"}, "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": ["10.42.0.5"], "hostname": "web-0"}, {"addresses": ["10.42.0.6"]},
                {"addresses": ["10.42.0.7"], "conditions": {"ready": false}}]});
        let slice: Arc<EndpointSlice> = Arc::new(serde_json::from_value(slice).expect("valid"));
        let mut index = Index::default();
        index.set(service.key(), entries(&service, &[slice], "cluster.local"));
        assert_eq!(index.get("web.demo.svc.cluster.local").expect("there").len(), 3); // two addresses and Exists
        for (name, address) in [("web-0", "10.42.0.5"), ("10-42-0-6", "10.42.0.6")] {
            let data = Data::Address(address.parse().expect("ip"));
            assert_eq!(index.get(&format!("{name}.web.demo.svc.cluster.local")), Some(&[data][..]));
        }
        assert_eq!(index.get("_http._tcp.web.demo.svc.cluster.local").expect("there").len(), 2);
        assert!(index.get("7.0.42.10.in-addr.arpa").is_none());
    }

    #[test]
    fn a_service_cannot_fill_the_memory() {
        let service = service(json!({"clusterIP": "None"}));
        let endpoints: Vec<_> = (0..100).map(|i| json!({"addresses": [format!("10.42.0.{i}")]})).collect();
        let ports: Vec<_> = (1..5000).map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
        let slice = json!({"addressType": "IPv4", "metadata": {"name": "web-1"}, "ports": ports, "endpoints": endpoints});
        let slice: Arc<EndpointSlice> = Arc::new(serde_json::from_value(slice).expect("valid"));
        let all = entries(&service, &[slice], "cluster.local");
        assert!((MOST..MOST + 10).contains(&all.len()), "{}", all.len());
        let parents = all.iter().filter(|(name, _)| name == "_tcp.web.demo.svc.cluster.local");
        assert_eq!(parents.count(), 1);
        let mut index = Index::default();
        index.set(service.key(), all);
        index.set(service.key(), Vec::new());
        assert!(index.names.is_empty());
    }

    proptest! {
        /// After any sequence of changes, the index equals the entries of the present services.
        #[test]
        fn changes_leave_nothing_behind(steps in proptest::collection::vec((0u8..4, 0u8..4), 0..40)) {
            let mut index = Index::default();
            let mut model: HashMap<u8, Vec<(String, Data)>> = HashMap::new();
            for (service, size) in steps {
                let list: Vec<_> = (0..size).map(|i| (format!("n{i}"), Data::Pointer(service.to_string()))).collect();
                index.set(ObjectKey::new("ns", &service.to_string()), list.clone());
                model.insert(service, list);
            }
            for name in ["n0", "n1", "n2", "n3"] {
                let mut want: Vec<Data> =
                    model.values().flatten().filter(|(n, _)| n == name).map(|(_, d)| d.clone()).collect();
                let mut have = index.get(name).unwrap_or_default().to_vec();
                want.sort();
                have.sort();
                prop_assert_eq!(have, want);
            }
        }
    }
}
