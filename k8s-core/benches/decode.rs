//! Times decoding against serde_json, in turns on the same text. Prints figures, asserts none.
//!
//! `cargo bench -p k8s-core --bench decode`
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::{hint::black_box, time::Instant};

use k8s_core::{
    api::{List, Pod},
    json,
};
use serde_json::{Value, json};

const PODS: usize = 5000;
const ROUNDS: usize = 41;

/// A running pod of about 3 KB.
fn pod(i: usize) -> Value {
    let transition = |kind: &str| json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let conditions = ["Initialized", "Ready", "ContainersReady", "PodScheduled"].map(transition);
    let probe = json!({"httpGet": {"path": "/ready", "port": 8080, "scheme": "HTTP"}, "timeoutSeconds": 1,
        "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("web-5d4f8c7b9-{i:06}"), "generateName": "web-5d4f8c7b9-", "namespace": "default",
            "uid": format!("8d1f9c1e-4f0c-4a43-a2d6-{i:012}"), "resourceVersion": (100_000 + i).to_string(),
            "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 1,
            "labels": {"app": "web", "pod-template-hash": "5d4f8c7b9"},
            "annotations": {"example.com/why": "a \"quoted\" word\nand a second line"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f8c7b9",
                "uid": "8d1f9c1e-4f0c-4a43-a2d6-2f3f1f6f1c11", "controller": true, "blockOwnerDeletion": true}],
        },
        "spec": {
            "containers": [{
                "name": "web", "image": "registry.example.com/shop/web:1.27.3", "imagePullPolicy": "IfNotPresent",
                "ports": [{"containerPort": 8080, "protocol": "TCP"}],
                "env": [{"name": "MODE", "value": "production"}, {"name": "LOG", "value": "info"},
                    {"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "readinessProbe": probe, "livenessProbe": probe,
                "volumeMounts": [{"name": "kube-api-access-abcde", "readOnly": true,
                    "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}],
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            }],
            "volumes": [{"name": "kube-api-access-abcde", "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}]}}],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "default", "nodeName": "node-1", "schedulerName": "default-scheduler",
            "securityContext": {}, "priority": 0, "enableServiceLinks": true,
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": 300}],
        },
        "status": {
            "phase": "Running", "hostIP": "10.0.0.1", "podIP": "10.42.0.7", "podIPs": [{"ip": "10.42.0.7"}],
            "startTime": "2026-01-01T00:00:00Z", "qosClass": "Burstable",
            "conditions": conditions,
            "containerStatuses": [{"name": "web", "ready": true, "restartCount": 0, "started": true,
                "image": "registry.example.com/shop/web:1.27.3", "imageID": "sha256:0123456789abcdef",
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "lastState": {}}],
        },
    })
}

/// Prints the median of the rounds' ratios, and the medians of both times.
fn compare(what: &str, times: usize, mut ours: impl FnMut(), mut theirs: impl FnMut()) {
    let time = |run: &mut dyn FnMut()| {
        let begun = Instant::now();
        (0..times).for_each(|_| run());
        begun.elapsed().as_secs_f64() / times as f64
    };
    let (mut one, mut two, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (a, b) = if round % 2 == 0 {
            let a = time(&mut ours);
            (a, time(&mut theirs))
        } else {
            let b = time(&mut theirs);
            (time(&mut ours), b)
        };
        one.push(a);
        two.push(b);
        ratios.push(a / b);
    }
    let median = |of: &mut Vec<f64>| {
        of.sort_by(f64::total_cmp);
        of[of.len() / 2]
    };
    println!(
        "{what}: {:.1} us, serde_json {:.1} us, ratio {:.3}",
        median(&mut one) * 1e6,
        median(&mut two) * 1e6,
        median(&mut ratios)
    );
}

fn main() {
    let one = pod(0).to_string().into_bytes();
    println!("a pod of {} bytes", one.len());
    compare(
        "pod",
        2000,
        || drop(black_box(json::from_slice::<Pod>(black_box(&one)).unwrap())),
        || drop(black_box(serde_json::from_slice::<Pod>(black_box(&one)).unwrap())),
    );
    let items: Vec<Value> = (0..PODS).map(pod).collect();
    let list =
        json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": items});
    let list = list.to_string().into_bytes();
    compare(
        "list",
        1,
        || drop(black_box(json::from_slice::<List<Pod>>(black_box(&list)).unwrap())),
        || drop(black_box(serde_json::from_slice::<List<Pod>>(black_box(&list)).unwrap())),
    );
    compare(
        "tree",
        2000,
        || drop(black_box(json::from_slice::<Value>(black_box(&one)).unwrap())),
        || drop(black_box(serde_json::from_slice::<Value>(black_box(&one)).unwrap())),
    );
}
