//! Provisioning of volumes by a driver: what users see of it, with nodes and pods.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use k8s_builtin::{
    pods::{is_ready, node_name},
    provisioner::{
        Expander, Expanding, Failure, Provisioner, Provisioning, Reclaiming, Wanted, claims, expansions,
        volumes,
    },
};
use k8s_controllers::Context;
use k8s_core::{
    api::api::{
        core::v1::{
            HostPathVolumeSource, Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod,
        },
        storage::v1::StorageClass,
    },
    api::apimachinery::pkg::api::resource::Quantity as ApiQuantity,
    meta::{ObjectExt, Quantity},
};
use serde_json::{Value, json};

use crate::{lab::Lab, runs};

const DRIVER: &str = "x.io";

/// Remembers the nodes of its directories, by volume. `broken` is the error of every call.
#[derive(Debug, Default)]
struct Fake {
    made: Mutex<BTreeMap<String, String>>,
    broken: Mutex<Option<Failure>>,
    /// A node on which it can make none.
    refuses: Mutex<Option<&'static str>>,
    /// The sizes to which volumes were to be expanded.
    expanded: Mutex<Vec<String>>,
}

impl Provisioner for Fake {
    fn name(&self) -> &'static str {
        DRIVER
    }

    async fn provision(&self, _: &Context, wanted: &Wanted<'_>) -> Result<PersistentVolumeSpec, Failure> {
        let node = wanted.node.map_or("", |node| node.name());
        if let Some(failure) = self.broken.lock().unwrap().clone() {
            return Err(failure);
        }
        if *self.refuses.lock().unwrap() == Some(node) {
            return Err(Failure::elsewhere(format!("no space on {node}")));
        }
        self.made.lock().unwrap().insert(wanted.volume.to_owned(), node.to_owned());
        let host_path = Some(HostPathVolumeSource { path: format!("/v/{}", wanted.volume), type_: None });
        Ok(PersistentVolumeSpec { host_path, ..PersistentVolumeSpec::default() })
    }

    async fn delete(&self, _: &Context, volume: &PersistentVolume) -> Result<(), Failure> {
        if let Some(failure) = self.broken.lock().unwrap().clone() {
            return Err(failure);
        }
        self.made.lock().unwrap().remove(volume.name());
        Ok(())
    }
}

impl Expander for Fake {
    async fn expand(&self, _: &Context, _: &PersistentVolume, size: Quantity) -> Result<Quantity, Failure> {
        self.expanded.lock().unwrap().push(size.to_string());
        match self.broken.lock().unwrap().clone() {
            Some(failure) => Err(failure),
            // It gives whole gibibytes.
            None => Ok(Quantity::from_bytes((size.units() + (1 << 30) - 1) >> 30 << 30)),
        }
    }
}

impl Fake {
    fn nodes(&self) -> Vec<String> {
        self.made.lock().unwrap().values().cloned().collect()
    }
}

/// Starts a lab with a driver, and its class `fast` with more fields.
async fn start(nodes: usize, class: Value) -> (Lab, Arc<Fake>) {
    let lab = Lab::start(nodes, runs).await;
    let driver = Arc::new(Fake::default());
    tokio::spawn(claims(DRIVER).run(lab.client.clone(), Provisioning(driver.clone())));
    tokio::spawn(volumes(DRIVER).run(lab.client.clone(), Reclaiming(driver.clone())));
    tokio::spawn(expansions(DRIVER).run(lab.client.clone(), Expanding(driver.clone())));
    let mut full = json!({"metadata": {"name": "fast"}, "provisioner": DRIVER,
        "volumeBindingMode": "WaitForFirstConsumer"});
    full.as_object_mut().unwrap().extend(class.as_object().unwrap().clone());
    lab.create::<StorageClass>(&serde_json::from_value(full).unwrap()).await;
    (lab, driver)
}

async fn claim(lab: &Lab, name: &str, annotations: Value) -> PersistentVolumeClaim {
    let spec = json!({"resources": {"requests": {"storage": "1Gi"}}, "accessModes": ["ReadWriteOnce"],
        "storageClassName": "fast"});
    let metadata = json!({"name": name, "namespace": "default", "annotations": annotations});
    let claim = json!({"metadata": metadata, "spec": spec});
    lab.create::<PersistentVolumeClaim>(&serde_json::from_value(claim).unwrap()).await
}

async fn pod(lab: &Lab, name: &str, claim: &str) {
    let volumes = json!([{"name": "d", "persistentVolumeClaim": {"claimName": claim}}]);
    let spec = json!({"containers": [{"name": "c", "image": "i"}], "volumes": volumes});
    let pod = json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec});
    lab.create::<Pod>(&serde_json::from_value(pod).unwrap()).await;
}

async fn runs_on(lab: &Lab, name: &str) -> String {
    lab.until("the pod runs", async || is_ready(&lab.get::<Pod>(name).await)).await;
    node_name(&lab.get::<Pod>(name).await).to_owned()
}

async fn heard(lab: &Lab, reason: &str, part: &str) {
    lab.until(reason, async || lab.heard("PersistentVolumeClaim", reason, part).await).await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_made_for_the_first_pod_and_goes_with_the_claim() {
    let (lab, driver) = start(3, json!({})).await;
    let uid = claim(&lab, "c", json!({})).await.uid().to_owned();
    heard(&lab, "WaitForFirstConsumer", "waiting for first consumer to be created before binding").await;
    assert!(driver.nodes().is_empty());
    pod(&lab, "p", "c").await;
    let node = runs_on(&lab, "p").await;
    assert_eq!(driver.nodes(), std::slice::from_ref(&node));

    let claim: PersistentVolumeClaim = lab.get("c").await;
    for key in ["storage-provisioner", "selected-node"] {
        let want = if key == "selected-node" { node.as_str() } else { DRIVER };
        assert_eq!(claim.annotation(&format!("volume.kubernetes.io/{key}")), Some(want));
    }
    assert_eq!(claim.annotation("volume.beta.kubernetes.io/storage-provisioner"), Some(DRIVER));
    let name = format!("pvc-{uid}");
    let volume: PersistentVolume = lab.get(&name).await;
    assert_eq!(volume.annotation("pv.kubernetes.io/provisioned-by"), Some(DRIVER));
    let spec = volume.spec.unwrap();
    assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some("Delete"));
    assert_eq!(spec.capacity.unwrap()["storage"].0, "1Gi");
    assert_eq!(spec.claim_ref.unwrap().uid.as_deref(), Some(&*uid));
    heard(&lab, "ExternalProvisioning", "created either by the external provisioner 'x.io'").await;
    heard(&lab, "Provisioning", "External provisioner is provisioning volume for claim \"default/c\"").await;
    heard(&lab, "ProvisioningSucceeded", &format!("Successfully provisioned volume {name}")).await;
    lab.is_quiet().await;

    // A claim in use stays; without its pod it goes, and its data with it.
    lab.delete::<PersistentVolumeClaim>("c", "Background").await;
    lab.is_quiet().await;
    assert_eq!(driver.nodes().len(), 1);
    lab.delete::<Pod>("p", "Background").await;
    lab.until("all gone", async || {
        driver.nodes().is_empty() && lab.list::<PersistentVolume>().await.is_empty()
    })
    .await;
    lab.is_quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_retained_volume_keeps_its_data() {
    let (lab, driver) = start(1, json!({"reclaimPolicy": "Retain"})).await;
    let name = format!("pvc-{}", claim(&lab, "c", json!({})).await.uid());
    pod(&lab, "p", "c").await;
    runs_on(&lab, "p").await;
    lab.delete::<Pod>("p", "Background").await;
    lab.delete::<PersistentVolumeClaim>("c", "Background").await;
    let phase = async || lab.get::<PersistentVolume>(&name).await.status.unwrap().phase.unwrap();
    lab.until("released", async || phase().await == "Released").await;
    lab.delete::<PersistentVolume>(&name, "Background").await;
    lab.until("gone", async || lab.list::<PersistentVolume>().await.is_empty()).await;
    assert_eq!(driver.nodes().len(), 1, "the data is the administrator's");
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_is_deleted_first_takes_its_data_along() {
    let (lab, driver) = start(1, json!({"volumeBindingMode": "Immediate"})).await;
    let name = format!("pvc-{}", claim(&lab, "c", json!({})).await.uid());
    let phase = async || lab.get::<PersistentVolumeClaim>("c").await.status.unwrap().phase;
    lab.until("bound", async || phase().await.as_deref() == Some("Bound")).await;
    assert_eq!(driver.nodes(), [""], "without a pod");
    lab.delete::<PersistentVolume>(&name, "Background").await;
    lab.is_quiet().await;
    assert_eq!(driver.nodes().len(), 1, "it is bound");
    lab.delete::<PersistentVolumeClaim>("c", "Background").await;
    lab.until("gone", async || lab.list::<PersistentVolume>().await.is_empty()).await;
    assert!(driver.nodes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_fails_is_tried_again() {
    let (lab, driver) = start(1, json!({})).await;
    let name = format!("pvc-{}", claim(&lab, "c", json!({})).await.uid());
    *driver.broken.lock().unwrap() = Some(Failure::again("the disk is away"));
    pod(&lab, "p", "c").await;
    heard(
        &lab,
        "ProvisioningFailed",
        "failed to provision volume with StorageClass \"fast\": the disk is away",
    )
    .await;
    assert!(!is_ready(&lab.get::<Pod>("p").await));
    *driver.broken.lock().unwrap() = None;
    runs_on(&lab, "p").await;

    *driver.broken.lock().unwrap() = Some(Failure::again("the node is away"));
    lab.delete::<Pod>("p", "Background").await;
    lab.delete::<PersistentVolumeClaim>("c", "Background").await;
    let told = async || lab.heard("PersistentVolume", "VolumeFailedDelete", "the node is away").await;
    lab.until("told", told).await;
    assert!(!lab.get::<PersistentVolume>(&name).await.is_deleting(), "its data is still there");
    *driver.broken.lock().unwrap() = None;
    lab.until("gone", async || lab.list::<PersistentVolume>().await.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_cannot_is_chosen_anew() {
    let (lab, driver) = start(2, json!({})).await;
    // n0 is the only one that pods may use, and has no room.
    *driver.refuses.lock().unwrap() = Some("n0");
    lab.edit("n1", |node: &mut Node| node.spec.get_or_insert_default().unschedulable = Some(true)).await;
    claim(&lab, "c", json!({})).await;
    pod(&lab, "p", "c").await;
    heard(&lab, "ProvisioningFailed", "no space on n0").await;
    lab.edit("n0", |node: &mut Node| node.spec.get_or_insert_default().unschedulable = Some(true)).await;
    lab.edit("n1", |node: &mut Node| node.spec.get_or_insert_default().unschedulable = None).await;
    assert_eq!(runs_on(&lab, "p").await, "n1");
    assert_eq!(driver.nodes(), ["n1"]);
}

#[tokio::test(start_paused = true)]
async fn a_chosen_node_that_is_gone_is_chosen_anew() {
    let (lab, driver) = start(1, json!({})).await;
    claim(&lab, "c", json!({"volume.kubernetes.io/selected-node": "gone"})).await;
    heard(&lab, "ProvisioningFailed", "failed to get target node: nodes \"gone\" not found").await;
    pod(&lab, "p", "c").await;
    assert_eq!(runs_on(&lab, "p").await, "n0");
    assert_eq!(driver.nodes(), ["n0"]);
}

#[tokio::test(start_paused = true)]
async fn a_class_of_another_provisioner_waits_quietly() {
    let (lab, driver) = start(1, json!({"provisioner": "nobody.io"})).await;
    claim(&lab, "c", json!({})).await;
    pod(&lab, "p", "c").await;
    heard(&lab, "ExternalProvisioning", "the external provisioner 'nobody.io'").await;
    lab.is_quiet().await;
    assert!(driver.nodes().is_empty());
    assert!(!is_ready(&lab.get::<Pod>("p").await));
}

/// Starts a lab whose claim `c` of 1 GiB is bound, of a class that permits more.
async fn bound() -> (Lab, Arc<Fake>) {
    let (lab, driver) =
        start(1, json!({"volumeBindingMode": "Immediate", "allowVolumeExpansion": true})).await;
    claim(&lab, "c", json!({})).await;
    let phase = async || lab.get::<PersistentVolumeClaim>("c").await.status.unwrap().phase;
    lab.until("bound", async || phase().await.as_deref() == Some("Bound")).await;
    lab.is_quiet().await;
    (lab, driver)
}

async fn ask(lab: &Lab, size: &str) {
    lab.edit("c", |claim: &mut PersistentVolumeClaim| {
        let resources = claim.spec.as_mut().unwrap().resources.as_mut().unwrap();
        resources.requests.as_mut().unwrap().insert("storage".into(), ApiQuantity(size.into()));
    })
    .await;
}

/// The claim's status without its times, and the capacity of its volume.
async fn sizes(lab: &Lab) -> (Value, String) {
    let claim: PersistentVolumeClaim = lab.get("c").await;
    let mut status = serde_json::to_value(claim.status).unwrap();
    for condition in status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
        condition.as_object_mut().unwrap().retain(|key, _| key == "type" || key == "message");
    }
    status.as_object_mut().unwrap().retain(|key, _| key != "phase" && key != "accessModes");
    let volume: PersistentVolume = lab.get(&claim.spec.unwrap().volume_name.unwrap()).await;
    (status, volume.spec.unwrap().capacity.unwrap()["storage"].0.clone())
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_asks_for_more_gets_it() {
    let (lab, driver) = bound().await;
    ask(&lab, "1500Mi").await;
    lab.until("expanded", async || sizes(&lab).await.1 == "2Gi").await;
    lab.is_quiet().await;
    let done = json!({"capacity": {"storage": "2Gi"}, "allocatedResources": {"storage": "1500Mi"}});
    assert_eq!(sizes(&lab).await, (done, "2Gi".to_owned()));
    heard(&lab, "Resizing", "External resizer is resizing volume pvc-").await;
    heard(&lab, "VolumeResizeSuccessful", "Resize volume succeeded").await;
    // That much it has already.
    ask(&lab, "2Gi").await;
    lab.is_quiet().await;
    assert_eq!(*driver.expanded.lock().unwrap(), ["1500Mi"]);
}

#[tokio::test(start_paused = true)]
async fn an_expansion_that_fails_is_tried_again_with_the_same_size() {
    let (lab, driver) = bound().await;
    *driver.broken.lock().unwrap() = Some(Failure::again("the disk is away"));
    ask(&lab, "3Gi").await;
    heard(&lab, "VolumeResizeFailed", "by resizer \"x.io\" failed: the disk is away").await;
    ask(&lab, "2Gi").await;
    tokio::time::sleep(std::time::Duration::from_secs(3600)).await;
    let (status, capacity) = sizes(&lab).await;
    assert_eq!(capacity, "1Gi");
    assert_eq!(status["capacity"]["storage"], "1Gi");
    assert_eq!(status["allocatedResourceStatuses"]["storage"], "ControllerResizeInProgress");
    let kinds: Vec<&Value> = status["conditions"].as_array().unwrap().iter().map(|c| &c["type"]).collect();
    assert_eq!(kinds, ["Resizing", "ControllerResizeError"]);
    let tries = driver.expanded.lock().unwrap().clone();
    assert!((5..30).contains(&tries.len()) && tries.iter().all(|size| size == "3Gi"), "{tries:?}");
    *driver.broken.lock().unwrap() = None;
    // The longest time between two tries.
    tokio::time::sleep(std::time::Duration::from_secs(1000)).await;
    lab.until("expanded", async || sizes(&lab).await.1 == "3Gi").await;
    lab.is_quiet().await;
    let done = json!({"capacity": {"storage": "3Gi"}, "allocatedResources": {"storage": "3Gi"}});
    assert_eq!(sizes(&lab).await.0, done);
}

#[tokio::test(start_paused = true)]
async fn after_an_infeasible_size_a_claim_may_ask_for_less() {
    let (lab, driver) = bound().await;
    *driver.broken.lock().unwrap() = Some(Failure::infeasible("at most 10Gi"));
    ask(&lab, "100Gi").await;
    let state = async || sizes(&lab).await.0["allocatedResourceStatuses"]["storage"].clone();
    lab.until("told", async || state().await == "ControllerResizeInfeasible").await;
    *driver.broken.lock().unwrap() = None;
    ask(&lab, "5Gi").await;
    lab.until("expanded", async || sizes(&lab).await.1 == "5Gi").await;
    lab.is_quiet().await;
    assert_eq!(*driver.expanded.lock().unwrap(), ["100Gi", "5Gi"]);
}
