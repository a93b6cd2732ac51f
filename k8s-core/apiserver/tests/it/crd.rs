//! Life of CustomResourceDefinitions, as seen by clients.

use k8s_apiserver::ApiServer;
use serde_json::{Value, json};

use crate::support::{admin, done, server};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const THINGS: &str = "/apis/g.example.com/v1/namespaces/default/things";

fn definition(plural: &str, kind: &str, schema: &Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.g.example.com")},
        "spec": {"group": "g.example.com", "scope": "Namespaced", "names": {"plural": plural, "kind": kind, "shortNames": ["th"]},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
                "additionalPrinterColumns": [{"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"}],
                "selectableFields": [{"jsonPath": ".spec.color"}]}]},
    })
}

fn schema() -> Value {
    json!({"type": "object", "properties": {
        "spec": {"type": "object", "required": ["replicas"],
            "x-kubernetes-validations": [{"rule": "self.replicas <= self.limit", "message": "replicas must not be above limit"}],
            "properties": {
                "replicas": {"type": "integer", "minimum": 0, "maximum": 10},
                "limit": {"type": "integer", "default": 5},
                "color": {"type": "string", "pattern": "^[a-z]+$", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "color is immutable"}]},
            }},
        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}},
    }})
}

fn thing(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "g.example.com/v1", "kind": "Thing", "metadata": {"name": name}, "spec": spec})
}

async fn condition(server: &ApiServer, name: &str, kind: &str) -> (String, String) {
    let crd = done(server, "GET", &format!("{DEFINITIONS}/{name}"), &Value::Null).await;
    let all = crd["status"]["conditions"].as_array().unwrap().clone();
    let found = all.iter().find(|c| c["type"] == kind).cloned().unwrap_or_default();
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

/// Returns status code, and fields and messages of the causes, of a rejected write.
async fn refused(server: &ApiServer, method: &str, path: &str, body: &Value) -> (u16, Vec<String>) {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let answer = admin(server, method, path, kind, body.to_string()).await;
    let status = answer.json();
    let causes = status["details"]["causes"].as_array().cloned().unwrap_or_default();
    let text = |c: &Value, f: &str| c[f].as_str().unwrap_or_default().to_owned();
    let causes = causes.iter().map(|c| format!("{}: {}", text(c, "field"), text(c, "message"))).collect();
    (answer.status.as_u16(), causes)
}

#[tokio::test]
async fn objects_are_defaulted_checked_and_found() {
    let server = server().await;
    done(&server, "POST", DEFINITIONS, &definition("things", "Thing", &schema())).await;
    let made =
        done(&server, "POST", THINGS, &thing("a", json!({"replicas": 2, "color": "red", "junk": 1}))).await;
    assert_eq!(made["spec"], json!({"replicas": 2, "color": "red", "limit": 5}));
    done(&server, "POST", THINGS, &thing("b", json!({"replicas": 2, "color": "blue"}))).await;
    let (code, causes) =
        refused(&server, "POST", THINGS, &thing("c", json!({"replicas": 11, "color": "RED"}))).await;
    assert_eq!(code, 422);
    assert_eq!(causes[0], "spec.color: Invalid value: \"RED\": spec.color in body should match '^[a-z]+$'");
    assert_eq!(
        causes[1],
        "spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10"
    );
    assert!(causes[2].contains("some validation rules were not checked"), "{causes:?}");
    let (code, causes) = refused(&server, "POST", THINGS, &thing("c", json!({"replicas": 6}))).await;
    assert_eq!(
        (code, causes),
        (422, vec!["spec: Invalid value: \"object\": replicas must not be above limit".into()])
    );
    let (code, causes) = refused(&server, "POST", THINGS, &thing("c", json!({"replicas": "many"}))).await;
    assert_eq!(code, 422);
    assert_eq!(
        causes[0],
        "spec.replicas: Invalid value: \"string\": spec.replicas in body must be of type integer: \"string\""
    );
    let change = json!({"spec": {"color": "green"}});
    let (code, causes) = refused(&server, "PATCH", &format!("{THINGS}/a"), &change).await;
    assert_eq!(
        (code, causes),
        (422, vec!["spec.color: Invalid value: \"string\": color is immutable".into()])
    );
    let strict = format!("{THINGS}?fieldValidation=Strict");
    assert_eq!(
        refused(&server, "POST", &strict, &thing("c", json!({"replicas": 1, "junk": 1}))).await.0,
        400
    );
    // Subresources and selectors.
    let scaled =
        done(&server, "PATCH", &format!("{THINGS}/a/scale"), &json!({"spec": {"replicas": 4}})).await;
    assert_eq!((&scaled["kind"], &scaled["spec"]["replicas"]), (&json!("Scale"), &json!(4)));
    let status = done(
        &server,
        "PATCH",
        &format!("{THINGS}/a/status"),
        &json!({"status": {"replicas": 4}, "spec": {"replicas": 9}}),
    )
    .await;
    assert_eq!((&status["spec"]["replicas"], &status["status"]["replicas"]), (&json!(4), &json!(4)));
    let red = done(&server, "GET", &format!("{THINGS}?fieldSelector=spec.color%3Dred"), &Value::Null).await;
    assert_eq!(red["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn bad_definitions_are_refused_with_all_their_problems() {
    let server = server().await;
    let mut bad = definition(
        "things",
        "Thing",
        &json!({"type": "object", "properties": {
        "a": {"type": "string", "pattern": "("},
        "b": {"type": "integer", "x-kubernetes-validations": [{"rule": "self >"}, {"rule": "request.x > 1"}]}}}),
    );
    bad["spec"]["versions"][0]["name"] = "V1".into();
    let (code, causes) = refused(&server, "POST", DEFINITIONS, &bad).await;
    assert_eq!(code, 422);
    let at = "spec.versions[0].schema.openAPIV3Schema.properties";
    for want in [
        "spec.versions[0].name: Invalid value: \"V1\"".to_owned(),
        format!("{at}[a].pattern: Invalid value: \"(\""),
        format!("{at}[b].x-kubernetes-validations[0].rule: Invalid value: \"self >\": compilation failed"),
        format!(
            "{at}[b].x-kubernetes-validations[1].rule: Invalid value: \"request.x > 1\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'request' (in container '')"
        ),
    ] {
        assert!(causes.iter().any(|c| c.starts_with(&want)), "{want}\n{causes:#?}");
    }
}

/// Waits for something that happens by itself.
async fn until(happened: impl AsyncFn() -> bool) {
    for _ in 0..500 {
        if happened().await {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("it does not happen");
}

/// Deletes a definition and waits for its end, which comes after the response.
async fn ended(server: &ApiServer, name: &str) {
    let path = format!("{DEFINITIONS}/{name}");
    let last = done(server, "DELETE", &path, &Value::Null).await;
    assert!(last["metadata"]["deletionTimestamp"].is_string(), "{last}");
    until(async || admin(server, "GET", &path, "", "").await.status == 404).await;
}

#[tokio::test]
async fn a_name_belongs_to_the_first_that_has_it() {
    let server = server().await;
    let plain = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    done(&server, "POST", DEFINITIONS, &definition("things", "Thing", &plain)).await;
    assert_eq!(condition(&server, "things.g.example.com", "Established").await.0, "True");
    let mut second = definition("thingies", "Thing", &plain);
    second["spec"]["names"]["shortNames"] = json!([]);
    done(&server, "POST", DEFINITIONS, &second).await;
    let (status, reason) = condition(&server, "thingies.g.example.com", "NamesAccepted").await;
    assert_eq!((status.as_str(), reason.as_str()), ("False", "ListKindConflict"));
    assert_eq!(condition(&server, "thingies.g.example.com", "Established").await.0, "False");
    let served = admin(&server, "GET", "/apis/g.example.com/v1/thingies", "", "").await;
    assert_eq!(served.status, 404);
    ended(&server, "things.g.example.com").await;
    assert_eq!(condition(&server, "thingies.g.example.com", "Established").await.0, "True");
    done(&server, "GET", "/apis/g.example.com/v1/thingies", &Value::Null).await;
}

#[tokio::test]
async fn its_end_waits_for_the_finalizers_of_its_objects() {
    let server = server().await;
    done(&server, "POST", DEFINITIONS, &definition("things", "Thing", &schema())).await;
    let mut kept = thing("kept", json!({"replicas": 1}));
    kept["metadata"]["finalizers"] = json!(["example.com/keep"]);
    done(&server, "POST", THINGS, &kept).await;
    done(&server, "POST", THINGS, &thing("gone", json!({"replicas": 1}))).await;
    done(&server, "DELETE", &format!("{DEFINITIONS}/things.g.example.com"), &Value::Null).await;
    until(async || admin(&server, "GET", &format!("{THINGS}/gone"), "", "").await.status == 404).await;
    let left = done(&server, "GET", THINGS, &Value::Null).await;
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
    assert!(left["items"][0]["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(
        condition(&server, "things.g.example.com", "Terminating").await,
        ("True".into(), "InstanceDeletionInProgress".into())
    );
    assert_eq!(refused(&server, "POST", THINGS, &thing("new", json!({"replicas": 1}))).await.0, 405);
    done(&server, "PATCH", &format!("{THINGS}/kept"), &json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(
        admin(&server, "GET", &format!("{DEFINITIONS}/things.g.example.com"), "", "").await.status,
        404
    );
    assert_eq!(admin(&server, "GET", THINGS, "", "").await.status, 404);
}

#[tokio::test]
async fn definitions_of_2019_keep_what_they_do_not_describe() {
    let server = server().await;
    let old = json!({
        "apiVersion": "apiextensions.k8s.io/v1beta1", "kind": "CustomResourceDefinition", "metadata": {"name": "things.g.example.com"},
        "spec": {"group": "g.example.com", "version": "v1", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "additionalPrinterColumns": [{"name": "Color", "type": "string", "JSONPath": ".spec.color"}]},
    });
    let path = "/apis/apiextensions.k8s.io/v1beta1/customresourcedefinitions";
    let made = done(&server, "POST", path, &old).await;
    assert_eq!(made["spec"]["additionalPrinterColumns"][0]["JSONPath"], ".spec.color");
    let made =
        done(&server, "POST", THINGS, &thing("a", json!({"color": "red", "any": {"thing": [1]}}))).await;
    assert_eq!(made["spec"]["any"]["thing"], json!([1]));
    let today = done(&server, "GET", &format!("{DEFINITIONS}/things.g.example.com"), &Value::Null).await;
    assert_eq!(today["spec"]["versions"][0]["additionalPrinterColumns"][0]["jsonPath"], ".spec.color");
}

#[tokio::test]
async fn third_party_resources_work_as_in_2017() {
    let server = server().await;
    let tpr = json!({"apiVersion": "extensions/v1beta1", "kind": "ThirdPartyResource",
        "metadata": {"name": "rds-database.stable.example.com"}, "description": "databases", "versions": [{"name": "v1"}]});
    done(&server, "POST", "/apis/extensions/v1beta1/thirdpartyresources", &tpr).await;
    let path = "/apis/stable.example.com/v1/namespaces/default/rdsdatabases";
    let database = json!({"apiVersion": "stable.example.com/v1", "kind": "RdsDatabase", "metadata": {"name": "orders"}, "engine": "postgres"});
    let made = done(&server, "POST", path, &database).await;
    assert_eq!(made["engine"], "postgres");
    done(
        &server,
        "DELETE",
        "/apis/extensions/v1beta1/thirdpartyresources/rds-database.stable.example.com",
        &Value::Null,
    )
    .await;
    assert_eq!(admin(&server, "GET", path, "", "").await.status, 404);
    done(&server, "POST", "/apis/extensions/v1beta1/thirdpartyresources", &tpr).await;
    let list = done(&server, "GET", path, &Value::Null).await;
    assert_eq!(list["items"], json!([]), "its objects went with it");
}

/// After changes of the schema or the stored version, existing objects are served in the new form at their
/// old revision.
#[tokio::test]
async fn objects_follow_their_definition() {
    let server = server().await;
    let crd = format!("{DEFINITIONS}/things.g.example.com");
    let fields = |fields: Value| json!({"type": "object", "properties": {"spec": {"type": "object", "properties": fields}}});
    let string = json!({"type": "string"});
    let begin = fields(json!({"color": string, "old": string}));
    done(&server, "POST", DEFINITIONS, &definition("things", "Thing", &begin)).await;
    let made = done(&server, "POST", THINGS, &thing("a", json!({"color": "red", "old": "x"}))).await;

    let mut live = done(&server, "GET", &crd, &Value::Null).await;
    let now = fields(json!({"color": string, "size": {"type": "string", "default": "small"}}));
    live["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = now.clone();
    live["spec"]["versions"][0]["selectableFields"] = json!([{"jsonPath": ".spec.size"}]);
    done(&server, "PUT", &crd, &live).await;
    let shown = done(&server, "GET", &format!("{THINGS}/a"), &Value::Null).await;
    assert_eq!(shown["spec"], json!({"color": "red", "size": "small"}));
    assert_eq!(shown["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    let small =
        done(&server, "GET", &format!("{THINGS}?fieldSelector=spec.size%3Dsmall"), &Value::Null).await;
    assert_eq!(small["items"].as_array().unwrap().len(), 1);

    // Another version becomes the stored one.
    let mut live = done(&server, "GET", &crd, &Value::Null).await;
    let mut v2 = live["spec"]["versions"][0].clone();
    v2["name"] = "v2".into();
    v2["schema"]["openAPIV3Schema"] = fields(json!({"size": string}));
    live["spec"]["versions"][0]["storage"] = false.into();
    live["spec"]["versions"].as_array_mut().unwrap().push(v2);
    done(&server, "PUT", &crd, &live).await;
    let shown = done(&server, "GET", &format!("{THINGS}/a").replace("/v1/", "/v2/"), &Value::Null).await;
    assert_eq!(
        (&shown["apiVersion"], &shown["spec"]),
        (&json!("g.example.com/v2"), &json!({"size": "small"}))
    );
    let shown = done(&server, "GET", &format!("{THINGS}/a"), &Value::Null).await;
    assert_eq!(shown["apiVersion"], "g.example.com/v1");
    let status = done(&server, "GET", &crd, &Value::Null).await["status"].clone();
    assert_eq!(status["storedVersions"], json!(["v1", "v2"]));
    // A write based on the served form does not conflict.
    let patched = done(&server, "PATCH", &format!("{THINGS}/a"), &json!({"spec": {"size": "large"}})).await;
    assert_eq!(patched["spec"]["size"], "large");
}

/// A definition with a schema for `spec`.
fn with_spec(spec: Value) -> Value {
    definition("things", "Thing", &json!({"type": "object", "properties": {"spec": spec}}))
}

#[tokio::test]
async fn rules_are_checked_when_the_definition_is_made_and_run_at_every_level() {
    let server = server().await;
    let list = |kind: &str| {
        json!({"type": "array", "maxItems": 10, "x-kubernetes-list-type": kind, "x-kubernetes-list-map-keys": ["name"], "items": {"type": "object", "required": ["name"],
            "properties": {"name": {"type": "string", "maxLength": 20}, "size": {"type": "integer"}},
            "x-kubernetes-validations": [{"rule": "self.size >= oldSelf.size", "message": "may not shrink"}]}})
    };
    let color = json!({"type": "string"});
    let spec = |kind: &str, rule: &str| {
        json!({"type": "object", "properties": {"color": color, "replicas": {"type": "integer"}, "disks": list(kind), "labels": {"type": "object", "maxProperties": 5,
            "additionalProperties": {"type": "string", "maxLength": 10, "x-kubernetes-validations": [{"rule": "self == self.lowerAscii()", "messageExpression": "'write ' + self.lowerAscii()"}]}}},
            "x-kubernetes-validations": [{"rule": rule, "fieldPath": ".replicas", "reason": "FieldValueForbidden", "message": "too many"}]})
    };
    let at = "spec.versions[0].schema.openAPIV3Schema.properties[spec]";
    let refusals = [
        (
            "map",
            "self.count < 5",
            format!(
                "{at}.x-kubernetes-validations[0].rule: Invalid value: \"self.count < 5\": compilation failed: ERROR: <input>:1:5: undefined field 'count'"
            ),
        ),
        (
            "map",
            "self.replicas",
            format!(
                "{at}.x-kubernetes-validations[0].rule: Invalid value: \"self.replicas\": cel expression must evaluate to a bool"
            ),
        ),
        (
            "atomic",
            "true",
            format!(
                "{at}.properties[disks].items.x-kubernetes-validations[0].rule: Invalid value: \"self.size >= oldSelf.size\": oldSelf cannot be used on the uncorrelatable portion of the schema within {at}.properties[disks]"
            ),
        ),
        (
            "map",
            "self.color.matches(self.color)",
            format!(
                "{at}.x-kubernetes-validations[0].rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x"
            ),
        ),
    ];
    for (kind, rule, want) in refusals {
        let (code, causes) = refused(&server, "POST", DEFINITIONS, &with_spec(spec(kind, rule))).await;
        assert_eq!(code, 422);
        assert!(causes.iter().any(|c| c.starts_with(&want)), "{want}\n{causes:#?}");
    }
    done(&server, "POST", DEFINITIONS, &with_spec(spec("map", "self.replicas < 5"))).await;
    let body = |replicas: i64, size: i64, label: &str| json!({"replicas": replicas, "disks": [{"name": "a", "size": size}], "labels": {"k": label}});
    let (code, causes) = refused(&server, "POST", THINGS, &thing("t", body(9, 5, "BAD"))).await;
    assert_eq!(code, 422);
    assert_eq!(
        causes,
        ["spec.replicas: Forbidden: too many", "spec.labels[k]: Invalid value: \"string\": write bad"]
    );
    done(&server, "POST", THINGS, &thing("t", body(1, 5, "good"))).await;
    let change = json!({"spec": {"disks": [{"name": "new", "size": 0}, {"name": "a", "size": 4}]}});
    let (code, causes) = refused(&server, "PATCH", &format!("{THINGS}/t"), &change).await;
    assert_eq!(
        (code, causes),
        (422, vec!["spec.disks[1]: Invalid value: \"object\": may not shrink".into()])
    );
    let change = json!({"spec": {"disks": [{"name": "new", "size": 0}, {"name": "a", "size": 6}]}});
    done(&server, "PATCH", &format!("{THINGS}/t"), &change).await;
}

#[tokio::test]
async fn a_rule_that_grew_stricter_spares_what_is_unchanged() {
    let server = server().await;
    let spec = |rule: &str| {
        json!({"type": "object", "properties": {"color": {"type": "string", "maxLength": 20, "x-kubernetes-validations": [{"rule": rule}]},
            "n": {"type": "integer"}}})
    };
    done(&server, "POST", DEFINITIONS, &with_spec(spec("true"))).await;
    done(&server, "POST", THINGS, &thing("t", json!({"color": "red", "n": 1}))).await;
    let stricter = json!({"spec": {"versions": with_spec(spec("self == 'blue'"))["spec"]["versions"]}});
    done(&server, "PATCH", &format!("{DEFINITIONS}/things.g.example.com"), &stricter).await;
    done(&server, "PATCH", &format!("{THINGS}/t"), &json!({"spec": {"n": 2}})).await;
    let (code, causes) =
        refused(&server, "PATCH", &format!("{THINGS}/t"), &json!({"spec": {"color": "green"}})).await;
    assert_eq!(
        (code, causes),
        (422, vec!["spec.color: Invalid value: \"string\": failed rule: self == 'blue'".into()])
    );
}

/// Definitions of 2018: a schema without types, which is not structural, and preserved unknown fields.
#[tokio::test]
async fn old_definitions_may_have_loose_schemas() {
    let server = server().await;
    let old = DEFINITIONS.replace("/v1/", "/v1beta1/");
    let schema = json!({"properties": {"spec": {"properties": {"replicas": {"minimum": 1}}}}});
    let mut loose = json!({"metadata": {"name": "olds.g.example.com"}, "spec": {"group": "g.example.com", "version": "v1",
        "scope": "Namespaced", "names": {"plural": "olds", "kind": "Old"}, "validation": {"openAPIV3Schema": schema}}});
    done(&server, "POST", &old, &loose).await;
    assert_eq!(
        condition(&server, "olds.g.example.com", "NonStructuralSchema").await,
        ("True".into(), "Violations".into())
    );
    let made = done(&server, "GET", &format!("{DEFINITIONS}/olds.g.example.com"), &Value::Null).await;
    let conditions = made["status"]["conditions"].as_array().expect("a list");
    let message = conditions.iter().find(|c| c["type"] == "NonStructuralSchema").map(|c| &c["message"]);
    let at = "spec.versions[0].schema.openAPIV3Schema";
    let want = format!(
        "[spec.preserveUnknownFields: Invalid value: true: must be false, {at}.type: Required value: must not be empty at the root, \
         {at}.properties[spec].type: Required value: must not be empty for specified object fields, \
         {at}.properties[spec].properties[replicas].type: Required value: must not be empty for specified object fields]"
    );
    assert_eq!(message, Some(&json!(want)));
    assert_eq!(condition(&server, "olds.g.example.com", "Established").await.0, "True");
    let olds = THINGS.replace("things", "olds");
    let object = |replicas: i64| json!({"metadata": {"name": "a"}, "spec": {"replicas": replicas, "other": {"x": 1}}, "more": 2});
    let (code, causes) = refused(&server, "POST", &olds, &object(0)).await;
    assert_eq!(code, 422, "{causes:?}");
    let made = done(&server, "POST", &olds, &object(2)).await;
    assert_eq!((&made["spec"]["other"]["x"], &made["more"]), (&json!(1), &json!(2)));

    // A structural schema has no such condition; definitions that prune need one.
    done(&server, "POST", DEFINITIONS, &definition("things", "Thing", &self::schema())).await;
    assert_eq!(
        condition(&server, "things.g.example.com", "NonStructuralSchema").await,
        (String::new(), String::new())
    );
    loose["spec"]["preserveUnknownFields"] = false.into();
    assert_eq!(refused(&server, "POST", &old, &loose).await.0, 422);
    // Defaults require pruning.
    loose["spec"]["preserveUnknownFields"] = true.into();
    loose["spec"]["validation"]["openAPIV3Schema"]["properties"]["a"] =
        json!({"type": "string", "default": "x"});
    let why = "spec.preserveUnknownFields: Invalid value: true: must be false in order to use defaults in the schema";
    assert_eq!(refused(&server, "POST", &old, &loose).await, (422, vec![why.to_owned()]));

    // v1 permits neither creating nor changing to it; existing ones stay.
    let mut new = definition("others", "Other", &self::schema());
    new["spec"]["preserveUnknownFields"] = true.into();
    let why = "spec.preserveUnknownFields: Invalid value: true: cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
    assert!(refused(&server, "POST", DEFINITIONS, &new).await.1.contains(&why.to_owned()));
    let olds = format!("{DEFINITIONS}/olds.g.example.com");
    let mut current = done(&server, "GET", &olds, &Value::Null).await;
    assert!(current["spec"]["preserveUnknownFields"] == true, "{current}");
    current["metadata"]["labels"] = json!({"touched": "yes"});
    done(&server, "PUT", &olds, &current).await;
}
