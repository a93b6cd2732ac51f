//! The API server that the kubelet talks to: one in this process, with a namespace for pods.

use k8s_core::{
    api::api::core::v1::{Pod, ServiceAccount},
    client::{Client, DeleteOptions},
    clock::Clock,
    status::ApiStatus,
};
use k8s_testing::{Connection, TestCluster};
use serde_json::{Value, json};

/// A cluster without controllers, and the kubelet's connection to it.
pub struct Api {
    cluster: TestCluster,
    pub connection: Connection,
}

impl Api {
    /// Starts with the namespace `ns`, whose pods get no token unless they ask for one.
    pub async fn start(clock: Clock) -> Self {
        let cluster = TestCluster::bare()
            .clock(clock)
            .runtime_config(["certificates.k8s.io/v1beta1=true"])
            .start()
            .await
            .unwrap();
        let api = Api { connection: cluster.connection(), cluster };
        api.create("/api/v1/namespaces", json!({"kind": "Namespace", "metadata": {"name": "ns"}})).await;
        let account = json!({"metadata": {"name": "default"}, "automountServiceAccountToken": false});
        api.cluster.create::<ServiceAccount>("ns", &account).await.unwrap();
        api
    }

    /// Returns the administrator's client; its requests are not counted.
    pub fn client(&self) -> Client {
        self.cluster.client()
    }

    pub async fn create(&self, path: &str, object: Value) {
        let body = object.to_string();
        self.client().bytes(http::Method::POST, path, "application/json", body).await.unwrap();
    }

    /// Allows a user a verb on a subresource of nodes.
    pub async fn allow(&self, user: &str, verb: &str, subresource: &str) {
        let name = format!("{user}-{verb}-{subresource}");
        let rule = json!({"apiGroups": [""], "resources": [format!("nodes/{subresource}")], "verbs": [verb]});
        let role = json!({"kind": "ClusterRole", "metadata": {"name": name}, "rules": [rule]});
        let group = "rbac.authorization.k8s.io";
        let binding = json!({
            "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name},
            "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
        });
        self.create("/apis/rbac.authorization.k8s.io/v1/clusterroles", role).await;
        self.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await;
    }

    /// Requests a token of a service account.
    pub async fn token(&self, namespace: &str, account: &str) -> String {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}});
        let kind = "application/json";
        let answer = self.client().bytes(http::Method::POST, &path, kind, request.to_string()).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        answer["status"]["token"].as_str().unwrap().to_owned()
    }

    /// The number of the kubelet's SubjectAccessReviews so far.
    pub fn reviews(&self) -> usize {
        self.connection.count("create", "subjectaccessreviews")
    }

    pub fn pod(&self, name: &str) -> Option<Value> {
        self.cluster.stored("pods", "ns", name)
    }

    pub fn node(&self) -> Option<Value> {
        self.cluster.stored("nodes", "", "n1")
    }

    pub fn has(&self, resource: &str, name: &str) -> bool {
        self.cluster.stored(resource, "ns", name).is_some()
    }

    pub fn list(&self, resource: &str) -> Vec<Value> {
        self.cluster.all_stored(resource)
    }

    /// Returns all pod statuses that the kubelet wrote.
    pub fn statuses(&self) -> Vec<Value> {
        self.connection.sent("update", "pods/status")
    }

    pub fn fail_status_writes(&self, times: usize) {
        self.connection.fail("update", "pods/status", times, ApiStatus::internal("on purpose"));
    }

    /// Deletes a pod at once, without a grace period.
    pub async fn vanish(&self, name: &str) {
        let options = DeleteOptions::default().grace(0);
        self.client().namespaced::<Pod>("ns").delete(name, &options).await.unwrap();
    }
}
