//! The API beside a real API server and a kubelet that is scripted.

#![allow(missing_docs, clippy::disallowed_methods, reason = "tests start tasks")]

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use http::{Request, Response};
use jiff::Timestamp;
use k8s_apiserver::{ApiServer, User, proxy::NodeConnector};
use k8s_core::{
    client::{Body, BoxError, Client, body_from_bytes},
    clock::Clock,
};
use k8s_metrics_server::MetricsServer;
use k8s_store::Store;
use serde_json::{Value, json};

const BASE: &str = "/apis/metrics.k8s.io/v1beta1";

/// A kubelet whose pod `web` uses a quarter of a CPU.
struct Kubelet {
    clock: Clock,
    asked: Arc<AtomicU64>,
    /// The uids of its pods by name.
    uids: Arc<Mutex<HashMap<String, String>>>,
}

#[async_trait]
impl NodeConnector for Kubelet {
    async fn call(&self, node: &Value, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        assert_eq!(request.uri().path(), "/stats/summary");
        self.asked.fetch_add(1, Ordering::Relaxed);
        if node["metadata"]["name"] == "silent" {
            return Err("no route".into());
        }
        let now = self.clock.now();
        let nanos = u64::try_from(now.as_nanosecond() / 4 % 1_000_000_000_000_000).unwrap();
        let stats = |name: &str| {
            json!({"name": name, "startTime": Timestamp::UNIX_EPOCH, "memory": {"time": now, "workingSetBytes": 1 << 20},
                "cpu": {"time": now, "usageCoreNanoSeconds": nanos}})
        };
        let uids = self.uids.lock().unwrap().clone();
        let pod = |name: &str, containers: &[&str]| {
            let uid = uids.get(name).map_or("old", String::as_str);
            json!({"podRef": {"name": name, "namespace": "default", "uid": uid},
                "containers": containers.iter().map(|name| stats(name)).collect::<Vec<_>>()})
        };
        let mut half = pod("half", &["a", "b"]);
        half["containers"][1]["cpu"] = Value::Null;
        let pods =
            [pod("web", &["a", "b"]), half, pod("gone", &["a"]), pod("anew", &["a"]), pod("foreign", &["a"])];
        Ok(Response::new(body_from_bytes(json!({"node": stats(""), "pods": pods}).to_string())))
    }
}

async fn server() -> (ApiServer, Client, Arc<AtomicU64>) {
    let clock = Clock::starting_at(Timestamp::from_second(1_767_225_600).unwrap());
    let asked = Arc::new(AtomicU64::new(0));
    let uids = Arc::new(Mutex::new(HashMap::new()));
    let kubelet = Kubelet { clock: clock.clone(), asked: asked.clone(), uids: uids.clone() };
    let metrics = MetricsServer::new(std::time::Duration::from_secs(15), clock.clone());
    let server = ApiServer::builder(Store::memory())
        .clock(clock)
        .nodes(Arc::new(kubelet))
        .local_api(Arc::new(metrics))
        .without_plugins(["ServiceAccount"])
        .build()
        .await
        .unwrap();
    let client = server.client_as(User::admin());
    for node in ["n1", "silent"] {
        let node = json!({"metadata": {"name": node, "labels": {"of": node}}});
        post(&client, "/api/v1/nodes", &node).await;
    }
    for name in ["web", "half", "anew", "other", "foreign"] {
        // The kubelet of n1 tells of `foreign`, too, which is another node's.
        let node = if name == "foreign" { "silent" } else { "n1" };
        let pod = json!({"metadata": {"name": name, "labels": {"app": name}},
            "spec": {"nodeName": node, "containers": [{"name": "a", "image": "i"}]}});
        let made = post(&client, "/api/v1/namespaces/default/pods", &pod).await;
        // The kubelet still has the one that was there before.
        if name != "anew" {
            uids.lock().unwrap().insert(name.into(), made["metadata"]["uid"].as_str().unwrap().into());
        }
    }
    (server, client, asked)
}

async fn post(client: &Client, path: &str, object: &Value) -> Value {
    client.json(http::Method::POST, path, "application/json", object.to_string()).await.unwrap()
}

async fn get(client: &Client, path: &str) -> Result<Value, k8s_core::client::Error> {
    client.json(http::Method::GET, &format!("{BASE}{path}"), "application/json", "").await
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().filter_map(|item| item["metadata"]["name"].as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn pods_and_nodes_are_measured_when_somebody_asks() {
    let (_server, client, asked) = server().await;
    assert_eq!(asked.load(Ordering::Relaxed), 0, "nobody asked");
    let nodes = get(&client, "/nodes").await.unwrap();
    assert_eq!(names(&nodes), ["n1"], "the node that does not answer is left out");
    let node = &nodes["items"][0];
    assert_eq!((&node["usage"]["cpu"], &node["usage"]["memory"]), (&json!("250000000n"), &json!("1024Ki")));
    assert_eq!(node["window"], "1s", "the first reading was followed by a second");
    assert_eq!(node["metadata"]["labels"]["of"], "n1");
    let reads = asked.load(Ordering::Relaxed);
    get(&client, "/nodes?labelSelector=of%3Dn1").await.unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), reads, "the readings are young enough");
    assert_eq!(names(&get(&client, "/nodes?labelSelector=of%3Dother").await.unwrap()), [""; 0]);
    let pods = get(&client, "/pods").await.unwrap();
    assert_eq!(names(&pods), ["web"], "measured whole, and still there");
    let one = get(&client, "/namespaces/default/pods/web").await.unwrap();
    assert_eq!(one, pods["items"][0]);
    let container = &one["containers"][1];
    assert_eq!((&container["name"], &container["usage"]["cpu"]), (&json!("b"), &json!("250000000n")));
    assert_eq!(
        names(&get(&client, "/namespaces/default/pods?labelSelector=app%3Dhalf").await.unwrap()),
        [""; 0]
    );
    let half = get(&client, "/namespaces/default/pods/half").await.unwrap_err();
    assert!(half.is_not_found() && half.to_string().contains("default/half"), "{half}");
    tokio::time::sleep(std::time::Duration::from_secs(16)).await;
    let node = get(&client, "/nodes/n1").await.unwrap();
    assert_eq!((&node["kind"], &node["window"]), (&json!("NodeMetrics"), &json!("16s")));
    assert!(asked.load(Ordering::Relaxed) > reads);
    let missing = get(&client, "/nodes/nowhere").await.unwrap_err();
    assert!(
        missing.is_not_found() && missing.to_string().contains("nodemetrics.metrics.k8s.io"),
        "{missing}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_group_is_discovered_and_read_only() {
    let (_server, client, _) = server().await;
    let list: Value = client.json(http::Method::GET, BASE, "application/json", "").await.unwrap();
    let names: Vec<&str> =
        list["resources"].as_array().unwrap().iter().filter_map(|r| r["name"].as_str()).collect();
    assert_eq!(names, ["nodes", "pods"]);
    let path = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io";
    // Written by a task of the server, beside its start.
    let service = loop {
        match client.json::<Value>(http::Method::GET, path, "application/json", "").await {
            Err(e) if e.is_not_found() => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            other => break other.unwrap(),
        }
    };
    assert_eq!(service["status"]["conditions"][0]["reason"], "Local");
    let refused = client
        .json::<Value>(http::Method::DELETE, &format!("{BASE}/nodes/n1"), "application/json", "")
        .await
        .unwrap_err();
    assert_eq!(refused.status().unwrap().code(), 405, "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_service_takes_over_until_its_apiservice_goes() {
    let (_server, client, _) = server().await;
    let path = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io";
    let read = async || client.json::<Value>(http::Method::GET, path, "application/json", "").await;
    let registered = async || loop {
        match read().await {
            Err(e) if e.is_not_found() => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            other => break other.unwrap(),
        }
    };
    let mut service = registered().await;
    service["spec"]["service"] = json!({"namespace": "default", "name": "mine", "port": 443});
    service["spec"]["insecureSkipTLSVerify"] = true.into();
    client.json::<Value>(http::Method::PUT, path, "application/json", service.to_string()).await.unwrap();
    let refused = get(&client, "/nodes").await.unwrap_err();
    assert!(refused.to_string().contains("unavailable"), "{refused}");
    client.json::<Value>(http::Method::DELETE, path, "application/json", "").await.unwrap();
    assert_eq!(names(&get(&client, "/nodes").await.unwrap()), ["n1"]);
    assert!(registered().await["spec"]["service"].is_null());
}
