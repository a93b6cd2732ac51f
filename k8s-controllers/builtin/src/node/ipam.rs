//! Allocates a pod CIDR for each node from the cluster's CIDR.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

use ipnet::IpNet;
use k8s_core::{api::api::core::v1::Node, meta::ObjectExt};
use serde_json::json;

use k8s_controllers::{Action, Context, Error, EventType, Reconcile};

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

    /// Returns the first free subnet.
    fn free(self, taken: &HashSet<String>) -> Option<String> {
        // Among one more candidates than taken ones, at least one is free.
        let most = u128::try_from(taken.len()).unwrap_or(u128::MAX).saturating_add(1).min(self.count());
        (0..most).filter_map(|i| Some(self.get(i)?.to_string())).find(|range| !taken.contains(range))
    }
}

pub(super) struct NodeIpam {
    subnets: Subnets,
    /// Allocations that the cache may not have yet: node, subnet.
    given: Mutex<Vec<(String, String)>>,
}

impl NodeIpam {
    pub(super) fn new(subnets: Subnets) -> Self {
        NodeIpam { subnets, given: Mutex::default() }
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
        let Some(range) = self.subnets.free(&taken) else {
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

    proptest! {
        #[test]
        fn never_gives_a_range_twice(gone in proptest::collection::vec(0..16usize, 0..20)) {
            let ranges = subnets("10.0.0.0/28", 32).expect("subnets");
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
