//! Adjusts the number of active pods.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use k8s_core::{
    api::api::{batch::v1::JobSpec, core::v1::Pod},
    meta::ObjectExt,
};

use super::{
    super::{
        backoff,
        build::{Failures, New, failures_before},
        policy::{self, Verdict},
    },
    Plan,
    count::Totals,
    number,
    view::{View, is_failed, replaces_only_ended},
};
use crate::{batch::BURST, pods};

fn wanted(view: &View<'_>, totals: &Totals) -> i32 {
    let parallelism = view.spec.parallelism.unwrap_or(1).max(0);
    match view.spec.completions {
        Some(completions) => (completions - totals.succeeded).clamp(0, parallelism),
        // The work is done: running pods finish, and no more are created.
        None if totals.succeeded > 0 => number(view.active.len()),
        None => parallelism,
    }
}

impl Plan {
    pub(super) fn size(&mut self, view: &View<'_>, totals: &Totals, now: Timestamp) {
        if view.spec.suspend == Some(true) {
            self.shed = view.active.clone();
            return;
        }
        if view.indexed {
            self.shed = misfits(view, now);
        }
        let wanted = wanted(view, totals);
        let standing = number(view.active.len() - self.shed.len());
        if standing > wanted {
            let stays = |p: &&Arc<Pod>| !self.shed.iter().any(|s| s.uid() == p.uid());
            let mut rest: Vec<Arc<Pod>> = view.active.iter().filter(stays).cloned().collect();
            pods::sort_for_deletion(&mut rest, &[], now);
            rest.truncate(usize::try_from(standing - wanted).unwrap_or(0));
            self.shed.extend(rest);
        } else {
            self.grow(view, usize::try_from(wanted - standing).unwrap_or(0), now);
        }
        self.shed.truncate(BURST);
    }

    fn grow(&mut self, view: &View<'_>, mut missing: usize, now: Timestamp) {
        if replaces_only_ended(view.spec) {
            missing = missing.saturating_sub(view.terminating.len());
        }
        let missing = missing.min(BURST);
        if missing == 0 {
            return;
        }
        if view.indexed && view.spec.backoff_limit_per_index.is_some() {
            return self.grow_by_index(view, missing, now);
        }
        let delay = backoff::of_job(view.all, |p| is_failed(p, view.spec), now);
        if !delay.is_zero() {
            return self.look_after(delay);
        }
        self.create = if view.indexed {
            pending(view, missing).map(|index| New { index: Some(index), failures: None }).collect()
        } else {
            vec![New::default(); missing]
        };
    }

    /// Each index has its own back-off.
    fn grow_by_index(&mut self, view: &View<'_>, missing: usize, now: Timestamp) {
        for index in pending(view, missing) {
            let mut failures = Failures::default();
            if let Some(held) = view.held.get(&index) {
                failures = with(view.spec, held);
                let count = usize::try_from(failures.counted.saturating_add(failures.ignored)).unwrap_or(0);
                let delay = backoff::left(count, backoff::ended_at(held).unwrap_or(now), now);
                if !delay.is_zero() {
                    self.look_after(delay);
                    continue;
                }
            }
            self.create.push(New { index: Some(index), failures: Some(failures) });
        }
    }
}

/// Returns the lowest indexes that need a pod.
fn pending(view: &View<'_>, most: usize) -> impl Iterator<Item = i32> {
    let taken = view.taken();
    (0..view.completions).filter(move |i| !taken.contains(i)).take(most)
}

/// Returns the failures of a pod's index, this pod included.
fn with(spec: &JobSpec, pod: &Pod) -> Failures {
    let Failures { counted, ignored } = failures_before(pod);
    if policy::verdict(spec, pod) == Verdict::Ignore {
        Failures { counted, ignored: ignored.saturating_add(1) }
    } else {
        Failures { counted: counted.saturating_add(1), ignored }
    }
}

/// Returns surplus pods: duplicates of an index, and pods of indexes that need none. Of duplicates the more
/// advanced pod is kept.
fn misfits(view: &View<'_>, now: Timestamp) -> Vec<Arc<Pod>> {
    let mut worst_first = view.active.clone();
    pods::sort_for_deletion(&mut worst_first, &[], now);
    let mut seen = BTreeSet::new();
    let mut fits = |pod: &Arc<Pod>| {
        let index = view.index(pod);
        index.is_some_and(|i| !view.succeeded.contains(&i) && !view.failed.contains(&i) && seen.insert(i))
    };
    worst_first.into_iter().rev().filter(|p| !fits(p)).collect()
}
