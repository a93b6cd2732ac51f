//! Claims and volumes.

use std::collections::HashMap;

use k8s_core::{
    api::api::core::v1::{PersistentVolume, PersistentVolumeClaim},
    meta::ObjectExt,
    random,
};
use k8s_testing::controllers::persistent_volume_binder;
use serde_json::json;

use super::{seconds, storm};

fn claim_of(volume: &PersistentVolume) -> Option<String> {
    let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
    reference.uid.clone().filter(|uid| !uid.is_empty())
}

fn phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Whatever comes first, and whoever goes: a claim keeps the volume that it got, no two claims have the same
/// one, and at the end none waits beside a free one.
#[test]
fn a_claim_keeps_its_volume_and_shares_it_with_nobody() {
    storm(15).controllers([persistent_volume_binder()]).run(async |lab| {
        let mut bound: HashMap<String, String> = HashMap::new();
        lab.always(move |all: &[&PersistentVolumeClaim]| {
            let mut taken: HashMap<&str, &str> = HashMap::new();
            for claim in all {
                let volume = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
                if volume.is_empty() {
                    continue;
                }
                let other = taken.insert(volume, claim.name());
                assert_eq!(other, None, "{volume} is also {}'s", claim.name());
                let first = bound.entry(claim.uid().to_owned()).or_insert_with(|| volume.to_owned());
                assert_eq!(first, volume, "{} changed its volume", claim.name());
            }
        })
        .await;
        let (mut volumes, mut claims) = (0, 0);
        for _ in 0..16 {
            match random::range(0..5) {
                0 | 1 => {
                    let spec = json!({"capacity": {"storage": format!("{}Gi", random::range(1..4))},
                        "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/data"}});
                    let name = format!("v{volumes}");
                    lab.create_from::<PersistentVolume>(json!({"metadata": {"name": name}, "spec": spec}))
                        .await;
                    volumes += 1;
                }
                2 | 3 => {
                    let storage = format!("{}Gi", random::range(1..4));
                    let spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "",
                        "resources": {"requests": {"storage": storage}}});
                    let metadata = json!({"name": format!("c{claims}")});
                    lab.create_from::<PersistentVolumeClaim>(json!({"metadata": metadata, "spec": spec}))
                        .await;
                    claims += 1;
                }
                _ if claims > 0 => {
                    let name = format!("c{}", random::range(0..claims));
                    if lab.find::<PersistentVolumeClaim>(&name).await.is_some_and(|c| !c.is_deleting()) {
                        // Nothing protects it here.
                        lab.edit(&name, |c: &mut PersistentVolumeClaim| c.metadata.finalizers = None).await;
                        lab.delete::<PersistentVolumeClaim>(&name).await;
                    }
                }
                _ => {}
            }
            lab.sleep(seconds(0..4)).await;
        }
        lab.assert_idempotent().await;
        let claims: Vec<PersistentVolumeClaim> = lab.list().await;
        let size = |map: Option<
            &std::collections::BTreeMap<String, k8s_core::api::apimachinery::pkg::api::resource::Quantity>,
        >| { map.unwrap()["storage"].0.trim_end_matches("Gi").parse::<u32>().unwrap() };
        for volume in lab.list::<PersistentVolume>().await {
            let spec = volume.spec.as_ref().unwrap();
            let told = volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap();
            let owner = claim_of(&volume);
            let alive = claims.iter().any(|claim| Some(claim.uid()) == owner.as_deref());
            let want = match (&owner, alive) {
                (None, _) => "Available",
                (Some(_), true) => "Bound",
                (Some(_), false) => "Released",
            };
            assert_eq!(told, want, "{}", volume.name());
            for claim in claims.iter().filter(|claim| owner.is_none() && phase(claim) == "Pending") {
                let wanted = claim.spec.as_ref().unwrap().resources.as_ref().unwrap().requests.as_ref();
                let name = (volume.name(), claim.name());
                assert!(size(wanted) > size(spec.capacity.as_ref()), "{name:?} would match");
            }
        }
    });
}
