//! Claims and volumes.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
};

use k8s_builtin::provisioner::{
    self, Expander, Expanding, Failure, Provisioner, Provisioning, Reclaiming, Wanted,
};
use k8s_controllers::{Action, Context, Controller, Error, Reconcile};
use k8s_core::{
    api::api::{
        core::v1::{
            HostPathVolumeSource, Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod,
        },
        storage::v1::{StorageClass, VolumeAttachment},
    },
    api::apimachinery::pkg::api::resource::Quantity as ApiQuantity,
    meta::{ObjectExt, Quantity},
    random,
};
use k8s_testing::{
    Faults, Lab, Script,
    controllers::{
        attach_detach, ephemeral_volume, garbage_collector, persistent_volume_binder, pv_protection,
        pvc_protection,
    },
};
use serde_json::json;

use super::{pod, seconds, slow, storm};

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
        lab.settle().await;
        lab.restart_controllers().await;
        lab.sleep(seconds(60..61)).await;
        // A claim that waits is told so again.
        let written = lab.written();
        assert!(written.iter().all(|one| one.path.contains("/events")), "{written:?}");
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

/// The attacher of a driver that does nothing but say that it did.
#[derive(Clone)]
struct Fake;

impl Reconcile for Fake {
    type Kind = VolumeAttachment;

    const FINALIZER: Option<&'static str> = Some("external-attacher/x-io");

    async fn reconcile(&self, cx: &Context, attachment: Arc<VolumeAttachment>) -> Result<Action, Error> {
        cx.status(&attachment, |next| next.status.get_or_insert_default().attached = true).await?;
        Ok(Action::await_change())
    }
}

fn attached(node: &Node) -> Vec<&str> {
    let status = node.status.as_ref();
    status
        .and_then(|s| s.volumes_attached.as_ref())
        .into_iter()
        .flatten()
        .map(|one| one.name.as_str())
        .collect()
}

/// A volume that one node may use follows its pod from node to node, and is never attached to two.
#[test]
fn a_volume_follows_its_pod() {
    let lab = Lab::new().nodes(3).seeds(0..10).faults(Faults::all().at_most(200)).without_scheduler();
    let lab = lab.pods(|_: &Pod| slow(Script::runs()));
    let fake = Controller::<VolumeAttachment>::new().named("fake-attacher");
    lab.controllers([persistent_volume_binder(), attach_detach()]).with(fake, || Fake).run(async |lab| {
        lab.always(|all: &[&VolumeAttachment]| {
            let nodes: Vec<&str> = all.iter().map(|one| one.spec.node_name.as_str()).collect();
            assert!(nodes.len() <= 1, "attached to {nodes:?}");
        })
        .await;
        for i in 0..3 {
            lab.edit(&format!("node-{i}"), |node: &mut Node| {
                let annotations = node.metadata.annotations.get_or_insert_default();
                annotations
                    .insert("volumes.kubernetes.io/controller-managed-attach-detach".into(), "true".into());
            })
            .await;
        }
        let spec = json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
            "csi": {"driver": "x.io", "volumeHandle": "h"}});
        lab.create_from::<PersistentVolume>(json!({"metadata": {"name": "v"}, "spec": spec})).await;
        let spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "",
            "resources": {"requests": {"storage": "1Gi"}}});
        lab.create_from::<PersistentVolumeClaim>(json!({"metadata": {"name": "c"}, "spec": spec})).await;
        for i in 0..5 {
            let node = format!("node-{}", random::range(0..3));
            let volumes = json!([{"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]);
            let spec =
                json!({"nodeName": node, "volumes": volumes, "containers": [{"name": "c", "image": "i"}]});
            let name = format!("p{i}");
            lab.create_from::<Pod>(json!({"metadata": {"name": name}, "spec": spec})).await;
            lab.until(&node, |node: &Node| attached(node) == ["kubernetes.io/csi/x.io^h"]).await;
            lab.sleep(seconds(0..10)).await;
            lab.delete::<Pod>(&name).await;
            lab.sleep(seconds(0..10)).await;
        }
        lab.assert_idempotent().await;
        assert!(lab.list::<VolumeAttachment>().await.is_empty());
        for node in lab.list::<Node>().await {
            assert!(attached(&node).is_empty(), "{}", node.name());
        }
    });
}

thread_local! {
    /// The storage of [`Shelf`]. A run of a lab has its thread, and seeds run side by side.
    static SHELF: RefCell<BTreeMap<String, Quantity>> = RefCell::default();
}

/// A driver whose storage is a map from names to sizes. Calls fail now and then, also after they have done
/// their work.
struct Shelf;

fn shelf() -> BTreeMap<String, Quantity> {
    SHELF.with_borrow(Clone::clone)
}

impl Shelf {
    fn may_fail(&self) -> Result<(), Failure> {
        if random::range(0..4) == 0 { Err(Failure::again("the shelf shakes")) } else { Ok(()) }
    }
}

impl Provisioner for Shelf {
    fn name(&self) -> &'static str {
        "shelf.io"
    }

    async fn provision(&self, _: &Context, wanted: &Wanted<'_>) -> Result<PersistentVolumeSpec, Failure> {
        self.may_fail()?;
        SHELF.with_borrow_mut(|all| all.insert(wanted.volume.to_owned(), Quantity::from_bytes(1 << 30)));
        self.may_fail()?;
        let host_path = Some(HostPathVolumeSource { path: "/shelf".into(), type_: None });
        Ok(PersistentVolumeSpec { host_path, ..PersistentVolumeSpec::default() })
    }

    async fn delete(&self, _: &Context, volume: &PersistentVolume) -> Result<(), Failure> {
        self.may_fail()?;
        SHELF.with_borrow_mut(|all| all.remove(volume.name()));
        self.may_fail()
    }
}

impl Expander for Shelf {
    async fn expand(
        &self,
        _: &Context,
        volume: &PersistentVolume,
        size: Quantity,
    ) -> Result<Quantity, Failure> {
        self.may_fail()?;
        if size > Quantity::from_bytes(5 << 30) {
            return Err(Failure::infeasible("the shelf is narrow"));
        }
        SHELF.with_borrow_mut(|all| {
            let has = all.get_mut(volume.name()).expect("it was made");
            assert!(size >= *has, "{} shrinks from {has} to {size}", volume.name());
            *has = size;
        });
        self.may_fail()?;
        Ok(size)
    }
}

/// Claims come and go with their pods, while requests are lost and controllers restart: no bound claim is
/// without its storage, and at the end there is storage of the volumes that are left, and of no other.
#[test]
fn storage_is_there_for_its_claim_and_goes_with_it() {
    let lab = Lab::new().nodes(2).seeds(0..10).faults(Faults::all().at_most(200));
    let lab = lab.pods(|_: &Pod| slow(Script::runs()));
    lab.controllers([persistent_volume_binder(), pvc_protection(), pv_protection()])
        .with(provisioner::claims("shelf.io"), || Provisioning(Shelf))
        .with(provisioner::volumes("shelf.io"), || Reclaiming(Shelf))
        .run(async |lab| {
            SHELF.with_borrow_mut(BTreeMap::clear);
            lab.always(|all: &[&PersistentVolumeClaim]| {
                for claim in all.iter().filter(|claim| phase(claim) == "Bound" && !claim.is_deleting()) {
                    let volume = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
                    assert!(shelf().contains_key(&volume), "{} has lost {volume}", claim.name());
                }
            })
            .await;
            let seen = Arc::new(Mutex::new(BTreeSet::new()));
            let names = seen.clone();
            lab.always(move |all: &[&PersistentVolume]| {
                names.lock().unwrap().extend(all.iter().map(|v| v.name().to_owned()));
            })
            .await;
            lab.create_from::<StorageClass>(json!({"metadata": {"name": "shelf"}, "provisioner": "shelf.io",
                "volumeBindingMode": "WaitForFirstConsumer"}))
                .await;
            let mut left = Vec::new();
            for i in 0..8 {
                let name = format!("c{i}");
                let spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "shelf",
                    "resources": {"requests": {"storage": "1Gi"}}});
                lab.create_from::<PersistentVolumeClaim>(json!({"metadata": {"name": name}, "spec": spec}))
                    .await;
                let volumes = json!([{"name": "d", "persistentVolumeClaim": {"claimName": name}}]);
                let spec = json!({"volumes": volumes, "containers": [{"name": "c", "image": "i"}]});
                lab.create_from::<Pod>(json!({"metadata": {"name": name}, "spec": spec})).await;
                lab.sleep(seconds(0..10)).await;
                if random::range(0..2) == 0 {
                    lab.delete::<Pod>(&name).await;
                    lab.delete::<PersistentVolumeClaim>(&name).await;
                } else {
                    left.push(name);
                }
                if random::range(0..4) == 0 {
                    lab.restart_controllers().await;
                }
            }
            lab.settle().await;
            // A failure is followed by another try, at last every quarter of an hour.
            lab.sleep(seconds(6000..6001)).await;
            let claims: Vec<PersistentVolumeClaim> = lab.list().await;
            let names: Vec<&str> = claims.iter().map(|claim| claim.name()).collect();
            assert_eq!(names, left);
            for claim in &claims {
                assert_eq!(phase(claim), "Bound", "{}", claim.name());
            }
            let wanted: BTreeSet<String> = claims.iter().map(|c| format!("pvc-{}", c.uid())).collect();
            let volumes: Vec<PersistentVolume> = lab.list().await;
            assert_eq!(volumes.iter().map(|v| v.name().to_owned()).collect::<BTreeSet<_>>(), wanted);
            // What was made for a claim that went before its volume was written nobody knows of.
            let known = seen.lock().unwrap().clone();
            let left: BTreeSet<String> = shelf().into_keys().filter(|name| known.contains(name)).collect();
            assert_eq!(left, wanted);
        });
}

fn capacity(map: Option<&BTreeMap<String, ApiQuantity>>) -> Quantity {
    Quantity::try_from(&map.unwrap()["storage"]).unwrap()
}

/// Claims ask for more, and for less when that is too much: none says that it has more than its storage, and
/// at the end each has what it asks for.
#[test]
fn a_claim_has_the_size_that_it_says() {
    let lab = Lab::new().nodes(1).seeds(0..10).faults(Faults::all().at_most(200));
    lab.controllers([persistent_volume_binder()])
        .with(provisioner::claims("shelf.io"), || Provisioning(Shelf))
        .with(provisioner::expansions("shelf.io"), || Expanding(Shelf))
        .run(async |lab| {
            SHELF.with_borrow_mut(BTreeMap::clear);
            lab.always(|all: &[&PersistentVolumeClaim]| {
                for claim in all.iter().filter(|claim| phase(claim) == "Bound") {
                    let told = capacity(claim.status.as_ref().unwrap().capacity.as_ref());
                    let has = shelf()[&format!("pvc-{}", claim.uid())];
                    assert!(told <= has, "{} says {told} of {has}", claim.name());
                }
            })
            .await;
            lab.create_from::<StorageClass>(json!({"metadata": {"name": "shelf"}, "provisioner": "shelf.io",
                "allowVolumeExpansion": true}))
                .await;
            let spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "shelf",
                "resources": {"requests": {"storage": "1Gi"}}});
            lab.create_from::<PersistentVolumeClaim>(json!({"metadata": {"name": "c"}, "spec": spec})).await;
            lab.until("c", |claim: &PersistentVolumeClaim| phase(claim) == "Bound").await;
            for _ in 0..6 {
                let live: PersistentVolumeClaim = lab.get("c").await;
                // Not less than it has: the API server refuses that.
                let has = capacity(live.status.as_ref().unwrap().capacity.as_ref()).units() >> 30;
                let size = format!("{}Gi", has + 1 + random::range(0..3_i64));
                let next = |claim: &mut PersistentVolumeClaim| {
                    let resources = claim.spec.as_mut().unwrap().resources.get_or_insert_default();
                    resources
                        .requests
                        .get_or_insert_default()
                        .insert("storage".into(), ApiQuantity(size.clone()));
                };
                // It may have grown to more in between.
                let mut edited = live.clone();
                next(&mut edited);
                drop(lab.api::<PersistentVolumeClaim>().replace("c", &edited).await);
                lab.sleep(seconds(0..60)).await;
                if random::range(0..4) == 0 {
                    lab.restart_controllers().await;
                }
            }
            lab.settle().await;
            lab.sleep(seconds(3000..3001)).await;
            let claim: PersistentVolumeClaim = lab.get("c").await;
            let status = claim.status.as_ref().unwrap();
            let wanted = capacity(claim.spec.as_ref().unwrap().resources.as_ref().unwrap().requests.as_ref());
            let has = shelf()[&format!("pvc-{}", claim.uid())];
            if wanted > Quantity::from_bytes(5 << 30) {
                let state = status.allocated_resource_statuses.as_ref().map(|all| all["storage"].as_str());
                assert!(state.is_some_and(|state| state.starts_with("ControllerResize")), "{state:?}");
            } else {
                let volume: PersistentVolume = lab.get(&format!("pvc-{}", claim.uid())).await;
                let sizes = [status.capacity.as_ref(), volume.spec.as_ref().unwrap().capacity.as_ref()];
                assert_eq!(sizes.map(capacity), [has; 2]);
                assert!(has >= wanted && status.conditions.is_none(), "{status:?}");
            }
        });
}

/// Pods with volumes of their own come and go: a pod has the claim that it controls, never that of an earlier
/// pod of its name, and no claim stays behind.
#[test]
fn an_ephemeral_claim_lives_as_long_as_its_pod() {
    storm(15).controllers([ephemeral_volume(), pvc_protection(), garbage_collector()]).run(async |lab| {
        let mut of: HashMap<String, String> = HashMap::new();
        lab.always(move |all: &[&PersistentVolumeClaim]| {
            for claim in all {
                let owner = claim.controller_ref().map_or_else(String::new, |owner| owner.uid.clone());
                let first = of.entry(claim.uid().to_owned()).or_insert_with(|| owner.clone());
                assert_eq!(*first, owner, "{} changed its pod", claim.name());
            }
        })
        .await;
        let claim = |name: &str| {
            json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}})
        };
        // A claim of that name is somebody's already.
        lab.create_from::<PersistentVolumeClaim>(claim("taken-d")).await;
        for _ in 0..12 {
            let name = ["a", "b", "taken"][random::range(0..3_usize)];
            if lab.find::<Pod>(name).await.is_some() {
                lab.delete::<Pod>(name).await;
            } else {
                let mut pod = pod(name, name);
                let template = json!({"spec": claim("")["spec"]});
                pod["spec"]["volumes"] =
                    json!([{"name": "d", "ephemeral": {"volumeClaimTemplate": template}}]);
                lab.create_from::<Pod>(pod).await;
            }
            lab.sleep(seconds(0..20)).await;
        }
        lab.settle().await;
        lab.sleep(seconds(1000..1001)).await;
        let mut want: BTreeMap<String, String> = BTreeMap::new();
        for pod in lab.list::<Pod>().await {
            want.insert(format!("{}-d", pod.name()), pod.uid().to_owned());
        }
        want.insert("taken-d".into(), String::new());
        let all: Vec<PersistentVolumeClaim> = lab.list().await;
        let owner = |claim: &PersistentVolumeClaim| {
            claim.controller_ref().map_or_else(String::new, |owner| owner.uid.clone())
        };
        let have: BTreeMap<String, String> =
            all.iter().map(|claim| (claim.name().to_owned(), owner(claim))).collect();
        assert_eq!(have, want);
    });
}
