//! Rejected writes and their messages: `data/validation.yaml` with one document per resource.
//!
//! A document has a valid object, and changes of it (JSON pointers and values; null removes) with all errors
//! that they cause: on creation (`refused`), on update (`frozen`) and on a status write (`status`). An error
//! that ends in `...` is compared as a prefix.

use std::collections::BTreeMap;

use k8s_apiserver::ApiServer;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::{admin, done, server, server_without_policies};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    path: String,
    object: Value,
    #[serde(default)]
    refused: Vec<Case>,
    #[serde(default)]
    frozen: Vec<Case>,
    #[serde(default)]
    status: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    set: BTreeMap<String, Value>,
    says: Vec<String>,
}

/// Sets the value at a pointer, creates maps on the way and appends to lists; null removes.
fn set(object: &mut Value, pointer: &str, value: &Value) {
    let mut at = object;
    let mut parts = pointer.split('/').skip(1).map(|p| p.replace("~1", "/")).peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        if at.is_null() {
            *at = json!({});
        }
        if let Value::Array(list) = at {
            let index: usize = part.parse().unwrap();
            if last && value.is_null() {
                list.remove(index);
                return;
            }
            if index == list.len() {
                list.push(Value::Null);
            }
            at = &mut list[index];
        } else {
            let map = at.as_object_mut().unwrap_or_else(|| panic!("{pointer}: no map at {part}"));
            if last && value.is_null() {
                map.remove(&part);
                return;
            }
            at = map.entry(part).or_insert(Value::Null);
        }
    }
    *at = value.clone();
}

fn changed(object: &Value, case: &Case) -> Value {
    let mut object = object.clone();
    for (pointer, value) in &case.set {
        set(&mut object, pointer, value);
    }
    object
}

/// Sends a changed object and compares the errors.
async fn expect(server: &ApiServer, method: &str, path: &str, object: &Value, case: &Case) -> Option<String> {
    let answer = admin(server, method, path, "application/json", object.to_string()).await;
    let json = answer.json();
    let causes = json.pointer("/details/causes").and_then(Value::as_array).cloned().unwrap_or_default();
    let field = |c: &Value, f: &str| c[f].as_str().unwrap_or_default().to_owned();
    let said: Vec<String> =
        causes.iter().map(|c| format!("{}: {}", field(c, "field"), field(c, "message"))).collect();
    let same = said.len() == case.says.len()
        && said.iter().zip(&case.says).all(|(said, want)| match want.strip_suffix("...") {
            Some(start) => said.starts_with(start),
            None => said == want,
        });
    let fine = if case.says.is_empty() { answer.status.is_success() } else { answer.status == 422 && same };
    (!fine).then(|| {
        format!(
            "{method} {path} with {}:\n  want {:#?}\n  got {} {said:#?}\n  {}",
            json!(case.set),
            case.says,
            answer.status,
            json["message"]
        )
    })
}

#[tokio::test]
async fn every_problem_is_told() {
    let server = server_without_policies().await;
    // Pods need a service account.
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    done(&server, "POST", accounts, &json!({"metadata": {"name": "default"}})).await;
    let mut wrong = Vec::new();
    for document in include_str!("../data/validation.yaml").split("\n---\n") {
        let document: Document =
            serde_saphyr::from_str(document).unwrap_or_else(|e| panic!("{e}\n{document}"));
        for case in &document.refused {
            let object = changed(&document.object, case);
            let path = format!("{}?dryRun=All", document.path);
            wrong.extend(expect(&server, "POST", &path, &object, case).await);
        }
        let answer =
            admin(&server, "POST", &document.path, "application/json", document.object.to_string()).await;
        if !answer.status.is_success() {
            wrong.push(format!("POST {}: {}", document.path, answer.json()["message"]));
            continue;
        }
        let made = answer.json();
        let own = format!("{}/{}", document.path, made["metadata"]["name"].as_str().unwrap());
        for case in &document.frozen {
            let path = format!("{own}?dryRun=All");
            wrong.extend(expect(&server, "PUT", &path, &changed(&made, case), case).await);
        }
        for case in &document.status {
            let path = format!("{own}/status?dryRun=All");
            wrong.extend(expect(&server, "PUT", &path, &changed(&made, case), case).await);
        }
        // An accepted object, with its defaults, is accepted again.
        let stored = done(&server, "GET", &own, &Value::Null).await;
        done(&server, "PUT", &own, &stored).await;
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// An apply with duplicate elements is rejected.
#[tokio::test]
async fn an_apply_names_each_element_once() {
    let server = server().await;
    let path = "/apis/apps/v1/namespaces/default/deployments/p?fieldManager=m";
    let container = |name: &str| json!({"name": name, "image": "i"});
    for (second, code) in [("c", 500), ("d", 201)] {
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container("c"), container(second)]}});
        let spec = json!({"selector": {"matchLabels": {"a": "b"}}, "template": template});
        let body = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": spec}).to_string();
        let answer = admin(&server, "PATCH", path, "application/apply-patch+yaml", body).await;
        assert_eq!(answer.status.as_u16(), code, "{}", answer.json());
        if code == 500 {
            let want = r#"failed to create typed patch object (/; apps/v1, Kind=Deployment): .spec.template.spec.containers: duplicate entries for key [name="c"]"#;
            assert_eq!(answer.json()["message"], want);
        }
    }
}

/// An apply names no field that its type does not have, whatever `fieldValidation` says.
#[tokio::test]
async fn an_apply_names_fields_of_its_type_only() {
    let server = server().await;
    for directive in ["Strict", "Warn", "Ignore"] {
        let path = format!(
            "/api/v1/namespaces/default/pods/p?fieldManager=m&fieldValidation={directive}&dryRun=All"
        );
        let spec = json!({"containers": [{"name": "c", "image": "i", "imagee": "x"}], "nodename": "n"});
        let metadata = json!({"name": "p"});
        let body = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}).to_string();
        let answer = admin(&server, "PATCH", &path, "application/apply-patch+yaml", body).await;
        let want = "failed to create typed patch object (/p; /v1, Kind=Pod): errors:\n  .spec.containers[name=\"c\"].imagee: field not declared in schema\n  .spec.nodename: field not declared in schema";
        assert_eq!((answer.status.as_u16(), answer.json()["message"].as_str()), (500, Some(want)));
    }
}

/// A key that is twice in a configuration in YAML is refused, warned of or ignored.
#[tokio::test]
async fn a_key_that_is_twice_in_yaml_is_told() {
    let server = server().await;
    let body = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: c\ndata:\n  a: b\n  a: c\n";
    let twice = "yaml: unmarshal errors:\n  line 7: key \"a\" already set in map";
    for (method, path, media, strict) in [
        (
            "PATCH",
            "/c?fieldManager=m&",
            "application/apply-patch+yaml",
            format!("error strict decoding YAML: error converting YAML to JSON: {twice}"),
        ),
        (
            "POST",
            "?",
            "application/yaml",
            format!(
                "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: {twice}"
            ),
        ),
    ] {
        for (directive, code) in [("Strict", 400), ("Warn", 201), ("Ignore", 201)] {
            let path =
                format!("/api/v1/namespaces/default/configmaps{path}dryRun=All&fieldValidation={directive}");
            let answer = admin(&server, method, &path, media, body.to_owned()).await;
            assert_eq!(answer.status.as_u16(), code, "{method} {directive}");
            if code == 400 {
                assert_eq!(answer.json()["message"], strict.as_str());
            } else {
                assert_eq!(answer.json()["data"]["a"], "c", "the last one counts");
            }
        }
    }
}
