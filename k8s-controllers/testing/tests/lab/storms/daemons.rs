//! DaemonSets.

use std::collections::HashSet;

use k8s_core::api::api::{apps::v1::DaemonSet, core::v1::Pod};
use k8s_testing::controllers::daemon_set;
use serde_json::json;

use super::{active, scheduled_storm, seconds};

const NODES: usize = 3;

/// Returns the node that a daemon pod is for, scheduled or not.
fn made_for(pod: &Pod) -> String {
    let pod = serde_json::to_value(pod).unwrap();
    let affinity = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    affinity["nodeSelectorTerms"][0]["matchFields"][0]["values"][0].as_str().unwrap().to_owned()
}

#[test]
fn daemon_sets_have_one_pod_on_every_node() {
    scheduled_storm(NODES, 8).controllers([daemon_set()]).run(async |lab| {
        lab.always(|all: &[&Pod]| {
            let mut nodes = HashSet::new();
            let twice = active(all, "agent").map(made_for).find(|node| !nodes.insert(node.clone()));
            assert_eq!(twice, None, "two pods for one node");
        }).await;
        let template = json!({
            "metadata": {"labels": {"app": "agent"}}, "spec": {"containers": [{"name": "c", "image": "zero"}]},
        });
        lab.create_from::<DaemonSet>(json!({"metadata": {"name": "agent"}, "spec": {
            "selector": {"matchLabels": {"app": "agent"}}, "template": template,
        }}))
        .await;
        for image in ["one", "two", "three"] {
            lab.sleep(seconds(3..30)).await;
            lab.edit("agent", |set: &mut DaemonSet| {
                let template = &mut set.spec.as_mut().unwrap().template;
                template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
            })
            .await;
        }
        lab.assert_idempotent().await;
        let all: Vec<Pod> = lab.list().await;
        let nodes: HashSet<String> = all.iter().map(made_for).collect();
        assert_eq!((all.len(), nodes.len()), (NODES, NODES));
        for pod in &all {
            assert_eq!(pod.spec.as_ref().unwrap().containers[0].image.as_deref(), Some("three"));
        }
        let status = lab.get::<DaemonSet>("agent").await.status.unwrap();
        assert_eq!((status.number_ready, status.updated_number_scheduled), (3, Some(3)));
    });
}
