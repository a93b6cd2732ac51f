//! Prometheus metrics of a program: counters, gauges, histograms, families of them by label, one registry.
//!
//! Flow: a component registers its metrics once and keeps them; each is a handle to atomics, and changing one
//! takes no lock. [`encode`] writes a [`Registry`] in the text format 0.0.4, which `/metrics` serves.
//!
//! ```
//! use k8s_metrics::{Counter, Family, Registry, encode};
//! let registry = Registry::default();
//! let requests: Family<2, Counter> =
//!     registry.register("requests_total", "Number of requests.", Family::new(["verb", "code"]));
//! requests.get_or_create(&["GET", "200"]).inc();
//! let mut text = String::new();
//! encode(&mut text, &registry);
//! assert!(text.contains("requests_total{verb=\"GET\",code=\"200\"} 1\n"));
//! ```
//!
//! Guarantees:
//! 1. A family has at most [`Family::limit`] label sets; further ones count as `other`. A client that invents
//!    names cannot make it grow.
//! 2. Two components that register one name share the metric, so a name occurs once in the output.
//! 3. The output is parseable whatever the label values and help texts contain.
//!
//! The interface is that of the crate `prometheus-client` (`register`, `get_or_create`, `observe`, `encode`,
//! collectors), which can replace it; this crate exists because it is small and has no dependencies. Three
//! differences: label names are given once and values as an array, so that a lookup allocates nothing;
//! [`Registry::register`] returns the metric; names are written in full, with `_total`.
//!
//! Not here: a server (`k8s_controllers::health`), OpenMetrics, exemplars, push.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests measure time"))]

mod family;
mod metric;
pub mod process;
mod registry;
mod text;

pub use family::Family;
pub use metric::{Counter, Gauge, Histogram, Number, exponential_buckets};
pub use registry::{Collector, Metric, Registry, encode};
pub use text::{CONTENT_TYPE, Encoder, MetricType, Samples};
