//! PersistentVolumes, claims, and ephemeral volumes.

use k8s_builtin::pods::is_ready;
use k8s_core::{
    api::api::{
        core::v1::{Event, PersistentVolume, PersistentVolumeClaim, Pod},
        storage::v1::StorageClass,
    },
    meta::ObjectExt,
};
use serde_json::{Value, json};

use crate::{lab::Lab, runs};

async fn volume(lab: &Lab, name: &str, extra: Value) {
    let mut spec = json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
        "hostPath": {"path": "/data"}});
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let volume = json!({"metadata": {"name": name}, "spec": spec});
    lab.create::<PersistentVolume>(&serde_json::from_value(volume).unwrap()).await;
}

async fn claim(lab: &Lab, name: &str, extra: Value) {
    let mut spec = json!({"resources": {"requests": {"storage": "1Gi"}}, "accessModes": ["ReadWriteOnce"],
        "storageClassName": ""});
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let claim = json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec});
    lab.create::<PersistentVolumeClaim>(&serde_json::from_value(claim).unwrap()).await;
}

async fn phase_of_volume(lab: &Lab, name: &str) -> String {
    let volume: PersistentVolume = lab.get(name).await;
    volume.status.and_then(|status| status.phase).unwrap_or_default()
}

async fn phase_of_claim(lab: &Lab, name: &str) -> String {
    let claim: PersistentVolumeClaim = lab.get(name).await;
    claim.status.and_then(|status| status.phase).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn reservations_hold_in_both_directions() {
    let lab = Lab::start(1, runs).await;
    volume(&lab, "theirs", json!({"claimRef": {"namespace": "default", "name": "reserved"}})).await;
    claim(&lab, "other", json!({})).await;
    lab.until("told", async || {
        lab.heard("PersistentVolumeClaim", "FailedBinding", "no persistent volumes").await
    })
    .await;
    assert_eq!(phase_of_claim(&lab, "other").await, "Pending");
    claim(&lab, "reserved", json!({})).await;
    lab.until("bound", async || phase_of_claim(&lab, "reserved").await == "Bound").await;
    assert_eq!(phase_of_volume(&lab, "theirs").await, "Bound");
    claim(&lab, "late", json!({"volumeName": "theirs"})).await;
    let message = "volume \"theirs\" already bound to a different claim.";
    lab.until("refused", async || lab.heard("PersistentVolumeClaim", "FailedBinding", message).await).await;
    claim(&lab, "greedy", json!({"volumeName": "small", "resources": {"requests": {"storage": "5Gi"}}}))
        .await;
    volume(&lab, "small", json!({"claimRef": null})).await;
    let message = "Cannot bind to requested volume \"small\": requested PV is too small";
    lab.until("too small", async || lab.heard("PersistentVolumeClaim", "VolumeMismatch", message).await)
        .await;
    // The free volume is for the claim that waits for any.
    lab.until("bound", async || phase_of_claim(&lab, "other").await == "Bound").await;
    lab.is_quiet().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_or_failed_is_told() {
    let lab = Lab::start(1, runs).await;
    volume(&lab, "v", json!({"persistentVolumeReclaimPolicy": "Delete"})).await;
    claim(&lab, "c", json!({})).await;
    lab.until("bound", async || phase_of_claim(&lab, "c").await == "Bound").await;
    lab.delete::<PersistentVolumeClaim>("c", "Background").await;
    lab.until("failed", async || phase_of_volume(&lab, "v").await == "Failed").await;
    let message = "error getting deleter volume plugin for volume \"v\": the cluster deletes no hostPath volumes: remove the directory \"/data\" of the node and the PersistentVolume";
    assert_eq!(lab.get::<PersistentVolume>("v").await.status.unwrap().message.as_deref(), Some(message));
    assert!(lab.heard("PersistentVolume", "VolumeFailedDelete", message).await);
    let told: Vec<Event> = lab.list_in("").await;
    let told = told.iter().filter(|e| e.reason.as_deref() == Some("VolumeFailedDelete"));
    assert_eq!(told.map(|e| e.count.unwrap_or(1)).sum::<i32>(), 1, "once");

    volume(&lab, "w", json!({})).await;
    claim(&lab, "d", json!({})).await;
    lab.until("bound", async || phase_of_claim(&lab, "d").await == "Bound").await;
    lab.delete::<PersistentVolume>("w", "Background").await;
    // Its claim protects it; somebody forces it.
    lab.edit("w", |volume: &mut PersistentVolume| volume.metadata.finalizers = None).await;
    lab.until("lost", async || phase_of_claim(&lab, "d").await == "Lost").await;
    let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
    assert!(lab.heard("PersistentVolumeClaim", "ClaimLost", message).await);
    lab.is_quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_without_class_gets_a_default_that_comes_later() {
    let lab = Lab::start(1, runs).await;
    claim(&lab, "c", json!({"storageClassName": null})).await;
    lab.until("pending", async || phase_of_claim(&lab, "c").await == "Pending").await;
    let metadata =
        json!({"name": "usual", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}});
    let class = json!({"metadata": metadata, "provisioner": "kubernetes.io/no-provisioner"});
    lab.create::<StorageClass>(&serde_json::from_value(class).unwrap()).await;
    lab.until("classified", async || {
        let claim: PersistentVolumeClaim = lab.get("c").await;
        claim.spec.unwrap().storage_class_name.as_deref() == Some("usual")
    })
    .await;
    lab.is_quiet().await;
}

#[tokio::test(start_paused = true)]
async fn ephemeral_volumes_have_claims_that_go_with_their_pod() {
    let lab = Lab::start(1, runs).await;
    volume(&lab, "v", json!({})).await;
    let template = json!({"metadata": {"labels": {"kind": "scratch"}}, "spec": {"storageClassName": "",
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let pod = |name: &str| {
        let volumes = json!([{"name": "data", "ephemeral": {"volumeClaimTemplate": template}}]);
        let spec = json!({"containers": [{"name": "c", "image": "i"}], "volumes": volumes});
        let pod = json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec});
        serde_json::from_value::<Pod>(pod).unwrap()
    };
    lab.create(&pod("web")).await;
    lab.until("runs", async || is_ready(&lab.get::<Pod>("web").await)).await;
    let claim: PersistentVolumeClaim = lab.get("web-data").await;
    assert_eq!(
        (claim.label("kind"), claim.controller_ref().unwrap().name.as_str()),
        (Some("scratch"), "web")
    );

    // A claim of that name that the pod does not own is left alone.
    self::claim(&lab, "db-data", json!({})).await;
    lab.create(&pod("db")).await;
    let message =
        "ephemeral volume data: PVC default/db-data was not created for pod default/db (pod is not owner)";
    lab.until("told", async || lab.heard("Pod", "FailedBinding", message).await).await;
    lab.delete::<Pod>("web", "Background").await;
    lab.until("goes", async || {
        let all: Vec<PersistentVolumeClaim> = lab.list().await;
        all.iter().map(|claim| claim.name()).eq(["db-data"])
    })
    .await;
}
