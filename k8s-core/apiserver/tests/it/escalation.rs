//! Nobody grants rights that they do not hold, by whatever verb a role or binding is written.

use k8s_apiserver::{ApiServer, User};
use serde_json::{Value, json};

use crate::support::{Answer, admin, ask, ask_as, done, grant, server};

const BASE: &str = "/apis/rbac.authorization.k8s.io/v1";
const WRITES: [&str; 7] = ["get", "list", "watch", "create", "update", "patch", "delete"];

fn rbac_writer(more: Value) -> Value {
    let mut rules = vec![
        json!({"apiGroups": ["rbac.authorization.k8s.io"], "verbs": WRITES,
            "resources": ["clusterroles", "clusterrolebindings", "roles", "rolebindings"]}),
        json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}),
    ];
    rules.extend(more.as_array().unwrap().iter().cloned());
    rules.into()
}

async fn apply(server: &ApiServer, user: &User, path: &str, body: &Value) -> Answer {
    let request = http::Request::builder().method("PATCH").uri(format!("{path}?fieldManager=t&force=true"));
    let request = request.header("content-type", "application/apply-patch+yaml");
    ask(&server.service_as(user.clone()), request.body(body.to_string().into_bytes()).unwrap()).await
}

fn gathering(name: &str) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": [],
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"kubernetes.io/bootstrapping": "rbac-defaults"}}]}})
}

#[tokio::test]
async fn an_aggregation_rule_needs_every_right_by_every_verb() {
    let server = server().await;
    grant(&server, "mallory", rbac_writer(json!([]))).await;
    let mallory = User::new("mallory", &[]);
    let refused = |answer: Answer, how: &str| {
        assert_eq!(answer.status, 403, "{how}: {}", answer.json());
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        assert!(
            message.ends_with("is forbidden: must have cluster-admin privileges to use the aggregationRule"),
            "{how}: {message}"
        );
    };
    let collection = format!("{BASE}/clusterroles");
    refused(ask_as(&server, &mallory, "POST", &collection, &gathering("a")).await, "create");
    refused(
        ask_as(&server, &mallory, "POST", &format!("{collection}?dryRun=All"), &gathering("a")).await,
        "dry run",
    );
    refused(
        ask_as(&server, &mallory, "PUT", &format!("{collection}/a"), &gathering("a")).await,
        "create by PUT",
    );
    refused(apply(&server, &mallory, &format!("{collection}/a"), &gathering("a")).await, "create by apply");
    done(&server, "POST", &collection, &json!({"metadata": {"name": "plain"}, "rules": []})).await;
    let at = format!("{collection}/plain");
    refused(ask_as(&server, &mallory, "PUT", &at, &gathering("plain")).await, "update");
    refused(ask_as(&server, &mallory, "PATCH", &at, &gathering("plain")).await, "patch");
    refused(apply(&server, &mallory, &at, &gathering("plain")).await, "apply");
    // Taking the rule away would leave what it gathered.
    done(&server, "POST", &collection, &gathering("gathers")).await;
    let at = format!("{collection}/gathers");
    refused(ask_as(&server, &mallory, "PATCH", &at, &json!({"aggregationRule": null})).await, "removal");
}

#[tokio::test]
async fn who_may_escalate_or_has_every_right_may_aggregate() {
    let server = server().await;
    let escalate = json!([{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "verbs": ["escalate"]}]);
    grant(&server, "climber", rbac_writer(escalate)).await;
    let all = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}, {"nonResourceURLs": ["*"], "verbs": ["*"]}]);
    grant(&server, "boss", all).await;
    for name in ["climber", "boss"] {
        let answer =
            ask_as(&server, &User::new(name, &[]), "POST", &format!("{BASE}/clusterroles"), &gathering(name))
                .await;
        assert_eq!(answer.status, 201, "{name}: {}", answer.json());
    }
}

fn binding(name: &str, kind: &str, role: &str) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": if kind == "Role" { "RoleBinding" } else { "ClusterRoleBinding" },
        "metadata": {"name": name}, "subjects": [{"kind": "User", "name": "mallory"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role}})
}

#[tokio::test]
async fn a_binding_to_an_absent_role_is_for_those_who_may_bind_it() {
    let server = server().await;
    let bind = json!([{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles", "roles"], "verbs": ["bind"],
        "resourceNames": ["later"]}]);
    grant(&server, "mallory", rbac_writer(json!([]))).await;
    grant(&server, "binder", rbac_writer(bind)).await;
    let (mallory, binder) = (User::new("mallory", &[]), User::new("binder", &[]));
    let clusterwide = (format!("{BASE}/clusterrolebindings"), "ClusterRole");
    let namespaced = (format!("{BASE}/namespaces/default/rolebindings"), "Role");
    for (collection, kind) in [&clusterwide, &namespaced] {
        let later = binding("b", kind, "later");
        for (answer, how) in [
            (ask_as(&server, &mallory, "POST", collection, &later).await, "create"),
            (ask_as(&server, &mallory, "PUT", &format!("{collection}/b"), &later).await, "create by PUT"),
            (apply(&server, &mallory, &format!("{collection}/b"), &later).await, "create by apply"),
            (ask_as(&server, &mallory, "POST", &format!("{collection}?dryRun=All"), &later).await, "dry run"),
        ] {
            assert_eq!(answer.status, 404, "{kind} {how}: {}", answer.json());
        }
        assert_eq!(
            ask_as(&server, &binder, "POST", collection, &later).await.status,
            201,
            "{kind}: may bind"
        );
        let other = ask_as(&server, &binder, "POST", collection, &binding("c", kind, "another")).await;
        assert_eq!(other.status, 404, "{kind}: may bind another role only");
        done(&server, "POST", collection, &binding("by-admin", kind, "not-there-yet")).await;
    }
}

#[tokio::test]
async fn updates_that_only_touch_finalizers_or_owners_are_exempt() {
    let server = server().await;
    grant(&server, "collector", rbac_writer(json!([]))).await;
    let collector = User::new("collector", &[]);
    let secrets = json!({"metadata": {"name": "secrets", "finalizers": ["a.io/b"]},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list"]}]});
    done(&server, "POST", &format!("{BASE}/clusterroles"), &secrets).await;
    done(&server, "POST", &format!("{BASE}/clusterrolebindings"), &binding("b", "ClusterRole", "absent"))
        .await;
    let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u"});
    for at in [format!("{BASE}/clusterroles/secrets"), format!("{BASE}/clusterrolebindings/b")] {
        let patch = json!({"metadata": {"finalizers": ["c.io/d"], "ownerReferences": [owner]}});
        let answer = ask_as(&server, &collector, "PATCH", &at, &patch).await;
        assert_eq!(answer.status, 200, "{at}: {}", answer.json());
        let answer =
            ask_as(&server, &collector, "PATCH", &at, &json!({"metadata": {"labels": {"a": "b"}}})).await;
        assert!([403, 404].contains(&answer.status.as_u16()), "{at}: {}", answer.json());
    }
}

#[tokio::test]
async fn rights_that_are_missing_are_told_as_upstream_tells_them() {
    let server = server().await;
    grant(&server, "mallory", rbac_writer(json!([]))).await;
    let role = json!({"metadata": {"name": "r"}, "rules": [{"apiGroups": [""], "resources": ["pods", "secrets"], "verbs": ["get", "list"]}]});
    let answer =
        ask_as(&server, &User::new("mallory", &[]), "POST", &format!("{BASE}/clusterroles"), &role).await;
    assert_eq!(answer.status, 403);
    assert_eq!(
        answer.json()["message"],
        "clusterroles.rbac.authorization.k8s.io \"r\" is forbidden: user \"mallory\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"list\"]}\n{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"list\"]}"
    );
}

#[tokio::test]
async fn an_empty_resource_name_names_the_empty_name_only() {
    let server = server().await;
    let secrets = |names: Value| json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"], "resourceNames": names});
    grant(&server, "mallory", rbac_writer(json!([secrets(json!([""]))]))).await;
    let mallory = User::new("mallory", &[]);
    let collection = format!("{BASE}/clusterroles");
    let role = |name: &str, names: Value| json!({"metadata": {"name": name}, "rules": [secrets(names)]});
    let all = ask_as(&server, &mallory, "POST", &collection, &role("all", json!([]))).await;
    assert_eq!(all.status, 403, "{}", all.json());
    let same = ask_as(&server, &mallory, "POST", &collection, &role("same", json!([""]))).await;
    assert_eq!(same.status, 201, "{}", same.json());
    grant(&server, "other", rbac_writer(json!([]))).await;
    let other = ask_as(&server, &User::new("other", &[]), "POST", &collection, &role("x", json!([""]))).await;
    let message = other.json()["message"].as_str().unwrap().to_owned();
    assert!(message.ends_with("ResourceNames:[\"\"], Verbs:[\"get\"]}"), "{message}");
}

#[tokio::test]
async fn a_definition_with_the_name_of_a_built_in_kind_takes_nothing_with_it() {
    let server = server().await;
    let before = done(&server, "GET", &format!("{BASE}/clusterroles"), &Value::Null).await;
    let crd = json!({"metadata": {"name": "clusterroles.rbac.authorization.k8s.io", "annotations": {"api-approved.kubernetes.io": "unapproved"}},
        "spec": {"group": "rbac.authorization.k8s.io", "scope": "Cluster", "names": {"plural": "clusterroles", "kind": "Mine"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    let collection = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    done(&server, "POST", collection, &crd).await;
    done(&server, "DELETE", &format!("{collection}/clusterroles.rbac.authorization.k8s.io"), &Value::Null)
        .await;
    let old =
        json!({"metadata": {"name": "cluster-role.rbac.authorization.k8s.io"}, "versions": [{"name": "v1"}]});
    let collection = "/apis/extensions/v1beta1/thirdpartyresources";
    let refused = admin(&server, "POST", collection, "application/json", old.to_string()).await;
    assert_eq!(refused.status, 422, "{}", refused.json());
    let after = done(&server, "GET", &format!("{BASE}/clusterroles"), &Value::Null).await;
    assert_eq!(after["items"], before["items"]);
}
