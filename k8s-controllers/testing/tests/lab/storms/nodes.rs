//! Nodes that fail, and their pods.

use std::{collections::HashMap, time::Duration};

use k8s_builtin::pods::{condition, is_ready, node_name, phase};
use k8s_core::{
    api::api::{
        apps::v1::ReplicaSet,
        coordination::v1::Lease,
        core::v1::{Node, Pod},
    },
    client::{DeleteOptions, Patch},
    meta::ObjectExt,
};
use k8s_testing::{
    Running,
    controllers::{node_lifecycle, node_ttl, pod_gc, replica_set, taint_eviction},
};
use serde_json::json;

use super::scheduled_storm;

const NODES: usize = 4;
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

async fn create_pods(lab: &Running) {
    lab.create_from::<ReplicaSet>(json!({"metadata": {"name": "web"}, "spec": {
        "replicas": 8, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    }}))
    .await;
    all_ready(lab).await;
}

async fn all_ready(lab: &Running) {
    lab.until("web", |set: &ReplicaSet| {
        set.status.as_ref().is_some_and(|status| status.ready_replicas == Some(8))
    })
    .await;
}

/// Ends the heartbeats of a node: its lease is gone.
async fn silence(lab: &Running, node: &str) {
    let leases = lab.client().namespaced::<Lease>("kube-node-lease");
    leases.delete(node, &DeleteOptions::default()).await.unwrap();
}

/// Lets a node report again.
async fn revive(lab: &Running, node: &str) {
    let time = lab.clock().micro_time();
    let spec = json!({"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": time});
    let lease: Lease = serde_json::from_value(json!({"metadata": {"name": node}, "spec": spec})).unwrap();
    lab.client().namespaced::<Lease>("kube-node-lease").create(&lease).await.unwrap();
    // A controller whose leases are old takes the node for silent once more. A kubelet then reports again.
    for _ in 0..3 {
        say_ready(lab, node).await;
        lab.settle().await;
        if effects(&lab.get::<Node>(node).await).is_empty() {
            break;
        }
    }
}

async fn say_ready(lab: &Running, node: &str) {
    let now = lab.clock().time();
    let ready =
        json!({"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now});
    let patch = Patch::Strategic(json!({"status": {"conditions": [ready]}}));
    lab.api::<Node>().patch_status(node, &patch).await.unwrap();
}

/// The effects of the taint unreachable.
fn effects(node: &Node) -> Vec<&str> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    taints.iter().filter(|taint| taint.key == UNREACHABLE).map(|taint| taint.effect.as_str()).collect()
}

fn is_target(pod: &Pod, reason: &str) -> bool {
    condition(pod, "DisruptionTarget")
        .is_some_and(|c| c.status == "True" && c.reason.as_deref() == Some(reason))
}

#[test]
fn pods_leave_a_silent_node_and_stay_when_all_are_silent() {
    let parts = [replica_set(), node_lifecycle(), taint_eviction()];
    scheduled_storm(NODES, 8).controllers(parts).run(async |lab| {
        lab.always(|all: &[&Pod]| {
            for pod in all.iter().filter(|pod| pod.is_deleting()) {
                assert!(is_target(pod, "DeletionByTaintManager"), "{} is not told why", pod.name());
            }
        })
        .await;
        create_pods(&lab).await;
        silence(&lab, "node-1").await;
        // A controller that restarts gives each node its time again.
        lab.until("node-1", |node: &Node| effects(node) == ["NoSchedule", "NoExecute"]).await;
        lab.sleep(Duration::from_secs(60)).await;
        for pod in lab.list::<Pod>().await {
            assert_eq!(is_ready(&pod), node_name(&pod) != "node-1", "{} on {}", pod.name(), node_name(&pod));
        }
        // Its pods tolerate that for five minutes.
        lab.sleep(Duration::from_secs(300)).await;
        all_ready(&lab).await;
        assert!(lab.list::<Pod>().await.iter().all(|pod| node_name(pod) != "node-1"));
        revive(&lab, "node-1").await;
        let node: Node = lab.get("node-1").await;
        assert!(effects(&node).is_empty(), "{:?}", node.spec);
        let before: Vec<String> = lab.list::<Pod>().await.iter().map(|pod| pod.uid().to_owned()).collect();

        for i in 0..NODES {
            silence(&lab, &format!("node-{i}")).await;
        }
        lab.sleep(Duration::from_secs(1000)).await;
        for node in lab.list::<Node>().await {
            assert_eq!(effects(&node), ["NoSchedule"], "{}", node.name());
        }
        let after: Vec<String> = lab.list::<Pod>().await.iter().map(|pod| pod.uid().to_owned()).collect();
        assert_eq!(before, after, "the fault may be on this side");
    });
}

#[test]
fn pods_of_a_node_that_is_gone_fail_and_are_made_anew() {
    scheduled_storm(NODES, 8).controllers([replica_set(), pod_gc()]).run(async |lab| {
        let mut last: HashMap<String, (String, bool)> = HashMap::new();
        lab.always(move |all: &[&Pod]| {
            for (uid, (name, told)) in &last {
                assert!(*told || all.iter().any(|pod| pod.uid() == uid), "{name} went without a word");
            }
            last = all
                .iter()
                .filter(|pod| node_name(pod) == "node-2")
                .map(|pod| {
                    let told = phase(pod) == "Failed" && is_target(pod, "DeletionByPodGC");
                    (pod.uid().to_owned(), (pod.name().to_owned(), told))
                })
                .collect();
        })
        .await;
        create_pods(&lab).await;
        assert!(lab.list::<Pod>().await.iter().any(|pod| node_name(pod) == "node-2"));
        lab.delete::<Node>("node-2").await;
        lab.sleep(Duration::from_secs(30)).await;
        assert!(lab.list::<Pod>().await.iter().any(|pod| node_name(pod) == "node-2"), "it may come back");
        lab.sleep(Duration::from_secs(120)).await;
        lab.settle().await;
        all_ready(&lab).await;
        assert!(lab.list::<Pod>().await.iter().all(|pod| node_name(pod) != "node-2"));
    });
}

/// All nodes tell kubelets the same time for keeping ConfigMaps and Secrets, by the number of nodes.
#[test]
fn all_nodes_have_the_same_time_to_live() {
    scheduled_storm(85, 8).controllers([node_ttl()]).run(async |lab| {
        let create = async |from: usize, to: usize| {
            for i in from..to {
                lab.create_from::<Node>(json!({"metadata": {"name": format!("more-{i}")}})).await;
            }
        };
        let told = async |seconds: &str| {
            lab.settle().await;
            for node in lab.list::<Node>().await {
                assert_eq!(node.annotation("node.alpha.kubernetes.io/ttl"), Some(seconds), "{}", node.name());
            }
        };
        told("0").await;
        create(0, 15).await;
        told("0").await;
        create(15, 17).await;
        told("15").await;
        for i in 0..10 {
            lab.delete::<Node>(&format!("more-{i}")).await;
        }
        told("15").await;
        for i in 10..17 {
            lab.delete::<Node>(&format!("more-{i}")).await;
        }
        told("0").await;
        lab.assert_idempotent().await;
    });
}
