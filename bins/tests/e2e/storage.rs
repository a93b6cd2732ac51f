//! The class `local-path`: claims without a class, in real directories.

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf, time::Duration};

use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::{
    Outcome,
    harness::{Cluster, IMAGE, Namespace, until},
};

pub const TESTS: &[crate::Test] = &[("claims_get_directories_that_go_with_them", local_path)];

/// A set of one pod, which adds its start to its volume and reads the volume below a subPath.
fn set(class: Option<&str>) -> Value {
    let script = "id -u >> /data/starts; exec sleep 100000";
    let claim = json!({"metadata": {"name": "data"}, "spec": {"storageClassName": class,
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}, "spec": {
        "replicas": 1, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
        "volumeClaimTemplates": [claim],
        "template": {"metadata": {"labels": {"app": "db"}}, "spec": {
            "terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsUser": 1000, "fsGroup": 4242},
            "containers": [{"name": "main", "image": IMAGE, "command": ["sh", "-c", script],
                "volumeMounts": [{"name": "data", "mountPath": "/data"},
                    {"name": "data", "mountPath": "/part", "subPath": "a/b"}]}]}}}})
}

/// Returns the volume of the set's claim, and its directory.
fn volume(cluster: &Cluster, n: &Namespace<'_>) -> Result<(String, PathBuf), Failed> {
    let volume = n.jsonpath("pvc/data-db-0", "{.spec.volumeName}")?;
    let name = format!("{volume}_{}_data-db-0", n.name);
    Ok((volume, cluster.data.join("kubelet/storage").join(name)))
}

fn ready(n: &Namespace<'_>) -> Outcome {
    n.ok(&["rollout", "status", "statefulset/db", "--timeout=60s"], "").map(drop)
}

fn local_path() -> Outcome {
    let mut cluster = Cluster::up()?;
    {
        let n = cluster.namespace("kept")?;
        n.expect(&["get", "storageclass"], "", 0, "local-path (default)")?;
        n.expect(
            &["get", "storageclass.v1beta1.storage.k8s.io/local-path", "-o", "yaml"],
            "",
            0,
            "is-default-class",
        )?;
        n.ok(&["apply", "-f", "-"], &set(None).to_string())?;
        ready(&n)?;
        let (volume, directory) = volume(&cluster, &n)?;
        let meta = fs::metadata(&directory)?;
        if (meta.mode() & 0o7777, meta.gid()) != (0o2777, 4242) {
            return Err(format!("{:o} of group {}", meta.mode(), meta.gid()).into());
        }
        n.expect(&["describe", "pvc", "data-db-0"], "", 0, "ProvisioningSucceeded")?;
        n.expect(&["get", "pv", &volume], "", 0, "kept/data-db-0")?;
        n.ok(&["exec", "db-0", "--", "sh", "-c", "echo there > /part/f"], "")?;
        if fs::read_to_string(directory.join("a/b/f"))?.trim() != "there" {
            return Err("the subPath is elsewhere".into());
        }
        n.ok(&["delete", "pod", "db-0"], "")?;
        ready(&n)?;
        n.until(&["exec", "db-0", "--", "cat", "/data/starts"], "1000\n1000", 30)?;
    }
    // Data outlives the cluster, and the class a user's change.
    let usual = "storageclass.kubernetes.io/is-default-class=false";
    cluster.ok(&["annotate", "storageclass", "local-path", "--overwrite", usual], "")?;
    if let Some(mut up) = cluster.processes.pop() {
        up.stop()?;
    }
    cluster.start_up()?;
    let n = Namespace { cluster: &cluster, name: "kept".to_owned() };
    n.until(&["exec", "db-0", "--", "cat", "/data/starts"], "1000\n1000", 30)?;
    let annotation = r"{.metadata.annotations.storageclass\.kubernetes\.io/is-default-class}";
    if n.jsonpath("storageclass/local-path", annotation)? != "false" {
        return Err("a start has changed the class".into());
    }
    let (volume_name, directory) = volume(&cluster, &n)?;

    // The claim's end is the directory's.
    n.ok(&["delete", "statefulset/db", "pvc/data-db-0", "--timeout=60s"], "")?;
    n.ok(&["wait", "--for=delete", &format!("pv/{volume_name}"), "--timeout=60s"], "")?;
    if directory.exists() {
        return Err(format!("{directory:?} is still there").into());
    }

    // Not with Retain.
    let class = json!({"apiVersion": "storage.k8s.io/v1beta1", "kind": "StorageClass", "metadata": {"name": "kept"},
        "provisioner": "local-path.hyperkube.dev", "reclaimPolicy": "Retain",
        "volumeBindingMode": "WaitForFirstConsumer"});
    n.ok(&["apply", "-f", "-"], &class.to_string())?;
    n.ok(&["apply", "-f", "-"], &set(Some("kept")).to_string())?;
    ready(&n)?;
    let (volume_name, directory) = volume(&cluster, &n)?;
    n.ok(&["delete", "statefulset/db", "pvc/data-db-0", "--timeout=60s"], "")?;
    n.until(&["get", "pv", &volume_name], "Released", 30)?;
    n.ok(&["delete", "pv", &volume_name, "--timeout=60s"], "")?;
    if !directory.join("starts").exists() {
        return Err(format!("{directory:?} is gone").into());
    }

    // A volume that names another directory removes and uses nothing of the node's.
    fs::write(cluster.data.join("kubelet/precious"), "x")?;
    for (name, handle) in [("attack-1", "../precious"), ("attack-2", "..")] {
        let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name,
            "annotations": {"pv.kubernetes.io/provisioned-by": "local-path.hyperkube.dev"}}, "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "by-hand",
            "persistentVolumeReclaimPolicy": "Delete", "claimRef": {"namespace": "kept", "name": name},
            "csi": {"driver": "local-path.hyperkube.dev", "volumeHandle": handle, "volumeAttributes": {"node": "node-1"}}}});
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "by-hand", "volumeName": name,
            "resources": {"requests": {"storage": "1Gi"}}}});
        let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": name}}]);
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"volumes": volumes,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": IMAGE, "command": ["sleep", "1000"],
                "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}});
        for object in [volume, claim, pod] {
            n.ok(&["apply", "-f", "-"], &object.to_string())?;
        }
        n.until(&["describe", "pod", name], "is not a name of a directory", 30)?;
        n.ok(&["delete", "pod", name], "")?;
        n.ok(&["delete", "pvc", name, "--timeout=60s"], "")?;
        n.until(&["describe", "pv", name], "is not the directory of volume", 30)?;
        let free = json!({"metadata": {"finalizers": null}}).to_string();
        n.ok(&["patch", "pv", name, "-p", &free], "")?;
        n.ok(&["delete", "pv", name, "--timeout=60s"], "")?;
    }
    until("the node is whole", Duration::from_secs(1), || {
        Ok(cluster.data.join("kubelet/precious").exists())
    })?;
    drop(n);

    // Without the part there is no class.
    if let Some(mut up) = cluster.processes.pop() {
        up.stop()?;
    }
    cluster.start_up_with(&["--disable=local-storage"])?;
    let classes = cluster.ok(&["get", "storageclass", "-o", "name"], "")?;
    if classes.contains("local-path") {
        return Err(classes.into());
    }
    cluster.take_down()
}
