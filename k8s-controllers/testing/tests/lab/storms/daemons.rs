//! DaemonSets.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use k8s_builtin::pods::is_ready;
use k8s_core::{
    api::api::{
        apps::v1::DaemonSet,
        core::v1::{Event, Node, Pod, Taint},
    },
    meta::ObjectExt,
    random,
};
use k8s_testing::{Lab, Running, Script, controllers::daemon_set};
use serde_json::{Value, json};

use super::{active, scheduled_storm, seconds};

const NODES: usize = 3;

/// Returns the node that a daemon pod is for, scheduled or not.
fn made_for(pod: &Pod) -> String {
    let pod = serde_json::to_value(pod).unwrap();
    let affinity = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    affinity["nodeSelectorTerms"][0]["matchFields"][0]["values"][0].as_str().unwrap().to_owned()
}

fn image(pod: &Pod) -> &str {
    pod.spec.as_ref().unwrap().containers[0].image.as_deref().unwrap()
}

fn agent(update: Value) -> Value {
    let template = json!({"metadata": {"labels": {"app": "agent"}}, "spec": {"containers": [{"name": "c", "image": "zero"}]}});
    json!({"metadata": {"name": "agent"}, "spec": {
        "selector": {"matchLabels": {"app": "agent"}}, "template": template, "updateStrategy": update,
    }})
}

async fn roll(lab: &Running, image: &str) {
    lab.edit("agent", |set: &mut DaemonSet| {
        let template = &mut set.spec.as_mut().unwrap().template;
        template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
    })
    .await;
}

async fn is_complete(lab: &Running) {
    lab.until("agent", |set: &DaemonSet| {
        set.status.as_ref().is_some_and(|status| status.number_available == Some(3))
    })
    .await;
}

/// All nodes have one pod of the last template, and the status says so.
async fn all_have(lab: &Running, last: &str) {
    let all: Vec<Pod> = lab.list().await;
    let nodes: HashSet<String> = all.iter().map(made_for).collect();
    assert_eq!((all.len(), nodes.len()), (NODES, NODES));
    assert!(all.iter().all(|pod| image(pod) == last));
    let status = lab.get::<DaemonSet>("agent").await.status.unwrap();
    assert_eq!((status.number_ready, status.updated_number_scheduled), (3, Some(3)));
}

#[test]
fn daemon_sets_have_one_pod_on_every_node() {
    scheduled_storm(NODES, 8).controllers([daemon_set()]).run(async |lab| {
        let complete = Arc::new(AtomicBool::new(false));
        let holds = complete.clone();
        lab.always(move |all: &[&Pod]| {
            let mut nodes = HashSet::new();
            let twice = active(all, "agent").map(made_for).find(|node| !nodes.insert(node.clone()));
            assert_eq!(twice, None, "two pods for one node");
            let ready = active(all, "agent").filter(|pod| is_ready(pod)).count();
            assert!(ready >= 2 || !holds.load(Ordering::SeqCst), "{ready} of 3 are ready");
        })
        .await;
        lab.create_from::<DaemonSet>(agent(json!({"type": "RollingUpdate"}))).await;
        is_complete(&lab).await;
        complete.store(true, Ordering::SeqCst);
        for image in ["one", "two", "three"] {
            lab.sleep(seconds(3..30)).await;
            roll(&lab, image).await;
        }
        lab.assert_idempotent().await;
        all_have(&lab, "three").await;
    });
}

/// While an update surges, no node that had a ready pod is without one, a node has at most one pod of each
/// of two templates, and at most `maxSurge` nodes with a ready old pod have a new one that is not ready.
#[test]
fn a_surge_takes_no_node_its_pod() {
    scheduled_storm(NODES, 10).controllers([daemon_set()]).run(async |lab| {
        let complete = Arc::new(AtomicBool::new(false));
        let holds = complete.clone();
        let mut twins = HashSet::new();
        lab.always(move |all: &[&Pod]| {
            let mut nodes: HashMap<String, Vec<&Pod>> = HashMap::new();
            for pod in active(all, "agent") {
                nodes.entry(made_for(pod)).or_default().push(pod);
            }
            let mut surging = 0;
            for (node, pods) in &nodes {
                assert!(pods.len() <= 2, "{} pods for {node}", pods.len());
                if let [one, two] = pods[..] {
                    assert_ne!(image(one), image(two), "twins on {node}");
                    twins.insert(node.clone());
                    surging += usize::from(is_ready(one) != is_ready(two));
                }
                let ready = pods.iter().any(|pod| is_ready(pod));
                assert!(ready || !holds.load(Ordering::SeqCst), "{node} is without");
            }
            assert!(surging <= 1 || !holds.load(Ordering::SeqCst), "{surging} surge");
            assert!(nodes.len() == NODES || !holds.load(Ordering::SeqCst), "a node is without");
        })
        .await;
        let surge = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
        lab.create_from::<DaemonSet>(agent(surge)).await;
        is_complete(&lab).await;
        complete.store(true, Ordering::SeqCst);
        for image in ["one", "two", "zero", "three"] {
            roll(&lab, image).await;
            lab.sleep(seconds(0..30)).await;
        }
        lab.assert_idempotent().await;
        all_have(&lab, "three").await;
    });
}

/// Nodes that come to have taints lose their pod or keep it, by the effect.
#[test]
fn daemons_follow_the_taints_of_nodes() {
    scheduled_storm(NODES, 8).controllers([daemon_set()]).run(async |lab| {
        lab.create_from::<DaemonSet>(agent(json!({"type": "RollingUpdate"}))).await;
        is_complete(&lab).await;
        for _ in 0..5 {
            let node = format!("node-{}", random::range(0..NODES));
            let effect = ["NoExecute", "NoSchedule", ""][random::range(0..3)];
            lab.edit(&node, |node: &mut Node| {
                let taint = Taint { key: "t".into(), effect: effect.into(), ..Taint::default() };
                node.spec.get_or_insert_default().taints = Some(vec![taint]).filter(|_| !effect.is_empty());
            })
            .await;
            lab.sleep(seconds(0..20)).await;
        }
        lab.assert_idempotent().await;
        let with: HashSet<String> = lab.list::<Pod>().await.iter().map(made_for).collect();
        let (mut desired, mut extra) = (0, 0);
        for node in lab.list::<Node>().await {
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
            match taints.first().map(|taint| taint.effect.as_str()) {
                Some("NoExecute") => assert!(!with.contains(node.name()), "{}", node.name()),
                Some(_) => extra += usize::from(with.contains(node.name())),
                None => {
                    assert!(with.contains(node.name()), "{}", node.name());
                    desired += 1;
                }
            }
        }
        let status = lab.get::<DaemonSet>("agent").await.status.unwrap();
        assert_eq!(usize::try_from(status.desired_number_scheduled).unwrap(), desired);
        assert_eq!(usize::try_from(status.number_misscheduled).unwrap(), extra);
    });
}

/// Pods that a node refuses are made anew ever more slowly.
#[test]
fn pods_that_fail_are_made_anew_with_a_growing_delay() {
    let lab = Lab::new().nodes(1).seeds(0..1).pods(|_: &Pod| Script::never_starts("Refused"));
    lab.controllers([daemon_set()]).run(async |lab| {
        lab.create_from::<DaemonSet>(agent(json!({"type": "RollingUpdate"}))).await;
        let mut made = HashSet::new();
        for _ in 0..600 {
            lab.sleep(Duration::from_secs(1)).await;
            for mut pod in lab.list::<Pod>().await {
                made.insert(pod.uid().to_owned());
                if !pod.is_deleting() {
                    let status = pod.status.get_or_insert_default();
                    status.phase = Some("Failed".into());
                    let name = pod.name().to_owned();
                    // The controller may be quicker.
                    let _ = lab.api::<Pod>().replace_status(&name, &pod).await;
                }
            }
        }
        assert!((8..=11).contains(&made.len()), "{} pods in ten minutes", made.len());
        let all: Vec<Event> = lab.list().await;
        let told = all.iter().find(|event| event.reason.as_deref() == Some("FailedDaemonPod")).unwrap();
        let message = told.message.as_deref().unwrap();
        assert!(message.starts_with("Found failed daemon pod default/agent-"), "{message}");
        assert!(message.ends_with(" on node node-0, will try to kill it"), "{message}");
    });
}
