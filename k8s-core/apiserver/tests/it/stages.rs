//! A server with custom stages: each is called in its place.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use k8s_apiserver::{
    ApiServer, User,
    admission::{Admission, Admit, Connection, Deletion},
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

/// Knows one token, which is its user's name; another one it refuses.
struct Token(&'static str);
#[async_trait]
impl Authenticate for Token {
    async fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Option<User>, ApiStatus> {
        match credentials.bearer_token() {
            Some(token) if token == self.0 => Ok(Some(User::new(&format!("{}-user", self.0), &[]))),
            Some("burnt") => Err(ApiStatus::unauthorized()),
            _ => Ok(None),
        }
    }
}

#[tokio::test]
async fn added_authenticators_are_asked_after_the_built_in_ones_in_order() {
    let own = std::collections::HashMap::from([("alice".to_owned(), User::new("own", &[]))]);
    let server = ApiServer::builder(Store::memory())
        .authenticator(k8s_apiserver::auth::Authenticator::new(own, true))
        .authenticate_with(Token("alice"))
        .authenticate_with(Token("bob"))
        .authenticate_with(Token("burnt"))
        .build()
        .await
        .unwrap();
    let who = async |token: &str| {
        let request = http::Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json")
            .body(b"{}".to_vec());
        let answer = ask(&server, request.unwrap()).await;
        (answer.status.as_u16(), answer.json()["status"]["userInfo"]["username"].clone())
    };
    assert_eq!(who("alice").await, (201, json!("own")), "the built-in ones are first");
    assert_eq!(who("bob").await, (201, json!("bob-user")));
    assert_eq!(who("burnt").await.0, 401, "the first answer decides, and it is a refusal");
    assert_eq!(who("nobody").await.0, 401, "a token that none knows is not anonymous");

    // A TokenReview asks the same ones.
    let admin = server.service_as(User::admin());
    for (token, user) in
        [("alice", Some("own")), ("bob", Some("bob-user")), ("burnt", None), ("nobody", None)]
    {
        let request = http::Request::post("/apis/authentication.k8s.io/v1/tokenreviews")
            .header("content-type", "application/json")
            .body(json!({"spec": {"token": token}}).to_string().into_bytes());
        let status = ask(&admin, request.unwrap()).await.json()["status"].clone();
        assert_eq!(status["user"]["username"].as_str(), user, "{token}: {status}");
        assert_eq!(status["authenticated"] == true, user.is_some());
    }
}

struct Keeps;
#[async_trait]
impl Admit for Keeps {
    async fn admit(&self, _: &mut Admission<'_>) -> Result<(), ApiStatus> {
        Ok(())
    }
    async fn delete(&self, deletion: &Deletion<'_>) -> Result<(), ApiStatus> {
        if (deletion.resource.plural.as_str(), deletion.namespace, deletion.name)
            == ("configmaps", "default", "kept")
        {
            let why = format!("{} may not delete it", deletion.user.name);
            return Err(ApiStatus::forbidden("", "configmaps", deletion.name, &why));
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_plugin_refuses_deletions() {
    let server = ApiServer::builder(Store::memory()).admit(Keeps).build().await.unwrap();
    let admin = server.service_as(k8s_apiserver::User::admin());
    let call = |method: &'static str, path: &'static str, body: &'static str| {
        let admin = admin.clone();
        async move {
            let request = http::Request::builder().method(method).uri(format!("/api/v1/namespaces/{path}"));
            let request = request.header("content-type", "application/json").body(body.into());
            let answer = ask(&admin, request.unwrap()).await;
            (answer.status.as_u16(), answer.json())
        }
    };
    for name in ["kept", "other"] {
        let body = if name == "kept" {
            r#"{"metadata":{"name":"kept"}}"#
        } else {
            r#"{"metadata":{"name":"other"}}"#
        };
        assert_eq!(call("POST", "default/configmaps", body).await.0, 201);
    }
    let (code, refused) = call("DELETE", "default/configmaps/kept", "").await;
    assert_eq!(code, 403, "{refused}");
    assert!(refused["message"].as_str().unwrap().ends_with("system:admin may not delete it"), "{refused}");
    assert_eq!(call("DELETE", "default/configmaps", "").await.0, 403, "each object of a collection");
    assert_eq!(call("GET", "default/configmaps/kept", "").await.0, 200);
    assert_eq!(call("DELETE", "kube-system", "").await.0, 403, "NamespaceLifecycle");
}

#[tokio::test]
async fn plugins_are_chosen_by_name() {
    let error = async |on: &[&str], off: &[&str]| {
        let builder = ApiServer::builder(Store::memory());
        let builder = builder.with_plugins(on.iter().copied()).without_plugins(off.iter().copied());
        builder.build().await.map_err(|e| e.to_string()).err()
    };
    assert_eq!(error(&["Priority"], &["AlwaysPullImages"]).await, None);
    assert_eq!(error(&["Nonsense"], &[]).await.unwrap(), "admission plugin \"Nonsense\" is unknown");
    let missing = error(&["JobValidation"], &[]).await.unwrap();
    assert!(missing.contains("this server does not have it"), "{missing}");
    let both = error(&["Priority"], &["Priority"]).await.unwrap();
    assert_eq!(both, "admission plugin \"Priority\" is turned on and off");
}

/// Notes each request that it is asked about.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);
impl Notes {
    fn add(&self, text: String) {
        self.0.lock().unwrap().push(text);
    }
}
#[async_trait]
impl Admit for Notes {
    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        let (kind, part) = (admission.object["kind"].as_str().unwrap_or("?"), &admission.request.subresource);
        self.add(format!("{:?} {kind} {}/{part}", admission.operation, admission.name()));
        Ok(())
    }
    async fn delete(&self, deletion: &Deletion<'_>) -> Result<(), ApiStatus> {
        let kind = deletion.object()?["kind"].as_str().unwrap_or("?").to_owned();
        self.add(format!("Delete {kind} {}", deletion.name));
        Ok(())
    }
    async fn connect(&self, connection: &Connection<'_>) -> Result<(), ApiStatus> {
        self.add(format!("Connect {} {}", connection.options["kind"], connection.options["command"]));
        Err(ApiStatus::forbidden("", "pods", "p", "no commands here"))
    }
}

#[tokio::test]
async fn plugins_see_subresources_deletions_and_connections() {
    let notes = Notes::default();
    let server = ApiServer::builder(Store::memory())
        .without_plugins(["ServiceAccount"])
        .admit(notes.clone())
        .build()
        .await
        .unwrap()
        .service_as(User::admin());
    notes.0.lock().unwrap().clear();
    let call = async |method: &str, path: &str, body: serde_json::Value| {
        let request =
            http::Request::builder().method(method).uri(format!("/api/v1/namespaces/default/{path}"));
        let request = request.header("content-type", "application/json").body(body.to_string().into_bytes());
        ask(&server, request.unwrap()).await.status.as_u16()
    };
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    assert_eq!(call("POST", "pods", pod).await, 201);
    let target = json!({"target": {"name": "n"}});
    assert_eq!(call("POST", "pods/p/binding", target.clone()).await, 201);
    let status = json!({"metadata": {"name": "p"}, "status": {"phase": "Running"}});
    assert_eq!(call("PUT", "pods/p/status", status).await, 200);
    assert_eq!(call("POST", "pods/p/exec?command=rm&command=-r", json!({})).await, 403);
    assert_eq!(call("POST", "pods/p/eviction", json!({"metadata": {"name": "p"}})).await, 201);
    let controller = json!({"metadata": {"name": "r"}, "spec": {"replicas": 1, "selector": {"a": "b"},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    assert_eq!(call("POST", "replicationcontrollers", controller).await, 201);
    let scale = json!({"metadata": {"name": "r"}, "spec": {"replicas": 2}});
    assert_eq!(call("PUT", "replicationcontrollers/r/scale", scale).await, 200);
    let seen = notes.0.lock().unwrap().clone();
    let expected = [
        "Create Pod p/",
        "Create Binding p/binding",
        "Update Pod p/status",
        "Connect \"PodExecOptions\" [\"rm\",\"-r\"]",
        "Create Eviction p/eviction",
        "Delete Pod p",
        "Create ReplicationController r/",
        "Update ReplicationController r/scale",
    ];
    assert_eq!(seen, expected);
}
