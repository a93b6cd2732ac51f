//! Deletes conntrack entries of UDP flows to removed endpoints. Without this a client that keeps its source
//! port would go on sending to the removed endpoint.

use std::{collections::HashSet, io};

use super::plan::Backend;
use crate::netlink::{Messages, NLM_F_ACK, NLM_F_DUMP, Socket, attr_of};

const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const HEAD: [u8; 4] = [2, 0, 0, 0];

/// Deletes redirected UDP flows whose replies come from one of these endpoints.
pub(super) fn forget_udp(left: &HashSet<Backend>) -> io::Result<()> {
    let mut socket = Socket::open(libc::NETLINK_NETFILTER)?;
    let mut found: Vec<Vec<u8>> = Vec::new();
    socket.dump(
        |m, seq| {
            m.begin(GET, NLM_F_DUMP, seq, &HEAD).end();
        },
        |_, body| {
            let Some(rest) = body.get(4..) else { return };
            let (Some(orig), Some(reply)) = (attr_of(rest, TUPLE_ORIG), attr_of(rest, TUPLE_REPLY)) else {
                return;
            };
            let Some((17, answering)) = source_of(reply) else { return };
            if left.contains(&answering) && destination_of(orig) != Some(answering) {
                found.push(orig.to_vec());
            }
        },
    )?;
    for orig in found {
        let deleted = socket.acked(|m: &mut Messages, seq| {
            m.begin(DELETE, NLM_F_ACK, seq, &HEAD).attr(TUPLE_ORIG | 0x8000, &orig).end();
        });
        match deleted {
            Err(e) if e.raw_os_error() != Some(libc::ENOENT) => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn side(tuple: &[u8], address: u16, port: u16) -> Option<(u8, Backend)> {
    let (ip, proto) = (attr_of(tuple, TUPLE_IP)?, attr_of(tuple, TUPLE_PROTO)?);
    let address = <[u8; 4]>::try_from(attr_of(ip, address)?).ok()?.into();
    let port = u16::from_be_bytes(attr_of(proto, port)?.try_into().ok()?);
    Some((*attr_of(proto, 1)?.first()?, Backend { address, port }))
}

fn source_of(tuple: &[u8]) -> Option<(u8, Backend)> {
    side(tuple, 1, 2)
}

fn destination_of(tuple: &[u8]) -> Option<Backend> {
    side(tuple, 2, 3).map(|(_, backend)| backend)
}
