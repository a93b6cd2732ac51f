//! Pod networks, service proxy, network policies and cluster DNS.
//!
//! Four parts that read the API only through caches: [`pod::PodNetwork`] gives a pod's network namespace an
//! address, the service proxy redirects a Service's cluster IP and node ports to its endpoints, network
//! policies drop what is not allowed, and the DNS server resolves names.
//!
//! Guarantee: no packet for a pod or service address leaves the machine by its default route.
//!
//! Not here: pods (see `k8s-kubelet`, which calls [`pod::PodNetwork`]) and containers (see `k8s-runtime`).

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests measure time and start tasks"))]

pub mod bridge;
mod cidr;
mod conntrack;
pub mod dns;
mod netlink;
mod netns;
#[cfg(test)]
mod nettests;
mod nft;
pub mod node;
pub mod pod;
pub mod policy;
pub mod preflight;
pub mod proxy;
pub mod routes;
mod rtnl;
mod service_ranges;
mod sysctl;

/// Returns the IP protocol number of `TCP`, `UDP` or `SCTP`.
pub(crate) fn protocol_number(name: &str) -> Option<u8> {
    match name {
        "" | "TCP" => Some(6),
        "UDP" => Some(17),
        "SCTP" => Some(132),
        _ => None,
    }
}

/// Returns the name of an IP protocol that Services have.
pub(crate) fn protocol_name(number: u8) -> &'static str {
    match number {
        17 => "UDP",
        132 => "SCTP",
        _ => "TCP",
    }
}

/// Brings up the loopback device of the calling thread's network namespace; in a new namespace it is down.
///
/// # Errors
/// The netlink error.
pub fn loopback_up() -> std::io::Result<()> {
    let mut rtnl = rtnl::Rtnl::open()?;
    match rtnl.index_of("lo")? {
        Some(index) => rtnl.set_up(index),
        None => Err(std::io::Error::other("there is no loopback device")),
    }
}
