//! Bearer tokens that a webhook knows, against a real one over TLS.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use k8s_apiserver::{
    ApiServer,
    auth::{ReviewVersion, TokenWebhook},
};
use k8s_core::client::RemoteConfig;
use k8s_store::Store;
use serde_json::{Value, json};

use crate::{
    authentication::{review, who, with_admin},
    peer::{Authority, authority, serve_json},
};

async fn server(ca: &Authority, port: u16, version: ReviewVersion, ttl: Duration) -> ApiServer {
    let config = RemoteConfig {
        server: format!("https://localhost:{port}/review"),
        ca: Some(ca.0.clone().into_bytes()),
        ..RemoteConfig::default()
    };
    let webhook = TokenWebhook::new(&config, version, ttl).unwrap();
    let builder = ApiServer::builder(Store::memory()).authenticator(with_admin().token_webhook(webhook));
    builder.build().await.unwrap()
}

async fn status(server: &ApiServer, token: &str) -> u16 {
    who(server, &format!("Bearer {token}")).await.status.as_u16()
}

/// Answers reviews: `good` is eve, `away` is for another audience; records what it is asked.
fn answering(asked: Arc<Mutex<Vec<Value>>>) -> impl Fn(Value) -> Value + Send + Sync {
    move |review| {
        asked.lock().unwrap().push(review.clone());
        let eve =
            json!({"username": "eve", "uid": "7", "groups": ["dev"], "extra": {"example.com/a": ["b"]}});
        let status = match review["spec"]["token"].as_str().unwrap() {
            "good" => json!({"authenticated": true, "user": eve}),
            "away" => json!({"authenticated": true, "user": eve, "audiences": ["vault"]}),
            _ => json!({"authenticated": false, "error": "revoked"}),
        };
        json!({"apiVersion": review["apiVersion"], "kind": "TokenReview", "status": status})
    }
}

#[tokio::test]
async fn answers_are_used_and_cached_for_a_while() {
    let (ca, asked) = (authority(), Arc::new(Mutex::new(Vec::new())));
    let (port, task) = serve_json(&ca, "localhost", answering(asked.clone())).await;
    let ttl = Duration::from_millis(1500);
    let server = server(&ca, port, ReviewVersion::V1, ttl).await;
    let info = who(&server, "Bearer good").await.json()["status"]["userInfo"].clone();
    assert_eq!(
        info,
        json!({"username": "eve", "uid": "7", "groups": ["dev", "system:authenticated"], "extra": {"example.com/a": ["b"]}})
    );
    let first = asked.lock().unwrap()[0].clone();
    assert_eq!(first["apiVersion"], "authentication.k8s.io/v1");
    let audiences = json!(["https://kubernetes.default.svc.cluster.local"]);
    assert_eq!(first["spec"], json!({"token": "good", "audiences": audiences}));
    for _ in 0..5 {
        assert_eq!((status(&server, "good").await, status(&server, "bad").await), (201, 401));
    }
    assert_eq!(status(&server, "away").await, 401);
    assert_eq!(asked.lock().unwrap().len(), 3, "positive and negative answers are cached");
    assert_eq!(review(&server, "bad").await["error"], "[invalid bearer token, revoked]");
    assert_eq!(review(&server, "good").await["audiences"], audiences);
    let mut metrics = String::new();
    k8s_metrics::encode(&mut metrics, server.metrics());
    for line in [
        r#"authentication_token_cache_request_total{status="miss"} 3"#,
        r#"authentication_token_cache_fetch_total{status="ok"} 3"#,
        r#"authentication_token_cache_active_fetch_count{status="in_flight"} 0"#,
        r#"authentication_token_cache_request_duration_seconds_count{status="miss"} 3"#,
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} in {metrics}");
    }
    // A token that this server knows is not sent.
    assert_eq!(status(&server, "admin").await, 201);
    assert_eq!(asked.lock().unwrap().len(), 3);
    tokio::time::sleep(ttl).await;
    assert_eq!((status(&server, "good").await, status(&server, "bad").await), (201, 401));
    assert_eq!(asked.lock().unwrap().len(), 5);
    // A webhook that is gone lets nobody in, and is no answer to remember.
    task.abort();
    let alone = self::server(&ca, port, ReviewVersion::V1, ttl).await;
    let answered = tokio::time::timeout(Duration::from_secs(15), status(&alone, "good")).await;
    assert_eq!(answered, Ok(401));
    assert_eq!(status(&alone, "admin").await, 201);
    let error = review(&alone, "other").await["error"].as_str().unwrap().to_owned();
    assert!(error.starts_with("[invalid bearer token, token webhook: "), "{error}");
    assert!(!error.contains("other"), "no token in an error: {error}");
}

#[tokio::test]
async fn an_answer_of_another_kind_or_a_stranger_is_no_answer() {
    let ca = authority();
    for (answer, why) in [
        (
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": {"authenticated": true, "user": {"username": "eve"}}}),
            "want authentication.k8s.io/v1beta1",
        ),
        (json!({"apiVersion": "authentication.k8s.io/v1beta1", "kind": "Status"}), "\"Status\""),
        (
            json!({"apiVersion": "authentication.k8s.io/v1beta1", "kind": "TokenReview", "status": {"authenticated": true, "user": {}}}),
            "no user name",
        ),
        (json!(["a"]), "want authentication.k8s.io/v1beta1"),
    ] {
        let (port, _task) = serve_json(&ca, "localhost", move |_| answer.clone()).await;
        let server = server(&ca, port, ReviewVersion::V1beta1, Duration::from_secs(60)).await;
        let error = review(&server, "x").await["error"].to_string();
        assert!(error.contains(&why.replace('"', "\\\"")), "{error}\nwant {why}");
    }
    // Its certificate is of another CA.
    let (port, _task) = serve_json(&ca, "localhost", answering(Arc::default())).await;
    let server = server(&authority(), port, ReviewVersion::V1, Duration::from_secs(60)).await;
    assert_eq!(status(&server, "good").await, 401);
}
