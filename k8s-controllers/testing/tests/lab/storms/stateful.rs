//! StatefulSets.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use k8s_builtin::pods::is_ready;
use k8s_core::{
    api::api::{
        apps::v1::{ControllerRevision, StatefulSet},
        core::v1::{PersistentVolumeClaim, Pod},
    },
    meta::ObjectExt,
    random,
};
use k8s_testing::{Running, controllers::stateful_set};
use serde_json::{Value, json};

use super::{active, seconds, storm, template};

fn set(name: &str, replicas: i32, policy: &str) -> Value {
    let claim = json!({"metadata": {"name": "data"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    json!({"metadata": {"name": name}, "spec": {
        "replicas": replicas, "serviceName": name, "selector": {"matchLabels": {"app": name}},
        "podManagementPolicy": policy, "template": template(name, "zero"), "volumeClaimTemplates": [claim],
    }})
}

fn ordinal(pod: &Pod) -> usize {
    pod.name().rsplit_once('-').unwrap().1.parse().unwrap()
}

async fn names(lab: &Running) -> Vec<String> {
    let mut names: Vec<String> = lab.list::<Pod>().await.iter().map(|pod| pod.name().to_owned()).collect();
    names.sort();
    names
}

/// A pod of an ordered set appears only when those with smaller ordinals are ready; whatever was scaled away
/// keeps its claim.
#[test]
fn ordered_pods_come_after_those_before_them() {
    storm(10).controllers([stateful_set()]).run(async |lab| {
        let mut seen = HashSet::new();
        lab.always(move |all: &[&Pod]| {
            let ours: Vec<&Pod> = all.iter().copied().filter(|pod| pod.label("app") == Some("db")).collect();
            for pod in &ours {
                if seen.insert(pod.uid().to_owned()) {
                    let before = ours.iter().filter(|other| ordinal(other) < ordinal(pod) && is_ready(other));
                    assert_eq!(before.count(), ordinal(pod), "{} came too early", pod.name());
                }
            }
        })
        .await;
        lab.create_from::<StatefulSet>(set("db", 3, "OrderedReady")).await;
        let (mut size, mut largest) = (3, 0);
        for _ in 0..4 {
            lab.sleep(seconds(5..60)).await;
            size = random::range(0..5);
            lab.edit("db", |set: &mut StatefulSet| set.spec.as_mut().unwrap().replicas = Some(size)).await;
        }
        lab.assert_idempotent().await;
        let want: Vec<String> = (0..size).map(|i| format!("db-{i}")).collect();
        assert_eq!(names(&lab).await, want);
        let claims: Vec<PersistentVolumeClaim> = lab.list().await;
        for claim in &claims {
            largest = largest.max(claim.name().rsplit_once('-').unwrap().1.parse::<usize>().unwrap() + 1);
            assert_eq!(claim.metadata.owner_references, None);
        }
        assert_eq!(claims.len(), largest, "no ordinal below the largest was left out");
        let status = lab.get::<StatefulSet>("db").await.status.unwrap();
        assert_eq!((status.replicas, status.ready_replicas), (size, Some(size)));
    });
}

/// While an update rolls, at most one pod is unavailable, and at the end all are of the last template.
#[test]
fn an_update_takes_one_pod_at_a_time() {
    storm(10).controllers([stateful_set()]).run(async |lab| {
        let complete = Arc::new(AtomicBool::new(false));
        let holds = complete.clone();
        lab.always(move |all: &[&Pod]| {
            let ready = active(all, "db").filter(|pod| is_ready(pod)).count();
            assert!(ready >= 2 || !holds.load(Ordering::SeqCst), "{ready} of 3 are ready");
        })
        .await;
        lab.create_from::<StatefulSet>(set("db", 3, "OrderedReady")).await;
        lab.until("db", |set: &StatefulSet| {
            set.status.as_ref().is_some_and(|status| status.available_replicas == Some(3))
        })
        .await;
        complete.store(true, Ordering::SeqCst);
        for image in ["one", "two", "zero", "three"] {
            lab.edit("db", |set: &mut StatefulSet| {
                let spec = set.spec.as_mut().unwrap().template.spec.as_mut().unwrap();
                spec.containers[0].image = Some(image.into());
            })
            .await;
            lab.sleep(seconds(0..40)).await;
        }
        lab.assert_idempotent().await;
        assert_eq!(names(&lab).await, ["db-0", "db-1", "db-2"]);
        for pod in lab.list::<Pod>().await {
            assert_eq!(pod.spec.unwrap().containers[0].image.as_deref(), Some("three"));
        }
        let status = lab.get::<StatefulSet>("db").await.status.unwrap();
        assert_eq!((status.updated_replicas, status.current_revision), (Some(3), status.update_revision));
        // A template that came back has no second revision.
        let mut seen = HashSet::new();
        for revision in lab.list::<ControllerRevision>().await {
            assert!(
                seen.insert(revision.data.unwrap().0.to_string()),
                "{} is one too many",
                revision.revision
            );
        }
    });
}

/// A parallel set reaches its size whatever happens to its pods.
#[test]
fn parallel_pods_are_made_anew() {
    storm(6).controllers([stateful_set()]).run(async |lab| {
        lab.create_from::<StatefulSet>(set("db", 4, "Parallel")).await;
        for _ in 0..4 {
            lab.sleep(seconds(1..20)).await;
            let all: Vec<Pod> = lab.list().await;
            if !all.is_empty() {
                lab.delete::<Pod>(all[random::range(0..all.len())].name()).await;
            }
        }
        lab.assert_idempotent().await;
        assert_eq!(names(&lab).await, ["db-0", "db-1", "db-2", "db-3"]);
    });
}
