//! Cuts established connections that are no longer allowed: their conntrack entries are deleted, so that the
//! next packet is looked up as the first of a connection.
//!
//! Reading conntrack's table takes some milliseconds, so it is done beside the worker ([`read`]); which of
//! the flows are cut is decided by the plan of the moment ([`denied`]).

use std::{collections::HashSet, io, net::Ipv4Addr};

use super::plan::Plan;
use crate::{
    conntrack::{self, Tracked},
    rtnl::Rtnl,
};

/// Flows from and to some addresses.
#[derive(Debug)]
pub(super) struct Flows {
    flows: Vec<Tracked>,
    /// Addresses of the node, which reaches its own pods always.
    node: HashSet<Ipv4Addr>,
    /// Addresses that were freed: their flows are cut in any case.
    left: HashSet<Ipv4Addr>,
}

/// Reads the flows of isolated pods and of addresses that were freed. Blocking.
pub(super) fn read(isolated: &HashSet<Ipv4Addr>, left: HashSet<Ipv4Addr>) -> io::Result<Flows> {
    let node = Rtnl::open()?.addresses()?.into_iter().collect();
    let flows = conntrack::list(|flow| {
        [flow.from.address, flow.answering.address].iter().any(|a| isolated.contains(a) || left.contains(a))
    })?;
    Ok(Flows { flows, node, left })
}

/// Returns the flows that the plan does not allow.
pub(super) fn denied(plan: &Plan, read: Flows) -> Vec<Tracked> {
    let Flows { mut flows, node, left } = read;
    flows.retain(|Tracked { flow, .. }| {
        // The addresses that rules see: after the translation of a service, before masquerading.
        let (from, to) = (flow.from.address, flow.answering.address);
        let is_left = left.contains(&from) || left.contains(&to);
        is_left || (!node.contains(&from) && !plan.allows(from, to, flow.protocol, flow.answering.port))
    });
    flows
}
