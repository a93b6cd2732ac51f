//! One scheduling decision: filters nodes, then scores the feasible ones. Pure.
//!
//! Flow: [`Filtering`] finds feasible nodes, and one of them is chosen by the scores (`scoring`). Results
//! that depend on one node alone are kept from pod to pod (`memo`). With extenders, `extender::decide` asks
//! them between steps of the filtering. [`Trial`] is the search for victims if no node is feasible.
//! Guarantee: the feasible nodes and the ones with the highest score are those of asking every plugin about
//! every node.

mod filtering;
mod memo;
mod refusals;
mod scoring;
mod trial;
mod trials;

use std::sync::Arc;

use rand::rngs::StdRng;

pub(crate) use self::filtering::Filtering;
use self::{filtering::Sum, memo::Memos, trial::Trial, trials::Trials};
use crate::{Cluster, Cycle, NodeInfo, Nomination, PodInfo, Points, Reject, WakeOn};

/// Limit of a profile's plugins: a refusal names them by one bit each.
pub(crate) const MOST_PLUGINS: usize = 64;

/// The plugins of a scheduler.
#[derive(Clone, Debug)]
pub(crate) struct Profile {
    /// The `schedulerName` of its pods.
    pub(crate) name: String,
    pub(crate) rows: Vec<Points>,
    /// Feasible nodes after which the search stops.
    pub(crate) enough: Enough,
}

/// The number of feasible nodes after which a search stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Enough {
    /// It does not stop: all feasible nodes are scored.
    All,
    /// This number.
    #[cfg(test)]
    Number(usize),
    /// A percentage of the nodes, but at least 100.
    Percentage(usize),
}

impl Enough {
    /// Returns the number. With extenders, which are sent the feasible nodes, the default is 100.
    pub(crate) fn of(self, nodes: usize, extenders: bool) -> usize {
        match self {
            Enough::All if extenders => 100,
            Enough::All => usize::MAX,
            #[cfg(test)]
            Enough::Number(number) => number,
            Enough::Percentage(part) => (nodes * part / 100).max(100),
        }
    }
}

/// State that a profile keeps from decision to decision about one cluster.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Index of the node at which the next search begins that does not examine all.
    start: usize,
    memos: Memos,
    trials: Trials,
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
    /// Indexes of nodes on which preemption could help.
    pub(crate) resolvable: Vec<u32>,
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
    /// Decides for one pod without extenders. `kept` must be of this profile.
    pub(crate) fn decide<T: Trace>(
        &self,
        cluster: &Cluster,
        pod: &PodInfo,
        kept: &mut Kept,
        rng: &mut StdRng,
        trace: &mut T,
    ) -> Decision {
        let mut filtering = match Filtering::start(self, cluster, pod, kept, trace) {
            Ok(filtering) => filtering,
            Err(why) => return Decision::Nowhere(why),
        };
        if !T::FULL
            && let Some(node) = filtering.nominated()
        {
            return Decision::Fits(Fit { node: node.name().to_owned(), evaluated: 1, feasible: 1 });
        }
        let enough = if T::FULL { usize::MAX } else { self.enough.of(cluster.nodes().len(), false) };
        let feasible = filtering.next(enough, trace);
        if feasible.is_empty() {
            return Decision::Nowhere(filtering.nowhere());
        }
        Decision::Fits(filtering.choose(&feasible, &[], rng, trace))
    }

    /// Asks the plugins before the nodes; returns the rows whose filter is to be asked, and those that
    /// restricted the decision to nodes by name. Filters whose results are kept are asked first.
    fn pre_filter<T: Trace>(
        &self,
        cx: &mut Cycle<'_>,
        pod: &PodInfo,
        trace: &mut T,
    ) -> Result<(Asked, Vec<usize>), Unschedulable> {
        let total = cx.cluster().nodes().len();
        let (mut asked, mut restricting) = (Asked::with_capacity(self.rows.len()), Vec::new());
        let mut failed: Option<(usize, Reject)> = None;
        for (at, row) in self.rows.iter().enumerate() {
            let wanted = match &row.pre_filter {
                None => true,
                Some(plugin) => {
                    let before = cx.only().map(<[String]>::len);
                    let asked = plugin.pre_filter(cx, pod);
                    if cx.only().map(<[String]>::len) != before {
                        restricting.push(at);
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
                let names: Vec<&str> = restricting.iter().map(|at| &*self.rows[*at].name).collect();
                let reason = match names[..] {
                    [name] => format!("node(s) didn't satisfy plugin {name}"),
                    _ => format!("node(s) didn't satisfy plugin(s) [{}] simultaneously", names.join(" ")),
                };
                failed = Some((at, Reject::never(reason)));
                break;
            }
        }
        let Some((at, reject)) = failed else {
            asked.sort_by_key(|at| self.rows[*at].per_node.is_none());
            return Ok((asked, restricting));
        };
        let all = u32::try_from(total).unwrap_or(u32::MAX);
        let resolvable = if reject.resolvable { (0..all).collect() } else { Vec::new() };
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
        self.beside_nominated(cx, asked, pod, node)?;
        self.pass(cx, asked, pod, node)
    }

    /// Asks the filters about a node with the pods on it that wait for room there.
    fn beside_nominated(
        &self,
        cx: &mut Cycle<'_>,
        asked: &Asked,
        pod: &PodInfo,
        node: &NodeInfo,
    ) -> Result<(), (usize, Reject)> {
        let expected = cx.cluster().nominated_on(node.name()).iter();
        let others: Vec<&Arc<PodInfo>> =
            expected.filter(|p| p.priority >= pod.priority && p.uid() != pod.uid()).collect();
        if others.is_empty() {
            return Ok(());
        }
        let mut crowded = node.clone();
        for other in &others {
            crowded.add((*other).clone());
            self.moved(cx, asked, pod, other, node, 1);
        }
        let outcome = self.pass(cx, asked, pod, &crowded);
        for other in &others {
            self.moved(cx, asked, pod, other, node, -1);
        }
        outcome
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

    fn sum_up(&self, sum: Sum, restricting: &[usize], nodes: usize) -> Unschedulable {
        let Sum { mut reasons, by: mut refused_by, extended, resolvable, absent } = sum;
        if absent > 0 {
            let names: Vec<&str> = restricting.iter().map(|at| &*self.rows[*at].name).collect();
            let reason = format!("node(s) didn't satisfy plugin(s) [{}]", names.join(" "));
            reasons.insert(reason.into(), absent);
            refused_by |= restricting.iter().fold(0, |all, at| all | 1 << at);
        }
        let mut parts: Vec<String> = reasons.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
        parts.sort();
        let message = match parts[..] {
            [] => format!("0/{nodes} nodes are available:"),
            _ => format!("0/{nodes} nodes are available: {}.", parts.join(", ")),
        };
        let mut wakes_on =
            self.refusers(refused_by).fold(WakeOn::NODE_ADDED, |all, row| all.or(row.wakes_on()));
        if extended {
            // An extender does not tell which changes help.
            (refused_by, wakes_on) = (0, WakeOn::ANYTHING);
        }
        Unschedulable { message, refused_by, wakes_on, resolvable }
    }

    /// Returns the plugins of a set of refusals.
    pub(crate) fn refusers(&self, refused_by: u64) -> impl Iterator<Item = &Points> {
        self.rows.iter().enumerate().filter(move |(at, _)| refused_by & (1 << at) != 0).map(|(_, row)| row)
    }

    /// Asks the plugins to make room; the first that does something decides. `kept` must be of this profile.
    pub(crate) fn post_filter(
        &self,
        cluster: &Cluster,
        pod: &PodInfo,
        why: &Unschedulable,
        kept: &mut Kept,
    ) -> Nomination {
        let mut reasons: Vec<String> = Vec::new();
        let mut cx = Cycle::new(cluster);
        let asked = self.pre_filter(&mut cx, pod, &mut ()).map(|(asked, _)| asked).unwrap_or_default();
        let resolvable = if asked.is_empty() { &[] } else { why.resolvable.as_slice() };
        let known = kept.trials.known(self, cluster, pod, &asked);
        let mut trial = Trial::new(self, cx, asked, pod, resolvable, known);
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
