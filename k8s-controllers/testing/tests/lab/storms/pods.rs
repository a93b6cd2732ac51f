//! ReplicaSets and ReplicationControllers.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use k8s_core::{
    api::api::{
        apps::v1::ReplicaSet,
        core::v1::{Pod, ReplicationController},
    },
    meta::{Object, ObjectExt},
    random,
};
use k8s_testing::{
    Running,
    controllers::{replica_set, replication_controller},
};
use serde_json::json;

use super::{active, pod, seconds, storm, template};

/// Resizes the object `web` repeatedly. Returns the last size.
async fn resize<K: Object>(lab: &Running, first: i32, resize: impl Fn(&mut K, i32)) -> i32 {
    let most = Arc::new(AtomicUsize::new(usize::try_from(first).unwrap()));
    let allowed = most.clone();
    lab.always(move |all: &[&Pod]| {
        let (count, most) = (active(all, "web").count(), allowed.load(Ordering::SeqCst));
        assert!(count <= most, "{count} pods, {most} allowed");
    })
    .await;
    let mut size = first;
    for _ in 0..4 {
        lab.sleep(seconds(5..35)).await;
        size = random::range(0..10);
        // Pods of a previous, larger size may still exist.
        most.fetch_max(usize::try_from(size).unwrap(), Ordering::SeqCst);
        lab.edit("web", |object: &mut K| resize(object, size)).await;
    }
    lab.assert_idempotent().await;
    let all: Vec<Pod> = lab.list().await;
    let ours = all.iter().filter(|p| p.label("app") == Some("web"));
    assert!(ours.clone().all(|p| p.controller_ref().is_some()), "the orphan was adopted");
    assert_eq!(ours.count(), usize::try_from(size).unwrap());
    assert!(all.iter().any(|p| p.name() == "other" && p.controller_ref().is_none()));
    size
}

async fn bystanders(lab: &Running) {
    lab.create_from::<Pod>(pod("other", "other")).await;
    lab.create_from::<Pod>(pod("found", "web")).await;
}

#[test]
fn replica_sets_keep_so_many_pods() {
    storm(15).controllers([replica_set()]).run(async |lab| {
        bystanders(&lab).await;
        lab.create_from::<ReplicaSet>(json!({"metadata": {"name": "web"}, "spec": {
            "replicas": 6, "selector": {"matchLabels": {"app": "web"}}, "template": template("web", "one"),
        }}))
        .await;
        let set = |set: &mut ReplicaSet, size| set.spec.as_mut().unwrap().replicas = Some(size);
        let size = resize(&lab, 6, set).await;
        let set: ReplicaSet = lab.get("web").await;
        let status = set.status.unwrap();
        let counts = (status.replicas, status.ready_replicas.unwrap_or(0), status.terminating_replicas);
        assert_eq!(counts, (size, size, Some(0)));
        assert_eq!(status.observed_generation, set.metadata.generation);
    });
}

#[test]
fn replication_controllers_keep_so_many_pods() {
    storm(15).controllers([replication_controller()]).run(async |lab| {
        bystanders(&lab).await;
        lab.create_from::<ReplicationController>(json!({"metadata": {"name": "web"}, "spec": {
            "replicas": 6, "selector": {"app": "web"}, "template": template("web", "one"),
        }}))
        .await;
        let set = |rc: &mut ReplicationController, size| rc.spec.as_mut().unwrap().replicas = Some(size);
        let size = resize(&lab, 6, set).await;
        let status = lab.get::<ReplicationController>("web").await.status.unwrap();
        assert_eq!((status.replicas, status.available_replicas.unwrap_or(0)), (size, size));
    });
}
