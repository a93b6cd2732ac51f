//! The pods of the node and the resources that they use: `/pods`, `/stats/summary`, metrics.

use futures::{StreamExt, stream};
use http::{HeaderValue, Response, StatusCode, header};
use k8s_core::{client::Body, meta::ObjectExt};
use k8s_metrics::{Encoder, MetricType};
use k8s_runtime::ContainerStats;
use serde_json::{Value, json};

use super::{json as answer, text};
use crate::context::Context;

/// `GET /pods`: the pods of this node with their newest statuses.
pub(super) fn pods(cx: &Context) -> Response<Body> {
    let items: Vec<Value> = cx
        .pods
        .list()
        .iter()
        .map(|pod| {
            let mut pod = (**pod).clone();
            if let Some(view) = cx.view(pod.uid()) {
                pod.status = Some(view.status);
            }
            serde_json::to_value(&pod).unwrap_or_default()
        })
        .collect();
    answer(StatusCode::OK, &json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

/// Resource usage of one running container.
struct Usage {
    namespace: String,
    pod: String,
    uid: String,
    container: String,
    stats: ContainerStats,
}

impl Usage {
    fn labels(&self) -> [(&str, &str); 3] {
        [("container", &self.container), ("namespace", &self.namespace), ("pod", &self.pod)]
    }
}

/// Reads the usage of every running container from the runtime, a few at a time.
async fn usages(cx: &Context) -> Vec<Usage> {
    let mut wanted = Vec::new();
    for pod in cx.pods.list() {
        let Some(view) = cx.view(pod.uid()) else { continue };
        for (name, container) in view.containers {
            if let (true, Some(id)) = (container.running, container.id) {
                wanted.push((pod.clone(), name, id));
            }
        }
    }
    let mut found: Vec<Usage> = stream::iter(wanted)
        .map(|(pod, container, id)| async move {
            let stats = cx.runtime.stats(&id).await.ok()?;
            Some(Usage {
                namespace: pod.namespace().to_owned(),
                pod: pod.name().to_owned(),
                uid: pod.uid().to_owned(),
                container,
                stats,
            })
        })
        .buffer_unordered(16)
        .filter_map(std::future::ready)
        .collect()
        .await;
    found.sort_by(|a, b| (&a.namespace, &a.pod, &a.container).cmp(&(&b.namespace, &b.pod, &b.container)));
    found
}

/// Returns the machine's CPU time (nanoseconds) and memory usage (bytes).
fn machine() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<u64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|f| f.parse().ok())
        .collect();
    // Fields user, nice, system, (idle, iowait,) irq, softirq, in ticks of 10 ms.
    let busy: u64 =
        fields.iter().enumerate().filter(|(n, _)| !matches!(n, 3 | 4) && *n < 8).map(|(_, v)| v).sum();
    let memory = |key: &str| {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix(key).map(str::to_owned)).unwrap_or_default();
        line.split_whitespace().next().and_then(|v| v.parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    (busy * 10_000_000, memory("MemTotal:").saturating_sub(memory("MemAvailable:")))
}

/// `GET /stats/summary`: the `Summary` of node and pods.
pub(super) async fn summary(cx: &Context) -> Response<Body> {
    let now = cx.clock.time();
    let used = |stats: &ContainerStats| {
        (
            json!({"time": now, "usageCoreNanoSeconds": stats.cpu_nanos}),
            json!({"time": now, "usageBytes": stats.memory_bytes, "workingSetBytes": stats.working_set_bytes}),
        )
    };
    let mut pods: Vec<Value> = Vec::new();
    for usage in usages(cx).await {
        let (cpu, memory) = used(&usage.stats);
        let container = json!({"name": usage.container, "startTime": now, "cpu": cpu, "memory": memory});
        let same = |pod: &&mut Value| pod["podRef"]["uid"] == usage.uid.as_str();
        if let Some(pod) = pods.iter_mut().find(same) {
            if let Some(list) = pod["containers"].as_array_mut() {
                list.push(container);
            }
            continue;
        }
        pods.push(json!({
            "podRef": {"name": usage.pod, "namespace": usage.namespace, "uid": usage.uid},
            "startTime": now,
            "containers": [container],
        }));
    }
    let (cpu, memory) = machine();
    let node = json!({
        "nodeName": cx.config.node_name,
        "startTime": now,
        "cpu": {"time": now, "usageCoreNanoSeconds": cpu},
        "memory": {"time": now, "usageBytes": memory, "workingSetBytes": memory},
    });
    answer(StatusCode::OK, &json!({"node": node, "pods": pods}))
}

/// `GET /metrics/resource`: the endpoint that metrics-server scrapes.
pub(super) async fn resource_metrics(cx: &Context) -> Response<Body> {
    let usages = usages(cx).await;
    let (cpu, memory) = machine();
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    let mut out = String::new();
    let mut encoder = Encoder::new(&mut out);
    encoder
        .describe(
            "node_cpu_usage_seconds_total",
            "Cumulative cpu time consumed by the node in core-seconds",
            MetricType::Counter,
        )
        .sample(&[], seconds(cpu));
    encoder
        .describe(
            "node_memory_working_set_bytes",
            "Current working set of the node in bytes",
            MetricType::Gauge,
        )
        .sample(&[], memory);
    let mut samples = encoder.describe(
        "container_cpu_usage_seconds_total",
        "Cumulative cpu time consumed by the container in core-seconds",
        MetricType::Counter,
    );
    for usage in &usages {
        samples.sample(&usage.labels(), seconds(usage.stats.cpu_nanos));
    }
    let mut samples = encoder.describe(
        "container_memory_working_set_bytes",
        "Current working set of the container in bytes",
        MetricType::Gauge,
    );
    for usage in &usages {
        samples.sample(&usage.labels(), usage.stats.working_set_bytes);
    }
    prometheus(out)
}

/// `GET /metrics`: the metrics of the kubelet's registry.
pub(super) fn metrics(cx: &Context) -> Response<Body> {
    prometheus(cx.metrics.text())
}

fn prometheus(out: String) -> Response<Body> {
    let mut response = text(out);
    let format = HeaderValue::from_static(k8s_metrics::CONTENT_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, format);
    response
}
