//! Affinity terms of placed pods, equal ones once, with the number of those pods by domain.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use super::{
    lookup::Lookup,
    tallies,
    topology::{Domains, Topologies},
};
use crate::{NodeInfo, PodInfo, terms::AffinityTerm};

/// The meaning of a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Required anti-affinity.
    Far,
    /// Required affinity.
    Near,
    /// Preferred affinity with this weight; anti-affinity has a negative one.
    Preferred(i64),
}

/// A term of placed pods.
pub(crate) struct Counted<'i> {
    /// The term.
    pub(crate) term: &'i AffinityTerm,
    /// Its meaning.
    pub(crate) kind: Kind,
    /// Number of pods by domain; domains without are absent.
    pub(crate) by_domain: &'i HashMap<usize, i64>,
}

struct Entry {
    term: AffinityTerm,
    kind: Kind,
    key: u64,
    by_domain: HashMap<usize, i64>,
    /// Number of pods, also of those on nodes without the topology key.
    pods: i64,
}

/// The terms of the pods of one cluster.
#[derive(Default)]
pub(super) struct Terms {
    list: Vec<Option<Entry>>,
    free: Vec<usize>,
    by_key: HashMap<u64, Vec<usize>>,
    lookup: Lookup,
}

fn all(pod: &PodInfo) -> impl Iterator<Item = (Kind, &AffinityTerm)> {
    let far = pod.anti_affinity.iter().map(|term| (Kind::Far, term));
    let near = pod.affinity.iter().map(|term| (Kind::Near, term));
    let preferred = pod.preferred_pods.iter().map(|(weight, term)| (Kind::Preferred(*weight), term));
    far.chain(near).chain(preferred)
}

fn key(kind: Kind, term: &AffinityTerm) -> u64 {
    let mut state = DefaultHasher::new();
    let (namespaces, selector) = term.parts();
    (kind, &term.topology_key, namespaces).hash(&mut state);
    for selector in selector.into_iter().chain(term.namespace_selector()) {
        tallies::hash(selector, &mut state);
    }
    state.finish()
}

fn add(by_domain: &mut HashMap<usize, i64>, domain: Option<usize>, by: i64) {
    let Some(domain) = domain else { return };
    let number = by_domain.entry(domain).or_default();
    *number += by;
    if *number == 0 {
        by_domain.remove(&domain);
    }
}

/// Returns where a term is looked up: by its namespaces, or everywhere if it selects them by their labels.
/// `None`: the term selects nothing.
fn place(term: &AffinityTerm) -> Option<(Option<&[String]>, &k8s_core::meta::LabelSelector)> {
    let (namespaces, selector) = term.parts();
    Some((term.namespace_selector().is_none().then_some(namespaces), selector?))
}

impl Terms {
    fn find(&self, kind: Kind, term: &AffinityTerm, key: u64) -> Option<usize> {
        let is_it = |at: &usize| self.list[*at].as_ref().is_some_and(|e| e.kind == kind && e.term == *term);
        self.by_key.get(&key)?.iter().copied().find(is_it)
    }

    /// Counts the terms of a pod that came to a node or left it.
    pub(super) fn moved(
        &mut self,
        topologies: &mut Topologies,
        nodes: &[NodeInfo],
        pod: &PodInfo,
        at: usize,
        by: i64,
    ) {
        for (kind, term) in all(pod) {
            let key = key(kind, term);
            let number =
                self.find(kind, term, key).unwrap_or_else(|| self.make(topologies, nodes, kind, term, key));
            let domain = topologies.get(&term.topology_key).and_then(|domains| domains.of(at));
            let Some(entry) = &mut self.list[number] else { continue };
            entry.pods += by;
            add(&mut entry.by_domain, domain, by);
            if entry.pods == 0 {
                self.forget(topologies, number);
            }
        }
    }

    fn make(
        &mut self,
        topologies: &mut Topologies,
        nodes: &[NodeInfo],
        kind: Kind,
        term: &AffinityTerm,
        key: u64,
    ) -> usize {
        let _: &Domains = topologies.used(nodes, &term.topology_key);
        let entry = Entry { term: term.clone(), kind, key, by_domain: HashMap::new(), pods: 0 };
        let number = self.free.pop().unwrap_or_else(|| {
            self.list.push(None);
            self.list.len() - 1
        });
        self.list[number] = Some(entry);
        self.by_key.entry(key).or_default().push(number);
        if let Some((namespaces, selector)) = place(term) {
            self.lookup.insert(namespaces, selector, number);
        }
        number
    }

    fn forget(&mut self, topologies: &mut Topologies, number: usize) {
        let Some(entry) = self.list[number].take() else { return };
        self.free.push(number);
        topologies.unused(&entry.term.topology_key);
        if let Some(list) = self.by_key.get_mut(&entry.key) {
            list.retain(|other| *other != number);
            if list.is_empty() {
                self.by_key.remove(&entry.key);
            }
        }
        if let Some((namespaces, selector)) = place(&entry.term) {
            self.lookup.remove(namespaces, selector, number);
        }
    }

    /// Takes in that the node of a pod changed its domain of a key.
    pub(super) fn relabelled(
        &mut self,
        pod: &PodInfo,
        topology_key: &str,
        from: Option<usize>,
        to: Option<usize>,
    ) {
        for (kind, term) in all(pod).filter(|(_, term)| term.topology_key == topology_key) {
            if let Some(number) = self.find(kind, term, key(kind, term))
                && let Some(entry) = &mut self.list[number]
            {
                add(&mut entry.by_domain, from, -1);
                add(&mut entry.by_domain, to, 1);
            }
        }
    }

    /// Returns the terms that may select a pod.
    pub(super) fn of<'i>(&'i self, pod: &'i PodInfo) -> impl Iterator<Item = Counted<'i>> {
        let found = self.lookup.of(&pod.key.namespace, pod.pod.metadata.labels.as_ref());
        found.into_iter().filter_map(|number| {
            let Entry { term, kind, by_domain, .. } = self.list[number].as_ref()?;
            Some(Counted { term, kind: *kind, by_domain })
        })
    }
}
