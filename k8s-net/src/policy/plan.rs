//! The plan: policies, namespaces and pods in, the content of the policy table out. Pure.
//!
//! Each change costs what it touches: a pod is compared with the selectors, a policy with the pods. Nothing
//! is computed anew for the others.
//!
//! A namespace that is not known matches no namespace selector, so nothing is allowed by mistake.

mod budget;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::Ipv4Addr,
};

use k8s_core::meta::{ObjectKey, selector::LabelSelector};

use self::budget::Budget;
use super::{
    blocks,
    elements::{Delta, Elements, Key},
    facts::PodFacts,
    pairs::{BlockId, Class, GroupId, Pairs, Profile},
    parse::{Block, Direction, Group, Namespaces, Parsed, Peer, Rule},
    ports::Ports,
};

/// A rule whose peers are numbers.
#[derive(Debug)]
struct Numbered {
    rule: Rule,
    /// `None`: everyone.
    peers: Option<(Vec<GroupId>, Vec<BlockId>)>,
}

#[derive(Debug)]
struct PolicyState {
    parsed: Parsed,
    ingress: Option<Vec<Numbered>>,
    egress: Option<Vec<Numbered>>,
}

#[derive(Debug, Default)]
struct PodState {
    facts: PodFacts,
    groups: BTreeSet<GroupId>,
    class: Option<u32>,
    ingress: Option<u32>,
    egress: Option<u32>,
    /// The addresses that are its own: no other pod has them.
    held: Vec<Ipv4Addr>,
}

#[derive(Debug)]
struct GroupState {
    group: Group,
    users: usize,
}

/// The plan. See the module.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    namespaces: HashMap<String, BTreeMap<String, String>>,
    policies: BTreeMap<ObjectKey, PolicyState>,
    pods: BTreeMap<ObjectKey, PodState>,
    /// Pods that claim an address; the last one holds it.
    claims: HashMap<Ipv4Addr, Vec<ObjectKey>>,
    groups: BTreeMap<GroupId, GroupState>,
    group_ids: HashMap<String, GroupId>,
    blocks: BTreeMap<BlockId, Block>,
    block_ids: HashMap<Block, (BlockId, usize)>,
    /// First and last address to class.
    intervals: BTreeMap<(Ipv4Addr, Ipv4Addr), u32>,
    blocks_changed: bool,
    pairs: Pairs,
    elements: Elements,
    arrivals: Vec<Ipv4Addr>,
    budget: Budget,
}

/// The objects of a namespace.
fn within<'a, T>(
    all: &'a BTreeMap<ObjectKey, T>,
    namespace: &'a str,
) -> impl Iterator<Item = (&'a ObjectKey, &'a T)> {
    all.range(ObjectKey::new(namespace, "")..).take_while(move |(key, _)| key.namespace == namespace)
}

fn selects(selector: &LabelSelector, facts: &PodFacts) -> bool {
    selector.matches(Some(&facts.labels))
}

impl Plan {
    /// Sets a namespace's labels. `None`: it is gone.
    pub(crate) fn set_namespace(&mut self, name: &str, labels: Option<BTreeMap<String, String>>) {
        if self.namespaces.get(name) == labels.as_ref() {
            return;
        }
        match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels),
            None => self.namespaces.remove(name),
        };
        let pods: Vec<ObjectKey> = within(&self.pods, name).map(|(key, _)| key.clone()).collect();
        for pod in pods {
            self.regroup(&pod);
            self.settle(&pod);
        }
        self.close_excess();
    }

    /// Sets a pod. `None`: it is gone, or policies are not about it.
    pub(crate) fn set_pod(&mut self, key: &ObjectKey, facts: Option<PodFacts>) {
        match facts {
            Some(facts) => {
                if self.pods.get(key).is_some_and(|pod| pod.facts == facts) {
                    return;
                }
                let before = self.pods.get(key).map(|pod| pod.facts.addresses.clone()).unwrap_or_default();
                let gone: Vec<_> = before.iter().filter(|a| !facts.addresses.contains(a)).copied().collect();
                let new: Vec<_> = facts.addresses.iter().filter(|a| !before.contains(a)).copied().collect();
                self.pods.entry(key.clone()).or_default().facts = facts;
                self.regroup(key);
                let mut others = self.unclaim(key, &gone);
                for address in new {
                    let claims = self.claims.entry(address).or_default();
                    others.extend(claims.last().cloned());
                    claims.push(key.clone());
                }
                // The former holder lets an address go before the new one takes it.
                for other in others {
                    self.settle(&other);
                }
                self.settle(key);
            }
            None => {
                let Some(pod) = self.pods.get_mut(key) else { return };
                let addresses = std::mem::take(&mut pod.facts.addresses);
                pod.groups.clear();
                let others = self.unclaim(key, &addresses);
                self.settle(key);
                self.pods.remove(key);
                for other in others {
                    self.settle(&other);
                }
            }
        }
        self.close_excess();
    }

    /// Returns the pods that hold these addresses instead.
    fn unclaim(&mut self, key: &ObjectKey, addresses: &[Ipv4Addr]) -> Vec<ObjectKey> {
        let mut others = Vec::new();
        for address in addresses {
            if let Some(claims) = self.claims.get_mut(address) {
                claims.retain(|other| other != key);
                others.extend(claims.last().cloned());
                if claims.is_empty() {
                    self.claims.remove(address);
                }
            }
        }
        others
    }

    /// Sets a policy. `None`: it is gone.
    pub(crate) fn set_policy(&mut self, key: &ObjectKey, parsed: Option<Parsed>) {
        let parsed = self.admit(key, parsed);
        self.replace(vec![(key.clone(), parsed)]);
    }

    /// Sets policies together. `None`: it is gone.
    fn replace(&mut self, policies: Vec<(ObjectKey, Option<Parsed>)>) {
        let mut touched = BTreeSet::new();
        let mut regrouped = BTreeSet::new();
        let select = |plan: &Plan, parsed: &Parsed| -> Vec<ObjectKey> {
            let pods = within(&plan.pods, &parsed.namespace);
            pods.filter(|(_, pod)| pod.facts.is_local && selects(&parsed.selector, &pod.facts))
                .map(|(key, _)| key.clone())
                .collect()
        };
        for (key, parsed) in policies {
            if self.policies.get(&key).map(|policy| &policy.parsed) == parsed.as_ref() {
                continue;
            }
            let old = self.policies.remove(&key);
            if let Some(parsed) = parsed {
                touched.extend(select(self, &parsed));
                let ingress = self.number(&parsed, Direction::Ingress, &mut regrouped);
                let egress = self.number(&parsed, Direction::Egress, &mut regrouped);
                self.policies.insert(key, PolicyState { parsed, ingress, egress });
            }
            if let Some(old) = old {
                touched.extend(select(self, &old.parsed));
                for rule in old.ingress.into_iter().chain(old.egress).flatten() {
                    self.release(rule, &mut regrouped);
                }
            }
        }
        self.divide();
        for pod in touched.union(&regrouped) {
            self.settle(pod);
            // Each pod may need many elements: they must not take the node's memory.
            self.close_excess_of_both();
        }
        self.close_excess();
    }

    /// Gives numbers to the peers of a policy's rules. Pods in new groups are added to `regrouped`.
    fn number(
        &mut self,
        parsed: &Parsed,
        direction: Direction,
        regrouped: &mut BTreeSet<ObjectKey>,
    ) -> Option<Vec<Numbered>> {
        let mut numbered = Vec::new();
        for rule in parsed.rules(direction)? {
            let mut rule = rule.clone();
            if direction == Direction::Egress
                && let Some(named) = split_names(&mut rule)
            {
                let peers = self.number_peers(named.peers.as_deref(), regrouped);
                numbered.push(Numbered { rule: named, peers });
            }
            let peers = self.number_peers(rule.peers.as_deref(), regrouped);
            numbered.push(Numbered { rule, peers });
        }
        Some(numbered)
    }

    fn number_peers(
        &mut self,
        peers: Option<&[Peer]>,
        regrouped: &mut BTreeSet<ObjectKey>,
    ) -> Option<(Vec<GroupId>, Vec<BlockId>)> {
        let (mut groups, mut blocks) = (Vec::new(), Vec::new());
        for peer in peers? {
            match peer {
                Peer::Pods(group) => groups.push(self.take_group(group, regrouped)),
                Peer::Block(block) => blocks.push(self.take_block(block)),
            }
        }
        Some((groups, blocks))
    }

    fn take_group(&mut self, group: &Group, regrouped: &mut BTreeSet<ObjectKey>) -> GroupId {
        let name = format!("{group:?}");
        if let Some(id) = self.group_ids.get(&name) {
            if let Some(state) = self.groups.get_mut(id) {
                state.users += 1;
            }
            return *id;
        }
        let id = self.pairs.next();
        let namespaces = &self.namespaces;
        for (key, pod) in &mut self.pods {
            if is_in(group, key, &pod.facts, namespaces) {
                pod.groups.insert(id);
                regrouped.insert(key.clone());
            }
        }
        self.groups.insert(id, GroupState { group: group.clone(), users: 1 });
        self.group_ids.insert(name, id);
        id
    }

    fn take_block(&mut self, block: &Block) -> BlockId {
        if let Some((id, users)) = self.block_ids.get_mut(block) {
            *users += 1;
            return *id;
        }
        let id = self.pairs.next();
        self.block_ids.insert(block.clone(), (id, 1));
        self.blocks.insert(id, block.clone());
        self.blocks_changed = true;
        id
    }

    fn release(&mut self, rule: Numbered, regrouped: &mut BTreeSet<ObjectKey>) {
        let Some((groups, blocks)) = rule.peers else { return };
        for id in groups {
            let Some(state) = self.groups.get_mut(&id) else { continue };
            state.users -= 1;
            if state.users == 0 {
                if let Some(state) = self.groups.remove(&id) {
                    self.group_ids.remove(&format!("{:?}", state.group));
                }
                for (key, pod) in &mut self.pods {
                    if pod.groups.remove(&id) {
                        regrouped.insert(key.clone());
                    }
                }
            }
        }
        for id in blocks {
            let Some(block) = self.blocks.get(&id).cloned() else { continue };
            let Some((_, users)) = self.block_ids.get_mut(&block) else { continue };
            *users -= 1;
            if *users == 0 {
                self.block_ids.remove(&block);
                self.blocks.remove(&id);
                self.blocks_changed = true;
            }
        }
    }

    /// Divides the addresses anew, if blocks changed.
    fn divide(&mut self) {
        if !std::mem::take(&mut self.blocks_changed) {
            return;
        }
        let (intervals, left_out) = blocks::intervals(&self.blocks, blocks::MOST);
        if !left_out.is_empty() {
            let count = left_out.len();
            tracing::warn!(
                count,
                "too many overlapping address blocks in network policies: the newest match nothing"
            );
        }
        let mut new = BTreeMap::new();
        for (first, last, blocks) in intervals {
            let class = self.pairs.take_class(Class::Blocks(blocks), &mut self.elements);
            new.insert((first, last), class);
        }
        for (first, last) in self.intervals.keys().filter(|place| !new.contains_key(place)) {
            self.elements.put(Key::Block(*first, *last), None);
        }
        for ((first, last), class) in &new {
            self.elements.put(Key::Block(*first, *last), Some(*class));
        }
        for class in std::mem::replace(&mut self.intervals, new).into_values() {
            self.pairs.drop_class(class, &mut self.elements);
        }
    }

    fn regroup(&mut self, key: &ObjectKey) {
        let Some(pod) = self.pods.get_mut(key) else { return };
        let all = self.groups.iter();
        let groups = all.filter(|(_, state)| is_in(&state.group, key, &pod.facts, &self.namespaces));
        pod.groups = groups.map(|(id, _)| *id).collect();
    }

    /// Brings a pod's class, profiles and elements up to date.
    fn settle(&mut self, key: &ObjectKey) {
        let Some(mut pod) = self.pods.remove(key) else { return };
        let holds = |address: &Ipv4Addr| self.claims.get(address).and_then(|all| all.last()) == Some(key);
        let held: Vec<Ipv4Addr> = pod.facts.addresses.iter().filter(|a| holds(a)).copied().collect();
        let is_peer = !pod.groups.is_empty() && !held.is_empty();
        let class = is_peer.then(|| {
            let content = Class::Pods(pod.groups.iter().copied().collect(), pod.facts.ports.clone());
            self.pairs.take_class(content, &mut self.elements)
        });
        let mut take = |direction| {
            let profile = self.profile(key, &pod.facts, direction).filter(|_| !held.is_empty());
            profile.map(|profile| self.pairs.take_profile(direction, profile, &mut self.elements))
        };
        let (ingress, egress) = (take(Direction::Ingress), take(Direction::Egress));
        for address in pod.held.iter().filter(|a| !held.contains(a)) {
            for key in
                [Key::Peer(*address), Key::Ingress(*address), Key::Egress(*address), Key::Own(*address)]
            {
                self.elements.put(key, None);
            }
        }
        if pod.facts.is_local {
            self.arrivals.extend(held.iter().filter(|a| !pod.held.contains(a)));
        }
        for address in &held {
            self.elements.put(Key::Peer(*address), class);
            self.elements.put(Key::Ingress(*address), ingress);
            self.elements.put(Key::Egress(*address), egress);
            self.elements.put(Key::Own(*address), ingress.or(egress).map(|_| 0));
        }
        if let Some(old) = std::mem::replace(&mut pod.class, class) {
            self.pairs.drop_class(old, &mut self.elements);
        }
        let old = [std::mem::replace(&mut pod.ingress, ingress), std::mem::replace(&mut pod.egress, egress)];
        for old in old.into_iter().flatten() {
            self.pairs.drop_profile(old, &mut self.elements);
        }
        pod.held = held;
        self.pods.insert(key.clone(), pod);
    }

    /// Returns what the policies of a pod allow; `None` if none isolates it.
    fn profile(&self, key: &ObjectKey, facts: &PodFacts, direction: Direction) -> Option<Profile> {
        if !facts.is_local {
            return None;
        }
        let mut profile = None;
        for (_, policy) in within(&self.policies, &key.namespace) {
            let rules = match direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            let Some(rules) = rules.as_ref().filter(|_| selects(&policy.parsed.selector, facts)) else {
                continue;
            };
            let profile = profile.get_or_insert_with(Profile::default);
            for Numbered { rule, peers } in rules {
                let mut ports = rule.ports.clone();
                if direction == Direction::Ingress {
                    // The named ports are the pod's own.
                    ports.set = ports.resolve(&facts.ports);
                    ports.names.clear();
                }
                match peers {
                    None => profile.any.extend(&ports.set),
                    Some((groups, blocks)) => {
                        for block in blocks.iter().filter(|_| !ports.set.is_empty()) {
                            profile.blocks.entry(*block).or_default().extend(&ports.set);
                        }
                        for group in groups {
                            profile.groups.entry(*group).or_default().extend(&ports);
                        }
                    }
                }
            }
        }
        profile
    }

    /// Returns true if a connection is allowed. Answers as the kernel does with [`super::rules`].
    pub(crate) fn allows(&self, from: Ipv4Addr, to: Ipv4Addr, protocol: u8, port: u16) -> bool {
        let e = &self.elements;
        let check = |profile: u32, peer: Ipv4Addr| {
            let classes = [e.get(Key::Peer(peer)), e.block_of(peer)];
            let sets = classes.into_iter().flatten().filter_map(|class| e.get(Key::Allow(profile, class)));
            sets.chain(e.get(Key::Any(profile))).any(|set| e.has_port(set, protocol, port))
        };
        if from == to && e.get(Key::Own(from)).is_some() {
            return true;
        }
        e.get(Key::Egress(from)).is_none_or(|profile| check(profile, to))
            && e.get(Key::Ingress(to)).is_none_or(|profile| check(profile, from))
    }

    /// Returns the addresses of isolated pods.
    pub(crate) fn isolated(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.elements.isolated()
    }

    /// Returns the pod that holds an address.
    pub(crate) fn holder(&self, address: Ipv4Addr) -> Option<&ObjectKey> {
        self.claims.get(&address)?.last()
    }

    /// Makes a pod the holder of an address that it claims.
    pub(crate) fn assign(&mut self, address: Ipv4Addr, pod: &ObjectKey) {
        let Some(claims) = self.claims.get_mut(&address).filter(|all| all.contains(pod)) else { return };
        let Some(before) = claims.last().filter(|before| *before != pod).cloned() else { return };
        claims.retain(|other| other != pod);
        claims.push(pod.clone());
        self.settle(&before);
        self.settle(pod);
    }

    /// Returns the addresses that pods of this node took since the last call.
    pub(crate) fn take_arrivals(&mut self) -> Vec<Ipv4Addr> {
        std::mem::take(&mut self.arrivals)
    }

    /// Returns the names of all namespaces.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = String> + '_ {
        self.namespaces.keys().cloned()
    }

    /// Returns the keys of all pods.
    pub(crate) fn pods(&self) -> impl Iterator<Item = ObjectKey> + '_ {
        self.pods.keys().cloned()
    }

    /// Returns the keys of all policies.
    pub(crate) fn policies(&self) -> impl Iterator<Item = ObjectKey> + '_ {
        self.policies.keys().cloned()
    }

    /// Returns the parts of a policy that could not be read.
    pub(crate) fn problems(&self, key: &ObjectKey) -> &[String] {
        self.policies.get(key).map(|policy| policy.parsed.problems.as_slice()).unwrap_or_default()
    }

    /// Returns the names of ports in a policy's ingress rules that no selected pod of this node has. Empty if
    /// it selects none.
    pub(crate) fn unknown_ports(&self, key: &ObjectKey) -> BTreeSet<String> {
        let Some(PolicyState { parsed, .. }) = self.policies.get(key) else { return BTreeSet::new() };
        let rules = parsed.ingress.iter().flatten();
        let names: BTreeSet<_> = rules.flat_map(|rule| &rule.ports.names).collect();
        if names.is_empty() {
            return BTreeSet::new();
        }
        let pods = within(&self.pods, &parsed.namespace).map(|(_, pod)| &pod.facts);
        let selected: Vec<_> = pods.filter(|f| f.is_local && selects(&parsed.selector, f)).collect();
        if selected.is_empty() {
            return BTreeSet::new();
        }
        let known: HashSet<(u8, &str)> =
            selected.iter().flat_map(|f| f.ports.iter().map(|p| (p.protocol, p.name.as_str()))).collect();
        let unknown =
            names.into_iter().filter(|(protocol, name)| !known.contains(&(*protocol, name.as_str())));
        unknown.map(|(_, name)| name.clone()).collect()
    }

    /// Returns the changes since the last call.
    pub(crate) fn take_delta(&mut self) -> Delta {
        self.elements.take_delta()
    }

    /// Returns everything, for a new table.
    pub(crate) fn take_all(&mut self) -> Delta {
        self.elements.take_all()
    }

    /// Returns the number of elements in the table.
    pub(crate) fn len(&self) -> usize {
        self.elements.len()
    }
}

fn is_in(
    group: &Group,
    key: &ObjectKey,
    facts: &PodFacts,
    namespaces: &HashMap<String, BTreeMap<String, String>>,
) -> bool {
    let in_namespace = match &group.namespaces {
        Namespaces::All => true,
        Namespaces::Own(own) => *own == key.namespace,
        Namespaces::Matching(selector) => {
            namespaces.get(&key.namespace).is_some_and(|labels| selector.matches(Some(labels)))
        }
    };
    let in_block = |block: &Block| facts.addresses.iter().any(|address| block.contains(*address));
    in_namespace && selects(&group.pods, facts) && group.block.as_ref().is_none_or(in_block)
}

/// Takes the named ports of an egress rule for everyone or for blocks out of it. A name is one that the
/// destination pod gives, so only pods are meant.
fn split_names(rule: &mut Rule) -> Option<Rule> {
    let only_pods = |peers: &Vec<Peer>| peers.iter().all(|peer| matches!(peer, Peer::Pods(_)));
    if rule.ports.names.is_empty() || rule.peers.as_ref().is_some_and(only_pods) {
        return None;
    }
    let everyone = || vec![Peer::Pods(Group::everywhere())];
    let pods = |peer: Peer| match peer {
        Peer::Block(block) => Peer::Pods(Group { block: Some(block), ..Group::everywhere() }),
        pods => pods,
    };
    let peers = rule.peers.clone().map_or_else(everyone, |peers| peers.into_iter().map(pods).collect());
    let names = std::mem::take(&mut rule.ports.names);
    Some(Rule { peers: Some(peers), ports: Ports::new(Vec::new(), names) })
}
