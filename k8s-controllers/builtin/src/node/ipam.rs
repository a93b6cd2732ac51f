//! Allocates a pod CIDR for each node from the cluster's CIDR.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

use k8s_core::{api::api::core::v1::Node, meta::ObjectExt};
use serde_json::json;

use k8s_controllers::{Action, Context, Error, EventType, Reconcile};

/// The subnets of the cluster's CIDR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ranges {
    base: u128,
    /// Address length in bits: 32 or 128.
    bits: u8,
    mask: u8,
    count: u128,
}

impl Ranges {
    /// Returns `None` for an invalid CIDR or a mask shorter than its prefix.
    pub(super) fn parse(cidr: &str, mask: u8) -> Option<Self> {
        let (address, length) = cidr.split_once('/')?;
        let length: u8 = length.parse().ok()?;
        let (number, bits) = match address.parse().ok()? {
            IpAddr::V4(v4) => (u128::from(u32::from(v4)), 32),
            IpAddr::V6(v6) => (u128::from(v6), 128),
        };
        if length > mask || mask > bits || mask - length > 32 {
            return None;
        }
        let host = u32::from(bits - length);
        let base = number.checked_shr(host).unwrap_or(0).checked_shl(host).unwrap_or(0);
        Some(Ranges { base, bits, mask, count: 1 << (mask - length) })
    }

    fn get(&self, index: u128) -> Option<String> {
        if index >= self.count {
            return None;
        }
        let number = self.base + (index << (self.bits - self.mask));
        let address = if self.bits == 32 {
            IpAddr::V4(Ipv4Addr::from(u32::try_from(number).ok()?))
        } else {
            IpAddr::V6(Ipv6Addr::from(number))
        };
        Some(format!("{address}/{}", self.mask))
    }

    /// Returns the first free subnet.
    fn free(&self, taken: &HashSet<String>) -> Option<String> {
        // Among one more candidates than taken ones, at least one is free.
        let most = u128::try_from(taken.len()).unwrap_or(u128::MAX).saturating_add(1).min(self.count);
        (0..most).filter_map(|i| self.get(i)).find(|range| !taken.contains(range))
    }
}

pub(super) struct NodeIpam {
    ranges: Ranges,
    /// Allocations that the cache may not have yet: node, subnet.
    given: Mutex<Vec<(String, String)>>,
}

impl NodeIpam {
    pub(super) fn new(ranges: Ranges) -> Self {
        NodeIpam { ranges, given: Mutex::default() }
    }

    fn taken(&self, nodes: &[Arc<Node>]) -> HashSet<String> {
        let spec = |node: &Arc<Node>| {
            let spec = node.spec.clone().unwrap_or_default();
            spec.pod_cidr.into_iter().chain(spec.pod_cidrs.unwrap_or_default())
        };
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.iter().flat_map(spec).chain(given.iter().map(|(_, range)| range.clone())).collect()
    }
}

impl Reconcile for NodeIpam {
    type Kind = Node;

    async fn reconcile(&self, cx: &Context, node: Arc<Node>) -> Result<Action, Error> {
        let has = node.spec.as_ref().and_then(|s| s.pod_cidr.as_ref()).is_some_and(|c| !c.is_empty());
        if has || node.is_deleting() {
            return Ok(Action::await_change());
        }
        let taken = self.taken(&cx.caches().of::<Node>().list());
        let Some(range) = self.ranges.free(&taken) else {
            let message = "Node could not be given a pod range: none is left";
            cx.event(&*node, EventType::Warning, "CIDRNotAvailable", message);
            return Err(Error::invalid(format!("node {}", node.name()), "no pod range is left"));
        };
        self.given
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((node.name().to_owned(), range.clone()));
        let patch = json!({
            "metadata": {"uid": node.uid()},
            "spec": {"podCIDR": range, "podCIDRs": [range]},
        });
        let result = cx.merge(&*node, &patch).await;
        if result.is_err() {
            let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
            given.retain(|(name, _)| name != node.name());
        }
        result.map(|_| Action::await_change())
    }

    async fn gone(&self, cx: &Context) -> Result<Action, Error> {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.retain(|(name, _)| *name != cx.key().name);
        Ok(Action::await_change())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cuts_ranges() {
        let v4 = Ranges::parse("10.42.7.9/16", 24).unwrap();
        assert_eq!(v4.get(0).unwrap(), "10.42.0.0/24");
        assert_eq!(v4.get(255).unwrap(), "10.42.255.0/24");
        assert_eq!(v4.get(256), None);
        assert_eq!(Ranges::parse("fd00::/48", 64).unwrap().get(1).unwrap(), "fd00:0:0:1::/64");
        for (cidr, mask) in [("10.0.0.0/24", 16), ("10.0.0.0", 24), ("x/8", 24), ("10.0.0.0/8", 40), ("", 24)]
        {
            assert_eq!(Ranges::parse(cidr, mask), None, "{cidr} {mask}");
        }
    }

    proptest! {
        #[test]
        fn never_gives_a_range_twice(gone in proptest::collection::vec(0..16usize, 0..20)) {
            let ranges = Ranges::parse("10.0.0.0/28", 32).unwrap();
            let mut taken = HashSet::new();
            let mut order = Vec::new();
            for i in gone {
                if let Some(range) = ranges.free(&taken) {
                    prop_assert!(taken.insert(range.clone()));
                    order.push(range);
                } else {
                    prop_assert_eq!(taken.len(), 16);
                }
                if i < order.len() && i % 2 == 0 { taken.remove(&order.swap_remove(i)); }
            }
        }
    }
}
