//! Test server and requests.

use std::collections::HashMap;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use k8s_apiserver::{
    ApiServer, User,
    auth::{Authenticator, AuthorizationMode},
};
use k8s_core::client::body_from_bytes;
use k8s_store::Store;
use serde_json::Value;

/// Creates a server with an administrator (token `admin`) and anonymous access.
pub(crate) async fn server() -> ApiServer {
    server_on(Store::memory()).await
}

/// As [`server`], with a given store.
pub(crate) async fn server_on(store: Store) -> ApiServer {
    // Without warnings, as an upstream server would respond.
    server_that(store, false, &[]).await
}

/// As [`server`], where configurations of webhooks and policies are stored only.
pub(crate) async fn server_without_policies() -> ApiServer {
    let plugins = [
        "MutatingAdmissionPolicy",
        "MutatingAdmissionWebhook",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionWebhook",
    ];
    server_that(Store::memory(), false, &plugins).await
}

/// As [`server`], with warnings for fields without effect.
pub(crate) async fn warning_server() -> ApiServer {
    server_that(Store::memory(), true, &[]).await
}

/// As [`server`], with entries of `--runtime-config`.
pub(crate) async fn server_with(entries: &[&str]) -> ApiServer {
    let admin = User::new("admin", &["system:masters"]);
    ApiServer::builder(Store::memory())
        .authenticator(Authenticator::new(HashMap::from([("admin".to_owned(), admin)]), true))
        .authorization([AuthorizationMode::Node, AuthorizationMode::Rbac])
        .runtime_config(entries.iter().copied())
        .build()
        .await
        .unwrap()
}

async fn server_that(store: Store, warns: bool, plugins_off: &[&str]) -> ApiServer {
    let mut admin = User::new("admin", &["system:masters"]);
    admin.uid = "admin".into();
    ApiServer::builder(store)
        .authenticator(Authenticator::new(HashMap::from([("admin".to_owned(), admin)]), true))
        .service_range("10.96.0.0/12".parse().expect("a range"))
        .warn_unenforced(warns)
        .without_plugins(plugins_off.iter().copied())
        .build()
        .await
        .unwrap()
}

/// A response, read to its end.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) warnings: Vec<String>,
    pub(crate) headers: http::HeaderMap,
    pub(crate) bytes: Bytes,
}

impl Answer {
    /// Returns the body as JSON; the lines of a watch as a list, other bodies as text.
    pub(crate) fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.bytes);
        serde_json::from_str(&text)
            .or_else(|_| {
                text.lines()
                    .filter(|l| !l.trim().is_empty())
                    .map(serde_json::from_str::<Value>)
                    .collect::<Result<Value, _>>()
            })
            .unwrap_or_else(|_| text.into_owned().into())
    }
}

/// Sends a request in this process and collects the whole response.
pub(crate) async fn ask(server: &ApiServer, request: Request<Vec<u8>>) -> Answer {
    let response = server.handle(request.map(body_from_bytes)).await;
    let status = response.status();
    let warnings =
        response.headers().get_all("warning").iter().map(|w| w.to_str().unwrap().to_owned()).collect();
    let headers = response.headers().clone();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    Answer { status, warnings, headers, bytes }
}

/// Sends a request as the administrator.
pub(crate) async fn admin(
    server: &ApiServer,
    method: &str,
    path: &str,
    content_type: &str,
    body: impl Into<Vec<u8>>,
) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", "Bearer admin")
        .header("user-agent", "test/1")
        .header("content-type", content_type)
        .body(body.into())
        .unwrap();
    ask(server, request).await
}

/// Sends a JSON body as the administrator and requires success.
pub(crate) async fn done(server: &ApiServer, method: &str, path: &str, body: &Value) -> Value {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let answer = admin(server, method, path, kind, body).await;
    assert!(answer.status.is_success(), "{method} {path}: {} {}", answer.status, answer.json());
    answer.json()
}

/// Sends a request as an in-process user, with a JSON body unless it is null.
pub(crate) async fn ask_as(
    server: &ApiServer,
    user: &User,
    method: &str,
    path: &str,
    body: &Value,
) -> Answer {
    let media = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request =
        Request::builder().method(method).uri(path).header("content-type", media).body(body).unwrap();
    ask(&server.service_as(user.clone()), request).await
}

/// Grants permissions to a user in all namespaces.
pub(crate) async fn grant(server: &ApiServer, user: &str, rules: Value) {
    let base = "/apis/rbac.authorization.k8s.io/v1";
    let name = format!("test-{user}");
    let role = serde_json::json!({"metadata": {"name": name}, "rules": rules});
    done(server, "POST", &format!("{base}/clusterroles"), &role).await;
    let binding = serde_json::json!({"metadata": {"name": name}, "subjects": [{"kind": "User", "name": user}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}});
    done(server, "POST", &format!("{base}/clusterrolebindings"), &binding).await;
}

/// An open watch, read line by line.
pub(crate) struct Watcher {
    body: k8s_core::client::Body,
    rest: Vec<u8>,
}

impl Watcher {
    /// Opens a watch as the administrator.
    pub(crate) async fn open(server: &ApiServer, path: &str) -> Self {
        let request = Request::builder().uri(path).header("authorization", "Bearer admin").body(Vec::new());
        let response = server.handle(request.unwrap().map(body_from_bytes)).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        Watcher { body: response.into_body(), rest: Vec::new() }
    }

    /// Returns the next event; `None` when the watch has ended.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = self.body.frame().await?.unwrap();
            self.rest.extend_from_slice(&frame.into_data().unwrap_or_default());
        }
    }

    /// Returns type and object name of the next event.
    pub(crate) async fn next_brief(&mut self) -> (String, String) {
        let event = self.next().await.expect("the watch goes on");
        let text = |p: &str| event.pointer(p).and_then(Value::as_str).unwrap_or_default().to_owned();
        (text("/type"), text("/object/metadata/name"))
    }
}

/// Returns the certificate of a new authority, in PEM.
pub(crate) fn authority() -> String {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}
