//! The kubelet with an API server in this process and a fake runtime, in virtual time.

#![allow(clippy::disallowed_methods, reason = "tests measure time and start tasks")]
#![allow(missing_docs, unreachable_pub)]

mod admission;
mod cluster;
mod eviction;
mod fake_runtime;
mod fake_signals;
mod image_volumes;
mod pods;
mod resize;
mod server;
mod tls;
mod trust;

use std::{sync::Arc, time::Duration};

use cluster::Api;
use fake_runtime::FakeRuntime;
use fake_signals::FakeSignals;
use jiff::Timestamp;
use k8s_core::{api::api::core::v1::Pod, client::DeleteOptions, clock::Clock};
use k8s_kubelet::{Eviction, Kubelet};
use serde_json::{Value, json};

/// A kubelet with its cluster and its runtime.
pub struct Node {
    pub api: Api,
    pub runtime: FakeRuntime,
    /// Source of the node's free resources.
    pub signals: Arc<FakeSignals>,
    pub clock: Clock,
    pub dir: Arc<tempfile::TempDir>,
    pub kubelet: Option<Kubelet>,
}

impl Node {
    pub async fn start() -> Self {
        Self::start_with(Eviction::default()).await
    }

    /// Starts a node with its own thresholds.
    pub async fn start_with(eviction: Eviction) -> Self {
        let clock = Clock::starting_at(Timestamp::from_second(1_800_000_000).unwrap());
        let mut node = Node {
            api: Api::start(clock.clone()).await,
            runtime: FakeRuntime::new(clock.clone()),
            signals: Arc::default(),
            clock,
            dir: Arc::new(tempfile::tempdir().unwrap()),
            kubelet: None,
        };
        node.start_kubelet_with(eviction).await;
        node
    }

    pub async fn start_kubelet(&mut self) {
        self.start_kubelet_with(Eviction::default()).await;
    }

    async fn start_kubelet_with(&mut self, eviction: Eviction) {
        let root = self.dir.path().to_owned();
        let runtime = Arc::new(self.runtime.clone());
        let kubelet = Kubelet::builder(self.api.connection.client(), "n1")
            .configure(|c| {
                c.root_dir = root.join("kubelet");
                c.log_dir = root.join("logs");
                c.port = 0;
                c.tmpfs = false;
                c.eviction = eviction;
                c.node_ips = vec![[192, 168, 0, 1].into()];
            })
            .clock(self.clock.clone())
            .signals(self.signals.clone())
            .runtime(runtime.clone())
            .images(runtime.clone())
            .network(runtime)
            .start()
            .await
            .unwrap();
        self.kubelet = Some(kubelet);
    }

    pub async fn stop_kubelet(&mut self) {
        self.kubelet.take().unwrap().shutdown().await;
    }

    /// Creates a pod with the given specification on the node.
    pub async fn create(&self, name: &str, mut spec: Value) {
        spec["nodeName"] = json!("n1");
        let pod = json!({"metadata": {"name": name, "labels": {"app": "x"}}, "spec": spec});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        self.api.client().namespaced("ns").create(&pod).await.unwrap();
    }

    pub async fn object(&self, plural: &str, name: &str, object: Value) {
        let mut object = object;
        object["metadata"] = json!({"name": name});
        let path = format!("/api/v1/namespaces/ns/{plural}");
        if self.api.has(plural, name) {
            let (path, kind) = (format!("{path}/{name}"), "application/merge-patch+json");
            self.api.client().bytes(http::Method::PATCH, &path, kind, object.to_string()).await.unwrap();
        } else {
            self.api.create(&path, object).await;
        }
    }

    pub async fn delete(&self, name: &str, grace: Option<i64>) {
        let options = DeleteOptions { grace_period_seconds: grace, ..DeleteOptions::default() };
        self.api.client().namespaced::<Pod>("ns").delete(name, &options).await.unwrap();
    }

    pub fn pod(&self, name: &str) -> Option<Value> {
        self.api.pod(name)
    }

    pub fn phase(&self, name: &str) -> String {
        self.pod(name).and_then(|p| p["status"]["phase"].as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// Returns a value in the status of a pod's first container, by JSON pointer.
    pub fn container(&self, pod: &str, pointer: &str) -> Value {
        let pod = self.pod(pod).unwrap_or_default();
        pod["status"]["containerStatuses"][0].pointer(pointer).cloned().unwrap_or_default()
    }

    pub fn condition(&self, pod: &str, type_: &str) -> String {
        let pod = self.pod(pod).unwrap_or_default();
        let all = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = all.iter().find(|c| c["type"] == type_);
        found.and_then(|c| c["status"].as_str()).unwrap_or_default().to_owned()
    }

    /// Returns reasons and messages of a pod's events.
    pub fn events(&self, pod: &str) -> Vec<(String, String)> {
        let of_pod = |e: &Value| e["involvedObject"]["name"] == pod;
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let all = self.api.list("events");
        all.iter().filter(|e| of_pod(e)).map(|e| (text(&e["reason"]), text(&e["message"]))).collect()
    }

    pub fn has_event(&self, pod: &str, reason: &str, message: &str) -> bool {
        self.events(pod).iter().any(|(r, m)| r == reason && m.contains(message))
    }

    /// Waits (in virtual time) until `test` returns `true`.
    pub async fn until(&self, what: &str, test: impl Fn() -> bool) {
        for _ in 0..20_000 {
            if test() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!(
            "not within the time: {what}; runtime: {:#?}; pods: {:#?}",
            self.runtime.log(),
            self.api.list("pods")
        );
    }

    pub async fn until_phase(&self, name: &str, phase: &str) {
        self.until(&format!("{name} {phase}"), || self.phase(name) == phase).await;
    }

    pub fn seconds(&self) -> i64 {
        self.clock.now().as_second() - 1_800_000_000
    }
}

pub fn one(command: &[&str]) -> Value {
    json!({"containers": [{"name": "c", "image": "here:1", "imagePullPolicy": "IfNotPresent", "command": command}]})
}
