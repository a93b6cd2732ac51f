//! Metrics of queues, controllers and caches, with upstream's names.
//!
//! Flow: queues and controllers take their metrics from [`Metrics`], which registers them in the program's
//! [`Registry`]. Ages of running work and sizes of caches are computed when the registry is encoded.

mod requests;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use k8s_metrics::{
    Collector, Counter, Encoder, Family, Gauge, Histogram, MetricType, encode, exponential_buckets,
};
pub use k8s_metrics::{Registry, process};
pub use requests::counted;
use tokio::time::Instant;

use crate::caches::{Account, Caches, Usage};

/// A histogram of seconds by one label, with upstream's buckets for queues: powers of ten from 10 ns to
/// 1000 s.
fn seconds(label: &'static str) -> Family<1, Histogram> {
    Family::new_with_constructor([label], |_| Histogram::new(exponential_buckets(1e-8, 10.0, 12)))
}

/// Metrics of a work queue.
#[derive(Debug)]
pub struct QueueMetrics {
    adds: Counter,
    retries: Counter,
    depth: Gauge,
    waited: Histogram,
    worked: Histogram,
    /// Start times of the keys being processed.
    begun: Mutex<Vec<Instant>>,
}

impl QueueMetrics {
    /// Registers the metrics of the queue `name`.
    #[must_use]
    pub fn new(registry: &Registry, name: &str) -> Self {
        let count = |metric, help| -> Counter {
            registry.register(metric, help, Family::new(["name"])).get_or_create(&[name])
        };
        let time = |metric, help| registry.register(metric, help, seconds("name")).get_or_create(&[name]);
        QueueMetrics {
            adds: count("workqueue_adds_total", "Total number of adds handled by workqueue"),
            retries: count("workqueue_retries_total", "Total number of retries handled by workqueue"),
            depth: registry
                .register("workqueue_depth", "Current depth of workqueue", Family::new(["name"]))
                .get_or_create(&[name]),
            waited: time(
                "workqueue_queue_duration_seconds",
                "How long in seconds an item stays in workqueue before being requested",
            ),
            worked: time(
                "workqueue_work_duration_seconds",
                "How long in seconds processing an item from workqueue takes",
            ),
            begun: Mutex::default(),
        }
    }

    fn begun(&self) -> MutexGuard<'_, Vec<Instant>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn resize(&self, depth: usize) {
        self.depth.set(i64::try_from(depth).unwrap_or(i64::MAX));
    }

    pub(crate) fn added(&self, depth: usize) {
        self.adds.inc();
        self.resize(depth);
    }

    pub(crate) fn retried(&self) {
        self.retries.inc();
    }

    pub(crate) fn taken(&self, waited: Duration, at: Instant, depth: usize) {
        self.waited.observe(waited.as_secs_f64());
        self.begun().push(at);
        self.resize(depth);
    }

    pub(crate) fn done(&self, since: Instant, depth: usize) {
        self.worked.observe(since.elapsed().as_secs_f64());
        let mut begun = self.begun();
        if let Some(at) = begun.iter().position(|b| *b == since) {
            begun.swap_remove(at);
        }
        self.resize(depth);
    }

    /// Returns the number of added keys.
    #[must_use]
    pub fn adds(&self) -> u64 {
        self.adds.get()
    }

    /// Returns the number of keys added again after a failure.
    #[must_use]
    pub fn retries(&self) -> u64 {
        self.retries.get()
    }
}

/// Outcome of a reconcile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    RequeueAfter,
    Error,
    Panic,
}

/// Metrics of a controller.
#[derive(Debug)]
pub struct ReconcileMetrics {
    successes: Counter,
    requeues: Counter,
    errors: Counter,
    panics: Counter,
    time: Histogram,
    /// The controller's caches are synced.
    started: AtomicBool,
}

impl ReconcileMetrics {
    /// Registers the metrics of the controller `name`.
    #[must_use]
    pub fn new(registry: &Registry, name: &str) -> Self {
        let results: Family<2, Counter> = registry.register(
            "controller_runtime_reconcile_total",
            "Total number of reconciliations per controller",
            Family::new(["controller", "result"]),
        );
        let panics: Family<1, Counter> = registry.register(
            "controller_runtime_reconcile_panics_total",
            "Total number of reconciliation panics per controller",
            Family::new(["controller"]),
        );
        let time = registry.register(
            "controller_runtime_reconcile_time_seconds",
            "Length of time per reconciliation per controller",
            seconds("controller"),
        );
        ReconcileMetrics {
            successes: results.get_or_create(&[name, "success"]),
            requeues: results.get_or_create(&[name, "requeue_after"]),
            errors: results.get_or_create(&[name, "error"]),
            panics: panics.get_or_create(&[name]),
            time: time.get_or_create(&[name]),
            started: AtomicBool::new(false),
        }
    }

    pub(crate) fn ended(&self, outcome: Outcome, took: Duration) {
        match outcome {
            Outcome::Success => self.successes.inc(),
            Outcome::RequeueAfter => self.requeues.inc(),
            Outcome::Error => self.errors.inc(),
            // As upstream, a panic counts as an error, too.
            Outcome::Panic => {
                self.errors.inc();
                self.panics.inc();
            }
        }
        self.time.observe(took.as_secs_f64());
    }

    pub(crate) fn started(&self) {
        self.started.store(true, Ordering::Relaxed);
    }

    /// Returns the number of reconciles.
    #[must_use]
    pub fn reconciles(&self) -> u64 {
        self.successes.get() + self.requeues.get() + self.errors.get()
    }

    /// Returns the number of reconciles that panicked.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.panics.get()
    }
}

#[derive(Debug, Default)]
struct Parts {
    queues: BTreeMap<String, Arc<QueueMetrics>>,
    controllers: BTreeMap<String, Arc<ReconcileMetrics>>,
    caches: Vec<Account>,
}

/// The queues, controllers and caches of a registry.
#[derive(Clone, Debug, Default)]
struct Known(Arc<Mutex<Parts>>);

impl Known {
    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All metrics of a process's controllers. Clones share their state, and so do all that are made over one
/// registry.
///
/// ```
/// use k8s_controllers::metrics::Metrics;
/// let metrics = Metrics::default();
/// metrics.controller("painter");
/// assert!(metrics.render().contains("painter"));
/// ```
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    known: Known,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new(&Registry::default())
    }
}

impl Metrics {
    /// Registers the metrics of controllers in a program's registry.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        let known = registry.register_collector("controllers", Known::default());
        Metrics { registry: registry.clone(), known }
    }

    /// Returns the registry, for metrics of one's own.
    ///
    /// # Examples
    /// ```
    /// use k8s_controllers::metrics::Metrics;
    /// use k8s_metrics::Counter;
    /// let metrics = Metrics::default();
    /// let sent: Counter =
    ///     metrics.registry().register("mails_sent_total", "Number of sent mails.", Counter::default());
    /// sent.inc();
    /// assert!(metrics.render().contains("mails_sent_total 1"));
    /// ```
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Returns the metrics of the queue `name`.
    #[must_use]
    pub fn queue(&self, name: &str) -> Arc<QueueMetrics> {
        let make = || Arc::new(QueueMetrics::new(&self.registry, name));
        self.known.parts().queues.entry(name.to_owned()).or_insert_with(make).clone()
    }

    /// Returns the metrics of the controller `name`.
    #[must_use]
    pub fn controller(&self, name: &str) -> Arc<ReconcileMetrics> {
        let make = || Arc::new(ReconcileMetrics::new(&self.registry, name));
        self.known.parts().controllers.entry(name.to_owned()).or_insert_with(make).clone()
    }

    /// Adds object count and memory of these caches to the metrics, while they live.
    pub(crate) fn account(&self, caches: &Caches) {
        let mut parts = self.known.parts();
        if !parts.caches.iter().any(|a| a.is_of(caches)) {
            parts.caches.push(caches.account());
        }
    }

    /// Returns the names of controllers whose caches are not synced.
    #[must_use]
    pub fn unready(&self) -> Vec<String> {
        let parts = self.known.parts();
        let unready = parts.controllers.iter().filter(|(_, c)| !c.started.load(Ordering::Relaxed));
        unready.map(|(name, _)| name.clone()).collect()
    }

    /// Returns an error with the names of controllers whose caches are not synced.
    ///
    /// # Errors
    /// At least one controller waits for its caches.
    pub fn ready(&self) -> Result<(), String> {
        match self.unready() {
            waiting if waiting.is_empty() => Ok(()),
            waiting => Err(format!("caches are not complete: {}", waiting.join(", "))),
        }
    }

    /// Renders all metrics of the registry in the Prometheus text format.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        encode(&mut out, &self.registry);
        out
    }
}

impl Collector for Known {
    fn encode(&self, encoder: &mut Encoder<'_>) {
        let (queues, accounts): (Vec<_>, Vec<_>) = {
            let parts = self.parts();
            (parts.queues.clone().into_iter().collect(), parts.caches.clone())
        };
        type Total = fn(f64, f64) -> f64;
        let ages: [(&str, &str, Total); 2] = [
            (
                "workqueue_longest_running_processor_seconds",
                "How many seconds has the longest running processor for workqueue been running",
                f64::max,
            ),
            (
                "workqueue_unfinished_work_seconds",
                "How many seconds of work has been done that is in progress and has not been observed by work_duration",
                |a, b| a + b,
            ),
        ];
        for (name, help, total) in ages {
            let mut samples = encoder.describe(name, help, MetricType::Gauge);
            for (queue, metrics) in &queues {
                let age = metrics.begun().iter().map(|b| b.elapsed().as_secs_f64()).fold(0.0, total);
                samples.sample(&[("name", queue)], age);
            }
        }
        type Value = fn(&Usage) -> usize;
        let usage: Vec<Usage> = accounts.iter().flat_map(Account::usage).collect();
        let sizes: [(&str, &str, Value); 2] = [
            ("shared_cache_objects", "Number of objects in a shared cache", |u| u.objects),
            ("shared_cache_memory_bytes", "Estimated memory of the objects in a shared cache", |u| u.bytes),
        ];
        for (name, help, value) in sizes {
            let mut samples = encoder.describe(name, help, MetricType::Gauge);
            for u in &usage {
                let trimmed = if u.trimmed { "true" } else { "false" };
                let labels =
                    [("group", u.group), ("version", u.version), ("kind", u.kind), ("trimmed", trimmed)];
                samples.sample(&labels, value(u));
            }
        }
        let mut unreadable = encoder.describe(
            "unreadable_objects_total",
            "Number of times that an object was left out because it is not what its type says",
            MetricType::Counter,
        );
        for ((group, version, kind), count) in k8s_core::client::unreadable_objects() {
            unreadable.sample(&[("group", &group), ("version", &version), ("kind", &kind)], count);
        }
    }
}
