//! Endpoints of Services, and the addresses that requests of users may reach.

use std::net::{IpAddr, SocketAddr};

use k8s_store::Store;
use serde_json::Value;

use crate::value::{integer, list, text};

/// Whether an address is a global unicast one, as Go understands it: private networks are, loopback, link-local, multicast, broadcast and `0.0.0.0` are
/// not.
pub(crate) fn is_global_unicast(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            !(ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_broadcast())
        }
        IpAddr::V6(ip) => {
            !(ip.is_unspecified() || ip.is_loopback() || ip.is_unicast_link_local() || ip.is_multicast())
        }
    }
}

/// Ready endpoints of a service's port (by name) and their addresses.
pub(crate) fn endpoints(
    store: &Store,
    namespace: &str,
    service: &str,
    port: &str,
) -> impl Iterator<Item = (Value, SocketAddr)> {
    let slices = store.snapshot("endpointslices.discovery.k8s.io");
    let mut all = Vec::new();
    for slice in slices.range(&format!("{namespace}/"), "") {
        if slice.label("kubernetes.io/service-name") != Some(service) {
            continue;
        }
        let Ok(slice) = serde_json::from_slice::<Value>(&slice.json) else { continue };
        let of_port = list(&slice, "/ports").iter().find(|p| text(p, "/name") == port);
        let number = of_port.and_then(|p| integer(p, "/port")).and_then(|p| u16::try_from(p).ok());
        let Some(number) = number else { continue };
        for endpoint in list(&slice, "/endpoints") {
            let ip =
                list(endpoint, "/addresses").first().and_then(Value::as_str).and_then(|ip| ip.parse().ok());
            if let (Some(ip), true) = (ip, endpoint.pointer("/conditions/ready") != Some(&Value::Bool(false)))
            {
                all.push((endpoint.clone(), SocketAddr::new(ip, number)));
            }
        }
    }
    all.into_iter()
}

/// An address where a service's port (by name) is answered, for servers that an administrator has registered: these need not be pods.
pub(crate) fn endpoint(store: &Store, namespace: &str, service: &str, port: &str) -> Option<SocketAddr> {
    endpoints(store, namespace, service, port).map(|(_, address)| address).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_this_machine_are_not_global() {
        for refused in [
            "127.0.0.1",
            "127.8.0.1",
            "0.0.0.0",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.1.1",
        ] {
            assert!(!is_global_unicast(refused.parse().unwrap()), "{refused}");
        }
        for allowed in ["10.0.0.1", "192.168.1.1", "8.8.8.8", "fd00::1", "2001:db8::1", "::ffff:10.0.0.1"] {
            assert!(is_global_unicast(allowed.parse().unwrap()), "{allowed}");
        }
    }
}
