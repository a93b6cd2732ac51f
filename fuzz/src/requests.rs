//! Inputs of an API server's requests and of a client's configuration.

use std::sync::LazyLock;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use k8s_apiserver::{
    ApiServer, User, decode,
    request::{Query, RequestInfo},
};
use k8s_core::{
    api::Pod,
    client::{Kubeconfig, body_from_bytes},
    json,
};
use k8s_store::Store;
use serde::de::IgnoredAny;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::Target;

pub(crate) const JSON: Target = Target {
    name: "json",
    seeds: &[br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{"a":"b"}},"spec":{"n":[1,2.5,-3e9,null,true]}}"#, b"[[[[]]]]", b"{\"a\":1,\"a\":2}"],
    run: |data| {
        if let Ok((value, _)) = decode::json(data) {
            // Round trip: a decoded value is the same after encoding and decoding.
            let again = decode::json(value.to_string().as_bytes()).map(|(value, _)| value);
            assert_eq!(again.as_ref(), Ok(&value));
        }
    },
};

pub(crate) const TYPED_JSON: Target = Target {
    name: "typed_json",
    seeds: &[
        br#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a\u00e9\n","creationTimestamp":null},"spec":{"containers":[{"name":"c","ports":[{"containerPort":80.0}]}],"priority":-1e1},"x":[{}]}"#,
        br#"{"metadata":{"managedFields":[{"fieldsV1":{"f:a":{}}}]},"status":{"conditions":[{"type":"Ready","status":"True"}]}}"#,
        b" [ ] x",
    ],
    run: |data| {
        if std::str::from_utf8(data).is_err() {
            assert!(json::from_slice::<Value>(data).is_err(), "text is UTF-8");
            return;
        }
        // Whatever serde_json reads is read, and is the same.
        if let Ok(value) = serde_json::from_slice::<Value>(data) {
            assert_eq!(json::from_slice::<Value>(data).ok(), Some(value));
        } else {
            assert!(json::from_slice::<Value>(data).is_err(), "no value can hold it");
        }
        // A number that no value can hold is still JSON: a type passes over it in a field it does not know.
        if serde_json::from_slice::<IgnoredAny>(data).is_err() {
            assert!(json::from_slice::<Pod>(data).is_err(), "it is not JSON");
        }
        if let Ok(pod) = serde_json::from_slice::<Pod>(data) {
            assert_eq!(json::from_slice::<Pod>(data).ok(), Some(pod));
        }
    },
};

pub(crate) const YAML: Target = Target {
    name: "yaml",
    seeds: &[b"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - name: c\n    args: [\"x\", |\n      y\n    ]\n", b"a: &x [1]\nb: *x\n", b"- 0x1F\n- ~\n- 'it''s'\n"],
    run: |data| {
        if let Ok(value) = decode::yaml(data) {
            assert!(serde_json::to_vec(&value).is_ok());
        }
    },
};

pub(crate) const PROTOBUF: Target = Target {
    name: "protobuf",
    seeds: &[
        b"k8s\0\n\x0f\n\x02v1\x12\tConfigMap\x12\x14\n\x05\n\x01a\x12\0\x12\x0b\n\x01k\x12\x06v12345",
        b"k8s\0\n\x09\n\x02v1\x12\x03Pod\x12\x0c\n\x03\n\x01p\x12\x05\x12\x03\n\x01c",
    ],
    run: |data| {
        if let Ok(value) = k8s_schema::proto::decode(data) {
            assert!(serde_json::to_vec(&value).is_ok());
            // Round trip, for types that have an encoder.
            if let Some(body) = k8s_schema::proto::encode(&value) {
                assert!(k8s_schema::proto::decode(&body).is_ok());
            }
        }
    },
};

pub(crate) const PATH: Target = Target {
    name: "request_path",
    seeds: &[
        b"/api/v1/namespaces/a/pods/b/log?container=c&follow=true",
        b"/apis/apps/v1/watch/deployments?labelSelector=a%3Db",
        b"/api/v1/namespaces/a/services/https:b:80/proxy/x/y",
    ],
    run: |data| {
        let text = String::from_utf8_lossy(data);
        let (path, query) = text.split_once('?').unwrap_or((&text, ""));
        let query = Query::parse(query);
        for method in [Method::GET, Method::POST, Method::DELETE, Method::PATCH] {
            let info = RequestInfo::parse(&method, path, &query);
            assert!(!info.verb.is_empty());
        }
    },
};

pub(crate) const KUBECONFIG: Target = Target {
    name: "kubeconfig",
    seeds: &[b"apiVersion: v1\nkind: Config\nclusters:\n- name: a\n  cluster: {server: \"https://h:1\", certificate-authority-data: YQ==}\nusers:\n- name: u\n  user: {token: t}\ncontexts:\n- name: c\n  context: {cluster: a, user: u}\ncurrent-context: c\n"],
    run: |data| {
        let Ok(value) = decode::yaml(data) else { return };
        let Ok(config) = serde_json::from_value::<Kubeconfig>(value) else { return };
        let _ = config.remote(None);
        assert!(decode::yaml(config.to_yaml().as_bytes()).is_ok());
    },
};

/// A server with some objects, and its runtime.
struct Served {
    runtime: Runtime,
    server: ApiServer,
}

static SERVED: LazyLock<Served> = LazyLock::new(|| {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime starts");
    let server = runtime.block_on(ApiServer::builder(Store::memory()).build()).expect("a server starts");
    let served = Served { runtime, server: server.service_as(User::admin()) };
    for i in 0..10 {
        let body = format!("{{\"metadata\":{{\"name\":\"m{i}\"}}}}");
        assert_eq!(served.ask("POST", "/api/v1/namespaces/default/configmaps", body).0, StatusCode::CREATED);
    }
    served
});

impl Served {
    fn ask(&self, method: &str, path: &str, body: String) -> (StatusCode, usize) {
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        let request =
            request.body(body_from_bytes(body.into_bytes())).expect("targets ask for what is an address");
        self.runtime.block_on(async {
            let response = self.server.handle(request).await;
            let code = response.status();
            let body = response.into_body().collect().await.expect("an answer has an end");
            (code, body.to_bytes().len())
        })
    }
}

pub(crate) const CONTINUE: Target = Target {
    name: "continue_token",
    seeds: &[
        br#"{"v":"meta.k8s.io/v1","rv":5,"start":"default/m3","n":4}"#,
        b"eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MX0",
        b"{}",
    ],
    run: |data| {
        // The input as a token, and as the content of a token.
        let written = URL_SAFE_NO_PAD.encode(data);
        let plain: String =
            data.iter().filter(|b| b.is_ascii_alphanumeric()).map(|b| char::from(*b)).collect();
        for token in [written, plain] {
            let path = format!("/api/v1/namespaces/default/configmaps?limit=3&continue={token}");
            let (code, length) = SERVED.ask("GET", &path, String::new());
            assert!([200, 400, 410].contains(&code.as_u16()), "{code} for {token:?}");
            assert!(length < 1 << 16);
        }
    },
};
