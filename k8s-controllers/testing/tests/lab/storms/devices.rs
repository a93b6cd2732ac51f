//! Devices of ResourceClaims.

use std::collections::{HashMap, HashSet};

use k8s_core::{
    api::api::{
        core::v1::Pod,
        resource::v1::{DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice},
    },
    client::DeleteOptions,
    meta::ObjectExt,
    random,
};
use k8s_scheduler::Scheduler;
use k8s_testing::{
    Life,
    controllers::{garbage_collector, resource_claim},
};
use serde_json::{Value, json};

use super::{scheduled_storm, seconds};

const DEVICES: usize = 3;

fn devices(claim: &ResourceClaim) -> Vec<&str> {
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    let results = allocation.and_then(|a| a.devices.as_ref()).and_then(|d| d.results.as_ref());
    results.into_iter().flatten().map(|result| result.device.as_str()).collect()
}

/// Whatever fails: no device is in two claims, no allocated claim lacks its finalizer, and in the end as many
/// pods have a device as there are devices, and a free device is given to the next.
#[test]
fn no_device_is_given_twice_and_none_is_lost() {
    let scheduler = async |life: Life| Scheduler::builder().run_in(life.environment()).await;
    let lab = scheduled_storm(2, 10).without_scheduler().program("scheduler", scheduler);
    lab.controllers([resource_claim(), garbage_collector()]).run(async |lab| {
        lab.always(move |all: &[&ResourceClaim]| {
            let mut given: HashMap<&str, &str> = HashMap::new();
            for claim in all {
                for device in devices(claim) {
                    let other = given.insert(device, claim.name());
                    assert_eq!(other, None, "{device} is also given to {}", claim.name());
                }
                let protected = claim.metadata.finalizers.iter().flatten().count() > 0;
                assert!(protected || devices(claim).is_empty(), "{} is not protected", claim.name());
            }
        })
        .await;
        lab.create_from::<DeviceClass>(json!({"metadata": {"name": "any"}, "spec": {}})).await;
        let names: Vec<Value> = (0..DEVICES).map(|n| json!({"name": format!("d{n}")})).collect();
        lab.create_from::<ResourceSlice>(json!({"metadata": {"name": "s"}, "spec": {
            "driver": "d.example.com", "allNodes": true, "devices": names,
            "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
        }}))
        .await;
        let requests = json!([{"name": "r", "exactly": {"deviceClassName": "any"}}]);
        lab.create_from::<ResourceClaimTemplate>(json!({"metadata": {"name": "t"},
            "spec": {"spec": {"devices": {"requests": requests}}}}))
            .await;
        for n in 0..DEVICES + 3 {
            lab.create_from::<Pod>(json!({"metadata": {"name": format!("p{n}")}, "spec": {
                "containers": [{"name": "c", "image": "i"}],
                "resourceClaims": [{"name": "own", "resourceClaimTemplateName": "t"}],
            }}))
            .await;
            lab.sleep(seconds(0..3)).await;
        }
        // Some are deleted, placed or not.
        let gone: HashSet<String> = (0..DEVICES + 3)
            .filter(|_| random::number().is_multiple_of(4))
            .take(2)
            .map(|n| format!("p{n}"))
            .collect();
        for name in &gone {
            lab.api::<Pod>().delete_if_exists(name, &DeleteOptions::default()).await.unwrap();
        }
        lab.sleep(seconds(600..601)).await;
        let pods: Vec<Pod> = lab.list().await;
        let placed = |pod: &&Pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        let claims: Vec<ResourceClaim> = lab.list().await;
        let given: usize = claims.iter().map(|claim| devices(claim).len()).sum();
        assert_eq!((pods.iter().filter(placed).count(), given), (DEVICES, DEVICES));
        assert_eq!(claims.len(), pods.len(), "one claim for each pod");
    });
}
