//! The nf_tables pod table: masquerading of outbound traffic, host ports, and what pods must not send.

use std::net::Ipv4Addr;

use super::{
    BridgeConfig,
    attach::{host_link, pod_mac},
    checksum,
    ipam::{Allocation, Ipam, KeptPort},
};
use ipnet::Ipv4Net;

use crate::nft::{
    Batch, DSTNAT, FILTER, Hook, INPUT, OUTPUT, POSTROUTING, PREROUTING, RAW, Rule, SRCNAT, SetSpec, Value,
    Values, Verdict,
    expr::{Is, Meta, REG, Side},
};

pub(crate) const HOST_PORTS: &str = "host-ports";
pub(crate) const HOST_PORTS_AT: &str = "host-ports-at";

/// protocol . port -> address . port: host ports on all addresses of the node
const ANY: SetSpec =
    SetSpec { name: HOST_PORTS, key_length: 8, values: Values::Bytes(8), dynamic: false, intervals: false };
/// address . protocol . port -> address . port: host ports on one address of the node
const AT: SetSpec = SetSpec {
    name: HOST_PORTS_AT,
    key_length: 12,
    values: Values::Bytes(8),
    dynamic: false,
    intervals: false,
};
/// name of a link . address . MAC: what a pod's link may send
const SENDERS: SetSpec =
    SetSpec { name: "senders", key_length: 28, values: Values::None, dynamic: false, intervals: false };
const HAIRPIN: SetSpec =
    SetSpec { name: "hairpin", key_length: 8, values: Values::None, dynamic: false, intervals: false };

pub(super) fn table_name(config: &BridgeConfig) -> String {
    table_beside(&config.table)
}

/// Returns the name of the pod table of a cluster whose service table is `services`.
pub(crate) fn table_beside(services: &str) -> String {
    format!("{services}-pods")
}

/// Builds the whole table from the allocations.
pub(super) fn build(config: &BridgeConfig, ipam: &Ipam) -> Batch {
    let mut batch = Batch::new(&table_name(config));
    batch.table();
    batch.del_table();
    batch.table();
    for set in [&ANY, &AT, &HAIRPIN, &SENDERS] {
        batch.set(set);
    }
    let group = link_group(&config.bridge);
    // A pod's link sends with the pod's addresses, and no other link sends with those.
    batch.chain("senders", Some(Hook { kind: "filter", hook: PREROUTING, priority: RAW }));
    let of_pods = || Rule::new().group(Meta::InGroup, Is::Equal, group);
    let own = of_pods().meta(REG, Meta::InName).address(REG + 4, Side::Source).source_mac(REG + 5);
    batch.rule("senders", &own.in_set(REG, SENDERS.name).verdict(&Verdict::Accept));
    // Pods of an earlier version are ports of the bridge until the kubelet has connected them again.
    let other = of_pods().link(Meta::InName, Is::Not, &config.bridge);
    batch.rule("senders", &other.verdict(&Verdict::Drop));
    let foreign = Rule::new().group(Meta::InGroup, Is::Not, group).link(Meta::InName, Is::Not, "lo");
    let foreign = foreign.in_range(Side::Source, Is::Equal, config.pod_cidr);
    batch.rule("senders", &foreign.verdict(&Verdict::Drop));
    batch.chain("host-ports", None);
    let at = Rule::new()
        .shown(&[REG + 5])
        .address(REG, Side::Destination)
        .meta(REG + 1, Meta::Protocol)
        .port(REG + 2);
    batch.rule("host-ports", &at.map(REG, AT.name, REG + 4).redirect(REG + 4, REG + 5));
    let any = Rule::new().shown(&[REG + 5]).meta(REG, Meta::Protocol).port(REG + 1);
    batch.rule("host-ports", &any.map(REG, ANY.name, REG + 4).redirect(REG + 4, REG + 5));
    for (chain, hook) in [("prerouting", PREROUTING), ("output", OUTPUT)] {
        // Before services: a pod's host port is the node's own, as a listening program's is.
        batch.chain(chain, Some(Hook { kind: "nat", hook, priority: DSTNAT - 1 }));
        let jump =
            Rule::new().local(Side::Destination, Is::Equal).verdict(&Verdict::Jump("host-ports".into()));
        batch.rule(chain, &jump);
    }
    let loopback = Ipv4Net::new_assert(Ipv4Addr::LOCALHOST, 8);
    batch.chain("postrouting", Some(Hook { kind: "nat", hook: POSTROUTING, priority: SRCNAT }));
    let outside = Rule::new()
        .in_range(Side::Source, Is::Equal, config.pod_cidr)
        .in_range(Side::Destination, Is::Not, config.cluster_cidr)
        .in_range(Side::Destination, Is::Not, config.service_cidr)
        .group(Meta::OutGroup, Is::Not, group);
    batch.rule("postrouting", &outside.masquerade());
    let to_pod = || Rule::new().group(Meta::OutGroup, Is::Equal, group).was_redirected();
    batch.rule("postrouting", &to_pod().in_range(Side::Source, Is::Equal, loopback).masquerade());
    let itself = to_pod().address(REG, Side::Source).address(REG + 1, Side::Destination);
    batch.rule("postrouting", &itself.in_set(REG, HAIRPIN.name).masquerade());
    // `route_localnet` is needed for replies to 127.0.0.1; all other traffic to 127.0.0.0/8 from the bridge
    // is dropped.
    batch.chain("input", Some(Hook { kind: "filter", hook: INPUT, priority: FILTER }));
    let intruder = Rule::new()
        .group(Meta::InGroup, Is::Equal, group)
        .in_range(Side::Destination, Is::Equal, loopback)
        .original_direction();
    batch.rule("input", &intruder.verdict(&Verdict::Drop));
    batch.chain("filter-output", Some(Hook { kind: "filter", hook: OUTPUT, priority: FILTER }));
    let shortcut = Rule::new().group(Meta::OutGroup, Is::Equal, group).icmp_redirect();
    batch.rule("filter-output", &shortcut.verdict(&Verdict::Drop));
    for (address, allocation) in ipam.allocations().filter(|(a, _)| ipam.is_announced(*a)) {
        announce(&mut batch, address, &allocation.ports, true);
        batch.add(HAIRPIN.name, &[hairpin(address)]);
        batch.add(SENDERS.name, &[sender(config, &allocation.sandbox, address)]);
    }
    batch
}

/// Builds the change of one pod's host ports; `known` is true if the table has the pod.
pub(super) fn change(
    config: &BridgeConfig,
    sandbox: &str,
    address: Ipv4Addr,
    old: &[KeptPort],
    new: &[KeptPort],
    known: bool,
) -> Batch {
    let mut batch = Batch::new(&table_name(config));
    if known {
        announce(&mut batch, address, old, false);
    } else {
        batch.add(HAIRPIN.name, &[hairpin(address)]);
        batch.add(SENDERS.name, &[sender(config, sandbox, address)]);
    }
    announce(&mut batch, address, new, true);
    batch
}

/// Builds the removal of a pod.
pub(super) fn withdraw(config: &BridgeConfig, address: Ipv4Addr, allocation: &Allocation) -> Batch {
    let mut batch = Batch::new(&table_name(config));
    announce(&mut batch, address, &allocation.ports, false);
    batch.remove(HAIRPIN.name, &[hairpin(address)]);
    batch.remove(SENDERS.name, &[sender(config, &allocation.sandbox, address)]);
    batch
}

fn sender(config: &BridgeConfig, sandbox: &str, address: Ipv4Addr) -> (Vec<u8>, Value) {
    let mut key = host_link(&config.bridge, sandbox).into_bytes();
    key.resize(16, 0);
    key.extend(address.octets());
    key.extend(pod_mac(address));
    key.extend([0; 2]);
    (key, Value::None)
}

/// Returns the group of a cluster's links on the node.
pub(super) fn link_group(bridge: &str) -> u32 {
    // Positive and not 0, which all other links have.
    let [a, b, c, d, ..] = checksum(format!("{bridge}/links").as_bytes()).to_ne_bytes();
    (u32::from_ne_bytes([a, b, c, d]) & 0x7fff_ffff).max(1)
}

fn hairpin(address: Ipv4Addr) -> (Vec<u8>, Value) {
    ([address.octets(), address.octets()].concat(), Value::None)
}

fn announce(batch: &mut Batch, address: Ipv4Addr, ports: &[KeptPort], add: bool) {
    for port in ports {
        let to = [address.octets(), word(port.container_port)].concat();
        let tail = [[port.protocol, 0, 0, 0], word(port.host_port)].concat();
        let (set, key) = match port.host_ip {
            Some(ip) => (AT.name, [&ip.octets()[..], &tail].concat()),
            None => (ANY.name, tail),
        };
        // The kernel removes a map element only if the given value matches, so a pod cannot remove another
        // pod's port.
        let element = [(key, Value::Bytes(to))];
        if add {
            batch.create(set, &element);
        } else {
            batch.remove(set, &element);
        }
    }
}

/// A port number as an nf_tables register holds it.
fn word(port: u16) -> [u8; 4] {
    let bytes = port.to_be_bytes();
    [bytes[0], bytes[1], 0, 0]
}
