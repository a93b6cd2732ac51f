//! An aggregated API server: called over TLS with the front-proxy certificate, found by discovery, and
//! unavailable when it stops.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_apiserver::{
    ApiServer, User,
    listen::{self, TlsFiles},
    stages::{Authenticate, Credentials},
};
use k8s_core::{
    api::{Metadata, NamespaceResourceScope, Resource, apimachinery::pkg::apis::meta::v1::ObjectMeta},
    client::{Client, Remote, RemoteConfig},
    custom::CustomResource,
    status::ApiStatus,
};
use k8s_store::Store;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    peer::{Authority, authority, signed},
    support::{admin, ask, done},
};

/// Resource of the aggregated server.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
struct Reading {
    metadata: ObjectMeta,
    spec: ReadingSpec,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
struct ReadingSpec {
    celsius: i64,
}

impl Resource for Reading {
    const API_VERSION: &'static str = "weather.example.com/v1";
    const GROUP: &'static str = "weather.example.com";
    const KIND: &'static str = "Reading";
    const VERSION: &'static str = "v1";
    const URL_PATH_SEGMENT: &'static str = "readings";
    type Scope = NamespaceResourceScope;
}

impl Metadata for Reading {
    type Ty = ObjectMeta;
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl CustomResource for Reading {
    const NAMESPACED: bool = true;
}

/// Trusts clients with the front-proxy certificate.
struct FrontProxy;
#[async_trait]
impl Authenticate for FrontProxy {
    async fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Option<User>, ApiStatus> {
        let header = |name: &str| credentials.headers.get(name).and_then(|v| v.to_str().ok());
        let (Some(_), Some(user)) = (credentials.certificate, header("x-remote-user")) else {
            return Err(ApiStatus::unauthorized());
        };
        let groups: Vec<&str> =
            credentials.headers.get_all("x-remote-group").iter().filter_map(|v| v.to_str().ok()).collect();
        Ok(Some(User::new(user, &groups)))
    }
}

/// Serves the aggregated server on a local port until the token is cancelled.
async fn start(ca: &Authority, front: &Authority, at: &str) -> (u16, CancellationToken) {
    let server = ApiServer::builder(Store::memory())
        .resource::<Reading>()
        .authenticate_first(FrontProxy)
        .build()
        .await
        .unwrap();
    let identity = signed(ca, "meter.weather.svc");
    let files = TlsFiles {
        certificate: identity.certificate.into_bytes(),
        key: identity.key.into_bytes(),
        client_ca: Some(front.0.clone().into_bytes()),
    };
    let tls = Arc::new(listen::tls_config(&files).unwrap());
    let listener = tokio::net::TcpListener::bind(at).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let stop = CancellationToken::new();
    tokio::spawn(listen::serve(server, listener, tls, stop.clone()));
    (port, stop)
}

const SERVICE: &str = "/apis/apiregistration.k8s.io/v1/apiservices/v1.weather.example.com";
const READINGS: &str = "/apis/weather.example.com/v1/namespaces/default/readings";

/// Waits until the Available condition has this status; returns its message.
async fn available(server: &ApiServer, status: &str) -> String {
    for _ in 0..100 {
        let service = done(server, "GET", SERVICE, &Value::Null).await;
        let conditions = service["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if let Some(found) = conditions.iter().find(|c| c["type"] == "Available" && c["status"] == status) {
            return format!("{}: {}", found["reason"].as_str().unwrap(), found["message"].as_str().unwrap());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("never {status}: {}", done(server, "GET", SERVICE, &Value::Null).await);
}

#[tokio::test]
async fn another_server_answers_for_its_version() {
    let (ca, front) = (authority(), authority());
    let (port, stop) = start(&ca, &front, "127.0.0.1:0").await;
    let admin_user =
        std::collections::HashMap::from([("admin".to_owned(), User::new("admin", &["system:masters"]))]);
    let server = ApiServer::builder(Store::memory())
        .authenticator(k8s_apiserver::auth::Authenticator::new(admin_user, true))
        .front_proxy(signed(&front, "front-proxy-client"))
        .build()
        .await
        .unwrap();
    done(&server, "POST", "/api/v1/namespaces", &json!({"metadata": {"name": "weather"}})).await;
    let service = json!({
        "metadata": {"name": "v1.weather.example.com"},
        "spec": {"group": "weather.example.com", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 10,
            "caBundle": STANDARD.encode(&ca.0), "service": {"namespace": "weather", "name": "meter", "port": port}},
    });
    done(&server, "POST", "/apis/apiregistration.k8s.io/v1/apiservices", &service).await;
    // The Service does not exist yet.
    assert_eq!(
        available(&server, "False").await,
        "ServiceNotFound: service/meter in \"weather\" is not present"
    );
    assert_eq!(admin(&server, "GET", READINGS, "", "").await.status, 503);
    let meter =
        json!({"metadata": {"name": "meter"}, "spec": {"type": "ExternalName", "externalName": "localhost"}});
    done(&server, "POST", "/api/v1/namespaces/weather/services", &meter).await;
    assert_eq!(available(&server, "True").await, "Passed: all checks passed");

    // All verbs are proxied, with the requesting user.
    let made = done(&server, "POST", READINGS, &json!({"apiVersion": "weather.example.com/v1", "kind": "Reading", "metadata": {"name": "roof"}, "spec": {"celsius": 21}})).await;
    assert_eq!(made["spec"]["celsius"], 21);
    done(&server, "PATCH", &format!("{READINGS}/roof"), &json!({"spec": {"celsius": 22}})).await;
    let list = done(&server, "GET", READINGS, &Value::Null).await;
    assert_eq!(list["items"][0]["spec"]["celsius"], 22);
    let bad = json!({"metadata": {"name": "cellar"}, "spec": {"celsius": "cold"}});
    assert_eq!(admin(&server, "POST", READINGS, "application/json", bad.to_string()).await.status, 422);
    // Authorization is ours, and clients cannot forge the user headers.
    let request = http::Request::builder()
        .uri(READINGS)
        .header("x-remote-user", "admin")
        .header("x-remote-group", "system:masters");
    let answer = ask(&server, request.body(Vec::new()).unwrap()).await;
    assert_eq!((answer.status.as_u16(), answer.json()["reason"].clone()), (403, json!("Forbidden")));

    // Discovery lists it in all formats.
    let groups = done(&server, "GET", "/apis", &Value::Null).await;
    assert!(groups["groups"].as_array().unwrap().iter().any(|g| g["name"] == "weather.example.com"));
    let resources = done(&server, "GET", "/apis/weather.example.com/v1", &Value::Null).await;
    assert_eq!(resources["resources"][0]["kind"], "Reading");
    let request = http::Request::builder()
        .uri("/apis")
        .header("authorization", "Bearer admin")
        .header("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    let all = ask(&server, request.body(Vec::new()).unwrap()).await.json();
    let own = all["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|g| g["metadata"]["name"] == "weather.example.com")
        .unwrap();
    assert_eq!(own["versions"][0]["freshness"], "Current");
    assert_eq!(own["versions"][0]["resources"][0]["responseKind"]["kind"], "Reading");
    let document = done(&server, "GET", "/openapi/v3/apis/weather.example.com/v1", &Value::Null).await;
    assert!(document["components"]["schemas"].to_string().contains("celsius"));

    // Without the front-proxy certificate the aggregated server rejects calls.
    let config = RemoteConfig {
        server: format!("https://localhost:{port}"),
        insecure: true,
        ..RemoteConfig::default()
    };
    let client = Client::new(Remote::new(&config).unwrap());
    assert!(client.bytes(http::Method::GET, READINGS, "", String::new()).await.is_err());

    // After it stops, its version becomes unavailable.
    stop.cancel();
    done(&server, "DELETE", SERVICE, &Value::Null).await;
    assert_eq!(admin(&server, "GET", READINGS, "", "").await.status, 404);
}

#[tokio::test]
async fn own_versions_are_in_the_list_too() {
    let server = crate::support::server().await;
    let list = "/apis/apiregistration.k8s.io/v1/apiservices";
    let find = |all: &Value, name: &str| {
        all["items"].as_array().unwrap().iter().find(|s| s["metadata"]["name"] == name).cloned()
    };
    let mut found = None;
    for _ in 0..50 {
        found = find(&done(&server, "GET", list, &Value::Null).await, "v1.apps");
        if found.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let apps = found.expect("v1.apps");
    assert_eq!(apps["status"]["conditions"][0]["reason"], "Local");
    assert_eq!(apps["spec"]["groupPriorityMinimum"], 17_800);
    // APIServices of custom resources are created and deleted with them.
    let definition = json!({
        "metadata": {"name": "things.g.example.com"},
        "spec": {"group": "g.example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]},
    });
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    done(&server, "POST", definitions, &definition).await;
    for wanted in [true, false] {
        if !wanted {
            done(&server, "DELETE", &format!("{definitions}/things.g.example.com"), &Value::Null).await;
        }
        let mut there = !wanted;
        for _ in 0..50 {
            there = find(&done(&server, "GET", list, &Value::Null).await, "v1.g.example.com").is_some();
            if there == wanted {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(there, wanted);
    }
}
