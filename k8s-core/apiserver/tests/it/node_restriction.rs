//! Writes of kubelets, with the Node authorizer in front of NodeRestriction.

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_apiserver::{ApiServer, User, auth::AuthorizationMode};
use k8s_store::Store;
use serde_json::{Value, json};

use crate::support::{Answer, ask_as};

/// Creates a server with the nodes `a` and `b`, a pod on each, and their service account.
async fn server() -> ApiServer {
    let modes = [AuthorizationMode::Node, AuthorizationMode::Rbac];
    let server = ApiServer::builder(Store::memory()).authorization(modes).build().await.unwrap();
    let admin = async |path: &str, body: Value| {
        let answer = ask_as(&server, &User::admin(), "POST", path, &body).await;
        assert_eq!(answer.status, 201, "{}", answer.json());
    };
    admin("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    admin("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "other"}})).await;
    for node in ["a", "b"] {
        let labels = json!({"node-restriction.kubernetes.io/tier": "low"});
        admin("/api/v1/nodes", json!({"metadata": {"name": node, "labels": labels}})).await;
        let sources = json!([{"serviceAccountToken": {"path": "t", "audience": "vault"}}]);
        let spec = json!({"nodeName": node, "containers": [{"name": "c", "image": "i"}], "volumes": [{"name": "t", "projected": {"sources": sources}}]});
        admin(
            "/api/v1/namespaces/default/pods",
            json!({"metadata": {"name": format!("on-{node}")}, "spec": spec}),
        )
        .await;
    }
    server
}

async fn as_node(server: &ApiServer, method: &str, path: &str, body: &Value) -> Answer {
    ask_as(server, &User::node("a"), method, path, body).await
}

/// Sends requests of the node `a`: method, path, body, and the reason of the refusal (empty: none).
async fn check(server: &ApiServer, rows: &[(&str, &str, Value, &str)]) {
    for (method, path, body, why) in rows {
        let answer = as_node(server, method, path, body).await;
        if why.is_empty() {
            assert!(answer.status.is_success(), "{method} {path} {body}: {}", answer.json());
            continue;
        }
        let told = answer.json()["message"].as_str().unwrap_or_default().to_owned();
        assert!(
            answer.status == 403 && told.ends_with(why),
            "{method} {path} {body}: {} {told}",
            answer.status
        );
    }
}

async fn uid(server: &ApiServer, path: &str) -> String {
    let answer = ask_as(server, &User::admin(), "GET", path, &Value::Null).await;
    answer.json()["metadata"]["uid"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_node_writes_its_own_objects_only() {
    let server = server().await;
    let lease = |name: &str| json!({"metadata": {"name": name}, "spec": {"holderIdentity": name}});
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let drivers = |name: &str| json!({"metadata": {"name": name}, "spec": {"drivers": []}});
    let csi = "/apis/storage.k8s.io/v1/csinodes";
    let phase = json!({"status": {"phase": "Running"}});
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let taints = json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
    let label = |key: &str| json!({"metadata": {"labels": {key: "v"}}});
    let mut owners = json!({"metadata": {}});
    owners["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "1"}]);
    check(
        &server,
        &[
            ("PATCH", "/api/v1/nodes/a/status", ready.clone(), ""),
            ("PATCH", "/api/v1/nodes/b/status", ready, "node \"a\" is not allowed to modify node \"b\""),
            ("PATCH", "/api/v1/nodes/a", taints, "node \"a\" is not allowed to modify taints"),
            ("PATCH", "/api/v1/nodes/a", owners, "node \"a\" is not allowed to modify ownerReferences"),
            ("PATCH", "/api/v1/nodes/a", label("example.com/rack"), ""),
            ("PATCH", "/api/v1/nodes/a", label("kubernetes.io/hostname"), ""),
            ("PATCH", "/api/v1/nodes/a", label("x.node.kubernetes.io/y"), ""),
            (
                "PATCH",
                "/api/v1/nodes/a",
                label("xnode.kubernetes.io/y"),
                "is not allowed to modify labels: xnode.kubernetes.io/y",
            ),
            (
                "PATCH",
                "/api/v1/nodes/a",
                label("node-role.kubernetes.io/control-plane"),
                "is not allowed to modify labels: node-role.kubernetes.io/control-plane",
            ),
            (
                "PATCH",
                "/api/v1/nodes/a",
                label("node-restriction.kubernetes.io/tier"),
                "is not allowed to modify labels: node-restriction.kubernetes.io/tier",
            ),
            (
                "PATCH",
                "/api/v1/nodes/a",
                json!({"metadata": {"labels": {"node-restriction.kubernetes.io/tier": null}}}),
                "is not allowed to modify labels: node-restriction.kubernetes.io/tier",
            ),
            (
                "POST",
                "/api/v1/nodes",
                json!({"metadata": {"name": "c"}}),
                "node \"a\" is not allowed to modify node \"c\"",
            ),
            ("POST", leases, lease("a"), ""),
            (
                "POST",
                leases,
                lease("b"),
                "can only access node lease with the same name as the requesting node",
            ),
            ("POST", csi, drivers("a"), ""),
            ("POST", csi, drivers("b"), "can only access CSINode with the same name as the requesting node"),
            ("PATCH", "/api/v1/namespaces/default/pods/on-a/status", phase.clone(), ""),
            (
                "PATCH",
                "/api/v1/namespaces/default/pods/on-b/status",
                phase,
                "node \"a\" can only update pod status for pods with spec.nodeName set to itself",
            ),
            (
                "PATCH",
                "/api/v1/namespaces/default/pods/on-a/status",
                label("x"),
                "node \"a\" cannot update labels through pod status",
            ),
            ("PATCH", "/api/v1/namespaces/default/pods/on-a", label("x"), "in the namespace \"default\""),
            (
                "DELETE",
                "/api/v1/namespaces/default/pods/on-b",
                Value::Null,
                "node \"a\" can only delete pods with spec.nodeName set to itself",
            ),
            (
                "POST",
                "/api/v1/namespaces/default/pods/on-b/eviction",
                json!({"metadata": {"name": "on-b"}}),
                "node a can only evict pods with spec.nodeName set to itself",
            ),
            (
                "POST",
                "/api/v1/namespaces/default/pods/on-a/eviction",
                json!({"metadata": {"name": "on-a"}}),
                "",
            ),
            ("DELETE", "/api/v1/namespaces/default/pods", Value::Null, "in the namespace \"default\""),
            ("DELETE", "/api/v1/nodes/a", Value::Null, "at the cluster scope"),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_node_that_registers_itself_sets_only_its_own_labels() {
    let server = server().await;
    let registers = async |label: &str| {
        let node = json!({"metadata": {"name": "new", "labels": {label: "v"}}, "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
        ask_as(&server, &User::node("new"), "POST", "/api/v1/nodes", &node).await
    };
    let refused = registers("node-restriction.kubernetes.io/x").await;
    let why = "node \"new\" is not allowed to set the following labels: node-restriction.kubernetes.io/x";
    assert!(refused.json()["message"].as_str().unwrap().ends_with(why), "{}", refused.json());
    assert_eq!(registers("kubernetes.io/arch").await.status, 201);
}

#[tokio::test]
async fn mirror_pods_refer_to_nothing_but_their_node() {
    let server = server().await;
    let node = uid(&server, "/api/v1/nodes/a").await;
    let pod = |change: &dyn Fn(&mut Value)| {
        let mut pod = json!({"metadata": {"name": "mirror", "annotations": {"kubernetes.io/config.mirror": "x"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "a", "uid": node, "controller": true}]},
            "spec": {"nodeName": "a", "containers": [{"name": "c", "image": "i"}]}});
        change(&mut pod);
        pod
    };
    let owner =
        |field: &str, value: Value| pod(&|pod| pod["metadata"]["ownerReferences"][0][field] = value.clone());
    let volume =
        |kind: &str, source: Value| pod(&|pod| pod["spec"]["volumes"] = json!([{"name": "v", kind: source}]));
    let pods = "/api/v1/namespaces/default/pods";
    let references = |what: &str| format!("node \"a\" can not create pods that reference {what}");
    let secret = volume("secret", json!({"secretName": "s"}));
    let token = volume("projected", json!({"sources": [{"serviceAccountToken": {"path": "t"}}]}));
    let claim = volume("persistentVolumeClaim", json!({"claimName": "c"}));
    check(
        &server,
        &[
            ("POST", pods, pod(&|pod| pod["metadata"]["annotations"] = json!({})), "pod does not have \"kubernetes.io/config.mirror\" annotation, node \"a\" can only create mirror pods"),
            ("POST", pods, pod(&|pod| pod["spec"]["nodeName"] = "b".into()), "node \"a\" can only create pods with spec.nodeName set to itself"),
            ("POST", pods, pod(&|pod| pod["metadata"]["ownerReferences"] = json!([])), "node \"a\" can only create pods with an owner reference set to itself"),
            ("POST", pods, owner("name", "b".into()), "node \"a\" can only create pods with an owner reference set to itself"),
            ("POST", pods, owner("controller", false.into()), "node \"a\" can only create pods with a controller owner reference set to itself"),
            ("POST", pods, owner("blockOwnerDeletion", true.into()), "node \"a\" must not set blockOwnerDeletion on an owner reference"),
            ("POST", pods, owner("uid", "u".into()), &format!("node a UID mismatch: expected u got {node}")),
            ("POST", pods, pod(&|pod| pod["spec"]["serviceAccountName"] = "default".into()), "a mirror pod may not reference service accounts"),
            ("POST", pods, secret, "a mirror pod may not reference secrets"),
            ("POST", pods, token, "a mirror pod may not use ServiceAccountToken volume projections"),
            ("POST", pods, claim, &references("persistentvolumeclaims")),
            ("POST", pods, volume("hostPath", json!({"path": "/x"})), ""),
        ],
    )
    .await;
}

#[tokio::test]
async fn tokens_are_for_pods_of_the_node_and_their_audiences() {
    let server = server().await;
    let (own, foreign) = (
        uid(&server, "/api/v1/namespaces/default/pods/on-a").await,
        uid(&server, "/api/v1/namespaces/default/pods/on-b").await,
    );
    let request = |name: &str, uid: &str, audiences: &[&str]| {
        let reference = json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid});
        json!({"spec": {"audiences": audiences, "boundObjectRef": reference}})
    };
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let other = "/api/v1/namespaces/default/serviceaccounts/other/token";
    check(
        &server,
        &[
            ("POST", path, request("on-a", &own, &[]), ""),
            ("POST", path, request("on-a", &own, &["vault"]), ""),
            ("POST", path, request("on-a", &own, &["bank"]), "audience \"bank\" not found in pod spec volume, system:node:a is not authorized to request tokens for this audience"),
            ("POST", path, request("on-a", &own, &["vault", "bank"]), "node may only request 0 or 1 audiences"),
            ("POST", path, request("on-b", &foreign, &[]), "node requested token bound to a pod scheduled on a different node"),
            ("POST", path, request("on-a", "", &[]), "node requested token with a pod binding without a uid"),
            ("POST", path, request("on-a", &foreign, &[]), "The object might have been deleted and then recreated"),
            ("POST", path, json!({"spec": {"audiences": []}}), "node requested token not bound to a pod"),
            ("POST", path, json!({"spec": {"audiences": [], "boundObjectRef": {"apiVersion": "v1", "kind": "Node", "name": "a"}}}), "node requested token not bound to a pod"),
            ("POST", other, request("on-a", &own, &[]), "no relationship found between node 'a' and this object"),
        ],
    )
    .await;
}

/// A certificate request, as JSON has it.
fn request(signer: &str, names: &[(rcgen::DnType, &str)]) -> Value {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    for (kind, value) in names {
        params.distinguished_name.push(kind.clone(), *value);
    }
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    json!({"metadata": {"generateName": "r-"}, "spec": {"request": STANDARD.encode(pem), "signerName": signer, "usages": ["client auth"]}})
}

#[tokio::test]
async fn certificate_requests_have_the_nodes_name_and_never_the_group_of_masters() {
    use rcgen::DnType::{CommonName, OrganizationName};
    let server = server().await;
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let (kubelet, client) =
        ("kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kube-apiserver-client");
    let masters =
        "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed";
    let mine = "can only create a node CSR with CN=system:node:a";
    check(
        &server,
        &[
            (
                "POST",
                path,
                request(kubelet, &[(CommonName, "system:node:a"), (OrganizationName, "system:nodes")]),
                "",
            ),
            ("POST", path, request(kubelet, &[(CommonName, "system:node:b")]), mine),
            ("POST", path, request("kubernetes.io/kubelet-serving", &[(CommonName, "system:node:b")]), mine),
            (
                "POST",
                path,
                request(client, &[(CommonName, "jane"), (OrganizationName, "system:masters")]),
                masters,
            ),
            ("POST", path, request(client, &[(CommonName, "jane"), (OrganizationName, "dev")]), ""),
        ],
    )
    .await;
    let smuggled = request(client, &[(CommonName, "x"), (OrganizationName, "system:masters")]);
    let answer = ask_as(&server, &User::admin(), "POST", path, &smuggled).await;
    assert_eq!(answer.status, 403, "not even for masters");
}
