//! A server with custom stages: each is called in its place.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use k8s_apiserver::{
    ApiServer, User,
    admission::{Admission, Admit},
    auth::rbac::Attributes,
    request::RequestInfo,
    stages::{Audit, Audited, Authenticate, Authorize, Credentials, Decision, FlowControl, Ticket},
};
use k8s_core::status::ApiStatus;
use k8s_store::Store;
use serde_json::json;

use crate::support::ask;

struct Keys;
#[async_trait]
impl Authenticate for Keys {
    async fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Option<User>, ApiStatus> {
        match credentials.headers.get("x-api-key").map(http::HeaderValue::as_bytes) {
            None => Ok(None),
            Some(b"ops") => Ok(Some(User::new("olga", &["system:masters"]))),
            Some(b"dev") => Ok(Some(User::new("dan", &["dev"]))),
            Some(_) => Err(ApiStatus::unauthorized()),
        }
    }
}

struct DevsDoAlmostAll;
#[async_trait]
impl Authorize for DevsDoAlmostAll {
    async fn authorize(&self, user: &User, wanted: &Attributes<'_>) -> Decision {
        match (user.groups.iter().any(|g| g == "dev"), wanted.resource) {
            (true, "secrets") => Decision::Deny("secrets are not for developers".into()),
            (true, _) => Decision::Allow,
            (false, _) => Decision::NoOpinion,
        }
    }
}

struct NoLists;
#[async_trait]
impl FlowControl for NoLists {
    async fn admit(&self, _: &User, request: &RequestInfo) -> Result<Ticket, ApiStatus> {
        if request.verb == "list" {
            return Err(ApiStatus::new(429, "TooManyRequests", "no lists today"));
        }
        Ok(Box::new(()))
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);
impl Audit for Log {
    fn record(&self, entry: Audited<'_>) {
        let user = entry.user.map_or("?", |u| u.name.as_str());
        self.0.lock().unwrap().push(format!("{user} {} {}", entry.request.verb, entry.code.as_u16()));
    }
}

struct Teams;
#[async_trait]
impl Admit for Teams {
    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        if admission.resource.plural == "configmaps" {
            admission.object["metadata"]["labels"]["team"] = admission.user.name.clone().into();
        }
        Ok(())
    }
    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        if admission.object["metadata"]["labels"]["forbidden"] == "yes" {
            return Err(ApiStatus::forbidden("", "configmaps", "", "that label is not allowed"));
        }
        Ok(())
    }
}

#[tokio::test]
async fn each_is_asked_in_its_place() {
    let log = Log::default();
    let server = ApiServer::builder(Store::memory())
        .authenticate_with(Keys)
        .authorize_with(DevsDoAlmostAll)
        .flow_control(NoLists)
        .audit(log.clone())
        .admit(Teams)
        .build()
        .await
        .unwrap();
    let call = |key: &'static str, method: &'static str, path: &'static str, body: serde_json::Value| {
        let server = server.clone();
        async move {
            let request = http::Request::builder()
                .method(method)
                .uri(format!("/api/v1/namespaces/default/{path}"))
                .header("x-api-key", key)
                .header("content-type", "application/json")
                .body(body.to_string().into_bytes());
            let answer = ask(&server, request.unwrap()).await;
            (answer.status.as_u16(), answer.json())
        }
    };
    let made = call("dev", "POST", "configmaps", json!({"metadata": {"name": "a"}})).await;
    assert_eq!((made.0, &made.1["metadata"]["labels"]["team"]), (201, &json!("dan")));
    let labelled = json!({"metadata": {"name": "b", "labels": {"forbidden": "yes"}}});
    assert_eq!(call("dev", "POST", "configmaps", labelled).await.0, 403);
    let (code, refused) = call("dev", "GET", "secrets/x", json!({})).await;
    assert_eq!(code, 403);
    assert!(refused["message"].as_str().unwrap().ends_with("secrets are not for developers"), "{refused}");
    assert_eq!(
        call("ops", "GET", "secrets/x", json!({})).await.0,
        404,
        "RBAC decides where the others say nothing"
    );
    assert_eq!(call("ops", "GET", "configmaps", json!({})).await.0, 429);
    assert_eq!(call("wrong", "GET", "configmaps/a", json!({})).await.0, 401);
    let mut entries = log.0.lock().unwrap().clone();
    entries.retain(|entry| !entry.starts_with("system:apiserver "));
    let seen =
        ["dan create 201", "dan create 403", "dan get 403", "olga get 404", "olga list 429", "? get 401"];
    assert_eq!(entries, seen);
}
