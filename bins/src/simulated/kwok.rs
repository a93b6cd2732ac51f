//! What kwok's Stages need in a cluster: their CustomResourceDefinition, and the permissions of whoever
//! applies them.
//!
//! Guarantee: a definition that is there, such as kwok's own, is left alone. Stages act as a service account
//! that may read and change pods and nodes, and write events: who may create Stages can do no more than that.

use k8s_apiserver::User;
use k8s_core::client::{Client, Error};
use serde_json::{Value, json};

use crate::apply::apply;

/// Service account in kube-system as which Stages act, as kwok's controller.
const ACCOUNT: &str = "kwok-controller";

/// Returns the user as which Stages act.
pub(super) fn user() -> User {
    User::service_account("kube-system", ACCOUNT)
}

/// Creates definition, role and binding.
///
/// # Errors
/// The API server's error.
pub(super) async fn install(admin: &Client) -> Result<(), Error> {
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let made = admin.bytes(http::Method::POST, path, "application/json", definition().to_string()).await;
    match made {
        Err(e) if !e.is_already_exists() => return Err(e),
        _ => {}
    }
    let (group, name) = ("rbac.authorization.k8s.io", format!("kwok:{ACCOUNT}"));
    let rule = |groups: &[&str], resources: &[&str], verbs: &[&str]| json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
    let role = json!({
        "apiVersion": format!("{group}/v1"), "kind": "ClusterRole", "metadata": {"name": name},
        "rules": [
            rule(&["kwok.x-k8s.io"], &["stages"], &["get", "list", "watch"]),
            rule(&["kwok.x-k8s.io"], &["stages/status"], &["patch"]),
            rule(&[""], &["pods", "nodes"], &["get", "patch", "delete"]),
            rule(&[""], &["pods/status", "nodes/status"], &["patch"]),
            rule(&["", "events.k8s.io"], &["events"], &["create", "patch", "update"]),
        ],
    });
    let binding = json!({
        "apiVersion": format!("{group}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": "kube-system"}],
    });
    for (plural, object) in [("clusterroles", role), ("clusterrolebindings", binding)] {
        apply(admin, &format!("/apis/{group}/v1/{plural}/{name}"), &object).await?;
    }
    Ok(())
}

/// The definition of Stages. What a Stage may say is checked when it is read: its condition `Accepted` tells.
fn definition() -> Value {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let condition = json!({
        "type": "object",
        "required": ["lastTransitionTime", "message", "reason", "status", "type"],
        "properties": {
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "message": {"type": "string"}, "reason": {"type": "string"},
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]}, "type": {"type": "string"},
        },
    });
    let reference = json!({
        "type": "object", "required": ["kind"],
        "properties": {"apiGroup": {"type": "string", "default": "v1"}, "kind": {"type": "string"}},
    });
    let spec = json!({
        "type": "object", "required": ["resourceRef"], "x-kubernetes-preserve-unknown-fields": true,
        "properties": {
            "resourceRef": reference,
            "selector": open,
            "weight": {"type": "integer", "minimum": 0, "default": 0},
            "delay": open,
            "next": open,
            "immediateNextStage": {"type": "boolean"},
            "steps": {"type": "array", "items": open},
        },
    });
    let column = |name: &str, path: &str| json!({"name": name, "type": "string", "jsonPath": path});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "stages.kwok.x-k8s.io"},
        "spec": {
            "group": "kwok.x-k8s.io", "scope": "Cluster",
            "names": {"plural": "stages", "singular": "stage", "kind": "Stage", "listKind": "StageList"},
            "versions": [{
                "name": "v1alpha1", "served": true, "storage": true, "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    column("Kind", ".spec.resourceRef.kind"),
                    column("Accepted", ".status.conditions[?(@.type==\"Accepted\")].status"),
                    json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}),
                ],
                "schema": {"openAPIV3Schema": {
                    "type": "object", "required": ["spec"],
                    "properties": {
                        "spec": spec,
                        "status": {"type": "object", "properties": {"conditions": {
                            "type": "array", "items": condition,
                            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
                        }}},
                    },
                }},
            }],
        },
    })
}
