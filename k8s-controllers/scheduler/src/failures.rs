//! Rate-limited reports of unschedulable pods.
//!
//! A report costs two writes per pod: its condition and an event. When thousands of pods cannot be scheduled
//! at once, these would starve other API requests. Beyond a burst, reports are therefore sent at a steady
//! rate; a pod that is scheduled or deleted meanwhile needs none.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::PodInfo;

/// Reports that are sent without delay.
const BURST: u32 = 200;
/// Reports per second beyond the burst. (Upstream's client is limited to 50 requests per second of any kind.)
const RATE: u32 = 100;

/// The reason of a pod's condition `PodScheduled`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// No node is feasible, or a plugin refused the chosen one.
    Unschedulable,
    /// A request failed.
    SchedulerError,
}

impl Reason {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Reason::Unschedulable => "Unschedulable",
            Reason::SchedulerError => "SchedulerError",
        }
    }
}

/// A pod that is not scheduled, and what to report.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) pod: Arc<PodInfo>,
    pub(crate) reason: Reason,
    pub(crate) message: String,
}

/// The newest failure of each pod, oldest pod first.
#[derive(Debug)]
pub(crate) struct Failures {
    waiting: HashMap<String, Failure>,
    order: VecDeque<String>,
    allowed: u32,
    /// Time of the last refill of `allowed`.
    since: Instant,
}

impl Failures {
    pub(crate) fn new(now: Instant) -> Self {
        Failures { waiting: HashMap::new(), order: VecDeque::new(), allowed: BURST, since: now }
    }

    pub(crate) fn add(&mut self, failure: Failure) {
        let uid = failure.pod.uid().to_owned();
        if self.waiting.insert(uid.clone(), failure).is_none() {
            self.order.push_back(uid);
        }
    }

    /// Drops the report of a pod.
    pub(crate) fn remove(&mut self, uid: &str) {
        self.waiting.remove(uid);
    }

    /// Takes the next report if the rate limit allows one now.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Failure> {
        let each = Duration::from_secs(1) / RATE;
        while self.allowed < BURST && self.since + each <= now {
            self.allowed += 1;
            self.since += each;
        }
        if self.allowed == BURST {
            self.since = now;
        }
        if self.allowed == 0 {
            return None;
        }
        let failure =
            std::iter::from_fn(|| self.order.pop_front()).find_map(|uid| self.waiting.remove(&uid))?;
        self.allowed -= 1;
        Some(failure)
    }

    /// Returns the time at which [`Failures::next`] may return a report, if none is added.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let next = if self.allowed > 0 { self.since } else { self.since + Duration::from_secs(1) / RATE };
        (!self.waiting.is_empty()).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use k8s_core::api::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    fn failure(uid: u32, message: &str) -> Failure {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "uid": uid.to_string()}})).unwrap();
        let pod = Arc::new(PodInfo::new(Arc::new(pod)));
        Failure { pod, reason: Reason::Unschedulable, message: message.into() }
    }

    #[test]
    fn a_burst_goes_out_at_once_and_the_rest_by_and_by() {
        let begun = Instant::now();
        let mut failures = Failures::new(begun);
        (0..1000).for_each(|i| failures.add(failure(i, "first")));
        failures.add(failure(7, "second"));
        failures.remove("8");
        let mut told = |now| std::iter::from_fn(|| failures.next(now)).collect::<Vec<Failure>>();
        let first = told(begun);
        assert_eq!(first.len(), BURST as usize);
        assert_eq!(first[7].message, "second");
        assert_eq!(first[8].pod.uid(), "9", "what went is not told");
        assert!(told(begun).is_empty());
        assert_eq!(told(begun + Duration::from_secs(1)).len(), RATE as usize);
        assert_eq!(told(begun + Duration::from_secs(3600)).len(), BURST as usize);
        assert!(failures.next_due().is_some_and(|due| due > begun + Duration::from_secs(3600)));
    }

    #[test]
    fn when_all_is_told_nothing_is_due() {
        let now = Instant::now();
        let mut failures = Failures::new(now);
        assert_eq!(failures.next_due(), None);
        failures.add(failure(1, "why"));
        assert_eq!(failures.next_due(), Some(now));
        assert!(failures.next(now).is_some());
        assert_eq!(failures.next_due(), None);
    }
}
