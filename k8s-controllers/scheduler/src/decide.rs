//! One scheduling decision: filters nodes, then scores the feasible ones. Pure.
//!
//! Flow: [`Filtering`] finds feasible nodes step by step, and one of them is chosen by the scores. With
//! extenders, `extender::decide` asks them between the steps. [`Trial`] is the search for victims if no node
//! is feasible.

mod filtering;
mod trial;

use std::sync::Arc;

use rand::{Rng, rngs::StdRng};

pub(crate) use self::filtering::Filtering;
use self::{filtering::Refused, trial::Trial};
use crate::{Cluster, Cycle, NodeInfo, Nomination, PodInfo, Points, Reject, WakeOn};

/// Limit of a profile's plugins: a refusal names them by one bit each.
pub(crate) const MOST_PLUGINS: usize = 64;

/// The plugins of a scheduler.
#[derive(Clone, Debug)]
pub(crate) struct Profile {
    /// The `schedulerName` of its pods.
    pub(crate) name: String,
    pub(crate) rows: Vec<Points>,
    /// Feasible nodes after which the search stops. (Upstream examines up to half of the nodes; that improves
    /// the choice little and takes many times as long.)
    pub(crate) enough: Enough,
}

/// The number of feasible nodes after which a search stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Enough {
    /// This number.
    Number(usize),
    /// A percentage of the nodes, but at least 100.
    Percentage(usize),
}

impl Enough {
    pub(crate) fn of(self, nodes: usize) -> usize {
        match self {
            Enough::Number(number) => number,
            Enough::Percentage(part) => (nodes * part / 100).max(100),
        }
    }
}

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
    /// The plugins that refused, one bit for each row. 0: every change of [`Unschedulable::wakes_on`] may
    /// help.
    pub(crate) refused_by: u64,
    /// Kinds of changes that may make the pod schedulable.
    pub(crate) wakes_on: WakeOn,
    /// Names of nodes on which preemption could help.
    pub(crate) resolvable: Vec<String>,
}

/// Outcome of a decision.
#[derive(Clone, Debug)]
pub(crate) enum Decision {
    /// A feasible node was found.
    Fits(Fit),
    /// No node is feasible.
    Nowhere(Unschedulable),
}

/// Learns the reasons of a decision while it is made.
pub(crate) trait Trace {
    /// True if all nodes are examined and scores are computed even for a single feasible one.
    const FULL: bool;
    /// A plugin or an extender refused a node, or all of them (`None`).
    fn refused(&mut self, node: Option<&NodeInfo>, plugin: &str, reject: &Reject);
    /// A plugin or an extender scored the feasible nodes.
    fn scored(&mut self, plugin: &str, weight: i64, nodes: &[&NodeInfo], raw: &[i64], normalized: &[i64]);
}

/// No trace.
impl Trace for () {
    const FULL: bool = false;
    fn refused(&mut self, _: Option<&NodeInfo>, _: &str, _: &Reject) {}
    fn scored(&mut self, _: &str, _: i64, _: &[&NodeInfo], _: &[i64], _: &[i64]) {}
}

/// The rows whose filter is asked in one decision.
type Asked = Vec<usize>;

impl Profile {
    /// Decides for one pod without extenders. The search begins at node `start` and advances it, so that all
    /// nodes get their turn.
    pub(crate) fn decide<T: Trace>(
        &self,
        cluster: &Cluster,
        pod: &PodInfo,
        start: &mut usize,
        rng: &mut StdRng,
        trace: &mut T,
    ) -> Decision {
        let mut filtering = match Filtering::start(self, cluster, pod, trace) {
            Ok(filtering) => filtering,
            Err(why) => return Decision::Nowhere(why),
        };
        if !T::FULL
            && let Some(node) = filtering.nominated()
        {
            return Decision::Fits(Fit { node: node.name().to_owned(), evaluated: 1, feasible: 1 });
        }
        let enough = if T::FULL { usize::MAX } else { self.enough.of(cluster.nodes().len()) };
        let feasible = filtering.next(enough, start, trace);
        if feasible.is_empty() {
            return Decision::Nowhere(filtering.nowhere());
        }
        Decision::Fits(filtering.choose(&feasible, &[], rng, trace))
    }

    /// Asks the plugins before the nodes; returns the rows whose filter is to be asked.
    fn pre_filter<T: Trace>(
        &self,
        cx: &mut Cycle<'_>,
        pod: &PodInfo,
        trace: &mut T,
    ) -> Result<(Asked, Refused), Unschedulable> {
        let total = cx.cluster().nodes().len();
        let (mut asked, mut refused) = (Asked::with_capacity(self.rows.len()), Refused::default());
        let mut failed: Option<(usize, Reject)> = None;
        for (at, row) in self.rows.iter().enumerate() {
            let wanted = match &row.pre_filter {
                None => true,
                Some(plugin) => {
                    let before = cx.only().map(<[String]>::len);
                    let asked = plugin.pre_filter(cx, pod);
                    if cx.only().map(<[String]>::len) != before {
                        refused.restricting.push(at);
                    }
                    match asked {
                        Ok(asked) => asked,
                        Err(reject) => {
                            trace.refused(None, &row.name, &reject);
                            // Others may say more, unless nothing can help.
                            let last = !reject.resolvable;
                            failed = Some((at, reject));
                            if last {
                                break;
                            }
                            false
                        }
                    }
                }
            };
            if wanted && row.filter.is_some() {
                asked.push(at);
            }
            if cx.only().is_some_and(<[String]>::is_empty) {
                let names: Vec<&str> = refused.restricting.iter().map(|at| &*self.rows[*at].name).collect();
                let reason = match names[..] {
                    [name] => format!("node(s) didn't satisfy plugin {name}"),
                    _ => format!("node(s) didn't satisfy plugin(s) [{}] simultaneously", names.join(" ")),
                };
                failed = Some((at, Reject::never(reason)));
                break;
            }
        }
        let Some((at, reject)) = failed else { return Ok((asked, refused)) };
        let resolvable = match reject.resolvable {
            true => cx.cluster().nodes().iter().map(|node| node.name().to_owned()).collect(),
            false => Vec::new(),
        };
        Err(Unschedulable {
            message: format!("0/{total} nodes are available: {}.", reject.reasons.join(", ")),
            refused_by: 1 << at,
            wakes_on: self.rows[at].wakes_on().or(WakeOn::NODE_ADDED),
            resolvable,
        })
    }

    /// Asks the filters about one node, with the pods of at least the same priority that wait for room on it,
    /// and without them: they may never come.
    fn check(
        &self,
        cx: &mut Cycle<'_>,
        asked: &Asked,
        pod: &PodInfo,
        node: &NodeInfo,
    ) -> Result<(), (usize, Reject)> {
        let expected = cx.cluster().nominated_on(node.name());
        if !expected.is_empty() {
            let others: Vec<&Arc<PodInfo>> =
                expected.iter().filter(|p| p.priority >= pod.priority && p.uid() != pod.uid()).collect();
            if !others.is_empty() {
                let mut crowded = node.clone();
                for other in &others {
                    crowded.add((*other).clone());
                    self.moved(cx, asked, pod, other, node, 1);
                }
                let outcome = self.pass(cx, asked, pod, &crowded);
                for other in &others {
                    self.moved(cx, asked, pod, other, node, -1);
                }
                outcome?;
            }
        }
        self.pass(cx, asked, pod, node)
    }

    fn pass(
        &self,
        cx: &Cycle<'_>,
        asked: &Asked,
        pod: &PodInfo,
        node: &NodeInfo,
    ) -> Result<(), (usize, Reject)> {
        for at in asked {
            if let Some(filter) = &self.rows[*at].filter
                && let Err(reject) = filter.filter(cx, pod, node)
            {
                return Err((*at, reject));
            }
        }
        Ok(())
    }

    fn moved(
        &self,
        cx: &mut Cycle<'_>,
        asked: &Asked,
        pod: &PodInfo,
        other: &PodInfo,
        node: &NodeInfo,
        by: i64,
    ) {
        for at in asked {
            if let Some(plugin) = &self.rows[*at].pre_filter {
                plugin.moved(cx, pod, other, node, by);
            }
        }
    }

    /// Returns the index of the node with the highest score. `added` has the extenders' part of the scores,
    /// if there are any.
    fn best<T: Trace>(
        &self,
        cx: &mut Cycle<'_>,
        pod: &PodInfo,
        feasible: &[&NodeInfo],
        added: &[i64],
        rng: &mut StdRng,
        trace: &mut T,
    ) -> usize {
        if feasible.len() == 1 && !T::FULL {
            return 0;
        }
        let mut totals = vec![0i64; feasible.len()];
        totals.iter_mut().zip(added).for_each(|(total, score)| *total = *score);
        let mut scores = vec![0i64; feasible.len()];
        for row in &self.rows {
            let Some(score) = &row.score else { continue };
            if row.pre_score.as_ref().is_some_and(|plugin| !plugin.pre_score(cx, pod, feasible)) {
                continue;
            }
            for (slot, node) in scores.iter_mut().zip(feasible) {
                *slot = score.score(cx, pod, node);
            }
            let raw = if T::FULL { scores.clone() } else { Vec::new() };
            if let Some(plugin) = &row.normalize {
                plugin.normalize(cx, pod, feasible, &mut scores);
            }
            trace.scored(&row.name, row.weight, feasible, &raw, &scores);
            for (total, score) in totals.iter_mut().zip(&scores) {
                *total = total.saturating_add(row.weight.saturating_mul(*score));
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

    fn sum_up(&self, refused: Refused, nodes: usize) -> Unschedulable {
        let mut reasons = refused.reasons;
        let mut refused_by = refused.by;
        if refused.absent > 0 {
            let names: Vec<&str> = refused.restricting.iter().map(|at| &*self.rows[*at].name).collect();
            let reason = format!("node(s) didn't satisfy plugin(s) [{}]", names.join(" "));
            reasons.insert(reason.into(), refused.absent);
            refused_by |= refused.restricting.iter().fold(0, |all, at| all | 1 << at);
        }
        let mut parts: Vec<String> = reasons.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
        parts.sort();
        let message = match parts[..] {
            [] => format!("0/{nodes} nodes are available:"),
            _ => format!("0/{nodes} nodes are available: {}.", parts.join(", ")),
        };
        let mut wakes_on =
            self.refusers(refused_by).fold(WakeOn::NODE_ADDED, |all, row| all.or(row.wakes_on()));
        if refused.extended {
            // An extender does not tell which changes help.
            (refused_by, wakes_on) = (0, WakeOn::ANYTHING);
        }
        Unschedulable { message, refused_by, wakes_on, resolvable: refused.resolvable }
    }

    /// Returns the plugins of a set of refusals.
    pub(crate) fn refusers(&self, refused_by: u64) -> impl Iterator<Item = &Points> {
        self.rows.iter().enumerate().filter(move |(at, _)| refused_by & (1 << at) != 0).map(|(_, row)| row)
    }

    /// Asks the plugins to make room; the first that does something decides.
    pub(crate) fn post_filter(&self, cluster: &Cluster, pod: &PodInfo, why: &Unschedulable) -> Nomination {
        let mut reasons: Vec<String> = Vec::new();
        let mut cx = Cycle::new(cluster);
        let asked = self.pre_filter(&mut cx, pod, &mut ()).map(|(asked, _)| asked).unwrap_or_default();
        let resolvable = if asked.is_empty() { &[] } else { why.resolvable.as_slice() };
        let mut trial = Trial::new(self, cx, asked, pod, resolvable);
        for plugin in self.rows.iter().filter_map(|row| row.post_filter.as_ref()) {
            match plugin.post_filter(&mut trial) {
                Nomination::No(reason) => reasons.extend(Some(reason).filter(|r| !r.is_empty())),
                other => return other,
            }
            trial.leave();
        }
        Nomination::No(reasons.join(", "))
    }
}

#[cfg(test)]
mod tests;
