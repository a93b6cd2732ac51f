//! Topology domains of nodes as columns of numbers.

use std::{collections::HashMap, sync::Arc};

use crate::NodeInfo;

/// The number of no domain: the node lacks the label.
pub(super) const NONE: u32 = u32::MAX;

/// The domains of one topology key, with a number of pods in each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Domains {
    /// The domain by the node's index; a shorter column has no more domains.
    of: Arc<Vec<u32>>,
    /// Number of nodes by domain. Numbers of domains without nodes are not in use.
    nodes: Arc<Vec<u32>>,
    /// Number of pods by domain; a shorter column has zeros.
    pods: Arc<Vec<i64>>,
}

impl Domains {
    pub(super) fn with(&self, pods: Arc<Vec<i64>>) -> Self {
        Domains { pods, ..self.clone() }
    }

    /// Returns the domain of a node.
    pub(crate) fn of(&self, slot: usize) -> Option<usize> {
        let domain = self.of.get(slot).copied().filter(|domain| *domain != NONE)?;
        Some(domain as usize)
    }

    /// Returns the number of pods in the domain of a node. `None`: the node is in no domain.
    pub(crate) fn pods_at(&self, slot: usize) -> Option<i64> {
        Some(self.pods_in(self.of(slot)?))
    }

    /// Returns the number of pods in a domain.
    pub(crate) fn pods_in(&self, domain: usize) -> i64 {
        self.pods.get(domain).copied().unwrap_or(0)
    }

    /// Returns true if no pod is counted.
    pub(crate) fn is_empty(&self) -> bool {
        self.pods.iter().all(|number| *number == 0)
    }

    /// Counts pods at a node.
    pub(crate) fn add(&mut self, slot: usize, by: i64) {
        if let Some(domain) = self.of(slot) {
            self.add_in(domain, by);
        }
    }

    /// Counts pods in a domain.
    pub(crate) fn add_in(&mut self, domain: usize, by: i64) {
        add(Arc::make_mut(&mut self.pods), domain, by);
    }

    /// Adds the numbers of the same topology, times a weight.
    pub(crate) fn add_all(&mut self, other: &Domains, weight: i64) {
        let pods = Arc::make_mut(&mut self.pods);
        if pods.len() < other.pods.len() {
            pods.resize(other.pods.len(), 0);
        }
        for (sum, number) in pods.iter_mut().zip(&*other.pods) {
            *sum += weight * number;
        }
    }

    /// Returns the limit of the domains' numbers.
    pub(crate) fn number(&self) -> usize {
        self.nodes.len()
    }

    /// Returns the numbers of the domains that have nodes.
    pub(crate) fn used(&self) -> impl Iterator<Item = usize> {
        self.nodes.iter().enumerate().filter(|(_, nodes)| **nodes > 0).map(|(domain, _)| domain)
    }

    /// Returns the number of nodes that are in a domain.
    pub(crate) fn nodes(&self) -> usize {
        self.nodes.iter().map(|nodes| *nodes as usize).sum()
    }

    /// Returns true if all nodes are in domains.
    pub(crate) fn whole(&self, total: usize) -> bool {
        self.of.len() >= total && self.of.iter().all(|domain| *domain != NONE)
    }

    /// Returns the number of domains that some nodes are in.
    pub(crate) fn among(&self, slots: impl Iterator<Item = usize>) -> usize {
        let used = self.used().count();
        let (mut seen, mut number) = (vec![false; self.nodes.len()], 0);
        for domain in slots.filter_map(|slot| self.of(slot)) {
            if !std::mem::replace(&mut seen[domain], true) {
                number += 1;
                if number == used {
                    break;
                }
            }
        }
        number
    }

    /// Limits the domains to nodes for which `counts` returns a number of pods.
    pub(crate) fn limited(&self, total: usize, counts: impl Fn(usize) -> Option<i64>) -> Self {
        let (mut nodes, mut pods) = (vec![0; self.nodes.len()], vec![0; self.nodes.len()]);
        for slot in 0..total {
            if let Some(domain) = self.of(slot)
                && let Some(number) = counts(slot)
            {
                nodes[domain] += 1;
                pods[domain] += number;
            }
        }
        Domains { of: self.of.clone(), nodes: Arc::new(nodes), pods: Arc::new(pods) }
    }
}

/// Adds to the number of a domain.
pub(super) fn add(pods: &mut Vec<i64>, domain: usize, by: i64) {
    if pods.len() <= domain {
        pods.resize(domain + 1, 0);
    }
    pods[domain] += by;
}

#[derive(Default)]
struct Topology {
    domains: Domains,
    ids: HashMap<String, u32>,
    free: Vec<u32>,
    /// Number of tallies and terms with the key.
    users: usize,
}

impl Topology {
    fn new(key: &str, nodes: &[NodeInfo]) -> Self {
        let mut topology = Topology::default();
        for (at, node) in nodes.iter().enumerate() {
            topology.set(at, node.label(key));
        }
        topology
    }

    /// Sets the domain of a node; returns the one before and the new one if they differ.
    fn set(&mut self, at: usize, value: Option<&str>) -> Option<(u32, u32)> {
        let from = self.domains.of.get(at).copied().unwrap_or(NONE);
        let to = value.map_or(NONE, |value| self.id(value));
        if from == to {
            return None;
        }
        let nodes = Arc::make_mut(&mut self.domains.nodes);
        if let Some(number) = nodes.get_mut(to as usize) {
            *number += 1;
        }
        let of = Arc::make_mut(&mut self.domains.of);
        if of.len() <= at {
            of.resize(at + 1, NONE);
        }
        of[at] = to;
        self.leave(from);
        Some((from, to))
    }

    fn id(&mut self, value: &str) -> u32 {
        if let Some(id) = self.ids.get(value) {
            return *id;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            let nodes = Arc::make_mut(&mut self.domains.nodes);
            nodes.push(0);
            u32::try_from(nodes.len() - 1).unwrap_or(NONE)
        });
        self.ids.insert(value.to_owned(), id);
        id
    }

    /// Takes a node out of a domain.
    fn leave(&mut self, domain: u32) {
        let nodes = Arc::make_mut(&mut self.domains.nodes);
        let Some(number) = nodes.get_mut(domain as usize) else { return };
        *number -= 1;
        if *number == 0 {
            self.ids.retain(|_, id| *id != domain);
            self.free.push(domain);
        }
    }

    fn swap_remove(&mut self, at: usize, last: usize) {
        let leaving = self.domains.of.get(at).copied().unwrap_or(NONE);
        let moved = self.domains.of.get(last).copied().unwrap_or(NONE);
        let of = Arc::make_mut(&mut self.domains.of);
        if let Some(slot) = of.get_mut(at) {
            *slot = moved;
        }
        of.truncate(last);
        self.leave(leaving);
    }
}

/// The topologies in use, by key.
#[derive(Default)]
pub(super) struct Topologies(HashMap<String, Topology>);

impl Topologies {
    /// Returns the domains of a key that the caller begins to use.
    pub(super) fn used(&mut self, nodes: &[NodeInfo], key: &str) -> &Domains {
        let topology = self.0.entry(key.to_owned()).or_insert_with(|| Topology::new(key, nodes));
        topology.users += 1;
        &topology.domains
    }

    /// Ends a use.
    pub(super) fn unused(&mut self, key: &str) {
        let Some(topology) = self.0.get_mut(key) else { return };
        topology.users -= 1;
        if topology.users == 0 {
            self.0.remove(key);
        }
    }

    /// Returns the domains of a key in use.
    pub(super) fn get(&self, key: &str) -> Option<&Domains> {
        self.0.get(key).map(|topology| &topology.domains)
    }

    /// Returns the domains of any key.
    pub(super) fn domains(&self, nodes: &[NodeInfo], key: &str) -> Domains {
        self.get(key).cloned().unwrap_or_else(|| Topology::new(key, nodes).domains)
    }

    /// Reads the labels of a node; returns the keys whose domain changed, with the old and the new one.
    pub(super) fn set(&mut self, at: usize, node: &NodeInfo) -> Vec<(String, Option<usize>, Option<usize>)> {
        let id = |domain: u32| (domain != NONE).then_some(domain as usize);
        let mut changed = Vec::new();
        for (key, topology) in &mut self.0 {
            if let Some((from, to)) = topology.set(at, node.label(key)) {
                changed.push((key.clone(), id(from), id(to)));
            }
        }
        changed
    }

    /// Removes a node; the last one takes its index.
    pub(super) fn swap_remove(&mut self, at: usize, last: usize) {
        for topology in self.0.values_mut() {
            topology.swap_remove(at, last);
        }
    }
}
