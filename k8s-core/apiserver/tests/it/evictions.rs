//! Evictions: the budgets that refuse them, and the reasons that they give.

use k8s_apiserver::ApiServer;
use serde_json::{Value, json};

use crate::support::{Answer, admin, done, server};

const PODS: &str = "/api/v1/namespaces/default/pods";
const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";

/// A server whose pods have their service account.
async fn with_account() -> ApiServer {
    let server = server().await;
    let account = json!({"metadata": {"name": "default"}});
    done(&server, "POST", "/api/v1/namespaces/default/serviceaccounts", &account).await;
    server
}

/// Makes a pod on a node, in a phase, ready or not.
async fn pod(server: &ApiServer, name: &str, phase: &str, ready: bool) {
    let object = json!({"metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
    done(server, "POST", PODS, &object).await;
    let condition = json!({"type": "Ready", "status": if ready { "True" } else { "False" }});
    let status = json!({"status": {"phase": phase, "conditions": [condition]}});
    done(server, "PATCH", &format!("{PODS}/{name}/status"), &status).await;
}

/// Makes a budget with a status.
async fn budget(server: &ApiServer, name: &str, spec: Value, status: Value) {
    let mut object =
        json!({"metadata": {"name": name}, "spec": {"selector": {"matchLabels": {"app": "web"}}}});
    object["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    done(server, "POST", BUDGETS, &object).await;
    said(server, name, status).await;
}

async fn said(server: &ApiServer, name: &str, status: Value) {
    done(server, "PATCH", &format!("{BUDGETS}/{name}/status"), &json!({"status": status})).await;
}

async fn evict(server: &ApiServer, pod: &str, options: Value) -> Answer {
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}, "deleteOptions": options});
    admin(server, "POST", &format!("{PODS}/{pod}/eviction"), "application/json", eviction.to_string()).await
}

/// The answer's code, its cause and the seconds to wait.
async fn refused(server: &ApiServer, pod: &str) -> (u16, String, Value) {
    let answer = evict(server, pod, json!({})).await;
    let details = answer.json()["details"].clone();
    let cause = details["causes"][0]["message"].as_str().unwrap_or_default().to_owned();
    (answer.status.as_u16(), cause, details["retryAfterSeconds"].clone())
}

fn is(code: u16, cause: &str, wait: Value) -> (u16, String, Value) {
    (code, cause.to_owned(), wait)
}

#[tokio::test]
async fn a_budget_gives_its_disruptions_and_says_why_not() {
    let server = with_account().await;
    for name in ["a", "b", "c"] {
        pod(&server, name, "Running", true).await;
    }
    budget(&server, "web", json!({"minAvailable": 2}), json!({"observedGeneration": 0})).await;
    let working = "The disruption budget web is still being processed by the server.";
    assert_eq!(refused(&server, "a").await, is(429, working, json!(10)));
    let status = json!({"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 3, "desiredHealthy": 2, "expectedPods": 3});
    said(&server, "web", status).await;
    let dry = evict(&server, "a", json!({"dryRun": ["All"]})).await;
    assert_eq!(dry.status, 201, "{}", dry.json());
    let before = done(&server, "GET", &format!("{PODS}/a"), &Value::Null).await;
    assert_eq!(before["metadata"]["deletionTimestamp"], Value::Null);
    assert_eq!(evict(&server, "a", json!({})).await.status, 201);
    let leaving = done(&server, "GET", &format!("{PODS}/a"), &Value::Null).await;
    assert!(leaving["metadata"]["deletionTimestamp"].is_string());
    let conditions = leaving["status"]["conditions"].as_array().unwrap();
    let target = conditions.iter().find(|c| c["type"] == "DisruptionTarget").unwrap();
    assert_eq!(
        (&target["status"], &target["reason"], &target["message"]),
        (&json!("True"), &json!("EvictionByEvictionAPI"), &json!("Eviction API: evicting"))
    );
    let left = done(&server, "GET", &format!("{BUDGETS}/web"), &Value::Null).await;
    assert_eq!(left["status"]["disruptionsAllowed"], 0);
    assert!(left["status"]["disruptedPods"]["a"].is_string());
    // The eviction of a pod that is ending takes nothing.
    assert_eq!(evict(&server, "a", json!({})).await.status, 201);

    let none = "The disruption budget web does not allow evicting pods currently";
    assert_eq!(refused(&server, "b").await, is(429, none, Value::Null));
    said(&server, "web", json!({"currentHealthy": 2})).await;
    let short = "The disruption budget web needs 2 healthy pods and has 2 currently";
    assert_eq!(refused(&server, "b").await, is(429, short, Value::Null));
    let failed = json!({"type": "DisruptionAllowed", "status": "False", "reason": "SyncFailed", "message": "no luck",
        "lastTransitionTime": "2026-11-28T12:00:00Z"});
    said(&server, "web", json!({"conditions": [failed]})).await;
    let sync = format!("{none} because it failed sync: no luck");
    assert_eq!(refused(&server, "b").await, is(429, &sync, Value::Null));

    // A second budget: neither decides.
    budget(&server, "other", json!({"minAvailable": 1}), json!({})).await;
    let answer = evict(&server, "b", json!({})).await;
    assert_eq!(answer.status, 500);
    assert!(answer.json()["message"].as_str().unwrap().contains("more than one PodDisruptionBudget"));
}

#[tokio::test]
async fn pods_that_are_not_ready_go_by_the_policy() {
    let server = with_account().await;
    pod(&server, "ready", "Running", true).await;
    for name in ["ill", "ailing", "sick"] {
        pod(&server, name, "Running", false).await;
    }
    pod(&server, "waiting", "Pending", false).await;
    pod(&server, "ended", "Failed", false).await;
    let status =
        json!({"observedGeneration": 1, "disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 2});
    budget(&server, "web", json!({"minAvailable": 2}), status).await;
    for name in ["waiting", "ended"] {
        assert_eq!(evict(&server, name, json!({})).await.status, 201, "{name}");
    }
    assert_eq!(refused(&server, "ill").await.0, 429, "too few are healthy");
    said(&server, "web", json!({"currentHealthy": 2})).await;
    assert_eq!(evict(&server, "ill", json!({})).await.status, 201);
    assert_eq!(refused(&server, "ready").await.0, 429);
    said(&server, "web", json!({"currentHealthy": 1})).await;
    let always = json!({"spec": {"unhealthyPodEvictionPolicy": "AlwaysAllow"}});
    done(&server, "PATCH", &format!("{BUDGETS}/web"), &always).await;
    assert_eq!(evict(&server, "ailing", json!({})).await.status, 201);
    let allowed = done(&server, "GET", &format!("{BUDGETS}/web"), &Value::Null).await;
    assert_eq!(allowed["status"]["disruptedPods"], Value::Null, "no disruption was taken");

    // Preconditions are kept. Without one about the revision a conflict is one of the budget, as upstream.
    let wrong = evict(&server, "sick", json!({"preconditions": {"uid": "other"}})).await;
    assert_eq!(wrong.status, 429, "{}", wrong.json());
    let stale = evict(&server, "sick", json!({"preconditions": {"resourceVersion": "1"}})).await;
    assert_eq!(stale.status, 409, "{}", stale.json());
    let sick = done(&server, "GET", &format!("{PODS}/sick"), &Value::Null).await;
    let now = json!({"preconditions": {"resourceVersion": sick["metadata"]["resourceVersion"], "uid": sick["metadata"]["uid"]}});
    assert_eq!(evict(&server, "sick", now).await.status, 201);
}
