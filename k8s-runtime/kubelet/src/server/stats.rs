//! The pods of the node and the resources that they use: `/pods`, `/stats/summary`, metrics.

use std::fmt::Write;

use futures::{StreamExt, stream};
use http::{Response, StatusCode};
use k8s_core::{client::Body, meta::ObjectExt};
use k8s_runtime::ContainerStats;
use serde_json::{Value, json};

use super::{json as answer, text};
use crate::{context::Context, types::*};

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
    let mut out = String::new();
    let usages = usages(cx).await;
    let (cpu, memory) = machine();
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    // Writing to a `String` does not fail.
    let _ = writeln!(out, "# TYPE node_cpu_usage_seconds_total counter");
    let _ = writeln!(out, "node_cpu_usage_seconds_total {}", seconds(cpu));
    let _ = writeln!(out, "# TYPE node_memory_working_set_bytes gauge");
    let _ = writeln!(out, "node_memory_working_set_bytes {memory}");
    let labels =
        |u: &Usage| format!("container={:?},namespace={:?},pod={:?}", u.container, u.namespace, u.pod);
    let _ = writeln!(out, "# TYPE container_cpu_usage_seconds_total counter");
    for usage in &usages {
        let value = seconds(usage.stats.cpu_nanos);
        let _ = writeln!(out, "container_cpu_usage_seconds_total{{{}}} {value}", labels(usage));
    }
    let _ = writeln!(out, "# TYPE container_memory_working_set_bytes gauge");
    for usage in &usages {
        let value = usage.stats.working_set_bytes;
        let _ = writeln!(out, "container_memory_working_set_bytes{{{}}} {value}", labels(usage));
    }
    text(out)
}

/// `GET /metrics`: the kubelet's own metrics.
pub(super) fn metrics(cx: &Context) -> Response<Body> {
    let pods = cx.pods.list();
    let views = pods.iter().filter_map(|p| cx.view(p.uid()));
    let containers = views.flat_map(|v| v.containers.into_values()).filter(|c| c.running).count();
    let running = |pod: &&std::sync::Arc<Pod>| {
        cx.view(pod.uid()).is_some_and(|v| v.status.phase.as_deref() == Some("Running"))
    };
    let mut out = String::new();
    for (name, value) in [
        ("kubelet_running_pods", pods.iter().filter(running).count()),
        ("kubelet_running_containers", containers),
        ("kubelet_active_pods", pods.len()),
    ] {
        let _ = writeln!(out, "# TYPE {name} gauge\n{name} {value}");
    }
    text(out)
}
