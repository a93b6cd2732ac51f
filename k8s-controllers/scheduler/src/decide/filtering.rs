//! The filtering of one decision, step by step.

use std::{borrow::Cow, collections::BTreeMap};

use rand::rngs::StdRng;

use super::{Asked, Fit, Profile, Trace, Unschedulable};
use crate::{Cluster, Cycle, NodeInfo, PodInfo, Reject, WakeOn};

/// The filtering of one decision: finds feasible nodes, and remembers why the others are not.
pub(crate) struct Filtering<'a> {
    profile: &'a Profile,
    pod: &'a PodInfo,
    cx: Cycle<'a>,
    asked: Asked,
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
        let (asked, refused) = profile.pre_filter(&mut cx, pod, trace)?;
        Ok(Filtering { profile, pod, cx, asked, refused, first: None, evaluated: 0 })
    }

    /// Returns the nominated node if it is feasible. It is tried first: room was made there.
    pub(crate) fn nominated(&mut self) -> Option<&'a NodeInfo> {
        let name = self.pod.pod.status.as_ref()?.nominated_node_name.as_deref()?;
        let node = self.cx.cluster().node(name).filter(|_| self.cx.only().is_none())?;
        self.profile.check(&mut self.cx, &self.asked, self.pod, node).is_ok().then_some(node)
    }

    /// Returns further feasible nodes, `enough` of them if there are. Empty: every node was examined. The
    /// first search begins at node `start`; each advances it.
    pub(crate) fn next<T: Trace>(
        &mut self,
        enough: usize,
        start: &mut usize,
        trace: &mut T,
    ) -> Vec<&'a NodeInfo> {
        let nodes = self.cx.cluster().nodes();
        let mut feasible = Vec::with_capacity(enough.min(nodes.len()));
        if let Some(names) = self.cx.only().map(<[String]>::to_vec) {
            if self.first.is_none() {
                self.first = Some(0);
                let cluster = self.cx.cluster();
                for node in names.iter().filter_map(|name| cluster.node(name)) {
                    self.examine(node, &mut feasible, trace);
                }
                self.refused.absent = nodes.len() - self.evaluated;
            }
            return feasible;
        }
        let first = *self.first.get_or_insert(*start % nodes.len());
        while self.evaluated < nodes.len() && feasible.len() < enough {
            self.examine(&nodes[(first + self.evaluated) % nodes.len()], &mut feasible, trace);
        }
        *start = (first + self.evaluated) % nodes.len();
        feasible
    }

    fn examine<T: Trace>(&mut self, node: &'a NodeInfo, feasible: &mut Vec<&'a NodeInfo>, trace: &mut T) {
        self.evaluated += 1;
        match self.profile.check(&mut self.cx, &self.asked, self.pod, node) {
            Ok(()) => feasible.push(node),
            Err((at, reject)) => {
                trace.refused(Some(node), &self.profile.rows[at].name, &reject);
                self.refused.by |= 1 << at;
                self.refused.note(node, reject);
            }
        }
    }

    /// Takes in that an extender refused a feasible node.
    pub(crate) fn refuse(&mut self, node: &NodeInfo, reject: Reject) {
        self.refused.extended = true;
        self.refused.note(node, reject);
    }

    /// Returns the reasons for which no node is feasible.
    pub(crate) fn nowhere(self) -> Unschedulable {
        self.profile.sum_up(self.refused, self.cx.cluster().nodes().len())
    }

    /// Chooses one of the feasible nodes, of which there must be one at least. `added` has the extenders'
    /// part of the scores, if there are any.
    pub(crate) fn choose<T: Trace>(
        mut self,
        feasible: &[&NodeInfo],
        added: &[i64],
        rng: &mut StdRng,
        trace: &mut T,
    ) -> Fit {
        let best = self.profile.best(&mut self.cx, self.pod, feasible, added, rng, trace);
        Fit { node: feasible[best].name().to_owned(), evaluated: self.evaluated, feasible: feasible.len() }
    }
}

/// Reasons of the rejections, with the number of nodes for each.
#[derive(Default)]
pub(super) struct Refused {
    pub(super) reasons: BTreeMap<Cow<'static, str>, usize>,
    /// The plugins, one bit for each row.
    pub(super) by: u64,
    /// True if an extender refused a node.
    pub(super) extended: bool,
    pub(super) resolvable: Vec<String>,
    /// Rows that restricted the decision to nodes by name.
    pub(super) restricting: Vec<usize>,
    /// Number of nodes that were not examined because of that.
    pub(super) absent: usize,
}

impl Refused {
    fn note(&mut self, node: &NodeInfo, reject: Reject) {
        if reject.resolvable {
            self.resolvable.push(node.name().to_owned());
        }
        for reason in reject.reasons {
            *self.reasons.entry(reason).or_default() += 1;
        }
    }
}
