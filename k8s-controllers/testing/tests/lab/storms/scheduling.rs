//! Scheduling and preemption.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
};

use k8s_core::{
    api::api::{
        core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod},
        scheduling::v1::PriorityClass,
        storage::v1::StorageClass,
    },
    meta::ObjectExt,
    random,
};
use k8s_scheduler::Scheduler;
use k8s_testing::{Life, controllers::persistent_volume_binder};
use serde_json::json;

use super::{scheduled_storm, seconds};

const NODES: usize = 3;
/// CPU of a simulated node.
const ROOM: i64 = 32;

fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

fn cpu(pod: &Pod) -> i64 {
    let requests = pod.spec.as_ref().and_then(|s| s.containers[0].resources.as_ref()?.requests.as_ref());
    requests.and_then(|r| r["cpu"].0.parse().ok()).unwrap_or(0)
}

fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0)
}

fn has_ended(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

fn is_alone(pod: &Pod) -> bool {
    pod.label("app") == Some("alone")
}

fn is_preempted(pod: &Pod) -> bool {
    let mut conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.any(|c| {
        c.type_ == "DisruptionTarget"
            && c.status == "True"
            && c.reason.as_deref() == Some("PreemptionByScheduler")
    })
}

/// Returns true if the pod may run beside those on the node, without the ones of lower priority.
fn fits(pod: &Pod, there: &[&Pod], lowest: i32) -> bool {
    let stays = || there.iter().filter(|p| priority(p) >= lowest);
    let used: i64 = stays().map(|p| cpu(p)).sum();
    used + cpu(pod) <= ROOM && !(is_alone(pod) && stays().any(|p| is_alone(p)))
}

/// Whatever fails: no node has more pods than it has room for, pods that want to be alone are, nobody is
/// deleted for another one without the condition that says so, and in the end no pod waits that has room, or
/// could make room by preemption.
#[test]
fn nodes_are_never_overcommitted_and_the_important_pods_run() {
    // As a program under test: the lab's own scheduler is spared from faults.
    let scheduler = async |life: Life| Scheduler::builder().run_in(life.environment()).await;
    scheduled_storm(NODES, 10).without_scheduler().program("scheduler", scheduler).run(async |lab| {
        let deleted = Arc::new(Mutex::new(HashSet::<String>::new()));
        let known = deleted.clone();
        lab.always(move |all: &[&Pod]| {
            let mut used: HashMap<&str, (i64, usize)> = HashMap::new();
            for pod in all.iter().filter(|p| !has_ended(p)) {
                let alone = usize::from(is_alone(pod));
                let sum = used.entry(node(pod)).or_default();
                *sum = (sum.0 + cpu(pod), sum.1 + alone);
                let by_hand = known.lock().unwrap().contains(pod.name());
                assert!(!pod.is_deleting() || by_hand || is_preempted(pod), "{} is deleted unmarked", pod.name());
            }
            used.remove("");
            for (node, (cpu, alone)) in used {
                assert!(cpu <= ROOM && alone <= 1, "{node}: {cpu} CPUs, {alone} alone");
            }
        })
        .await;
        for (name, value) in [("low", 1), ("middle", 10), ("high", 100)] {
            lab.create_from::<PriorityClass>(json!({"metadata": {"name": name}, "value": value})).await;
        }
        for i in 0..24 {
            let class = ["low", "middle", "high"][random::range(0..3) as usize];
            let app = if random::range(0..3) == 0 { "alone" } else { "web" };
            let affinity = if app == "alone" {
                json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                    {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "alone"}}},
                ]}})
            } else {
                json!({})
            };
            let requests = json!({"cpu": random::range(2..21).to_string()});
            lab.create_from::<Pod>(json!({
                "metadata": {"name": format!("p{i}"), "labels": {"app": app}},
                "spec": {
                    "priorityClassName": class, "affinity": affinity, "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "c", "image": "i", "resources": {"requests": requests}}],
                },
            }))
            .await;
            if random::range(0..4) == 0 {
                let all: Vec<Pod> = lab.list().await;
                let which = random::range(0..all.len().max(1) as u64) as usize;
                if let Some(pod) = all.get(which).filter(|p| !p.is_deleting()) {
                    deleted.lock().unwrap().insert(pod.name().to_owned());
                    lab.delete::<Pod>(pod.name()).await;
                }
            }
            lab.sleep(seconds(0..8)).await;
        }
        // Longer than the longest wait of an unschedulable pod.
        lab.sleep(seconds(900..901)).await;
        let (all, nodes): (Vec<Pod>, Vec<Node>) = (lab.list().await, lab.list().await);
        assert_eq!(nodes.len(), NODES);
        for pod in all.iter().filter(|p| node(p).is_empty()) {
            for on in &nodes {
                let there: Vec<&Pod> = all.iter().filter(|p| node(p) == on.name()).collect();
                assert!(!fits(pod, &there, i32::MIN), "{} has room on {}", pod.name(), on.name());
                assert!(!fits(pod, &there, priority(pod)), "{} may preempt on {}", pod.name(), on.name());
            }
        }
    });
}

/// Claims that wait for their pods get the volumes of the pods' nodes, one each.
#[test]
fn claims_are_bound_on_the_nodes_of_their_pods() {
    scheduled_storm(NODES, 6).controllers([persistent_volume_binder()]).run(async |lab| {
        lab.create_from::<StorageClass>(json!({
            "metadata": {"name": "local"}, "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "WaitForFirstConsumer",
        }))
        .await;
        for i in 0..NODES {
            let terms = json!([{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [format!("node-{i}")]},
            ]}]);
            lab.create_from::<PersistentVolume>(json!({
                "metadata": {"name": format!("disk-{i}")},
                "spec": {
                    "capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "local",
                    "local": {"path": "/disk"}, "nodeAffinity": {"required": {"nodeSelectorTerms": terms}},
                },
            }))
            .await;
            lab.create_from::<PersistentVolumeClaim>(json!({
                "metadata": {"name": format!("data-{i}")},
                "spec": {
                    "storageClassName": "local", "accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": "1Gi"}},
                },
            }))
            .await;
        }
        for i in 0..NODES {
            let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": format!("data-{i}")}}]);
            lab.create_from::<Pod>(json!({
                "metadata": {"name": format!("db-{i}")},
                "spec": {"containers": [{"name": "c", "image": "i"}], "volumes": volumes},
            }))
            .await;
        }
        // Longer than the longest wait of an unschedulable pod.
        lab.sleep(seconds(900..901)).await;
        let mut used = HashSet::new();
        for i in 0..NODES {
            let pod: Pod = lab.get(&format!("db-{i}")).await;
            let claim: PersistentVolumeClaim = lab.get(&format!("data-{i}")).await;
            let volume = claim.spec.and_then(|s| s.volume_name).unwrap_or_default();
            assert_eq!(node(&pod).replace("node", "disk"), volume, "{}", pod.name());
            assert!(used.insert(volume), "two claims have one volume");
        }
    });
}
