//! Answers: discovery, `NodeMetrics` and `PodMetrics`, as objects, lists and tables.

use std::time::Duration;

use http::{Method, Response, StatusCode, Uri, header};
use k8s_core::{
    client::{Body, Client, body_from_bytes},
    meta::Quantity,
    status::{ApiStatus, Reason},
};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    GROUP, VERSION,
    readings::{Newest, PodUse, Use},
};

/// A request by its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// `/apis/metrics.k8s.io/v1beta1`.
    Discovery,
    /// Nodes: all, or one.
    Nodes(Option<String>),
    /// Pods of all namespaces (empty) or of one: all, or one.
    Pods(String, Option<String>),
}

impl Asked {
    /// Returns what a path asks for; `None` if nothing is there.
    pub(crate) fn parse(uri: &Uri) -> Option<Self> {
        let rest = uri.path().strip_prefix(&format!("/apis/{GROUP}/{VERSION}"))?;
        let parts = rest.split('/').filter(|part| !part.is_empty());
        let decoded: Option<Vec<String>> =
            parts.map(|part| percent_decode_str(part).decode_utf8().ok().map(Into::into)).collect();
        let decoded = decoded?;
        let parts: Vec<&str> = decoded.iter().map(String::as_str).collect();
        let name = |name: &str| Some(name.to_owned());
        Some(match parts[..] {
            [] => Asked::Discovery,
            ["nodes"] => Asked::Nodes(None),
            ["nodes", node] => Asked::Nodes(name(node)),
            ["pods"] => Asked::Pods(String::new(), None),
            ["namespaces", namespace, "pods"] => Asked::Pods(namespace.to_owned(), None),
            ["namespaces", namespace, "pods", pod] => Asked::Pods(namespace.to_owned(), name(pod)),
            _ => return None,
        })
    }
}

/// Returns a parameter of a query as it is written.
pub(crate) fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

/// Returns a field of the query's field selector that is none of a metric's. The selector is applied to pods,
/// whose other fields a reader of metrics may not learn.
fn foreign_field(query: &str) -> Option<String> {
    let selector = percent_decode_str(parameter(query, "fieldSelector")?).decode_utf8_lossy().into_owned();
    let keys = selector.split(',').map(|term| term.split(['=', '!']).next().unwrap_or_default().trim());
    keys.filter(|key| !key.is_empty() && !matches!(*key, "metadata.name" | "metadata.namespace"))
        .map(ToOwned::to_owned)
        .next()
}

pub(crate) fn respond(status: StatusCode, object: &Value) -> Response<Body> {
    let mut response = Response::new(body_from_bytes(object.to_string()));
    *response.status_mut() = status;
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

pub(crate) fn refuse(status: &ApiStatus) -> Response<Body> {
    let code = StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    respond(code, &serde_json::to_value(status.status()).unwrap_or_default())
}

pub(crate) fn not_found() -> Response<Body> {
    refuse(&ApiStatus::of(Reason::NotFound, "the server could not find the requested resource"))
}

pub(crate) fn not_allowed() -> Response<Body> {
    let why = "metrics are read only: get and list are the verbs that exist";
    refuse(&ApiStatus::of(Reason::MethodNotAllowed, why))
}

pub(crate) fn discovery() -> Response<Body> {
    let resource = |name: &str, kind: &str, namespaced: bool| json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["get", "list"]});
    let all = [resource("nodes", "NodeMetrics", false), resource("pods", "PodMetrics", true)];
    let list = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{GROUP}/{VERSION}"), "resources": all});
    respond(StatusCode::OK, &list)
}

/// Nodes or pods as the API server has them.
#[derive(Deserialize)]
struct Listed {
    items: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    /// Of a pod: empty before it is scheduled.
    node_name: String,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    labels: Value,
}

/// Returns a duration in Go's notation: `15s`, `1m0.5s`.
fn go_duration(time: Duration) -> String {
    let (minutes, seconds) = (time.as_secs() / 60, time.as_secs() % 60);
    let millis = time.subsec_millis();
    let fraction = match millis {
        0 => String::new(),
        _ => format!(".{millis:03}").trim_end_matches('0').to_owned(),
    };
    if minutes == 0 { format!("{seconds}{fraction}s") } else { format!("{minutes}m{seconds}{fraction}s") }
}

/// Use in the units of metrics-server: nano-CPU and Ki.
fn usage(used: &Use) -> Value {
    json!({"cpu": format!("{}n", used.cpu), "memory": format!("{}Ki", used.memory / 1024)})
}

fn of_node(object: &Object, used: &Use) -> Value {
    let Metadata { name, labels, .. } = &object.metadata;
    json!({
        "kind": "NodeMetrics", "apiVersion": format!("{GROUP}/{VERSION}"),
        "metadata": {"name": name, "creationTimestamp": used.at, "labels": labels},
        "timestamp": used.at, "window": go_duration(used.window), "usage": usage(used),
    })
}

fn of_pod(object: &Object, used: &PodUse) -> Value {
    let Metadata { name, namespace, labels, .. } = &object.metadata;
    let all = || used.containers.iter().map(|(_, used)| used);
    // The oldest measurement is what the whole is known for.
    let at = all().map(|used| used.at).min();
    let window = all().map(|used| used.window).max().unwrap_or_default();
    let containers: Vec<Value> =
        used.containers.iter().map(|(name, used)| json!({"name": name, "usage": usage(used)})).collect();
    json!({
        "kind": "PodMetrics", "apiVersion": format!("{GROUP}/{VERSION}"),
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": at, "labels": labels},
        "timestamp": at, "window": go_duration(window), "containers": containers,
    })
}

/// Answers with metrics. The API server applies the selectors, and knows the labels.
pub(crate) async fn metrics(
    client: &Client,
    newest: &Newest,
    asked: &Asked,
    query: &str,
    accept: &str,
) -> Response<Body> {
    let (kind, of, one) = match asked {
        Asked::Discovery => return discovery(),
        Asked::Nodes(one) => ("NodeMetrics", "/api/v1/nodes".to_owned(), one),
        Asked::Pods(namespace, one) if namespace.is_empty() => ("PodMetrics", "/api/v1/pods".to_owned(), one),
        Asked::Pods(namespace, one) => {
            let namespace = utf8_percent_encode(namespace, NON_ALPHANUMERIC);
            ("PodMetrics", format!("/api/v1/namespaces/{namespace}/pods"), one)
        }
    };
    if let Some(field) = foreign_field(query) {
        return refuse(&ApiStatus::bad_request(format!("field label not supported: {field}")));
    }
    let mut selectors: Vec<String> = ["labelSelector", "fieldSelector"]
        .iter()
        .filter_map(|name| Some(format!("{name}={}", parameter(query, name)?)))
        .collect();
    if let Some(name) = one {
        selectors =
            vec![format!("fieldSelector=metadata.name%3D{}", utf8_percent_encode(name, NON_ALPHANUMERIC))];
    }
    let path = format!("{of}?{}", selectors.join("&"));
    let listed: Listed = match client.json(Method::GET, &path, "application/json", "").await {
        Ok(listed) => listed,
        Err(k8s_core::client::Error::Api(status)) => return refuse(&status),
        Err(e) => return refuse(&ApiStatus::of(Reason::ServiceUnavailable, e.to_string())),
    };
    let measured = |object: &Object| {
        if kind == "NodeMetrics" {
            return newest.nodes.get(&object.metadata.name).map(|used| of_node(object, used));
        }
        let Metadata { namespace, name, .. } = &object.metadata;
        let key = (object.spec.node_name.clone(), namespace.clone(), name.clone());
        // A pod made anew under the same name has not been measured.
        let used = newest.pods.get(&key).filter(|used| used.uid == object.metadata.uid);
        used.map(|used| of_pod(object, used))
    };
    let items: Vec<Value> = listed.items.iter().filter_map(measured).collect();
    if let Some(name) = one {
        let Some(object) = items.into_iter().next() else {
            let plural = if kind == "NodeMetrics" { "nodemetrics" } else { "podmetrics" };
            let name = match asked {
                Asked::Pods(namespace, _) => format!("{namespace}/{name}"),
                _ => name.clone(),
            };
            let why = format!("{plural}.{GROUP} {name:?} not found");
            return refuse(&ApiStatus::of(Reason::NotFound, why));
        };
        return respond(StatusCode::OK, &if accept.contains("as=Table") { table(&[object]) } else { object });
    }
    if accept.contains("as=Table") {
        return respond(StatusCode::OK, &table(&items));
    }
    let list = json!({"kind": format!("{kind}List"), "apiVersion": format!("{GROUP}/{VERSION}"), "metadata": {}, "items": items});
    respond(StatusCode::OK, &list)
}

/// The rows of `kubectl get`: name, CPU, memory and window.
fn table(items: &[Value]) -> Value {
    let column = |name: &str, kind: &str| json!({"name": name, "type": kind, "format": if name == "Name" { "name" } else { "" }, "description": "", "priority": 0});
    let sum = |item: &Value, resource: &str| {
        let of = |usage: &Value| usage[resource].as_str()?.parse::<Quantity>().ok();
        let containers = item["containers"].as_array();
        match containers {
            Some(all) => all.iter().filter_map(|c| of(&c["usage"])).fold(Quantity::ZERO, |sum, q| sum + q),
            None => of(&item["usage"]).unwrap_or(Quantity::ZERO),
        }
    };
    let rows: Vec<Value> = items
        .iter()
        .map(|item| {
            let (cpu, memory) = (sum(item, "cpu").to_string(), sum(item, "memory").to_string());
            let cells = json!([item["metadata"]["name"], cpu, memory, item["window"]]);
            let metadata = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]});
            json!({"cells": cells, "object": metadata})
        })
        .collect();
    let columns = [
        column("Name", "string"),
        column("cpu", "string"),
        column("memory", "string"),
        column("Window", "string"),
    ];
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "columnDefinitions": columns, "rows": rows})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_api() {
        let parse = |path: &str| Asked::parse(&path.parse().unwrap());
        let base = "/apis/metrics.k8s.io/v1beta1";
        assert_eq!(parse(base), Some(Asked::Discovery));
        assert_eq!(parse(&format!("{base}/nodes/n%2d1")), Some(Asked::Nodes(Some("n-1".into()))));
        assert_eq!(
            parse(&format!("{base}/namespaces/a/pods?watch=true")),
            Some(Asked::Pods("a".into(), None))
        );
        assert_eq!(
            parse(&format!("{base}/namespaces/a/pods/p")),
            Some(Asked::Pods("a".into(), Some("p".into())))
        );
        assert_eq!(parse(&format!("{base}/namespaces/a")), None);
        assert_eq!(parse("/apis/metrics.k8s.io/v1/pods"), None);
        assert_eq!(foreign_field("fieldSelector=metadata.name%3Da,metadata.namespace!=b"), None);
        assert_eq!(
            foreign_field("fieldSelector=metadata.name=a%2Cstatus.podIP%3D1"),
            Some("status.podIP".into())
        );
        assert_eq!(parameter("a=1&watch=true", "watch"), Some("true"));
    }

    #[test]
    fn durations_are_gos() {
        for (millis, text) in [(15_000, "15s"), (60_500, "1m0.5s"), (0, "0s"), (1_040, "1.04s")] {
            assert_eq!(go_duration(Duration::from_millis(millis)), text);
        }
    }
}
