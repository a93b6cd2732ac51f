//! Numbers of placed pods by topology domain, kept up to date by every change and not counted per decision.
//!
//! Two directions: a [`Question`] of a pod that is being scheduled ("how many pods that I select are in
//! each zone") is answered by a tally; the terms of placed pods ("I do not want such pods in my zone") are
//! found by the labels of the pod that comes. Domains are numbers by the index of the node, so that a
//! decision reads columns.
//!
//! Guarantee: the numbers equal a count over all pods of the cluster's nodes.
//! Bounds: [`tallies::MOST`] tallies; the terms are as many as placed pods have. A topology is known while a
//! tally or a term has its key.

mod lookup;
mod tallies;
mod terms;
mod topology;

use std::{collections::HashMap, sync::Arc};

use k8s_core::meta::LabelSelector;

pub(crate) use self::{tallies::Question, terms::Kind, topology::Domains};
use self::{tallies::Tallies, terms::Terms, topology::Topologies};
use crate::{NodeInfo, PodInfo, terms::AffinityTerm};

/// The numbers of one cluster.
#[derive(Default)]
pub(crate) struct Index {
    topologies: Topologies,
    tallies: Tallies,
    terms: Terms,
    /// Number of pods on nodes by namespace.
    namespaces: HashMap<String, usize>,
}

impl Index {
    /// Takes in a node after the last one, or the new labels of a known one.
    pub(crate) fn set_node(&mut self, nodes: &[NodeInfo], at: usize) {
        let Some(node) = nodes.get(at) else { return };
        self.tallies.grow(nodes.len());
        for (key, from, to) in self.topologies.set(at, node) {
            self.tallies.relabelled(&key, at, from, to);
            for pod in node.pods.iter().filter(|pod| pod.has_terms()) {
                self.terms.relabelled(pod, &key, from, to);
            }
        }
    }

    /// Takes in that a node left, of which no pod is counted any more; the last one has its index now.
    pub(crate) fn swap_remove(&mut self, at: usize, last: usize) {
        self.topologies.swap_remove(at, last);
        self.tallies.swap_remove(at);
    }

    /// Counts a pod that came to a node (`by` is 1) or left it (-1).
    pub(crate) fn moved(&mut self, nodes: &[NodeInfo], pod: &PodInfo, at: usize, by: i64) {
        match self.namespaces.get_mut(&pod.key.namespace) {
            Some(number) if by > 0 => *number += 1,
            Some(number) => {
                *number -= 1;
                if *number == 0 {
                    self.namespaces.remove(&pod.key.namespace);
                }
            }
            None => drop(self.namespaces.insert(pod.key.namespace.clone(), 1)),
        }
        self.tallies.moved(&self.topologies, pod, at, by);
        if pod.has_terms() {
            self.terms.moved(&mut self.topologies, nodes, pod, at, by);
        }
    }

    /// Makes the question of pods that all terms select. `labels` returns the labels of a namespace. `None`:
    /// they select no pod.
    pub(crate) fn question<'t>(
        &self,
        terms: impl IntoIterator<Item = &'t AffinityTerm>,
        matches: impl Fn(&LabelSelector, &str) -> bool,
    ) -> Option<Question> {
        let one = |term: &AffinityTerm| {
            let (names, selector) = term.parts();
            let mut namespaces = names.to_vec();
            if let Some(wanted) = term.namespace_selector() {
                namespaces.extend(self.namespaces.keys().filter(|name| matches(wanted, name)).cloned());
            }
            namespaces.sort_unstable();
            namespaces.dedup();
            Some((namespaces, selector?.clone()))
        };
        Some(Question { all: terms.into_iter().map(one).collect::<Option<_>>()?, deleted: true })
    }

    /// Returns the number of pods by domain.
    pub(crate) fn by_domain(&mut self, nodes: &[NodeInfo], question: &Question, key: &str) -> Domains {
        self.tallies.by_domain(&mut self.topologies, nodes, question, key)
    }

    /// Returns the number of pods by node.
    pub(crate) fn by_node(&mut self, nodes: &[NodeInfo], question: &Question) -> Arc<Vec<i32>> {
        self.tallies.by_node(&mut self.topologies, nodes, question)
    }

    /// Returns the domains of a key, without pods.
    pub(crate) fn domains(&self, nodes: &[NodeInfo], key: &str) -> Domains {
        self.topologies.domains(nodes, key)
    }

    /// Returns the terms of placed pods that may select a pod, with the number of those pods by domain.
    pub(crate) fn terms_for<'i>(&'i self, pod: &'i PodInfo) -> impl Iterator<Item = terms::Counted<'i>> {
        self.terms.of(pod)
    }
}
