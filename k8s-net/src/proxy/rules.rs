//! The static part of the service table: chains, maps, and the lookup of a packet's endpoint.
//!
//! No service has a chain of its own. A packet's zone, address, protocol and port are looked up in `fronts`,
//! which yields `0 . class . pool . service`. The class (number of endpoints, affinity, masquerading) selects
//! one of a few shared chains. That chain draws a random number, looks `pool . number` up in `backends` and
//! redirects the connection. A changed service is therefore a handful of map elements, whatever the number of
//! services.
//!
//! `nft` (up to 1.0.6 at least) assumes that a map's value has no length, and fails an assertion when a rule
//! uses the value as the first or a later part of a key. It remembers one expression per register, though,
//! and assigns a map's result to the first register alone. So the parts that are used again are never in the
//! first word of a value, and their registers are loaded with a constant before the lookup ([`Rule::shown`]);
//! `nft list ruleset` prints that constant in their place.
use ipnet::Ipv4Net;

use crate::nft::{
    Batch, DSTNAT, FILTER, FORWARD, Hook, INPUT, OUTPUT, POSTROUTING, PREROUTING, Rule, SRCNAT, SetSpec,
    Value, Values, Verdict,
    expr::{Is, Meta, REG, Side},
};

use super::plan::Zone;

/// zone . address . protocol . port -> 0 . class . pool . service
pub(super) const FRONTS: &str = "fronts";
/// pool . number -> address . port . address . port
pub(super) const BACKENDS: &str = "backends";
/// pool . 0 . address . port, of services with affinity
pub(super) const MEMBERS: &str = "members";
/// service . client -> 0 . address . port
pub(super) const AFFINITY: &str = "affinity";
/// address . protocol . port without endpoints
pub(super) const REJECTED: &str = "rejected";
/// protocol . node port without endpoints
pub(super) const REJECTED_PORTS: &str = "rejected-ports";
/// service . network . prefix length: clients that load balancer addresses are open for
pub(super) const SOURCES: &str = "sources";
/// protocol . port of the node itself, on all of its addresses
pub(super) const OWN: &str = "own-ports";
/// address . protocol . port of the node itself
pub(super) const OWN_AT: &str = "own-ports-at";
/// endpoint . endpoint: connections of a pod to itself
pub(super) const HAIRPIN: &str = "hairpin";

const CLASSES: [&str; 5] = ["classes-0", "classes-1", "classes-2", "classes-3", "classes-4"];

const fn set(name: &'static str, key_length: u32, values: Values) -> SetSpec {
    SetSpec { name, key_length, values, dynamic: false, intervals: false }
}

const SETS: [SetSpec; 15] = [
    set(FRONTS, 16, Values::Bytes(16)),
    set(BACKENDS, 8, Values::Bytes(16)),
    set(MEMBERS, 16, Values::None),
    SetSpec { name: AFFINITY, key_length: 8, values: Values::Bytes(12), dynamic: true, intervals: false },
    set(REJECTED, 12, Values::None),
    set(REJECTED_PORTS, 8, Values::None),
    set(SOURCES, 12, Values::None),
    set(OWN, 8, Values::None),
    set(OWN_AT, 12, Values::None),
    set(HAIRPIN, 8, Values::None),
    set(CLASSES[0], 4, Values::Verdicts),
    set(CLASSES[1], 4, Values::Verdicts),
    set(CLASSES[2], 4, Values::Verdicts),
    set(CLASSES[3], 4, Values::Verdicts),
    set(CLASSES[4], 4, Values::Verdicts),
];

/// A lookup during the replacement of its element may, for nanoseconds, see neither the old nor the new one.
/// So it is done twice.
const TRIES: usize = 2;

/// Properties that all services of a shared chain have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Class {
    /// Number of endpoints; 0: packets are dropped.
    pub(super) endpoints: u32,
    pub(super) affinity_ms: Option<u64>,
    pub(super) masquerade: bool,
    /// Lengths of the prefixes from which clients may connect, one bit each; others are dropped. `None`: from
    /// everywhere.
    pub(super) prefixes: Option<u64>,
}

/// Encodes the zone as the first word of a key.
pub(super) fn zone_word(zone: Zone) -> [u8; 4] {
    (zone as u32).to_be_bytes()
}

/// Loads the key of `fronts` into the first four registers.
fn front_key(rule: Rule, zone: Zone) -> Rule {
    let rule = rule.load(REG, &zone_word(zone));
    let rule = match zone {
        Zone::InsidePort | Zone::OutsidePort => rule.load(REG + 1, &[0; 4]),
        Zone::Cluster | Zone::Inside | Zone::Outside => rule.address(REG + 1, Side::Destination),
    };
    rule.meta(REG + 2, Meta::Protocol).port(REG + 3)
}

fn to_class(rule: Rule, zone: Zone) -> Rule {
    front_key(rule.shown(&[REG + 5]), zone)
        .map(REG, FRONTS, REG + 4)
        .dispatch(REG + 5, CLASSES[zone as usize])
}

/// Builds the table without services, replacing an existing one in the same transaction.
pub(super) fn skeleton(batch: &mut Batch, cluster_cidr: Option<Ipv4Net>, service_cidr: Option<Ipv4Net>) {
    batch.table();
    batch.del_table();
    batch.table();
    for set in &SETS {
        batch.set(set);
    }
    for chain in ["services", "inside", "outside", "reject"] {
        batch.chain(chain, None);
    }
    for (chain, hook) in [("prerouting", PREROUTING), ("output", OUTPUT)] {
        batch.chain(chain, Some(Hook { kind: "nat", hook, priority: DSTNAT }));
        batch.rule(chain, &Rule::new().verdict(&Verdict::Jump("services".into())));
    }
    if let (Some(pods), Some(services)) = (cluster_cidr, service_cidr) {
        // Replies to clients outside of the cluster must return through this node.
        let foreign = Rule::new().in_range(Side::Destination, Is::Equal, services);
        batch.rule("services", &foreign.in_range(Side::Source, Is::Not, pods).mark_masquerade());
    }
    for _ in 0..TRIES {
        batch.rule("services", &to_class(Rule::new(), Zone::Cluster));
    }
    let inside = Verdict::Goto("inside".into());
    if let Some(pods) = cluster_cidr {
        batch.rule("services", &Rule::new().in_range(Side::Source, Is::Equal, pods).verdict(&inside));
    }
    batch.rule("services", &Rule::new().local(Side::Source, Is::Equal).verdict(&inside));
    batch.rule("services", &Rule::new().verdict(&Verdict::Goto("outside".into())));
    for (chain, address, port) in
        [("inside", Zone::Inside, Zone::InsidePort), ("outside", Zone::Outside, Zone::OutsidePort)]
    {
        for _ in 0..TRIES {
            batch.rule(chain, &to_class(Rule::new().local(Side::Destination, Is::Equal), port));
        }
        // No service takes a port from the node, or a node port from another service.
        for ports in [OWN, REJECTED_PORTS] {
            let own = Rule::new().local(Side::Destination, Is::Equal).meta(REG, Meta::Protocol).port(REG + 1);
            batch.rule(chain, &own.in_set(REG, ports).verdict(&Verdict::Return));
        }
        let own = Rule::new().address(REG, Side::Destination).meta(REG + 1, Meta::Protocol).port(REG + 2);
        batch.rule(chain, &own.in_set(REG, OWN_AT).verdict(&Verdict::Return));
        for _ in 0..TRIES {
            batch.rule(chain, &to_class(Rule::new(), address));
        }
    }

    batch.chain("postrouting", Some(Hook { kind: "nat", hook: POSTROUTING, priority: SRCNAT }));
    batch.rule("postrouting", &Rule::new().was_redirected().take_masquerade_mark().masquerade());
    let itself = Rule::new().was_redirected().address(REG, Side::Source).address(REG + 1, Side::Destination);
    batch.rule("postrouting", &itself.in_set(REG, HAIRPIN).masquerade());

    // A packet that still has a service's address here was not redirected. Addresses of the node itself (the
    // cluster DNS) are exempt.
    let rejected = || {
        let key = Rule::new().address(REG + 1, Side::Destination).meta(REG + 2, Meta::Protocol).port(REG + 3);
        key.in_set(REG + 1, REJECTED).local(Side::Destination, Is::Not)
    };
    refuse(batch, "reject", rejected);
    if let Some(services) = service_cidr {
        refuse(batch, "reject", || {
            Rule::new().in_range(Side::Destination, Is::Equal, services).local(Side::Destination, Is::Not)
        });
    }
    for (chain, hook) in [("filter-forward", FORWARD), ("filter-output", OUTPUT)] {
        batch.chain(chain, Some(Hook { kind: "filter", hook, priority: FILTER }));
        batch.rule(chain, &Rule::new().verdict(&Verdict::Jump("reject".into())));
    }
    batch.chain("filter-input", Some(Hook { kind: "filter", hook: INPUT, priority: FILTER }));
    refuse(batch, "filter-input", || {
        let port = Rule::new().meta(REG + 1, Meta::Protocol).port(REG + 2).in_set(REG + 1, REJECTED_PORTS);
        port.local(Side::Destination, Is::Equal)
    });
}

/// Rejects packets that match the condition: TCP with a reset, others with ICMP port unreachable.
fn refuse(batch: &mut Batch, chain: &str, condition: impl Fn() -> Rule) {
    batch.rule(chain, &condition().reset());
    batch.rule(chain, &condition().reject());
}

fn class_chain(zone: Zone, id: u32) -> String {
    format!("zone-{}-class-{id}", zone as u32)
}

/// Looks the packet up in `fronts` again. Registers from the fifth on: 0, class, pool, service.
fn found(zone: Zone, shown: &[u32]) -> Rule {
    front_key(Rule::new().shown(&[REG + 6, REG + 7, REG + 9]).shown(shown), zone).map(REG, FRONTS, REG + 4)
}

/// Adds the chain of a class for a zone and the map element that jumps to it. `open` is the number of the
/// same class without restriction of its clients, which has a chain already; unused if this one has none.
pub(super) fn add_class(batch: &mut Batch, zone: Zone, id: u32, class: Class, open: u32) {
    let chain = class_chain(zone, id);
    batch.chain(&chain, None);
    match class.prefixes {
        None => choose(batch, &chain, zone, class),
        Some(prefixes) => {
            for length in (0..=32u8).filter(|length| prefixes & (1 << length) != 0) {
                // 7: service, 8: network, 9: length
                let key = found(zone, &[]).source_prefix(REG + 8, length).load(REG + 9, &[0, 0, 0, length]);
                let goto = Verdict::Goto(class_chain(zone, open));
                batch.rule(&chain, &key.in_set(REG + 7, SOURCES).verdict(&goto));
            }
            batch.rule(&chain, &Rule::new().verdict(&Verdict::Drop));
        }
    }
    let key = id.to_ne_bytes().to_vec();
    batch.add(CLASSES[zone as usize], &[(key, Value::Verdict(Verdict::Goto(chain)))]);
}

/// Adds the rules that choose an endpoint.
fn choose(batch: &mut Batch, chain: &str, zone: Zone, class: Class) {
    if class.endpoints == 0 {
        batch.rule(chain, &Rule::new().verdict(&Verdict::Drop));
        return;
    }
    if class.masquerade {
        batch.rule(chain, &Rule::new().mark_masquerade());
    }
    match class.affinity_ms {
        None => {
            // 6: pool, 7: number -> 8: address, 9: port
            let rule = found(zone, &[]).random(REG + 7, class.endpoints).map(REG + 6, BACKENDS, REG + 8);
            batch.rule(chain, &rule.redirect(REG + 8, REG + 9));
        }
        Some(timeout) => {
            // 7: service, 8: client -> 12: 0, 13: address, 14: port; 11: pool, still a member?
            let known = found(zone, &[REG + 11, REG + 13, REG + 14])
                .address(REG + 8, Side::Source)
                .map(REG, FRONTS, REG + 9)
                .map(REG + 7, AFFINITY, REG + 12)
                .load(REG + 12, &[0; 4])
                .in_set(REG + 11, MEMBERS)
                .remember(AFFINITY, REG + 7, REG + 12, timeout);
            batch.rule(chain, &known.redirect(REG + 13, REG + 14));
            // 6: pool, 7: number -> 9: 0, 10: address, 11: port; 3: service, 4: client. A stale affinity
            // entry is deleted first: it would keep its old value.
            let fresh = found(zone, &[REG + 10, REG + 11])
                .map(REG, FRONTS, REG)
                .address(REG + 4, Side::Source)
                .random(REG + 7, class.endpoints)
                .map(REG + 6, BACKENDS, REG + 8)
                .load(REG + 9, &[0; 4])
                .forget(AFFINITY, REG + 3, REG + 9)
                .remember(AFFINITY, REG + 3, REG + 9, timeout);
            batch.rule(chain, &fresh.redirect(REG + 10, REG + 11));
        }
    }
    // The service may have changed to fewer endpoints since this chain was selected. Number 0 exists in every
    // pool.
    let first = found(zone, &[]).load(REG + 7, &[0; 4]).map(REG + 6, BACKENDS, REG + 8);
    batch.rule(chain, &first.redirect(REG + 8, REG + 9));
}
