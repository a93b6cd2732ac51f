//! Computes the number of pods to create or delete, and the status. Pure.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_core::api::api::core::v1::Pod;

use super::{ReplicaStatus, Replicated};
use crate::{batch::BURST, pods};

/// Next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Nothing,
    Create(usize),
    Delete(usize),
}

/// Limits a step to a burst; the rest follows once the caches have the first part.
pub(super) fn step(desired: i32, active: usize) -> Step {
    let desired = usize::try_from(desired).unwrap_or(0);
    match active.cmp(&desired) {
        std::cmp::Ordering::Equal => Step::Nothing,
        std::cmp::Ordering::Less => Step::Create((desired - active).min(BURST)),
        std::cmp::Ordering::Greater => Step::Delete((active - desired).min(BURST)),
    }
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

pub(super) fn status<K: Replicated>(
    owner: &K,
    active: &[Arc<Pod>],
    terminating: usize,
    now: Timestamp,
) -> ReplicaStatus {
    let template_labels = owner.template().metadata.and_then(|m| m.labels).unwrap_or_default();
    let min_ready = owner.min_ready_seconds();
    let count = |accepts: &dyn Fn(&Pod) -> bool| number(active.iter().filter(|p| accepts(p)).count());
    ReplicaStatus {
        replicas: number(active.len()),
        fully_labeled: count(&|pod| {
            let labels = pod.metadata.labels.as_ref();
            template_labels.iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v))
        }),
        ready: count(&pods::is_ready),
        available: count(&|pod| pods::available_in(pod, min_ready, now) == Some(Duration::ZERO)),
        terminating: number(terminating),
        failure: None,
    }
}

/// Returns the time until the next ready pod becomes available.
pub(super) fn next_available<K: Replicated>(
    owner: &K,
    active: &[Arc<Pod>],
    now: Timestamp,
) -> Option<Duration> {
    let min_ready = owner.min_ready_seconds();
    active.iter().filter_map(|pod| pods::available_in(pod, min_ready, now)).filter(|d| !d.is_zero()).min()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Repeated steps reach the desired number from either side without overshooting.
        #[test]
        fn converges_without_overshoot(desired in -1..3000i32, mut active in 0..3000usize) {
            let goal = usize::try_from(desired).unwrap_or(0);
            let above = active > goal;
            for _ in 0..10 {
                match step(desired, active) {
                    Step::Nothing => break,
                    Step::Create(n) => { prop_assert!(n <= BURST && !above); active += n; }
                    Step::Delete(n) => { prop_assert!(n <= BURST && above); active -= n; }
                }
                prop_assert!(active == goal || above == (active > goal));
            }
            prop_assert_eq!(active, goal);
        }
    }
}
