//! Deployments and ReplicaSets: the effect of each field, and the events.

use std::time::Duration;

use k8s_builtin::conditions::{self, Condition};
use k8s_core::{
    api::{
        api::{
            apps::v1::{
                Deployment, DeploymentCondition, DeploymentStrategy, ReplicaSet, RollingUpdateDeployment,
            },
            core::v1::Pod,
        },
        apimachinery::pkg::util::intstr::IntOrString,
    },
    meta::ObjectExt,
};

use crate::{
    deployment, is_rolled_out,
    lab::{Lab, selector, template},
    runs,
};

const REVISION: &str = "deployment.kubernetes.io/revision";

/// Pods with the image `bad` never run.
fn bad_never_runs(pod: &Pod) -> &'static str {
    let image = pod.spec.as_ref().and_then(|s| s.containers[0].image.as_deref());
    if image == Some("bad") { "Pending" } else { "Running" }
}

async fn condition(lab: &Lab, kind: &str) -> Option<DeploymentCondition> {
    let live: Deployment = lab.get("web").await;
    conditions::find(live.status.as_ref()?.conditions.as_ref(), kind).cloned()
}

async fn is_said(lab: &Lab, kind: &str, status: &str, reason: &str, message: &str) -> bool {
    let found = condition(lab, kind).await;
    found.is_some_and(|c| c.status == status && c.reason() == reason && c.message().contains(message))
}

async fn set_image(lab: &Lab, image: &str) {
    lab.edit("web", |d: &mut Deployment| d.spec.as_mut().unwrap().template = template("web", image)).await;
}

async fn sizes(lab: &Lab) -> Vec<(String, i32)> {
    let mut all: Vec<(String, i32)> = Vec::new();
    for set in lab.list::<ReplicaSet>().await {
        let spec = set.spec.unwrap();
        let image = spec.template.unwrap().spec.unwrap().containers[0].image.clone().unwrap();
        all.push((image, spec.replicas.unwrap_or(0)));
    }
    all.sort();
    all
}

fn is(sizes: &[(String, i32)], want: &[(&str, i32)]) -> bool {
    sizes.iter().map(|(image, size)| (image.as_str(), *size)).eq(want.iter().copied())
}

fn rolling(surge: i32, unavailable: i32) -> DeploymentStrategy {
    DeploymentStrategy {
        rolling_update: Some(RollingUpdateDeployment {
            max_surge: Some(IntOrString::Int(surge)),
            max_unavailable: Some(IntOrString::Int(unavailable)),
        }),
        type_: Some("RollingUpdate".into()),
    }
}

#[tokio::test(start_paused = true)]
async fn a_rollout_that_stands_still_says_so_and_goes_on_when_it_can() {
    let lab = Lab::start(2, bad_never_runs).await;
    let mut web = deployment("web", 3);
    web.spec.as_mut().unwrap().progress_deadline_seconds = Some(60);
    lab.create(&web).await;
    lab.until("complete", async || {
        is_said(&lab, "Progressing", "True", "NewReplicaSetAvailable", "has successfully progressed.").await
    })
    .await;
    assert!(
        is_said(&lab, "Available", "True", "MinimumReplicasAvailable", "has minimum availability.").await
    );
    set_image(&lab, "bad").await;
    lab.until("progressing", async || {
        is_said(&lab, "Progressing", "True", "ReplicaSetUpdated", "is progressing.").await
    })
    .await;
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert!(is_said(&lab, "Progressing", "True", "ReplicaSetUpdated", "").await, "too early");
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(
        is_said(&lab, "Progressing", "False", "ProgressDeadlineExceeded", "has timed out progressing.").await
    );
    lab.is_quiet().await;
    set_image(&lab, "two").await;
    lab.until("complete", async || is_said(&lab, "Progressing", "True", "NewReplicaSetAvailable", "").await)
        .await;
    assert!(is_rolled_out(&lab.get("web").await));
}

#[tokio::test(start_paused = true)]
async fn a_paused_deployment_scales_and_does_not_roll() {
    let lab = Lab::start(2, runs).await;
    lab.create(&deployment("web", 2)).await;
    lab.until("complete", async || is_rolled_out(&lab.get("web").await)).await;
    lab.edit("web", |d: &mut Deployment| {
        let spec = d.spec.as_mut().unwrap();
        spec.paused = Some(true);
        spec.template = template("web", "two");
    })
    .await;
    lab.until("paused", async || {
        is_said(&lab, "Progressing", "Unknown", "DeploymentPaused", "Deployment is paused").await
    })
    .await;
    lab.edit("web", |d: &mut Deployment| d.spec.as_mut().unwrap().replicas = Some(4)).await;
    lab.until("scaled", async || is(&sizes(&lab).await, &[("one", 4)])).await;
    // Paused time does not count towards the deadline.
    tokio::time::sleep(Duration::from_secs(1200)).await;
    assert!(is(&sizes(&lab).await, &[("one", 4)]));
    assert!(is_said(&lab, "Progressing", "Unknown", "DeploymentPaused", "").await);
    lab.edit("web", |d: &mut Deployment| d.spec.as_mut().unwrap().paused = None).await;
    lab.until("rolled", async || is(&sizes(&lab).await, &[("one", 0), ("two", 4)])).await;
    lab.until("complete", async || is_said(&lab, "Progressing", "True", "NewReplicaSetAvailable", "").await)
        .await;
}

/// The example of upstream's documentation: ten replicas, maxSurge 3, maxUnavailable 2, an image that cannot
/// be pulled; then fifteen replicas.
#[tokio::test(start_paused = true)]
async fn scaling_in_a_rollout_is_proportional() {
    let lab = Lab::start(2, bad_never_runs).await;
    let mut web = deployment("web", 10);
    web.spec.as_mut().unwrap().strategy = Some(rolling(3, 2));
    lab.create(&web).await;
    lab.until("complete", async || is_rolled_out(&lab.get("web").await)).await;
    set_image(&lab, "bad").await;
    lab.until("stuck", async || is(&sizes(&lab).await, &[("bad", 5), ("one", 8)])).await;
    lab.is_quiet().await;
    lab.edit("web", |d: &mut Deployment| d.spec.as_mut().unwrap().replicas = Some(15)).await;
    lab.until("spread", async || is(&sizes(&lab).await, &[("bad", 7), ("one", 11)])).await;
    lab.is_quiet().await;
    assert!(is(&sizes(&lab).await, &[("bad", 7), ("one", 11)]));
    let status = lab.get::<Deployment>("web").await.status.unwrap();
    assert_eq!((status.replicas, status.updated_replicas), (Some(18), Some(7)));
    assert_eq!((status.available_replicas, status.unavailable_replicas), (Some(11), Some(7)));
}

#[tokio::test(start_paused = true)]
async fn history_is_kept_as_long_as_asked_and_old_clients_roll_back() {
    let lab = Lab::start(2, runs).await;
    let mut web = deployment("web", 1);
    web.spec.as_mut().unwrap().revision_history_limit = Some(2);
    web.metadata.annotations = Some([("note".to_owned(), "first".to_owned())].into());
    lab.create(&web).await;
    for image in ["two", "three", "four"] {
        lab.until("complete", async || is_rolled_out(&lab.get("web").await)).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        lab.edit("web", |d: &mut Deployment| {
            d.spec.as_mut().unwrap().template = template("web", image);
            d.metadata.annotations.as_mut().unwrap().insert("note".into(), image.into());
        })
        .await;
    }
    lab.until("pruned", async || is(&sizes(&lab).await, &[("four", 1), ("three", 0), ("two", 0)])).await;
    let roll_back = async |to: &'static str| {
        lab.edit("web", move |d: &mut Deployment| {
            let all = d.metadata.annotations.as_mut().unwrap();
            all.insert("deprecated.deployment.rollback.to".into(), to.into());
        })
        .await;
    };
    roll_back("2").await;
    lab.until("back at two", async || {
        is(&sizes(&lab).await, &[("four", 0), ("three", 0), ("two", 1)])
            && is_rolled_out(&lab.get("web").await)
    })
    .await;
    let live: Deployment = lab.get("web").await;
    assert_eq!(live.annotation(REVISION), Some("5"));
    assert_eq!(live.annotation("note"), Some("two"), "annotations come back too");
    assert!(live.annotation("deprecated.deployment.rollback.to").is_none());
    lab.until("told", async || {
        lab.heard("Deployment", "DeploymentRollback", "Rolled back deployment \"web\" to revision 2").await
    })
    .await;
    roll_back("77").await;
    lab.until("not found", async || {
        let text = "Unable to find the revision to rollback to.";
        lab.heard("Deployment", "DeploymentRollbackRevisionNotFound", text).await
    })
    .await;
    roll_back("5").await;
    lab.until("unchanged", async || lab.heard("Deployment", "DeploymentRollbackTemplateUnchanged", "").await)
        .await;
    lab.is_quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_taken_is_avoided() {
    let lab = Lab::start(1, runs).await;
    lab.create(&deployment("web", 1)).await;
    lab.until("complete", async || is_rolled_out(&lab.get("web").await)).await;
    let name = lab.list::<ReplicaSet>().await[0].name().to_owned();
    lab.delete::<Deployment>("web", "Foreground").await;
    lab.until("gone", async || {
        lab.list::<Pod>().await.is_empty() && lab.list::<ReplicaSet>().await.is_empty()
    })
    .await;
    let mut foreign = ReplicaSet { metadata: crate::lab::metadata(&name), ..ReplicaSet::default() };
    let spec = foreign.spec.get_or_insert_default();
    (spec.replicas, spec.selector, spec.template) = (Some(0), selector("x"), Some(template("x", "x")));
    lab.create(&foreign).await;
    lab.create(&deployment("web", 1)).await;
    lab.until("complete", async || is_rolled_out(&lab.get("web").await)).await;
    assert_eq!(lab.get::<Deployment>("web").await.status.unwrap().collision_count, Some(1));
    assert_eq!(lab.list::<ReplicaSet>().await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn pods_are_available_after_their_time_and_refusals_are_told() {
    let lab = Lab::start(1, runs).await;
    let mut web = deployment("web", 2);
    web.spec.as_mut().unwrap().min_ready_seconds = Some(30);
    lab.create(&web).await;
    let status = async || lab.get::<Deployment>("web").await.status.unwrap_or_default();
    lab.until("ready", async || status().await.ready_replicas == Some(2)).await;
    assert_eq!((status().await.available_replicas, status().await.terminating_replicas), (None, Some(0)));
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert_eq!(status().await.available_replicas, None);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(status().await.available_replicas, Some(2));
    assert!(is_rolled_out(&lab.get("web").await));
    // A missing service account: no pod is admitted.
    lab.edit("web", |d: &mut Deployment| {
        d.spec.as_mut().unwrap().template.spec.as_mut().unwrap().service_account_name = Some("nobody".into());
    })
    .await;
    lab.until("told", async || is_said(&lab, "ReplicaFailure", "True", "FailedCreate", "forbidden").await)
        .await;
    assert!(lab.heard("ReplicaSet", "FailedCreate", "Error creating: ").await);
    set_image(&lab, "two").await;
    lab.until("complete", async || is_rolled_out(&lab.get("web").await)).await;
    assert!(condition(&lab, "ReplicaFailure").await.is_none());
}
