//! Metrics of pods that serve them in Prometheus' text format.
//!
//! A running pod with the annotation `prometheus.io/scrape: "true"` is read by HTTP at `prometheus.io/port`
//! (else the first port of its containers) and `prometheus.io/path` (else `/metrics`).
//!
//! - A gauge has the value of its last reading.
//! - A counter `NAME_total` is served as its rate per second, by the names `NAME` and `NAME_per_second`. The
//!   rate is that between the last two readings, which are at least the resolution apart (the autoscaler's
//!   period, 15 s unless set). After a restart of the process a counter counts from zero. Without two
//!   readings within five minutes it has no value.
//! - The value of a pod is the sum of its series that the metric's selector matches; that of a Service,
//!   a workload or a namespace is the sum of its pods.
//! - External metrics are the series of the namespace's pods, each with its labels.
//!
//! Flow: a question makes it read the pods of its namespace through the API server's proxy, unless it did so
//! within the resolution. Nothing runs while nobody asks.
//!
//! Guarantees: memory and time are bounded, whatever pods answer ([`MOST_BYTES`] and others); a pod that
//! fails is left out. A question about a namespace reads no pod of another, and drops the readings that
//! nobody asked for during ten minutes.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, stream};
use http::{Method, Request};
use jiff::Timestamp;
use k8s_core::{
    api::apimachinery::pkg::apis::meta::v1::LabelSelector as ApiSelector,
    client::{Client, Error, empty_body},
    clock::Clock,
    meta::LabelSelector,
    status::{ApiStatus, Reason},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Adapter, Measured, Metric, Of, Which, answer,
    text::{self, Series},
};
use crate::readings::whole;

/// Bytes of a pod's answer; a pod with more is left out.
const MOST_BYTES: usize = 1 << 20;
/// Bytes of the answers of a namespace; pods beyond are left out.
const MOST_BYTES_ALL: usize = 16 << 20;
/// Namespaces whose readings are kept.
const MOST_NAMESPACES: usize = 32;
/// Time after which readings that nobody asks for are dropped, at the next question about any namespace. They
/// make no rate then, because it is longer than [`WINDOW`].
const KEPT: Duration = Duration::from_secs(600);
/// Pods that are read at the same time.
const AT_ONCE: usize = 16;
/// Longest wait for a pod, and for all pods of a namespace.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(10));
/// Wait for a second reading where a first gave no rate.
const AGAIN: Duration = Duration::from_secs(1);
/// Shortest and longest time between two readings that makes a rate.
const WINDOW: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(300));
/// Characters of a path that stay as they are.
const PATH: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/').remove(b':');

/// Reads metrics from pods.
#[derive(Debug)]
pub struct Scraper {
    resolution: Duration,
    clock: Clock,
    spaces: Mutex<HashMap<String, Space>>,
}

/// The readings of a namespace. Who asks while they are made waits for them.
#[derive(Clone, Debug)]
struct Space {
    asked: Timestamp,
    readings: Arc<tokio::sync::Mutex<Readings>>,
}

#[derive(Debug, Default)]
struct Readings {
    read: Option<Timestamp>,
    /// By uid.
    pods: HashMap<String, Reading>,
    newest: Arc<Vec<PodValues>>,
}

/// The counters of a pod's last reading.
#[derive(Debug)]
struct Reading {
    at: Timestamp,
    counters: HashMap<(String, BTreeMap<String, String>), f64>,
}

/// The series of a pod.
#[derive(Clone, Debug)]
struct PodValues {
    name: String,
    labels: Option<BTreeMap<String, String>>,
    values: Vec<Measurement>,
}

#[derive(Clone, Debug)]
struct Measurement {
    name: String,
    labels: BTreeMap<String, String>,
    measured: Measured,
}

impl Measurement {
    fn is(&self, metric: &Metric) -> bool {
        let rate = metric.name.strip_suffix("_per_second");
        let named = self.name == metric.name || (self.measured.window.is_some() && rate == Some(&self.name));
        named && metric.series.matches(Some(&self.labels))
    }
}

impl Scraper {
    /// Creates a scraper whose readings are at most `resolution` old.
    #[must_use]
    pub fn new(resolution: Duration, clock: Clock) -> Self {
        Scraper { resolution, clock, spaces: Mutex::default() }
    }

    fn space(&self, namespace: &str) -> Arc<tokio::sync::Mutex<Readings>> {
        let now = self.clock.now();
        let mut spaces = self.spaces.lock().unwrap_or_else(PoisonError::into_inner);
        spaces.retain(|_, space| since(now, space.asked) <= KEPT);
        if spaces.len() >= MOST_NAMESPACES && !spaces.contains_key(namespace) {
            let oldest = spaces.iter().min_by_key(|(name, space)| (space.asked, name.to_string()));
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                spaces.remove(&oldest);
            }
        }
        let space = spaces
            .entry(namespace.to_owned())
            .or_insert_with(|| Space { asked: now, readings: Arc::default() });
        space.asked = now;
        space.readings.clone()
    }

    /// Returns the series of a namespace's pods.
    async fn newest(&self, client: &Client, namespace: &str) -> Result<Arc<Vec<PodValues>>, ApiStatus> {
        let space = self.space(namespace);
        let mut readings = space.lock().await;
        let now = self.clock.now();
        let age = readings.read.map(|read| since(now, read));
        if age.is_some_and(|age| age < self.resolution) {
            return Ok(readings.newest.clone());
        }
        let lacking = self.read(client, namespace, &mut readings).await?;
        if lacking && age.is_none_or(|age| age > WINDOW.1) {
            self.clock.sleep(AGAIN).await;
            self.read(client, namespace, &mut readings).await?;
        }
        readings.read = Some(now);
        Ok(readings.newest.clone())
    }

    /// Reads all pods of a namespace once. Returns true if a counter gave no rate.
    async fn read(
        &self,
        client: &Client,
        namespace: &str,
        readings: &mut Readings,
    ) -> Result<bool, ApiStatus> {
        let path = format!("/api/v1/namespaces/{}/pods", utf8_percent_encode(namespace, NON_ALPHANUMERIC));
        let listed: Listed<Pod> = get(client, &path).await?;
        let targets = listed.items.into_iter().filter_map(|pod| Some((target(namespace, &pod)?, pod)));
        let reads = stream::iter(targets).map(|(path, pod)| async move {
            let answer = tokio::time::timeout(PATIENCE.0, read_pod(client, &path)).await;
            match answer {
                Ok(Ok(text)) => Some((pod, self.clock.now(), text)),
                Ok(Err(error)) => {
                    tracing::debug!(path, %error, "no metrics of a pod");
                    None
                }
                Err(_) => None,
            }
        });
        let deadline = self.clock.sleep(PATIENCE.1);
        let mut answers = Box::pin(reads.buffer_unordered(AT_ONCE).take_until(Box::pin(deadline)));
        let (mut found, mut bytes) = (Vec::new(), 0);
        while let Some(answer) = answers.next().await {
            let Some((pod, at, text)) = answer else { continue };
            bytes += text.len();
            if bytes > MOST_BYTES_ALL {
                tracing::debug!(namespace, "the metrics of more pods are too long");
                break;
            }
            match text::parse(&text) {
                Ok(series) => found.push((pod, at, series)),
                Err(error) => {
                    tracing::debug!(namespace, pod = pod.metadata.name, %error, "not Prometheus' text")
                }
            }
        }
        Ok(readings.take(found))
    }

    /// Returns the selector of the pods of an object. `None`: all of the namespace.
    async fn pods_of(
        &self,
        client: &Client,
        of: &Of,
        name: &str,
    ) -> Result<Option<LabelSelector>, ApiStatus> {
        if of.resource == "namespaces" {
            return Ok(None);
        }
        if !answer::KINDS.iter().any(|(resource, _)| *resource == of.resource) {
            let why = format!("{} have no metrics: they select no pods", of.resource);
            return Err(ApiStatus::of(Reason::NotFound, why));
        }
        let (plural, prefix) = match of.resource.split_once('.') {
            Some((plural, group)) => (plural, format!("/apis/{group}/v1")),
            None => (of.resource.as_str(), "/api/v1".to_owned()),
        };
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let path = format!("{prefix}/namespaces/{}/{plural}/{}", encoded(&of.namespace), encoded(name));
        let object: Value = get(client, &path).await?;
        let selector = &object["spec"]["selector"];
        let none = || ApiStatus::of(Reason::NotFound, format!("{} {name} selects no pods", of.resource));
        if selector.is_null() {
            return Err(none());
        }
        // Those of Services and ReplicationControllers are labels.
        if matches!(of.resource.as_str(), "services" | "replicationcontrollers") {
            let labels: BTreeMap<String, String> =
                serde_json::from_value(selector.clone()).map_err(|_| none())?;
            return Ok(Some(LabelSelector::from_labels(&labels)));
        }
        let selector: ApiSelector = serde_json::from_value(selector.clone()).map_err(|_| none())?;
        LabelSelector::from_api(&selector).map(Some).map_err(|_| none())
    }
}

#[async_trait]
impl Adapter for Scraper {
    async fn custom(
        &self,
        client: &Client,
        of: &Of,
        metric: &Metric,
    ) -> Result<Vec<(String, Measured)>, ApiStatus> {
        let pods = self.newest(client, &of.namespace).await?;
        let each = |pod: &PodValues| Some((pod.name.clone(), sum(std::iter::once(pod), metric)?));
        match &of.which {
            Which::One(name) if of.resource == "pods" => {
                Ok(pods.iter().filter(|pod| pod.name == *name).filter_map(each).collect())
            }
            Which::All(labels) if of.resource == "pods" => {
                Ok(pods.iter().filter(|pod| labels.matches(pod.labels.as_ref())).filter_map(each).collect())
            }
            Which::One(name) => {
                let selector = self.pods_of(client, of, name).await?;
                let selects = |pod: &&PodValues| {
                    selector.as_ref().is_none_or(|selector| selector.matches(pod.labels.as_ref()))
                };
                let total = sum(pods.iter().filter(selects), metric);
                Ok(total.map(|total| (name.clone(), total)).into_iter().collect())
            }
            Which::All(_) => {
                Err(ApiStatus::bad_request(format!("{}: ask for one object by its name", of.resource)))
            }
        }
    }

    async fn external(
        &self,
        client: &Client,
        namespace: &str,
        metric: &Metric,
    ) -> Result<Vec<(BTreeMap<String, String>, Measured)>, ApiStatus> {
        let pods = self.newest(client, namespace).await?;
        let all = pods.iter().flat_map(|pod| &pod.values).filter(|one| one.is(metric));
        Ok(all.map(|one| (one.labels.clone(), one.measured)).collect())
    }
}

/// Returns the sum of the series of a metric; `None` if no pod has one.
fn sum<'a>(pods: impl Iterator<Item = &'a PodValues>, metric: &Metric) -> Option<Measured> {
    let all = pods.flat_map(|pod| &pod.values).filter(|one| one.is(metric)).map(|one| one.measured);
    all.reduce(|a, b| Measured {
        value: a.value + b.value,
        at: a.at.min(b.at),
        window: a.window.max(b.window),
    })
}

fn since(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

impl Readings {
    /// Takes the series of pods in place of the former. Returns true if a counter gave no rate.
    fn take(&mut self, found: Vec<(Pod, Timestamp, Vec<Series>)>) -> bool {
        let (mut pods, mut newest, mut lacking) = (HashMap::new(), Vec::new(), false);
        for (pod, at, series) in found {
            let before = self.pods.remove(&pod.metadata.uid);
            let window = before.as_ref().map(|before| since(at, before.at));
            let before = before.filter(|_| window.is_some_and(|w| w >= WINDOW.0 && w <= WINDOW.1));
            let (mut counters, mut values) = (HashMap::new(), Vec::new());
            for Series { name, labels, value, is_counter } in series {
                if !is_counter {
                    values.push(Measurement { name, labels, measured: Measured { value, at, window: None } });
                    continue;
                }
                let key = (name, labels);
                let rate = before.as_ref().zip(window).and_then(|(before, window)| {
                    let had = before.counters.get(&key)?;
                    // Less than before: the process was started anew.
                    let grown = if value < *had { value } else { value - had };
                    Some(Measured { value: grown / window.as_secs_f64(), at, window: Some(window) })
                });
                match rate {
                    Some(measured) => {
                        let name = key.0.strip_suffix("_total").unwrap_or(&key.0).to_owned();
                        values.push(Measurement { name, labels: key.1.clone(), measured });
                    }
                    None => lacking = true,
                }
                counters.insert(key, value);
            }
            pods.insert(pod.metadata.uid, Reading { at, counters });
            newest.push(PodValues { name: pod.metadata.name, labels: pod.metadata.labels, values });
        }
        newest.sort_by(|a, b| a.name.cmp(&b.name));
        (self.pods, self.newest) = (pods, Arc::new(newest));
        lacking
    }
}

#[derive(Deserialize)]
struct Listed<T> {
    items: Vec<T>,
}

#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
    uid: String,
    labels: Option<BTreeMap<String, String>>,
    annotations: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    containers: Vec<Container>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Container {
    ports: Vec<Port>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    container_port: u16,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: String,
}

/// Returns the path of the API server's proxy to a pod's metrics; `None` if the pod is not to be read.
fn target(namespace: &str, pod: &Pod) -> Option<String> {
    let annotation =
        |key: &str| pod.metadata.annotations.get(&format!("prometheus.io/{key}")).map(String::as_str);
    if annotation("scrape") != Some("true") || pod.status.phase != "Running" {
        return None;
    }
    if annotation("scheme").is_some_and(|scheme| scheme != "http") {
        return None;
    }
    let port = match annotation("port") {
        Some(port) => port.parse().ok().filter(|port| *port != 0)?,
        None => pod.spec.containers.iter().flat_map(|c| &c.ports).next()?.container_port,
    };
    let path = annotation("path").unwrap_or("/metrics");
    let path = path.strip_prefix('/').unwrap_or(path);
    // Nothing may lead out of the pod's part of the API.
    if path.split('/').any(|part| matches!(part, "." | "..")) {
        return None;
    }
    let (namespace, name) = (
        utf8_percent_encode(namespace, NON_ALPHANUMERIC),
        utf8_percent_encode(&pod.metadata.name, NON_ALPHANUMERIC),
    );
    let path = utf8_percent_encode(path, PATH);
    Some(format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy/{path}"))
}

async fn get<T: serde::de::DeserializeOwned>(client: &Client, path: &str) -> Result<T, ApiStatus> {
    client.json(Method::GET, path, "application/json", "").await.map_err(|e| match e {
        Error::Api(status) => status,
        e => ApiStatus::of(Reason::ServiceUnavailable, e.to_string()),
    })
}

async fn read_pod(client: &Client, path: &str) -> Result<String, Error> {
    let failed = |why: String| Error::Request(format!("GET {path}: {why}"));
    let request = Request::get(path)
        .header(http::header::ACCEPT, "text/plain;version=0.0.4")
        .body(empty_body())
        .map_err(|e| failed(e.to_string()))?;
    let response = client.send(request).await?;
    if !response.status().is_success() {
        return Err(failed(format!("status {}", response.status().as_u16())));
    }
    let bytes = whole(response.into_body(), MOST_BYTES).await;
    let bytes = bytes.map_err(|e| failed(e.to_string()))?;
    String::from_utf8(bytes.to_vec()).map_err(|e| failed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(annotations: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u", "annotations": annotations},
            "spec": {"containers": [{"ports": [{"containerPort": 8080}]}]}, "status": {"phase": "Running"}}))
        .unwrap()
    }

    #[test]
    fn annotations_say_what_is_read() {
        let of = |annotations: Value| target("a", &pod(annotations));
        let (scrape, port, path) = ("prometheus.io/scrape", "prometheus.io/port", "prometheus.io/path");
        let base = "/api/v1/namespaces/a/pods/p:";
        for (annotations, want) in [
            (json!({}), None),
            (json!({scrape: "false"}), None),
            (json!({scrape: "true"}), Some("8080/proxy/metrics")),
            (json!({scrape: "true", port: "9"}), Some("9/proxy/metrics")),
            (json!({scrape: "true", path: "/a/b"}), Some("8080/proxy/a/b")),
            (json!({scrape: "true", port: "70000"}), None),
            (json!({scrape: "true", port: "1/../x"}), None),
            (json!({scrape: "true", path: "/../../../secrets"}), None),
            (json!({scrape: "true", path: "/m?x=%2e%2e#y"}), Some("8080/proxy/m%3Fx%3D%252e%252e%23y")),
            (json!({scrape: "true", "prometheus.io/scheme": "https"}), None),
        ] {
            let want = want.map(|rest| format!("{base}{rest}"));
            assert_eq!(of(annotations.clone()), want, "{annotations}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn readings_that_nobody_asks_for_are_dropped() {
        let clock = Clock::starting_at(Timestamp::UNIX_EPOCH);
        let scraper = Scraper::new(Duration::from_secs(15), clock.clone());
        let known = || {
            let spaces = scraper.spaces.lock().unwrap();
            let mut names: Vec<String> = spaces.keys().cloned().collect();
            names.sort();
            names.join(" ")
        };
        let asked = |namespace: &str| drop(scraper.space(namespace));
        asked("a");
        asked("b");
        clock.sleep(KEPT / 2).await;
        asked("b");
        clock.sleep(KEPT / 2 + Duration::from_secs(1)).await;
        assert_eq!(known(), "a b");
        asked("c");
        assert_eq!(known(), "b c");
        clock.sleep(KEPT * 2).await;
        // The one that is asked for is new again.
        asked("b");
        assert_eq!(known(), "b");
    }

    #[test]
    fn counters_are_rates_and_start_anew() {
        let mut readings = Readings::default();
        let mut at = |second: i64, count: f64| {
            let at = Timestamp::from_second(1_767_225_600 + second).unwrap();
            let series = |name: &str, value: f64, is_counter: bool, code: &str| Series {
                name: name.into(),
                labels: [("code".to_owned(), code.to_owned())].into(),
                value,
                is_counter,
            };
            let all = vec![
                series("hits_total", count, true, "200"),
                series("hits_total", count, true, "500"),
                series("depth", count, false, ""),
            ];
            let lacking = readings.take(vec![(pod(json!({})), at, all)]);
            let value = |name: &str, selector: &str| {
                let metric = Metric { name: name.into(), series: selector.parse().unwrap() };
                sum(readings.newest.iter(), &metric).map(|m| (m.value, m.window.map(|w| w.as_secs())))
            };
            assert_eq!(value("depth", ""), Some((count, None)));
            assert_eq!(value("depth_per_second", ""), None, "a gauge has no rate");
            assert_eq!(value("hits_total", ""), None);
            assert_eq!(value("hits", ""), value("hits_per_second", ""));
            (lacking, value("hits", ""), value("hits", "code=500"))
        };
        assert_eq!(at(0, 10.0), (true, None, None));
        assert_eq!(at(20, 30.0), (false, Some((2.0, Some(20))), Some((1.0, Some(20)))));
        assert_eq!(at(30, 5.0), (false, Some((1.0, Some(10))), Some((0.5, Some(10)))), "started anew");
        assert_eq!(at(1030, 1005.0), (true, None, None), "too long ago");
        assert_eq!(at(1040, 1005.0), (false, Some((0.0, Some(10))), Some((0.0, Some(10)))));
    }
}
