//! A custom resource with a conversion webhook, through every verb.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{
    peer::{Authority, authority, serve_json},
    support::{Watcher, admin, done, server},
};

const V1: &str = "/apis/g.example.com/v1/namespaces/default/boxes";
const V2: &str = "/apis/g.example.com/v2/namespaces/default/boxes";

/// v1 has `size: 3x4`, v2 has `width: 3` and `height: 4`.
fn converted(mut object: Value, version: &str) -> Value {
    let spec = &mut object["spec"];
    if version.ends_with("/v1") {
        *spec = json!({"size": format!("{}x{}", spec["width"], spec["height"])});
    } else if let Some((width, height)) = spec["size"].as_str().and_then(|s| s.split_once('x')) {
        *spec =
            json!({"width": width.parse::<i64>().unwrap_or(0), "height": height.parse::<i64>().unwrap_or(0)});
    }
    object["apiVersion"] = version.into();
    object
}

fn review(review: &Value) -> Value {
    let request = &review["request"];
    let version = request["desiredAPIVersion"].as_str().unwrap();
    let objects: Vec<Value> =
        request["objects"].as_array().unwrap().iter().map(|o| converted(o.clone(), version)).collect();
    json!({"kind": "ConversionReview", "apiVersion": review["apiVersion"],
        "response": {"uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": objects}})
}

fn version(name: &str, storage: bool, spec: Value, column: &str) -> Value {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": spec}}});
    json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": schema},
        "additionalPrinterColumns": [{"name": "Shape", "type": "string", "jsonPath": column}]})
}

/// Boxes, stored as v2, with the webhook at a port.
fn definition(port: u16, ca: &Authority) -> Value {
    json!({
        "metadata": {"name": "boxes.g.example.com"},
        "spec": {"group": "g.example.com", "scope": "Namespaced", "names": {"plural": "boxes", "kind": "Box"},
            "conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
                "clientConfig": {"url": format!("https://localhost:{port}/convert"), "caBundle": STANDARD.encode(&ca.0)}}},
            "versions": [
                version("v2", true, json!({"width": {"type": "integer", "maximum": 100}, "height": {"type": "integer"}}), ".spec.width"),
                version("v1", false, json!({"size": {"type": "string", "pattern": "^[0-9]+x[0-9]+$"}}), ".spec.size"),
            ]},
    })
}

#[tokio::test]
async fn versions_are_one_object() {
    let ca = authority();
    let broken = Arc::new(AtomicBool::new(false));
    let switch = broken.clone();
    let (port, task) =
        serve_json(
            &ca,
            "localhost",
            move |asked| {
                if switch.load(Ordering::Relaxed) { json!({}) } else { review(&asked) }
            },
        )
        .await;
    let server = server().await;
    let definition = definition(port, &ca);
    done(&server, "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await;
    let mut watcher = Watcher::open(&server, &format!("{V1}?watch=true")).await;

    let made = done(
        &server,
        "POST",
        V1,
        &json!({"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"size": "3x4"}}),
    )
    .await;
    assert_eq!((&made["apiVersion"], &made["spec"]), (&json!("g.example.com/v1"), &json!({"size": "3x4"})));
    let stored = done(&server, "GET", &format!("{V2}/a"), &Value::Null).await;
    assert_eq!(stored["spec"], json!({"width": 3, "height": 4}));
    assert_eq!(stored["metadata"]["uid"], made["metadata"]["uid"]);

    // Validation of each version, and of the stored one.
    let bad = json!({"metadata": {"name": "b"}, "spec": {"size": "big"}});
    assert_eq!(admin(&server, "POST", V1, "application/json", bad.to_string()).await.status, 422);
    let large = json!({"metadata": {"name": "b"}, "spec": {"size": "300x1"}});
    assert_eq!(admin(&server, "POST", V1, "application/json", large.to_string()).await.status, 422);

    // A patch applies to the version that it is sent to; so does an update, with optimistic locking.
    let patched = done(&server, "PATCH", &format!("{V1}/a"), &json!({"spec": {"size": "5x6"}})).await;
    assert_eq!(patched["spec"]["size"], "5x6");
    let stale = admin(&server, "PUT", &format!("{V1}/a"), "application/json", made.to_string()).await;
    assert_eq!(stale.status, 409);
    let applied = json!({"apiVersion": "g.example.com/v1", "kind": "Box", "metadata": {"name": "c"}, "spec": {"size": "7x8"}});
    let answer = admin(
        &server,
        "PATCH",
        &format!("{V1}/c?fieldManager=me"),
        "application/apply-patch+yaml",
        applied.to_string(),
    )
    .await;
    assert_eq!((answer.status.as_u16(), answer.json()["spec"].clone()), (201, json!({"size": "7x8"})));

    let list = done(&server, "GET", V1, &Value::Null).await;
    let sizes: Vec<&str> =
        list["items"].as_array().unwrap().iter().map(|i| i["spec"]["size"].as_str().unwrap()).collect();
    assert_eq!((list["apiVersion"].as_str(), sizes), (Some("g.example.com/v1"), vec!["5x6", "7x8"]));
    let request = http::Request::builder()
        .uri(V1)
        .header("authorization", "Bearer admin")
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let table = crate::support::ask(&server, request.body(Vec::new()).unwrap()).await.json();
    assert_eq!(table["rows"][0]["cells"], json!(["a", "5x6"]));

    // The watch has seen all events in its version.
    let mut seen = Vec::new();
    for _ in 0..3 {
        let event = watcher.next().await.unwrap();
        assert_eq!(event["object"]["apiVersion"], "g.example.com/v1");
        seen.push((
            event["type"].as_str().unwrap().to_owned(),
            event["object"]["spec"]["size"].as_str().unwrap().to_owned(),
        ));
    }
    let event = |kind: &str, size: &str| (kind.to_owned(), size.to_owned());
    assert_eq!(seen, [event("ADDED", "3x4"), event("MODIFIED", "5x6"), event("ADDED", "7x8")]);

    // A failing webhook affects its own versions only.
    broken.store(true, Ordering::Relaxed);
    let answer = admin(&server, "GET", &format!("{V1}/a"), "", "").await;
    assert_eq!(answer.status, 500);
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert_eq!(
        message,
        "Internal error occurred: conversion webhook for g.example.com/v2, Kind=Box failed: no response provided"
    );
    done(&server, "GET", &format!("{V2}/a"), &Value::Null).await;
    broken.store(false, Ordering::Relaxed);

    // The other version becomes the stored one: existing objects are converted on read and on write.
    let crd = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/boxes.g.example.com";
    let flip = json!([{"op": "replace", "path": "/spec/versions/0/storage", "value": false},
        {"op": "replace", "path": "/spec/versions/1/storage", "value": true}]);
    let flipped = admin(&server, "PATCH", crd, "application/json-patch+json", flip.to_string()).await;
    assert_eq!(flipped.status, 200, "{}", flipped.json());
    for (path, spec) in [(V1, json!({"size": "5x6"})), (V2, json!({"width": 5, "height": 6}))] {
        let shown = done(&server, "GET", &format!("{path}/a"), &Value::Null).await;
        assert_eq!(shown["spec"], spec, "{path}");
        let list = done(&server, "GET", path, &Value::Null).await;
        assert_eq!(list["items"][0]["spec"], spec, "{path}");
    }
    let patched = done(&server, "PATCH", &format!("{V1}/a"), &json!({"spec": {"size": "9x9"}})).await;
    assert_eq!(patched["spec"]["size"], "9x9");
    let shown = done(&server, "GET", &format!("{V2}/a"), &Value::Null).await;
    assert_eq!(shown["spec"], json!({"width": 9, "height": 9}));

    let gone = done(&server, "DELETE", &format!("{V1}/a"), &Value::Null).await;
    assert_eq!(gone["status"], "Success");
    assert_eq!(admin(&server, "GET", &format!("{V1}/a"), "", "").await.status, 404);
    task.abort();
}

const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";

/// A webhook or policy whose rule names one version sees requests of both in it, or only those of its own.
#[tokio::test]
async fn admission_sees_the_version_of_its_rule() {
    let ca = authority();
    let (port, _converter) = serve_json(&ca, "localhost", |asked| review(&asked)).await;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let answer = move |asked: Value| {
        seen.lock().unwrap().push(asked["request"].clone());
        let patch = json!([{"op": "replace", "path": "/spec/size", "value": "7x7"}]).to_string();
        let mut response = json!({"uid": asked["request"]["uid"], "allowed": true});
        if asked["request"]["object"]["spec"]["size"] == "1x1" {
            response["patchType"] = "JSONPatch".into();
            response["patch"] = STANDARD.encode(patch).into();
        }
        json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response})
    };
    let (hook, _hook) = serve_json(&ca, "localhost", answer).await;
    let server = server().await;
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    done(&server, "POST", crds, &definition(port, &ca)).await;
    let webhook = |name: &str, policy: &str| {
        json!({"name": format!("{name}.example.com"), "matchPolicy": policy, "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "rules": [{"apiGroups": ["g.example.com"], "apiVersions": ["v1"], "resources": ["boxes"], "operations": ["CREATE", "UPDATE", "DELETE"]}],
            "clientConfig": {"url": format!("https://localhost:{hook}/"), "caBundle": STANDARD.encode(&ca.0)}})
    };
    let configuration = json!({"metadata": {"name": "a"}, "webhooks": [webhook("equivalent", "Equivalent"), webhook("exact", "Exact")]});
    done(&server, "POST", &format!("{ADMISSION}/mutatingwebhookconfigurations"), &configuration).await;
    let policy = json!({"metadata": {"name": "p"}, "spec": {
        "matchConstraints": {"resourceRules": [{"apiGroups": ["g.example.com"], "apiVersions": ["v1"], "resources": ["boxes"], "operations": ["CREATE"]}]},
        "validations": [{"expression": "object.spec.size != '6x6' && request.requestKind.version == 'v2'"}]}});
    done(&server, "POST", &format!("{ADMISSION}/validatingadmissionpolicies"), &policy).await;
    let binding =
        json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Deny"]}});
    done(&server, "POST", &format!("{ADMISSION}/validatingadmissionpolicybindings"), &binding).await;

    // A request for the stored version is converted for the rule, and the patch back.
    let small = json!({"metadata": {"name": "a"}, "spec": {"width": 1, "height": 1}});
    let made = done(&server, "POST", V2, &small).await;
    assert_eq!(made["spec"], json!({"width": 7, "height": 7}));
    let requests = std::mem::take(&mut *asked.lock().unwrap());
    let [one] = requests.as_slice() else { panic!("the exact one is not about v2: {requests:#?}") };
    assert_eq!(one["object"]["spec"], json!({"size": "1x1"}));
    assert_eq!((&one["kind"]["version"], &one["requestKind"]["version"]), (&json!("v1"), &json!("v2")));
    let refused = json!({"metadata": {"name": "b"}, "spec": {"width": 6, "height": 6}});
    let answer = admin(&server, "POST", V2, "application/json", refused.to_string()).await;
    assert_eq!(answer.status, 422, "{}", answer.json());

    // A request for the rule's version is of its own kind.
    asked.lock().unwrap().clear();
    let other = json!({"metadata": {"name": "c"}, "spec": {"size": "2x2"}});
    let answer = admin(&server, "POST", V1, "application/json", other.to_string()).await;
    assert_eq!(answer.status, 422, "the policy sees v1 as the requested version: {}", answer.json());
    let requests = std::mem::take(&mut *asked.lock().unwrap());
    assert_eq!(requests.len(), 2, "{requests:#?}");
    for one in &requests {
        assert_eq!((&one["kind"]["version"], &one["requestKind"]["version"]), (&json!("v1"), &json!("v1")));
        assert_eq!(one["object"]["spec"], json!({"size": "2x2"}));
    }
    done(&server, "DELETE", &format!("{V1}/a"), &Value::Null).await;
    let last = asked.lock().unwrap().last().cloned().unwrap();
    assert_eq!((&last["operation"], &last["oldObject"]["spec"]["size"]), (&json!("DELETE"), &json!("7x7")));
}

/// Each version selects by its own fields, in lists, watches and deletions of many.
#[tokio::test]
async fn a_version_selects_by_its_own_fields() {
    let ca = authority();
    let (port, task) = serve_json(&ca, "localhost", |asked| review(&asked)).await;
    let server = server().await;
    let mut definition = definition(port, &ca);
    definition["spec"]["versions"][0]["selectableFields"] = json!([{"jsonPath": ".spec.width"}]);
    definition["spec"]["versions"][1]["selectableFields"] = json!([{"jsonPath": ".spec.size"}]);
    done(&server, "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await;
    let spec = |name: &str, size: &str| json!({"metadata": {"name": name}, "spec": {"size": size}});
    let first = done(&server, "POST", V1, &spec("a", "3x4")).await;
    done(&server, "POST", V1, &spec("b", "5x6")).await;
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap().iter();
        items.map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    for (version, selector, want) in [
        (V1, "spec.size=3x4", &["a"][..]),
        (V1, "spec.size!=3x4", &["b"]),
        (V1, "spec.size=3x4,metadata.name=b", &[]),
        (V2, "spec.width=5", &["b"]),
    ] {
        let list = done(&server, "GET", &format!("{version}?fieldSelector={selector}"), &Value::Null).await;
        assert_eq!(names(&list), want, "{selector}");
    }
    let refused = admin(&server, "GET", &format!("{V1}?fieldSelector=spec.width=3"), "", "").await;
    let message = "\"spec.width\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\", \"spec.size\"";
    assert_eq!((refused.status.as_u16(), refused.json()["message"].as_str()), (400, Some(message)));

    // A watch from the beginning, and one from a revision at which b was not yet there.
    let revision = first["metadata"]["resourceVersion"].as_str().unwrap();
    let mut now = Watcher::open(&server, &format!("{V1}?watch=true&fieldSelector=spec.size=3x4")).await;
    let from = format!("{V1}?watch=true&fieldSelector=spec.size=3x4&resourceVersion={revision}");
    let mut later = Watcher::open(&server, &from).await;
    for (name, size) in [("b", "3x4"), ("a", "9x9"), ("a", "8x8"), ("b", "3x4")] {
        let label = json!({"metadata": {"labels": {"touched": size}}, "spec": {"size": size}});
        done(&server, "PATCH", &format!("{V1}/{name}"), &label).await;
    }
    done(&server, "DELETE", &format!("{V1}/b"), &Value::Null).await;
    for (watcher, begins) in [(&mut now, true), (&mut later, false)] {
        let mut seen = Vec::new();
        for _ in 0..3 + usize::from(begins) {
            let event = watcher.next().await.unwrap();
            let name = event["object"]["metadata"]["name"].as_str().unwrap();
            seen.push(format!("{} {name}", event["type"].as_str().unwrap()));
        }
        let all = ["ADDED a", "ADDED b", "DELETED a", "DELETED b"];
        assert_eq!(seen, all[usize::from(!begins)..]);
    }

    // Only what is selected is deleted.
    done(&server, "POST", V1, &spec("c", "1x1")).await;
    let gone = done(&server, "DELETE", &format!("{V1}?fieldSelector=spec.size=1x1"), &Value::Null).await;
    assert_eq!(names(&gone), ["c"]);
    assert_eq!(names(&done(&server, "GET", V1, &Value::Null).await), ["a"]);
    task.abort();
}
