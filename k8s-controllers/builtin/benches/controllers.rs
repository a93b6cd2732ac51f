//! Measures the built-in controllers with an in-process API server and a memory store. Prints figures,
//! asserts none.
//!
//! `cargo bench -p k8s-controllers --bench controllers [-- <pods>]`

#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use k8s_apiserver::{ApiServer, User};
use k8s_builtin::{Options, Selection};
use k8s_controllers::Manager;
use k8s_core::{
    api::api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Namespace, Pod, ServiceAccount},
    },
    cache::{Cache, reflect},
    client::{Client, DeleteOptions, ListParams},
    clock::Clock,
};
use k8s_store::Store;
use serde_json::json;
use tokio_util::sync::CancellationToken;

fn typed<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

async fn until(what: impl Fn() -> bool) {
    while !what() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn report(what: &str, count: usize, begun: Instant) {
    let seconds = begun.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss)]
    let rate = count as f64 / seconds;
    println!("{what}: {count} in {seconds:.3} s, {rate:.0}/s");
}

async fn deploy(client: &Client, replicas: usize) {
    let pods = Cache::<Pod>::new();
    let _reflector = reflect(client.all::<Pod>(), ListParams::default(), pods.clone());
    pods.synced().await;
    let begun = Instant::now();
    let web: Deployment = typed(json!({
        "metadata": {"name": "web"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "nginx:1", "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}}]},
        }},
    }));
    let deployments = client.namespaced::<Deployment>("default");
    deployments.create(&web).await.unwrap();
    until(|| pods.len() == replicas).await;
    report("deployment up", replicas, begun);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let begun = Instant::now();
    deployments.delete("web", &DeleteOptions::background()).await.unwrap();
    until(|| pods.is_empty()).await;
    report("cascade delete", replicas, begun);
}

async fn namespace(client: &Client, objects: usize) {
    client.all::<Namespace>().create(&typed(json!({"metadata": {"name": "full"}}))).await.unwrap();
    let maps = client.namespaced::<ConfigMap>("full");
    for i in 0..objects {
        let map = json!({"metadata": {"name": format!("m{i}")}, "data": {"key": "x".repeat(200)}});
        maps.create(&typed(map)).await.unwrap();
    }
    let begun = Instant::now();
    client.all::<Namespace>().delete("full", &DeleteOptions::background()).await.unwrap();
    while client.all::<Namespace>().get_opt("full").await.unwrap().is_some() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    report("namespace gone", objects, begun);
}

fn main() {
    let count = std::env::args().find_map(|a| a.parse().ok()).unwrap_or(10_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let server = ApiServer::builder(Store::memory()).clock(Clock::system()).build().await.unwrap();
        let client = server.client_as(User::admin());
        let account: ServiceAccount = typed(json!({"metadata": {"name": "default"}}));
        client.namespaced("default").create(&account).await.unwrap();
        let stop = CancellationToken::new();
        let controllers = ["deployment", "replicaset", "garbagecollector", "namespace"];
        let manager = Manager::new(client.clone())
            .runnables(Selection::parse(controllers).unwrap().runnables(&Options::default()));
        let running = tokio::spawn(manager.run(stop.clone()));
        tokio::time::sleep(Duration::from_secs(1)).await;
        deploy(&client, count).await;
        namespace(&client, count).await;
        stop.cancel();
        let _ = running.await;
    });
}
