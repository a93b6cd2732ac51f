//! Admission webhooks, against real TLS servers.

use std::sync::{Arc, Mutex};

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_apiserver::ApiServer;
use serde_json::{Value, json};

use crate::{
    peer::{authority, serve_json},
    support::{Answer, admin, server},
};

/// The questions that a webhook was asked.
type Asked = Arc<Mutex<Vec<Value>>>;

/// A webhook at a port of this machine.
struct Hook {
    asked: Asked,
    client: Value,
    task: tokio::task::AbortHandle,
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hook {
    /// Serves a function from a request of a review to its response, without the uid.
    async fn serve(answer: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Self {
        let (ca, asked) = (authority(), Asked::default());
        let noted = asked.clone();
        let (port, task) = serve_json(&ca, "localhost", move |review| {
            let request = review["request"].clone();
            noted.lock().unwrap().push(request.clone());
            let mut response = answer(&request);
            response["uid"] = request["uid"].clone();
            json!({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response})
        })
        .await;
        let client =
            json!({"url": format!("https://localhost:{port}/check"), "caBundle": STANDARD.encode(ca.0)});
        Hook { asked, client, task }
    }

    fn asked(&self) -> Vec<Value> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// The webhook of a configuration, for these operations on these resources of the core group and others.
    fn webhook(&self, operations: &[&str], resources: &[&str], more: Value) -> Value {
        let mut hook = json!({
            "name": "hook.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": self.client,
            "rules": [{"operations": operations, "apiGroups": ["*"], "apiVersions": ["*"], "resources": resources}],
        });
        hook.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        hook
    }
}

/// A JSON patch as an answer.
fn patch(operations: Value) -> Value {
    json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(operations.to_string())})
}

async fn post(server: &ApiServer, path: &str, object: Value) -> Answer {
    admin(server, "POST", path, "application/json", object.to_string()).await
}

/// Creates a configuration of webhooks.
async fn configure(server: &ApiServer, kind: &str, name: &str, hooks: &[Value]) {
    let path = format!("/apis/admissionregistration.k8s.io/v1/{}webhookconfigurations", kind.to_lowercase());
    let object = json!({"metadata": {"name": name}, "webhooks": hooks});
    let made = post(server, &path, object).await;
    assert_eq!(made.status, 201, "{}", made.json());
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"a": "1"}})
}

#[tokio::test]
async fn a_validating_webhook_sees_each_operation_and_refuses() {
    let server = server().await;
    let hook = Hook::serve(|request| {
        let bad = request["object"]["data"]["bad"] == "yes" || request["oldObject"]["data"]["keep"] == "yes";
        json!({"allowed": !bad, "status": {"message": "it is bad", "code": 418}, "warnings": ["look out"],
            "auditAnnotations": {"seen": "yes"}})
    })
    .await;
    configure(&server, "Validating", "v", &[hook.webhook(&["*"], &["configmaps"], json!({}))]).await;

    let made = post(&server, &format!("{MAPS}?fieldManager=me"), map("a")).await;
    assert_eq!(
        (made.status.as_u16(), made.warnings.as_slice()),
        (201, &["299 - \"look out\"".to_owned()][..])
    );
    let asked = hook.asked();
    assert_eq!(asked.len(), 1);
    let request = &asked[0];
    assert_eq!(request["kind"], json!({"group": "", "version": "v1", "kind": "ConfigMap"}));
    assert_eq!(request["resource"], json!({"group": "", "version": "v1", "resource": "configmaps"}));
    assert_eq!((&request["name"], &request["namespace"]), (&json!("a"), &json!("default")));
    assert_eq!((&request["operation"], &request["dryRun"]), (&json!("CREATE"), &json!(false)));
    assert_eq!(request["userInfo"]["username"], "admin");
    assert_eq!(request["object"]["data"], json!({"a": "1"}));
    assert!(request["object"]["metadata"]["uid"].is_string() && request["oldObject"].is_null());
    assert_eq!(
        request["options"],
        json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1", "fieldManager": "me"})
    );

    let refused = post(&server, MAPS, json!({"metadata": {"name": "b"}, "data": {"bad": "yes"}})).await;
    assert_eq!((refused.status.as_u16(), refused.warnings.as_slice()), (418, made.warnings.as_slice()));
    assert_eq!(
        refused.json()["message"],
        "admission webhook \"hook.example.com\" denied the request: it is bad"
    );
    hook.asked();
    let keep = r#"{"data": {"keep": "yes"}}"#;
    let patched = admin(&server, "PATCH", &format!("{MAPS}/a"), "application/merge-patch+json", keep).await;
    assert_eq!(patched.status, 200);
    let asked = hook.asked();
    assert_eq!(asked[0]["operation"], "UPDATE");
    assert_eq!(
        (&asked[0]["object"]["data"]["keep"], &asked[0]["oldObject"]["data"]),
        (&json!("yes"), &json!({"a": "1"}))
    );

    // A deletion shows the object before, one of a collection each of its objects.
    let refused = admin(&server, "DELETE", &format!("{MAPS}/a"), "", "").await;
    assert_eq!(refused.status, 418);
    let asked = hook.asked();
    assert_eq!((&asked[0]["operation"], &asked[0]["object"]), (&json!("DELETE"), &Value::Null));
    assert_eq!(asked[0]["oldObject"]["metadata"]["name"], "a");
    assert_eq!(post(&server, MAPS, map("c")).await.status, 201);
    hook.asked();
    assert_eq!(admin(&server, "DELETE", MAPS, "", "").await.status, 418);
    let mut names: Vec<Value> = hook.asked().iter().map(|request| request["name"].clone()).collect();
    names.sort_by_key(ToString::to_string);
    assert_eq!(names, ["a", "c"]);
    assert_eq!(admin(&server, "GET", &format!("{MAPS}/a"), "", "").await.status, 200);
}

#[tokio::test]
async fn mutating_webhooks_change_objects_one_after_the_other() {
    let server = server().await;
    let first = Hook::serve(|request| {
        let operations = if request["object"]["data"]["first"].is_null() {
            json!([{"op": "add", "path": "/data/first", "value": "yes"},
                {"op": "replace", "path": "/metadata/uid", "value": "mine"},
                {"op": "add", "path": "/metadata/deletionTimestamp", "value": "2020-01-01T00:00:00Z"},
                {"op": "add", "path": "/metadata/deletionGracePeriodSeconds", "value": 5},
                {"op": "add", "path": "/nonsense", "value": 1}])
        } else {
            json!([])
        };
        patch(operations)
    })
    .await;
    let second = Hook::serve(|request| match request["object"]["data"]["first"].as_str() {
        Some(_) => patch(json!([{"op": "add", "path": "/data/second", "value": "yes"}])),
        None => json!({"allowed": true}),
    })
    .await;
    let rules = |hook: &Hook, more| hook.webhook(&["CREATE"], &["configmaps"], more);
    configure(&server, "Mutating", "a", &[rules(&first, json!({"reinvocationPolicy": "IfNeeded"}))]).await;
    configure(&server, "Mutating", "b", &[rules(&second, json!({}))]).await;
    let made = post(&server, MAPS, map("a")).await;
    assert_eq!(made.status, 201, "{}", made.json());
    let made = made.json();
    assert_eq!(made["data"], json!({"a": "1", "first": "yes", "second": "yes"}));
    assert_ne!(made["metadata"]["uid"], "mine", "the server's own fields are the server's");
    assert!(made.get("nonsense").is_none());
    assert!(made["metadata"].get("deletionTimestamp").is_none(), "a new object is not being deleted: {made}");
    assert!(made["metadata"].get("deletionGracePeriodSeconds").is_none());
    // The first one is called again because the second one changed the object; the second is not.
    let seen: Vec<Value> = first.asked().iter().map(|r| r["object"]["data"].clone()).collect();
    assert_eq!(seen, [json!({"a": "1"}), json!({"a": "1", "first": "yes", "second": "yes"})]);
    assert_eq!(second.asked().len(), 1);
}

#[tokio::test]
async fn a_patch_that_breaks_an_object_refuses_it() {
    let server = server().await;
    let hook = Hook::serve(|request| match request["name"].as_str() {
        Some("unapplied") => patch(json!([{"op": "remove", "path": "/data/none"}])),
        Some("replaced") => patch(json!([{"op": "replace", "path": "", "value": 1}])),
        Some("wrong") => patch(json!([{"op": "add", "path": "/data", "value": [1]}])),
        _ => patch(json!([{"op": "add", "path": "/metadata/labels", "value": {"a": "!"}}])),
    })
    .await;
    configure(&server, "Mutating", "m", &[hook.webhook(&["CREATE"], &["configmaps"], json!({}))]).await;
    for (name, code) in [("unapplied", 500), ("replaced", 500), ("wrong", 500), ("invalid", 422)] {
        let refused = post(&server, MAPS, map(name)).await;
        assert_eq!(refused.status, code, "{name}: {}", refused.json());
    }
}

#[tokio::test]
async fn a_webhook_that_cannot_be_asked_refuses_or_is_left_out() {
    let server = server().await;
    let dead = json!({"url": "https://127.0.0.1:1/x"});
    let hook = |policy: &str| {
        json!({"name": "dead.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"], "clientConfig": dead,
            "failurePolicy": policy, "rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]}]})
    };
    configure(&server, "Validating", "ignored", &[hook("Ignore")]).await;
    assert_eq!(post(&server, MAPS, map("a")).await.status, 201);
    configure(&server, "Validating", "fatal", &[hook("Fail")]).await;
    let refused = post(&server, MAPS, map("b")).await;
    assert_eq!(refused.status, 500);
    let message = refused.json()["message"].as_str().unwrap().to_owned();
    let begins = "Internal error occurred: failed calling webhook \"dead.example.com\": failed to call webhook: Post \"https://127.0.0.1:1/x?timeout=10s\": ";
    assert!(message.starts_with(begins), "{message}");
    // It can be removed all the same.
    let path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/fatal";
    assert_eq!(admin(&server, "DELETE", path, "", "").await.status, 200);
    assert_eq!(post(&server, MAPS, map("b")).await.status, 201);
    let metrics =
        String::from_utf8_lossy(&admin(&server, "GET", "/metrics", "", "").await.bytes).into_owned();
    let failed =
        "apiserver_admission_webhook_fail_open_count{name=\"dead.example.com\",type=\"validating\"} ";
    assert!(metrics.contains(failed), "{metrics}");
}

#[tokio::test(start_paused = true)]
async fn a_webhook_has_its_time() {
    // A listener that accepts and says nothing.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = server().await;
    let hook = json!({"name": "slow.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": format!("https://127.0.0.1:{port}")}, "timeoutSeconds": 2,
        "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]});
    configure(&server, "Mutating", "slow", &[hook]).await;
    let begun = tokio::time::Instant::now();
    let refused = post(&server, MAPS, map("a")).await;
    assert!(
        refused.json()["message"].as_str().unwrap().ends_with("context deadline exceeded"),
        "{}",
        refused.json()
    );
    assert_eq!(begun.elapsed().as_secs(), 2);
}

#[tokio::test]
async fn selectors_and_conditions_choose_the_requests() {
    let server = server().await;
    let hook = Hook::serve(|_| json!({"allowed": true})).await;
    let chosen = json!({
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}},
        "objectSelector": {"matchExpressions": [{"key": "skip", "operator": "DoesNotExist"}]},
        "matchConditions": [
            {"name": "no-system", "expression": "!request.userInfo.username.startsWith('system:')"},
            {"name": "may", "expression": "authorizer.group('').resource('secrets').namespace('default').check('get').allowed()"},
            {"name": "named", "expression": "object.metadata.name != 'unseen'"},
        ],
    });
    configure(&server, "Validating", "v", &[hook.webhook(&["CREATE"], &["configmaps"], chosen)]).await;
    let mut skipped = map("skipped");
    skipped["metadata"]["labels"] = json!({"skip": ""});
    let others = "/api/v1/namespaces/kube-system/configmaps";
    for (path, object) in [(MAPS, map("a")), (MAPS, skipped), (MAPS, map("unseen")), (others, map("b"))] {
        assert_eq!(post(&server, path, object).await.status, 201);
    }
    let names: Vec<Value> = hook.asked().iter().map(|request| request["name"].clone()).collect();
    assert_eq!(names, ["a"]);
}

#[tokio::test]
async fn a_dry_run_calls_only_webhooks_without_effects() {
    let server = server().await;
    let hook = Hook::serve(|_| json!({"allowed": true})).await;
    configure(&server, "Validating", "v", &[hook.webhook(&["CREATE"], &["configmaps"], json!({}))]).await;
    assert_eq!(post(&server, &format!("{MAPS}?dryRun=All"), map("a")).await.status, 201);
    let asked = hook.asked();
    assert_eq!((&asked[0]["dryRun"], &asked[0]["options"]["dryRun"]), (&json!(true), &json!(["All"])));
}

#[tokio::test]
async fn equivalent_versions_are_converted() {
    let server = server().await;
    let hook = Hook::serve(|request| {
        let name = &request["object"]["spec"]["template"]["spec"]["containers"][0]["name"];
        patch(json!([{"op": "add", "path": "/metadata/labels", "value": {"first": name}}]))
    })
    .await;
    let rule = json!({"rules": [{"operations": ["CREATE"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"]}]});
    configure(&server, "Mutating", "m", &[hook.webhook(&[], &[], rule.clone())]).await;
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"template": {"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let path = "/apis/extensions/v1beta1/namespaces/default/deployments";
    let made = post(&server, path, deployment.clone()).await;
    assert_eq!((made.status.as_u16(), &made.json()["metadata"]["labels"]), (201, &json!({"first": "c"})));
    assert_eq!(made.json()["apiVersion"], "extensions/v1beta1");
    let asked = hook.asked();
    assert_eq!(asked[0]["object"]["apiVersion"], "apps/v1");
    assert_eq!(asked[0]["kind"], json!({"group": "apps", "version": "v1", "kind": "Deployment"}));
    assert_eq!(
        asked[0]["requestKind"],
        json!({"group": "extensions", "version": "v1beta1", "kind": "Deployment"})
    );
    // Without them, only the version of the rule is meant.
    let path_of = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/m";
    let exact = json!({"webhooks": [{"name": "hook.example.com", "matchPolicy": "Exact"}]});
    let patched =
        admin(&server, "PATCH", path_of, "application/strategic-merge-patch+json", exact.to_string()).await;
    assert_eq!(patched.status, 200, "{}", patched.json());
    let mut other = deployment;
    other["metadata"]["name"] = "e".into();
    assert_eq!(post(&server, path, other).await.status, 201);
    assert!(hook.asked().is_empty());
}

#[tokio::test]
async fn subresources_and_connections_are_seen() {
    let server = server().await;
    let hook = Hook::serve(|request| json!({"allowed": request["kind"]["kind"] != "PodAttachOptions"})).await;
    configure(&server, "Validating", "v", &[hook.webhook(&["*"], &["*/*"], json!({}))]).await;
    let controller = json!({"metadata": {"name": "r"}, "spec": {"replicas": 1, "selector": {"a": "b"},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let path = "/api/v1/namespaces/default/replicationcontrollers";
    assert_eq!(post(&server, path, controller).await.status, 201);
    hook.asked();
    let scale = json!({"metadata": {"name": "r"}, "spec": {"replicas": 3}}).to_string();
    assert_eq!(
        admin(&server, "PUT", &format!("{path}/r/scale"), "application/json", scale).await.status,
        200
    );
    let asked = hook.asked();
    assert_eq!(asked[0]["kind"], json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}));
    assert_eq!(
        (&asked[0]["subResource"], &asked[0]["object"]["spec"]["replicas"]),
        (&json!("scale"), &json!(3))
    );
    let refused =
        post(&server, "/api/v1/namespaces/default/pods/p/attach?stdin=true&container=c", json!({})).await;
    assert_eq!(refused.status, 400, "{}", refused.json());
    let asked = hook.asked();
    assert_eq!((&asked[0]["operation"], &asked[0]["name"]), (&json!("CONNECT"), &json!("p")));
    assert_eq!(
        asked[0]["object"],
        json!({"kind": "PodAttachOptions", "apiVersion": "v1", "stdin": true, "container": "c"})
    );
}

#[tokio::test]
async fn a_patch_forges_no_requester() {
    let server = server().await;
    let hook = Hook::serve(|_| {
        patch(json!([{"op": "replace", "path": "/spec/username", "value": "system:admin"},
            {"op": "add", "path": "/spec/groups", "value": ["system:masters"]}]))
    })
    .await;
    let requests = hook.webhook(&["CREATE"], &["certificatesigningrequests"], json!({}));
    configure(&server, "Mutating", "m", &[requests]).await;
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let request = json!({"metadata": {"name": "r"}, "spec": {"request": STANDARD.encode(pem),
        "signerName": "example.com/any", "usages": ["client auth"]}});
    let made = post(&server, "/apis/certificates.k8s.io/v1/certificatesigningrequests", request).await;
    assert_eq!(
        (made.status.as_u16(), &made.json()["spec"]["username"]),
        (201, &json!("admin")),
        "{}",
        made.json()
    );
    assert_eq!(made.json()["spec"]["groups"], json!(["system:masters", "system:authenticated"]));
    assert_eq!(hook.asked().len(), 1);
}
