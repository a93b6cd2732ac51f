//! What an API server reads from a request, and a client from its configuration.

use http::Method;
use k8s_apiserver::{
    decode,
    request::{Query, RequestInfo},
};
use k8s_core::client::Kubeconfig;

use crate::Target;

pub(crate) const JSON: Target = Target {
    name: "json",
    seeds: &[br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{"a":"b"}},"spec":{"n":[1,2.5,-3e9,null,true]}}"#, b"[[[[]]]]", b"{\"a\":1,\"a\":2}"],
    run: |data| {
        if let Ok((value, _)) = decode::json(data) {
            // What is decoded can be written and read again, and is the same.
            let again = decode::json(value.to_string().as_bytes()).map(|(value, _)| value);
            assert_eq!(again.as_ref(), Ok(&value));
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
        if let Ok(value) = k8s_core::proto::decode(data) {
            assert!(serde_json::to_vec(&value).is_ok());
            // What is decoded can be written again, if its type is written, and read again.
            if let Some(body) = k8s_core::proto::encode(&value) {
                assert!(k8s_core::proto::decode(&body).is_ok());
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
