//! The budget of elements. A transaction is one message of limited size, so that too many elements would keep
//! the kernel from all of them. When there are more than the budget, the namespace whose policies weigh most
//! is closed: its policies isolate pods as before, and allow nothing. The others go on.
//!
//! A namespace is opened again when its elements fit, by an estimate of their number.

use std::collections::{BTreeMap, BTreeSet};

use k8s_core::meta::ObjectKey;

use super::{Plan, selects, within};
use crate::policy::parse::{Parsed, Peer, Rule};

/// Number of elements at most. A transaction that removes and adds as many fits in a message of 64 MiB.
const MOST: usize = 400_000;

/// A namespace whose policies allow nothing.
#[derive(Debug)]
struct Closed {
    /// Its policies as they are.
    policies: BTreeMap<ObjectKey, Parsed>,
    /// The heaviest policy.
    worst: ObjectKey,
    /// Estimate of its elements when it was closed, and its weight then.
    elements: usize,
    weight: usize,
}

/// State of the budget.
#[derive(Debug)]
pub(super) struct Budget {
    most: usize,
    closed: BTreeMap<String, Closed>,
    /// A namespace is being closed: there are too many elements until it is.
    closing: bool,
    /// The namespace that is tried again: it is the first one to be closed.
    tried: Option<String>,
    /// Namespaces that were closed or opened since the last look.
    turned: BTreeSet<String>,
}

impl Default for Budget {
    fn default() -> Self {
        Budget { most: MOST, closed: BTreeMap::new(), closing: false, tried: None, turned: BTreeSet::new() }
    }
}

/// Number of the peers, exceptions and ports of a policy.
fn parts(parsed: &Parsed) -> usize {
    let of_peer = |peer: &Peer| match peer {
        Peer::Pods(_) => 1,
        Peer::Block(block) => 1 + block.except.len(),
    };
    let of_rule = |rule: &Rule| {
        let peers: usize = rule.peers.iter().flatten().map(of_peer).sum();
        1 + peers + rule.ports.size()
    };
    parsed.ingress.iter().chain(&parsed.egress).flatten().map(of_rule).sum()
}

/// Returns a policy that isolates the same pods and allows nothing.
fn emptied(parsed: &Parsed) -> Parsed {
    Parsed {
        namespace: parsed.namespace.clone(),
        selector: parsed.selector.clone(),
        ingress: parsed.ingress.as_ref().map(|_| Vec::new()),
        egress: parsed.egress.as_ref().map(|_| Vec::new()),
        problems: parsed.problems.clone(),
    }
}

impl Plan {
    /// Creates a plan with another budget of elements.
    #[cfg(test)]
    pub(crate) fn with_most(most: usize) -> Self {
        Plan { budget: Budget { most, ..Budget::default() }, ..Plan::default() }
    }

    /// Returns the budget of elements.
    pub(crate) fn most(&self) -> usize {
        self.budget.most
    }

    /// Returns true if the policies of a namespace allow nothing, because they need too many elements.
    pub(crate) fn is_closed(&self, namespace: &str) -> bool {
        self.budget.closed.contains_key(namespace)
    }

    /// Notes a policy of a closed namespace; returns what is applied of it.
    pub(super) fn admit(&mut self, key: &ObjectKey, parsed: Option<Parsed>) -> Option<Parsed> {
        let Some(closed) = self.budget.closed.get_mut(&key.namespace) else { return parsed };
        let Some(parsed) = parsed else {
            closed.policies.remove(key);
            return None;
        };
        let empty = emptied(&parsed);
        closed.policies.insert(key.clone(), parsed);
        Some(empty)
    }

    /// Weight of a policy: its parts, for the peers' classes and for each pod that it selects.
    fn weight(&self, parsed: &Parsed) -> usize {
        let pods = within(&self.pods, &parsed.namespace).map(|(_, pod)| &pod.facts);
        let selected = pods.filter(|facts| facts.is_local && selects(&parsed.selector, facts)).count();
        parts(parsed).saturating_mul(selected + 1)
    }

    /// Closes namespaces, the heaviest first, until the elements fit.
    pub(super) fn close_excess(&mut self) {
        self.close_beyond(self.budget.most);
    }

    /// The same in the midst of a change, when the elements of before and of after are both there.
    pub(super) fn close_excess_of_both(&mut self) {
        self.close_beyond(self.budget.most.saturating_mul(2));
    }

    fn close_beyond(&mut self, most: usize) {
        while self.elements.len() > most && !self.budget.closing {
            let tried = self.budget.tried.clone().filter(|namespace| !self.is_closed(namespace));
            let Some(namespace) = tried.or_else(|| self.heaviest()) else { return };
            if !self.close(&namespace) {
                return;
            }
        }
    }

    /// Returns the open namespace whose policies weigh most; `None` if none allows anything.
    fn heaviest(&self) -> Option<String> {
        let mut weights: BTreeMap<&str, usize> = BTreeMap::new();
        for (key, policy) in &self.policies {
            let weight = if self.is_closed(&key.namespace) { 0 } else { self.weight(&policy.parsed) };
            if weight > 0 {
                let sum = weights.entry(&key.namespace).or_default();
                *sum = sum.saturating_add(weight);
            }
        }
        let heaviest = weights.into_iter().max_by_key(|(_, weight)| *weight)?;
        Some(heaviest.0.to_owned())
    }

    /// Returns false if the namespace has no policies.
    fn close(&mut self, namespace: &str) -> bool {
        let policies: BTreeMap<ObjectKey, Parsed> = within(&self.policies, namespace)
            .map(|(key, policy)| (key.clone(), policy.parsed.clone()))
            .collect();
        let weights = policies.iter().map(|(key, parsed)| (self.weight(parsed), key.clone()));
        let Some((_, worst)) = weights.max() else { return false };
        let before = self.elements.len();
        let empty = policies.iter().map(|(key, parsed)| (key.clone(), Some(emptied(parsed)))).collect();
        let weight = self.weight_of(&policies);
        let closed = Closed { policies, worst: worst.clone(), elements: 0, weight };
        self.budget.closed.insert(namespace.to_owned(), closed);
        self.budget.turned.insert(namespace.to_owned());
        self.budget.closing = true;
        self.replace(empty);
        self.budget.closing = false;
        let elements = before.saturating_sub(self.elements.len());
        if let Some(closed) = self.budget.closed.get_mut(namespace) {
            closed.elements = elements;
        }
        tracing::warn!(
            namespace,
            policy = %worst,
            most = self.budget.most,
            "network policies need too many elements: those of this namespace allow nothing"
        );
        true
    }

    fn weight_of(&self, policies: &BTreeMap<ObjectKey, Parsed>) -> usize {
        policies.values().fold(0, |sum, parsed| sum.saturating_add(self.weight(parsed)))
    }

    /// Opens the closed namespaces whose elements fit again.
    pub(crate) fn reopen(&mut self) {
        if self.budget.closed.is_empty() {
            return;
        }
        let estimate = |closed: &Closed| {
            let now = self.weight_of(&closed.policies);
            let scaled = closed.elements as u128 * now as u128 / closed.weight.max(1) as u128;
            usize::try_from(scaled).unwrap_or(usize::MAX)
        };
        let all = self.budget.closed.iter();
        let mut all: Vec<(usize, String)> =
            all.map(|(name, closed)| (estimate(closed), name.clone())).collect();
        all.sort_unstable();
        for (elements, namespace) in all {
            let before = self.elements.len();
            if before.saturating_add(elements) > self.budget.most {
                continue;
            }
            let Some(closed) = self.budget.closed.remove(&namespace) else { continue };
            self.budget.tried = Some(namespace.clone());
            self.budget.turned.insert(namespace.clone());
            self.replace(closed.policies.into_iter().map(|(key, parsed)| (key, Some(parsed))).collect());
            self.budget.tried = None;
            match self.budget.closed.get_mut(&namespace) {
                // It was more than the room that there was.
                Some(again) => {
                    let room = self.budget.most.saturating_sub(before);
                    again.elements = again.elements.max(room.saturating_add(1));
                }
                None => tracing::info!(namespace, "network policies of this namespace fit again"),
            }
        }
    }

    /// Returns the policies to tell about since the last call: the heaviest one of a namespace that was
    /// closed, all of one that was opened.
    pub(crate) fn take_turned(&mut self) -> Vec<ObjectKey> {
        let turned = std::mem::take(&mut self.budget.turned);
        let keys = turned.iter().flat_map(|namespace| match self.budget.closed.get(namespace) {
            Some(closed) => vec![closed.worst.clone()],
            None => within(&self.policies, namespace).map(|(key, _)| key.clone()).collect(),
        });
        keys.collect()
    }
}
