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
    rtnl::{How, Route, Rtnl},
    sysctl,
};

const POD_LINK: &str = "eth0";

/// Both ends of a pod's veth pair.
#[derive(Debug)]
pub(super) struct Ends<'a> {
    pub(super) host: &'a str,
    pub(super) bridge: u32,
    pub(super) netns: &'a Path,
    pub(super) address: Ipv4Addr,
    pub(super) gateway: Ipv4Addr,
    pub(super) mtu: u32,
}

/// Returns the name of the host end of a sandbox's veth pair. It depends on the bridge, so that clusters do
/// not collide.
pub(super) fn host_link(bridge: &str, sandbox: &str) -> String {
    format!("veth{:010x}", checksum(format!("{bridge}/{sandbox}").as_bytes()) & 0xff_ffff_ffff)
}

/// Connects the pod. Idempotent.
pub(super) fn connect(ends: &Ends<'_>) -> io::Result<()> {
    let mut rtnl = Rtnl::open()?;
    if rtnl.index_of(ends.host)?.is_some() {
        if inner(ends)? {
            return Ok(());
        }
        // The pair is incomplete, or its peer disappeared with an older namespace.
        rtnl.del_link(ends.host)?;
    }
    let namespace = File::open(ends.netns)?;
    rtnl.add_veth(ends.host, POD_LINK, namespace.as_fd(), ends.mtu, ends.bridge)?;
    let index = rtnl.index_of(ends.host)?.ok_or_else(|| io::Error::other("new link is not there"))?;
    rtnl.set_hairpin(index)?;
    if inner(ends)? { Ok(()) } else { Err(io::Error::other("the pod's link is not in its namespace")) }
}

/// Configures the pod's end; returns `false` if the link does not exist.
fn inner(ends: &Ends<'_>) -> io::Result<bool> {
    netns::inside(ends.netns, || {
        let mut rtnl = Rtnl::open()?;
        let Some(index) = rtnl.index_of(POD_LINK)? else { return Ok(false) };
        if let Some(loopback) = rtnl.index_of("lo")? {
            rtnl.set_up(loopback)?;
        }
        // Packets between pods enter and leave by the same link, so the node would send ICMP redirects. A
        // redirected packet would bypass connection tracking.
        let _ = sysctl::set("net/ipv4/conf/all/accept_redirects", "0");
        let _ = sysctl::set("net/ipv4/conf/eth0/accept_redirects", "0");
        rtnl.add_address(index, ends.address, 32)?;
        rtnl.set_up(index)?;
        let source = Some(ends.address);
        rtnl.set_route(&Route {
            to: Ipv4Net::new_assert(ends.gateway, 32),
            how: How::Link { index, source },
            metric: 0,
        })?;
        let everything = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);
        let how = How::Via { gateway: ends.gateway, index: Some(index) };
        rtnl.set_route(&Route { to: everything, how, metric: 0 })?;
        Ok(true)
    })
}

/// Converts host ports to their stored form. An IPv6 host address or an unknown protocol is an error that
/// names it.
pub(super) fn kept_ports(ports: &[HostPort]) -> Result<Vec<KeptPort>, PodNetworkError> {
    let kept = |port: &HostPort| {
        let protocol = crate::protocol_number(&port.protocol).ok_or_else(|| {
            PodNetworkError::Other(format!(
                "host port {}: unknown protocol {:?}",
                port.host_port, port.protocol
            ))
        })?;
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
