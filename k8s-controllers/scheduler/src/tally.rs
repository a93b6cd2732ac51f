//! Numbers of selected pods per node, kept while the same selector is asked for again and again.
//!
//! Guarantee: a tally equals a count over all pods of its namespace that are not being deleted. It is made by
//! the first question and updated by every placement and removal. The least recently asked one is dropped
//! when there are [`MOST`] in all.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use k8s_core::meta::{LabelSelector, ObjectExt};

use crate::PodInfo;

/// Limit of tallies.
const MOST: usize = 1024;

/// Numbers of pods by the node's name; nodes without such pods are absent.
pub(crate) type Counts = HashMap<String, i64>;

struct Tally {
    selector: LabelSelector,
    counts: Arc<Counts>,
    asked: u64,
}

/// The tallies by namespace.
#[derive(Default)]
pub(crate) struct Tallies(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    by_namespace: HashMap<String, Vec<Tally>>,
    number: usize,
    asked: u64,
}

fn counts(selector: &LabelSelector, pod: &PodInfo) -> bool {
    !pod.pod.is_deleting() && selector.matches(pod.pod.metadata.labels.as_ref())
}

impl Tallies {
    /// Returns the numbers for a selector. `all` lists the placed pods with their nodes.
    pub(crate) fn of<'a>(
        &self,
        namespace: &str,
        selector: &LabelSelector,
        all: impl Iterator<Item = (&'a str, &'a Arc<PodInfo>)>,
    ) -> Arc<Counts> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.asked += 1;
        let asked = inner.asked;
        if let Some(list) = inner.by_namespace.get_mut(namespace)
            && let Some(tally) = list.iter_mut().find(|t| t.selector == *selector)
        {
            tally.asked = asked;
            return tally.counts.clone();
        }
        let mut numbers = Counts::new();
        for (node, _) in all.filter(|(_, pod)| pod.key.namespace == namespace && counts(selector, pod)) {
            match numbers.get_mut(node) {
                Some(number) => *number += 1,
                None => drop(numbers.insert(node.to_owned(), 1)),
            }
        }
        if inner.number >= MOST {
            inner.drop_oldest();
        }
        inner.number += 1;
        let numbers = Arc::new(numbers);
        let tally = Tally { selector: selector.clone(), counts: numbers.clone(), asked };
        inner.by_namespace.entry(namespace.to_owned()).or_default().push(tally);
        numbers
    }

    /// Counts a pod that came to a node (`by` is 1) or left it (-1).
    pub(crate) fn moved(&mut self, pod: &PodInfo, node: &str, by: i64) {
        let inner = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        for tally in inner.by_namespace.get_mut(&pod.key.namespace).into_iter().flatten() {
            if !counts(&tally.selector, pod) {
                continue;
            }
            let numbers = Arc::make_mut(&mut tally.counts);
            match numbers.get_mut(node) {
                Some(number) => {
                    *number += by;
                    if *number == 0 {
                        numbers.remove(node);
                    }
                }
                None => drop(numbers.insert(node.to_owned(), by)),
            }
        }
    }
}

impl Inner {
    fn drop_oldest(&mut self) {
        let oldest = self.by_namespace.values().flatten().map(|t| t.asked).min();
        for list in self.by_namespace.values_mut() {
            list.retain(|t| Some(t.asked) != oldest);
        }
        self.by_namespace.retain(|_, list| !list.is_empty());
        self.number = self.by_namespace.values().map(Vec::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use k8s_core::api::api::core::v1::Pod;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn pod(id: u8) -> Arc<PodInfo> {
        let labels = json!({"app": if id.is_multiple_of(2) { "even" } else { "odd" }});
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"namespace": format!("n{}", id % 3), "name": id.to_string(), "labels": labels}}),
        )
        .unwrap();
        Arc::new(PodInfo::new(Arc::new(pod)))
    }

    proptest! {
        /// Whatever comes and goes, a tally equals a count over all.
        #[test]
        fn a_tally_is_a_count(ops in proptest::collection::vec((0..12u8, 0..4u8), 0..60)) {
            let mut tallies = Tallies::default();
            let selector: LabelSelector = "app=even".parse().unwrap();
            let mut placed: Vec<(u8, String)> = Vec::new();
            for (id, node) in ops {
                match placed.iter().position(|(p, _)| *p == id) {
                    Some(at) => {
                        let (_, node) = placed.remove(at);
                        tallies.moved(&pod(id), &node, -1);
                    }
                    None => {
                        tallies.moved(&pod(id), &node.to_string(), 1);
                        placed.push((id, node.to_string()));
                    }
                }
                let pods: Vec<(String, Arc<PodInfo>)> = placed.iter().map(|(p, n)| (n.clone(), pod(*p))).collect();
                let all = || pods.iter().map(|(n, p)| (n.as_str(), p));
                let fresh = Tallies::default().of("n0", &selector, all());
                prop_assert_eq!(tallies.of("n0", &selector, all()), fresh);
            }
        }
    }

    #[test]
    fn the_number_of_tallies_is_bounded() {
        let tallies = Tallies::default();
        for i in 0..MOST + 10 {
            tallies.of("n", &format!("a={i}").parse().unwrap(), std::iter::empty());
        }
        assert_eq!(tallies.0.lock().unwrap().number, MOST);
    }
}
