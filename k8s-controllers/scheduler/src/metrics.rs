//! Metrics of the scheduler, with upstream's names.

use std::time::Duration;

use k8s_metrics::{Counter, Family, Gauge, Histogram, Registry, exponential_buckets};

use crate::queue::Queue;

/// Outcome of an attempt to schedule a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The pod is bound.
    Scheduled,
    /// No node fits.
    Unschedulable,
    /// The binding failed.
    Error,
}

/// The metrics of one scheduler.
pub(crate) struct Metrics {
    /// By [`Outcome`].
    attempts: [(Counter, Histogram); 3],
    tries: Histogram,
    active: Gauge,
    unschedulable: Gauge,
    preemptions: Counter,
    victims: Histogram,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry, profile: &str) -> Self {
        let attempts: Family<2, Counter> = registry.register(
            "scheduler_schedule_attempts_total",
            "Number of attempts to schedule pods, by the result.",
            Family::new(["result", "profile"]),
        );
        let durations: Family<2, Histogram> = registry.register(
            "scheduler_scheduling_attempt_duration_seconds",
            "Scheduling attempt latency in seconds (scheduling algorithm + binding)",
            Family::new_with_constructor(["result", "profile"], |_| {
                Histogram::new(exponential_buckets(0.001, 2.0, 15))
            }),
        );
        let pending: Family<1, Gauge> = registry.register(
            "scheduler_pending_pods",
            "Number of pending pods, by the queue type. 'unschedulable' includes pods in back-off.",
            Family::new(["queue"]),
        );
        let of = |result| {
            (attempts.get_or_create(&[result, profile]), durations.get_or_create(&[result, profile]))
        };
        Metrics {
            attempts: [of("scheduled"), of("unschedulable"), of("error")],
            tries: registry.register(
                "scheduler_pod_scheduling_attempts",
                "Number of attempts to successfully schedule a pod.",
                Histogram::new(exponential_buckets(1.0, 2.0, 5)),
            ),
            active: pending.get_or_create(&["active"]),
            unschedulable: pending.get_or_create(&["unschedulable"]),
            preemptions: registry.register(
                "scheduler_preemption_attempts_total",
                "Total preemption attempts in the cluster till now",
                Counter::default(),
            ),
            victims: registry.register(
                "scheduler_preemption_victims",
                "Number of selected preemption victims",
                Histogram::new(exponential_buckets(1.0, 2.0, 7)),
            ),
        }
    }

    /// Counts an attempt that took this long, after `failures` earlier ones.
    pub(crate) fn attempted(&self, outcome: Outcome, took: Duration, failures: u32) {
        let (count, duration) = match outcome {
            Outcome::Scheduled => &self.attempts[0],
            Outcome::Unschedulable => &self.attempts[1],
            Outcome::Error => &self.attempts[2],
        };
        count.inc();
        duration.observe(took.as_secs_f64());
        if outcome == Outcome::Scheduled {
            self.tries.observe(f64::from(failures) + 1.0);
        }
    }

    /// Counts a preemption.
    pub(crate) fn preempted(&self, victims: usize) {
        self.preemptions.inc();
        self.victims.observe(victims as f64);
    }

    /// Updates the number of pending pods.
    pub(crate) fn pending(&self, queue: &Queue) {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.active.set(number(queue.len() - queue.asleep()));
        self.unschedulable.set(number(queue.asleep()));
    }
}
