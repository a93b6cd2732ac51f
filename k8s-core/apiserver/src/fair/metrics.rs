//! Metrics of priority and fairness, with upstream's names.

use std::sync::Weak;

use k8s_metrics::{Collector, Counter, Encoder, Family, Histogram, MetricType, Registry};

use super::Fairness;

/// Upper bounds of the buckets of durations, seconds, as upstream's.
const SECONDS: [f64; 13] = [0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];
/// Upper bounds of the buckets of seats, as upstream's.
const SEATS: [f64; 4] = [1.0, 2.0, 4.0, 10.0];
/// Limit of combinations of level and schema.
const PAIRS: usize = 1000;

/// The metrics that requests change.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    dispatched: Family<2, Counter>,
    rejected: Family<3, Counter>,
    waited: Family<3, Histogram>,
    executed: Family<3, Histogram>,
    seats: Family<2, Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new(&Registry::default())
    }
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let (level, schema) = ("priority_level", "flow_schema");
        let seconds = |labels| Family::new_with_constructor(labels, |_| Histogram::new(SECONDS)).limit(PAIRS);
        Metrics {
            dispatched: registry.register(
                "apiserver_flowcontrol_dispatched_requests_total",
                "Number of requests executed by API Priority and Fairness subsystem.",
                Family::new([level, schema]).limit(PAIRS),
            ),
            rejected: registry.register(
                "apiserver_flowcontrol_rejected_requests_total",
                "Number of requests rejected by API Priority and Fairness subsystem.",
                Family::new([level, schema, "reason"]).limit(4 * PAIRS),
            ),
            waited: registry.register(
                "apiserver_flowcontrol_request_wait_duration_seconds",
                "Length of time a request spent waiting in its queue.",
                seconds([level, schema, "execute"]),
            ),
            executed: registry.register(
                "apiserver_flowcontrol_request_execution_seconds",
                "Duration of initial stage (for a WATCH) or any (for a non-WATCH) stage of request execution.",
                seconds([level, schema, "type"]),
            ),
            seats: registry.register(
                "apiserver_flowcontrol_work_estimated_seats",
                "Number of estimated seats of requests.",
                Family::new_with_constructor([level, schema], |_| Histogram::new(SEATS)).limit(PAIRS),
            ),
        }
    }

    /// Returns the metrics of a schema.
    pub(super) fn of(&self, level: &str, schema: &str) -> SchemaMetrics {
        let waited = |executed| self.waited.get_or_create(&[level, schema, executed]);
        let executed = |of| self.executed.get_or_create(&[level, schema, of]);
        SchemaMetrics {
            dispatched: self.dispatched.get_or_create(&[level, schema]),
            rejected: self.rejected.clone(),
            labels: [level.into(), schema.into()],
            waited: waited("true"),
            waited_in_vain: waited("false"),
            executed: executed("regular"),
            watched: executed("watch"),
            seats: self.seats.get_or_create(&[level, schema]),
        }
    }
}

/// The metrics of one schema's requests.
#[derive(Debug)]
pub(super) struct SchemaMetrics {
    pub(super) dispatched: Counter,
    rejected: Family<3, Counter>,
    labels: [Box<str>; 2],
    pub(super) waited: Histogram,
    pub(super) waited_in_vain: Histogram,
    pub(super) executed: Histogram,
    pub(super) watched: Histogram,
    pub(super) seats: Histogram,
}

impl SchemaMetrics {
    /// Counts a rejection.
    pub(super) fn reject(&self, reason: &str) {
        let [level, schema] = &self.labels;
        self.rejected.get_or_create(&[level, schema, reason]).inc();
    }
}

/// State of one level.
#[derive(Debug)]
pub(super) struct LevelNumbers {
    pub(super) level: String,
    /// In the order of [`BY_LEVEL`].
    pub(super) numbers: [f64; BY_LEVEL.len()],
    /// Requests and seats of each schema: waiting and running, in the order of [`BY_SCHEMA`].
    pub(super) schemas: Vec<(String, [usize; BY_SCHEMA.len()])>,
}

const BY_SCHEMA: [(&str, &str); 4] = [
    ("apiserver_flowcontrol_current_inqueue_requests", "Number of requests currently pending in queues."),
    ("apiserver_flowcontrol_current_inqueue_seats", "Number of seats currently pending in queues."),
    (
        "apiserver_flowcontrol_current_executing_requests",
        "Number of requests in initial (for a WATCH) or any (for a non-WATCH) execution stage.",
    ),
    (
        "apiserver_flowcontrol_current_executing_seats",
        "Number of seats occupied by the currently executing requests.",
    ),
];

const BY_LEVEL: [(&str, &str); 9] = [
    (
        "apiserver_flowcontrol_nominal_limit_seats",
        "Nominal number of execution seats of each priority level.",
    ),
    (
        "apiserver_flowcontrol_lower_limit_seats",
        "Lower bound on the number of execution seats of each level.",
    ),
    (
        "apiserver_flowcontrol_upper_limit_seats",
        "Upper bound on the number of execution seats of each level.",
    ),
    (
        "apiserver_flowcontrol_current_limit_seats",
        "Current number of execution seats of each priority level.",
    ),
    (
        "apiserver_flowcontrol_demand_seats_high_watermark",
        "High watermark of seat demand in the last period.",
    ),
    ("apiserver_flowcontrol_demand_seats_average", "Average of seat demand over the last adjustment period."),
    ("apiserver_flowcontrol_demand_seats_stdev", "Standard deviation of seat demand over the last period."),
    ("apiserver_flowcontrol_demand_seats_smoothed", "Smoothed seat demands."),
    ("apiserver_flowcontrol_target_seats", "Seat allocation targets."),
];

/// Collector of the levels' state.
#[derive(Clone)]
pub(super) struct Levels(pub(super) Weak<Fairness>);

impl Collector for Levels {
    fn encode(&self, encoder: &mut Encoder<'_>) {
        let Some(fair) = self.0.upgrade() else { return };
        let (levels, fraction) = fair.numbers();
        for (i, (name, help)) in BY_LEVEL.into_iter().enumerate() {
            let mut samples = encoder.describe(name, help, MetricType::Gauge);
            for level in &levels {
                samples.sample(&[("priority_level", &level.level)], level.numbers[i]);
            }
        }
        for (i, (name, help)) in BY_SCHEMA.into_iter().enumerate() {
            let mut samples = encoder.describe(name, help, MetricType::Gauge);
            for level in &levels {
                for (schema, numbers) in &level.schemas {
                    samples.sample(&[("priority_level", &level.level), ("flow_schema", schema)], numbers[i]);
                }
            }
        }
        let help = "Fair fraction of the server's concurrency for each priority level that can use it.";
        encoder
            .describe("apiserver_flowcontrol_seat_fair_frac", help, MetricType::Gauge)
            .sample(&[], fraction);
    }
}
