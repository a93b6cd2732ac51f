//! The installed proxy state, and the smallest transaction to the desired one.
//!
//! Guarantee: a packet whose class was looked up before a change still finds its endpoint after it. A changed
//! pool gets a new number, and the elements of the old one are removed by a later transaction
//! ([`Table::collect`]).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use k8s_core::meta::ObjectKey;

use super::{
    own_ports::PortUse,
    plan::{Backend, PortPlan, Reach, Zone},
    rules::{self, Class},
};
use ipnet::Ipv4Net;

use crate::nft::{Batch, Value};

/// Time that elements of a replaced pool stay; no packet is in flight that long.
pub(super) const REST: Duration = Duration::from_secs(1);

type Elements = BTreeMap<(&'static str, Vec<u8>), Value>;

/// Zone, address, protocol and port at which one service is reached.
type Place = (Zone, Ipv4Addr, u8, u16);

/// Endpoints of a port.
#[derive(Debug)]
struct Pool {
    number: u32,
    /// Clients stay with their endpoint.
    affine: bool,
    backends: Box<[Backend]>,
}

#[derive(Debug, Default)]
struct Installed {
    /// By port name, protocol and reach.
    pools: BTreeMap<(String, u8, Reach), Pool>,
    /// By port name and protocol: stable while endpoints change, because affinity entries refer to it.
    ids: BTreeMap<(String, u8), u32>,
    /// Places at which the service is reached, or refused while it has no endpoints.
    places: Vec<Place>,
    /// Elements of the maps that packets look up first.
    shown: Elements,
}

impl Installed {
    /// Returns the elements of `backends` and `members`. They are computed because they would be most of a
    /// service's memory.
    fn kept(&self) -> Elements {
        let mut kept = Elements::new();
        for Pool { number: pool, affine, backends } in self.pools.values() {
            for (number, backend) in (0u32..).zip(backends) {
                let slot = [pool.to_ne_bytes(), number.to_ne_bytes()].concat();
                let twice = [endpoint(backend), endpoint(backend)].concat();
                kept.insert((rules::BACKENDS, slot), Value::Bytes(twice));
                if *affine {
                    let member = [&pool.to_ne_bytes()[..], &[0; 4], &endpoint(backend)].concat();
                    kept.insert((rules::MEMBERS, member), Value::None);
                }
            }
        }
        kept
    }
}

/// The table's content after the last transaction.
#[derive(Debug)]
pub(super) struct Table {
    name: String,
    cluster_cidr: Option<Ipv4Net>,
    service_cidr: Option<Ipv4Net>,
    services: HashMap<ObjectKey, Installed>,
    owners: HashMap<Place, ObjectKey>,
    /// Services that want an address or port which another service holds.
    contested: HashSet<ObjectKey>,
    hairpins: HashMap<Ipv4Addr, u32>,
    classes: HashMap<Class, u32>,
    reachable: HashSet<(Zone, u32)>,
    garbage: VecDeque<(Instant, Elements)>,
    /// Ports of the node itself.
    own: BTreeSet<PortUse>,
    next_id: u32,
}

/// An address and port of a service that another service holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contest {
    pub(super) service: ObjectKey,
    pub(super) holder: ObjectKey,
    pub(super) address: Ipv4Addr,
    pub(super) protocol: u8,
    pub(super) port: u16,
}

fn word(port: u16) -> [u8; 4] {
    let bytes = port.to_be_bytes();
    [bytes[0], bytes[1], 0, 0]
}

fn endpoint(backend: &Backend) -> Vec<u8> {
    [backend.address.octets(), word(backend.port)].concat()
}

impl Table {
    pub(super) fn new(name: &str, cluster_cidr: Option<Ipv4Net>, service_cidr: Option<Ipv4Net>) -> Self {
        Table {
            name: name.to_owned(),
            cluster_cidr,
            service_cidr,
            services: HashMap::new(),
            owners: HashMap::new(),
            contested: HashSet::new(),
            hairpins: HashMap::new(),
            classes: HashMap::new(),
            reachable: HashSet::new(),
            garbage: VecDeque::new(),
            own: BTreeSet::new(),
            next_id: 0,
        }
    }

    /// Starts a batch that recreates the table; call [`Table::change`] for all services next.
    pub(super) fn rebuild(&mut self) -> Batch {
        let (name, pods, services) = (self.name.clone(), self.cluster_cidr, self.service_cidr);
        let own = std::mem::take(&mut self.own);
        *self = Table::new(&name, pods, services);
        let mut batch = Batch::new(&self.name);
        rules::skeleton(&mut batch, pods, services);
        self.set_own(&mut batch, &own);
        batch
    }

    /// Adds the changes that make `ports` the ports of the node itself.
    pub(super) fn set_own(&mut self, batch: &mut Batch, ports: &BTreeSet<PortUse>) {
        let elements = |ports: &mut dyn Iterator<Item = &PortUse>| -> Elements {
            ports.map(|port| (own_key(port), Value::None)).collect()
        };
        let gone = elements(&mut self.own.difference(ports));
        emit(batch, &gone, |batch, set, elements| batch.remove(set, elements));
        let new = elements(&mut ports.difference(&self.own));
        emit(batch, &new, |batch, set, elements| batch.add(set, elements));
        self.own.clone_from(ports);
    }

    /// Returns the ports of the node itself.
    pub(super) fn own(&self) -> &BTreeSet<PortUse> {
        &self.own
    }

    /// Starts a batch for incremental changes.
    pub(super) fn batch(&self) -> Batch {
        Batch::new(&self.name)
    }

    fn id(&mut self) -> u32 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    /// Returns services to plan again because an address or port that they want may be free now.
    pub(super) fn take_contested(&mut self) -> Vec<ObjectKey> {
        self.contested.drain().collect()
    }

    /// Returns the time at which the oldest garbage may be removed.
    pub(super) fn next_collection(&self) -> Option<Instant> {
        self.garbage.front().map(|(since, _)| *since + REST)
    }

    /// Removes garbage older than [`REST`].
    pub(super) fn collect(&mut self, batch: &mut Batch, now: Instant) {
        while let Some((_, elements)) = self.garbage.pop_front_if(|(since, _)| *since + REST <= now) {
            emit(batch, &elements, |batch, set, elements| batch.remove(set, elements));
        }
    }

    /// Adds the changes that bring services to their plans; a plan without ports removes the service. Of two
    /// services that want one address and port, the earlier one in `plans` gets it. Returns the removed
    /// endpoints with their protocol, and the external addresses that a service did not get.
    pub(super) fn change(
        &mut self,
        batch: &mut Batch,
        plans: Vec<(ObjectKey, Vec<PortPlan>)>,
        now: Instant,
    ) -> (Vec<(u8, Backend)>, Vec<Contest>) {
        let mut contests = Vec::new();
        let (mut add, mut remove, mut garbage) = (Elements::new(), Elements::new(), Elements::new());
        let mut left = Vec::new();
        // Removals come first, so that another service of the same batch can take a freed address.
        let plans: Vec<_> = plans
            .into_iter()
            .map(|(key, ports)| {
                let old = self.services.remove(&key).unwrap_or_default();
                for place in &old.places {
                    self.owners.remove(place);
                }
                (key, ports, old)
            })
            .collect();
        for (key, ports, old) in plans {
            let new = self.install(batch, &key, &ports, &old, &mut contests);
            for (element, value) in &old.shown {
                if new.shown.get(element) != Some(value) {
                    remove.insert(element.clone(), value.clone());
                }
            }
            for (element, value) in &new.shown {
                if old.shown.get(element) != Some(value) {
                    add.insert(element.clone(), value.clone());
                }
            }
            let (before, after) = (old.kept(), new.kept());
            garbage.extend(difference(&before, &after));
            let wanted = difference(&after, &before);
            self.keep(&old, &wanted);
            add.extend(wanted);
            for (slot, pool) in &old.pools {
                // Sorted.
                let now_there = new.pools.get(slot).map(|pool| &pool.backends[..]).unwrap_or_default();
                let gone = pool.backends.iter().filter(|b| now_there.binary_search(b).is_err());
                left.extend(gone.map(|b| (slot.1, *b)));
            }
            self.count_hairpins(&old, &new, &mut add, &mut remove);
            if !ports.is_empty() {
                self.services.insert(key, new);
            }
        }
        // An element that one service released and another one took with the same value stays.
        let same: Vec<_> =
            remove.iter().filter(|(k, v)| add.get(*k) == Some(*v)).map(|(k, _)| k.clone()).collect();
        for key in same {
            remove.remove(&key);
            add.remove(&key);
        }
        emit(batch, &remove, |batch, set, elements| batch.remove(set, elements));
        emit(batch, &add, |batch, set, elements| batch.add(set, elements));
        if !garbage.is_empty() {
            self.garbage.push_back((now, garbage));
        }
        (left, contests)
    }

    fn install(
        &mut self,
        batch: &mut Batch,
        key: &ObjectKey,
        ports: &[PortPlan],
        old: &Installed,
        contests: &mut Vec<Contest>,
    ) -> Installed {
        let mut new = Installed::default();
        for port in ports {
            let name = (port.name.clone(), port.protocol);
            let id = old.ids.get(&name).copied().unwrap_or_else(|| self.id());
            for front in &port.fronts {
                let place = (front.zone, front.address, port.protocol, front.port);
                if let Some(holder) = self.owners.get(&place).filter(|owner| *owner != key) {
                    self.contested.insert(key.clone());
                    if front.zone == Zone::Outside {
                        contests.push(Contest {
                            service: key.clone(),
                            holder: holder.clone(),
                            address: front.address,
                            protocol: port.protocol,
                            port: front.port,
                        });
                    }
                    continue;
                }
                self.owners.insert(place, key.clone());
                new.places.push(place);
                let backends = port.backends(front.reach);
                let (element, value) = if backends.is_empty() && front.reach == Reach::Cluster {
                    (reject_key(front.zone, front.address, port.protocol, front.port), Value::None)
                } else {
                    let slot = (port.name.clone(), port.protocol, front.reach);
                    let pool = match (new.pools.get(&slot), old.pools.get(&slot)) {
                        (Some(pool), _) => pool.number,
                        (None, Some(pool)) if *pool.backends == *backends => pool.number,
                        (None, _) => self.id(),
                    };
                    let affine = port.affinity_ms.is_some();
                    new.pools.entry(slot).or_insert_with(|| Pool {
                        number: pool,
                        affine,
                        backends: backends.into(),
                    });
                    let sources = front.sources(port).filter(|_| !backends.is_empty());
                    for network in sources.unwrap_or_default() {
                        let octets = network.network().octets();
                        let key = [id.to_ne_bytes(), octets, [0, 0, 0, network.prefix_len()]].concat();
                        new.shown.insert((rules::SOURCES, key), Value::None);
                    }
                    let class = Class {
                        endpoints: u32::try_from(backends.len()).unwrap_or(u32::MAX),
                        affinity_ms: port.affinity_ms,
                        masquerade: front.masquerade,
                        prefixes: sources.map(|s| s.iter().fold(0, |bits, n| bits | 1 << n.prefix_len())),
                    };
                    let class = self.class(batch, front.zone, class);
                    let key = [
                        rules::zone_word(front.zone),
                        front.address.octets(),
                        [port.protocol, 0, 0, 0],
                        word(front.port),
                    ];
                    let value = [0, class, pool, id].map(u32::to_ne_bytes).concat();
                    ((rules::FRONTS, key.concat()), Value::Bytes(value))
                };
                new.shown.insert(element, value);
            }
            new.ids.insert(name, id);
        }
        new
    }

    /// Takes elements that a service wants again out of the garbage: those of a pool that it kept, whose
    /// affinity was off for less than [`REST`].
    fn keep(&mut self, old: &Installed, wanted: &Elements) {
        let kept: Vec<[u8; 4]> = old.pools.values().map(|pool| pool.number.to_ne_bytes()).collect();
        for element in wanted.keys().filter(|(_, key)| kept.iter().any(|pool| key.starts_with(pool))) {
            for (_, elements) in &mut self.garbage {
                elements.remove(element);
            }
        }
    }

    fn class(&mut self, batch: &mut Batch, zone: Zone, class: Class) -> u32 {
        let id = match self.classes.get(&class) {
            Some(id) => *id,
            None => {
                let id = self.id();
                self.classes.insert(class, id);
                id
            }
        };
        // The chain that a restricted one leads to comes first.
        let open = class.prefixes.map(|_| self.class(batch, zone, Class { prefixes: None, ..class }));
        if self.reachable.insert((zone, id)) {
            rules::add_class(batch, zone, id, class, open.unwrap_or_default());
        }
        id
    }

    fn count_hairpins(
        &mut self,
        old: &Installed,
        new: &Installed,
        add: &mut Elements,
        remove: &mut Elements,
    ) {
        let addresses = |installed: &Installed| -> HashSet<Ipv4Addr> {
            installed.pools.values().flat_map(|pool| pool.backends.iter().map(|b| b.address)).collect()
        };
        let (before, after) = (addresses(old), addresses(new));
        for address in after.difference(&before) {
            let count = self.hairpins.entry(*address).or_default();
            *count += 1;
            if *count == 1 {
                add.insert(hairpin(*address), Value::None);
            }
        }
        for address in before.difference(&after) {
            let count = self.hairpins.entry(*address).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.hairpins.remove(address);
                // The element was added earlier in the same batch; the two cancel out when the batch is
                // assembled.
                remove.insert(hairpin(*address), Value::None);
            }
        }
    }
}

fn hairpin(address: Ipv4Addr) -> (&'static str, Vec<u8>) {
    (rules::HAIRPIN, [address.octets(), address.octets()].concat())
}

fn own_key(port: &PortUse) -> (&'static str, Vec<u8>) {
    let tail = [[port.protocol, 0, 0, 0], word(port.port)].concat();
    match port.address {
        None => (rules::OWN, tail),
        Some(address) => (rules::OWN_AT, [&address.octets()[..], &tail].concat()),
    }
}

fn reject_key(zone: Zone, address: Ipv4Addr, protocol: u8, port: u16) -> (&'static str, Vec<u8>) {
    let tail = [[protocol, 0, 0, 0], word(port)].concat();
    match zone {
        Zone::InsidePort | Zone::OutsidePort => (rules::REJECTED_PORTS, tail),
        Zone::Cluster | Zone::Inside | Zone::Outside => {
            (rules::REJECTED, [&address.octets()[..], &tail].concat())
        }
    }
}

fn difference(of: &Elements, without: &Elements) -> Elements {
    of.iter().filter(|(key, _)| !without.contains_key(*key)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// Calls `each` with the elements of one set after another.
fn emit(
    batch: &mut Batch,
    elements: &Elements,
    mut each: impl FnMut(&mut Batch, &'static str, &[(Vec<u8>, Value)]),
) {
    let mut current: Vec<(Vec<u8>, Value)> = Vec::new();
    let mut name = None;
    for ((set, key), value) in elements {
        if name.is_some_and(|n| n != *set) {
            if let Some(name) = name {
                each(batch, name, &current);
            }
            current.clear();
        }
        name = Some(*set);
        current.push((key.clone(), value.clone()));
    }
    if let Some(name) = name {
        each(batch, name, &current);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::plan::Front, *};
    use proptest::prelude::*;

    fn plan(backends: u8, affinity: bool, port: u16) -> PortPlan {
        let all: Vec<_> = (0..8)
            .filter(|n| backends & (1 << n) != 0)
            .map(|n| Backend { address: Ipv4Addr::new(10, 42, 0, n), port: 80 })
            .collect();
        let front = Front {
            zone: Zone::Cluster,
            address: Ipv4Addr::new(10, 43, 0, 1),
            port,
            reach: Reach::Cluster,
            masquerade: false,
            limited: false,
        };
        PortPlan {
            name: format!("p{port}"),
            protocol: 6,
            affinity_ms: affinity.then_some(1000),
            sources: None,
            local: all.clone(),
            all,
            fronts: vec![front],
        }
    }

    proptest! {
        /// The kernel refuses to remove an element that is not there, and a service needs all of its own.
        #[test]
        fn garbage_is_what_no_service_has_and_is_removed_once(
            steps in prop::collection::vec((0..3u8, 0..16u8, any::<bool>(), 0..1500u64, 1..3u16), 1..40),
        ) {
            let mut table = Table::new("t", None, None);
            let mut now = Instant::now();
            for (service, backends, affinity, wait, ports) in steps {
                now += Duration::from_millis(wait);
                let mut batch = table.batch();
                table.collect(&mut batch, now);
                let key = ObjectKey::new("demo", &format!("s{service}"));
                let ports = (1..=ports).filter(|_| backends != 15).map(|n| plan(backends, affinity, n));
                table.change(&mut batch, vec![(key, ports.collect())], now);
                let mut seen = HashSet::new();
                let garbage = table.garbage.iter().flat_map(|(_, elements)| elements.keys().cloned());
                let kept = table.services.values().flat_map(|installed| installed.kept().into_keys());
                for element in garbage.chain(kept) {
                    prop_assert!(seen.insert(element.clone()), "{element:?} is there twice");
                }
            }
        }
    }
}
