//! Divides the addresses of blocks into intervals whose addresses are in the same blocks. Pure.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::Ipv4Net;

use super::{pairs::BlockId, parse::Block};

/// Number of a range, one more than its last address.
fn end(range: Ipv4Net) -> u64 {
    u64::from(range.broadcast().to_bits()) + 1
}

/// Number of blocks of all intervals together, at most. Who writes policies must not take the node's memory
/// with blocks that all overlap.
pub(crate) const MOST: usize = 2_000_000;

/// First and last address of an interval, and its blocks.
type Interval = (Ipv4Addr, Ipv4Addr, Vec<BlockId>);

/// Returns the intervals that are in a block, in order, and the blocks that were left out to keep below
/// `most`: the newest ones, which have the highest numbers.
pub(crate) fn intervals(blocks: &BTreeMap<BlockId, Block>, most: usize) -> (Vec<Interval>, Vec<BlockId>) {
    if let Some(found) = divide(blocks.iter(), most) {
        return (found, Vec::new());
    }
    let (mut fits, mut excess) = (0, blocks.len());
    while fits + 1 < excess {
        let middle = usize::midpoint(fits, excess);
        if divide(blocks.iter().take(middle), most).is_some() {
            fits = middle;
        } else {
            excess = middle;
        }
    }
    let found = divide(blocks.iter().take(fits), most).unwrap_or_default();
    (found, blocks.keys().skip(fits).copied().collect())
}

/// Returns `None` if the intervals have more than `most` blocks together.
fn divide<'a>(blocks: impl Iterator<Item = (&'a BlockId, &'a Block)>, most: usize) -> Option<Vec<Interval>> {
    let mut count = 0;
    // At each place: block and the change of its depth. Exceptions count against their block, and may
    // overlap.
    let mut places: BTreeMap<u64, Vec<(BlockId, i32, i32)>> = BTreeMap::new();
    for (id, block) in blocks {
        let start = |range: Ipv4Net| u64::from(range.network().to_bits());
        places.entry(start(block.range)).or_default().push((*id, 1, 0));
        places.entry(end(block.range)).or_default().push((*id, -1, 0));
        for except in &block.except {
            places.entry(start(*except)).or_default().push((*id, 0, 1));
            places.entry(end(*except)).or_default().push((*id, 0, -1));
        }
    }
    let mut depths: BTreeMap<BlockId, (i32, i32)> = BTreeMap::new();
    let mut found: Vec<Interval> = Vec::new();
    let mut places = places.into_iter().peekable();
    while let Some((start, changes)) = places.next() {
        for (id, inside, outside) in changes {
            let depth = depths.entry(id).or_default();
            *depth = (depth.0 + inside, depth.1 + outside);
            if *depth == (0, 0) {
                depths.remove(&id);
            }
        }
        let Some((next, _)) = places.peek() else { break };
        let within: Vec<BlockId> =
            depths.iter().filter(|(_, d)| d.0 > 0 && d.1 == 0).map(|(id, _)| *id).collect();
        let (Ok(first), Ok(last)) = (u32::try_from(start), u32::try_from(*next - 1)) else { break };
        if within.is_empty() {
            continue;
        }
        count += within.len();
        if count > most {
            return None;
        }
        match found.last_mut() {
            // Two exceptions may touch.
            Some((_, before, same)) if *same == within && before.to_bits().checked_add(1) == Some(first) => {
                *before = last.into();
            }
            _ => found.push((first.into(), last.into(), within)),
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range() -> impl Strategy<Value = Ipv4Net> {
        // Few addresses, both ends of the whole space included.
        let address = prop_oneof![0..64u32, (u32::MAX - 63)..=u32::MAX];
        (address, prop_oneof![Just(0u8), 26..=32u8])
            .prop_map(|(address, length)| Ipv4Net::new_assert(address.into(), length).trunc())
    }

    proptest! {
        #[test]
        fn each_address_is_in_its_blocks(
            blocks in prop::collection::vec((range(), prop::collection::vec(range(), 0..3)), 0..6),
        ) {
            let blocks: BTreeMap<BlockId, Block> = (1..)
                .zip(blocks)
                .map(|(id, (range, except))| (id, Block { range, except }))
                .collect();
            let (found, left) = intervals(&blocks, MOST);
            prop_assert_eq!(left, Vec::<BlockId>::new());
            for pair in found.windows(2) {
                prop_assert!(pair[0].1 < pair[1].0);
            }
            for address in (0..80u32).chain((u32::MAX - 80)..=u32::MAX).map(Ipv4Addr::from) {
                let inside = found.iter().find(|(first, last, _)| (*first..=*last).contains(&address));
                let got = inside.map(|(.., ids)| ids.clone()).unwrap_or_default();
                let want: Vec<BlockId> =
                    blocks.iter().filter(|(_, b)| b.contains(address)).map(|(id, _)| *id).collect();
                prop_assert_eq!(got, want, "{}", address);
            }
        }
    }
    /// A thousand blocks of everything but one address each.
    #[test]
    fn blocks_that_all_overlap_are_left_out_beyond_a_limit() {
        let block = |id: u32| {
            let except = vec![Ipv4Net::new_assert((id * 2).into(), 32)];
            (id, Block { range: Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0), except })
        };
        let blocks: BTreeMap<BlockId, Block> = (1..=1000).map(block).collect();
        assert!(intervals(&blocks, MOST).1.is_empty(), "all fit");
        let (found, left) = intervals(&blocks, 20_000);
        let total: usize = found.iter().map(|(.., ids)| ids.len()).sum();
        assert!(total <= 20_000 && total > 18_000, "{total}");
        assert_eq!(left, (1001 - u32::try_from(left.len()).expect("few")..=1000).collect::<Vec<_>>());
    }
}
