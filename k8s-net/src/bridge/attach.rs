//! Connects one pod: a veth pair whose inner end gets the address and the routes.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd,
    path::Path,
};

use super::{checksum, ipam::KeptPort};
use ipnet::Ipv4Net;

use crate::{
    netns,
    pod::{HostPort, PodNetworkError},
    rtnl::{How, Route, Rtnl, Veth},
    sysctl,
};

const POD_LINK: &str = "eth0";

/// Both ends of a pod's veth pair.
#[derive(Debug)]
pub(super) struct Ends<'a> {
    pub(super) host: &'a str,
    pub(super) group: u32,
    pub(super) netns: &'a Path,
    pub(super) address: Ipv4Addr,
    pub(super) gateway: Ipv4Addr,
    /// Address of the host's end, the same for all pods.
    pub(super) gateway_mac: [u8; 6],
    pub(super) mtu: u32,
}

/// Origin of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pair {
    /// It was there, and may be of an earlier version.
    Found,
    /// It was created with the right MACs.
    Made,
}

/// Returns the name of the host end of a sandbox's veth pair. It depends on the bridge, so that clusters do
/// not collide.
pub(super) fn host_link(bridge: &str, sandbox: &str) -> String {
    format!("veth{:010x}", checksum(format!("{bridge}/{sandbox}").as_bytes()) & 0xff_ffff_ffff)
}

/// Returns the MAC of the pod with an address.
pub(super) fn pod_mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// Connects the pod. Idempotent. A pod that an earlier version made a port of the bridge is taken out of it.
pub(super) fn connect(ends: &Ends<'_>) -> io::Result<()> {
    let mut rtnl = Rtnl::open()?;
    if let Some(index) = rtnl.index_of(ends.host)? {
        if ends.inner(Pair::Found)? {
            rtnl.set_mac(index, ends.gateway_mac)?;
            rtnl.set_group(index, ends.group)?;
            rtnl.set_no_master(index)?;
            return ends.outer(&mut rtnl, index);
        }
        // The pair is incomplete, or its peer disappeared with an older namespace.
        rtnl.del_link(ends.host)?;
    }
    let namespace = File::open(ends.netns)?;
    let veth = Veth {
        host: ends.host,
        peer: POD_LINK,
        mtu: ends.mtu,
        master: None,
        macs: Some([ends.gateway_mac, pod_mac(ends.address)]),
        group: ends.group,
    };
    rtnl.add_veth(&veth, namespace.as_fd())?;
    let index = rtnl.index_of(ends.host)?.ok_or_else(|| io::Error::other("new link is not there"))?;
    ends.outer(&mut rtnl, index)?;
    if !ends.inner(Pair::Made)? {
        return Err(io::Error::other("the pod's link is not in its namespace"));
    }
    rtnl.await_carrier(index)
}

impl Ends<'_> {
    /// Configures the host's end: it has the gateway's address, and a route to the pod. Both ends know each
    /// other's MAC for good, and the host takes no ARP from the pod.
    fn outer(&self, rtnl: &mut Rtnl, index: u32) -> io::Result<()> {
        let name = self.host;
        let _ = sysctl::set(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1");
        // Packets of 127.0.0.1 are forwarded to pods, for node ports.
        sysctl::set(&format!("net/ipv4/conf/{name}/route_localnet"), "1")?;
        sysctl::set(&format!("net/ipv4/conf/{name}/rp_filter"), "1")?;
        rtnl.set_no_arp(index)?;
        // Masquerading takes the address of the output link.
        rtnl.add_address(index, self.gateway, 32)?;
        rtnl.set_neighbour(index, self.address, pod_mac(self.address))?;
        let how = How::Link { index, source: Some(self.gateway) };
        rtnl.set_route(&Route { to: Ipv4Net::new_assert(self.address, 32), how, metric: 0 })
    }

    /// Configures the pod's end; returns `false` if the link does not exist.
    fn inner(&self, pair: Pair) -> io::Result<bool> {
        netns::inside(self.netns, || {
            let mut rtnl = Rtnl::open()?;
            let Some(index) = rtnl.index_of(POD_LINK)? else { return Ok(false) };
            if let Some(loopback) = rtnl.index_of("lo")? {
                rtnl.set_up(loopback)?;
            }
            // A redirected packet would bypass connection tracking.
            let _ = sysctl::set("net/ipv4/conf/all/accept_redirects", "0");
            let _ = sysctl::set("net/ipv4/conf/eth0/accept_redirects", "0");
            if pair == Pair::Found {
                rtnl.set_mac(index, pod_mac(self.address))?;
            }
            rtnl.add_address(index, self.address, 32)?;
            rtnl.set_up(index)?;
            rtnl.set_neighbour(index, self.gateway, self.gateway_mac)?;
            let source = Some(self.address);
            rtnl.set_route(&Route {
                to: Ipv4Net::new_assert(self.gateway, 32),
                how: How::Link { index, source },
                metric: 0,
            })?;
            let everything = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);
            let how = How::Via { gateway: self.gateway, index: Some(index) };
            rtnl.set_route(&Route { to: everything, how, metric: 0 })?;
            Ok(true)
        })
    }
}

/// Converts host ports to their stored form. An IPv6 host address or an unknown protocol is an error that
/// names it, and so is a TCP port that the node has reserved for itself.
pub(super) fn kept_ports(ports: &[HostPort], reserved: &[u16]) -> Result<Vec<KeptPort>, PodNetworkError> {
    let kept = |port: &HostPort| {
        let protocol = crate::protocol_number(&port.protocol).ok_or_else(|| {
            PodNetworkError::Other(format!(
                "host port {}: unknown protocol {:?}",
                port.host_port, port.protocol
            ))
        })?;
        if i32::from(protocol) == libc::IPPROTO_TCP && reserved.contains(&port.host_port) {
            return Err(PodNetworkError::Other(format!(
                "host port {}: the node itself uses it; choose another hostPort",
                port.host_port
            )));
        }
        let host_ip = match port.host_ip {
            None => None,
            Some(IpAddr::V4(ip)) if ip.is_unspecified() => None,
            Some(IpAddr::V4(ip)) => Some(ip),
            Some(IpAddr::V6(ip)) if ip.is_unspecified() => None,
            Some(IpAddr::V6(ip)) => {
                return Err(PodNetworkError::Other(format!(
                    "host port {}: {ip} is not IPv4",
                    port.host_port
                )));
            }
        };
        Ok(KeptPort { protocol, host_ip, host_port: port.host_port, container_port: port.container_port })
    };
    ports.iter().map(kept).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_port_of_the_node_is_refused_by_its_number() {
        let check = |protocol: &str, host_port| {
            let port = HostPort { protocol: protocol.into(), host_ip: None, host_port, container_port: 80 };
            kept_ports(&[port], &[6443, 10250]).map(|kept| kept.len()).map_err(|e| e.to_string())
        };
        for port in [6443, 10250] {
            let error = check("TCP", port).expect_err("reserved");
            assert!(error.contains(&format!("host port {port}: the node itself uses it")), "{error}");
            assert_eq!(check("UDP", port), Ok(1));
        }
        assert_eq!(check("TCP", 8080), Ok(1));
    }
}
