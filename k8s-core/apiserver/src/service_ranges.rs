//! Ranges of cluster addresses and node ports: their members, and the order in which free ones are looked
//! for.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_core::random;
use k8s_store::Store;
use serde_json::Value;

use crate::value::{array_at, str_at};

/// Name of ServiceCIDRs in the store.
const RESOURCE: &str = "servicecidrs.networking.k8s.io";

/// The ranges that are configured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServiceRanges {
    /// Cluster addresses. ServiceCIDRs add others.
    pub(crate) addresses: Ipv4Net,
    /// First and last node port.
    pub(crate) ports: (u16, u16),
}

impl ServiceRanges {
    /// Returns true if an address is in a range of Services.
    pub(crate) fn contains(&self, store: &Store, address: Ipv4Addr) -> bool {
        usable(store, self.addresses).iter().any(|range| range.contains(&address))
    }
}

/// Returns the ranges that addresses are taken from: those of all ServiceCIDRs that are ready and not being
/// deleted, and the configured one, unless a ServiceCIDR says of it that it is not ready or goes.
pub(crate) fn usable(store: &Store, configured: Ipv4Net) -> Vec<Ipv4Net> {
    let configured = configured.trunc();
    let (mut all, mut withdrawn) = (Vec::new(), false);
    for stored in store.snapshot(RESOURCE).range("", "") {
        let Ok(object) = serde_json::from_slice::<Value>(&stored.json) else { continue };
        let ready = array_at(&object, "/status/conditions").iter().find(|c| str_at(c, "/type") == "Ready");
        let ready = ready.map(|condition| str_at(condition, "/status") == "True");
        let deleted = object.pointer("/metadata/deletionTimestamp").is_some();
        let ranges = array_at(&object, "/spec/cidrs").iter().filter_map(|c| c.as_str()?.parse().ok());
        for range in ranges.map(|range: Ipv4Net| range.trunc()) {
            if ready == Some(true) && !deleted {
                all.push(range);
            } else if range == configured {
                // One that nobody has judged yet was made a moment ago.
                withdrawn |= deleted || ready.is_some();
            }
        }
    }
    if !withdrawn {
        all.push(configured);
    }
    // The configured one first: others are added when it is full.
    all.sort_by_key(|range| (*range != configured, *range));
    all.dedup();
    all
}

/// Returns first and last address that a Service may have; `None` for a range without any. Neither the
/// network's own address nor its broadcast address is one.
pub(crate) fn bounds(range: Ipv4Net) -> Option<(u32, u32)> {
    let first = u32::from(range.network()).checked_add(1)?;
    let last = u32::from(range.broadcast()).checked_sub(1)?;
    (first <= last).then_some((first, last))
}

/// Returns the length of the lower part of a range, which is left to Services that ask for something in it:
/// one of `step`, within bounds, as upstream has it (`calculateRangeOffset`).
fn lower(count: u32, step: u32, most: u32) -> u32 {
    if count <= 16 { 0 } else { (count / step).clamp(16, most) }
}

/// Returns all numbers of a range in the order in which a free one is looked for: from a random place of the
/// upper part on, then from a random place of the lower one.
fn order(first: u32, count: u32, low: u32) -> impl Iterator<Item = u32> {
    let parts = [(first + low, count - low), (first, low)];
    parts.into_iter().filter(|(_, count)| *count > 0).flat_map(|(first, count)| {
        let start = random::range(0..count);
        // Not `start + i`: a range may have nearly 2^32 numbers.
        (0..count).map(move |i| first + if i < count - start { start + i } else { i - (count - start) })
    })
}

/// Returns all addresses of a range, in the order in which a free one is looked for.
pub(crate) fn candidates(range: Ipv4Net) -> impl Iterator<Item = Ipv4Addr> {
    bounds(range).into_iter().flat_map(|(first, last)| {
        let count = last - first + 1;
        order(first, count, lower(count, 16, 256)).map(Ipv4Addr::from)
    })
}

/// Returns all node ports, in the order in which a free one is looked for.
pub(crate) fn ports((first, last): (u16, u16)) -> impl Iterator<Item = u16> {
    let count = u32::from(last.saturating_sub(first)) + 1;
    order(first.into(), count, lower(count, 32, 128)).filter_map(|port| u16::try_from(port).ok())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_address_is_a_candidate_once(base in any::<u32>(), length in 18u8..=32) {
            let range = Ipv4Net::new(base.into(), length).unwrap().trunc();
            let all: Vec<Ipv4Addr> = candidates(range).collect();
            let set: BTreeSet<Ipv4Addr> = all.iter().copied().collect();
            prop_assert_eq!(set.len(), all.len());
            let hosts = (1u64 << (32 - length)).saturating_sub(2);
            prop_assert_eq!(all.len() as u64, hosts);
            let inside = |a: &Ipv4Addr| range.contains(a) && *a != range.network() && *a != range.broadcast();
            prop_assert!(all.iter().all(inside));
            // The lower part comes last.
            let low = usize::try_from(lower(u32::try_from(hosts).unwrap(), 16, 256)).unwrap();
            let lowest: BTreeSet<Ipv4Addr> = set.iter().copied().take(low).collect();
            prop_assert!(all[all.len() - low..].iter().all(|a| lowest.contains(a)));
        }
    }

    #[test]
    fn small_ranges_have_no_lower_part() {
        for (count, want) in [(0, 0), (2, 0), (16, 0), (17, 16), (254, 16), (510, 31), (65_534, 256)] {
            assert_eq!(lower(count, 16, 256), want, "{count}");
        }
        assert_eq!(lower(2768, 32, 128), 86);
        let all: BTreeSet<u16> = ports((30000, 32767)).collect();
        assert_eq!((all.len(), all.first(), all.last()), (2768, Some(&30000), Some(&32767)));
        assert!(ports((30000, 32767)).take(2682).all(|port| port >= 30086));
    }
}
