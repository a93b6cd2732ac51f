//! Allocates a pod CIDR for each node from the cluster's CIDR.
//!
//! Flow: [`Held`] has what each node holds; reconciles of nodes keep it current, and the first one reads all
//! nodes. A node without a range gets the first free subnet.
//! Guarantee: no two nodes get the same subnet, nor one that overlaps a range that somebody wrote into a
//! node by hand, as far as the cache has it.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

use ipnet::IpNet;
use k8s_core::{api::api::core::v1::Node, meta::ObjectExt};
use serde_json::json;

use k8s_controllers::{Action, Caches, Context, Error, EventType, Reconcile};

/// The subnets of the cluster's CIDR with one prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subnets {
    cidr: IpNet,
    mask: u8,
}

impl Subnets {
    /// Returns `None` for a mask shorter than the CIDR's prefix, longer than an address, or with more than
    /// 2^32 subnets.
    pub(super) fn new(cidr: IpNet, mask: u8) -> Option<Self> {
        let is_valid = cidr.prefix_len() <= mask && mask <= cidr.max_prefix_len();
        (is_valid && mask - cidr.prefix_len() <= 32).then(|| Subnets { cidr: cidr.trunc(), mask })
    }

    /// Returns the number of subnets.
    fn count(self) -> u128 {
        1 << (self.mask - self.cidr.prefix_len())
    }

    fn get(self, index: u128) -> Option<IpNet> {
        if index >= self.count() {
            return None;
        }
        let host_bits = u32::from(self.cidr.max_prefix_len() - self.mask);
        let offset = index.checked_shl(host_bits).unwrap_or(0);
        let address = match self.cidr.network() {
            IpAddr::V4(base) => IpAddr::from(Ipv4Addr::from(base.to_bits() + u32::try_from(offset).ok()?)),
            IpAddr::V6(base) => IpAddr::from(Ipv6Addr::from(base.to_bits() + offset)),
        };
        IpNet::new(address, self.mask).ok()
    }

    /// Returns the place of a range in the list. `None`: it is not one of the subnets.
    fn index_of(self, range: &IpNet) -> Option<u128> {
        if range.prefix_len() != self.mask || !self.cidr.contains(range) {
            return None;
        }
        let host_bits = u32::from(self.cidr.max_prefix_len() - self.mask);
        let offset = match (range.network(), self.cidr.network()) {
            (IpAddr::V4(own), IpAddr::V4(base)) => u128::from(own.to_bits() - base.to_bits()),
            (IpAddr::V6(own), IpAddr::V6(base)) => own.to_bits() - base.to_bits(),
            _ => return None,
        };
        Some(offset.checked_shr(host_bits).unwrap_or(0))
    }
}

/// The ranges that nodes hold.
///
/// Guarantee: [`Held::first_free`] does work in proportion to the subnets given since the last release, not
/// to the number of nodes.
#[derive(Debug, Default)]
struct Held {
    by_node: HashMap<String, Vec<IpNet>>,
    /// Number of nodes that hold a subnet, by its index.
    subnets: HashMap<u128, usize>,
    /// Ranges that are no subnets of the cluster's CIDR and overlap it, such as one with another mask.
    others: Vec<IpNet>,
    /// No subnet below this index is free.
    low: u128,
}

impl Held {
    /// Replaces the ranges of a node. Texts that are no ranges are ignored.
    fn hold<'a>(&mut self, subnets: Subnets, node: &str, ranges: impl Iterator<Item = &'a str>) {
        let mut ranges: Vec<IpNet> =
            ranges.filter_map(|text| text.parse().ok()).map(|range: IpNet| range.trunc()).collect();
        ranges.sort_unstable();
        ranges.dedup();
        if self.by_node.get(node).is_some_and(|known| *known == ranges) {
            return;
        }
        self.release(subnets, node);
        for range in &ranges {
            match subnets.index_of(range) {
                Some(index) => *self.subnets.entry(index).or_default() += 1,
                None if overlap(range, &subnets.cidr) => self.others.push(*range),
                None => {}
            }
        }
        if !ranges.is_empty() {
            self.by_node.insert(node.to_owned(), ranges);
        }
    }

    /// Frees the ranges of a node.
    fn release(&mut self, subnets: Subnets, node: &str) {
        for range in self.by_node.remove(node).unwrap_or_default() {
            match subnets.index_of(&range) {
                Some(index) => {
                    let left = self.subnets.remove(&index).unwrap_or(0).saturating_sub(1);
                    if left > 0 {
                        self.subnets.insert(index, left);
                    }
                    self.low = self.low.min(index);
                }
                None => {
                    let one = self.others.iter().position(|other| *other == range);
                    one.map(|at| self.others.swap_remove(at));
                    self.low = 0;
                }
            }
        }
    }

    /// Returns the subnet that a node holds.
    fn of_node(&self, subnets: Subnets, node: &str) -> Option<IpNet> {
        self.by_node.get(node)?.iter().find(|range| subnets.index_of(range).is_some()).copied()
    }

    /// Returns the first free subnet. `None`: all are taken.
    fn first_free(&mut self, subnets: Subnets) -> Option<IpNet> {
        loop {
            let range = subnets.get(self.low)?;
            let is_free = !self.subnets.contains_key(&self.low)
                && !self.others.iter().any(|other| overlap(other, &range));
            if is_free {
                return Some(range);
            }
            self.low += 1;
        }
    }
}

/// Returns `true` if two ranges have a common address.
fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Reason of the event about a node for which no subnet is left.
const NOT_AVAILABLE: &str = "CIDRNotAvailable";

/// Index of the cache of nodes: pod CIDR to node.
const BY_RANGE: &str = "pod-cidr";

/// Adds the index that the allocation needs.
pub(super) fn index(caches: &Caches) {
    caches.of::<Node>().add_index(BY_RANGE, |node| {
        let mut ranges: Vec<String> = ranges_of(node).map(str::to_owned).collect();
        ranges.sort_unstable();
        ranges.dedup();
        ranges
    });
}

/// Returns the ranges of a node, as its object has them.
fn ranges_of(node: &Node) -> impl Iterator<Item = &str> {
    let spec = node.spec.as_ref();
    let first = spec.and_then(|s| s.pod_cidr.as_deref());
    let all = spec.into_iter().flat_map(|s| s.pod_cidrs.iter().flatten().map(String::as_str));
    first.into_iter().chain(all)
}

pub(super) struct NodeIpam {
    subnets: Subnets,
    /// What nodes hold. `None` until the first reconcile.
    held: Mutex<Option<Held>>,
}

impl NodeIpam {
    pub(super) fn new(subnets: Subnets) -> Self {
        NodeIpam { subnets, held: Mutex::default() }
    }

    /// Runs `work` on what nodes hold. The first call reads all nodes.
    fn with_held<T>(&self, cx: &Context, work: impl FnOnce(&mut Held) -> T) -> T {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let held = held.get_or_insert_with(|| {
            let mut held = Held::default();
            for node in cx.caches().of::<Node>().list() {
                held.hold(self.subnets, node.name(), ranges_of(&node));
            }
            held
        });
        work(held)
    }

    /// Gives a node a subnet that no other holds: the one of an earlier write that may have failed, else the
    /// first free one. `None`: all are taken.
    fn give(&self, cx: &Context, node: &Node) -> Option<String> {
        let cache = cx.caches().of::<Node>();
        self.with_held(cx, |held| {
            loop {
                let range =
                    held.of_node(self.subnets, node.name()).or_else(|| held.first_free(self.subnets))?;
                let range = range.to_string();
                // A node with a range of its own may be in the cache before its reconcile.
                let others = cache.by_index(BY_RANGE, &range);
                let Some(owner) = others.iter().find(|other| other.name() != node.name()) else {
                    held.hold(self.subnets, node.name(), std::iter::once(range.as_str()));
                    return Some(range);
                };
                held.release(self.subnets, node.name());
                held.hold(self.subnets, owner.name(), ranges_of(owner));
            }
        })
    }
}

impl Reconcile for NodeIpam {
    type Kind = Node;

    async fn reconcile(&self, cx: &Context, node: Arc<Node>) -> Result<Action, Error> {
        if ranges_of(&node).any(|range| !range.is_empty()) {
            self.with_held(cx, |held| held.hold(self.subnets, node.name(), ranges_of(&node)));
            return Ok(Action::await_change());
        }
        if node.is_deleting() {
            return Ok(Action::await_change());
        }
        let Some(range) = self.give(cx, &node) else {
            let message = format!("Node {} status is now: {NOT_AVAILABLE}", node.name());
            cx.event(&*node, EventType::Normal, NOT_AVAILABLE, message);
            return Err(Error::invalid(format!("node {}", node.name()), "no pod range is left"));
        };
        let patch = json!({
            "metadata": {"uid": node.uid()},
            "spec": {"podCIDR": range, "podCIDRs": [range]},
        });
        // The node keeps the range if this fails: the write may have been done although its answer is lost.
        cx.merge(&*node, &patch).await?;
        Ok(Action::await_change())
    }

    async fn gone(&self, cx: &Context) -> Result<Action, Error> {
        self.with_held(cx, |held| held.release(self.subnets, &cx.key().name));
        Ok(Action::await_change())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subnets(cidr: &str, mask: u8) -> Option<Subnets> {
        Subnets::new(cidr.parse().expect("a CIDR"), mask)
    }

    #[test]
    fn cuts_ranges() {
        let get = |subnets: Subnets, i| subnets.get(i).map(|range| range.to_string());
        let v4 = subnets("10.42.7.9/16", 24).expect("subnets");
        assert_eq!(get(v4, 0).as_deref(), Some("10.42.0.0/24"));
        assert_eq!(get(v4, 255).as_deref(), Some("10.42.255.0/24"));
        assert_eq!(get(v4, 256), None);
        let v6 = subnets("fd00::/48", 64).expect("subnets");
        assert_eq!(get(v6, 1).as_deref(), Some("fd00:0:0:1::/64"));
        for (cidr, mask) in [("10.0.0.0/24", 16), ("10.0.0.0/8", 40), ("fd00::/16", 64)] {
            assert_eq!(subnets(cidr, mask), None, "{cidr} {mask}");
        }
    }

    #[test]
    fn ranges_of_other_forms_are_kept_clear_of() {
        let ranges = subnets("10.0.0.0/22", 24).expect("subnets");
        let mut held = Held::default();
        held.hold(ranges, "half", ["10.0.0.128/25"].into_iter());
        held.hold(ranges, "own", ["10.0.1.0/24", "fd00::/64"].into_iter());
        held.hold(ranges, "foreign", ["192.168.0.0/24", "nonsense"].into_iter());
        let first = |held: &mut Held| held.first_free(ranges).map(|range| range.to_string());
        assert_eq!(first(&mut held).as_deref(), Some("10.0.2.0/24"));
        held.release(ranges, "own");
        assert_eq!(first(&mut held).as_deref(), Some("10.0.1.0/24"));
        held.hold(ranges, "wide", ["10.0.0.0/8"].into_iter());
        assert_eq!(first(&mut held), None);
        held.release(ranges, "wide");
        held.release(ranges, "half");
        assert_eq!(first(&mut held).as_deref(), Some("10.0.0.0/24"));
    }

    #[test]
    fn a_range_of_two_nodes_is_free_after_both() {
        let ranges = subnets("10.0.0.0/24", 24).expect("subnets");
        let mut held = Held::default();
        for node in ["a", "b"] {
            held.hold(ranges, node, ["10.0.0.0/24"].into_iter());
        }
        held.release(ranges, "a");
        assert_eq!(held.first_free(ranges), None);
        held.release(ranges, "b");
        assert!(held.first_free(ranges).is_some());
    }

    proptest! {
        #[test]
        fn every_subnet_has_its_index(index in 0..1_u128 << 16) {
            for (cidr, mask) in [("10.0.0.0/8", 24), ("fd00::/48", 64)] {
                let ranges = subnets(cidr, mask).expect("subnets");
                let range = ranges.get(index).expect("in the range");
                prop_assert_eq!(ranges.index_of(&range), Some(index));
            }
        }

        #[test]
        fn the_lowest_free_range_is_given_and_none_twice(
            steps in proptest::collection::vec((any::<bool>(), 0..20_usize), 0..60),
        ) {
            let ranges = subnets("10.0.0.0/28", 32).expect("subnets");
            let mut held = Held::default();
            let mut model: std::collections::BTreeMap<usize, IpNet> = Default::default();
            for (take, node) in steps {
                let name = node.to_string();
                if !take {
                    held.release(ranges, &name);
                    model.remove(&node);
                } else if !model.contains_key(&node) {
                    let lowest = (0..16).filter_map(|i| ranges.get(i)).find(|r| model.values().all(|m| m != r));
                    let given = held.first_free(ranges);
                    prop_assert_eq!(given, lowest);
                    if let Some(range) = given {
                        let text = range.to_string();
                        held.hold(ranges, &name, std::iter::once(text.as_str()));
                        model.insert(node, range);
                    }
                }
            }
        }
    }
}
