//! Versions of one object: a client can write back an object in the version that it has read, without any
//! change.

use serde_json::{Value, json};

use crate::support::{done, server};

fn workload(kind: &str) -> Value {
    json!({"metadata": {"name": "a", "annotations": {"x": "y"}}, "spec": {
        "replicas": 2, "serviceName": "s", "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]}}},
        "kind": kind})
}

/// Collection, object, and further versions of the resource.
fn table() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        ("apps/v1 deployments", workload("Deployment"), "apps/v1beta1 apps/v1beta2 extensions/v1beta1"),
        ("extensions/v1beta1 deployments", workload("Deployment"), "apps/v1 apps/v1beta1 apps/v1beta2"),
        ("apps/v1 replicasets", workload("ReplicaSet"), "apps/v1beta2 extensions/v1beta1"),
        ("apps/v1 daemonsets", workload("DaemonSet"), "apps/v1beta2 extensions/v1beta1"),
        ("apps/v1 statefulsets", workload("StatefulSet"), "apps/v1beta1 apps/v1beta2"),
        (
            "apps/v1 controllerrevisions",
            json!({"metadata": {"name": "a"}, "revision": 3, "data": {"x": [1]}}),
            "apps/v1beta1 apps/v1beta2",
        ),
        (
            "networking.k8s.io/v1 ingresses",
            json!({"metadata": {"name": "a"}, "spec": {"ingressClassName": "c", "defaultBackend": {"service": {"name": "d", "port": {"name": "http"}}},
                "rules": [{"host": "h", "http": {"paths": [
                    {"path": "/a", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"number": 80}}}},
                    {"path": "/b", "pathType": "ImplementationSpecific", "backend": {"resource": {"apiGroup": "g", "kind": "K", "name": "n"}}}]}}]}}),
            "networking.k8s.io/v1beta1 extensions/v1beta1",
        ),
        (
            "networking.k8s.io/v1 networkpolicies",
            json!({"metadata": {"name": "a"}, "spec": {"podSelector": {}}}),
            "extensions/v1beta1",
        ),
        (
            "autoscaling/v2 horizontalpodautoscalers",
            json!({"metadata": {"name": "a"}, "spec": {"maxReplicas": 9, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "a"},
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}},
                "metrics": [
                    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}},
                    {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
                    {"type": "Pods", "pods": {"metric": {"name": "packets"}, "target": {"type": "AverageValue", "averageValue": "1k"}}}]}}),
            "autoscaling/v1 autoscaling/v2beta2",
        ),
        (
            "batch/v1 cronjobs",
            json!({"metadata": {"name": "a"}, "spec": {"schedule": "*/5 * * * *", "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}}}),
            "batch/v1beta1 batch/v2alpha1",
        ),
        (
            "policy/v1 poddisruptionbudgets",
            json!({"metadata": {"name": "a"}, "spec": {"minAvailable": "50%", "selector": {"matchLabels": {"a": "b"}}}}),
            "policy/v1beta1",
        ),
        (
            "v1 events",
            json!({"metadata": {"name": "a", "namespace": "default"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}, "reason": "R", "message": "m", "type": "Normal",
                "source": {"component": "c"}, "count": 2, "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z"}),
            "events.k8s.io/v1 events.k8s.io/v1beta1",
        ),
        (
            "rbac.authorization.k8s.io/v1 roles",
            json!({"metadata": {"name": "a"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}),
            "rbac.authorization.k8s.io/v1beta1",
        ),
        (
            "coordination.k8s.io/v1 leases",
            json!({"metadata": {"name": "a"}, "spec": {"holderIdentity": "h", "leaseDurationSeconds": 4}}),
            "coordination.k8s.io/v1beta1",
        ),
    ]
}

fn path(group_version: &str, plural: &str) -> String {
    let root = if group_version.contains('/') { "apis" } else { "api" };
    format!("/{root}/{group_version}/namespaces/default/{plural}")
}

#[tokio::test]
async fn what_is_read_in_any_version_can_be_written_back() {
    for (made_as, mut object, versions) in table() {
        let server = server().await;
        let (first, plural) = made_as.split_once(' ').unwrap();
        if let Some(map) = object.as_object_mut() {
            map.remove("kind");
        }
        let made = done(&server, "POST", &path(first, plural), &object).await;
        for version in std::iter::once(first).chain(versions.split(' ')) {
            let here = format!("{}/a", path(version, plural));
            let read = done(&server, "GET", &here, &Value::Null).await;
            assert_eq!(read["apiVersion"], version, "{made_as}");
            let written = done(&server, "PUT", &here, &read).await;
            assert_eq!(
                written["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"],
                "{made_as} in {version} has changed:\n{read:#}\n{written:#}"
            );
        }
        let last = done(&server, "GET", &format!("{}/a", path(first, plural)), &Value::Null).await;
        assert_eq!(last, made, "{made_as}");
    }
}
