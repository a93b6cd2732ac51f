//! Results of plugins that depend on one node and on the pod's template alone, kept from pod to pod.
//!
//! Flow: the pods of a Deployment differ in nothing that these plugins read. The first one fills a memo: per
//! node the refusal or the raw scores. The next one brings it up to date by the cluster's journal: usually
//! one node, that of the pod before.
//! Guarantee: a memo's contents are what the plugins say when they are asked about each node now.
//! Bounds: [`MOST`] memos; each has some 12 bytes for each node and 8 for each plugin with normalized scores.

use std::sync::Arc;

use k8s_core::{
    api::api::core::v1::{NodeAffinity, Pod, PodSpec},
    meta::ObjectExt,
};

use super::{Asked, Profile, refusals::Refusals};
use crate::{Cycle, PodInfo, Resources, cluster::Identity, many::Passes, pod_info::HostPort};

/// Limit of memos.
const MOST: usize = 64;

/// The memos of one profile.
#[derive(Debug, Default)]
pub(crate) struct Memos {
    cluster: Option<Identity>,
    list: Vec<Memo>,
    asked: u64,
}

/// The parts of a pod that kept plugins read.
#[derive(Debug)]
pub(super) struct Template {
    pod: Arc<Pod>,
    requests: Resources,
    counted: (i64, i64),
    host_ports: Vec<HostPort>,
}

fn node_affinity(spec: &PodSpec) -> Option<&NodeAffinity> {
    spec.affinity.as_ref()?.node_affinity.as_ref()
}

impl Template {
    pub(super) fn of(pod: &PodInfo) -> Self {
        Template {
            pod: pod.pod.clone(),
            requests: pod.requests.clone(),
            counted: pod.counted,
            host_ports: pod.host_ports.clone(),
        }
    }

    pub(super) fn is_of(&self, pod: &PodInfo, reads_all: bool) -> bool {
        if self.counted != pod.counted || self.requests != pod.requests || self.host_ports != pod.host_ports {
            return false;
        }
        let (a, b) = (&*self.pod, &*pod.pod);
        if reads_all {
            return a.spec == b.spec
                && a.namespace() == b.namespace()
                && a.metadata.labels == b.metadata.labels
                && a.metadata.annotations == b.metadata.annotations
                && a.metadata.owner_references == b.metadata.owner_references;
        }
        let (Some(a), Some(b)) = (&a.spec, &b.spec) else { return a.spec == b.spec };
        node_affinity(a) == node_affinity(b)
            && a.node_selector == b.node_selector
            && a.node_name == b.node_name
            && a.tolerations == b.tolerations
    }
}

/// The results for one template.
#[derive(Debug)]
pub(crate) struct Memo {
    template: Template,
    /// The rows whose filter is kept.
    filters: Asked,
    /// The rows whose scores are summed up in `fixed`: they are not normalized.
    summed: Vec<usize>,
    /// The rows whose scores are normalized, with the raw ones by the node's index.
    raw: Vec<(usize, Vec<i64>)>,
    /// Number of the cluster's changes that are in here.
    seen: u64,
    /// Last use.
    asked: u64,
    /// By the node's index: 0 for a feasible node, or the number of its refusal.
    verdicts: Vec<u32>,
    refusals: Refusals,
    feasible: usize,
    /// Weighted sums of scores; [`NOT`] for nodes that are not feasible.
    fixed: Vec<i64>,
}

/// The sum of a node that is not feasible.
pub(super) const NOT: i64 = i64::MIN;

impl Memos {
    /// Returns the memo of the pod's template, up to date. `asked` has the rows whose filter is to be asked;
    /// the memo answers for those that it has.
    pub(super) fn synced(
        &mut self,
        profile: &Profile,
        cx: &mut Cycle<'_>,
        pod: &PodInfo,
        asked: &Asked,
    ) -> &Memo {
        let cluster = cx.cluster();
        if self.cluster.as_ref().is_none_or(|known| !known.is_of(cluster)) {
            self.cluster = Some(cluster.identity());
            self.list.clear();
        }
        self.asked += 1;
        let kept = |at: &usize| profile.rows[*at].per_node.is_some();
        let reads_all = profile.reads_all();
        let is_it = |memo: &Memo| {
            memo.filters.iter().eq(asked.iter().filter(|at| kept(at))) && memo.template.is_of(pod, reads_all)
        };
        let found = match self.list.iter().position(is_it) {
            // A memo of refusals that are all different is made anew before it grows too large.
            Some(at) if self.list[at].refusals.len() <= 2 * cluster.nodes().len() + 64 => at,
            other => {
                let memo = Memo::new(profile, cx, pod, asked.iter().copied().filter(|at| kept(at)).collect());
                let oldest = (0..self.list.len()).min_by_key(|at| self.list[*at].asked);
                match other.or(oldest.filter(|_| self.list.len() >= MOST)) {
                    Some(at) => {
                        self.list[at] = memo;
                        at
                    }
                    None => {
                        self.list.push(memo);
                        self.list.len() - 1
                    }
                }
            }
        };
        let memo = &mut self.list[found];
        memo.asked = self.asked;
        memo.sync(profile, cx, pod);
        memo
    }
}

impl Profile {
    /// Returns true if a plugin whose results are kept may read everything of a pod.
    pub(super) fn reads_all(&self) -> bool {
        self.rows.iter().any(|row| row.per_node.as_ref().is_some_and(|plugin| plugin.reads_all()))
    }
}

impl Memo {
    fn new(profile: &Profile, cx: &mut Cycle<'_>, pod: &PodInfo, filters: Asked) -> Self {
        let (mut summed, mut raw) = (Vec::new(), Vec::new());
        for (at, row) in profile.rows.iter().enumerate().filter(|(at, _)| profile.keeps_score(*at)) {
            if row.normalize.is_some() {
                raw.push((at, Vec::new()));
            } else if row.pre_score.as_ref().is_none_or(|plugin| plugin.pre_score(cx, pod, &[])) {
                summed.push(at);
            }
        }
        Memo {
            template: Template::of(pod),
            filters,
            summed,
            raw,
            seen: 0,
            asked: 0,
            verdicts: Vec::new(),
            refusals: Refusals::default(),
            feasible: 0,
            fixed: Vec::new(),
        }
    }

    fn sync(&mut self, profile: &Profile, cx: &Cycle<'_>, pod: &PodInfo) {
        let cluster = cx.cluster();
        let number = cluster.nodes().len();
        let changes = cluster.journal().since(self.seen).filter(|_| self.seen > 0);
        match changes {
            // A few changes are cheaper one by one.
            Some(changed) if changed.len() <= number / 8 + 1 => {
                self.resize(number);
                for at in changed.filter(|at| *at < number) {
                    self.read(profile, cx, pod, at);
                }
            }
            _ => {
                self.resize(0);
                self.resize(number);
                self.fill(profile, cx, pod);
            }
        }
        self.seen = cluster.journal().now();
    }

    fn resize(&mut self, number: usize) {
        for verdict in self.verdicts.iter().skip(number) {
            self.feasible -= usize::from(*verdict == 0);
        }
        let added = number.saturating_sub(self.verdicts.len());
        self.feasible += added;
        self.verdicts.resize(number, 0);
        self.fixed.resize(number, 0);
        for (_, column) in &mut self.raw {
            column.resize(number, 0);
        }
    }

    fn set(&mut self, at: usize, verdict: u32) {
        self.feasible -= usize::from(self.verdicts[at] == 0);
        self.feasible += usize::from(verdict == 0);
        self.verdicts[at] = verdict;
    }

    /// Asks the plugins about one node.
    fn read(&mut self, profile: &Profile, cx: &Cycle<'_>, pod: &PodInfo, at: usize) {
        let node = &cx.cluster().nodes()[at];
        let refusal = self.filters.iter().find_map(|row| {
            let filter = profile.rows[*row].filter.as_ref()?;
            Some((*row, filter.filter(cx, pod, node).err()?))
        });
        let verdict = refusal.map_or(0, |(row, reject)| self.refusals.number(row, reject));
        self.set(at, verdict);
        if verdict != 0 {
            self.fixed[at] = NOT;
            return;
        }
        let scored = self.summed.iter().filter_map(|row| {
            let row = &profile.rows[*row];
            Some(row.weight.saturating_mul(row.score.as_ref()?.score(cx, pod, node)))
        });
        self.fixed[at] = scored.fold(0, i64::saturating_add).max(NOT + 1);
        for (row, column) in &mut self.raw {
            if let Some(score) = &profile.rows[*row].score {
                column[at] = score.score(cx, pod, node);
            }
        }
    }

    /// Asks the plugins about all nodes, over columns where they can. All nodes are feasible before.
    fn fill(&mut self, profile: &Profile, cx: &Cycle<'_>, pod: &PodInfo) {
        let (cluster, nodes) = (cx.cluster(), cx.cluster().nodes());
        for row in self.filters.clone() {
            let (Some(filter), Some(plugin)) = (&profile.rows[row].filter, &profile.rows[row].per_node)
            else {
                continue;
            };
            let passes = plugin.passes(cluster, pod);
            if matches!(passes, Passes::All) {
                continue;
            }
            for (at, node) in nodes.iter().enumerate() {
                let passed = matches!(&passes, Passes::These(these) if these.get(at) == Some(&true));
                if passed || self.verdicts[at] != 0 {
                    continue;
                }
                if let Err(reject) = filter.filter(cx, pod, node) {
                    let verdict = self.refusals.number(row, reject);
                    self.set(at, verdict);
                }
            }
        }
        self.fixed.fill(0);
        let mut scores = vec![0; nodes.len()];
        for row in &self.summed {
            let weight = profile.rows[*row].weight;
            score_all(profile, cx, pod, *row, &self.verdicts, &mut scores);
            for (sum, score) in self.fixed.iter_mut().zip(&scores) {
                *sum = sum.saturating_add(weight.saturating_mul(*score));
            }
        }
        for (sum, verdict) in self.fixed.iter_mut().zip(&self.verdicts) {
            *sum = if *verdict == 0 { (*sum).max(NOT + 1) } else { NOT };
        }
        for (row, column) in &mut self.raw {
            score_all(profile, cx, pod, *row, &self.verdicts, column);
        }
    }

    /// Returns the number of feasible nodes.
    pub(super) fn feasible(&self) -> usize {
        self.feasible
    }

    /// Returns the refusals' numbers by the node's index, and the refusals.
    pub(super) fn refused(&self) -> (&[u32], &Refusals) {
        (&self.verdicts, &self.refusals)
    }

    /// Returns true if it answers for the filter of a row.
    pub(super) fn has_filter(&self, row: usize) -> bool {
        self.filters.contains(&row)
    }

    /// Returns the sums of the scores that are not normalized.
    pub(super) fn fixed(&self) -> &[i64] {
        &self.fixed
    }

    /// Returns the raw scores of a row whose scores are normalized.
    pub(super) fn raw(&self, row: usize) -> Option<&[i64]> {
        self.raw.iter().find(|(at, _)| *at == row).map(|(_, column)| column.as_slice())
    }
}

/// Writes the raw scores of a row for all nodes that are feasible, and anything for the others.
fn score_all(
    profile: &Profile,
    cx: &Cycle<'_>,
    pod: &PodInfo,
    row: usize,
    verdicts: &[u32],
    scores: &mut [i64],
) {
    let row = &profile.rows[row];
    if row.per_node.as_ref().is_some_and(|plugin| plugin.scores(cx.cluster(), pod, scores)) {
        return;
    }
    let Some(score) = &row.score else { return scores.fill(0) };
    for ((slot, node), verdict) in scores.iter_mut().zip(cx.cluster().nodes()).zip(verdicts) {
        *slot = if *verdict == 0 { score.score(cx, pod, node) } else { 0 };
    }
}
