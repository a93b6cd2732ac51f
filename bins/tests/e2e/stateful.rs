//! StatefulSets with real pods: names, claims, updates.

use serde_json::{Value, json};

use crate::{
    Outcome,
    harness::{Cluster, IMAGE},
};

type Test = fn(&Cluster, &str) -> Outcome;

pub const TESTS: &[(&str, Test)] = &[("stateful_sets_keep_names_and_claims", keep)];

/// A set whose pods write their host name into their volume once.
fn set(replicas: u32) -> Value {
    let script = "echo $(hostname) >> /data/names; exec httpd -f -p 8080 -h /data";
    let claim = json!({"metadata": {"name": "data"}, "spec": {"storageClassName": "",
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}});
    json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}, "spec": {
        "replicas": replicas, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
        "volumeClaimTemplates": [claim],
        "template": {"metadata": {"labels": {"app": "db"}}, "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": IMAGE, "command": ["sh", "-c", script],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}}}})
}

fn keep(cluster: &Cluster, name: &str) -> Outcome {
    let n = cluster.namespace(name)?;
    let directory = tempfile::tempdir()?;
    for i in 0..3 {
        let path = directory.path().join(i.to_string());
        let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": format!("{name}-{i}")},
            "spec": {"capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"],
                "claimRef": {"namespace": name, "name": format!("data-db-{i}")},
                "hostPath": {"path": path, "type": "DirectoryOrCreate"}}});
        n.ok(&["apply", "-f", "-"], &volume.to_string())?;
    }
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db"}, "spec": {
        "clusterIP": "None", "selector": {"app": "db"}, "ports": [{"port": 8080}]}});
    n.ok(&["apply", "-f", "-"], &service.to_string())?;
    n.expect(&["apply", "-f", "-"], &set(2).to_string(), 0, "statefulset.apps/db created")?;
    n.ok(&["rollout", "status", "statefulset/db", "--timeout=60s"], "")?;
    n.expect(&["get", "pods"], "", 0, "db-1")?;
    n.expect(&["get", "statefulset", "db"], "", 0, "2/2")?;
    n.expect(&["get", "pvc", "data-db-1"], "", 0, "Bound")?;
    n.expect(&["describe", "statefulset", "db"], "", 0, "Create Pod db-0 in StatefulSet db successful")?;

    // A pod finds its neighbour by name, and its data after it was deleted.
    let neighbour = format!("http://db-1.db.{name}.svc.cluster.local:8080/names");
    n.until(&["exec", "db-0", "--", "wget", "-q", "-O", "-", &neighbour], "db-1", 20)?;
    let before = n.jsonpath("pod/db-1", "{.metadata.uid}")?;
    n.ok(&["delete", "pod", "db-1"], "")?;
    n.ok(&["rollout", "status", "statefulset/db", "--timeout=60s"], "")?;
    n.until(&["exec", "db-1", "--", "cat", "/data/names"], "db-1\ndb-1", 30)?;
    if n.jsonpath("pod/db-1", "{.metadata.uid}")? == before {
        return Err("the pod was not made anew".into());
    }

    // Scaled, updated with a partition, and back.
    n.expect(&["scale", "statefulset/db", "--replicas=3"], "", 0, "scaled")?;
    n.ok(&["rollout", "status", "statefulset/db", "--timeout=60s"], "")?;
    let patch = json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 2}},
        "template": {"metadata": {"annotations": {"version": "2"}}}}});
    n.ok(&["patch", "statefulset", "db", "-p", &patch.to_string()], "")?;
    n.until(&["get", "pod", "db-2", "-o", "jsonpath={.metadata.annotations.version}"], "2", 30)?;
    n.ok(&["rollout", "status", "statefulset/db", "--timeout=60s"], "")?;
    let versions = n.jsonpath("pods", "{.items[*].metadata.annotations.version}")?;
    if versions != "2" {
        return Err(format!("one pod is of the new template, found {versions:?}").into());
    }
    n.expect(&["rollout", "undo", "statefulset/db"], "", 0, "rolled back")?;
    n.until(&["get", "statefulset", "db", "-o", "jsonpath={.status.updatedReplicas}"], "3", 60)?;
    n.expect(&["scale", "statefulset/db", "--replicas=1"], "", 0, "scaled")?;
    n.ok(&["wait", "--for=delete", "pod/db-1", "--timeout=60s"], "")?;
    n.expect(&["get", "pvc"], "", 0, "data-db-2")?;
    n.ok(&["delete", "statefulset,pvc", "--all", "--timeout=60s"], "")?;
    for i in 0..3 {
        n.ok(&["delete", "pv", &format!("{name}-{i}"), "--timeout=60s"], "")?;
    }
    Ok(())
}
