//! Regressions: objects that were rejected although upstream accepts them.

use k8s_apiserver::User;
use serde_json::{Value, json};

use crate::support::{admin, ask_as, done, server};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn definition(plural: &str, spec: Value) -> Value {
    json!({"metadata": {"name": format!("{plural}.bugs.example.com")}, "spec": {"group": "bugs.example.com", "scope": "Namespaced",
        "names": {"plural": plural, "kind": "Q"}, "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}}]}})
}

#[tokio::test]
async fn properties_of_a_definition_may_have_the_names_of_quantities() {
    let server = server().await;
    let names = ["limits", "requests", "capacity", "allocatable", "hard", "used"];
    let properties: Value = names
        .iter()
        .map(|n| ((*n).to_owned(), json!({"type": "object", "additionalProperties": {"type": "string"}})))
        .collect::<serde_json::Map<_, _>>()
        .into();
    done(
        &server,
        "POST",
        DEFINITIONS,
        &definition("qs", json!({"type": "object", "properties": properties})),
    )
    .await;
    let object = json!({"metadata": {"name": "a"}, "apiVersion": "bugs.example.com/v1", "kind": "Q", "spec": {"limits": {"cpu": "lots"}}});
    done(&server, "POST", "/apis/bugs.example.com/v1/namespaces/default/qs", &object).await;
}

#[tokio::test]
async fn quantities_are_checked_where_the_type_has_them() {
    let server = server().await;
    let pod = |volume: Value, resources: Value| json!({"metadata": {"name": "p"}, "spec": {"volumes": [volume], "containers": [{"name": "c", "image": "x", "resources": resources}]}});
    for wrong in [
        pod(json!({"name": "v", "emptyDir": {"sizeLimit": "lots"}}), json!({})),
        pod(json!({"name": "v", "emptyDir": {}}), json!({"limits": {"cpu": "lots"}})),
        pod(json!({"name": "v", "emptyDir": {}}), json!({"limits": {"cpu": ""}})),
    ] {
        let answer =
            admin(&server, "POST", "/api/v1/namespaces/default/pods", "application/json", wrong.to_string())
                .await;
        assert_eq!(answer.status, 400, "{wrong}: {}", answer.json());
        assert!(
            answer.json()["message"]
                .as_str()
                .unwrap()
                .contains("quantities must match the regular expression")
        );
    }
    let map = json!({"metadata": {"name": "m", "annotations": {"limits": "x"}}, "data": {"limits": "lots"}});
    done(&server, "POST", "/api/v1/namespaces/default/configmaps", &map).await;
}

#[tokio::test]
async fn keys_of_a_declared_map_cost_a_rule_nothing() {
    let server = server().await;
    let labels = json!({"type": "object", "properties": {"labels": {"type": "object", "maxProperties": 4096,
        "additionalProperties": {"type": "string", "maxLength": 63},
        "x-kubernetes-validations": [{"rule": "self.all(key, !key.contains('*'))", "message": "no wildcard in a label key"}]}}});
    done(&server, "POST", DEFINITIONS, &definition("cks", labels)).await;
    let object = |key: &str| json!({"metadata": {"name": "a"}, "apiVersion": "bugs.example.com/v1", "kind": "Q", "spec": {"labels": {key: "v"}}});
    let path = "/apis/bugs.example.com/v1/namespaces/default/cks";
    let refused = admin(&server, "POST", path, "application/json", object("a*").to_string()).await;
    assert_eq!(refused.status, 422);
    done(&server, "POST", path, &object("a")).await;
    // Values as long as a request are still too expensive.
    let long = json!({"type": "object", "properties": {"labels": {"type": "object", "additionalProperties": {"type": "string"},
        "x-kubernetes-validations": [{"rule": "self.all(key, !self[key].contains('*'))"}]}}});
    let answer =
        admin(&server, "POST", DEFINITIONS, "application/json", definition("longs", long).to_string()).await;
    assert_eq!(answer.status, 422);
}

#[tokio::test]
async fn a_service_account_without_a_namespace_is_one_of_the_bindings_namespace() {
    let server = server().await;
    let base = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({"metadata": {"name": "pods"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]});
    done(&server, "POST", &format!("{base}/clusterroles"), &role).await;
    let binding = json!({"metadata": {"name": "local"}, "subjects": [{"kind": "ServiceAccount", "name": "bob"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "pods"}});
    done(&server, "POST", &format!("{base}/namespaces/default/rolebindings"), &binding).await;
    let bob = |namespace: &str| User::new(&format!("system:serviceaccount:{namespace}:bob"), &[]);
    let path = "/api/v1/namespaces/default/pods";
    assert_eq!(ask_as(&server, &bob("default"), "GET", path, &Value::Null).await.status, 200);
    assert_eq!(ask_as(&server, &bob("other"), "GET", path, &Value::Null).await.status, 403);
    let clusterwide = admin(
        &server,
        "POST",
        &format!("{base}/clusterrolebindings"),
        "application/json",
        binding.to_string(),
    )
    .await;
    assert_eq!(clusterwide.status, 422, "no namespace to take it from");
}

#[tokio::test]
async fn a_stateful_set_may_mount_its_claim_templates() {
    let server = server().await;
    let path = "/apis/apps/v1/namespaces/default/statefulsets";
    let set = |mount: &str| {
        json!({"metadata": {"name": format!("s-{mount}")}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "serviceName": "s",
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"hostname": "Set_by_the_controller",
                "volumes": [{"name": "logs", "emptyDir": {}}, {"name": "data", "emptyDir": {}}],
                "containers": [{"name": "c", "image": "x", "volumeMounts": [{"name": mount, "mountPath": "/m"}]}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]}})
    };
    for mount in ["data", "logs"] {
        let made = done(&server, "POST", path, &set(mount)).await;
        assert_eq!(
            made["spec"]["template"]["spec"]["volumes"].as_array().unwrap().len(),
            2,
            "what was sent is stored"
        );
    }
    let refused = admin(&server, "POST", path, "application/json", set("absent").to_string()).await;
    assert_eq!(refused.status, 422);
    assert_eq!(
        refused.json()["details"]["causes"][0]["field"],
        "spec.template.spec.containers[0].volumeMounts[0].name"
    );
}

#[tokio::test]
async fn status_writes_keep_the_metadata_that_upstream_keeps() {
    let server = server().await;
    done(
        &server,
        "POST",
        "/api/v1/namespaces/default/serviceaccounts",
        &json!({"metadata": {"name": "default"}}),
    )
    .await;
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
    let mut job = template.clone();
    job["spec"]["restartPolicy"] = "Never".into();
    let selected = json!({"selector": {"matchLabels": {"a": "b"}}, "template": template});
    let class = json!({"type": "Exempt", "exempt": {}});
    done(&server, "POST", DEFINITIONS, &{
        let mut with_status =
            definition("cs", json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
        with_status["spec"]["versions"][0]["subresources"] = json!({"status": {}});
        with_status["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"] =
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        with_status
    })
    .await;
    let all = ["labels", "annotations", "ownerReferences"];
    for (path, spec, kept) in [
        ("/apis/apps/v1/namespaces/default/replicasets", selected.clone(), &all[..]),
        ("/apis/apps/v1/namespaces/default/daemonsets", selected.clone(), &all),
        (
            "/apis/apps/v1/namespaces/default/deployments",
            selected.clone(),
            &["annotations", "ownerReferences"],
        ),
        ("/apis/batch/v1/namespaces/default/jobs", json!({"template": job}), &all),
        (
            "/apis/networking.k8s.io/v1/namespaces/default/ingresses",
            json!({"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}),
            &all,
        ),
        ("/apis/policy/v1/namespaces/default/poddisruptionbudgets", json!({"maxUnavailable": 1}), &all),
        ("/api/v1/namespaces/default/resourcequotas", json!({}), &all),
        ("/api/v1/namespaces", json!({}), &all),
        ("/api/v1/namespaces/default/pods", template["spec"].clone(), &["labels", "annotations"]),
        ("/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations", class, &[]),
        ("/apis/bugs.example.com/v1/namespaces/default/cs", json!({}), &[]),
    ] {
        let mut object = json!({"metadata": {"name": "exempt"}, "spec": spec});
        if path.contains("example") {
            object["apiVersion"] = "bugs.example.com/v1".into();
            object["kind"] = "Q".into();
        }
        let made = admin(&server, "POST", path, "application/json", object.to_string()).await;
        assert!([201, 409].contains(&made.status.as_u16()), "{path}: {}", made.json());
        let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u"});
        let patch = json!({"metadata": {"labels": {"x": "y"}, "annotations": {"x": "y"}, "ownerReferences": [owner]}});
        let done = done(&server, "PATCH", &format!("{path}/exempt/status"), &patch).await;
        for field in all {
            let is_there = match &done["metadata"][field] {
                Value::Object(map) => map.contains_key("x"),
                other => other.is_array(),
            };
            assert_eq!(is_there, kept.contains(&field), "{path} {field}: {}", done["metadata"]);
        }
    }
}
