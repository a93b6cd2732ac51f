//! One scheduling decision: filters nodes, then scores the feasible ones. Pure.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use rand::{Rng, rngs::StdRng};

use crate::{Cluster, Cycle, NodeInfo, Nomination, PodInfo, Points, Reject, Search, WakeOn};

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
    fn of(self, nodes: usize) -> usize {
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
    /// The plugins that refused, one bit for each row.
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
    /// A plugin refused a node, or all of them (`None`).
    fn refused(&mut self, node: Option<&NodeInfo>, plugin: &str, reject: &Reject);
    /// A plugin scored the feasible nodes.
    fn scored(&mut self, plugin: &Points, nodes: &[&NodeInfo], raw: &[i64], normalized: &[i64]);
}

/// No trace.
impl Trace for () {
    const FULL: bool = false;
    fn refused(&mut self, _: Option<&NodeInfo>, _: &str, _: &Reject) {}
    fn scored(&mut self, _: &Points, _: &[&NodeInfo], _: &[i64], _: &[i64]) {}
}

/// The rows whose filter is asked in one decision.
type Asked = Vec<usize>;

impl Profile {
    /// Decides for one pod. The search begins at node `start` and advances it, so that all nodes get their
    /// turn.
    pub(crate) fn decide<T: Trace>(
        &self,
        cluster: &Cluster,
        pod: &PodInfo,
        start: &mut usize,
        rng: &mut StdRng,
        trace: &mut T,
    ) -> Decision {
        let nodes = cluster.nodes();
        if nodes.is_empty() {
            return Decision::Nowhere(Unschedulable {
                message: "no nodes available to schedule pods".into(),
                refused_by: 0,
                wakes_on: WakeOn::NODE_ADDED,
                resolvable: Vec::new(),
            });
        }
        let mut cx = Cycle::new(cluster);
        let (asked, mut refused) = match self.pre_filter(&mut cx, pod, trace) {
            Ok(found) => found,
            Err(why) => return Decision::Nowhere(why),
        };
        let enough = if T::FULL { usize::MAX } else { self.enough.of(nodes.len()) };
        let mut feasible: Vec<&NodeInfo> = Vec::with_capacity(enough.min(nodes.len()));
        let mut evaluated = 0;
        // Returns true when the search may stop.
        let mut examine = |node, cx: &mut Cycle<'_>, trace: &mut T| {
            evaluated += 1;
            match self.check(cx, &asked, pod, node) {
                Ok(()) => {
                    feasible.push(node);
                    feasible.len() >= enough
                }
                Err((at, reject)) => {
                    trace.refused(Some(node), &self.rows[at].name, &reject);
                    refused.note(node, reject, at);
                    false
                }
            }
        };
        // A nominated node is tried first: room was made there.
        let nominated = pod.pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref());
        let nominated = nominated.and_then(|name| cluster.node(name));
        let mut done = false;
        if let Some(node) = nominated.filter(|_| !T::FULL && cx.only().is_none()) {
            let fits = self.check(&mut cx, &asked, pod, node).is_ok();
            if fits {
                return Decision::Fits(Fit { node: node.name().to_owned(), evaluated: 1, feasible: 1 });
            }
        }
        if let Some(names) = cx.only().map(<[String]>::to_vec) {
            for node in names.iter().filter_map(|name| cluster.node(name)) {
                examine(node, &mut cx, trace);
            }
            refused.absent = nodes.len() - evaluated;
        } else {
            let first = *start % nodes.len();
            for node in nodes[first..].iter().chain(&nodes[..first]) {
                if done {
                    break;
                }
                done = examine(node, &mut cx, trace);
            }
            *start = (first + evaluated) % nodes.len();
        }
        if feasible.is_empty() {
            return Decision::Nowhere(self.sum_up(refused, nodes.len()));
        }
        let best = self.best(&mut cx, pod, &feasible, rng, trace);
        Decision::Fits(Fit { node: feasible[best].name().to_owned(), evaluated, feasible: feasible.len() })
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

    fn best<T: Trace>(
        &self,
        cx: &mut Cycle<'_>,
        pod: &PodInfo,
        feasible: &[&NodeInfo],
        rng: &mut StdRng,
        trace: &mut T,
    ) -> usize {
        if feasible.len() == 1 && !T::FULL {
            return 0;
        }
        let mut totals = vec![0i64; feasible.len()];
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
            trace.scored(row, feasible, &raw, &scores);
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
        Unschedulable {
            message: format!("0/{nodes} nodes are available: {}.", parts.join(", ")),
            wakes_on: self.refusers(refused_by).fold(WakeOn::NODE_ADDED, |all, row| all.or(row.wakes_on())),
            refused_by,
            resolvable: refused.resolvable,
        }
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
        let mut trial = Trial { profile: self, cx, asked, pod, resolvable, node: None, away: Vec::new() };
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

/// A search for victims. The state of the cycle is kept equal to the copy of the node.
struct Trial<'a> {
    profile: &'a Profile,
    cx: Cycle<'a>,
    asked: Asked,
    pod: &'a PodInfo,
    resolvable: &'a [String],
    node: Option<NodeInfo>,
    /// Pods that the copy lacks.
    away: Vec<Arc<PodInfo>>,
}

impl Trial<'_> {
    fn moved(&mut self, other: &PodInfo, by: i64) {
        if let Some(node) = &self.node {
            self.profile.moved(&mut self.cx, &self.asked, self.pod, other, node, by);
        }
    }

    fn leave(&mut self) {
        for pod in std::mem::take(&mut self.away) {
            self.moved(&pod, 1);
        }
        self.node = None;
    }
}

impl Search for Trial<'_> {
    fn cluster(&self) -> &Cluster {
        self.cx.cluster()
    }

    fn pod(&self) -> &PodInfo {
        self.pod
    }

    fn resolvable(&self) -> &[String] {
        self.resolvable
    }

    fn visit(&mut self, node: &str) -> bool {
        self.leave();
        self.node = self.cx.cluster().node(node).cloned();
        self.node.is_some()
    }

    fn remove(&mut self, pod: &Arc<PodInfo>) {
        if self.node.as_mut().is_some_and(|node| node.remove(pod.uid())) {
            self.moved(pod, -1);
            self.away.push(pod.clone());
        }
    }

    fn restore(&mut self, pod: &Arc<PodInfo>) {
        let Some(at) = self.away.iter().position(|p| p.uid() == pod.uid()) else { return };
        let pod = self.away.swap_remove(at);
        self.moved(&pod, 1);
        if let Some(node) = &mut self.node {
            node.add(pod);
        }
    }

    fn fits(&mut self) -> bool {
        let Some(node) = self.node.take() else { return false };
        let fits = self.profile.check(&mut self.cx, &self.asked, self.pod, &node).is_ok();
        self.node = Some(node);
        fits
    }
}

/// Reasons of the rejections, with the number of nodes for each.
#[derive(Default)]
struct Refused {
    reasons: BTreeMap<Cow<'static, str>, usize>,
    by: u64,
    resolvable: Vec<String>,
    /// Rows that restricted the decision to nodes by name.
    restricting: Vec<usize>,
    /// Number of nodes that were not examined because of that.
    absent: usize,
}

impl Refused {
    fn note(&mut self, node: &NodeInfo, reject: Reject, at: usize) {
        self.by |= 1 << at;
        if reject.resolvable {
            self.resolvable.push(node.name().to_owned());
        }
        for reason in reject.reasons {
            *self.reasons.entry(reason).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests;
