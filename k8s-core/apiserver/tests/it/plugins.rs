//! Built-in admission plugins, each by its name.

use k8s_apiserver::{
    ApiServer, User,
    admission::{Configuration, default_plugins, plugins},
};
use k8s_store::Store;
use serde_json::{Value, json};

use crate::support::ask;

/// A server with one more plugin, and without the one that wants service accounts.
struct Server(ApiServer);

impl Server {
    async fn with(plugin: &str, configuration: Value) -> Self {
        let on = (!plugin.is_empty() && !default_plugins().any(|name| name == plugin)).then_some(plugin);
        let file = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AdmissionConfiguration",
            "plugins": [{"name": if plugin.is_empty() { "Priority" } else { plugin }, "configuration": configuration}]});
        let server = ApiServer::builder(Store::memory())
            .without_plugins(["ServiceAccount"])
            .with_plugins(on)
            .plugin_configuration(Configuration::parse(&file.to_string()).unwrap())
            .warn_unenforced(false)
            .build()
            .await
            .unwrap();
        Server(server)
    }

    async fn send(&self, user: User, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = http::Request::builder().method(method).uri(path).header("content-type", kind);
        let answer =
            ask(&self.0.service_as(user), request.body(body.to_string().into_bytes()).unwrap()).await;
        (answer.status.as_u16(), answer.json())
    }

    async fn admin(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        self.send(User::admin(), method, path, &body).await
    }

    /// Sends a request that succeeds.
    async fn done(&self, method: &str, path: &str, body: Value) -> Value {
        let (code, answer) = self.admin(method, path, body).await;
        assert!((200..300).contains(&code), "{method} {path}: {answer}");
        answer
    }

    /// Sends a request that is refused; returns the code and the reason after `is forbidden: `.
    async fn refused(&self, method: &str, path: &str, body: Value) -> (u16, String) {
        let (code, answer) = self.admin(method, path, body).await;
        let message = answer["message"].as_str().unwrap_or_default();
        (code, message.split_once("is forbidden: ").map_or(message, |(_, why)| why).to_owned())
    }
}

const PODS: &str = "/api/v1/namespaces/default/pods";

fn pod(name: &str, spec: Value) -> Value {
    let mut pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    pod
}

/// Upstream's plugins in its order, and whether they are on by default here: upstream's set and
/// NodeRestriction. Each has a test by its name, here or in the file that is named after it.
const LIST: [(&str, bool); 38] = [
    ("AlwaysAdmit", false),
    ("NamespaceAutoProvision", false),
    ("NamespaceLifecycle", true),
    ("NamespaceExists", false),
    ("LimitPodHardAntiAffinityTopology", false),
    ("LimitRanger", true),
    ("ServiceAccount", true),
    ("NodeRestriction", true),
    ("TaintNodesByCondition", true),
    ("AlwaysPullImages", false),
    ("ImagePolicyWebhook", false),
    ("PodSecurity", true),
    ("PodNodeSelector", false),
    ("Priority", true),
    ("DefaultTolerationSeconds", true),
    ("PodTolerationRestriction", false),
    ("EventRateLimit", false),
    ("ExtendedResourceToleration", false),
    ("DefaultStorageClass", true),
    ("StorageObjectInUseProtection", true),
    ("OwnerReferencesPermissionEnforcement", false),
    ("PersistentVolumeClaimResize", true),
    ("RuntimeClass", true),
    ("CertificateApproval", true),
    ("CertificateSigning", true),
    ("ClusterTrustBundleAttest", true),
    ("CertificateSubjectRestriction", true),
    ("DefaultIngressClass", true),
    ("DenyServiceExternalIPs", false),
    ("PodTopologyLabels", true),
    ("NodeDeclaredFeatureValidator", true),
    ("PodResizeValidator", true),
    ("MutatingAdmissionPolicy", true),
    ("MutatingAdmissionWebhook", true),
    ("ValidatingAdmissionPolicy", true),
    ("ValidatingAdmissionWebhook", true),
    ("ResourceQuota", true),
    ("AlwaysDeny", false),
];

#[test]
fn the_list_of_the_plugins() {
    let on: Vec<&str> = default_plugins().collect();
    let found: Vec<(&str, bool)> = plugins().map(|name| (name, on.contains(&name))).collect();
    assert_eq!(found, LIST);
}

#[tokio::test]
async fn taint_nodes_by_condition() {
    let server = Server::with("", Value::Null).await;
    let node = server.done("POST", "/api/v1/nodes", json!({"metadata": {"name": "n"}})).await;
    assert_eq!(
        node["spec"]["taints"],
        json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}])
    );
}

#[tokio::test]
async fn always_pull_images() {
    let server = Server::with("AlwaysPullImages", Value::Null).await;
    let init = json!({"initContainers": [{"name": "d", "image": "j:1", "imagePullPolicy": "Never"}]});
    let made = server.done("POST", PODS, pod("p", init)).await;
    for place in ["/spec/containers/0", "/spec/initContainers/0"] {
        assert_eq!(made.pointer(place).unwrap()["imagePullPolicy"], "Always");
    }
}

#[tokio::test]
async fn pod_node_selector() {
    let configuration = json!({"podNodeSelectorPluginConfig": {"clusterDefaultNodeSelector": "zone=a", "default": "zone=a,disk=ssd"}});
    let server = Server::with("PodNodeSelector", configuration).await;
    let made = server.done("POST", PODS, pod("a", json!({"nodeSelector": {"disk": "ssd"}}))).await;
    assert_eq!(made["spec"]["nodeSelector"], json!({"disk": "ssd", "zone": "a"}));
    let (code, why) = server.refused("POST", PODS, pod("b", json!({"nodeSelector": {"zone": "b"}}))).await;
    assert_eq!(
        (code, why.as_str()),
        (403, "pod node label selector conflicts with its namespace node label selector")
    );
    let (code, why) = server.refused("POST", PODS, pod("b", json!({"nodeSelector": {"gpu": "x"}}))).await;
    assert_eq!(
        (code, why.as_str()),
        (403, "pod node label selector labels conflict with its namespace whitelist")
    );
    let namespace = json!({"metadata": {"name": "other", "annotations": {"scheduler.alpha.kubernetes.io/node-selector": "zone=z"}}});
    server.done("POST", "/api/v1/namespaces", namespace).await;
    let made = server.done("POST", "/api/v1/namespaces/other/pods", pod("a", json!({}))).await;
    assert_eq!(made["spec"]["nodeSelector"], json!({"zone": "z"}));
}

#[tokio::test]
async fn default_toleration_seconds() {
    let server = Server::with("", Value::Null).await;
    let made = server.done("POST", PODS, pod("a", json!({}))).await;
    assert_eq!(made["spec"]["tolerations"].as_array().unwrap().len(), 2);
    let mut made = made;
    made["spec"]["tolerations"] = json!([{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            {"key": "mine", "operator": "Exists", "effect": "NoExecute"}]);
    let updated = server.done("PUT", &format!("{PODS}/a"), made).await;
    assert_eq!(updated["spec"]["tolerations"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn pod_toleration_restriction() {
    let configuration = json!({"kind": "Configuration", "apiVersion": "podtolerationrestriction.admission.k8s.io/v1alpha1",
        "default": [{"key": "team", "operator": "Equal", "value": "a", "effect": "NoSchedule"}],
        "whitelist": [{"key": "team", "operator": "Exists"}, {"key": "node.kubernetes.io/not-ready", "operator": "Exists"},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists"}, {"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]});
    let server = Server::with("PodTolerationRestriction", configuration).await;
    let busy = json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}}]});
    let made = server.done("POST", PODS, pod("a", busy)).await;
    let keys: Vec<&Value> =
        made["spec"]["tolerations"].as_array().unwrap().iter().map(|t| &t["key"]).collect();
    assert!(
        keys.contains(&&json!("team")) && keys.contains(&&json!("node.kubernetes.io/memory-pressure")),
        "{keys:?}"
    );
    let (code, why) = server
        .refused("POST", PODS, pod("b", json!({"tolerations": [{"key": "x", "operator": "Exists"}]})))
        .await;
    assert_eq!(code, 403);
    assert!(why.ends_with("conflict with its cluster whitelist"), "{why}");
}

#[tokio::test]
async fn event_rate_limit() {
    let configuration =
        json!({"kind": "Configuration", "limits": [{"type": "Namespace", "qps": 1, "burst": 2}]});
    let server = Server::with("EventRateLimit", configuration).await;
    let mut codes = Vec::new();
    for i in 0..12 {
        let event = json!({"metadata": {"name": format!("e{i}")}, "involvedObject": {"namespace": "default", "name": "a", "kind": "Pod"}});
        codes.push(server.admin("POST", "/api/v1/namespaces/default/events", event).await.0);
    }
    // A token comes back every second: on a machine that is busy, some of the others may get one.
    assert_eq!(codes[..2], [201, 201]);
    assert!(codes.contains(&429), "{codes:?}");
}

#[tokio::test]
async fn extended_resource_toleration() {
    let server = Server::with("ExtendedResourceToleration", Value::Null).await;
    let device = json!({"requests": {"example.com/gpu": "1"}, "limits": {"example.com/gpu": "1"}});
    let made = server
        .done(
            "POST",
            PODS,
            pod("a", json!({"containers": [{"name": "c", "image": "i", "resources": device}]})),
        )
        .await;
    let wanted = json!({"key": "example.com/gpu", "operator": "Exists", "effect": "NoSchedule"});
    assert!(made["spec"]["tolerations"].as_array().unwrap().contains(&wanted), "{made}");
}

#[tokio::test]
async fn owner_references_permission_enforcement() {
    let server = Server::with("OwnerReferencesPermissionEnforcement", Value::Null).await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({"metadata": {"name": "maps"}, "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "update", "patch", "get"]}]});
    server.done("POST", &format!("{rbac}/clusterroles"), role).await;
    let binding = json!({"metadata": {"name": "maps"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "maps"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "eve"}]});
    server.done("POST", &format!("{rbac}/clusterrolebindings"), binding).await;
    let eve = || User::new("eve", &[]);
    let maps = "/api/v1/namespaces/default/configmaps";
    let owner = |blocks: bool| json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "d", "uid": "1", "blockOwnerDeletion": blocks}]);
    let map = |name: &str, owners: Value| json!({"metadata": {"name": name, "ownerReferences": owners}});
    assert_eq!(server.send(eve(), "POST", maps, &map("a", owner(false))).await.0, 201);
    let (code, answer) = server.send(eve(), "POST", maps, &map("b", owner(true))).await;
    assert_eq!(code, 403);
    assert!(answer["message"].as_str().unwrap().contains(
        "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on"
    ));
    assert_eq!(server.send(eve(), "POST", maps, &map("c", json!([]))).await.0, 201);
    let (code, answer) = server.send(eve(), "PATCH", &format!("{maps}/c"), &map("c", owner(false))).await;
    assert_eq!(code, 403);
    assert!(
        answer["message"].as_str().unwrap().contains("cannot set an ownerRef on a resource you can't delete"),
        "{answer}"
    );
    assert_eq!(server.admin("PATCH", &format!("{maps}/c"), map("c", owner(true))).await.0, 200);
}

#[tokio::test]
async fn persistent_volume_claim_resize() {
    let server = Server::with("", Value::Null).await;
    let classes = "/apis/storage.k8s.io/v1/storageclasses";
    server
        .done(
            "POST",
            classes,
            json!({"metadata": {"name": "grows"}, "provisioner": "p", "allowVolumeExpansion": true}),
        )
        .await;
    server.done("POST", classes, json!({"metadata": {"name": "stays"}, "provisioner": "p"})).await;
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let bigger = || json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    for class in ["grows", "stays"] {
        let claim = json!({"metadata": {"name": class}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": {"requests": {"storage": "1Gi"}}}});
        server.done("POST", claims, claim).await;
        let status = json!({"status": {"phase": "Bound"}});
        server.done("PATCH", &format!("{claims}/{class}/status"), status).await;
    }
    server.done("PATCH", &format!("{claims}/grows"), bigger()).await;
    let (code, why) = server.refused("PATCH", &format!("{claims}/stays"), bigger()).await;
    assert_eq!(code, 403);
    assert!(why.starts_with("only dynamically provisioned pvc can be resized"), "{why}");
}

#[tokio::test]
async fn storage_object_in_use_protection() {
    let server = Server::with("", Value::Null).await;
    let claim = json!({"metadata": {"name": "a"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let made = server.done("POST", "/api/v1/namespaces/default/persistentvolumeclaims", claim).await;
    assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    let volume = json!({"metadata": {"name": "a", "finalizers": ["example.com/own"]}, "spec": {"capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}}});
    let made = server.done("POST", "/api/v1/persistentvolumes", volume).await;
    assert_eq!(made["metadata"]["finalizers"], json!(["example.com/own", "kubernetes.io/pv-protection"]));
}

#[tokio::test]
async fn image_policy_webhook() {
    let ca = crate::peer::authority();
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = asked.clone();
    let (port, task) = crate::peer::serve_json(&ca, "localhost", move |review| {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let bad = review["spec"]["containers"][0]["image"] == "bad" || review["spec"]["annotations"].get("team.image-policy.k8s.io/ticket").is_some();
        json!({"kind": "ImageReview", "apiVersion": review["apiVersion"], "status": {"allowed": !bad, "reason": "it is bad"}})
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ca.crt"), &ca.0).unwrap();
    let file = directory.path().join("kubeconfig");
    let cluster = json!({"server": format!("https://localhost:{port}/review"), "certificate-authority": directory.path().join("ca.crt")});
    let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": cluster}], "users": [{"name": "u", "user": {}}]});
    std::fs::write(&file, kubeconfig.to_string()).unwrap();
    let server = Server::with("ImagePolicyWebhook", json!({"imagePolicy": {"kubeConfigFile": file}})).await;
    server.done("POST", PODS, pod("a", json!({}))).await;
    server.done("POST", PODS, pod("b", json!({}))).await;
    assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 1, "answers are kept");
    let why = "image policy webhook backend denied one or more images: it is bad";
    let bad = json!({"containers": [{"name": "c", "image": "bad"}]});
    assert_eq!(server.refused("POST", PODS, pod("c", bad.clone())).await, (403, why.to_owned()));
    let mut annotated = pod("d", json!({}));
    annotated["metadata"]["annotations"] = json!({"team.image-policy.k8s.io/ticket": "1", "other": "x"});
    assert_eq!(server.refused("POST", PODS, annotated).await.0, 403);
    task.abort();
    let open = json!({"imagePolicy": {"kubeConfigFile": file, "defaultAllow": true, "retryBackoff": 1}});
    Server::with("ImagePolicyWebhook", open).await.done("POST", PODS, pod("a", bad)).await;
}

#[tokio::test]
async fn runtime_class() {
    let server = Server::with("", Value::Null).await;
    let class = json!({"metadata": {"name": "vm"}, "handler": "vm", "overhead": {"podFixed": {"cpu": "100m", "memory": "64Mi"}},
        "scheduling": {"nodeSelector": {"vm": "yes"}, "tolerations": [{"key": "vm", "operator": "Exists"}]}});
    server.done("POST", "/apis/node.k8s.io/v1/runtimeclasses", class).await;
    let made = server.done("POST", PODS, pod("a", json!({"runtimeClassName": "vm"}))).await;
    assert_eq!(made["spec"]["overhead"], json!({"cpu": "100m", "memory": "64Mi"}));
    assert_eq!(made["spec"]["nodeSelector"], json!({"vm": "yes"}));
    assert!(
        made["spec"]["tolerations"].as_array().unwrap().contains(&json!({"key": "vm", "operator": "Exists"}))
    );
    for (spec, problem) in [
        (json!({"runtimeClassName": "none"}), "pod rejected: RuntimeClass \"none\" not found"),
        (
            json!({"runtimeClassName": "vm", "overhead": {"cpu": "1"}}),
            "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
        ),
        (
            json!({"overhead": {"cpu": "1"}}),
            "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
        ),
        (
            json!({"runtimeClassName": "vm", "nodeSelector": {"vm": "no"}}),
            "conflict: runtimeClass.scheduling.nodeSelector[vm] = yes; pod.spec.nodeSelector[vm] = no",
        ),
    ] {
        assert_eq!(server.refused("POST", PODS, pod("b", spec)).await, (403, problem.to_owned()));
    }
}

#[tokio::test]
async fn default_ingress_class() {
    let server = Server::with("", Value::Null).await;
    let class = json!({"metadata": {"name": "main", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}}, "spec": {"controller": "a/b"}});
    server.done("POST", "/apis/networking.k8s.io/v1/ingressclasses", class).await;
    let ingresses = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";
    let ingress = |name: &str| json!({"metadata": {"name": name}, "spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}});
    assert_eq!(server.done("POST", ingresses, ingress("a")).await["spec"]["ingressClassName"], "main");
    let mut old = ingress("b");
    old["metadata"]["annotations"] = json!({"kubernetes.io/ingress.class": "nginx"});
    assert!(server.done("POST", ingresses, old).await["spec"]["ingressClassName"].is_null());
}

#[tokio::test]
async fn deny_service_external_ips() {
    let server = Server::with("DenyServiceExternalIPs", Value::Null).await;
    let services = "/api/v1/namespaces/default/services";
    let service = |addresses: Value| json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}], "externalIPs": addresses}});
    let (code, why) = server.refused("POST", services, service(json!(["203.0.113.9"]))).await;
    assert_eq!((code, why.as_str()), (403, "Use of external IPs is denied by admission control"));
    server.done("POST", services, service(json!([]))).await;
}

#[tokio::test]
async fn pod_topology_labels() {
    let server = Server::with("", Value::Null).await;
    let node =
        json!({"metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "z", "other": "x"}}});
    server.done("POST", "/api/v1/nodes", node).await;
    server.done("POST", PODS, pod("a", json!({}))).await;
    server.done("POST", &format!("{PODS}/a/binding"), json!({"target": {"kind": "Node", "name": "n"}})).await;
    let bound = server.done("GET", &format!("{PODS}/a"), Value::Null).await;
    assert_eq!(bound["metadata"]["labels"], json!({"topology.kubernetes.io/zone": "z"}));
    let placed = server.done("POST", PODS, pod("b", json!({"nodeName": "n"}))).await;
    assert_eq!(placed["metadata"]["labels"], json!({"topology.kubernetes.io/zone": "z"}));
}

#[tokio::test]
async fn limit_pod_hard_anti_affinity_topology() {
    let server = Server::with("LimitPodHardAntiAffinityTopology", Value::Null).await;
    let apart = |key: &str| json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": key, "labelSelector": {}}]}}});
    server.done("POST", PODS, pod("a", apart("kubernetes.io/hostname"))).await;
    let (code, why) = server.refused("POST", PODS, pod("b", apart("zone"))).await;
    assert_eq!(code, 403);
    assert!(why.contains("has TopologyKey zone but only key kubernetes.io/hostname is allowed"), "{why}");
}

#[tokio::test]
async fn namespaces_that_are_not_there() {
    let server = Server::with("NamespaceAutoProvision", Value::Null).await;
    server.done("POST", "/api/v1/namespaces/new/configmaps", json!({"metadata": {"name": "a"}})).await;
    assert_eq!(server.done("GET", "/api/v1/namespaces/new", Value::Null).await["status"]["phase"], "Active");
    let server = Server::with("NamespaceExists", Value::Null).await;
    let (code, _) =
        server.refused("POST", "/api/v1/namespaces/new/configmaps", json!({"metadata": {"name": "a"}})).await;
    assert_eq!(code, 404);
}

#[tokio::test]
async fn always_admit_and_always_deny() {
    let server = Server::with("AlwaysAdmit", Value::Null).await;
    server.done("POST", "/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await;
    // The server's own first objects are refused, too: it does not start.
    let denied = ApiServer::builder(Store::memory()).with_plugins(["AlwaysDeny"]).build().await;
    assert!(denied.unwrap_err().to_string().contains("admission control is denying all modifications"));
}
