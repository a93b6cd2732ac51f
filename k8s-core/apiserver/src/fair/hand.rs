//! Shuffle sharding: each flow has a hand of queues, and its requests go to the emptiest of them.
//!
//! Two flows rarely have the same hand, so a flow that fills all of its queues leaves most other flows
//! at least one of theirs.

/// Deals distinct numbers below `deck` into `hand`, in ascending order. Equal entropy deals the same hand.
///
/// `size` is at most `deck`; validation bounds the entropy that a hand takes to 60 bits.
pub(super) fn deal(mut entropy: u64, deck: usize, size: usize, hand: &mut Vec<usize>) {
    hand.clear();
    for dealt in 0..size.min(deck) {
        let left = (deck - dealt) as u64;
        // The place among the numbers that are left.
        let mut card = usize::try_from(entropy % left).unwrap_or(0);
        entropy /= left;
        let mut at = 0;
        while at < hand.len() && hand[at] <= card {
            card += 1;
            at += 1;
        }
        hand.insert(at, card);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn hand(entropy: u64, deck: usize, size: usize) -> Vec<usize> {
        let mut hand = Vec::new();
        deal(entropy, deck, size, &mut hand);
        hand
    }

    proptest! {
        #[test]
        fn a_hand_has_distinct_queues(entropy: u64, deck in 1usize..600, size in 1usize..7) {
            let size = size.min(deck);
            let dealt = hand(entropy, deck, size);
            prop_assert_eq!(dealt.len(), size);
            prop_assert!(dealt.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(dealt.iter().all(|queue| *queue < deck));
            prop_assert_eq!(hand(entropy, deck, size), dealt);
        }
    }

    #[test]
    fn all_hands_are_dealt_and_all_equally_often() {
        // 5 * 4 * 3 sequences are 10 hands of 6 sequences each.
        let hands: Vec<Vec<usize>> = (0..60).map(|entropy| hand(entropy, 5, 3)).collect();
        let distinct: HashSet<&Vec<usize>> = hands.iter().collect();
        assert_eq!(distinct.len(), 10);
        for one in distinct {
            assert_eq!(hands.iter().filter(|hand| *hand == one).count(), 6, "{one:?}");
        }
    }
}
