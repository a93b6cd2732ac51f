//! Parts of a whole cluster that can be left out, to be replaced by others.

use http::Method;
use k8s_builtin::{OWN_PORTS, provisioner::LOCAL_PATH};
use k8s_core::{
    api::api::storage::v1::StorageClass,
    client::{Client, Error},
};
use k8s_net::dns::CONFIG_MAP;
use serde_json::json;

use crate::{apply::apply, identities::PROXY};

/// Service account of kube-system as which the provisioner of the class `local-path` acts, and its role.
pub(crate) const PROVISIONER: &str = "local-path-provisioner";
/// Path of the class `local-path`.
const CLASS: &str = "/apis/storage.k8s.io/v1/storageclasses/local-path";

/// A part that `up` and `server` have and `--disable` leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[non_exhaustive]
pub enum Addon {
    /// The resource metrics API (`metrics.k8s.io`), which `kubectl top` and autoscalers read.
    MetricsServer,
    /// The StorageClass `local-path` and its provisioner: volumes are directories of the node.
    LocalStorage,
    /// The load balancer of Services: they get the addresses of nodes.
    #[value(name = "servicelb")]
    ServiceLb,
    /// The Ingress controller and its IngressClass.
    Ingress,
}

/// Lets those who may view, edit or administer a namespace read the metrics of its pods, as metrics-server's
/// own manifest does.
///
/// # Errors
/// The API server's error.
pub(crate) async fn metrics_reader(client: &Client) -> Result<(), Error> {
    const NAME: &str = "system:aggregated-metrics-reader";
    let aggregated = |role: &str| format!("rbac.authorization.k8s.io/aggregate-to-{role}");
    let labels: serde_json::Map<_, _> =
        ["view", "edit", "admin"].iter().map(|role| (aggregated(role), json!("true"))).collect();
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": NAME, "labels": labels},
        "rules": [{"apiGroups": ["metrics.k8s.io"], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]}],
    });
    apply(client, &format!("/apis/rbac.authorization.k8s.io/v1/clusterroles/{NAME}"), &role).await.map(drop)
}

/// Creates the class `local-path`, the default one, and the role of its provisioner. A class of that name
/// that is there is left as it is.
///
/// # Errors
/// The API server's error.
pub(crate) async fn local_storage(client: &Client) -> Result<(), Error> {
    let rbac = "rbac.authorization.k8s.io";
    let rule = |group: &str, resource: &str, verbs: &[&str]| json!({"apiGroups": [group], "resources": [resource], "verbs": verbs});
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": PROVISIONER},
        "rules": [
            rule("", "persistentvolumes", &["get", "list", "watch", "create", "update", "patch", "delete"]),
            rule("", "persistentvolumeclaims", &["get", "list", "watch", "update"]),
            rule("", "nodes", &["get", "list", "watch"]),
            // Kubelets remove the directories.
            rule("", "nodes/proxy", &["delete"]),
            rule("", "events", &["create", "patch", "update"]),
            rule("storage.k8s.io", "storageclasses", &["get", "list", "watch"]),
        ],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": PROVISIONER},
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": PROVISIONER},
        "subjects": [{"kind": "ServiceAccount", "name": PROVISIONER, "namespace": "kube-system"}],
    });
    // Nothing is attached, and its volumes need no CSI driver in a pod.
    let driver = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": LOCAL_PATH},
        "spec": {"attachRequired": false, "podInfoOnMount": false, "fsGroupPolicy": "File"},
    });
    let group = "/apis/rbac.authorization.k8s.io/v1";
    apply(client, &format!("{group}/clusterroles/{PROVISIONER}"), &role).await?;
    apply(client, &format!("{group}/clusterrolebindings/{PROVISIONER}"), &binding).await?;
    apply(client, &format!("/apis/storage.k8s.io/v1/csidrivers/{LOCAL_PATH}"), &driver).await?;
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": "local-path", "annotations": {
            "storageclass.kubernetes.io/is-default-class": "true",
            "storageclass.beta.kubernetes.io/is-default-class": "true",
        }},
        "provisioner": LOCAL_PATH, "reclaimPolicy": "Delete", "allowVolumeExpansion": false,
        "volumeBindingMode": "WaitForFirstConsumer",
    });
    match client.bytes(Method::GET, CLASS, "", "").await {
        // A user may have made another class the default one.
        Err(e) if e.is_not_found() => apply(client, CLASS, &class).await,
        other => other.map(drop),
    }
}

/// Deletes the class `local-path` of an earlier start, unless it is of another provisioner.
///
/// # Errors
/// The API server's error.
pub(crate) async fn without_local_storage(client: &Client) -> Result<(), Error> {
    let class: StorageClass = match client.json(Method::GET, CLASS, "", "").await {
        Err(e) if e.is_not_found() => return Ok(()),
        other => other?,
    };
    if class.provisioner != LOCAL_PATH {
        return Ok(());
    }
    match client.bytes(Method::DELETE, CLASS, "", "").await {
        Err(e) if !e.is_not_found() => Err(e),
        _ => Ok(()),
    }
}

/// Returns a role and its binding to the service proxies, with their paths. Without a namespace they are
/// those of the cluster.
fn granted(
    namespace: Option<&str>,
    name: &str,
    rules: &serde_json::Value,
) -> [(String, serde_json::Value); 2] {
    let group = "rbac.authorization.k8s.io";
    let (prefix, place) = match namespace {
        Some(namespace) => ("", format!("namespaces/{namespace}/")),
        None => ("Cluster", String::new()),
    };
    let mut metadata = json!({"name": name});
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    let kind = |kind: &str| format!("{prefix}{kind}");
    let path = |kind: &str| format!("/apis/{group}/v1/{place}{}s/{name}", kind.to_lowercase());
    let (role, binding) = (kind("Role"), kind("RoleBinding"));
    [
        (
            path(&role),
            json!({"apiVersion": format!("{group}/v1"), "kind": role, "metadata": metadata, "rules": rules}),
        ),
        (
            path(&binding),
            json!({
                "apiVersion": format!("{group}/v1"), "kind": binding, "metadata": metadata,
                "roleRef": {"apiGroup": group, "kind": role, "name": name},
                "subjects": [{"apiGroup": group, "kind": "User", "name": PROXY}],
            }),
        ),
    ]
}

/// The objects through which nodes tell the load balancer which ports they use themselves: a ConfigMap that
/// service proxies may change, and nothing else in kube-system.
fn own_ports() -> [(String, serde_json::Value); 3] {
    let (namespace, name) = OWN_PORTS;
    let metadata = json!({"namespace": namespace, "name": name});
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata});
    let rule = json!({"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [name], "verbs": ["get", "patch"]});
    let [role, binding] = granted(Some(namespace), name, &json!([rule]));
    [(format!("/api/v1/namespaces/{namespace}/configmaps/{name}"), map), role, binding]
}

/// Lets service proxies read what network policies are about, which upstream's role for them does not.
///
/// # Errors
/// The API server's error.
pub(crate) async fn network_policies(client: &Client) -> Result<(), Error> {
    let rule = |group: &str, resources: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": ["list", "watch"]});
    let rules = json!([rule("", &["namespaces", "pods"]), rule("networking.k8s.io", &["networkpolicies"])]);
    for (path, object) in granted(None, "network-policies", &rules) {
        apply(client, &path, &object).await?;
    }
    Ok(())
}

/// Lets service proxies, beside which the cluster DNS runs, read its Corefile.
///
/// # Errors
/// The API server's error.
pub(crate) async fn corefile(client: &Client) -> Result<(), Error> {
    let (namespace, name) = CONFIG_MAP;
    let rule = json!({"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [name], "verbs": ["get", "list", "watch"]});
    for (path, object) in granted(Some(namespace), name, &json!([rule])) {
        apply(client, &path, &object).await?;
    }
    Ok(())
}

/// Makes what the load balancer of Services needs.
///
/// # Errors
/// The API server's error.
pub(crate) async fn service_lb(client: &Client) -> Result<(), Error> {
    for (path, object) in own_ports() {
        apply(client, &path, &object).await?;
    }
    Ok(())
}

/// Deletes what [`service_lb`] made at an earlier start. Services keep the addresses that they have, until
/// another load balancer gives them others.
///
/// # Errors
/// The API server's error.
pub(crate) async fn without_service_lb(client: &Client) -> Result<(), Error> {
    for (path, _) in own_ports() {
        match client.bytes(Method::DELETE, &path, "", "").await {
            Err(e) if !e.is_not_found() => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn roles_of_a_namespace_and_of_the_cluster_are_bound_at_their_paths() {
        let rules = serde_json::json!([]);
        let [(role, _), (binding, object)] = super::granted(Some("kube-system"), "n", &rules);
        assert_eq!(role, "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/roles/n");
        assert_eq!(binding, "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/rolebindings/n");
        assert_eq!((&object["kind"], &object["roleRef"]["kind"]), (&"RoleBinding".into(), &"Role".into()));
        let [(role, object), (binding, _)] = super::granted(None, "n", &rules);
        assert_eq!(role, "/apis/rbac.authorization.k8s.io/v1/clusterroles/n");
        assert_eq!(binding, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/n");
        assert_eq!(
            (&object["kind"], &object["metadata"]),
            (&"ClusterRole".into(), &serde_json::json!({"name": "n"}))
        );
    }

    #[test]
    fn load_balancer_and_proxy_mean_the_same_object() {
        assert_eq!(k8s_builtin::OWN_PORTS, k8s_net::proxy::OWN_PORTS);
    }

    #[test]
    fn provisioner_and_kubelet_mean_the_same_driver() {
        assert_eq!(super::LOCAL_PATH, k8s_kubelet::LOCAL_PATH);
    }
}
