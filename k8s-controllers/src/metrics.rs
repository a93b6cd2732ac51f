//! Metrics of queues and controllers with upstream's names, in the Prometheus text format.
//!
//! Flow: components hold an [`Arc`] from [`Metrics`] and update it under a short lock; [`Metrics::render`]
//! writes all.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::caches::{Account, Caches, Usage};

/// Upper bounds of the histogram buckets in seconds: powers of ten from ten nanoseconds, as upstream's
/// queues.
const QUEUE_BUCKETS: [f64; 12] = [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0];

/// A histogram of durations.
#[derive(Clone, Debug, Default)]
struct Histogram {
    counts: [u64; QUEUE_BUCKETS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        for (count, bound) in self.counts.iter_mut().zip(QUEUE_BUCKETS) {
            *count += u64::from(seconds <= bound);
        }
        self.count += 1;
        self.sum += seconds;
    }

    fn render(&self, name: &str, labels: &str, out: &mut String) {
        for (count, bound) in self.counts.iter().zip(QUEUE_BUCKETS) {
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
        }
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", self.count);
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}", self.sum);
        let _ = writeln!(out, "{name}_count{{{labels}}} {}", self.count);
    }
}

#[derive(Debug, Default)]
struct QueueState {
    adds: u64,
    retries: u64,
    depth: usize,
    waited: Histogram,
    worked: Histogram,
    /// Start times of the keys being processed.
    begun: Vec<Instant>,
}

/// Metrics of a work queue.
#[derive(Debug, Default)]
pub struct QueueMetrics(Mutex<QueueState>);

impl QueueMetrics {
    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn added(&self, depth: usize) {
        let mut state = self.state();
        state.adds += 1;
        state.depth = depth;
    }

    pub(crate) fn retried(&self) {
        self.state().retries += 1;
    }

    pub(crate) fn taken(&self, waited: Duration, at: Instant, depth: usize) {
        let mut state = self.state();
        state.waited.observe(waited);
        state.begun.push(at);
        state.depth = depth;
    }

    pub(crate) fn done(&self, begun: Instant, depth: usize) {
        let mut state = self.state();
        state.worked.observe(begun.elapsed());
        if let Some(at) = state.begun.iter().position(|b| *b == begun) {
            state.begun.swap_remove(at);
        }
        state.depth = depth;
    }

    /// Returns the number of added keys.
    #[must_use]
    pub fn adds(&self) -> u64 {
        self.state().adds
    }

    /// Returns the number of keys added again after a failure.
    #[must_use]
    pub fn retries(&self) -> u64 {
        self.state().retries
    }
}

/// Outcome of a reconcile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Success,
    RequeueAfter,
    Error,
    Panic,
}

#[derive(Debug, Default)]
struct ReconcileState {
    totals: BTreeMap<Outcome, u64>,
    /// The controller's caches are synced.
    started: bool,
    time: Histogram,
}

/// Metrics of a controller.
#[derive(Debug, Default)]
pub struct ReconcileMetrics(Mutex<ReconcileState>);

impl ReconcileMetrics {
    fn state(&self) -> MutexGuard<'_, ReconcileState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ended(&self, outcome: Outcome, took: Duration) {
        let mut state = self.state();
        *state.totals.entry(outcome).or_default() += 1;
        state.time.observe(took);
    }

    pub(crate) fn started(&self) {
        self.state().started = true;
    }

    fn total(&self, outcome: Outcome) -> u64 {
        self.state().totals.get(&outcome).copied().unwrap_or(0)
    }

    /// Returns the number of reconciles.
    #[must_use]
    pub fn reconciles(&self) -> u64 {
        self.state().totals.values().sum()
    }

    /// Returns the number of reconciles that panicked.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.total(Outcome::Panic)
    }
}

#[derive(Debug, Default)]
struct Registry {
    queues: BTreeMap<String, Arc<QueueMetrics>>,
    controllers: BTreeMap<String, Arc<ReconcileMetrics>>,
    caches: Vec<Account>,
}

/// All metrics of a process's controllers. Clones share their state.
///
/// ```
/// use k8s_controllers::metrics::Metrics;
/// let metrics = Metrics::default();
/// metrics.controller("painter");
/// assert!(metrics.render().contains("painter"));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Metrics {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the metrics of the queue `name`.
    #[must_use]
    pub fn queue(&self, name: &str) -> Arc<QueueMetrics> {
        self.registry().queues.entry(name.to_owned()).or_default().clone()
    }

    /// Returns the metrics of the controller `name`.
    #[must_use]
    pub fn controller(&self, name: &str) -> Arc<ReconcileMetrics> {
        self.registry().controllers.entry(name.to_owned()).or_default().clone()
    }

    /// Adds object count and memory of these caches to the metrics, while they live.
    pub(crate) fn account(&self, caches: &Caches) {
        let mut registry = self.registry();
        if !registry.caches.iter().any(|a| a.is_of(caches)) {
            registry.caches.push(caches.account());
        }
    }

    /// Returns the names of controllers whose caches are not synced.
    #[must_use]
    pub fn unready(&self) -> Vec<String> {
        let registry = self.registry();
        registry
            .controllers
            .iter()
            .filter(|(_, c)| !c.state().started)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Renders all metrics in the Prometheus text format.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        let registry = self.registry();
        type Draw = fn(&QueueState, &str, &str, &mut String);
        let families: [(&str, &str, &str, Draw); 7] = [
            (
                "workqueue_adds_total",
                "counter",
                "Total number of adds handled by workqueue",
                |s, n, l, out| {
                    let _ = writeln!(out, "{n}{{{l}}} {}", s.adds);
                },
            ),
            ("workqueue_depth", "gauge", "Current depth of workqueue", |s, n, l, out| {
                let _ = writeln!(out, "{n}{{{l}}} {}", s.depth);
            }),
            (
                "workqueue_longest_running_processor_seconds",
                "gauge",
                "How many seconds has the longest running processor for workqueue been running",
                |s, n, l, out| {
                    let longest = s.begun.iter().map(|b| b.elapsed().as_secs_f64()).fold(0.0, f64::max);
                    let _ = writeln!(out, "{n}{{{l}}} {longest}");
                },
            ),
            (
                "workqueue_queue_duration_seconds",
                "histogram",
                "How long in seconds an item stays in workqueue before being requested",
                |s, n, l, out| s.waited.render(n, l, out),
            ),
            (
                "workqueue_retries_total",
                "counter",
                "Total number of retries handled by workqueue",
                |s, n, l, out| {
                    let _ = writeln!(out, "{n}{{{l}}} {}", s.retries);
                },
            ),
            (
                "workqueue_unfinished_work_seconds",
                "gauge",
                "How many seconds of work has been done that is in progress and has not been observed by work_duration",
                |s, n, l, out| {
                    let sum: f64 = s.begun.iter().map(|b| b.elapsed().as_secs_f64()).sum();
                    let _ = writeln!(out, "{n}{{{l}}} {sum}");
                },
            ),
            (
                "workqueue_work_duration_seconds",
                "histogram",
                "How long in seconds processing an item from workqueue takes",
                |s, n, l, out| s.worked.render(n, l, out),
            ),
        ];
        for (name, kind, help, draw) in families {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (queue, metrics) in &registry.queues {
                draw(&metrics.state(), name, &format!("name=\"{queue}\""), &mut out);
            }
        }
        let name = "controller_runtime_reconcile_total";
        let _ = writeln!(
            out,
            "# HELP {name} Total number of reconciliations per controller\n# TYPE {name} counter"
        );
        for (controller, metrics) in &registry.controllers {
            let results = [
                (Outcome::Success, "success"),
                (Outcome::RequeueAfter, "requeue_after"),
                (Outcome::Error, "error"),
            ];
            for (outcome, result) in results {
                // As upstream, a panic counts as an error, too.
                let panics = if outcome == Outcome::Error { metrics.panics() } else { 0 };
                let total = metrics.total(outcome) + panics;
                let _ = writeln!(out, "{name}{{controller=\"{controller}\",result=\"{result}\"}} {total}");
            }
        }
        let name = "controller_runtime_reconcile_panics_total";
        let _ = writeln!(
            out,
            "# HELP {name} Total number of reconciliation panics per controller\n# TYPE {name} counter"
        );
        for (controller, metrics) in &registry.controllers {
            let _ = writeln!(out, "{name}{{controller=\"{controller}\"}} {}", metrics.panics());
        }
        let name = "controller_runtime_reconcile_time_seconds";
        let _ = writeln!(
            out,
            "# HELP {name} Length of time per reconciliation per controller\n# TYPE {name} histogram"
        );
        for (controller, metrics) in &registry.controllers {
            metrics.state().time.render(name, &format!("controller=\"{controller}\""), &mut out);
        }
        drop(registry);
        out + &self.render_caches()
    }

    fn render_caches(&self) -> String {
        type Value = fn(&Usage) -> usize;
        let accounts = self.registry().caches.clone();
        let usage: Vec<Usage> = accounts.iter().flat_map(Account::usage).collect();
        let mut out = String::new();
        let families: [(&str, &str, Value); 2] = [
            ("shared_cache_objects", "Number of objects in a shared cache", |u| u.objects),
            ("shared_cache_memory_bytes", "Estimated memory of the objects in a shared cache", |u| u.bytes),
        ];
        for (name, help, value) in families {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
            for u in &usage {
                let (group, version, kind, trimmed) = (u.group, u.version, u.kind, u.trimmed);
                let labels =
                    format!("group=\"{group}\",version=\"{version}\",kind=\"{kind}\",trimmed=\"{trimmed}\"");
                let _ = writeln!(out, "{name}{{{labels}}} {}", value(u));
            }
        }
        let name = "unreadable_objects_total";
        let _ = writeln!(
            out,
            "# HELP {name} Number of times that an object was left out because it is not what its type says\n# TYPE {name} counter"
        );
        for ((group, version, kind), count) in k8s_core::client::unreadable_objects() {
            let labels = format!("group=\"{group}\",version=\"{version}\",kind=\"{kind}\"");
            let _ = writeln!(out, "{name}{{{labels}}} {count}");
        }
        out
    }
}
