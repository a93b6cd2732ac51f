//! Cuts established connections that are no longer allowed: their conntrack entries are deleted, so that the
//! next packet is looked up as the first of a connection.

use std::{collections::HashSet, io, net::Ipv4Addr};

use super::plan::Plan;
use crate::{conntrack, rtnl::Rtnl};

/// Deletes the entries of flows that the plan does not allow, and of those from and to addresses that are
/// free. Returns their number.
pub(super) fn cut(plan: &Plan, left: &HashSet<Ipv4Addr>) -> io::Result<usize> {
    // The node itself reaches its pods always.
    let node: HashSet<Ipv4Addr> = Rtnl::open()?.addresses()?.into_iter().collect();
    conntrack::forget(|flow| {
        // The addresses that rules see: after the translation of a service, before masquerading.
        let (from, to) = (flow.from.address, flow.answering.address);
        if left.contains(&from) || left.contains(&to) {
            return true;
        }
        let concerned = plan.is_isolated(from) || plan.is_isolated(to);
        concerned && !node.contains(&from) && !plan.allows(from, to, flow.protocol, flow.answering.port)
    })
}
