//! Audit events that are posted to a webhook, against a real one over TLS.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use k8s_apiserver::{
    ApiServer, User,
    audit::{AuditWebhookSettings, Policy, Truncation, Webhook},
};
use k8s_core::client::RemoteConfig;
use k8s_store::Store;
use serde_json::{Value, json};

use crate::peer::{Authority, authority, serve_json};

/// Batches that the webhook got.
type Batches = Arc<Mutex<Vec<Value>>>;

fn settings(ca: &Authority, port: u16) -> AuditWebhookSettings {
    let server = format!("https://localhost:{port}/events?a=b");
    let remote = RemoteConfig { server, ca: Some(ca.0.clone().into_bytes()), ..RemoteConfig::default() };
    AuditWebhookSettings {
        max_wait: Duration::from_millis(50),
        initial_backoff: Duration::from_millis(20),
        ..AuditWebhookSettings::new(remote)
    }
}

async fn server(settings: &AuditWebhookSettings) -> ApiServer {
    let policy = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: RequestResponse, users: [eve]}";
    ApiServer::builder(Store::memory())
        .audit_policy(Policy::parse(policy).unwrap())
        .audit_sink(Webhook::open(settings).unwrap())
        .build()
        .await
        .unwrap()
}

async fn create(server: &ApiServer, name: &str, data: &str) {
    let eve = User::new("eve", &["system:masters"]);
    let map =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": data}});
    let map = serde_json::from_value::<k8s_core::api::ConfigMap>(map).unwrap();
    server.client_as(eve).namespaced("default").create(&map).await.unwrap();
}

fn metrics(server: &ApiServer) -> String {
    let mut text = String::new();
    k8s_metrics::encode(&mut text, server.metrics());
    text
}

/// Waits until the webhook has got `number` events, and returns the batches.
async fn until(batches: &Batches, number: usize) -> Vec<Value> {
    let begun = Instant::now();
    loop {
        let all = batches.lock().unwrap().clone();
        if all.iter().map(|batch| batch["items"].as_array().unwrap().len()).sum::<usize>() >= number {
            return all;
        }
        assert!(begun.elapsed().as_secs() < 20, "{all:#?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_in_batches_and_the_rest_at_the_end() {
    let (ca, batches) = (authority(), Batches::default());
    let got = batches.clone();
    let (port, _task) = serve_json(&ca, "localhost", move |batch| {
        got.lock().unwrap().push(batch);
        json!({})
    })
    .await;
    let server_ = server(&AuditWebhookSettings { max_size: 2, ..settings(&ca, port) }).await;
    for name in ["a", "b", "c"] {
        create(&server_, name, "x").await;
    }
    let all = until(&batches, 3).await;
    let first = &all[0];
    assert_eq!((&first["kind"], &first["apiVersion"]), (&json!("EventList"), &json!("audit.k8s.io/v1")));
    assert!(all.iter().all(|batch| batch["items"].as_array().unwrap().len() <= 2), "{all:#?}");
    let event = &first["items"][0];
    assert_eq!((&event["verb"], &event["kind"]), (&json!("create"), &Value::Null));
    assert_eq!(event["responseObject"]["data"], json!({"a": "x"}));

    // An hour's wait ends with the server.
    batches.lock().unwrap().clear();
    let server_ =
        server(&AuditWebhookSettings { max_wait: Duration::from_secs(3600), ..settings(&ca, port) }).await;
    create(&server_, "d", "x").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(batches.lock().unwrap().is_empty());
    drop(server_);
    until(&batches, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_delivery_is_repeated_and_a_lost_one_counted() {
    let (ca, batches) = (authority(), Batches::default());
    let failures = Arc::new(AtomicU32::new(3));
    let (got, left) = (batches.clone(), failures.clone());
    let (port, _task) = serve_json(&ca, "localhost", move |batch| {
        let fails = left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        assert!(!fails, "the connection breaks, as asked");
        got.lock().unwrap().push(batch);
        json!({})
    })
    .await;
    let server_ = server(&settings(&ca, port)).await;
    create(&server_, "a", "x").await;
    assert_eq!(until(&batches, 1).await[0]["items"][0]["objectRef"]["name"], "a");

    // Requests go on while the webhook is gone.
    failures.store(5, SeqCst);
    create(&server_, "b", "x").await;
    let begun = Instant::now();
    loop {
        let metrics = metrics(&server_);
        if metrics.contains("apiserver_audit_error_total{plugin=\"webhook\"} 1") {
            break;
        }
        assert!(begun.elapsed().as_secs() < 20, "{metrics}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    create(&server_, "c", "x").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_event_loses_its_objects_and_a_full_buffer_events() {
    let (ca, batches) = (authority(), Batches::default());
    let got = batches.clone();
    let (port, _task) = serve_json(&ca, "localhost", move |batch| {
        got.lock().unwrap().push(batch);
        json!({})
    })
    .await;
    let truncation = Some(Truncation { max_event: 4000, max_batch: 5000 });
    let server_ = server(&AuditWebhookSettings { truncation, ..settings(&ca, port) }).await;
    create(&server_, "large", &"x".repeat(5000)).await;
    create(&server_, "small", "x").await;
    let all = until(&batches, 2).await;
    let events: Vec<Value> =
        all.iter().flat_map(|batch| batch["items"].as_array().unwrap().clone()).collect();
    let of = |name: &str| events.iter().find(|event| event["objectRef"]["name"] == name).unwrap();
    assert_eq!(of("large")["annotations"]["audit.k8s.io/truncated"], "true");
    assert_eq!((&of("large")["requestObject"], &of("large")["responseObject"]), (&Value::Null, &Value::Null));
    assert_eq!(of("small")["annotations"]["audit.k8s.io/truncated"], Value::Null);
    assert_eq!(of("small")["requestObject"]["data"]["a"], "x");

    let waiting = AuditWebhookSettings {
        buffer: 1,
        max_size: 1,
        throttle: Some(k8s_apiserver::audit::Throttle { per_second: 0.001, burst: 0 }),
        ..settings(&ca, port)
    };
    let server_ = server(&waiting).await;
    for i in 0..5 {
        create(&server_, &format!("full-{i}"), "x").await;
    }
    let metrics = metrics(&server_);
    assert!(metrics.contains("apiserver_audit_error_total{plugin=\"webhook\"}"), "{metrics}");
    drop(server_);
}
