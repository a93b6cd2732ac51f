//! The pods of the node and the resources that they use: `/pods`, `/stats/summary`, metrics.

use std::fmt;

use http::{HeaderValue, Response, StatusCode, header};
use k8s_core::{client::Body, meta::ObjectExt};
use k8s_metrics::{Encoder, MetricType};
use serde_json::{Value, json};

use super::{
    json as answer, text,
    usage::{self, PodUsage},
};
use crate::{
    context::Context,
    eviction::thresholds::Signal,
    samples::Sample,
    types::{Time, Timestamp},
};

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

/// `GET /stats/summary`: the `Summary` of node and pods.
pub(super) async fn summary(cx: &Context) -> Response<Body> {
    let cpu = |sample: &Sample| {
        let mut cpu = json!({"time": time(sample), "usageCoreNanoSeconds": sample.cpu_nanos});
        if let Some(rate) = sample.nano_cores {
            cpu["usageNanoCores"] = rate.into();
        }
        cpu
    };
    let memory = |sample: &Sample| {
        json!({
            "time": time(sample),
            "usageBytes": sample.memory_bytes,
            "workingSetBytes": sample.working_set_bytes,
            "rssBytes": sample.rss_bytes,
        })
    };
    let pods = usage::containers(cx).await;
    let of_pod = |pod: &PodUsage| {
        let containers: Vec<Value> = pod
            .containers
            .iter()
            .map(|container| {
                json!({
                    "name": container.name,
                    "startTime": Time(container.started_at),
                    "cpu": cpu(&container.sample),
                    "memory": memory(&container.sample),
                })
            })
            .collect();
        let mut summary = json!({
            "podRef": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
            "startTime": pod.start_time,
            "containers": containers,
        });
        if let Some(total) = pod.total() {
            summary["cpu"] = cpu(&total);
            summary["memory"] = memory(&total);
        }
        summary
    };
    let sample = usage::node(cx, &pods);
    let mut node = json!({
        "nodeName": cx.config.node_name,
        "startTime": usage::boot_time().map(Time),
        "cpu": cpu(&sample),
        "memory": memory(&sample),
    });
    let capacity = u64::try_from(cx.facts.memory).unwrap_or(0);
    node["memory"]["availableBytes"] = capacity.saturating_sub(sample.working_set_bytes).into();
    if cx.config.machine_pressure {
        disks(cx, &mut node);
    }
    let pods: Vec<Value> = pods.iter().map(of_pod).collect();
    answer(StatusCode::OK, &json!({"node": node, "pods": pods}))
}

/// Adds the disks and process ids of the node.
fn disks(cx: &Context, node: &mut Value) {
    let (seen, now) = (cx.signals.observe(), Time(cx.clock.now()));
    let disk = |bytes: Signal, inodes: Signal| {
        let mut disk = json!({"time": now});
        if let Some(bytes) = seen.get(&bytes) {
            disk["availableBytes"] = bytes.available.into();
            disk["capacityBytes"] = bytes.capacity.into();
            disk["usedBytes"] = bytes.capacity.saturating_sub(bytes.available).into();
        }
        if let Some(inodes) = seen.get(&inodes) {
            disk["inodesFree"] = inodes.available.into();
            disk["inodes"] = inodes.capacity.into();
            disk["inodesUsed"] = inodes.capacity.saturating_sub(inodes.available).into();
        }
        disk
    };
    node["fs"] = disk(Signal::NodeFsAvailable, Signal::NodeFsInodesFree);
    node["runtime"] = json!({"imageFs": disk(Signal::ImageFsAvailable, Signal::ImageFsInodesFree)});
    if let Some(pids) = seen.get(&Signal::PidAvailable) {
        let used = pids.capacity.saturating_sub(pids.available);
        node["rlimit"] = json!({"time": now, "maxpid": pids.capacity, "curproc": used});
    }
}

/// Time of a sample, to the second.
fn time(sample: &Sample) -> Time {
    Time(sample.at)
}

/// A value of the text format with the time of its measurement in milliseconds.
struct Timed<T>(T, Timestamp);

impl<T: fmt::Display> fmt::Display for Timed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0, self.1.as_millisecond())
    }
}

/// `GET /metrics/resource`: the endpoint that metrics-server scrapes.
pub(super) async fn resource_metrics(cx: &Context) -> Response<Body> {
    let pods = usage::containers(cx).await;
    let node = usage::node(cx, &pods);
    let seconds = |sample: &Sample| Timed(sample.cpu_nanos as f64 / 1e9, sample.at);
    let memory = |sample: &Sample| Timed(sample.working_set_bytes, sample.at);
    let mut out = String::new();
    let mut encoder = Encoder::new(&mut out);
    encoder
        .describe(
            "node_cpu_usage_seconds_total",
            "Cumulative cpu time consumed by the node in core-seconds",
            MetricType::Counter,
        )
        .sample(&[], seconds(&node));
    encoder
        .describe(
            "node_memory_working_set_bytes",
            "Current working set of the node in bytes",
            MetricType::Gauge,
        )
        .sample(&[], memory(&node));
    let containers = || {
        pods.iter().flat_map(|pod| {
            pod.containers.iter().map(move |container| {
                let labels: [(&str, &str); 3] =
                    [("container", &container.name), ("namespace", &pod.namespace), ("pod", &pod.name)];
                (labels, container)
            })
        })
    };
    let mut samples = encoder.describe(
        "container_cpu_usage_seconds_total",
        "Cumulative cpu time consumed by the container in core-seconds",
        MetricType::Counter,
    );
    for (labels, container) in containers() {
        samples.sample(&labels, seconds(&container.sample));
    }
    let mut samples = encoder.describe(
        "container_memory_working_set_bytes",
        "Current working set of the container in bytes",
        MetricType::Gauge,
    );
    for (labels, container) in containers() {
        samples.sample(&labels, memory(&container.sample));
    }
    let mut samples = encoder.describe(
        "container_start_time_seconds",
        "Start time of the container since unix epoch in seconds",
        MetricType::Gauge,
    );
    for (labels, container) in containers() {
        samples.sample(&labels, container.started_at.as_millisecond() as f64 / 1e3);
    }
    let totals = || pods.iter().filter_map(|pod| Some((pod, pod.total()?)));
    let mut samples = encoder.describe(
        "pod_cpu_usage_seconds_total",
        "Cumulative cpu time consumed by the pod in core-seconds",
        MetricType::Counter,
    );
    for (pod, total) in totals() {
        samples.sample(&[("namespace", &pod.namespace), ("pod", &pod.name)], seconds(&total));
    }
    let mut samples = encoder.describe(
        "pod_memory_working_set_bytes",
        "Current working set of the pod in bytes",
        MetricType::Gauge,
    );
    for (pod, total) in totals() {
        samples.sample(&[("namespace", &pod.namespace), ("pod", &pod.name)], memory(&total));
    }
    encoder
        .describe(
            "resource_scrape_error",
            "1 if there was an error while getting container metrics, 0 otherwise",
            MetricType::Gauge,
        )
        .sample(&[], 0);
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
