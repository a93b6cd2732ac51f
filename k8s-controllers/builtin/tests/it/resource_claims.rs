//! ResourceClaims of pods: made from templates, reserved, released, deleted.

use k8s_core::{
    api::api::{
        core::v1::{Node, Pod},
        resource::v1::{DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice},
    },
    meta::ObjectExt,
};
use serde_json::{Value, json};

use crate::{
    lab::{Lab, metadata},
    runs,
};

const FINALIZER: &str = "resource.kubernetes.io/delete-protection";

fn template() -> ResourceClaimTemplate {
    let devices = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu"}}]});
    let spec = json!({"metadata": {"labels": {"app": "x"}}, "spec": {"devices": devices}});
    serde_json::from_value(json!({"metadata": {"name": "t"}, "spec": spec})).unwrap()
}

/// A pod on a node that was set without the scheduler; the lab's kubelet runs it.
fn pod(name: &str, claims: Value) -> Pod {
    let spec =
        json!({"nodeName": "n0", "containers": [{"name": "c", "image": "i"}], "resourceClaims": claims});
    let mut made: Pod = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
    made.metadata = metadata(name);
    made
}

fn reserved(claim: &ResourceClaim) -> Vec<String> {
    let all = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
    let mut names: Vec<String> = all.map(|consumer| consumer.name.clone()).collect();
    names.sort();
    names
}

fn allocated(claim: &ResourceClaim) -> bool {
    claim.status.as_ref().is_some_and(|status| status.allocation.is_some())
}

/// Allocates as the scheduler does: the finalizer first.
async fn allocate(lab: &Lab, name: &str) {
    lab.edit(name, |claim: &mut ResourceClaim| claim.metadata.finalizers = Some(vec![FINALIZER.into()]))
        .await;
    let mut live: ResourceClaim = lab.get(name).await;
    live.status.get_or_insert_default().allocation = serde_json::from_value(json!({"devices": {"results": [
        {"request": "r", "driver": "d.example.com", "pool": "p", "device": "gpu-0"}]}}))
    .unwrap();
    lab.api::<ResourceClaim>().replace_status(name, &live).await.unwrap();
}

async fn generated(lab: &Lab, pod: &str) -> Option<String> {
    let status = lab.get::<Pod>(pod).await.status?;
    status.resource_claim_statuses?.into_iter().find(|s| s.name == "own")?.resource_claim_name
}

#[tokio::test(start_paused = true)]
async fn a_template_becomes_a_claim_that_lives_as_long_as_its_pod_needs_it() {
    let lab = Lab::start(1, runs).await;
    lab.create(&pod("web", json!([{"name": "own", "resourceClaimTemplateName": "t"}]))).await;
    lab.until("told", async || {
        lab.heard("Pod", "FailedResourceClaimCreation", "PodResourceClaim own: resource claim template \"t\"")
            .await
    })
    .await;
    lab.create(&template()).await;
    lab.until("named", async || generated(&lab, "web").await.is_some()).await;
    let all: Vec<ResourceClaim> = lab.list().await;
    let [claim] = all.as_slice() else { panic!("{} claims", all.len()) };
    assert_eq!(generated(&lab, "web").await.as_deref(), Some(claim.name()));
    assert!(claim.name().starts_with("web-own-"));
    assert_eq!(claim.annotation("resource.kubernetes.io/pod-claim-name"), Some("own"));
    assert_eq!(claim.label("app"), Some("x"));
    assert_eq!(claim.controller_ref().unwrap().uid, lab.get::<Pod>("web").await.uid());
    assert!(reserved(claim).is_empty(), "it is not allocated");

    let name = claim.name().to_owned();
    allocate(&lab, &name).await;
    lab.until("reserved", async || reserved(&lab.get(&name).await) == ["web"]).await;
    lab.is_quiet().await;
    // The pod ends, and is kept: its claim is not.
    let mut ended: Pod = lab.get("web").await;
    ended.status.get_or_insert_default().phase = Some("Succeeded".into());
    lab.api::<Pod>().replace_status("web", &ended).await.unwrap();
    lab.until("deleted", async || lab.list::<ResourceClaim>().await.is_empty()).await;
    lab.is_quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_claim_is_made_anew_and_a_foreign_one_is_not_used() {
    let lab = Lab::start(1, runs).await;
    lab.create(&template()).await;
    lab.create(&pod("web", json!([{"name": "own", "resourceClaimTemplateName": "t"}]))).await;
    lab.until("named", async || generated(&lab, "web").await.is_some()).await;
    let first = generated(&lab, "web").await.unwrap();
    lab.delete::<ResourceClaim>(&first, "Background").await;
    lab.until("anew", async || generated(&lab, "web").await.is_some_and(|name| name != first)).await;
    let second = generated(&lab, "web").await.unwrap();
    lab.edit(&second, |claim: &mut ResourceClaim| claim.metadata.owner_references = None).await;
    lab.until("its own", async || generated(&lab, "web").await.is_some_and(|name| name != second)).await;
    lab.is_quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_shared_claim_is_free_when_its_last_pod_is_gone() {
    let lab = Lab::start(1, runs).await;
    let devices = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu"}}]});
    let claim = json!({"metadata": {"name": "shared"}, "spec": {"devices": devices}});
    lab.create::<ResourceClaim>(&serde_json::from_value(claim).unwrap()).await;
    for name in ["a", "b"] {
        lab.create(&pod(name, json!([{"name": "s", "resourceClaimName": "shared"}]))).await;
    }
    allocate(&lab, "shared").await;
    lab.until("reserved", async || reserved(&lab.get("shared").await) == ["a", "b"]).await;
    // In use: the deletion waits.
    lab.delete::<Pod>("a", "Background").await;
    lab.until("one left", async || reserved(&lab.get("shared").await) == ["b"]).await;
    assert!(allocated(&lab.get("shared").await));
    lab.delete::<Pod>("b", "Background").await;
    lab.until("free", async || !allocated(&lab.get("shared").await)).await;
    lab.until("without finalizer", async || {
        lab.get::<ResourceClaim>("shared").await.metadata.finalizers.is_none_or(|f| f.is_empty())
    })
    .await;
    // Allocated and never reserved: it stays so, until it is deleted.
    allocate(&lab, "shared").await;
    lab.is_quiet().await;
    assert!(allocated(&lab.get("shared").await));
    lab.delete::<ResourceClaim>("shared", "Background").await;
    lab.until("gone", async || lab.list::<ResourceClaim>().await.is_empty()).await;
    lab.is_quiet().await;
}

fn waiting(name: &str, claims: Value) -> Pod {
    let mut made = pod(name, claims);
    made.spec.as_mut().unwrap().node_name = None;
    made
}

async fn node_of(lab: &Lab, pod: &str) -> Option<String> {
    lab.get::<Pod>(pod).await.spec?.node_name
}

/// A pool with these devices on node `n1`, and the class of all of them.
async fn slice(lab: &Lab, devices: &[&str]) {
    let class = json!({"metadata": {"name": "gpu"}, "spec": {"selectors": [
        {"cel": {"expression": "device.driver == 'd.example.com' && device.attributes['d.example.com'].kind == 'gpu'"}}]}});
    lab.create::<DeviceClass>(&serde_json::from_value(class).unwrap()).await;
    let kind = json!({"kind": {"string": "gpu"}});
    let devices: Vec<Value> = devices.iter().map(|name| json!({"name": name, "attributes": kind})).collect();
    let pool = json!({"name": "n1", "generation": 1, "resourceSliceCount": 1});
    let spec = json!({"driver": "d.example.com", "nodeName": "n1", "pool": pool, "devices": devices});
    let slice = json!({"metadata": {"name": "s"}, "spec": spec});
    lab.create::<ResourceSlice>(&serde_json::from_value(slice).unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn the_second_pod_waits_for_the_only_device_until_the_first_is_done() {
    let lab = Lab::start(2, runs).await;
    lab.create(&template()).await;
    let own = json!([{"name": "own", "resourceClaimTemplateName": "t"}]);
    lab.create(&waiting("a", own.clone())).await;
    lab.until("without a class", async || {
        lab.heard("Pod", "FailedScheduling", "request r: device class gpu does not exist").await
    })
    .await;
    slice(&lab, &["gpu-0"]).await;
    lab.until("placed", async || node_of(&lab, "a").await.is_some()).await;
    assert_eq!(node_of(&lab, "a").await.as_deref(), Some("n1"), "where the device is");
    let claim: ResourceClaim = lab.get(&generated(&lab, "a").await.unwrap()).await;
    assert_eq!(reserved(&claim), ["a"]);
    assert_eq!(claim.metadata.finalizers.as_deref(), Some(&[FINALIZER.to_owned()][..]));
    let given = serde_json::to_value(claim.status.unwrap().allocation.unwrap()).unwrap();
    let device = json!({"request": "r", "driver": "d.example.com", "pool": "n1", "device": "gpu-0"});
    assert_eq!(given["devices"]["results"], json!([device]));
    let field = json!({"key": "metadata.name", "operator": "In", "values": ["n1"]});
    assert_eq!(given["nodeSelector"], json!({"nodeSelectorTerms": [{"matchFields": [field]}]}));

    lab.create(&waiting("b", own)).await;
    lab.until("refused", async || {
        lab.heard("Pod", "FailedScheduling", "0/2 nodes are available: 2 cannot allocate all claims.").await
    })
    .await;
    assert_eq!(node_of(&lab, "b").await, None);
    let mut ended: Pod = lab.get("a").await;
    ended.status.get_or_insert_default().phase = Some("Succeeded".into());
    lab.api::<Pod>().replace_status("a", &ended).await.unwrap();
    lab.until("the device is free", async || node_of(&lab, "b").await.as_deref() == Some("n1")).await;
    lab.is_quiet().await;
}

#[tokio::test(start_paused = true)]
async fn pods_share_a_claim_and_are_many_on_as_many_devices() {
    let lab = Lab::start(2, runs).await;
    lab.create(&template()).await;
    slice(&lab, &["gpu-0", "gpu-1", "gpu-2", "gpu-3", "gpu-4"]).await;
    let devices = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu", "count": 2}}]});
    let claim = json!({"metadata": {"name": "shared"}, "spec": {"devices": devices}});
    lab.create::<ResourceClaim>(&serde_json::from_value(claim).unwrap()).await;
    for name in ["a", "b"] {
        lab.create(&waiting(name, json!([{"name": "s", "resourceClaimName": "shared"}]))).await;
    }
    for name in ["c", "d", "e", "f"] {
        lab.create(&waiting(name, json!([{"name": "own", "resourceClaimTemplateName": "t"}]))).await;
    }
    let placed = async || {
        lab.list::<Pod>()
            .await
            .iter()
            .filter(|p| p.spec.as_ref().is_some_and(|s| s.node_name.is_some()))
            .count()
    };
    lab.until("all but one", async || placed().await == 5).await;
    lab.is_quiet().await;
    assert_eq!(placed().await, 5, "there are five devices, and two are shared");
    assert_eq!(reserved(&lab.get("shared").await), ["a", "b"]);
    let mut given = Vec::new();
    for claim in lab.list::<ResourceClaim>().await {
        let allocation = claim.status.and_then(|status| status.allocation);
        let results = allocation.and_then(|a| a.devices).and_then(|d| d.results);
        given.extend(results.into_iter().flatten().map(|result| result.device));
    }
    given.sort();
    assert_eq!(given, ["gpu-0", "gpu-1", "gpu-2", "gpu-3", "gpu-4"], "each once");
}

/// As after a binding that failed, or a scheduler that ended before it.
#[tokio::test(start_paused = true)]
async fn a_claim_that_keeps_its_pod_from_all_nodes_is_allocated_anew() {
    let lab = Lab::start(2, runs).await;
    lab.edit("n0", |node: &mut Node| node.spec.get_or_insert_default().unschedulable = Some(true)).await;
    slice(&lab, &["gpu-0"]).await;
    let devices = json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu"}}]});
    for name in ["left", "used"] {
        let claim = json!({"metadata": {"name": name}, "spec": {"devices": devices}});
        let mut claim: ResourceClaim = serde_json::from_value(claim).unwrap();
        claim.metadata.namespace = metadata(name).namespace;
        lab.create(&claim).await;
        let mut live: ResourceClaim = lab.get(name).await;
        let field = json!({"key": "metadata.name", "operator": "In", "values": ["n0"]});
        let device = json!({"request": "r", "driver": "d.example.com", "pool": "n0", "device": name});
        let allocation = json!({"devices": {"results": [device]},
            "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [field]}]}});
        live.status = Some(serde_json::from_value(json!({"allocation": allocation})).unwrap());
        lab.api::<ResourceClaim>().replace_status(name, &live).await.unwrap();
    }
    // Another pod has this one: it stays where it is.
    lab.create(&pod("user", json!([{"name": "own", "resourceClaimName": "used"}]))).await;
    lab.until("reserved", async || reserved(&lab.get("used").await) == ["user"]).await;
    lab.create(&waiting("second", json!([{"name": "own", "resourceClaimName": "used"}]))).await;
    lab.create(&waiting("a", json!([{"name": "own", "resourceClaimName": "left"}]))).await;
    lab.until("placed", async || node_of(&lab, "a").await.as_deref() == Some("n1")).await;
    assert_eq!(reserved(&lab.get("left").await), ["a"]);
    assert_eq!(node_of(&lab, "second").await, None);
    let used: ResourceClaim = lab.get("used").await;
    assert!(allocated(&used) && reserved(&used) == ["user"]);
}
