//! Protobuf responses.

use http::Request;
use k8s_schema::proto::decode;
use serde_json::{Value, json};

use crate::support::{Answer, ask, done, server};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

async fn get(server: &k8s_apiserver::ApiServer, path: &str, accept: &str) -> Answer {
    let request =
        Request::builder().uri(path).header("authorization", "Bearer admin").header("accept", accept);
    ask(server, request.body(Vec::new()).unwrap()).await
}

fn media(answer: &Answer) -> &str {
    answer.headers["content-type"].to_str().unwrap()
}

/// Returns the length-delimited fields of a message: number, bytes.
fn parts(mut message: &[u8]) -> Vec<(u64, &[u8])> {
    let varint = |at: &mut &[u8]| {
        let (mut value, mut shift) = (0u64, 0);
        loop {
            let (first, rest) = at.split_first().unwrap();
            *at = rest;
            value |= u64::from(first & 0x7f) << shift;
            shift += 7;
            if first & 0x80 == 0 {
                return value;
            }
        }
    };
    let mut all = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        assert_eq!(key & 7, 2, "only messages and texts here");
        let length = usize::try_from(varint(&mut message)).unwrap();
        let (field, rest) = message.split_at(length);
        message = rest;
        all.push((key >> 3, field));
    }
    all
}

/// Decodes an element of a list of ConfigMaps, after wrapping it in an envelope.
fn config_map(raw: &[u8]) -> Value {
    let length = |n: usize| -> Vec<u8> {
        let low = u8::try_from(n & 0x7f).unwrap();
        if n < 0x80 { vec![low] } else { vec![low | 0x80, u8::try_from(n >> 7).unwrap()] }
    };
    let body =
        [b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12".to_vec(), length(raw.len()), raw.to_vec()].concat();
    decode(&body).unwrap()
}

#[tokio::test]
async fn an_object_is_the_same_in_both_encodings() {
    let server = server().await;
    let pod = json!({"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i",
        "resources": {"limits": {"cpu": "100m"}}, "livenessProbe": {"httpGet": {"path": "/x", "port": "web"}}}]}});
    let account = json!({"metadata": {"name": "default"}});
    done(&server, "POST", "/api/v1/namespaces/default/serviceaccounts", &account).await;
    done(&server, "POST", "/api/v1/namespaces/default/pods", &pod).await;
    done(&server, "POST", "/apis/apps/v1/namespaces/default/deployments", &json!({"metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod["spec"]}}}))
    .await;
    for path in [
        "/api/v1/namespaces/default/pods/p",
        "/apis/apps/v1/namespaces/default/deployments/d",
        "/apis/apps/v1/namespaces/default/deployments/d/scale",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/cluster-admin",
        "/api/v1/namespaces/default",
    ] {
        let plain = get(&server, path, "application/json, application/vnd.kubernetes.protobuf").await;
        assert_eq!(media(&plain), "application/json");
        let packed = get(&server, path, "application/vnd.kubernetes.protobuf, application/json").await;
        assert_eq!(media(&packed), PROTOBUF, "{path}");
        let mut expected = plain.json();
        // Empty strings equal absent ones.
        strip_empty(&mut expected);
        let mut decoded = decode(&packed.bytes).unwrap();
        strip_empty(&mut decoded);
        assert_eq!(decoded, expected, "{path}");
    }
}

fn strip_empty(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(strip_empty);
            map.retain(|_, v| !(v.is_null() || *v == "" || *v == 0 || *v == false || *v == json!([])));
        }
        Value::Array(items) => items.iter_mut().for_each(strip_empty),
        _ => {}
    }
}

#[tokio::test]
async fn a_written_object_comes_back_and_failures_are_statuses() {
    let server = server().await;
    let body = k8s_schema::proto::encode(
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}}),
    );
    let post = || {
        Request::post(MAPS)
            .header("authorization", "Bearer admin")
            .header("content-type", PROTOBUF)
            .header("accept", PROTOBUF)
            .body(body.clone().unwrap())
            .unwrap()
    };
    let made = ask(&server, post()).await;
    assert_eq!((made.status.as_u16(), media(&made)), (201, PROTOBUF));
    assert_eq!(decode(&made.bytes).unwrap()["data"], json!({"k": "v"}));
    let again = ask(&server, post()).await;
    assert_eq!((again.status.as_u16(), media(&again)), (409, PROTOBUF));
    let status = decode(&again.bytes).unwrap();
    assert_eq!(
        (&status["kind"], &status["reason"], &status["code"]),
        (&json!("Status"), &json!("AlreadyExists"), &json!(409))
    );
    assert_eq!(status["details"], json!({"name": "a", "kind": "configmaps"}));
}

#[tokio::test]
async fn lists_and_their_pages() {
    let server = server().await;
    // Larger than one chunk.
    for i in 0..30 {
        let object = json!({"metadata": {"name": format!("m{i:02}")}, "data": {"d": "x".repeat(5000)}});
        done(&server, "POST", MAPS, &object).await;
    }
    for (query, names) in [("", 0..30), ("?limit=10", 0..10), ("?fieldSelector=metadata.name%3Dm07", 7..8)] {
        let list = get(&server, &format!("{MAPS}{query}"), PROTOBUF).await;
        assert_eq!(media(&list), PROTOBUF);
        let envelope = parts(list.bytes.strip_prefix(b"k8s\0").unwrap());
        assert_eq!(envelope[0], (1, &b"\x0a\x02v1\x12\x0dConfigMapList"[..]));
        assert_eq!(envelope.len(), 2, "the length that stands before the list is right");
        let fields = parts(envelope[1].1);
        assert_eq!(fields[0].0, 1);
        let got: Vec<String> = fields[1..]
            .iter()
            .map(|(number, raw)| {
                assert_eq!(*number, 2);
                config_map(raw)["metadata"]["name"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!(got, names.map(|i| format!("m{i:02}")).collect::<Vec<_>>(), "{query}");
    }
    let metadata = get(
        &server,
        MAPS,
        "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
    )
    .await;
    let envelope = parts(metadata.bytes.strip_prefix(b"k8s\0").unwrap());
    assert_eq!(parts(envelope[0].1)[1].1, b"PartialObjectMetadataList");
    assert_eq!(parts(envelope[1].1).len(), 31);
    assert!(metadata.bytes.len() < 20_000, "no data");
    let table = get(&server, MAPS, "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1;g=meta.k8s.io").await;
    assert_eq!((media(&table), &table.json()["kind"]), ("application/json", &json!("Table")));
}

#[tokio::test]
async fn watches_are_frames() {
    let server = server().await;
    done(&server, "POST", MAPS, &json!({"metadata": {"name": "a"}, "data": {"k": "v"}})).await;
    done(&server, "DELETE", &format!("{MAPS}/a"), &Value::Null).await;
    for (query, events) in [
        ("resourceVersion=1", vec!["ADDED a", "DELETED a"]),
        (
            "resourceVersion=0&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true",
            vec!["BOOKMARK "],
        ),
    ] {
        let path = format!("{MAPS}?watch=1&timeoutSeconds=1&{query}");
        let watch = get(&server, &path, "application/vnd.kubernetes.protobuf;stream=watch").await;
        assert_eq!(media(&watch), "application/vnd.kubernetes.protobuf;stream=watch");
        let mut rest = &watch.bytes[..];
        let mut told = Vec::new();
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let (frame, after) = after.split_at(u32::from_be_bytes(*length) as usize);
            rest = after;
            let event = parts(frame);
            let object = decode(parts(event[1].1)[0].1).unwrap();
            assert_eq!(object["kind"], "ConfigMap");
            told.push(format!(
                "{} {}",
                str::from_utf8(event[0].1).unwrap(),
                object["metadata"]["name"].as_str().unwrap_or_default()
            ));
        }
        assert!(rest.is_empty());
        assert_eq!(told, events, "{query}");
    }
}

#[tokio::test]
async fn custom_resources_have_no_protobuf() {
    let server = server().await;
    let definition = json!({"metadata": {"name": "apps.apps.example.com"}, "spec": {"group": "apps.example.com", "scope": "Cluster",
        "names": {"plural": "apps", "kind": "Deployment"}, "versions": [{"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}});
    done(&server, "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await;
    let path = "/apis/apps.example.com/v1/apps";
    done(
        &server,
        "POST",
        path,
        &json!({"apiVersion": "apps.example.com/v1", "kind": "Deployment", "metadata": {"name": "a"}}),
    )
    .await;
    for path in [path, &format!("{path}/a")] {
        assert_eq!(get(&server, path, PROTOBUF).await.status.as_u16(), 406);
        let json = get(&server, path, "application/vnd.kubernetes.protobuf,application/json").await;
        assert_eq!((json.status.as_u16(), media(&json)), (200, "application/json"));
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
        let packed = get(&server, &format!("{path}?watch=0"), metadata).await;
        assert_eq!((packed.status.as_u16(), media(&packed)), (200, PROTOBUF));
    }
}

#[tokio::test]
async fn every_built_in_kind_is_sent_and_answered_in_protobuf() {
    let registry = k8s_apiserver::resources::Registry::new(&[]);
    let missing: Vec<String> = registry
        .all()
        .filter(|r| r.is_storage_version() && r.group != "extensions")
        .filter(|r| k8s_schema::proto::Definition::of(&r.api_version(), &r.kind).is_none())
        .map(|r| format!("{} {}", r.api_version(), r.kind))
        .collect();
    assert_eq!(missing, Vec::<String>::new());
}

#[tokio::test]
async fn a_definition_and_a_mutating_policy_are_created_in_protobuf() {
    let server = server().await;
    let schema = json!({"type": "object", "required": ["spec"], "properties": {
        "spec": {"type": "object", "additionalProperties": {"type": "string"}, "x-kubernetes-validations": [{"rule": "true", "reason": "FieldValueForbidden"}]},
        "any": {"x-kubernetes-preserve-unknown-fields": true, "type": "object"},
        "size": {"type": "integer", "minimum": 1, "maximum": 9.5, "default": 3, "enum": [1, 3], "nullable": true},
        "port": {"x-kubernetes-int-or-string": true, "example": "http"},
        "list": {"type": "array", "items": {"type": "object", "properties": {"k": {"type": "string", "default": ""}}, "required": ["k"]},
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "maxItems": 5}}});
    let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "qs.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "qs", "singular": "q", "kind": "Q", "listKind": "QList"},
            "conversion": {"strategy": "None"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n", "labelSelectorPath": ".status.s"}},
                "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".size", "priority": 1}],
                "selectableFields": [{"jsonPath": ".size"}]},
                {"name": "v2", "served": false, "storage": false, "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicy", "metadata": {"name": "p"},
        "spec": {"matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]},
            "variables": [{"name": "v", "expression": "1"}], "failurePolicy": "Fail", "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": "[]"}},
                {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{}"}}]}});
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicyBinding", "metadata": {"name": "b"},
        "spec": {"policyName": "p"}});
    for (path, object) in [
        ("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd),
        ("/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies", policy),
        ("/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings", binding),
    ] {
        let request = Request::post(path)
            .header("authorization", "Bearer admin")
            .header("content-type", PROTOBUF)
            .header("accept", PROTOBUF)
            .body(k8s_schema::proto::encode(&object).unwrap())
            .unwrap();
        let made = ask(&server, request).await;
        let name = object["metadata"]["name"].as_str().unwrap();
        assert_eq!((made.status.as_u16(), media(&made)), (201, PROTOBUF), "{:?}", decode(&made.bytes));
        let stored = get(&server, &format!("{path}/{name}"), "application/json").await.json();
        for (at, sent) in leaves(&object["spec"], "/spec") {
            assert_eq!(stored.pointer(&at), Some(sent), "{at}");
        }
        let mut packed = decode(&get(&server, &format!("{path}/{name}"), PROTOBUF).await.bytes).unwrap();
        let mut stored = stored;
        strip_empty(&mut packed);
        strip_empty(&mut stored);
        assert_eq!(packed, stored);
    }
}

/// Returns the leaves of a value with their JSON pointers.
fn leaves<'a>(value: &'a Value, at: &str) -> Vec<(String, &'a Value)> {
    match value {
        Value::Object(map) if !map.is_empty() => {
            map.iter().flat_map(|(k, v)| leaves(v, &format!("{at}/{k}"))).collect()
        }
        Value::Array(items) => {
            items.iter().enumerate().flat_map(|(i, v)| leaves(v, &format!("{at}/{i}"))).collect()
        }
        leaf => vec![(at.to_owned(), leaf)],
    }
}
