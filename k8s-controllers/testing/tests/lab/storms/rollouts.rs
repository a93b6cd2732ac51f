//! Deployments.

use std::collections::HashSet;

use k8s_builtin::pods;
use k8s_core::{
    api::api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::Pod,
    },
    meta::ObjectExt,
    random,
};
use k8s_testing::controllers::{deployment, garbage_collector, replica_set};
use serde_json::json;

use super::{active, pod, seconds, storm, template, typed_template};

fn is_rolled_out(d: &Deployment) -> bool {
    let replicas = d.spec.as_ref().and_then(|s| s.replicas);
    let status = d.status.clone().unwrap_or_default();
    status.observed_generation == d.metadata.generation
        && [status.updated_replicas, status.available_replicas, status.replicas] == [replicas; 3]
}

#[test]
fn deployments_roll_within_their_bounds() {
    storm(15).controllers([deployment(), replica_set(), garbage_collector()]).run(async |lab| {
        lab.create_from::<Pod>(pod("other", "other")).await;
        let replicas = 3 + random::range(0..5);
        let recreate = random::range(0..4) == 0;
        let surge = if recreate { 0 } else { random::range(1..3) };
        let strategy = if recreate {
            json!({"type": "Recreate"})
        } else {
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": 1}})
        };
        lab.create_from::<Deployment>(json!({"metadata": {"name": "web"}, "spec": {
            "replicas": replicas, "strategy": strategy, "revisionHistoryLimit": 1,
            "selector": {"matchLabels": {"app": "web"}}, "template": template("web", "0"),
        }}))
        .await;
        let most = usize::try_from(replicas + surge).unwrap();
        lab.always(move |all: &[&Pod]| {
            let count = active(all, "web").count();
            assert!(count <= most, "{count} pods, {replicas} + {surge} allowed");
            if recreate {
                let live = all.iter().filter(|p| p.label("app") == Some("web") && !pods::is_terminal(p));
                let hashes: HashSet<_> = live.filter_map(|p| p.label("pod-template-hash")).collect();
                assert!(hashes.len() <= 1, "old and new pods at once");
            }
        })
        .await;
        for round in 1..=3 {
            lab.sleep(seconds(5..45)).await;
            let next = typed_template("web", &round.to_string());
            lab.edit("web", |d: &mut Deployment| d.spec.as_mut().unwrap().template = next.clone()).await;
        }
        lab.assert_idempotent().await;
        assert!(is_rolled_out(&lab.get("web").await));
        let all: Vec<Pod> = lab.list().await;
        let new = all.iter().filter(|p| p.label("app") == Some("web"));
        let images: Vec<_> = new.map(|p| p.spec.clone().unwrap().containers[0].image.clone()).collect();
        assert_eq!(images, vec![Some("3".to_owned()); usize::try_from(replicas).unwrap()]);
        assert!(all.iter().any(|p| p.name() == "other" && !p.is_deleting()));
        let sets: Vec<ReplicaSet> = lab.list().await;
        assert!(sets.len() <= 2, "{} ReplicaSets with a history of one", sets.len());
    });
}
