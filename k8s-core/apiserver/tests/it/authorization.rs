//! Authorizers in order, their reasons, and the reviews that tell them.

use k8s_apiserver::{
    ApiServer, User,
    auth::{AuthorizationMode, abac::Policies},
    stages::{Authorize, Decision},
};
use k8s_store::Store;
use serde_json::{Value, json};

use crate::support::{ask_as, done, grant, server};

const REVIEWS: &str = "/apis/authorization.k8s.io/v1";

async fn server_with(modes: impl IntoIterator<Item = AuthorizationMode>) -> ApiServer {
    ApiServer::builder(Store::memory()).authorization(modes).build().await.unwrap()
}

async fn review(server: &ApiServer, spec: Value) -> Value {
    let path = format!("{REVIEWS}/subjectaccessreviews");
    let answer = ask_as(server, &User::admin(), "POST", &path, &json!({"spec": spec})).await;
    assert_eq!(answer.status, 201, "{}", answer.json());
    answer.json()["status"].clone()
}

fn get_pods(namespace: &str) -> Value {
    json!({"verb": "get", "resource": "pods", "namespace": namespace})
}

#[tokio::test]
async fn a_review_tells_the_binding_that_allows() {
    let server = server().await;
    let read = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]);
    grant(&server, "jane", read).await;
    let base = "/apis/rbac.authorization.k8s.io/v1/namespaces/shop/rolebindings";
    done(&server, "POST", "/api/v1/namespaces", &json!({"metadata": {"name": "shop"}})).await;
    let bind = |name: &str, role: &str, subject: Value| {
        json!({"metadata": {"name": name}, "subjects": [subject],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}})
    };
    let group = json!({"kind": "Group", "name": "ops"});
    done(&server, "POST", base, &bind("ops", "test-jane", group)).await;
    let account = json!({"kind": "ServiceAccount", "name": "bot"});
    done(&server, "POST", base, &bind("bots", "test-jane", account)).await;
    done(&server, "POST", base, &bind("absent", "nowhere", json!({"kind": "User", "name": "eve"}))).await;
    for (spec, status) in [
        (
            json!({"user": "jane", "resourceAttributes": get_pods("")}),
            json!({"allowed": true, "reason": "RBAC: allowed by ClusterRoleBinding \"test-jane\" of ClusterRole \"test-jane\" to User \"jane\""}),
        ),
        (
            json!({"user": "joe", "groups": ["ops"], "resourceAttributes": get_pods("shop")}),
            json!({"allowed": true, "reason": "RBAC: allowed by RoleBinding \"ops/shop\" of ClusterRole \"test-jane\" to Group \"ops\""}),
        ),
        (
            json!({"user": "system:serviceaccount:shop:bot", "resourceAttributes": get_pods("shop")}),
            json!({"allowed": true, "reason": "RBAC: allowed by RoleBinding \"bots/shop\" of ClusterRole \"test-jane\" to ServiceAccount \"bot/shop\""}),
        ),
        (
            json!({"user": "joe", "groups": ["ops"], "resourceAttributes": get_pods("")}),
            json!({"allowed": false}),
        ),
        (
            json!({"user": "eve", "resourceAttributes": get_pods("shop")}),
            json!({"allowed": false, "reason": "RBAC: clusterrole.rbac.authorization.k8s.io \"nowhere\" not found"}),
        ),
        (json!({"groups": ["system:masters"], "resourceAttributes": get_pods("")}), json!({"allowed": true})),
        // A review adds nothing to the user that it asks about.
        (
            json!({"user": "joe", "nonResourceAttributes": {"verb": "get", "path": "/version"}}),
            json!({"allowed": false}),
        ),
    ] {
        assert_eq!(review(&server, spec.clone()).await, status, "{spec}");
    }
    let list = "/api/v1/namespaces/shop/pods";
    let refused = ask_as(&server, &User::new("eve", &[]), "GET", list, &Value::Null).await;
    assert_eq!(
        refused.json()["message"],
        "pods is forbidden: User \"eve\" cannot list resource \"pods\" in API group \"\" in the namespace \"shop\": RBAC: clusterrole.rbac.authorization.k8s.io \"nowhere\" not found"
    );
}

#[tokio::test]
async fn reviews_are_checked_as_upstream_does() {
    let server = server().await;
    let path = json!({"verb": "get", "path": "/x"});
    let wrong = async |kind: &str, body: Value, code: u16, message: &str| {
        let place = match kind {
            "localsubjectaccessreviews" => format!("{REVIEWS}/namespaces/default/{kind}"),
            _ => format!("{REVIEWS}/{kind}"),
        };
        let answer = ask_as(&server, &User::admin(), "POST", &place, &body).await;
        assert_eq!(answer.status, code, "{body}: {}", answer.json());
        let text = answer.json()["message"].as_str().unwrap().to_owned();
        assert!(text.contains(message), "{body}: {text}");
    };
    let pods = get_pods("default");
    let subject = "subjectaccessreviews";
    let both = json!({"spec": {"user": "a", "resourceAttributes": pods, "nonResourceAttributes": path}});
    wrong(subject, both, 422, "cannot be specified in combination with resourceAttributes").await;
    let one = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
    wrong(subject, json!({"spec": {"user": "a"}}), 422, one).await;
    wrong("selfsubjectaccessreviews", json!({"spec": {}}), 422, one).await;
    let nobody = json!({"spec": {"resourceAttributes": pods}});
    wrong(subject, nobody, 422, "at least one of user or group must be specified").await;
    let named = json!({"metadata": {"name": "x"}, "spec": {"user": "a", "resourceAttributes": pods}});
    wrong(subject, named, 422, "must be empty").await;
    let mut twice = json!({"spec": {"user": "a", "resourceAttributes": pods}});
    twice["spec"]["resourceAttributes"]["fieldSelector"] = json!({});
    wrong(subject, twice.clone(), 422, "requirements or rawSelector is required").await;
    twice["spec"]["resourceAttributes"]["fieldSelector"] =
        json!({"rawSelector": "a=b", "requirements": [{"key": "a", "operator": "In", "values": ["b"]}]});
    wrong(subject, twice, 422, "may not specified at the same time as requirements").await;
    let local = "localsubjectaccessreviews";
    let elsewhere = json!({"metadata": {"namespace": "default"}, "spec": {"user": "a", "resourceAttributes": get_pods("other")}});
    wrong(local, elsewhere, 422, "must match metadata.namespace").await;
    let of_path =
        json!({"metadata": {"namespace": "default"}, "spec": {"user": "a", "nonResourceAttributes": path}});
    wrong(local, of_path, 422, "disallowed on this kind of request").await;
    wrong("selfsubjectrulesreviews", json!({"spec": {}}), 400, "no namespace on request").await;
    let stray = json!({"metadata": {"namespace": "other"}, "spec": {"user": "a", "resourceAttributes": get_pods("other")}});
    wrong(local, stray, 400, "does not match the namespace").await;
    // Without a namespace it is of its request's.
    let right = json!({"spec": {"user": "a", "resourceAttributes": pods}});
    let place = format!("{REVIEWS}/namespaces/default/{local}");
    let answer = ask_as(&server, &User::admin(), "POST", &place, &right).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["metadata"]), (201, &json!({"namespace": "default"})));
}

#[tokio::test]
async fn selectors_count_and_those_that_are_not_understood_are_left_out() {
    let server = server_with([AuthorizationMode::Node, AuthorizationMode::Rbac]).await;
    let ask = async |selector: Value| {
        let spec = json!({"user": "system:node:a", "groups": ["system:nodes"],
            "resourceAttributes": {"verb": "list", "resource": "pods", "fieldSelector": selector}});
        review(&server, spec).await
    };
    let reason = "can only list/watch pods with spec.nodeName field selector";
    let own = json!({"key": "spec.nodeName", "operator": "In", "values": ["a"]});
    assert_eq!(ask(json!({"rawSelector": "spec.nodeName=a"})).await, json!({"allowed": true}));
    assert_eq!(ask(json!({"requirements": [own]})).await, json!({"allowed": true}));
    assert_eq!(
        ask(json!({"rawSelector": "spec.nodeName!=a"})).await,
        json!({"allowed": false, "reason": reason})
    );
    let odd = json!({"key": "spec.nodeName", "operator": "Odd", "values": ["a"]});
    assert_eq!(
        ask(json!({"requirements": [odd]})).await,
        json!({"allowed": false, "reason": reason, "evaluationError": "spec.resourceAttributes.fieldSelector ignored due to parse error"})
    );
    assert_eq!(
        ask(json!({"requirements": [own, odd]})).await,
        json!({"allowed": true, "evaluationError": "spec.resourceAttributes.fieldSelector partially ignored due to parse error"})
    );
}

#[tokio::test]
async fn rules_come_from_all_authorizers() {
    let line = r#"{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"user":"bob","namespace":"*","resource":"pods","readonly":true}}"#;
    let abac = || AuthorizationMode::Abac(Policies::parse(line).unwrap());
    let server = server_with([AuthorizationMode::Node, abac(), AuthorizationMode::Rbac]).await;
    let path = format!("{REVIEWS}/selfsubjectrulesreviews");
    let rules = async |user: &User| {
        let answer = ask_as(&server, user, "POST", &path, &json!({"spec": {"namespace": "shop"}})).await;
        assert_eq!(answer.status, 201, "{}", answer.json());
        answer.json()["status"].clone()
    };
    let bob = rules(&User::new("bob", &[])).await;
    assert_eq!(
        bob["resourceRules"][0],
        json!({"verbs": ["get", "list", "watch"], "apiGroups": [""], "resources": ["pods"]})
    );
    assert!(bob["resourceRules"].as_array().unwrap().len() > 1, "those of system:basic-user: {bob}");
    assert_eq!((&bob["incomplete"], bob.get("evaluationError")), (&json!(false), None));
    // A node may not ask itself; its rules are not listed.
    let node = json!({"spec": {"user": "system:node:a", "groups": ["system:nodes"], "resourceAttributes": {"verb": "create", "resource": "selfsubjectrulesreviews", "group": "authorization.k8s.io"}}});
    assert_eq!(review(&server, node["spec"].clone()).await["allowed"], false);
    let mut system = User::node("a");
    system.groups.push("system:masters".into());
    let system = rules(&system).await;
    assert_eq!(system["incomplete"], true);
    assert_eq!(system["evaluationError"], "node authorizer does not support user rule resolution");
}

/// Denies what mentions `no`, and has no opinion about the rest.
struct No;

#[async_trait::async_trait]
impl Authorize for No {
    async fn authorize(&self, _: &User, wanted: &k8s_apiserver::auth::rbac::Attributes<'_>) -> Decision {
        if wanted.name == "no" { Decision::Deny("it says no".into()) } else { Decision::NoOpinion }
    }
}

#[tokio::test]
async fn the_first_that_decides_counts_and_all_reasons_are_told() {
    let server =
        server_with([AuthorizationMode::AlwaysDeny, AuthorizationMode::Abac(Policies::default())]).await;
    let spec = json!({"user": "a", "resourceAttributes": get_pods("")});
    let denied = review(&server, spec).await;
    assert_eq!(denied, json!({"allowed": false, "reason": "Everything is forbidden.\nNo policy matched."}));
    let builder = ApiServer::builder(Store::memory()).authorize_with(No);
    let server = builder.authorization([AuthorizationMode::AlwaysAllow]).build().await.unwrap();
    let named = |name: &str| json!({"user": "a", "resourceAttributes": {"verb": "get", "resource": "pods", "name": name}});
    assert_eq!(review(&server, named("yes")).await, json!({"allowed": true}));
    assert_eq!(
        review(&server, named("no")).await,
        json!({"allowed": false, "denied": true, "reason": "it says no"})
    );
}

#[tokio::test]
async fn default_roles_are_reconciled_at_every_start() {
    let store = Store::memory();
    let start = async || ApiServer::builder(store.clone()).build().await.unwrap();
    let admin = User::admin();
    let base = "/apis/rbac.authorization.k8s.io/v1";
    let (node, view) =
        (format!("{base}/clusterroles/system:node"), format!("{base}/clusterroles/system:basic-user"));
    let binding = format!("{base}/clusterrolebindings/system:basic-user");
    let protected = format!("{base}/clusterroles/system:discovery");
    let get =
        async |server: &ApiServer, path: &str| ask_as(server, &admin, "GET", path, &Value::Null).await.json();
    start().await;
    let revision = store.revision();
    let server = start().await;
    assert_eq!(store.revision(), revision, "what is as it should be is not written");
    let before = (get(&server, &node).await, get(&server, &view).await);
    let own = json!({"verbs": ["get"], "apiGroups": ["example.com"], "resources": ["things"]});
    let change = async |path: &str, body: Value| {
        assert!(ask_as(&server, &admin, "PATCH", path, &body).await.status.is_success(), "{path}");
    };
    change(&node, json!({"rules": [own]})).await;
    let annotation = json!({"rbac.authorization.kubernetes.io/autoupdate": "false"});
    change(&protected, json!({"metadata": {"annotations": annotation}, "rules": []})).await;
    change(&binding, json!({"subjects": []})).await;
    let again = start().await;
    let role = get(&again, &node).await;
    let (rules, all) = (role["rules"].as_array().unwrap(), before.0["rules"].as_array().unwrap());
    assert_eq!((&rules[0], &rules[1..]), (&own, &all[..]));
    assert!(get(&again, &protected).await["rules"].as_array().is_none_or(Vec::is_empty));
    assert_eq!(get(&again, &binding).await["subjects"][0]["name"], "system:authenticated");
    assert_eq!(
        get(&again, &view).await["metadata"]["resourceVersion"],
        before.1["metadata"]["resourceVersion"]
    );
    // A binding to another role, under a default name.
    ask_as(&again, &admin, "DELETE", &binding, &Value::Null).await;
    let stray = json!({"metadata": {"name": "system:basic-user"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "eve"}]});
    assert_eq!(
        ask_as(&again, &admin, "POST", &format!("{base}/clusterrolebindings"), &stray).await.status,
        201
    );
    let third = start().await;
    let bound = get(&third, &binding).await;
    assert_eq!(
        (&bound["roleRef"]["name"], bound["subjects"].as_array().unwrap().len()),
        (&json!("system:basic-user"), 1)
    );
}
