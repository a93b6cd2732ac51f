//! Options in bodies: a dry run deletes and evicts nothing, in any encoding.

use http::Request;
use k8s_apiserver::{ApiServer, User};
use serde_json::{Value, json};

use crate::support::{admin, ask, ask_as, done, grant, server};

const BASE: &str = "/api/v1/namespaces/default";

async fn maps(server: &ApiServer) -> usize {
    let all = done(server, "GET", &format!("{BASE}/configmaps"), &Value::Null).await;
    all["items"].as_array().unwrap().len()
}

#[tokio::test]
async fn a_dry_run_in_the_body_deletes_nothing() {
    let server = server().await;
    for name in ["a", "b"] {
        done(&server, "POST", &format!("{BASE}/configmaps"), &json!({"metadata": {"name": name}})).await;
    }
    let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "dryRun": ["All"]});
    done(&server, "DELETE", &format!("{BASE}/configmaps/a"), &options).await;
    done(&server, "DELETE", &format!("{BASE}/configmaps"), &options).await;
    done(&server, "DELETE", &format!("{BASE}/configmaps?dryRun=All"), &Value::Null).await;
    // kind, apiVersion and dryRun in protobuf.
    let packed = b"k8s\0\x0a\x13\x0a\x02v1\x12\x0dDeleteOptions\x12\x05\x2a\x03All".to_vec();
    let media = "application/vnd.kubernetes.protobuf";
    let answer = admin(&server, "DELETE", &format!("{BASE}/configmaps/a"), media, packed).await;
    assert_eq!(answer.status, 200, "{}", answer.json());
    assert_eq!(maps(&server).await, 2);
    for wrong in [json!(["Some"]), json!(["All", "x"])] {
        let answer = admin(
            &server,
            "DELETE",
            &format!("{BASE}/configmaps/a"),
            "application/json",
            json!({"dryRun": wrong}).to_string(),
        )
        .await;
        assert_eq!((answer.status.as_u16(), &answer.json()["reason"]), (422, &json!("Invalid")), "{wrong}");
    }
    done(&server, "DELETE", &format!("{BASE}/configmaps"), &json!({"dryRun": []})).await;
    assert_eq!(maps(&server).await, 0);
}

#[tokio::test]
async fn a_dry_run_evicts_nothing_and_takes_no_disruption() {
    let server = server().await;
    done(&server, "POST", &format!("{BASE}/serviceaccounts"), &json!({"metadata": {"name": "default"}}))
        .await;
    let pod = json!({"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "x"}]}});
    done(&server, "POST", &format!("{BASE}/pods"), &pod).await;
    done(&server, "PATCH", &format!("{BASE}/pods/p/status"), &json!({"status": {"phase": "Running"}})).await;
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"metadata": {"name": "b"}, "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"a": "b"}}}});
    done(&server, "POST", budgets, &budget).await;
    let status = json!({"status": {"disruptionsAllowed": 1, "observedGeneration": 1}});
    done(&server, "PATCH", &format!("{budgets}/b/status"), &status).await;
    let evict = |options: Value| json!({"kind": "Eviction", "apiVersion": "policy/v1", "metadata": {"name": "p"}, "deleteOptions": options});
    let path = format!("{BASE}/pods/p/eviction");
    done(&server, "POST", &path, &evict(json!({"dryRun": ["All"]}))).await;
    done(&server, "POST", &format!("{path}?dryRun=All"), &evict(json!({}))).await;
    let deleted = |pod: &Value| pod.pointer("/metadata/deletionTimestamp").is_some();
    assert!(!deleted(&done(&server, "GET", &format!("{BASE}/pods/p"), &Value::Null).await));
    let left = done(&server, "GET", &format!("{budgets}/b"), &Value::Null).await;
    assert_eq!(left["status"]["disruptionsAllowed"], 1);
    let other = admin(&server, "POST", &path, "application/json", r#"{"metadata":{"name":"q"}}"#).await;
    assert_eq!(other.status, 400, "the name is another pod's");
    // Eviction {metadata {name p}, deleteOptions {gracePeriodSeconds 0}} in protobuf, as client-go sends it.
    let packed =
        b"k8s\0\x0a\x15\x0a\x09policy/v1\x12\x08Eviction\x12\x09\x0a\x03\x0a\x01p\x12\x02\x08\x00".to_vec();
    let answer = admin(&server, "POST", &path, "application/vnd.kubernetes.protobuf", packed).await;
    assert_eq!(answer.status, 201, "{}", answer.json());
    let gone = admin(&server, "GET", &format!("{BASE}/pods/p"), "", "").await;
    assert_eq!(gone.status, 404);
}

#[tokio::test]
async fn a_dry_run_finalizes_nothing() {
    let server = server().await;
    let namespaces = "/api/v1/namespaces";
    done(&server, "POST", namespaces, &json!({"metadata": {"name": "n"}})).await;
    done(&server, "DELETE", &format!("{namespaces}/n"), &Value::Null).await;
    let finalized = json!({"metadata": {"name": "n"}, "spec": {"finalizers": []}});
    done(&server, "PUT", &format!("{namespaces}/n/finalize?dryRun=All"), &finalized).await;
    done(&server, "GET", &format!("{namespaces}/n"), &Value::Null).await;
    done(&server, "PUT", &format!("{namespaces}/n/finalize"), &finalized).await;
    assert_eq!(admin(&server, "GET", &format!("{namespaces}/n"), "", "").await.status, 404);
}

#[tokio::test]
async fn who_may_read_one_object_may_list_and_watch_it() {
    let server = server().await;
    let rule = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch", "deletecollection"], "resourceNames": ["one"]}]);
    grant(&server, "reader", rule).await;
    for name in ["one", "two"] {
        done(&server, "POST", &format!("{BASE}/configmaps"), &json!({"metadata": {"name": name}})).await;
    }
    let user = User::new("reader", &[]);
    let status = async |method: &str, query: &str| {
        let path = format!("{BASE}/configmaps{query}");
        ask_as(&server, &user, method, &path, &Value::Null).await.status.as_u16()
    };
    let only = "?fieldSelector=metadata.name%3Done";
    assert_eq!(status("GET", only).await, 200);
    assert_eq!(status("GET", &format!("{only}&watch=1&timeoutSeconds=1")).await, 200);
    assert_eq!(status("GET", "?fieldSelector=metadata.name%3Dtwo").await, 403);
    assert_eq!(status("GET", "?fieldSelector=metadata.name!%3Done").await, 403);
    assert_eq!(status("GET", "").await, 403);
    assert_eq!(status("DELETE", only).await, 403, "as upstream: only reads look at the selector");
    let answer = ask_as(
        &server,
        &user,
        "GET",
        &format!("{BASE}/configmaps?fieldSelector=metadata.name%3Dtwo"),
        &Value::Null,
    )
    .await;
    assert!(answer.json()["message"].as_str().unwrap().starts_with("configmaps \"two\" is forbidden"));
    let request = Request::builder().uri("/api/v1/watch/namespaces/default/configmaps/one?timeoutSeconds=1");
    let answer = ask(&server.service_as(user.clone()), request.body(Vec::new()).unwrap()).await;
    assert_eq!(answer.status, 200);
    let other = format!("{BASE}/configmaps/one?watch=1&timeoutSeconds=1&fieldSelector=metadata.name%3Dtwo");
    assert_eq!(
        ask_as(&server, &user, "GET", &other, &Value::Null).await.status,
        400,
        "the name in the path is what was allowed"
    );
}
