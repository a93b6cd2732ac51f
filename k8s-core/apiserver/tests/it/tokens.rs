//! Service account tokens: audiences, bound objects, expiry.

use jiff::Timestamp;
use k8s_apiserver::{
    ApiServer, User,
    auth::{Authenticator, AuthorizationMode},
};
use k8s_core::clock::Clock;
use k8s_store::Store;
use serde_json::{Value, json};

use crate::support::{admin, ask, ask_as, done, server};

const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const OWN: &str = "https://kubernetes.default.svc.cluster.local";

async fn token(server: &ApiServer, account: &str, spec: &Value) -> (u16, Value) {
    let path = format!("{ACCOUNTS}/{account}/token");
    let answer = admin(server, "POST", &path, "application/json", json!({"spec": spec}).to_string()).await;
    (answer.status.as_u16(), answer.json())
}

async fn review(server: &ApiServer, token: &str, audiences: &[&str]) -> Value {
    let spec = json!({"token": token, "audiences": audiences});
    let review =
        done(server, "POST", "/apis/authentication.k8s.io/v1/tokenreviews", &json!({"spec": spec})).await;
    review["status"].clone()
}

async fn status_with(server: &ApiServer, token: &str) -> u16 {
    let request = http::Request::builder().uri("/api").header("authorization", format!("Bearer {token}"));
    ask(server, request.body(Vec::new()).unwrap()).await.status.as_u16()
}

async fn accounts(server: &ApiServer) {
    for name in ["default", "other"] {
        done(server, "POST", ACCOUNTS, &json!({"metadata": {"name": name}})).await;
    }
}

#[tokio::test]
async fn a_token_review_asks_for_audiences() {
    let server = server().await;
    accounts(&server).await;
    let (_, own) = token(&server, "default", &json!({})).await;
    let (_, api) = token(&server, "default", &json!({"audiences": ["api", "vault"]})).await;
    let (own, api) = (own["status"]["token"].as_str().unwrap(), api["status"]["token"].as_str().unwrap());
    let status = review(&server, own, &[]).await;
    assert_eq!((&status["authenticated"], &status["audiences"]), (&json!(true), &json!([OWN])));
    assert_eq!(status["user"]["username"], "system:serviceaccount:default:default");
    let credential =
        status["user"]["extra"]["authentication.kubernetes.io/credential-id"][0].as_str().unwrap();
    assert!(credential.starts_with("JTI="), "{credential}");
    let status = review(&server, own, &["vault"]).await;
    assert_eq!(status["authenticated"], Value::Null);
    assert_eq!(
        status["error"],
        format!(
            "[invalid bearer token, token audiences [{OWN:?}] is invalid for the target audiences [\"vault\"]]"
        )
    );
    let status = review(&server, api, &["api", "more"]).await;
    assert_eq!((&status["authenticated"], &status["audiences"]), (&json!(true), &json!(["api"])));
    assert_eq!(review(&server, api, &[]).await["authenticated"], Value::Null, "it is not for the API server");
    assert_eq!(status_with(&server, api).await, 401);
    // Static tokens are for the API server only.
    assert_eq!(review(&server, "admin", &[OWN]).await["authenticated"], true);
    assert_eq!(review(&server, "admin", &["vault"]).await["authenticated"], Value::Null);
    let empty = admin(
        &server,
        "POST",
        "/apis/authentication.k8s.io/v1/tokenreviews",
        "application/json",
        "{\"spec\":{}}",
    )
    .await;
    assert_eq!(empty.status, 400);
}

#[tokio::test]
async fn what_a_token_is_bound_to_is_checked_when_it_is_issued() {
    let server = server().await;
    accounts(&server).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"serviceAccountName": "other", "containers": [{"name": "c", "image": "x"}]}});
    done(&server, "POST", "/api/v1/namespaces/default/pods", &pod).await;
    for (reference, code, message) in [
        (json!({"apiVersion": "v1", "kind": "Secret", "name": "s"}), 404, "secrets \"s\" not found"),
        (json!({"apiVersion": "v1", "kind": "Node", "name": "n"}), 404, "nodes \"n\" not found"),
        (json!({"apiVersion": "v1", "kind": "Pod", "name": "q"}), 404, "pods \"q\" not found"),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "name": "p"}),
            400,
            "cannot bind token for serviceaccount \"default\" to pod running with different serviceaccount name.",
        ),
        (
            json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "c"}),
            400,
            "cannot bind token to object of type /v1, Kind=ConfigMap",
        ),
        (
            json!({"apiVersion": "apps/v1", "kind": "Pod", "name": "p"}),
            400,
            "cannot bind token to object of type apps/v1, Kind=Pod",
        ),
    ] {
        let (status, answer) = token(&server, "default", &json!({"boundObjectRef": reference})).await;
        assert_eq!((status, answer["message"].as_str().unwrap_or_default()), (code, message), "{reference}");
    }
    let wrong = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "another"});
    let (status, answer) = token(&server, "other", &json!({"boundObjectRef": wrong})).await;
    assert_eq!((status, &answer["reason"]), (409, &json!("Conflict")));
    let path = format!("{ACCOUNTS}/default/token");
    let answer =
        admin(&server, "POST", &path, "application/json", "{\"metadata\":{\"uid\":\"x\"},\"spec\":{}}").await;
    assert_eq!(answer.status, 409, "another service account's uid");
}

#[tokio::test]
async fn a_token_ends_with_what_it_is_bound_to() {
    let server = server().await;
    accounts(&server).await;
    let pod = json!({"metadata": {"name": "x"}, "spec": {"serviceAccountName": "default", "nodeName": "x", "containers": [{"name": "c", "image": "x"}]}});
    for (kind, collection, object) in [
        ("Node", "/api/v1/nodes", json!({"metadata": {"name": "x"}})),
        ("Secret", "/api/v1/namespaces/default/secrets", json!({"metadata": {"name": "x"}})),
        ("Pod", "/api/v1/namespaces/default/pods", pod),
    ] {
        let made = done(&server, "POST", collection, &object).await;
        let reference =
            json!({"apiVersion": "v1", "kind": kind, "name": "x", "uid": made["metadata"]["uid"]});
        let (status, answer) = token(&server, "default", &json!({"boundObjectRef": reference})).await;
        assert_eq!(status, 201, "{kind}: {answer}");
        let bound = answer["status"]["token"].as_str().unwrap();
        assert_eq!(status_with(&server, bound).await, 200, "{kind}");
        if kind == "Pod" {
            let extra = review(&server, bound, &[]).await["user"]["extra"].clone();
            assert_eq!(extra["authentication.kubernetes.io/pod-name"], json!(["x"]));
            assert_eq!(extra["authentication.kubernetes.io/node-name"], json!(["x"]));
        }
        done(&server, "DELETE", &format!("{collection}/x?gracePeriodSeconds=0"), &Value::Null).await;
        assert_eq!(status_with(&server, bound).await, 401, "{kind} is gone");
        // Another object of the same name does not keep the token valid.
        done(&server, "POST", collection, &object).await;
        assert_eq!(status_with(&server, bound).await, 401, "{kind} is another one");
    }
}

#[tokio::test]
async fn always_allow_lets_nobody_in_without_credentials() {
    let server = ApiServer::builder(Store::memory())
        .authorization([AuthorizationMode::AlwaysAllow])
        .authenticator(Authenticator::new(Default::default(), true))
        .build()
        .await
        .unwrap();
    let path = "/api/v1/namespaces/kube-system/secrets";
    let request = http::Request::builder().uri(path).body(Vec::new()).unwrap();
    assert_eq!(ask(&server, request).await.status, 401);
    assert_eq!(ask_as(&server, &User::new("u", &[]), "GET", path, &Value::Null).await.status, 200);
}

#[tokio::test]
async fn the_start_of_records_of_token_uses_is_kept() {
    let store = Store::memory();
    let path =
        "/api/v1/namespaces/kube-system/configmaps/kube-apiserver-legacy-service-account-token-tracking";
    let start = async |second: i64, tracks: bool| {
        let clock = Clock::starting_at(Timestamp::from_second(second).unwrap());
        let server = ApiServer::builder(store.clone()).clock(clock).track_token_uses(tracks).build().await;
        let server = server.unwrap();
        let answer = ask_as(&server, &User::admin(), "GET", path, &Value::Null).await;
        (server, answer.json()["data"]["since"].clone())
    };
    assert_eq!(start(0, false).await.1, Value::Null);
    assert_eq!(start(86_400, true).await.1, "1970-01-02");
    let (server, since) = start(10 * 86_400, true).await;
    assert_eq!(since, "1970-01-02");
    let damage = json!({"data": {"since": "ever"}});
    assert_eq!(ask_as(&server, &User::admin(), "PATCH", path, &damage).await.status, 200);
    assert_eq!(start(10 * 86_400, true).await.1, "1970-01-11");
}
