//! Patches and applies with absent, stale or foreign fields.

use http::Request;
use k8s_apiserver::ApiServer;
use serde_json::{Value, json};

use crate::support::{Answer, admin, ask, done, server};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn json_patch(server: &ApiServer, path: &str, patch: Value) -> Answer {
    admin(server, "PATCH", path, "application/json-patch+json", patch.to_string()).await
}

async fn apply(server: &ApiServer, path: &str, manager: &str, body: &Value) -> Answer {
    let request = Request::builder().method("PATCH").uri(format!("{path}?fieldManager={manager}&force=true"));
    let request = request
        .header("authorization", "Bearer admin")
        .header("content-type", "application/apply-patch+yaml");
    ask(server, request.body(body.to_string().into_bytes()).unwrap()).await
}

#[tokio::test]
async fn a_finalizer_is_added_as_kube_rs_adds_it() {
    let server = server().await;
    done(&server, "POST", MAPS, &json!({"metadata": {"name": "a"}})).await;
    let path = format!("{MAPS}/a");
    let add = json!([{"op": "test", "path": "/metadata/finalizers", "value": null},
        {"op": "add", "path": "/metadata/finalizers", "value": ["a.b/c"]}]);
    let answer = json_patch(&server, &path, add.clone()).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["metadata"]["finalizers"]), (200, &json!(["a.b/c"])));
    assert_eq!(json_patch(&server, &path, add).await.status, 422, "now there is one");
    let replace = json!([{"op": "replace", "path": "/data", "value": {"k": "v"}}]);
    assert_eq!(json_patch(&server, &path, replace).await.json()["data"], json!({"k": "v"}));
    let unknown = json_patch(&server, &path, json!([{"op": "foo", "path": "/data"}])).await;
    assert_eq!(
        (unknown.status.as_u16(), unknown.json()["message"].as_str()),
        (422, Some("the server rejected our request due to an error in our request"))
    );
    assert_eq!(json_patch(&server, &path, json!([{"op": 5}])).await.status, 400);
    let many: Value = (0..10_001).map(|_| json!({"op": "test", "path": "/a"})).collect();
    assert_eq!(json_patch(&server, &path, many).await.status, 413);
}

#[tokio::test]
async fn an_apply_of_a_stale_version_is_a_conflict_even_forced() {
    let server = server().await;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let first = done(&server, "POST", leases, &json!({"metadata": {"name": "l"}})).await;
    let version = first["metadata"]["resourceVersion"].clone();
    let claim = |holder: &str| {
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l", "resourceVersion": version},
            "spec": {"holderIdentity": holder}})
    };
    let path = format!("{leases}/l");
    assert_eq!(apply(&server, &path, "m", &claim("alice")).await.status, 200);
    let second = apply(&server, &path, "m", &claim("bob")).await;
    assert_eq!((second.status.as_u16(), &second.json()["reason"]), (409, &json!("Conflict")));
    let held = done(&server, "GET", &path, &Value::Null).await;
    assert_eq!(held["spec"]["holderIdentity"], "alice");
    let other = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l", "uid": "x"}});
    assert_eq!(apply(&server, &path, "m", &other).await.status, 409, "another object's uid");
}

#[tokio::test]
async fn members_that_go_always_writes_are_there() {
    let server = server().await;
    for (path, object, members) in [
        ("/apis/coordination.k8s.io/v1/namespaces/default/leases", json!({}), vec!["/spec"]),
        ("/api/v1/namespaces/default/resourcequotas", json!({}), vec!["/spec", "/status"]),
        ("/api/v1/namespaces/default/limitranges", json!({}), vec!["/spec"]),
        (
            "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies",
            json!({}),
            vec!["/spec/podSelector"],
        ),
        (
            "/api/v1/nodes",
            json!({}),
            vec!["/spec", "/status/daemonEndpoints/kubeletEndpoint", "/status/nodeInfo"],
        ),
        (
            "/api/v1/namespaces/default/podtemplates",
            json!({"template": {"spec": {"containers": [{"name": "c", "image": "x"}]}}}),
            vec!["/template/metadata", "/template/spec/containers/0/resources"],
        ),
    ] {
        let mut object = object;
        object["metadata"] = json!({"name": "x"});
        let made = done(&server, "POST", path, &object).await;
        let read = done(&server, "GET", &format!("{path}/x"), &Value::Null).await;
        for member in members {
            assert!(made.pointer(member).is_some_and(Value::is_object), "{path} {member}: {made}");
            assert_eq!(made.pointer(member), read.pointer(member), "{path}");
        }
    }
}

fn managers(object: &Value) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    entries
        .iter()
        .map(|e| format!("{} {}", e["manager"].as_str().unwrap(), e["operation"].as_str().unwrap()))
        .collect()
}

#[tokio::test]
async fn field_ownership_moves_from_client_side_to_server_side_apply() {
    let server = server().await;
    let config = |data: Value, labels: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "labels": labels}, "data": data});
    let before = config(json!({"k1": "v1", "k2": "v2"}), json!({"l1": "a", "l2": "b"}));
    done(&server, "POST", &format!("{MAPS}?fieldManager=kubectl-client-side-apply"), &before).await;
    let path = format!("{MAPS}/m");
    let live = done(&server, "GET", &path, &Value::Null).await;
    let mut entry = live["metadata"]["managedFields"][0].clone();
    entry["manager"] = "kubectl".into();
    entry["operation"] = "Apply".into();
    // The migration request of kubectl.
    let patch = json!([{"op": "replace", "path": "/metadata/managedFields", "value": [entry]},
        {"op": "replace", "path": "/metadata/resourceVersion", "value": live["metadata"]["resourceVersion"]}]);
    let answer = json_patch(&server, &path, patch).await;
    assert_eq!((answer.status.as_u16(), managers(&answer.json())), (200, vec!["kubectl Apply".to_owned()]));
    let applied =
        apply(&server, &path, "kubectl", &config(json!({"k1": "v1"}), json!({"l1": "a"}))).await.json();
    assert_eq!(
        (&applied["data"], &applied["metadata"]["labels"]),
        (&json!({"k1": "v1"}), &json!({"l1": "a"}))
    );
    assert_eq!(managers(&applied), ["kubectl Apply"]);
    // Both ways to reset managed fields, by PUT and by patches.
    let mut put = applied.clone();
    put["metadata"]["managedFields"] = json!([]);
    assert_eq!(managers(&done(&server, "PUT", &path, &put).await), Vec::<String>::new());
    apply(&server, &path, "again", &config(json!({"k1": "v1"}), json!({}))).await;
    let reset = done(&server, "PATCH", &path, &json!({"metadata": {"managedFields": [{}]}})).await;
    assert_eq!(managers(&reset), Vec::<String>::new());
    apply(&server, &path, "again", &config(json!({"k1": "v1"}), json!({}))).await;
    let kept = done(&server, "PATCH", &path, &json!({"metadata": {"managedFields": null}})).await;
    assert_eq!(managers(&kept), ["again Apply"], "clients that do not know the field do not delete it");
}
