//! A simulation over an API server in memory, in virtual time.

#![allow(clippy::disallowed_methods, reason = "tests start tasks")]

use std::time::Duration;

use k8s_apiserver::{ApiServer, User};
use k8s_core::{
    api::{Node, Pod, jiff::Timestamp},
    cache::{Cache, Reflector, reflect},
    client::{Client, DeleteOptions, ListParams, Resource},
    clock::Clock,
    meta::ObjectExt,
};
use k8s_simulated::{EXIT, NodeShape, RUN_FOR, Simulation, register};
use k8s_store::Store;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct World {
    client: Client,
    clock: Clock,
    _reflectors: (Reflector, Reflector),
    simulation: JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.simulation.abort();
    }
}

const STAGES: &str = "/apis/kwok.x-k8s.io/v1alpha1/stages";

/// One node with a range of its own, and Stages.
async fn world() -> World {
    let clock = Clock::starting_at(Timestamp::from_second(1_800_000_000).expect("a time"));
    let server = ApiServer::builder(Store::memory()).clock(clock.clone());
    let server =
        server.without_plugins(["ServiceAccount", "TaintNodesByCondition"]).build().await.expect("a server");
    let client = server.client_as(User::admin());
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let version = json!({
        "name": "v1alpha1", "served": true, "storage": true, "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": open},
    });
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "stages.kwok.x-k8s.io"},
        "spec": {
            "group": "kwok.x-k8s.io", "scope": "Cluster", "versions": [version],
            "names": {"plural": "stages", "singular": "stage", "kind": "Stage", "listKind": "StageList"},
        },
    });
    post(&client, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await;
    let shape = NodeShape {
        pods: "10.9.0.0/24".parse().ok(),
        addresses: vec!["192.0.2.1".into()],
        ..NodeShape::default()
    };
    register(&client, &clock, "n", &shape).await.expect("registered");
    let (pods, nodes) = (Cache::<Pod>::new(), Cache::<Node>::new());
    let reflectors = (
        reflect(client.all::<Pod>(), ListParams::default(), pods.clone()),
        reflect(client.all::<Node>(), ListParams::default(), nodes.clone()),
    );
    nodes.synced().await;
    let writer = client.clone();
    let simulation = Simulation::new(pods, move |_| writer.clone())
        .nodes(nodes, ["n".to_owned()])
        .heartbeats(Duration::from_secs(10), ["n".to_owned()])
        .clock(clock.clone())
        .stages(client.clone());
    let simulation = tokio::spawn(simulation.run(CancellationToken::new()));
    World { client, clock, _reflectors: reflectors, simulation }
}

async fn post(client: &Client, path: &str, object: &Value) {
    client.bytes(http::Method::POST, path, "application/json", object.to_string()).await.expect("created");
}

impl World {
    async fn pod(&self, name: &str, annotations: Value, policy: &str) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations},
            "spec": {"nodeName": "n", "restartPolicy": policy, "containers": [{"name": "c", "image": "i"}]},
        });
        post(&self.client, "/api/v1/namespaces/default/pods", &pod).await;
    }

    async fn stage(&self, name: &str, spec: Value) {
        let stage = json!({
            "apiVersion": "kwok.x-k8s.io/v1alpha1", "kind": "Stage", "metadata": {"name": name}, "spec": spec,
        });
        post(&self.client, STAGES, &stage).await;
        self.clock.sleep(Duration::from_secs(6)).await;
    }

    /// Phase, restarts and address of a pod.
    async fn status(&self, name: &str) -> (String, i32, String) {
        let pod = self.client.namespaced::<Pod>("default").get(name).await.expect("a pod");
        let status = pod.status.unwrap_or_default();
        let restarts = status.container_statuses.iter().flatten().map(|c| c.restart_count).sum();
        (status.phase.unwrap_or_default(), restarts, status.pod_ip.unwrap_or_default())
    }
}

#[tokio::test(start_paused = true)]
async fn pods_run_restart_and_end() {
    let world = world().await;
    world.pod("runs", json!({}), "Always").await;
    world.pod("crashes", json!({EXIT: "1", RUN_FOR: "5s"}), "Always").await;
    world.pod("once", json!({EXIT: "0", RUN_FOR: "1h"}), "Never").await;
    world.clock.sleep(Duration::from_secs(20)).await;
    assert_eq!(world.status("runs").await, ("Running".into(), 0, "10.9.0.2".into()));
    assert_eq!(world.status("crashes").await.1, 1);
    assert_eq!(world.status("once").await.0, "Running");
    world.clock.sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.status("once").await.0, "Succeeded");
    let pods = world.client.namespaced::<Pod>("default");
    pods.delete("runs", &DeleteOptions::default()).await.expect("deleted");
    world.clock.sleep(Duration::from_secs(1)).await;
    assert!(pods.get_opt("runs").await.expect("an answer").is_none());
    // The lease is a heartbeat old.
    let lease =
        world.client.namespaced::<k8s_core::api::Lease>("kube-node-lease").get("n").await.expect("a lease");
    let renewed = lease.spec.and_then(|s| s.renew_time).expect("a time").0;
    assert!(world.clock.since(renewed) <= Duration::from_secs(11));
}

#[tokio::test(start_paused = true)]
async fn a_stage_waits_acts_and_leaves_the_rest() {
    let world = world().await;
    let reference = json!({"apiGroup": "v1", "kind": "Pod"});
    let running = json!({"key": ".status.phase", "operator": "In", "values": ["Running"]});
    let selector = json!({"matchAnnotations": {"fails": "yes"}, "matchExpressions": [running]});
    let delay = json!({"durationMilliseconds": 3_600_000});
    let next = json!({"statusTemplate": "phase: Failed\nreason: {{ .metadata.name | Quote }}"});
    world
        .stage("fails", json!({"resourceRef": reference, "selector": selector, "delay": delay, "next": next}))
        .await;
    world.stage("odd", json!({"resourceRef": {"kind": "Service"}, "selector": {}})).await;
    world.pod("bad", json!({"fails": "yes"}), "Always").await;
    world.pod("good", json!({}), "Always").await;
    world.clock.sleep(Duration::from_secs(3000)).await;
    assert_eq!(world.status("bad").await.0, "Running");
    world.clock.sleep(Duration::from_secs(700)).await;
    assert_eq!(
        (world.status("bad").await.0, world.status("good").await.0),
        ("Failed".into(), "Running".into())
    );
    let stages = Resource {
        group: "kwok.x-k8s.io".into(),
        version: "v1alpha1".into(),
        kind: "Stage".into(),
        plural: "stages".into(),
        namespaced: false,
    };
    let odd = world.client.dynamic(&stages, "").get("odd").await.expect("a stage");
    let condition = &Value::Object(odd.data)["status"]["conditions"][0];
    assert_eq!((condition["type"].as_str(), condition["status"].as_str()), (Some("Accepted"), Some("False")));
    assert!(condition["message"].as_str().is_some_and(|m| m.contains("spec.resourceRef")));
    // Deletion needs no Stage.
    let pods = world.client.namespaced::<Pod>("default");
    pods.delete("bad", &DeleteOptions::default()).await.expect("deleted");
    world.clock.sleep(Duration::from_secs(1)).await;
    assert!(pods.get_opt("bad").await.expect("an answer").is_none());
}

#[tokio::test(start_paused = true)]
async fn stages_in_a_circle_and_broken_ones_stop_nothing() {
    let world = world().await;
    let pod = json!({"apiGroup": "v1", "kind": "Pod"});
    let circle = |from: &str, to: &str| {
        json!({
            "resourceRef": pod,
            "selector": {"matchLabels": {"turn": from}},
            "next": {"patches": [{"root": "metadata", "template": format!("labels: {{turn: \"{to}\"}}")}]},
        })
    };
    world.stage("a", circle("a", "b")).await;
    world.stage("b", circle("b", "a")).await;
    let broken = json!({"statusTemplate": "phase: {{ len 5 }}"});
    let selector = json!({"matchLabels": {"broken": "yes"}});
    world.stage("broken", json!({"resourceRef": pod, "selector": selector, "next": broken})).await;
    for (name, key, value) in [("turns", "turn", "a"), ("breaks", "broken", "yes")] {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {key: value}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]},
        });
        post(&world.client, "/api/v1/namespaces/default/pods", &pod).await;
    }
    world.pod("good", json!({}), "Always").await;
    world.clock.sleep(Duration::from_secs(60)).await;
    assert_eq!(world.status("good").await.0, "Running");
    let turned = world.client.namespaced::<Pod>("default").get("turns").await.expect("a pod");
    // About ten turns a second, and no more.
    assert!((300..2000).contains(&turned.revision()), "{}", turned.revision());
}
