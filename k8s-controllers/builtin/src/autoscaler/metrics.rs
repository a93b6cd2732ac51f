//! Reads of the metrics APIs: `metrics.k8s.io`, `custom.metrics.k8s.io` and `external.metrics.k8s.io`.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_core::{
    api::{
        api::autoscaling::v2::{CrossVersionObjectReference, MetricIdentifier},
        apimachinery::pkg::api::resource::Quantity as ApiQuantity,
    },
    client::Client,
    meta::{LabelSelector, Quantity},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::{
    super::{discovery::Discovery, dynamic},
    calculate::{Failure, Sample, Samples},
    target,
};

/// Time that a custom metric without a window was measured over.
const DEFAULT_WINDOW: Duration = Duration::from_secs(60);
/// Characters of a query's value that stay as they are.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'/');
/// Characters of a path's segment that stay as they are. A metric's name may have slashes, but is one
/// segment.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b':');

/// Reads metrics of one namespace.
pub(super) struct Reader<'a> {
    pub client: &'a Client,
    pub discovery: &'a Discovery,
    pub namespace: &'a str,
}

#[derive(Deserialize)]
struct List<T> {
    // `null` of a server in Go is an empty list.
    items: Option<Vec<T>>,
}

#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct PodMetrics {
    metadata: Named,
    timestamp: Option<Timestamp>,
    #[serde(default)]
    window: String,
    #[serde(default)]
    containers: Option<Vec<ContainerMetrics>>,
}

#[derive(Deserialize)]
struct ContainerMetrics {
    #[serde(default)]
    name: String,
    #[serde(default)]
    usage: Option<BTreeMap<String, ApiQuantity>>,
}

/// A value of a custom metric, in v1beta1 and v1beta2.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MetricValue {
    described_object: Named,
    timestamp: Option<Timestamp>,
    /// Seconds; v1beta1 calls it `window`.
    #[serde(alias = "window")]
    window_seconds: Option<u64>,
    value: ApiQuantity,
}

#[derive(Deserialize)]
struct ExternalValue {
    value: ApiQuantity,
}

fn milli(quantity: &ApiQuantity) -> Option<i64> {
    quantity.0.parse::<Quantity>().ok().map(|q| q.milli())
}

/// Parses the window of `metrics.k8s.io`, a duration in Go's notation (`15.3s`, `1m0s`).
fn window(text: &str) -> Duration {
    let mut left = text;
    let mut sum = 0.0;
    while !left.is_empty() {
        let digits = left.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(left.len());
        let (number, rest) = left.split_at(digits);
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            _ => return Duration::ZERO,
        };
        let Ok(number) = number.parse::<f64>() else { return Duration::ZERO };
        sum += number * seconds;
        left = &rest[unit..];
    }
    Duration::try_from_secs_f64(sum).unwrap_or(Duration::ZERO)
}

/// Returns `?labelSelector=...`; empty for a selector of everything.
fn query(parameters: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in parameters.iter().filter(|(_, value)| !value.is_empty()) {
        text.push(if text.is_empty() { '?' } else { '&' });
        text.push_str(name);
        text.push('=');
        text.extend(utf8_percent_encode(value, VALUE));
    }
    text
}

/// Returns a metric's own selector as text; empty for none.
///
/// # Errors
/// The selector is not valid.
pub(super) fn selector(metric: &MetricIdentifier) -> Result<String, Failure> {
    metric.selector.as_ref().map_or(Ok(String::new()), |selector| {
        LabelSelector::from_api(selector).map(|s| s.to_string()).map_err(|e| e.to_string())
    })
}

impl Reader<'_> {
    /// Returns the use of a resource by each selected pod: by one of its containers, or by all together.
    ///
    /// # Errors
    /// The API does not answer, or has nothing.
    pub(super) async fn resource(
        &self,
        resource: &str,
        pods: &str,
        container: Option<&str>,
    ) -> Result<Samples, Failure> {
        let query = query(&[("labelSelector", pods)]);
        let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{}/pods{query}", self.namespace);
        let list: List<PodMetrics> = self.read("resource", &path).await?;
        let items = non_empty("resource", list)?;
        Ok(items.into_iter().filter_map(|pod| pod.sample(resource, container)).collect())
    }

    /// Returns a custom metric of each selected pod.
    ///
    /// # Errors
    /// The API does not answer, or has nothing.
    pub(super) async fn pods(&self, metric: &MetricIdentifier, pods: &str) -> Result<Samples, Failure> {
        let list = self.custom(&format!("namespaces/{}/pods/*", self.namespace), metric, pods).await?;
        let sample = |value: MetricValue| {
            let window = value.window_seconds.map_or(DEFAULT_WINDOW, Duration::from_secs);
            let at = value.timestamp.unwrap_or(Timestamp::MIN);
            Some((value.described_object.name, Sample { value: milli(&value.value)?, at, window }))
        };
        Ok(list.into_iter().filter_map(sample).collect())
    }

    /// Returns a custom metric of an object of the namespace, or of the namespace itself.
    ///
    /// # Errors
    /// The object's kind is unknown; the API does not answer, or has nothing.
    pub(super) async fn object(
        &self,
        object: &CrossVersionObjectReference,
        metric: &MetricIdentifier,
    ) -> Result<i64, Failure> {
        let group = object.api_version.as_deref().unwrap_or_default();
        let group = group.rsplit_once('/').map_or("", |(group, _)| group);
        let of = if object.kind == "Namespace" && group.is_empty() {
            format!("namespaces/{}/metrics", self.namespace)
        } else {
            let kind = target::resource(self.discovery, group, &object.kind)
                .map_err(|e| format!("unable to fetch metrics from custom metrics API: {e}"))?;
            let dot = if kind.group.is_empty() { "" } else { "." };
            let name = utf8_percent_encode(&object.name, SEGMENT);
            format!("namespaces/{}/{}{dot}{}/{name}", self.namespace, kind.plural, kind.group)
        };
        let list = self.custom(&of, metric, "").await?;
        let value = list.first().and_then(|value| milli(&value.value));
        value.ok_or_else(|| "unable to fetch metrics from custom metrics API: no value".to_owned())
    }

    async fn custom(
        &self,
        of: &str,
        metric: &MetricIdentifier,
        pods: &str,
    ) -> Result<Vec<MetricValue>, Failure> {
        let own = selector(metric)?;
        let query = query(&[("labelSelector", pods), ("metricLabelSelector", &own)]);
        let name = utf8_percent_encode(&metric.name, SEGMENT);
        // The newer version where it is served.
        let group = "custom.metrics.k8s.io";
        let newest = ["v1beta2", "v1beta1"].into_iter().find(|version| {
            self.discovery.versions.get(group).is_some_and(|all| all.iter().any(|v| v == version))
        });
        let path = format!("/apis/{group}/{}/{of}/{name}{query}", newest.unwrap_or("v1beta2"));
        let list: List<MetricValue> = self.read("custom", &path).await?;
        non_empty("custom", list)
    }

    /// Returns the values of an external metric.
    ///
    /// # Errors
    /// The API does not answer, or has nothing.
    pub(super) async fn external(&self, metric: &MetricIdentifier) -> Result<i64, Failure> {
        let query = query(&[("labelSelector", &selector(metric)?)]);
        let name = utf8_percent_encode(&metric.name, SEGMENT);
        let group = "/apis/external.metrics.k8s.io/v1beta1";
        let path = format!("{group}/namespaces/{}/{name}{query}", self.namespace);
        let list: List<ExternalValue> = self.read("external", &path).await?;
        let items = non_empty("external", list)?;
        Ok(items.iter().filter_map(|item| milli(&item.value)).fold(0, i64::saturating_add))
    }

    async fn read<T: serde::de::DeserializeOwned>(&self, api: &str, path: &str) -> Result<T, Failure> {
        let read = dynamic::get(self.client, path).await;
        read.map_err(|e| format!("unable to fetch metrics from {api} metrics API: {e}"))
    }
}

fn non_empty<T>(api: &str, list: List<T>) -> Result<Vec<T>, Failure> {
    let items = list.items.filter(|items| !items.is_empty());
    items.ok_or_else(|| format!("no metrics returned from {api} metrics API"))
}

impl PodMetrics {
    fn sample(self, resource: &str, container: Option<&str>) -> Option<(String, Sample)> {
        let all = self.containers.unwrap_or_default();
        let wanted = |c: &&ContainerMetrics| container.is_none_or(|name| name == c.name);
        let mut sum = None::<i64>;
        for c in all.iter().filter(wanted) {
            // A container without the metric: the whole is unknown.
            let used = milli(c.usage.as_ref()?.get(resource)?)?;
            sum = Some(used.saturating_add(sum.unwrap_or(0)));
        }
        let at = self.timestamp.unwrap_or(Timestamp::MIN);
        Some((self.metadata.name, Sample { value: sum?, at, window: window(&self.window) }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_are_read_with_all_their_containers_or_not_at_all() {
        let pod = |containers: serde_json::Value| -> PodMetrics {
            serde_json::from_value(json!({"metadata": {"name": "p"}, "timestamp": "2026-01-01T12:00:00Z",
                "window": "1m0.5s", "containers": containers}))
            .unwrap()
        };
        let both = json!([{"name": "a", "usage": {"cpu": "250m", "memory": "1Mi"}}, {"name": "b", "usage": {"cpu": "1"}}]);
        let value = |resource, container| pod(both.clone()).sample(resource, container).map(|(_, s)| s.value);
        assert_eq!(value("cpu", None), Some(1_250));
        assert_eq!(value("cpu", Some("a")), Some(250));
        assert_eq!(value("memory", None), None, "one container's is unknown");
        assert_eq!(value("memory", Some("a")), Some((1 << 20) * 1000));
        assert_eq!(value("cpu", Some("z")), None);
        let (name, sample) = pod(both).sample("cpu", None).unwrap();
        assert_eq!((name.as_str(), sample.window), ("p", Duration::from_millis(60_500)));
        assert!(pod(json!(null)).sample("cpu", None).is_none());
    }

    #[test]
    fn windows_are_gos() {
        for (text, millis) in [
            ("15s", 15_000),
            ("1m0s", 60_000),
            ("1h2m3.25s", 3_723_250),
            ("20ms", 20),
            ("", 0),
            ("x", 0),
            ("5", 0),
        ] {
            assert_eq!(window(text), Duration::from_millis(millis), "{text}");
        }
    }

    #[test]
    fn queries_are_encoded() {
        let text = query(&[("labelSelector", "app in (a,b),x!=y"), ("metricLabelSelector", "")]);
        assert_eq!(text, "?labelSelector=app%20in%20%28a%2Cb%29%2Cx%21%3Dy");
    }
}
