//! Metrics of the autoscaler itself, with upstream's names.

use std::time::Duration;

use k8s_metrics::{Counter, Family, Gauge, Histogram, Registry, exponential_buckets};

/// Change of a number of pods, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Up,
    Down,
    None,
}

impl Change {
    /// Compares a new number with the present one.
    pub(super) fn of(replicas: i32, current: i32) -> Self {
        match replicas.cmp(&current) {
            std::cmp::Ordering::Greater => Change::Up,
            std::cmp::Ordering::Less => Change::Down,
            std::cmp::Ordering::Equal => Change::None,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Change::Up => "scale_up",
            Change::Down => "scale_down",
            Change::None => "none",
        }
    }
}

/// Origin of an error, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The autoscaler asks for what there is not.
    Spec,
    /// A computation, or another component.
    Internal,
    None,
}

impl Fault {
    fn label(self) -> &'static str {
        match self {
            Fault::Spec => "spec",
            Fault::Internal => "internal",
            Fault::None => "none",
        }
    }
}

/// The metrics.
#[derive(Debug)]
pub(super) struct Monitor {
    looks: Family<2, Counter>,
    look_time: Family<2, Histogram>,
    computations: Family<3, Counter>,
    computation_time: Family<3, Histogram>,
    pub(super) autoscalers: Gauge,
    pub(super) desired: Family<2, Gauge>,
}

fn seconds<const N: usize>(labels: [&'static str; N]) -> Family<N, Histogram> {
    Family::new_with_constructor(labels, |_| Histogram::new(exponential_buckets(0.001, 2.0, 15)))
}

impl Monitor {
    /// Registers the metrics.
    pub(super) fn new(registry: &Registry) -> Self {
        let (look, metric) = (["action", "error"], ["action", "error", "metric_type"]);
        Monitor {
            looks: registry.register(
                "horizontal_pod_autoscaler_controller_reconciliations_total",
                "Number of reconciliations of HPA controller",
                Family::new(look),
            ),
            look_time: registry.register(
                "horizontal_pod_autoscaler_controller_reconciliation_duration_seconds",
                "The time(seconds) that the HPA controller takes to reconcile once",
                seconds(look),
            ),
            computations: registry.register(
                "horizontal_pod_autoscaler_controller_metric_computation_total",
                "Number of metric computations",
                Family::new(metric),
            ),
            computation_time: registry.register(
                "horizontal_pod_autoscaler_controller_metric_computation_duration_seconds",
                "The time(seconds) that the HPA controller takes to calculate one metric",
                seconds(metric),
            ),
            autoscalers: registry.register(
                "horizontal_pod_autoscaler_controller_num_horizontal_pod_autoscalers",
                "Current number of controlled HPA objects",
                Gauge::default(),
            ),
            desired: registry.register(
                "horizontal_pod_autoscaler_controller_desired_replicas",
                "Current desired replica count for HPA objects",
                Family::new(["namespace", "hpa_name"]),
            ),
        }
    }

    /// Counts a look at an autoscaler.
    pub(super) fn looked(&self, change: Change, fault: Fault, took: Duration) {
        let labels = [change.label(), fault.label()];
        self.looks.get_or_create(&labels).inc();
        self.look_time.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Counts a proposal of a metric of this type. One that failed changes nothing.
    pub(super) fn computed(&self, change: Change, fault: Fault, took: Duration, kind: &str) {
        let change = if fault == Fault::None { change } else { Change::None };
        let labels = [change.label(), fault.label(), kind];
        self.computations.get_or_create(&labels).inc();
        self.computation_time.get_or_create(&labels).observe(took.as_secs_f64());
    }
}
