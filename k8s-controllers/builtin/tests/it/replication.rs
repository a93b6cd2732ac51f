//! ReplicationControllers.

use k8s_builtin::pods::is_active;
use k8s_core::{
    api::api::{
        autoscaling::v1::Scale,
        core::v1::{Pod, ReplicationController, ResourceQuota},
    },
    meta::ObjectExt,
};
use serde_json::json;

use crate::{
    lab::{Lab, labels, metadata, template},
    runs,
};

fn controller(replicas: i32) -> ReplicationController {
    let spec = json!({"replicas": replicas, "selector": {"app": "web"}, "minReadySeconds": 5,
        "template": template("web", "i")});
    let mut made: ReplicationController =
        serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
    made.metadata = metadata("web");
    made
}

async fn counts(lab: &Lab) -> (i32, i32, i32, i32) {
    let live: ReplicationController = lab.get("web").await;
    let status = live.status.clone().unwrap_or_default();
    assert!(status.observed_generation <= live.metadata.generation);
    let of = |count: Option<i32>| count.unwrap_or(0);
    let counted = (status.replicas, of(status.fully_labeled_replicas));
    (counted.0, counted.1, of(status.ready_replicas), of(status.available_replicas))
}

#[tokio::test(start_paused = true)]
async fn pods_are_adopted_released_and_counted() {
    let lab = Lab::start(1, runs).await;
    let mut orphan = Pod { metadata: metadata("orphan"), spec: template("web", "i").spec, status: None };
    orphan.metadata.labels = Some(labels("web"));
    lab.create(&orphan).await;
    lab.create(&controller(3)).await;
    lab.until("available", async || counts(&lab).await == (3, 3, 3, 3)).await;
    let adopted: Pod = lab.get("orphan").await;
    let owner = adopted.controller_ref().unwrap();
    assert_eq!((owner.kind.as_str(), owner.name.as_str()), ("ReplicationController", "web"));
    let live: ReplicationController = lab.get("web").await;
    assert_eq!(live.status.unwrap().observed_generation, live.metadata.generation);

    lab.edit("orphan", |pod: &mut Pod| pod.metadata.labels = Some(labels("other"))).await;
    lab.until("released", async || lab.get::<Pod>("orphan").await.controller_ref().is_none()).await;
    lab.until("made up for", async || lab.list::<Pod>().await.iter().filter(|p| is_active(p)).count() == 4)
        .await;

    let mut scale: Scale = lab.api::<ReplicationController>().get_subresource("web", "scale").await.unwrap();
    assert_eq!(scale.status.clone().unwrap().selector.as_deref(), Some("app=web"));
    scale.spec.get_or_insert_default().replicas = Some(1);
    let api = lab.api::<ReplicationController>();
    let _: Scale = api.replace_subresource("web", "scale", &scale).await.unwrap();
    lab.until("scaled", async || counts(&lab).await == (1, 1, 1, 1)).await;
    assert!(lab.heard("ReplicationController", "SuccessfulCreate", "Created pod: web-").await);
    assert!(lab.heard("ReplicationController", "SuccessfulDelete", "Deleted pod: ").await);
    lab.is_quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_a_condition_until_it_is_over() {
    let lab = Lab::start(1, runs).await;
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "2"}}});
    lab.create::<ResourceQuota>(&serde_json::from_value(quota).unwrap()).await;
    lab.until("counted", async || {
        lab.get::<ResourceQuota>("q").await.status.is_some_and(|s| s.used.is_some())
    })
    .await;
    lab.create(&controller(3)).await;
    let failure = async || {
        let status = lab.get::<ReplicationController>("web").await.status.unwrap_or_default();
        status.conditions.into_iter().flatten().find(|c| c.type_ == "ReplicaFailure")
    };
    lab.until("told", async || failure().await.is_some()).await;
    let condition = failure().await.unwrap();
    assert_eq!((condition.status.as_str(), condition.reason.as_deref()), ("True", Some("FailedCreate")));
    assert!(condition.message.unwrap().contains("exceeded quota: q"));
    assert!(lab.heard("ReplicationController", "FailedCreate", "exceeded quota: q").await);
    lab.edit("web", |c: &mut ReplicationController| c.spec.as_mut().unwrap().replicas = Some(2)).await;
    lab.until("over", async || failure().await.is_none()).await;
    lab.until("available", async || counts(&lab).await == (2, 2, 2, 2)).await;
}
