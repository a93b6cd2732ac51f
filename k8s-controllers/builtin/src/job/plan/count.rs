//! Counts finished pods, each exactly once.

use std::collections::BTreeSet;

use k8s_core::{api::api::batch::v1::UncountedTerminatedPods, meta::ObjectExt};

use super::{
    super::{indexes, is_tracked},
    Plan, number,
    view::{View, is_succeeded},
};

/// Maximum number of uids in `uncountedTerminatedPods`; further pods wait until these are counted.
const MOST_NOTED: usize = 500;

/// Numbers of finished pods, counted or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) succeeded: i32,
    pub(super) failed: i32,
}

fn len(list: &Option<Vec<String>>) -> usize {
    list.as_ref().map_or(0, Vec::len)
}

impl Plan {
    /// Counts listed uids whose pods have lost the finalizer, and lists the uids of newly finished pods.
    pub(super) fn count(&mut self, view: &View<'_>) -> Totals {
        let mut uncounted = self.status.uncounted_terminated_pods.take().unwrap_or_default();
        let tracked: BTreeSet<&str> = view.all.iter().filter(|p| is_tracked(p)).map(|p| p.uid()).collect();
        let settle = |uids: &mut Option<Vec<String>>| {
            let list = uids.get_or_insert_default();
            let before = list.len();
            list.retain(|uid| tracked.contains(uid.as_str()));
            number(before - list.len())
        };
        let mut succeeded = self.status.succeeded.unwrap_or(0) + settle(&mut uncounted.succeeded);
        let failed = self.status.failed.unwrap_or(0) + settle(&mut uncounted.failed);
        if view.indexed {
            // An index counts once, however many of its pods succeed.
            succeeded = number(view.succeeded.len());
            self.status.completed_indexes = Some(indexes::format(&view.succeeded)).filter(|t| !t.is_empty());
            if view.spec.backoff_limit_per_index.is_some() {
                self.status.failed_indexes = Some(indexes::format(&view.failed));
            }
        }
        let later = self.note(view, &mut uncounted);
        let totals = Totals {
            succeeded: succeeded + number(len(&uncounted.succeeded)) + later.succeeded,
            failed: failed + number(len(&uncounted.failed)) + later.failed,
        };
        self.status.succeeded = Some(succeeded).filter(|n| *n != 0);
        self.status.failed = Some(failed).filter(|n| *n != 0);
        let some = |list: Option<Vec<String>>| list.filter(|l| !l.is_empty());
        self.status.uncounted_terminated_pods = Some(UncountedTerminatedPods {
            succeeded: some(uncounted.succeeded),
            failed: some(uncounted.failed),
        });
        totals
    }

    /// Lists uids of finished pods; returns the numbers of pods that do not fit yet.
    fn note(&mut self, view: &View<'_>, uncounted: &mut UncountedTerminatedPods) -> Totals {
        let known: BTreeSet<String> =
            uncounted.succeeded.iter().chain(&uncounted.failed).flatten().cloned().collect();
        let mut room = MOST_NOTED.saturating_sub(known.len());
        let mut later = Totals::default();
        for pod in &view.ended {
            let well = is_succeeded(pod);
            let counts = if well { !view.indexed } else { view.counts(pod) };
            if counts && !known.contains(pod.uid()) {
                let (list, rest) = if well {
                    (&mut uncounted.succeeded, &mut later.succeeded)
                } else {
                    (&mut uncounted.failed, &mut later.failed)
                };
                if room == 0 || view.is_held(pod) {
                    *rest += 1;
                    continue;
                }
                room -= 1;
                list.get_or_insert_default().push(pod.uid().to_owned());
            } else if view.is_held(pod) {
                continue;
            }
            self.counted.push(pod.clone());
        }
        later
    }

    /// Returns the number of listed uids.
    pub(super) fn noted(&self) -> usize {
        let all = self.status.uncounted_terminated_pods.as_ref();
        all.map_or(0, |u| len(&u.succeeded) + len(&u.failed))
    }
}
