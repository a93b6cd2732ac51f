//! Metrics of the proxy, with upstream's names.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_metrics::{Counter, Gauge, Histogram, Registry, exponential_buckets};

/// The metrics of one proxy.
pub(super) struct Metrics {
    duration: Histogram,
    last: Gauge<f64>,
    failures: Counter,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> Self {
        Metrics {
            duration: registry.register(
                "kubeproxy_sync_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds",
                Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            ),
            last: registry.register(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "The last time proxy rules were successfully synced",
                Gauge::default(),
            ),
            failures: registry.register(
                "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
                "Cumulative proxy nftables sync failures",
                Counter::default(),
            ),
        }
    }

    /// Counts a transaction that the kernel accepted, `took` after the first change.
    #[expect(clippy::disallowed_methods, reason = "the kernel applies rules in real time")]
    pub(super) fn applied(&self, took: Duration) {
        self.duration.observe(took.as_secs_f64());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last.set(now.as_secs_f64());
    }

    /// Counts a transaction that failed.
    pub(super) fn failed(&self) {
        self.failures.inc();
    }
}
