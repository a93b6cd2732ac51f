//! Deletes conntrack entries: of UDP flows to removed endpoints of services, to which a client that keeps its
//! source port would go on sending, and of connections that policies no longer allow.

use std::{collections::HashSet, io, net::Ipv4Addr};

use crate::netlink::{Messages, NLM_F_ACK, NLM_F_DUMP, Socket, attr_of};

const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const HEAD: [u8; 4] = [2, 0, 0, 0];

/// An end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct End {
    pub(crate) address: Ipv4Addr,
    pub(crate) port: u16,
}

/// A flow that the kernel tracks. Ports are 0 for protocols without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    /// IP protocol number.
    pub(crate) protocol: u8,
    /// Source of the first packet.
    pub(crate) from: End,
    /// Destination of the first packet, before translation.
    pub(crate) to: End,
    /// Source of the replies.
    pub(crate) answering: End,
}

/// A flow and what the kernel knows it by.
#[derive(Debug)]
pub(crate) struct Tracked {
    pub(crate) flow: Flow,
    tuple: Vec<u8>,
}

/// Deletes redirected UDP flows whose replies come from one of these endpoints.
pub(crate) fn forget_udp(left: &HashSet<End>) -> io::Result<()> {
    let is_stale = |flow: &Flow| flow.protocol == 17 && left.contains(&flow.answering);
    forget(list(|flow| is_stale(flow) && flow.to != flow.answering)?)
}

/// Lists the flows that are chosen. This reads the whole table of the machine, which takes some milliseconds
/// even when it is empty.
pub(crate) fn list(mut is_chosen: impl FnMut(&Flow) -> bool) -> io::Result<Vec<Tracked>> {
    let mut socket = Socket::open(libc::NETLINK_NETFILTER)?;
    let mut found = Vec::new();
    socket.dump(
        |m, seq| {
            m.begin(GET, NLM_F_DUMP, seq, &HEAD).end();
        },
        |_, body| {
            let Some(rest) = body.get(4..) else { return };
            let (Some(orig), Some(reply)) = (attr_of(rest, TUPLE_ORIG), attr_of(rest, TUPLE_REPLY)) else {
                return;
            };
            if let Some(flow) = flow(orig, reply).filter(|flow| is_chosen(flow)) {
                found.push(Tracked { flow, tuple: orig.to_vec() });
            }
        },
    )?;
    Ok(found)
}

/// Deletes these flows. One that is gone is no error.
pub(crate) fn forget(flows: Vec<Tracked>) -> io::Result<()> {
    if flows.is_empty() {
        return Ok(());
    }
    let mut socket = Socket::open(libc::NETLINK_NETFILTER)?;
    for Tracked { tuple, .. } in flows {
        let deleted = socket.acked(|m: &mut Messages, seq| {
            m.begin(DELETE, NLM_F_ACK, seq, &HEAD).attr(TUPLE_ORIG | 0x8000, &tuple).end();
        });
        match deleted {
            Err(e) if e.raw_os_error() != Some(libc::ENOENT) => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn flow(orig: &[u8], reply: &[u8]) -> Option<Flow> {
    let protocol = *attr_of(attr_of(orig, TUPLE_PROTO)?, 1)?.first()?;
    Some(Flow { protocol, from: side(orig, 1, 2)?, to: side(orig, 2, 3)?, answering: side(reply, 1, 2)? })
}

fn side(tuple: &[u8], address: u16, port: u16) -> Option<End> {
    let (ip, proto) = (attr_of(tuple, TUPLE_IP)?, attr_of(tuple, TUPLE_PROTO)?);
    let address: Ipv4Addr = <[u8; 4]>::try_from(attr_of(ip, address)?).ok()?.into();
    let port = attr_of(proto, port).and_then(|port| Some(u16::from_be_bytes(port.try_into().ok()?)));
    Some(End { address, port: port.unwrap_or(0) })
}
