//! Back-off before a Job creates replacement pods: 10 s, doubled per consecutive failure, at most 10 min.
//! Pure.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_core::api::api::core::v1::{ContainerStatus, Pod};

use crate::pods;

const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(600);

/// Returns the time at which a pod finished: the end of its last container, else its transition to not ready,
/// else its deletion request.
pub(super) fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let finished = |c: &ContainerStatus| {
        c.state.as_ref().and_then(|s| s.terminated.as_ref()?.finished_at.as_ref()).map(|t| t.0)
    };
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    let known: Vec<Timestamp> = statuses.iter().filter_map(finished).collect();
    if !known.is_empty() && known.len() == statuses.len() {
        return known.into_iter().max();
    }
    let unready = pods::condition(pod, "Ready").filter(|c| c.status == "False");
    if let Some(at) = unready.and_then(|c| c.last_transition_time.as_ref()) {
        return Some(at.0);
    }
    let grace = jiff::SignedDuration::from_secs(pod.metadata.deletion_grace_period_seconds.unwrap_or(0));
    let asked = pod.metadata.deletion_timestamp.as_ref().and_then(|t| t.0.checked_sub(grace).ok());
    asked.or(pod.metadata.creation_timestamp.as_ref().map(|t| t.0))
}

/// Returns the remaining delay after `failures` failures, the last at `last`.
pub(super) fn left(failures: usize, last: Timestamp, now: Timestamp) -> Duration {
    let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
    let doublings = u32::try_from(doublings).unwrap_or(u32::MAX).min(10);
    let delay = FIRST.saturating_mul(1 << doublings).min(LONGEST);
    let passed = Duration::try_from(now.duration_since(last)).unwrap_or(Duration::ZERO);
    delay.saturating_sub(passed)
}

/// Returns the remaining delay of a whole Job: failures since the last success count.
pub(super) fn of_job(all: &[Arc<Pod>], is_failed: impl Fn(&Pod) -> bool, now: Timestamp) -> Duration {
    let succeeded = all.iter().filter(|p| pods::phase(p) == "Succeeded");
    let last_success = succeeded.filter_map(|p| ended_at(p)).max();
    let failures = all.iter().filter(|p| is_failed(p)).filter_map(|p| ended_at(p));
    let since: Vec<Timestamp> = failures.filter(|t| last_success.is_none_or(|s| *t > s)).collect();
    since.iter().max().map_or(Duration::ZERO, |last| left(since.len(), *last, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_and_ends_at_ten_minutes() {
        let at = |s| Timestamp::from_second(s).unwrap();
        for (failures, passed, want) in [
            (0, 0, 0),
            (1, 0, 10),
            (1, 4, 6),
            (2, 0, 20),
            (6, 0, 320),
            (7, 0, 600),
            (90, 0, 600),
            (90, 601, 0),
        ] {
            assert_eq!(
                left(failures, at(0), at(passed)),
                Duration::from_secs(want),
                "{failures} after {passed}"
            );
        }
    }
}
