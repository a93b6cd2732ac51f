//! Links, addresses and routes over rtnetlink: the few requests that a pod network needs.
//!
//! Every call that creates an object succeeds if it exists, and every call that deletes one succeeds if it
//! does not.

use ipnet::Ipv4Net;
use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, BorrowedFd},
};

use crate::netlink::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, Socket, attr_of};

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BR_FORWARD_DELAY: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;

/// Routing protocol number that marks our routes in `ip route`; not assigned to another program.
const PROTOCOL: u8 = 143;
const RTN_UNICAST: u8 = 1;
const RTN_UNREACHABLE: u8 = 7;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const TABLE_MAIN: u8 = 254;

/// A link from a kernel dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) master: Option<u32>,
    pub(crate) group: u32,
}

/// A veth pair to create.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Veth<'a> {
    pub(crate) host: &'a str,
    /// Name of the other end.
    pub(crate) peer: &'a str,
    pub(crate) mtu: u32,
    /// A bridge that the host's end is a port of.
    pub(crate) master: Option<u32>,
    /// Addresses of the host's end and of the other one. `None`: random ones.
    pub(crate) macs: Option<[[u8; 6]; 2]>,
    /// Group of the host's end; 0 is everyone's.
    pub(crate) group: u32,
}

/// A route to set or delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) to: Ipv4Net,
    pub(crate) how: How,
    pub(crate) metric: u32,
}

/// Next hop of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// Directly connected; `source` is the address of packets that this machine sends.
    Link { index: u32, source: Option<Ipv4Addr> },
    /// Via a gateway, and a given link.
    Via { gateway: Ipv4Addr, index: Option<u32> },
    /// Unreachable: the sender gets an ICMP error at once.
    Unreachable,
}

/// A route from a kernel dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) to: Ipv4Net,
    pub(crate) link: Option<u32>,
    pub(crate) gateway: Option<Ipv4Addr>,
    /// Has our protocol number: this cluster or another one of ours created it.
    pub(crate) is_ours: bool,
}

fn listed(body: &[u8]) -> Option<Listed> {
    let (head, rest) = (body.get(..12)?, body.get(12..)?);
    let octets = attr_of(rest, RTA_DST).and_then(|v| <[u8; 4]>::try_from(v).ok()).unwrap_or_default();
    let link = attr_of(rest, RTA_OIF).and_then(|v| <[u8; 4]>::try_from(v).ok()).map(u32::from_ne_bytes);
    let to = Ipv4Net::new(octets.into(), head[1]).ok()?.trunc();
    (head[4] == TABLE_MAIN).then(|| Listed {
        to,
        link,
        gateway: attr_of(rest, RTA_GATEWAY).and_then(|v| <[u8; 4]>::try_from(v).ok()).map(Ipv4Addr::from),
        is_ours: head[5] == PROTOCOL,
    })
}

/// An rtnetlink connection to the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Rtnl(Socket);

fn link_head(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut head = [0; 16];
    head[4..8].copy_from_slice(&index.to_ne_bytes());
    head[8..12].copy_from_slice(&flags.to_ne_bytes());
    head[12..16].copy_from_slice(&change.to_ne_bytes());
    head
}

/// Turns one error code into success.
fn unless(result: io::Result<()>, code: i32) -> io::Result<()> {
    match result {
        Err(e) if e.raw_os_error() == Some(code) => Ok(()),
        other => other,
    }
}

impl Rtnl {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Rtnl(Socket::open(libc::NETLINK_ROUTE)?))
    }

    pub(crate) fn links(&mut self) -> io::Result<Vec<Link>> {
        let mut links = Vec::new();
        self.0.dump(
            |m, seq| {
                m.begin(libc::RTM_GETLINK, NLM_F_DUMP, seq, &link_head(0, 0, 0)).end();
            },
            |_, body| {
                let number = |b: &[u8]| b.get(..4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
                let (Some(index), Some(rest)) = (body.get(4..).and_then(number), body.get(16..)) else {
                    return;
                };
                let name = attr_of(rest, IFLA_IFNAME).unwrap_or_default();
                let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
                let master = attr_of(rest, IFLA_MASTER).and_then(number);
                let group = attr_of(rest, IFLA_GROUP).and_then(number).unwrap_or(0);
                links.push(Link { index, name, master, group });
            },
        )?;
        Ok(links)
    }

    /// Returns the index of a link in the calling thread's namespace, which must be the one this was opened
    /// in.
    pub(crate) fn index_of(&mut self, name: &str) -> io::Result<Option<u32>> {
        match nix::net::if_::if_nametoindex(name) {
            Ok(index) => Ok(Some(index)),
            Err(nix::errno::Errno::ENODEV | nix::errno::Errno::ENXIO) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Creates a bridge without forwarding delay.
    pub(crate) fn add_bridge(&mut self, name: &str, mac: [u8; 6], mtu: u32) -> io::Result<()> {
        let made = self.0.acked(|m, seq| {
            let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
            m.begin(libc::RTM_NEWLINK, flags, seq, &link_head(0, 0, 0));
            m.attr_str(IFLA_IFNAME, name).attr(IFLA_ADDRESS, &mac).attr_u32(IFLA_MTU, mtu);
            m.nest(IFLA_LINKINFO, |m| {
                m.attr_str(IFLA_INFO_KIND, "bridge");
                m.nest(IFLA_INFO_DATA, |m| {
                    m.attr_u32(IFLA_BR_FORWARD_DELAY, 0);
                });
            });
            m.end();
        });
        unless(made, libc::EEXIST)
    }

    /// Creates a veth pair: `host` here, `peer` in the namespace of the descriptor.
    pub(crate) fn add_veth(&mut self, veth: &Veth<'_>, peer_netns: BorrowedFd<'_>) -> io::Result<()> {
        let up = libc::IFF_UP as u32;
        self.0.acked(|m, seq| {
            let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
            m.begin(libc::RTM_NEWLINK, flags, seq, &link_head(0, up, up));
            m.attr_str(IFLA_IFNAME, veth.host).attr_u32(IFLA_MTU, veth.mtu).attr_u32(IFLA_GROUP, veth.group);
            if let Some(master) = veth.master {
                m.attr_u32(IFLA_MASTER, master);
            }
            if let Some([host, _]) = &veth.macs {
                m.attr(IFLA_ADDRESS, host);
            }
            m.nest(IFLA_LINKINFO, |m| {
                m.attr_str(IFLA_INFO_KIND, "veth");
                m.nest(IFLA_INFO_DATA, |m| {
                    m.nest(VETH_INFO_PEER, |m| {
                        m.raw(&link_head(0, 0, 0));
                        m.attr_str(IFLA_IFNAME, veth.peer).attr_u32(IFLA_MTU, veth.mtu);
                        if let Some([_, peer]) = &veth.macs {
                            m.attr(IFLA_ADDRESS, peer);
                        }
                        m.attr_u32(IFLA_NET_NS_FD, peer_netns.as_raw_fd().unsigned_abs());
                    });
                });
            });
            m.end();
        })
    }

    /// Puts a link into a group.
    pub(crate) fn set_group(&mut self, index: u32, group: u32) -> io::Result<()> {
        self.0.acked(|m, seq| {
            let head = link_head(index, 0, 0);
            m.begin(libc::RTM_NEWLINK, NLM_F_ACK, seq, &head).attr_u32(IFLA_GROUP, group).end();
        })
    }

    /// Sets a link's address.
    pub(crate) fn set_mac(&mut self, index: u32, mac: [u8; 6]) -> io::Result<()> {
        self.0.acked(|m, seq| {
            m.begin(libc::RTM_NEWLINK, NLM_F_ACK, seq, &link_head(index, 0, 0))
                .attr(IFLA_ADDRESS, &mac)
                .end();
        })
    }

    /// Takes a port out of its bridge.
    pub(crate) fn set_no_master(&mut self, index: u32) -> io::Result<()> {
        self.0.acked(|m, seq| {
            m.begin(libc::RTM_NEWLINK, NLM_F_ACK, seq, &link_head(index, 0, 0))
                .attr_u32(IFLA_MASTER, 0)
                .end();
        })
    }

    /// Switches ARP off: a link then neither asks nor answers.
    pub(crate) fn set_no_arp(&mut self, index: u32) -> io::Result<()> {
        let off = libc::IFF_NOARP as u32;
        self.0.acked(|m, seq| {
            m.begin(libc::RTM_NEWLINK, NLM_F_ACK, seq, &link_head(index, off, off)).end();
        })
    }

    /// Sets the link layer address of a neighbour for good.
    pub(crate) fn set_neighbour(&mut self, index: u32, address: Ipv4Addr, mac: [u8; 6]) -> io::Result<()> {
        const PERMANENT: u8 = 0x80;
        let mut head = [0; 12];
        head[0] = libc::AF_INET as u8;
        head[4..8].copy_from_slice(&index.to_ne_bytes());
        head[8] = PERMANENT;
        self.0.acked(|m, seq| {
            m.begin(libc::RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, seq, &head);
            m.attr(NDA_DST, &address.octets()).attr(NDA_LLADDR, &mac).end();
        })
    }

    /// Lists the machine's own IPv4 addresses.
    pub(crate) fn addresses(&mut self) -> io::Result<Vec<Ipv4Addr>> {
        let mut addresses = Vec::new();
        let mut head = [0; 8];
        head[0] = libc::AF_INET as u8;
        self.0.dump(
            |m, seq| {
                m.begin(libc::RTM_GETADDR, NLM_F_DUMP, seq, &head).end();
            },
            |_, body| {
                let local = body.get(8..).and_then(|rest| attr_of(rest, IFA_LOCAL));
                addresses.extend(local.and_then(|v| <[u8; 4]>::try_from(v).ok()).map(Ipv4Addr::from));
            },
        )?;
        Ok(addresses)
    }

    /// Sets a link up.
    pub(crate) fn set_up(&mut self, index: u32) -> io::Result<()> {
        let up = libc::IFF_UP as u32;
        self.0.acked(|m, seq| {
            m.begin(libc::RTM_NEWLINK, NLM_F_ACK, seq, &link_head(index, up, up)).end();
        })
    }

    /// Waits until a link whose other end came up can send. (Else the kernel drops what it sends until a
    /// worker of its own has run; asking for the link makes it do that work at once.)
    pub(crate) fn await_carrier(&mut self, index: u32) -> io::Result<()> {
        self.0.acked(|m, seq| {
            m.begin(libc::RTM_GETLINK, NLM_F_ACK, seq, &link_head(index, 0, 0)).end();
        })
    }

    /// Deletes a link.
    pub(crate) fn del_link(&mut self, name: &str) -> io::Result<()> {
        let gone = self.0.acked(|m, seq| {
            m.begin(libc::RTM_DELLINK, NLM_F_ACK, seq, &link_head(0, 0, 0)).attr_str(IFLA_IFNAME, name).end();
        });
        unless(gone, libc::ENODEV)
    }

    fn address(
        &mut self,
        kind: u16,
        flags: u16,
        index: u32,
        address: Ipv4Addr,
        prefix: u8,
    ) -> io::Result<()> {
        let mut head = [0; 8];
        head[0] = libc::AF_INET as u8;
        head[1] = prefix;
        head[4..8].copy_from_slice(&index.to_ne_bytes());
        self.0.acked(|m, seq| {
            m.begin(kind, flags | NLM_F_ACK, seq, &head);
            m.attr(IFA_LOCAL, &address.octets()).attr(IFA_ADDRESS, &address.octets()).end();
        })
    }

    /// Adds an address to a link.
    pub(crate) fn add_address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        unless(self.address(libc::RTM_NEWADDR, flags, index, address, prefix), libc::EEXIST)
    }

    /// Removes an address from a link.
    pub(crate) fn del_address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        unless(self.address(libc::RTM_DELADDR, 0, index, address, prefix), libc::EADDRNOTAVAIL)
    }

    fn route(&mut self, kind: u16, flags: u16, route: &Route) -> io::Result<()> {
        let (route_type, scope) = match route.how {
            How::Link { .. } => (RTN_UNICAST, SCOPE_LINK),
            How::Via { .. } => (RTN_UNICAST, SCOPE_UNIVERSE),
            How::Unreachable => (RTN_UNREACHABLE, SCOPE_UNIVERSE),
        };
        let head = [
            libc::AF_INET as u8,
            route.to.prefix_len(),
            0,
            0,
            TABLE_MAIN,
            PROTOCOL,
            scope,
            route_type,
            0,
            0,
            0,
            0,
        ];
        self.0.acked(|m, seq| {
            m.begin(kind, flags | NLM_F_ACK, seq, &head);
            m.attr(RTA_DST, &route.to.network().octets());
            if route.metric > 0 {
                m.attr_u32(RTA_PRIORITY, route.metric);
            }
            match route.how {
                How::Link { index, source } => {
                    m.attr_u32(RTA_OIF, index);
                    if let Some(source) = source {
                        m.attr(RTA_PREFSRC, &source.octets());
                    }
                }
                How::Via { gateway, index } => {
                    m.attr(RTA_GATEWAY, &gateway.octets());
                    if let Some(index) = index {
                        m.attr_u32(RTA_OIF, index);
                    }
                }
                How::Unreachable => {}
            }
            m.end();
        })
    }

    /// Lists the IPv4 routes of the main table.
    pub(crate) fn routes(&mut self) -> io::Result<Vec<Listed>> {
        let mut routes = Vec::new();
        let mut head = [0; 12];
        head[0] = libc::AF_INET as u8;
        self.0.dump(
            |m, seq| {
                m.begin(libc::RTM_GETROUTE, NLM_F_DUMP, seq, &head).end();
            },
            |_, body| routes.extend(listed(body)),
        )?;
        Ok(routes)
    }

    /// Adds a route, or replaces the one of the same destination and metric.
    pub(crate) fn set_route(&mut self, route: &Route) -> io::Result<()> {
        self.route(libc::RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, route)
    }

    /// Deletes a route.
    pub(crate) fn del_route(&mut self, route: &Route) -> io::Result<()> {
        unless(self.route(libc::RTM_DELROUTE, 0, route), libc::ESRCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{Messages, attrs};

    #[test]
    fn nested_attributes_are_read_back_as_written() {
        let mut m = Messages::default();
        m.begin(16, 0, 1, &link_head(3, 0, 0));
        m.attr_str(IFLA_IFNAME, "abc");
        m.nest(IFLA_LINKINFO, |m| {
            m.attr_str(IFLA_INFO_KIND, "veth");
        });
        m.end();
        let bytes = m.bytes();
        assert_eq!(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize, bytes.len());
        let rest = &bytes[32..];
        assert_eq!(attr_of(rest, IFLA_IFNAME), Some(&b"abc\0"[..]));
        let info = attr_of(rest, IFLA_LINKINFO).expect("nest");
        assert_eq!(attrs(info).collect::<Vec<_>>(), vec![(IFLA_INFO_KIND, &b"veth\0"[..])]);
    }
}
