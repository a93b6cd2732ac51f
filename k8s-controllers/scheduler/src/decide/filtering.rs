//! The filtering of one decision, step by step.

use std::{borrow::Cow, collections::BTreeMap};

use rand::rngs::StdRng;

use super::{
    Asked, Fit, Kept, Profile, Trace, Unschedulable,
    memo::{Memo, Memos},
    refusals::{EXTENDER, Refusals},
    scoring::Known,
};
use crate::{Cluster, Cycle, NodeInfo, PodInfo, Reject, WakeOn, feasible::Feasible};

/// The filtering of one decision: finds feasible nodes, and remembers why the others are not.
pub(crate) struct Filtering<'a> {
    profile: &'a Profile,
    pod: &'a PodInfo,
    cx: Cycle<'a>,
    asked: Asked,
    start: &'a mut usize,
    /// Until the memo of the pod is needed.
    memos: Option<&'a mut Memos>,
    /// The memo, if every node was asked about at once.
    memo: Option<&'a Memo>,
    refused: Refused,
    /// Index of the node that was examined first.
    first: Option<usize>,
    evaluated: usize,
}

impl<'a> Filtering<'a> {
    /// Asks the plugins before the nodes.
    ///
    /// # Errors
    /// No node can be feasible.
    pub(crate) fn start<T: Trace>(
        profile: &'a Profile,
        cluster: &'a Cluster,
        pod: &'a PodInfo,
        kept: &'a mut Kept,
        trace: &mut T,
    ) -> Result<Self, Unschedulable> {
        if cluster.nodes().is_empty() {
            return Err(Unschedulable {
                message: "no nodes available to schedule pods".into(),
                refused_by: 0,
                wakes_on: WakeOn::NODE_ADDED,
                resolvable: Vec::new(),
            });
        }
        let mut cx = Cycle::new(cluster);
        let (asked, restricting) = profile.pre_filter(&mut cx, pod, trace)?;
        Ok(Filtering {
            profile,
            pod,
            cx,
            asked,
            start: &mut kept.start,
            memos: Some(&mut kept.memos),
            memo: None,
            refused: Refused { restricting, ..Refused::default() },
            first: None,
            evaluated: 0,
        })
    }

    /// Returns the nominated node if it is feasible. It is tried first: room was made there.
    pub(crate) fn nominated(&mut self) -> Option<&'a NodeInfo> {
        let name = self.pod.pod.status.as_ref()?.nominated_node_name.as_deref()?;
        let node = self.cx.cluster().node(name).filter(|_| self.cx.only().is_none())?;
        self.profile.check(&mut self.cx, &self.asked, self.pod, node).is_ok().then_some(node)
    }

    /// Returns further feasible nodes, `enough` of them if there are. Empty: every node was examined. A
    /// search that ends before every node was examined advances the node at which the next one begins.
    pub(crate) fn next<T: Trace>(&mut self, enough: usize, trace: &mut T) -> Feasible<'a> {
        let cluster = self.cx.cluster();
        let total = cluster.nodes().len();
        if let Some(names) = self.cx.only().map(<[String]>::to_vec) {
            let mut feasible = Vec::new();
            if self.first.replace(0).is_none() {
                for slot in names.iter().filter_map(|name| cluster.slot(name)) {
                    self.examine(slot, &mut feasible, trace);
                }
                self.refused.absent = total - self.evaluated;
            }
            return Feasible::listed(feasible);
        }
        if self.first.is_none() && enough >= total {
            self.first = Some(0);
            self.evaluated = total;
            return self.all(trace);
        }
        let first = *self.first.get_or_insert(*self.start % total);
        let mut feasible = Vec::with_capacity(enough.min(total));
        while self.evaluated < total && feasible.len() < enough {
            self.examine((first + self.evaluated) % total, &mut feasible, trace);
        }
        *self.start = (first + self.evaluated) % total;
        Feasible::listed(feasible)
    }

    fn examine<T: Trace>(&mut self, slot: usize, feasible: &mut Vec<u32>, trace: &mut T) {
        self.evaluated += 1;
        let Some(node) = self.cx.cluster().nodes().get(slot) else { return };
        match self.profile.check(&mut self.cx, &self.asked, self.pod, node) {
            Ok(()) => feasible.push(number(slot)),
            Err((row, reject)) => {
                trace.refused(Some(node), &self.profile.rows[row].name, &reject);
                self.refused.note(number(slot), row, reject);
            }
        }
    }

    /// Returns all feasible nodes: first of the plugins whose results are kept, then plugin by plugin.
    fn all<T: Trace>(&mut self, trace: &mut T) -> Feasible<'a> {
        let cluster = self.cx.cluster();
        let Some(memos) = self.memos.take() else { return Feasible::listed(Vec::new()) };
        let memo: &Memo = memos.synced(self.profile, &mut self.cx, self.pod, &self.asked);
        self.memo = Some(memo);
        let feasible = if self.asked.iter().all(|row| memo.has_filter(*row)) && !cluster.has_nominated() {
            Feasible::of(memo.refused().0, memo.feasible())
        } else {
            let crowded = self.crowded();
            let mut left = Feasible::of(memo.refused().0, memo.feasible()).slots().to_vec();
            if !crowded.is_empty() {
                left.retain(|slot| !crowded.contains(slot));
            }
            for row in self.asked.clone().into_iter().filter(|row| !memo.has_filter(*row)) {
                self.retain(row, &mut left);
            }
            Feasible::listed(left)
        };
        if T::FULL {
            for (slot, row, reject) in self.refusals() {
                let node = cluster.nodes().get(slot as usize);
                trace.refused(node, &self.profile.rows[row].name, reject);
            }
        }
        feasible
    }

    /// Returns the nodes that have no room beside the pods that wait for room on them.
    fn crowded(&mut self) -> Vec<u32> {
        let mut crowded = Vec::new();
        for node in self.cx.cluster().with_nominated() {
            let others = self.profile.beside_nominated(&mut self.cx, &self.asked, self.pod, node);
            if let Err((row, reject)) = others {
                let slot = number(node.slot);
                self.refused.note(slot, row, reject);
                crowded.push(slot);
            }
        }
        crowded
    }

    /// Asks a row's filter about nodes, and removes those that it refuses.
    fn retain(&mut self, row: usize, left: &mut Vec<u32>) {
        let (cx, pod, refused) = (&self.cx, self.pod, &mut self.refused);
        let points = &self.profile.rows[row];
        let Some(filter) = &points.filter else { return };
        if let Some(plugin) = &points.at_once {
            let quick = plugin.filter(cx, pod);
            let mut numbers = [None; 256];
            left.retain(|slot| {
                let refusal = quick(*slot as usize);
                if refusal == 0 {
                    return true;
                }
                let number = *numbers[usize::from(refusal)]
                    .get_or_insert_with(|| refused.refusals.number(row, plugin.refusal(refusal)));
                refused.nodes.push((*slot, number));
                false
            });
            return;
        }
        left.retain(|slot| {
            let Some(node) = cx.cluster().nodes().get(*slot as usize) else { return false };
            match filter.filter(cx, pod, node) {
                Ok(()) => true,
                Err(reject) => {
                    refused.note(*slot, row, reject);
                    false
                }
            }
        });
    }

    /// Takes in that an extender refused a feasible node.
    pub(crate) fn refuse(&mut self, node: &NodeInfo, reject: Reject) {
        self.refused.note(number(node.slot), EXTENDER, reject);
    }

    /// Returns the refused nodes in order, with the row and the refusal.
    fn refusals(&self) -> Vec<(u32, usize, &Reject)> {
        let refused = &self.refused;
        let mut own = refused.nodes.clone();
        own.sort_by_key(|(slot, _)| *slot);
        let named = own.iter().filter_map(|(slot, n)| Some((*slot, refused.refusals.get(*n)?)));
        let mut all: Vec<(u32, &(usize, Reject))> = named.collect();
        if let Some((verdicts, refusals)) = self.memo.map(Memo::refused) {
            // A node that is refused for its nominated pods may be in the memo too.
            let is_own =
                |slot: u32| !own.is_empty() && own.binary_search_by_key(&slot, |(own, _)| *own).is_ok();
            let kept = (0u32..).zip(verdicts).filter(|(slot, verdict)| **verdict != 0 && !is_own(*slot));
            all.extend(kept.filter_map(|(slot, verdict)| Some((slot, refusals.get(*verdict)?))));
            all.sort_by_key(|(slot, _)| *slot);
        }
        all.into_iter().map(|(slot, (row, reject))| (slot, *row, reject)).collect()
    }

    /// Returns the reasons for which no node is feasible.
    pub(crate) fn nowhere(self) -> Unschedulable {
        let mut sum = Sum::default();
        let mut last: Option<(&Reject, usize)> = None;
        let flush = |sum: &mut Sum, run: Option<(&Reject, usize)>| {
            for (reason, nodes) in
                run.iter().flat_map(|(r, nodes)| r.reasons.iter().map(move |r| (r, *nodes)))
            {
                *sum.reasons.entry(reason.clone()).or_default() += nodes;
            }
        };
        for (slot, row, reject) in self.refusals() {
            match row {
                EXTENDER => sum.extended = true,
                row => sum.by |= 1 << row,
            }
            if reject.resolvable {
                sum.resolvable.push(slot);
            }
            match &mut last {
                Some((before, nodes)) if std::ptr::eq(*before, reject) => *nodes += 1,
                _ => flush(&mut sum, last.replace((reject, 1))),
            }
        }
        flush(&mut sum, last);
        sum.absent = self.refused.absent;
        self.profile.sum_up(sum, &self.refused.restricting, self.cx.cluster().nodes().len())
    }

    /// Chooses one of the feasible nodes, of which there must be one at least. `added` has the extenders'
    /// part of the scores, if there are any.
    pub(crate) fn choose<T: Trace>(
        mut self,
        feasible: &Feasible<'a>,
        added: &[i64],
        rng: &mut StdRng,
        trace: &mut T,
    ) -> Fit {
        let known = Known { memo: self.memo, added };
        let best = self.profile.best(&mut self.cx, self.pod, feasible, &known, rng, trace);
        let node = self.cx.cluster().nodes().get(best).map_or("", NodeInfo::name).to_owned();
        Fit { node, evaluated: self.evaluated, feasible: feasible.len() }
    }
}

/// Returns a node's index as it is listed.
fn number(slot: usize) -> u32 {
    u32::try_from(slot).unwrap_or(u32::MAX)
}

/// The nodes that were refused, but for those that a memo refuses.
#[derive(Default)]
struct Refused {
    /// Indexes of nodes and numbers of refusals.
    nodes: Vec<(u32, u32)>,
    refusals: Refusals,
    /// Rows that restricted the decision to nodes by name.
    restricting: Vec<usize>,
    /// Number of nodes that were not examined because of that.
    absent: usize,
}

impl Refused {
    fn note(&mut self, slot: u32, row: usize, reject: Reject) {
        let number = self.refusals.number(row, reject);
        self.nodes.push((slot, number));
    }
}

/// Reasons of the rejections, with the number of nodes for each.
#[derive(Default)]
pub(super) struct Sum {
    pub(super) reasons: BTreeMap<Cow<'static, str>, usize>,
    /// The plugins, one bit for each row.
    pub(super) by: u64,
    /// True if an extender refused a node.
    pub(super) extended: bool,
    pub(super) resolvable: Vec<u32>,
    /// Number of nodes that were not examined because the pod names others.
    pub(super) absent: usize,
}
