//! The text format 0.0.4.

use std::fmt::{self, Write};

/// Value of the `Content-Type` header of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricType {
    /// Only grows.
    Counter,
    /// Grows and shrinks.
    Gauge,
    /// A distribution over buckets.
    Histogram,
}

impl fmt::Display for MetricType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MetricType::Counter => "counter",
            MetricType::Gauge => "gauge",
            MetricType::Histogram => "histogram",
        })
    }
}

/// The writer of metrics, for a [`Collector`](crate::Collector).
#[derive(Debug)]
pub struct Encoder<'a> {
    out: &'a mut String,
}

impl<'a> Encoder<'a> {
    /// Writes to the end of `out`.
    pub fn new(out: &'a mut String) -> Self {
        Encoder { out }
    }

    /// Writes a metric's help and type. Its samples follow.
    pub fn describe<'n>(&mut self, name: &'n str, help: &str, kind: MetricType) -> Samples<'_, 'n> {
        let _ = write!(self.out, "# HELP {name} ");
        escape(self.out, help, false);
        let _ = writeln!(self.out, "\n# TYPE {name} {kind}");
        Samples { out: self.out, name, labels: String::new() }
    }
}

/// The samples of one metric.
#[derive(Debug)]
pub struct Samples<'a, 'n> {
    out: &'a mut String,
    name: &'n str,
    /// Encoded labels that all samples have.
    labels: String,
}

impl Samples<'_, '_> {
    /// Writes a value with its labels.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl fmt::Display) {
        let labels = with(&self.labels, labels);
        self.line("", &labels, value);
    }

    /// Returns a writer of samples that also have these labels.
    pub(crate) fn labelled(&mut self, labels: &[(&str, &str)]) -> Samples<'_, '_> {
        Samples { labels: with(&self.labels, labels), out: self.out, name: self.name }
    }

    /// Writes a histogram: upper bounds with cumulative counts, the last one infinite.
    pub(crate) fn buckets(&mut self, buckets: &[(f64, u64)], sum: f64) {
        for (bound, count) in buckets {
            let bound = if bound.is_infinite() { "+Inf".to_owned() } else { bound.to_string() };
            let labels = with(&self.labels, &[("le", &bound)]);
            self.line("_bucket", &labels, count);
        }
        let labels = std::mem::take(&mut self.labels);
        self.line("_sum", &labels, sum);
        self.line("_count", &labels, buckets.last().map_or(0, |(_, count)| *count));
        self.labels = labels;
    }

    fn line(&mut self, suffix: &str, labels: &str, value: impl fmt::Display) {
        let name = self.name;
        // Writing to a `String` does not fail.
        let _ = match labels {
            "" => write!(self.out, "{name}{suffix} "),
            _ => write!(self.out, "{name}{suffix}{{{labels}}} "),
        };
        let begin = self.out.len();
        let _ = write!(self.out, "{value}");
        let go = match &self.out[begin..] {
            "inf" => "+Inf",
            "-inf" => "-Inf",
            _ => "",
        };
        if !go.is_empty() {
            self.out.replace_range(begin.., go);
        }
        self.out.push('\n');
    }
}

/// Returns encoded labels, extended by more.
fn with(labels: &str, more: &[(&str, &str)]) -> String {
    let mut all = labels.to_owned();
    for (name, value) in more {
        let comma = if all.is_empty() { "" } else { "," };
        let _ = write!(all, "{comma}{name}=\"");
        escape(&mut all, value, true);
        all.push('"');
    }
    all
}

/// Appends a text in one line; in a label also without quotes.
fn escape(out: &mut String, text: &str, is_label: bool) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if is_label => out.push_str("\\\""),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Counter, Family, Gauge, Histogram, Registry, encode};

    #[test]
    fn metrics_are_written_as_prometheus_reads_them() {
        let registry = Registry::default();
        let family: Family<1, Counter> =
            registry.register("b_total", "Back\\slash\nand \"quotes\".", Family::new(["path"]));
        family.get_or_create(&["a\"\\\n"]).inc_by(7);
        let free: Gauge<f64> = registry.register("c", "C.", Gauge::default());
        free.set(f64::NEG_INFINITY);
        let waits = Family::new_with_constructor(["name"], |_| Histogram::new([0.5, 1e-8]));
        registry.register("a_seconds", "A.", waits).get_or_create(&["x"]).observe(0.25);
        let mut text = String::new();
        encode(&mut text, &registry);
        assert_eq!(
            text,
            r#"# HELP a_seconds A.
# TYPE a_seconds histogram
a_seconds_bucket{name="x",le="0.00000001"} 0
a_seconds_bucket{name="x",le="0.5"} 1
a_seconds_bucket{name="x",le="+Inf"} 1
a_seconds_sum{name="x"} 0.25
a_seconds_count{name="x"} 1
# HELP b_total Back\\slash\nand "quotes".
# TYPE b_total counter
b_total{path="a\"\\\n"} 7
# HELP c C.
# TYPE c gauge
c -Inf
"#
        );
    }
}
