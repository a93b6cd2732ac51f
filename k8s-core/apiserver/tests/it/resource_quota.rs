//! ResourceQuota as a client sees it, with the status that a controller writes.

use k8s_apiserver::{ApiServer, User, admission::Configuration};
use k8s_store::Store;
use serde_json::{Value, json};

use crate::support::ask_as;

async fn server() -> ApiServer {
    ApiServer::builder(Store::memory()).without_plugins(["ServiceAccount"]).build().await.unwrap()
}

async fn send(server: &ApiServer, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let path = format!("/api/v1/namespaces/default/{path}");
    let answer = ask_as(server, &User::admin(), method, &path, body).await;
    (answer.status.as_u16(), answer.json())
}

/// Creates a quota of which nothing is used.
async fn quota(server: &ApiServer, name: &str, hard: Value) {
    let made = json!({"metadata": {"name": name}, "spec": {"hard": hard}});
    assert_eq!(send(server, "POST", "resourcequotas", &made).await.0, 201);
    let used: Value = hard.as_object().unwrap().keys().map(|k| (k.clone(), Value::from("0"))).collect();
    let status = json!({"status": {"hard": hard, "used": used}});
    assert_eq!(send(server, "PATCH", &format!("resourcequotas/{name}/status"), &status).await.0, 200);
}

async fn used(server: &ApiServer, name: &str) -> Value {
    send(server, "GET", &format!("resourcequotas/{name}"), &Value::Null).await.1["status"]["used"].clone()
}

fn map(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

fn pod(name: &str, cpu: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]}})
}

#[tokio::test]
async fn space_around_a_quantity_hides_nothing() {
    let server = server().await;
    quota(&server, "q", json!({"pods": "5", "requests.cpu": "1"})).await;
    for cpu in [" 2", "2 ", "\t2\n", "\u{a0}2"] {
        let (code, status) = send(&server, "POST", "pods", &pod("big", cpu)).await;
        assert_eq!(code, 403, "{cpu:?}: {status}");
    }
    let (code, status) = send(&server, "POST", "pods", &pod("less", " -1")).await;
    assert_eq!(code, 422, "{status}");
    assert_eq!(send(&server, "POST", "pods", &pod("fits", " 1")).await.0, 201);
    assert_eq!(used(&server, "q").await, json!({"pods": "1", "requests.cpu": "1"}));
}

#[tokio::test]
async fn writes_are_charged_or_refused() {
    let server = server().await;
    quota(
        &server,
        "q",
        json!({"configmaps": "2", "count/configmaps": "2", "pods": "5", "requests.cpu": "1"}),
    )
    .await;
    assert_eq!(send(&server, "POST", "configmaps", &map("a")).await.0, 201);
    assert_eq!(send(&server, "POST", "configmaps?dryRun=All", &map("dry")).await.0, 201);
    assert_eq!(
        used(&server, "q").await,
        json!({"configmaps": "1", "count/configmaps": "1", "pods": "0", "requests.cpu": "0"})
    );
    let (code, status) = send(&server, "POST", "configmaps", &map("a")).await;
    assert_eq!((code, status["reason"].as_str()), (409, Some("AlreadyExists")));
    assert_eq!(send(&server, "POST", "configmaps", &map("b")).await.0, 201);
    // A full quota is told first, even of an object that there is.
    let (code, status) = send(&server, "POST", "configmaps", &map("a")).await;
    assert_eq!((code, status["reason"].as_str()), (403, Some("Forbidden")));
    let kept = send(&server, "GET", "resourcequotas/q", &Value::Null).await.1;
    let mut managers = kept["metadata"]["managedFields"].as_array().unwrap().iter();
    let charged = managers.rfind(|m| m["manager"] == "kube-apiserver" && m["subresource"] == "status");
    assert!(charged.is_some_and(|m| m["fieldsV1"]["f:status"]["f:used"].is_object()), "{kept:#}");
    for query in ["", "?dryRun=All"] {
        let (code, status) = send(&server, "POST", &format!("configmaps{query}"), &map("c")).await;
        let text = "configmaps \"c\" is forbidden: exceeded quota: q, requested: configmaps=1,count/configmaps=1, used: configmaps=2,count/configmaps=2, limited: configmaps=2,count/configmaps=2";
        assert_eq!((code, status["message"].as_str()), (403, Some(text)));
    }
    assert_eq!(send(&server, "POST", "pods", &pod("p", "600m")).await.0, 201);
    let (code, status) = send(&server, "POST", "pods", &pod("q", "401m")).await;
    let text = "pods \"q\" is forbidden: exceeded quota: q, requested: requests.cpu=401m, used: requests.cpu=600m, limited: requests.cpu=1";
    assert_eq!((code, status["message"].as_str()), (403, Some(text)));
    let bare = json!({"metadata": {"name": "bare"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let (_, status) = send(&server, "POST", "pods", &bare).await;
    assert_eq!(
        status["message"],
        "pods \"bare\" is forbidden: failed quota: q: must specify requests.cpu for: c"
    );
    assert_eq!(
        used(&server, "q").await,
        json!({"configmaps": "2", "count/configmaps": "2", "pods": "1", "requests.cpu": "600m"})
    );
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    assert_eq!(send(&server, "PATCH", "pods/p", &label).await.0, 200, "updates of pods are free");
    let other =
        ask_as(&server, &User::admin(), "POST", "/api/v1/namespaces/kube-public/configmaps", &map("c")).await;
    assert_eq!(other.status, 201);
}

#[tokio::test]
async fn several_quotas_are_charged_or_none() {
    let server = server().await;
    quota(&server, "a", json!({"configmaps": "9"})).await;
    quota(&server, "b", json!({"configmaps": "1"})).await;
    assert_eq!(send(&server, "POST", "configmaps", &map("a")).await.0, 201);
    let (code, status) = send(&server, "POST", "configmaps", &map("b")).await;
    assert_eq!(code, 403, "{status}");
    assert_eq!(used(&server, "a").await, json!({"configmaps": "1"}));
    assert_eq!(used(&server, "b").await, json!({"configmaps": "1"}));
}

#[tokio::test]
async fn a_quota_without_status_does_not_refuse_and_a_partial_one_does() {
    let server = server().await;
    let made = json!({"metadata": {"name": "q"}, "spec": {"hard": {"configmaps": "0"}}});
    assert_eq!(send(&server, "POST", "resourcequotas", &made).await.0, 201);
    assert_eq!(send(&server, "POST", "configmaps", &map("a")).await.0, 201, "as upstream");
    let status = json!({"status": {"hard": {"configmaps": "5", "secrets": "1"}, "used": {"secrets": "0"}}});
    assert_eq!(send(&server, "PATCH", "resourcequotas/q/status", &status).await.0, 200);
    let (code, status) = send(&server, "POST", "configmaps", &map("b")).await;
    assert_eq!(
        (code, status["message"].as_str()),
        (403, Some("configmaps \"b\" is forbidden: status unknown for quota: q, resources: configmaps"))
    );
    assert_eq!(send(&server, "POST", "secrets", &map("s")).await.0, 201);
}

#[tokio::test]
async fn updates_are_charged_their_difference() {
    let server = server().await;
    quota(&server, "q", json!({"services": "2", "services.nodeports": "2", "services.loadbalancers": "0", "requests.storage": "3Gi", "slow.storageclass.storage.k8s.io/requests.storage": "3Gi"})).await;
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    assert_eq!(send(&server, "POST", "services", &service).await.0, 201);
    let two = json!({"spec": {"type": "NodePort", "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]}});
    assert_eq!(send(&server, "PATCH", "services/s", &two).await.0, 200);
    assert_eq!(used(&server, "q").await["services.nodeports"], "2");
    let three = json!({"spec": {"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}, {"name": "c", "port": 82}]}});
    let (code, status) = send(&server, "PATCH", "services/s", &three).await;
    let text = "services \"s\" is forbidden: exceeded quota: q, requested: services.nodeports=1, used: services.nodeports=2, limited: services.nodeports=2";
    assert_eq!((code, status["message"].as_str()), (403, Some(text)));
    let balanced = json!({"spec": {"type": "LoadBalancer"}});
    assert_eq!(send(&server, "PATCH", "services/s", &balanced).await.0, 403);
    let claim = json!({"metadata": {"name": "c"}, "spec": {"storageClassName": "slow", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}}});
    assert_eq!(send(&server, "POST", "persistentvolumeclaims", &claim).await.0, 201);
    let used = used(&server, "q").await;
    assert_eq!(
        (&used["requests.storage"], &used["slow.storageclass.storage.k8s.io/requests.storage"]),
        (&json!("2Gi"), &json!("2Gi"))
    );
    let (code, _) = send(&server, "POST", "persistentvolumeclaims", &{
        let mut other = claim.clone();
        other["metadata"]["name"] = "d".into();
        other
    })
    .await;
    assert_eq!(code, 403);
}

#[tokio::test]
async fn custom_resources_are_counted_and_writes_that_fail_later_are_free() {
    let server = server().await;
    let definition = json!({"metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "widgets", "kind": "Widget"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    assert_eq!(ask_as(&server, &User::admin(), "POST", path, &definition).await.status, 201);
    quota(&server, "q", json!({"count/widgets.example.com": "1", "services": "3"})).await;
    let widget =
        |name: &str| json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}});
    let path = "/apis/example.com/v1/namespaces/default/widgets";
    let mut code = 404;
    for _ in 0..100 {
        code = ask_as(&server, &User::admin(), "POST", path, &widget("a")).await.status.as_u16();
        if code != 404 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(code, 201);
    let refused = ask_as(&server, &User::admin(), "POST", path, &widget("b")).await.json();
    let text = "widgets.example.com \"b\" is forbidden: exceeded quota: q, requested: count/widgets.example.com=1, used: count/widgets.example.com=1, limited: count/widgets.example.com=1";
    assert_eq!(refused["message"], text);
    // The address of the second Service is taken: it is refused after the charge, which is given back.
    let service = |name: &str, address: &Value| json!({"metadata": {"name": name}, "spec": {"clusterIP": address, "ports": [{"port": 80}]}});
    let (code, first) = send(&server, "POST", "services", &service("a", &Value::Null)).await;
    assert_eq!(code, 201, "{first}");
    let (code, status) = send(&server, "POST", "services", &service("b", &first["spec"]["clusterIP"])).await;
    assert_eq!(code, 422, "{status}");
    assert_eq!(used(&server, "q").await["services"], "1");
}

#[tokio::test]
async fn limited_resources_need_a_quota() {
    let text = "
apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: ResourceQuota
  configuration:
    apiVersion: apiserver.config.k8s.io/v1
    kind: ResourceQuotaConfiguration
    limitedResources:
    - resource: pods
      matchScopes: [{scopeName: PriorityClass, operator: In, values: [high]}]
    - resource: configmaps
      matchContains: [count/]
";
    let server = ApiServer::builder(Store::memory())
        .without_plugins(["ServiceAccount"])
        .plugin_configuration(Configuration::parse(text).unwrap())
        .build()
        .await
        .unwrap();
    let class = json!({"metadata": {"name": "high"}, "value": 5});
    let path = "/apis/scheduling.k8s.io/v1/priorityclasses";
    assert_eq!(ask_as(&server, &User::admin(), "POST", path, &class).await.status, 201);
    let (_, status) = send(&server, "POST", "configmaps", &map("a")).await;
    let text = "configmaps \"a\" is forbidden: insufficient quota to consume: count/configmaps";
    assert_eq!(status["message"], text);
    assert_eq!(send(&server, "POST", "secrets", &map("a")).await.0, 201);
    let mut high = pod("p", "1m");
    assert_eq!(send(&server, "POST", "pods?dryRun=All", &high).await.0, 201);
    high["spec"]["priorityClassName"] = "high".into();
    let (code, status) = send(&server, "POST", "pods", &high).await;
    let text =
        "pods \"p\" is forbidden: insufficient quota to match these scopes: [{PriorityClass In [high]}]";
    assert_eq!((code, status["message"].as_str()), (403, Some(text)));
    quota(&server, "maps", json!({"count/configmaps": "1"})).await;
    assert_eq!(send(&server, "POST", "configmaps", &map("a")).await.0, 201);
    let scoped = json!({"metadata": {"name": "high"}, "spec": {"hard": {"pods": "1"},
        "scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}});
    assert_eq!(send(&server, "POST", "resourcequotas", &scoped).await.0, 201);
    let status = json!({"status": {"hard": {"pods": "1"}, "used": {"pods": "0"}}});
    assert_eq!(send(&server, "PATCH", "resourcequotas/high/status", &status).await.0, 200);
    assert_eq!(send(&server, "POST", "pods", &high).await.0, 201);
    high["metadata"]["name"] = "q".into();
    assert_eq!(send(&server, "POST", "pods", &high).await.0, 403, "the quota is full");
}
