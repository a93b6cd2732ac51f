//! Numbers of selected pods per node and per domain, kept while the same question is asked again and again.
//!
//! A tally is made by the first question and updated by every placement and removal. The least recently asked
//! one is dropped when there are [`MOST`], or fewer if there are very many nodes.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use k8s_core::meta::{LabelSelector, ObjectExt, selector::Operator};

use super::{
    lookup::Lookup,
    topology::{Domains, Topologies, add},
};
use crate::{NodeInfo, PodInfo};

/// Limit of tallies.
pub(super) const MOST: usize = 1024;

/// Limit of the numbers by node of all tallies together; but there may be [`ALWAYS`] tallies.
const MOST_NUMBERS: usize = 8 << 20;

/// Number of tallies that a cluster of any size may have.
const ALWAYS: usize = 64;

/// The pods that are counted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Question {
    /// Namespaces and a selector; a pod is counted if each of them selects it.
    pub(crate) all: Vec<(Vec<String>, LabelSelector)>,
    /// True if pods that are being deleted are counted.
    pub(crate) deleted: bool,
}

impl Question {
    fn counts(&self, pod: &PodInfo) -> bool {
        let (namespace, labels) = (&pod.key.namespace, pod.pod.metadata.labels.as_ref());
        (self.deleted || !pod.pod.is_deleting())
            && self.all.iter().all(|(namespaces, s)| namespaces.contains(namespace) && s.matches(labels))
    }

    fn key(&self) -> u64 {
        let mut state = DefaultHasher::new();
        self.deleted.hash(&mut state);
        for (namespaces, selector) in &self.all {
            namespaces.hash(&mut state);
            hash(selector, &mut state);
        }
        state.finish()
    }
}

/// Feeds a selector to a hash.
pub(super) fn hash(selector: &LabelSelector, state: &mut DefaultHasher) {
    for requirement in &selector.requirements {
        requirement.key.hash(state);
        std::mem::discriminant(&requirement.operator).hash(state);
        if let Operator::In(values) | Operator::NotIn(values) = &requirement.operator {
            values.hash(state);
        }
    }
}

struct Tally {
    question: Question,
    key: u64,
    by_node: Arc<Vec<i32>>,
    by_domain: Vec<(String, Arc<Vec<i64>>)>,
    asked: u64,
}

/// The tallies of one cluster.
#[derive(Default)]
pub(super) struct Tallies {
    list: Vec<Tally>,
    by_key: HashMap<u64, Vec<usize>>,
    lookup: Lookup,
    asked: u64,
}

impl Tallies {
    fn find(&mut self, topologies: &mut Topologies, nodes: &[NodeInfo], question: &Question) -> &mut Tally {
        self.asked += 1;
        let key = question.key();
        let known = self.by_key.get(&key).into_iter().flatten().copied();
        let known = known.into_iter().find(|at| self.list[*at].question == *question);
        let at = known.unwrap_or_else(|| self.make(topologies, nodes, question, key));
        let tally = &mut self.list[at];
        tally.asked = self.asked;
        tally
    }

    fn make(
        &mut self,
        topologies: &mut Topologies,
        nodes: &[NodeInfo],
        question: &Question,
        key: u64,
    ) -> usize {
        let count = |node: &NodeInfo| {
            let number = node.pods.iter().filter(|pod| question.counts(pod)).count();
            i32::try_from(number).unwrap_or(i32::MAX)
        };
        let by_node = Arc::new(nodes.iter().map(count).collect());
        let tally = Tally { question: question.clone(), key, by_node, by_domain: Vec::new(), asked: 0 };
        let oldest = (0..self.list.len()).min_by_key(|at| self.list[*at].asked);
        let most = (MOST_NUMBERS / nodes.len().max(1)).clamp(ALWAYS, MOST);
        let at = match oldest.filter(|_| self.list.len() >= most) {
            None => {
                self.list.push(tally);
                self.list.len() - 1
            }
            Some(at) => {
                let old = std::mem::replace(&mut self.list[at], tally);
                self.forget(topologies, at, &old);
                at
            }
        };
        self.by_key.entry(key).or_default().push(at);
        if let Some((namespaces, selector)) = question.all.first() {
            self.lookup.insert(Some(namespaces), selector, at);
        }
        at
    }

    fn forget(&mut self, topologies: &mut Topologies, at: usize, old: &Tally) {
        if let Some(list) = self.by_key.get_mut(&old.key) {
            list.retain(|other| *other != at);
            if list.is_empty() {
                self.by_key.remove(&old.key);
            }
        }
        if let Some((namespaces, selector)) = old.question.all.first() {
            self.lookup.remove(Some(namespaces), selector, at);
        }
        for (key, _) in &old.by_domain {
            topologies.unused(key);
        }
    }

    /// Returns the number of pods by node.
    pub(super) fn by_node(
        &mut self,
        topologies: &mut Topologies,
        nodes: &[NodeInfo],
        question: &Question,
    ) -> Arc<Vec<i32>> {
        self.find(topologies, nodes, question).by_node.clone()
    }

    /// Returns the number of pods by domain.
    pub(super) fn by_domain(
        &mut self,
        topologies: &mut Topologies,
        nodes: &[NodeInfo],
        question: &Question,
        key: &str,
    ) -> Domains {
        let tally = self.find(topologies, nodes, question);
        if let Some((_, pods)) = tally.by_domain.iter().find(|(known, _)| known == key)
            && let Some(domains) = topologies.get(key)
        {
            return domains.with(pods.clone());
        }
        let domains = topologies.used(nodes, key);
        let mut pods = Vec::new();
        for (at, number) in tally.by_node.iter().enumerate().filter(|(_, number)| **number != 0) {
            if let Some(domain) = domains.of(at) {
                add(&mut pods, domain, i64::from(*number));
            }
        }
        let pods = Arc::new(pods);
        tally.by_domain.push((key.to_owned(), pods.clone()));
        domains.with(pods)
    }

    /// Counts a pod that came to a node or left it.
    pub(super) fn moved(&mut self, topologies: &Topologies, pod: &PodInfo, at: usize, by: i64) {
        for number in self.lookup.of(&pod.key.namespace, pod.pod.metadata.labels.as_ref()) {
            let tally = &mut self.list[number];
            if !tally.question.counts(pod) {
                continue;
            }
            if let Some(pods) = Arc::make_mut(&mut tally.by_node).get_mut(at) {
                *pods += if by > 0 { 1 } else { -1 };
            }
            for (key, pods) in &mut tally.by_domain {
                if let Some(domain) = topologies.get(key).and_then(|domains| domains.of(at)) {
                    add(Arc::make_mut(pods), domain, by);
                }
            }
        }
    }

    /// Takes in that a node changed its domain of a key.
    pub(super) fn relabelled(&mut self, key: &str, at: usize, from: Option<usize>, to: Option<usize>) {
        for tally in &mut self.list {
            let number = i64::from(tally.by_node.get(at).copied().unwrap_or(0));
            let counts = tally.by_domain.iter_mut().find(|(known, _)| known == key);
            if let Some((_, pods)) = counts.filter(|_| number != 0) {
                let pods = Arc::make_mut(pods);
                from.into_iter().for_each(|domain| add(pods, domain, -number));
                to.into_iter().for_each(|domain| add(pods, domain, number));
            }
        }
    }

    /// Makes room for new nodes.
    pub(super) fn grow(&mut self, nodes: usize) {
        for tally in self.list.iter_mut().filter(|tally| tally.by_node.len() < nodes) {
            Arc::make_mut(&mut tally.by_node).resize(nodes, 0);
        }
    }

    /// Removes a node without pods; the last one takes its index.
    pub(super) fn swap_remove(&mut self, at: usize) {
        for tally in &mut self.list {
            Arc::make_mut(&mut tally.by_node).swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_tallies_is_bounded() {
        let (mut tallies, mut topologies) = (Tallies::default(), Topologies::default());
        for i in 0..MOST + 10 {
            let all = vec![(vec!["n".to_owned()], format!("a={i}").parse().unwrap())];
            tallies.by_domain(&mut topologies, &[], &Question { all, deleted: true }, &format!("key-{i}"));
        }
        assert_eq!((tallies.list.len(), tallies.by_key.len()), (MOST, MOST));
        assert!(topologies.get("key-3").is_none() && topologies.get("key-20").is_some());
    }
}
