//! The static part of the policy table: chains, maps, and the lookups of a packet.
//!
//! Only the first packet of a connection is looked up. A pod's profile, its peer's class and their port set
//! are three lookups in hash tables, the port one in a tree; no number of policies or pods adds a rule. The
//! addresses are those after the translation of services, and the source is that before masquerading.
//!
//! Chains decide about forwarded packets (`forward`) and about those from pods to the node (`input`). What
//! the node sends to its pods is not looked at.
//!
//! A map's values begin with a zero word, and registers are loaded before lookups, for the sake of `nft`: see
//! `proxy::rules`.

use crate::nft::{
    Batch, FILTER, FORWARD, Hook, INPUT, Rule, SetSpec, Value, Values, Verdict,
    expr::{Meta, REG, Side},
    range,
};

use super::{
    elements::{Delta, Key},
    parse::Direction,
};

/// address -> 0 . profile
const INGRESS: &str = "ingress";
/// address -> 0 . profile
const EGRESS: &str = "egress";
/// address . address of isolated pods
const OWN: &str = "own";
/// address of a pod -> 0 . class
const PEERS: &str = "peers";
/// range of (address . 0) -> 0 . class
const BLOCKS: &str = "blocks";
/// class . 0 . profile -> 0 . port set
const ALLOW: &str = "allow";
/// profile -> 0 . port set
const ANY: &str = "any";
/// range of (port set . protocol . port)
const PORTS: &str = "ports";
/// Addresses of pods whose policies are not known yet.
pub(super) const FRESH: &str = "fresh";

const fn set(name: &'static str, key_length: u32, values: Values, intervals: bool) -> SetSpec {
    SetSpec { name, key_length, values, dynamic: false, intervals }
}

const ID: Values = Values::Bytes(8);

const SETS: [SetSpec; 9] = [
    set(INGRESS, 4, ID, false),
    set(EGRESS, 4, ID, false),
    set(OWN, 8, Values::None, false),
    set(PEERS, 4, ID, false),
    set(BLOCKS, 8, ID, true),
    set(ALLOW, 12, ID, false),
    set(ANY, 4, ID, false),
    set(PORTS, 12, Values::None, true),
    set(FRESH, 4, Values::None, false),
];

/// A lookup during the replacement of its element may, for nanoseconds, see neither the old nor the new one.
/// So it is done twice.
const TRIES: usize = 2;

/// Builds the table without policies, replacing an existing one in the same transaction.
pub(super) fn skeleton(batch: &mut Batch) {
    batch.table();
    batch.del_table();
    batch.table();
    for set in &SETS {
        batch.set(set);
    }
    for direction in [Direction::Ingress, Direction::Egress] {
        decide(batch, direction);
    }
    for (chain, hook) in [("forward", FORWARD), ("input", INPUT)] {
        batch.chain(chain, Some(Hook { kind: "filter", hook, priority: FILTER }));
        batch.rule(chain, &Rule::new().established().verdict(&Verdict::Accept));
        let fresh = |side| Rule::new().address(REG, side).in_set(REG, FRESH).verdict(&Verdict::Drop);
        batch.rule(chain, &fresh(Side::Source));
        if hook == FORWARD {
            batch.rule(chain, &fresh(Side::Destination));
            let own = Rule::new().address(REG, Side::Source).address(REG + 1, Side::Destination);
            batch.rule(chain, &own.in_set(REG, OWN).verdict(&Verdict::Accept));
        }
        // A connection that was cut must not begin anew from the other end.
        for side in [Side::Source, Side::Destination] {
            let late = Rule::new().not_first_of_tcp().address(REG, side).address(REG + 1, side);
            batch.rule(chain, &late.in_set(REG, OWN).verdict(&Verdict::Drop));
        }
        for _ in 0..TRIES {
            batch.rule(chain, &isolated(Direction::Egress));
        }
        if hook == FORWARD {
            for _ in 0..TRIES {
                batch.rule(chain, &isolated(Direction::Ingress));
            }
        }
    }
}

/// Map of profiles, the pod's side of a packet, and its peer's.
fn sides(direction: Direction) -> (&'static str, Side, Side) {
    match direction {
        Direction::Ingress => (INGRESS, Side::Destination, Side::Source),
        Direction::Egress => (EGRESS, Side::Source, Side::Destination),
    }
}

fn chain(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "to-pod",
        Direction::Egress => "from-pod",
    }
}

fn isolated(direction: Direction) -> Rule {
    let (profiles, pod, _) = sides(direction);
    let jump = Verdict::Jump(chain(direction).into());
    Rule::new().address(REG, pod).map(REG, profiles, REG + 1).verdict(&jump)
}

/// Adds the chain that returns if the packet is allowed for a direction, and else drops it.
///
/// Registers: 9 key, 1: 0, 2: class, 3: 0, 4: profile, 5: 0, 6: port set, 7: protocol, 8: port.
fn decide(batch: &mut Batch, direction: Direction) {
    let (profiles, pod, peer) = sides(direction);
    let name = chain(direction);
    batch.chain(name, None);
    let shown = || Rule::new().shown(&[REG + 2, REG + 4, REG + 6]);
    let profile = |rule: Rule| rule.address(REG + 9, pod).map(REG + 9, profiles, REG + 3);
    let port = |rule: Rule| {
        let rule = rule.meta(REG + 7, Meta::Protocol).port(REG + 8).in_set(REG + 6, PORTS);
        rule.verdict(&Verdict::Return)
    };
    for _ in 0..TRIES {
        let class = shown().address(REG + 9, peer).map(REG + 9, PEERS, REG + 1);
        batch.rule(name, &port(profile(class).load(REG + 3, &[0; 4]).map(REG + 2, ALLOW, REG + 5)));
        let class = shown().address(REG + 9, peer).load(REG + 10, &[0; 4]).map(REG + 9, BLOCKS, REG + 1);
        batch.rule(name, &port(profile(class).load(REG + 3, &[0; 4]).map(REG + 2, ALLOW, REG + 5)));
        batch.rule(name, &port(profile(shown()).map(REG + 4, ANY, REG + 5)));
    }
    batch.rule(name, &Rule::new().verdict(&Verdict::Drop));
}

fn id(value: u32) -> Value {
    Value::Bytes([[0; 4], value.to_be_bytes()].concat())
}

/// Returns the set of an element and its parts.
fn encode(key: Key, value: u32) -> (&'static str, Vec<(Vec<u8>, Value)>) {
    let one = |key: Vec<u8>, value| vec![(key, value)];
    match key {
        Key::Ingress(address) => (INGRESS, one(address.octets().to_vec(), id(value))),
        Key::Egress(address) => (EGRESS, one(address.octets().to_vec(), id(value))),
        Key::Own(address) => (OWN, one([address.octets(), address.octets()].concat(), Value::None)),
        Key::Peer(address) => (PEERS, one(address.octets().to_vec(), id(value))),
        Key::Block(first, last) => {
            let key = |address: std::net::Ipv4Addr| [address.octets(), [0; 4]].concat();
            (BLOCKS, range(key(first), key(last), id(value)).into())
        }
        Key::Allow(profile, class) => {
            (ALLOW, one([class.to_be_bytes(), [0; 4], profile.to_be_bytes()].concat(), id(value)))
        }
        Key::Any(profile) => (ANY, one(profile.to_be_bytes().to_vec(), id(value))),
        Key::Ports(set, span) => {
            let key = |protocol: u8, port: u16| {
                let [high, low] = port.to_be_bytes();
                [set.to_be_bytes(), [protocol, 0, 0, 0], [high, low, 0, 0]].concat()
            };
            let (first, last) = match span {
                None => (key(0, 0), key(u8::MAX, u16::MAX)),
                Some(span) => (key(span.protocol, span.first), key(span.protocol, span.last)),
            };
            (PORTS, range(first, last, Value::None).into())
        }
    }
}

/// Adds changes to a transaction, the removals first.
pub(super) fn change(batch: &mut Batch, delta: &Delta) {
    by_set(&delta.remove, |set, elements| batch.remove(set, elements));
    by_set(&delta.add, |set, elements| batch.create(set, elements));
}

/// Calls `each` for the elements of each set. They are sorted by set.
fn by_set(all: &[(Key, u32)], mut each: impl FnMut(&str, &[(Vec<u8>, Value)])) {
    let (mut current, mut elements) = ("", Vec::new());
    for (key, value) in all {
        let (set, parts) = encode(*key, *value);
        if set != current && !elements.is_empty() {
            each(current, &elements);
            elements.clear();
        }
        current = set;
        elements.extend(parts);
    }
    if !elements.is_empty() {
        each(current, &elements);
    }
}

/// Returns the element of a fresh pod's address.
pub(super) fn fresh(address: std::net::Ipv4Addr) -> [(Vec<u8>, Value); 1] {
    [(address.octets().to_vec(), Value::None)]
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::policy::{plan::Plan, ports::Span};

    /// A socket sends 64 MiB at once, and more is refused as a whole.
    #[test]
    fn a_transaction_of_the_whole_budget_fits_in_one_message() {
        let address = Ipv4Addr::BROADCAST;
        let span = Span { protocol: 6, first: 1, last: 2 };
        let keys = [
            Key::Ingress(address),
            Key::Egress(address),
            Key::Own(address),
            Key::Peer(address),
            Key::Block(Ipv4Addr::UNSPECIFIED, address),
            Key::Allow(1, 2),
            Key::Any(1),
            Key::Ports(1, Some(span)),
        ];
        // Key and value are attributes within others, of 4 bytes each.
        let size = |(key, value): (Vec<u8>, Value)| match value {
            Value::Bytes(bytes) => 12 + key.len() + 8 + bytes.len(),
            _ => 12 + key.len() + 8,
        };
        let sizes = keys.map(|key| encode(key, 1).1.into_iter().map(size).sum::<usize>());
        let largest = sizes.into_iter().max().expect("some");
        // All are removed and as many are added; a tenth is for the heads of messages.
        let total = 2 * Plan::default().most() * largest;
        assert!(total + total / 10 <= 64 << 20, "{total} bytes, {sizes:?}");
    }
}
