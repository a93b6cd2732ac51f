//! One scheduling decision: filters nodes, then scores the feasible ones. Pure.

use std::{borrow::Cow, collections::BTreeMap};

use rand::{Rng, rngs::StdRng};

use crate::{Cluster, Cycle, Filter, NodeInfo, PodInfo, Reject, Score, WakeOn};

/// The plugins of a scheduler.
pub(crate) struct Profile {
    pub(crate) filters: Vec<Box<dyn Filter>>,
    pub(crate) scores: Vec<(i64, Box<dyn Score>)>,
}

/// Feasible nodes after which the search stops. (Upstream examines up to half of the nodes; that improves the
/// choice little and takes many times as long.)
const ENOUGH: usize = 100;

/// A node for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fit {
    /// Name of the node with the highest score.
    pub(crate) node: String,
    /// Number of nodes that were filtered.
    pub(crate) evaluated: usize,
    /// Number of nodes that passed all filters.
    pub(crate) feasible: usize,
}

/// The reasons for which no node is feasible.
#[derive(Clone, Debug)]
pub(crate) struct Unschedulable {
    /// Upstream's message, without the part about preemption.
    pub(crate) message: String,
    /// Kinds of changes that may make the pod schedulable.
    pub(crate) wakes_on: WakeOn,
    /// Names of nodes on which preemption could help.
    pub(crate) resolvable: Vec<String>,
    /// Number of nodes in the cluster.
    pub(crate) nodes: usize,
}

/// Outcome of a decision.
#[derive(Clone, Debug)]
pub(crate) enum Decision {
    /// A feasible node was found.
    Fits(Fit),
    /// No node is feasible.
    Nowhere(Unschedulable),
}

impl Profile {
    /// Decides for one pod. The search begins at node `start` and advances it, so that all nodes get their
    /// turn.
    pub(crate) fn decide(
        &self,
        cluster: &Cluster,
        pod: &PodInfo,
        start: &mut usize,
        rng: &mut StdRng,
    ) -> Decision {
        let nodes = cluster.nodes();
        if nodes.is_empty() {
            return Decision::Nowhere(Unschedulable {
                message: "no nodes available to schedule pods".into(),
                wakes_on: WakeOn::NODE,
                resolvable: Vec::new(),
                nodes: 0,
            });
        }
        let mut cx = Cycle::new(cluster);
        let mut asked: Vec<&dyn Filter> = Vec::with_capacity(self.filters.len());
        for filter in &self.filters {
            match filter.prepare(&mut cx, pod) {
                Ok(true) => asked.push(&**filter),
                Ok(false) => {}
                Err(reject) => {
                    let why = reject.reasons.join(", ");
                    return Decision::Nowhere(Unschedulable {
                        message: format!("0/{} nodes are available: {why}.", nodes.len()),
                        wakes_on: filter.wakes_on(),
                        resolvable: Vec::new(),
                        nodes: nodes.len(),
                    });
                }
            }
        }
        let mut feasible: Vec<&NodeInfo> = Vec::with_capacity(ENOUGH.min(nodes.len()));
        let mut refused = Refused::default();
        let mut evaluated = 0;
        let first = *start % nodes.len();
        for node in nodes[first..].iter().chain(&nodes[..first]) {
            evaluated += 1;
            match asked.iter().find_map(|f| f.filter(&cx, pod, node).err().map(|r| (f, r))) {
                None => {
                    feasible.push(node);
                    if feasible.len() == ENOUGH {
                        break;
                    }
                }
                Some((filter, reject)) => refused.note(node, reject, filter.wakes_on()),
            }
        }
        *start = (first + evaluated) % nodes.len();
        if feasible.is_empty() {
            return Decision::Nowhere(refused.sum_up(nodes.len()));
        }
        let best = self.best(&mut cx, pod, &feasible, rng);
        Decision::Fits(Fit { node: feasible[best].name().to_owned(), evaluated, feasible: feasible.len() })
    }

    /// Returns true if `node` passes all filters. For preemption: `node` may differ from the cluster's.
    pub(crate) fn fits(&self, cluster: &Cluster, pod: &PodInfo, node: &NodeInfo) -> bool {
        let mut cx = Cycle::new(cluster);
        self.filters.iter().all(|f| match f.prepare(&mut cx, pod) {
            Ok(true) => f.filter(&cx, pod, node).is_ok(),
            Ok(false) => true,
            Err(_) => false,
        })
    }

    fn best(&self, cx: &mut Cycle<'_>, pod: &PodInfo, feasible: &[&NodeInfo], rng: &mut StdRng) -> usize {
        if feasible.len() == 1 {
            return 0;
        }
        let mut totals = vec![0i64; feasible.len()];
        let mut scores = vec![0i64; feasible.len()];
        for (weight, score) in &self.scores {
            if !score.prepare(cx, pod) {
                continue;
            }
            for (slot, node) in scores.iter_mut().zip(feasible) {
                *slot = score.score(cx, pod, node);
            }
            score.normalize(&mut scores);
            for (total, score) in totals.iter_mut().zip(&scores) {
                *total = total.saturating_add(weight.saturating_mul(*score));
            }
        }
        // Picks one of the nodes with the highest score at random, with equal probability.
        let mut best = 0;
        let mut ties = 1u32;
        for at in 1..totals.len() {
            if totals[at] > totals[best] {
                (best, ties) = (at, 1);
            } else if totals[at] == totals[best] {
                ties += 1;
                if rng.random_range(0..ties) == 0 {
                    best = at;
                }
            }
        }
        best
    }
}

/// Reasons of the rejections, with the number of nodes for each.
struct Refused {
    reasons: BTreeMap<Cow<'static, str>, usize>,
    wakes_on: WakeOn,
    resolvable: Vec<String>,
}

impl Default for Refused {
    fn default() -> Self {
        Refused { reasons: BTreeMap::new(), wakes_on: WakeOn::NODE, resolvable: Vec::new() }
    }
}

impl Refused {
    fn note(&mut self, node: &NodeInfo, reject: Reject, wakes_on: WakeOn) {
        self.wakes_on = self.wakes_on.or(wakes_on);
        if reject.resolvable {
            self.resolvable.push(node.name().to_owned());
        }
        for reason in reject.reasons {
            *self.reasons.entry(reason).or_default() += 1;
        }
    }

    fn sum_up(self, nodes: usize) -> Unschedulable {
        let mut parts: Vec<String> = self.reasons.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
        parts.sort();
        Unschedulable {
            message: format!("0/{nodes} nodes are available: {}.", parts.join(", ")),
            wakes_on: self.wakes_on,
            resolvable: self.resolvable,
            nodes,
        }
    }
}

#[cfg(test)]
mod tests;
