//! The API of the kubelets of simulated nodes: pods and the resources that they use. Calls that need a
//! process (logs, exec, attach, port-forward) are refused.

use std::{fmt, sync::Arc};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use k8s_core::{
    api::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp},
    client::{Body, body_from_bytes},
    meta::ObjectExt,
    status::ApiStatus,
};
use serde_json::{Value, json};

use crate::{
    parts::Parts,
    usage::{self, ContainerUsage, Usage},
};

/// The API of all kubelets of a simulation. Cheap to clone.
#[derive(Clone)]
pub struct Kubelets {
    parts: Parts,
}

impl fmt::Debug for Kubelets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kubelets")
    }
}

/// Use of a pod's running containers.
struct PodUsage {
    pod: Arc<Pod>,
    containers: Vec<ContainerUsage>,
}

impl PodUsage {
    fn total(&self) -> Usage {
        self.containers.iter().fold(Usage::default(), |sum, container| sum.plus(container.usage))
    }
}

impl Kubelets {
    pub(crate) fn new(parts: Parts) -> Self {
        Kubelets { parts }
    }

    /// Answers a request to the kubelet of a node: `/pods`, `/stats/summary`, `/healthz`. Others get an error with a `Status`.
    #[must_use]
    pub fn answer<B>(&self, node: &str, request: &Request<B>) -> Response<Body> {
        let parts: Vec<&str> = request.uri().path().split('/').filter(|part| !part.is_empty()).collect();
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        match parts.as_slice() {
            ["healthz" | "livez" | "readyz", ..] if reads => text("ok".into(), "text/plain; charset=utf-8"),
            ["pods" | "runningpods"] if reads => {
                let items: Vec<Arc<Pod>> = self.pods(node);
                answer(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
            }
            ["stats", "summary"] if reads => self.summary(node),
            ["containerLogs" | "exec" | "attach" | "portForward", ..] => {
                let what = "containers of simulated nodes run no process: there are no logs, exec, attach and port-forward";
                refuse(&ApiStatus::new(501, "NotImplemented", what))
            }
            _ => refuse(&ApiStatus::no_resource()),
        }
    }

    /// Returns the pods of a node in the order of their names.
    fn pods(&self, node: &str) -> Vec<Arc<Pod>> {
        let uids: Vec<Arc<str>> = match self.parts.board().nodes.get(node) {
            Some(node) => node.pods.iter().cloned().collect(),
            None => return Vec::new(),
        };
        let mut pods: Vec<Arc<Pod>> = uids.iter().filter_map(|uid| self.parts.pod(uid)).collect();
        pods.sort_by(|a, b| (a.namespace(), a.name()).cmp(&(b.namespace(), b.name())));
        pods
    }

    fn usage(&self, node: &str, now: Timestamp) -> Vec<PodUsage> {
        let pods = self.pods(node).into_iter();
        let used = pods.map(|pod| PodUsage { containers: usage::containers(&pod, now), pod });
        used.filter(|used| !used.containers.is_empty()).collect()
    }

    fn summary(&self, node: &str) -> Response<Body> {
        let now = self.parts.clock.now();
        let at = Time(now);
        let used = |usage: Usage| {
            let cpu = json!({
                "time": at, "usageCoreNanoSeconds": usage.cpu_nanos,
                "usageNanoCores": usage.cpu_milli.saturating_mul(1_000_000),
            });
            let memory = json!({
                "time": at, "usageBytes": usage.memory, "workingSetBytes": usage.memory, "rssBytes": usage.memory,
            });
            (cpu, memory)
        };
        let pods = self.usage(node, now);
        let total = pods.iter().fold(Usage::default(), |sum, pod| sum.plus(pod.total()));
        let of_container = |container: &ContainerUsage| {
            let (cpu, memory) = used(container.usage);
            let started = Time(container.started);
            json!({"name": container.name, "startTime": started, "cpu": cpu, "memory": memory})
        };
        let of_pod = |used_by: &PodUsage| {
            let (cpu, memory) = used(used_by.total());
            let pod = &used_by.pod;
            let containers: Vec<Value> = used_by.containers.iter().map(of_container).collect();
            json!({
                "podRef": {"name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid()},
                "startTime": pod.status.as_ref().and_then(|s| s.start_time.clone()),
                "containers": containers, "cpu": cpu, "memory": memory,
            })
        };
        let all: Vec<Value> = pods.iter().map(of_pod).collect();
        let (cpu, memory) = used(total);
        let object = self.parts.nodes.as_ref().and_then(|nodes| nodes.get("", node));
        let since = object.and_then(|node| node.metadata.creation_timestamp.clone());
        let of_node = json!({"nodeName": node, "startTime": since, "cpu": cpu, "memory": memory});
        answer(&json!({"node": of_node, "pods": all}))
    }
}

fn answer(value: &Value) -> Response<Body> {
    text(value.to_string(), "application/json")
}

fn text(text: String, kind: &'static str) -> Response<Body> {
    let mut response = Response::new(body_from_bytes(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn refuse(status: &ApiStatus) -> Response<Body> {
    let body = serde_json::to_value(status.status()).unwrap_or_default();
    let mut response = answer(&body);
    *response.status_mut() = StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}
