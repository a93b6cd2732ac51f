//! The registry: all metrics of a program by name.

use std::{
    any::Any,
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    Counter, Family, Gauge, Histogram, Number,
    text::{Encoder, MetricType, Samples},
};

/// A metric that a [`Registry`] can hold.
pub trait Metric: Any + Clone + Send + Sync {
    /// Type in the output.
    const TYPE: MetricType;
    /// Writes the samples.
    fn encode(&self, samples: &mut Samples<'_, '_>);
}

impl<N: Number> Metric for Counter<N> {
    const TYPE: MetricType = MetricType::Counter;
    fn encode(&self, samples: &mut Samples<'_, '_>) {
        samples.sample(&[], self.get());
    }
}

impl<N: Number> Metric for Gauge<N> {
    const TYPE: MetricType = MetricType::Gauge;
    fn encode(&self, samples: &mut Samples<'_, '_>) {
        samples.sample(&[], self.get());
    }
}

impl Metric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
    fn encode(&self, samples: &mut Samples<'_, '_>) {
        samples.buckets(&self.cumulative(), self.sum());
    }
}

impl<const N: usize, M: Metric> Metric for Family<N, M> {
    const TYPE: MetricType = M::TYPE;
    fn encode(&self, samples: &mut Samples<'_, '_>) {
        for (values, metric) in self.sorted() {
            let labels: Vec<(&str, &str)> =
                self.names().iter().zip(&values).map(|(name, value)| (*name, &**value)).collect();
            metric.encode(&mut samples.labelled(&labels));
        }
    }
}

/// A source of metrics whose values are read when they are asked for.
///
/// # Examples
/// ```
/// use k8s_metrics::{Collector, Encoder, MetricType};
/// #[derive(Clone)]
/// struct Disk;
/// impl Collector for Disk {
///     fn encode(&self, encoder: &mut Encoder<'_>) {
///         let mut free = encoder.describe("disk_free_bytes", "Free bytes of a disk.", MetricType::Gauge);
///         free.sample(&[("disk", "sda")], 4096_u64);
///     }
/// }
/// # let mut text = String::new();
/// # let registry = k8s_metrics::Registry::default();
/// # registry.register_collector("disk", Disk);
/// # k8s_metrics::encode(&mut text, &registry);
/// # assert!(text.ends_with("disk_free_bytes{disk=\"sda\"} 4096\n"));
/// ```
pub trait Collector: Any + Send + Sync {
    /// Writes the metrics. A name must not be that of another metric of the registry.
    fn encode(&self, encoder: &mut Encoder<'_>);
}

/// A registered metric without its type.
trait Entry: Any + Send + Sync {
    fn encode(&self, name: &str, encoder: &mut Encoder<'_>);
    fn metric(&self) -> &dyn Any;
}

struct Described<M> {
    help: &'static str,
    metric: M,
}

impl<M: Metric> Entry for Described<M> {
    fn encode(&self, name: &str, encoder: &mut Encoder<'_>) {
        self.metric.encode(&mut encoder.describe(name, self.help, M::TYPE));
    }

    fn metric(&self) -> &dyn Any {
        &self.metric
    }
}

#[derive(Default)]
struct Entries {
    metrics: BTreeMap<&'static str, Arc<dyn Entry>>,
    collectors: BTreeMap<&'static str, Arc<dyn Collector>>,
}

/// All metrics of a program. A clone is the same registry.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<Entries>>);

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("metrics", &self.entries().metrics.len()).finish_non_exhaustive()
    }
}

impl Registry {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a metric under its full name, and returns it. If the name is taken by a metric of the same type,
    /// that one is returned instead, so that several components of a program count together. If it is taken
    /// by another type, the metric works and is not shown.
    pub fn register<M: Metric>(&self, name: &'static str, help: &'static str, metric: M) -> M {
        debug_assert!(is_name(name), "{name:?} is no metric name");
        let mut entries = self.entries();
        if let Some(taken) = entries.metrics.get(name) {
            let known = taken.metric().downcast_ref::<M>();
            debug_assert!(known.is_some(), "{name} is registered with another type");
            return known.cloned().unwrap_or(metric);
        }
        entries.metrics.insert(name, Arc::new(Described { help, metric: metric.clone() }));
        metric
    }

    /// Adds a collector under a key of its own, and returns it, or the one that has the key already.
    pub fn register_collector<C: Collector + Clone>(&self, key: &'static str, collector: C) -> C {
        let mut entries = self.entries();
        if let Some(taken) = entries.collectors.get(key) {
            let known = (&**taken as &dyn Any).downcast_ref::<C>();
            debug_assert!(known.is_some(), "{key} is registered with another type");
            return known.cloned().unwrap_or(collector);
        }
        entries.collectors.insert(key, Arc::new(collector.clone()));
        collector
    }

    /// Writes all metrics, without holding the lock.
    fn encode(&self, encoder: &mut Encoder<'_>) {
        let (metrics, collectors) = {
            let entries = self.entries();
            let metrics: Vec<_> =
                entries.metrics.iter().map(|(name, entry)| (*name, entry.clone())).collect();
            (metrics, entries.collectors.values().cloned().collect::<Vec<_>>())
        };
        for (name, entry) in metrics {
            entry.encode(name, encoder);
        }
        for collector in collectors {
            collector.encode(encoder);
        }
    }
}

/// Appends all metrics of a registry in the text format 0.0.4.
pub fn encode(out: &mut String, registry: &Registry) {
    registry.encode(&mut Encoder::new(out));
}

fn is_name(name: &str) -> bool {
    let first = name.chars().next();
    first.is_some_and(|c| !c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_that_register_one_name_count_together() {
        let registry = Registry::default();
        let one: Counter = registry.register("starts_total", "Number of starts.", Counter::default());
        let two: Counter = registry.clone().register("starts_total", "Number of starts.", Counter::default());
        one.inc();
        two.inc();
        let mut text = String::new();
        encode(&mut text, &registry);
        assert_eq!(
            text,
            "# HELP starts_total Number of starts.\n# TYPE starts_total counter\nstarts_total 2\n"
        );
    }

    #[test]
    fn names_are_those_of_prometheus() {
        for (name, good) in [("a_b:c9", true), ("_a", true), ("9a", false), ("", false), ("a-b", false)] {
            assert_eq!(is_name(name), good, "{name:?}");
        }
    }
}
