//! LimitRanger as a client sees it.

use k8s_apiserver::{ApiServer, User};
use k8s_store::Store;
use serde_json::{Value, json};

use crate::support::ask_as;

async fn server(limits: Value) -> ApiServer {
    let server =
        ApiServer::builder(Store::memory()).without_plugins(["ServiceAccount"]).build().await.unwrap();
    let range = json!({"metadata": {"name": "limits"}, "spec": {"limits": limits}});
    assert_eq!(send(&server, "POST", "limitranges", &range).await.0, 201);
    server
}

async fn send(server: &ApiServer, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let path = format!("/api/v1/namespaces/default/{path}");
    let answer = ask_as(server, &User::admin(), method, &path, body).await;
    (answer.status.as_u16(), answer.json())
}

fn pod(resources: Value) -> Value {
    json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}})
}

#[tokio::test]
async fn pods_get_defaults_and_are_bounded() {
    let server = server(json!([
        {"type": "Container", "max": {"cpu": "2"}, "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}},
        {"type": "Pod", "maxLimitRequestRatio": {"cpu": "5"}},
    ]))
    .await;
    let (code, made) = send(&server, "POST", "pods", &pod(json!({}))).await;
    assert_eq!(code, 201, "{made}");
    let resources = &made["spec"]["containers"][0]["resources"];
    assert_eq!(*resources, json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}}));
    let note = "LimitRanger plugin set: cpu request for container c; cpu limit for container c";
    assert_eq!(made["metadata"]["annotations"]["kubernetes.io/limit-ranger"], note);
    assert_eq!(made["status"]["qosClass"], "Burstable");
    let refused = async |resources: Value| send(&server, "POST", "pods?dryRun=All", &pod(resources)).await;
    let (code, status) = refused(json!({"limits": {"cpu": "3"}, "requests": {"cpu": "10m"}})).await;
    assert_eq!(code, 403);
    assert_eq!(
        status["message"],
        "pods \"p\" is forbidden: [maximum cpu usage per Container is 2, but limit is 3, cpu max limit to request ratio per Pod is 5, but provided ratio is 300.000000]"
    );
    // Limits that are given make requests of the same amount, before the defaults.
    let (_, status) = refused(json!({"limits": {"cpu": "3"}})).await;
    assert_eq!(
        status["message"],
        "pods \"p\" is forbidden: maximum cpu usage per Container is 2, but limit is 3"
    );
    // Another namespace is free, and pods are not checked again.
    let free =
        ask_as(&server, &User::admin(), "POST", "/api/v1/namespaces/kube-system/pods", &pod(json!({}))).await;
    assert_eq!(free.json()["spec"]["containers"][0]["resources"], json!({}));
    let stricter =
        json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "1m"}, "min": {"cpu": "1m"}}]}});
    assert_eq!(send(&server, "PATCH", "limitranges/limits", &stricter).await.0, 200);
    assert_eq!(send(&server, "PATCH", "pods/p", &json!({"metadata": {"labels": {"a": "b"}}})).await.0, 200);
    assert_eq!(send(&server, "DELETE", "limitranges/limits", &Value::Null).await.0, 200);
    assert_eq!(send(&server, "DELETE", "pods/p", &Value::Null).await.0, 200);
    assert_eq!(refused(json!({"limits": {"cpu": "3"}})).await.0, 201);
}

#[tokio::test]
async fn claims_are_bounded_when_they_are_created_and_grow() {
    let server = server(
        json!([{"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}}]),
    )
    .await;
    let claim = |size: &str| json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}});
    let path = "persistentvolumeclaims";
    let (code, status) = send(&server, "POST", path, &claim("3Gi")).await;
    assert_eq!(
        (code, status["message"].as_str().unwrap()),
        (
            403,
            "persistentvolumeclaims \"c\" is forbidden: maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"
        )
    );
    let (_, status) = send(&server, "POST", path, &claim("1M")).await;
    assert_eq!(
        status["message"],
        "persistentvolumeclaims \"c\" is forbidden: minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1M"
    );
    assert_eq!(send(&server, "POST", path, &claim("1Gi")).await.0, 201);
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    assert_eq!(send(&server, "PATCH", "persistentvolumeclaims/c", &label).await.0, 200);
    let stricter =
        json!({"spec": {"limits": [{"type": "PersistentVolumeClaim", "min": {"storage": "2Gi"}}]}});
    assert_eq!(send(&server, "PATCH", "limitranges/limits", &stricter).await.0, 200);
    let other = json!({"metadata": {"labels": {"a": "c"}}});
    assert_eq!(send(&server, "PATCH", "persistentvolumeclaims/c", &other).await.0, 403);
    // A claim that is being deleted can lose its finalizers.
    let held = json!({"metadata": {"finalizers": ["example.com/hold"]}});
    send(&server, "DELETE", "limitranges/limits", &Value::Null).await;
    assert_eq!(send(&server, "PATCH", "persistentvolumeclaims/c", &held).await.0, 200);
    let range = json!({"metadata": {"name": "again"}, "spec": {"limits": stricter["spec"]["limits"]}});
    send(&server, "POST", "limitranges", &range).await;
    send(&server, "DELETE", "persistentvolumeclaims/c", &Value::Null).await;
    let released = json!({"metadata": {"finalizers": null}});
    assert_eq!(send(&server, "PATCH", "persistentvolumeclaims/c", &released).await.0, 200);
}
