//! Pod networks, service proxy and cluster DNS.
//!
//! Three small parts that know the API only through caches: [`pod::PodNetwork`] gives a pod's network namespace an address, the service
//! proxy sends a Service's cluster address and node ports to its endpoints, and DNS answers names.
//!
//! Guarantee: no packet for a pod or service address leaves the machine by its default route.
//!
//! Not here: pods (see `k8s-kubelet`, which calls [`pod::PodNetwork`]) and containers (see `k8s-runtime`).

pub mod bridge;
pub mod cidr;
pub mod dns;
mod netlink;
mod netns;
#[cfg(test)]
mod nettests;
mod nft;
pub mod node;
pub mod pod;
pub mod preflight;
pub mod proxy;
pub mod routes;
mod rtnl;
mod sysctl;

/// The number of an IP protocol that services and host ports know.
pub(crate) fn protocol_number(name: &str) -> Option<u8> {
    match name {
        "" | "TCP" => Some(6),
        "UDP" => Some(17),
        "SCTP" => Some(132),
        _ => None,
    }
}

/// Switches on the loopback device of the calling thread's network namespace; a new namespace has it switched off.
///
/// # Errors
/// The system's answer.
pub fn loopback_up() -> std::io::Result<()> {
    let mut rtnl = rtnl::Rtnl::open()?;
    match rtnl.index_of("lo")? {
        Some(index) => rtnl.set_up(index),
        None => Err(std::io::Error::other("there is no loopback device")),
    }
}
