//! Answers by the bytes of their query, for the queries that come again and again.
//!
//! Decoding a query and encoding its answer costs more than all the rest. Two queries with equal bytes behind
//! their ids get equal answers for as long as nothing has changed, apart from the order of several addresses.

use std::{collections::HashMap, time::Instant};

/// Number of different orders of an answer's records.
pub(super) const TURNS: usize = 16;
/// Number of queries whose answers are kept, and their longest length in bytes.
const MOST: usize = 4096;
const LONGEST_QUERY: usize = 320;
const LONGEST_ANSWER: usize = 1232;

/// The time for which an answer may be given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reuse {
    /// To this client alone.
    Never,
    /// Until the server's state changes. `ordered`: with the same order of records whatever the id.
    WhileUnchanged {
        /// There is only one order.
        ordered: bool,
    },
    /// Until an instant, or until the server's state changes.
    Until(Instant),
}

#[derive(Debug)]
struct Entry {
    until: Option<Instant>,
    /// By turn; one if all are equal.
    answers: Box<[Option<Box<[u8]>>]>,
}

/// The answers of one version of the server's state.
#[derive(Debug, Default)]
pub(super) struct Packets {
    version: u64,
    entries: HashMap<Box<[u8]>, Entry>,
}

/// Returns the order of records for a query's id.
pub(super) fn turn(id: u16) -> usize {
    usize::from(id) % TURNS
}

fn id_of(query: &[u8]) -> Option<u16> {
    query.first_chunk::<2>().map(|id| u16::from_be_bytes(*id))
}

impl Packets {
    /// Writes the answer to a query into `out`. `false`: it is not known.
    pub(super) fn get(&self, query: &[u8], version: u64, now: Instant, out: &mut Vec<u8>) -> bool {
        if version != self.version || query.len() > LONGEST_QUERY {
            return false;
        }
        let (Some(id), Some(rest)) = (id_of(query), query.get(2..)) else { return false };
        let Some(entry) = self.entries.get(rest) else { return false };
        if entry.until.is_some_and(|until| now >= until) {
            return false;
        }
        let at = turn(id) % entry.answers.len().max(1);
        let Some(Some(answer)) = entry.answers.get(at) else { return false };
        out.clear();
        out.extend_from_slice(&query[..2]);
        out.extend_from_slice(&answer[2..]);
        true
    }

    /// Keeps an answer that belongs to a version of the server's state.
    pub(super) fn put(&mut self, query: &[u8], version: u64, answer: &[u8], reuse: Reuse) {
        let (ordered, until) = match reuse {
            Reuse::Never => return,
            Reuse::WhileUnchanged { ordered } => (ordered, None),
            Reuse::Until(until) => (true, Some(until)),
        };
        if query.len() > LONGEST_QUERY || !(2..=LONGEST_ANSWER).contains(&answer.len()) {
            return;
        }
        if version != self.version || self.entries.len() >= MOST {
            self.entries.clear();
            self.version = version;
        }
        let (Some(id), Some(rest)) = (id_of(query), query.get(2..)) else { return };
        let orders = if ordered { 1 } else { TURNS };
        let entry = self.entries.entry(rest.into());
        let entry = entry.or_insert_with(|| Entry { until, answers: vec![None; orders].into() });
        if entry.answers.len() != orders {
            *entry = Entry { until, answers: vec![None; orders].into() };
        }
        entry.until = until;
        let at = turn(id) % orders;
        entry.answers[at] = Some(answer.into());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn query(id: u16, rest: &[u8]) -> Vec<u8> {
        [&id.to_be_bytes(), rest].concat()
    }

    #[test]
    fn an_answer_has_the_querys_id_and_ends_with_the_state() {
        let (mut packets, now, mut out) = (Packets::default(), Instant::now(), Vec::new());
        let ordered = Reuse::WhileUnchanged { ordered: true };
        packets.put(&query(1, b"who"), 1, b"\0\x01answer", ordered);
        assert!(packets.get(&query(0x1234, b"who"), 1, now, &mut out));
        assert_eq!(out, b"\x12\x34answer");
        assert!(!packets.get(&query(1, b"what"), 1, now, &mut out));
        assert!(!packets.get(&query(1, b"who"), 2, now, &mut out), "the state has changed");
        packets.put(&query(1, b"who"), 2, b"\0\x01new", ordered);
        assert!(packets.get(&query(7, b"who"), 2, now, &mut out));
        assert_eq!(out, b"\0\x07new");
        for short in [&b""[..], b"a"] {
            packets.put(short, 2, b"ab", ordered);
            assert!(!packets.get(short, 2, now, &mut out));
        }
    }

    #[test]
    fn several_records_have_an_answer_for_each_turn_and_some_end_with_time() {
        let (mut packets, now, mut out) = (Packets::default(), Instant::now(), Vec::new());
        packets.put(&query(3, b"q"), 1, b"..three", Reuse::WhileUnchanged { ordered: false });
        assert!(!packets.get(&query(4, b"q"), 1, now, &mut out), "another order");
        assert!(packets.get(&query(3 + 16, b"q"), 1, now, &mut out));
        let soon = now + Duration::from_secs(1);
        packets.put(&query(3, b"q"), 1, b"..soon", Reuse::Until(soon));
        assert!(packets.get(&query(4, b"q"), 1, now, &mut out));
        assert!(!packets.get(&query(4, b"q"), 1, soon, &mut out));
    }

    #[test]
    fn clients_cannot_fill_the_memory() {
        let mut packets = Packets::default();
        for number in 0..3 * MOST {
            let reuse = Reuse::WhileUnchanged { ordered: true };
            packets.put(&query(0, &number.to_be_bytes()), 1, &[0; LONGEST_ANSWER], reuse);
            assert!(packets.entries.len() <= MOST);
        }
        packets.put(&query(0, &[0; LONGEST_QUERY]), 1, b"..", Reuse::WhileUnchanged { ordered: true });
        assert!(packets.entries.keys().all(|key| key.len() < LONGEST_QUERY));
    }
}
