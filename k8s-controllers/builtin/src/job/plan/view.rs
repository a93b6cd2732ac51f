//! Classifies a Job's pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_core::{
    api::api::{
        batch::v1::{JobSpec, JobStatus},
        core::v1::Pod,
    },
    meta::ObjectExt,
};

use super::super::{
    backoff,
    build::{failures_before, index_of},
    indexes, is_tracked,
    policy::{self, Verdict},
};
use crate::pods;

pub(super) struct View<'a> {
    pub(super) spec: &'a JobSpec,
    pub(super) all: &'a [Arc<Pod>],
    pub(super) indexed: bool,
    /// `spec.completions`: indexes are below this.
    pub(super) completions: i32,
    pub(super) active: Vec<Arc<Pod>>,
    /// Deleted and not yet finished.
    pub(super) terminating: Vec<Arc<Pod>>,
    /// Finished pods with the finalizer.
    pub(super) ended: Vec<Arc<Pod>>,
    pub(super) succeeded: BTreeSet<i32>,
    pub(super) failed: BTreeSet<i32>,
    /// By index to be retried: its last failed pod. It keeps its finalizer until its replacement exists,
    /// because its annotations hold the failure count of the index.
    pub(super) held: BTreeMap<i32, Arc<Pod>>,
}

/// Returns true if terminating pods are not replaced before they have finished.
pub(super) fn replaces_only_ended(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

/// Returns true if a pod counts as failed. A terminating pod does at once, unless only finished pods are
/// replaced.
pub(super) fn is_failed(pod: &Pod, spec: &JobSpec) -> bool {
    let given_up = pod.is_deleting() && !replaces_only_ended(spec) && pods::phase(pod) != "Succeeded";
    pods::phase(pod) == "Failed" || given_up
}

pub(super) fn is_succeeded(pod: &Pod) -> bool {
    pods::phase(pod) == "Succeeded"
}

impl<'a> View<'a> {
    pub(super) fn of(spec: &'a JobSpec, status: &JobStatus, all: &'a [Arc<Pod>]) -> Self {
        let of = |accepts: &dyn Fn(&Pod) -> bool| all.iter().filter(|p| accepts(p)).cloned().collect();
        let completions = spec.completions.unwrap_or(0);
        let mut view = View {
            spec,
            all,
            indexed: spec.completion_mode.as_deref() == Some("Indexed"),
            completions,
            active: of(&pods::is_active),
            terminating: of(&|p| p.is_deleting() && !pods::is_terminal(p)),
            ended: of(&|p| is_tracked(p) && (is_succeeded(p) || is_failed(p, spec))),
            succeeded: BTreeSet::new(),
            failed: BTreeSet::new(),
            held: BTreeMap::new(),
        };
        if view.indexed {
            let known = |text: &Option<String>| {
                indexes::parse_below(text.as_deref().unwrap_or_default(), completions)
            };
            view.succeeded = known(&status.completed_indexes);
            let done = view.ended.iter().filter(|p| is_succeeded(p));
            let done: Vec<i32> = done.filter_map(|p| view.index(p)).collect();
            view.succeeded.extend(done);
            if let Some(limit) = spec.backoff_limit_per_index {
                view.failed = known(&status.failed_indexes);
                let lost = view.ended.iter().filter(|p| !is_succeeded(p) && fails_index(spec, p, limit));
                let lost: Vec<i32> = lost.filter_map(|p| view.index(p)).collect();
                view.failed.extend(lost);
                view.hold();
            }
        }
        view
    }

    /// Returns the pod's index, if it is below `completions`.
    pub(super) fn index(&self, pod: &Pod) -> Option<i32> {
        index_of(pod).filter(|i| *i < self.completions)
    }

    /// Returns indexes that need no pod: succeeded, failed, or with a pod.
    pub(super) fn taken(&self) -> BTreeSet<i32> {
        let waits = replaces_only_ended(self.spec);
        let leaving = self.terminating.iter().filter(|_| waits);
        let busy = self.active.iter().chain(leaving).filter_map(|p| self.index(p));
        busy.chain(self.succeeded.iter().copied()).chain(self.failed.iter().copied()).collect()
    }

    fn hold(&mut self) {
        let taken = self.taken();
        let last = |p: &Pod| {
            let before = failures_before(p);
            (before.counted.saturating_add(before.ignored), backoff::ended_at(p), p.name().to_owned())
        };
        for pod in self.ended.iter().filter(|p| !is_succeeded(p)) {
            let Some(index) = self.index(pod).filter(|i| !taken.contains(i)) else { continue };
            let known = self.held.get(&index);
            if known.is_none_or(|known| last(known) < last(pod)) {
                self.held.insert(index, pod.clone());
            }
        }
    }

    pub(super) fn is_held(&self, pod: &Pod) -> bool {
        self.index(pod).and_then(|i| self.held.get(&i)).is_some_and(|held| held.uid() == pod.uid())
    }

    /// Returns true if the pod failure policy does not ignore the failure.
    pub(super) fn counts(&self, pod: &Pod) -> bool {
        policy::verdict(self.spec, pod) != Verdict::Ignore
    }
}

/// Returns true if the index has failed for good with this pod.
fn fails_index(spec: &JobSpec, pod: &Pod, limit: i32) -> bool {
    match policy::verdict(spec, pod) {
        Verdict::FailIndex => true,
        Verdict::Ignore => false,
        Verdict::Count | Verdict::FailJob(_) => failures_before(pod).counted >= limit,
    }
}
