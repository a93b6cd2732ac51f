//! One decision: which nodes can take the pod, and which of them is best. Pure: it reads the cluster and changes nothing.

use std::{borrow::Cow, collections::BTreeMap};

use rand::{Rng, rngs::StdRng};

use crate::{Cluster, Cycle, Filter, NodeInfo, PodInfo, Reject, Score, WakeOn};

/// The plugins of a scheduler.
pub(crate) struct Profile {
    pub(crate) filters: Vec<Box<dyn Filter>>,
    pub(crate) scores: Vec<(i64, Box<dyn Score>)>,
}

/// How many nodes that fit are enough to choose from. (Upstream looks at up to half of the nodes; the choice is hardly better, and it takes
/// many times as long.)
const ENOUGH: usize = 100;

/// Where a pod fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fit {
    /// The best node.
    pub node: String,
    /// How many nodes were looked at.
    pub evaluated: usize,
    /// How many of them fit.
    pub feasible: usize,
}

/// Why a pod fits nowhere.
#[derive(Clone, Debug)]
pub struct Unschedulable {
    /// In upstream's words, without what preemption has to say.
    pub message: String,
    /// Which changes may help.
    pub wakes_on: WakeOn,
    /// Nodes on which deleting other pods could help.
    pub resolvable: Vec<String>,
    /// How many nodes there are.
    pub nodes: usize,
}

/// What came of it.
#[derive(Clone, Debug)]
pub enum Decision {
    /// It fits.
    Fits(Fit),
    /// It fits nowhere.
    Nowhere(Unschedulable),
}

impl Profile {
    /// Decides. `start` says at which node to begin, so that all nodes get their turn.
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

    /// Whether one node can take the pod (for preemption: `node` need not be as the cluster has it).
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
        // Any of the best, each as likely as the others.
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

/// Why nodes were refused.
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
