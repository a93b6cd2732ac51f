//! Decides which claims want a volume of a driver, and which of its volumes go. Pure.

use k8s_core::{
    api::api::{
        core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec},
        storage::v1::StorageClass,
    },
    api::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    meta::ObjectExt,
};

use super::Wanted;
use crate::volumes::{PROVISIONED_BY, PROVISIONER, SELECTED_NODE};

/// Finalizer of volumes whose storage is removed before them (upstream's name).
pub(super) const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";
const PROTECTION: &str = "kubernetes.io/pv-protection";

/// Returns the name of the volume that is made for a claim.
pub(super) fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.uid())
}

/// Returns true if a claim waits for a volume of this driver.
pub(super) fn is_wanted(claim: &PersistentVolumeClaim, class: &StorageClass, driver: &str) -> bool {
    let has_volume = claim.spec.as_ref().and_then(|s| s.volume_name.as_ref()).is_some_and(|v| !v.is_empty());
    let asked = PROVISIONER.iter().find_map(|key| claim.annotation(key));
    let delayed = class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
    !has_volume
        && !claim.is_deleting()
        && class.provisioner == driver
        && asked == Some(driver)
        && (!delayed || claim.annotation(SELECTED_NODE).is_some_and(|node| !node.is_empty()))
}

/// Returns why no driver can make a volume for a claim.
pub(super) fn refused(wanted: &Wanted<'_>) -> Option<&'static str> {
    let source = wanted
        .claim
        .spec
        .as_ref()
        .is_some_and(|spec| spec.data_source.is_some() || spec.data_source_ref.is_some());
    source.then_some("spec.dataSource: volumes are not made of snapshots or other volumes")
}

/// Returns the PersistentVolume for a claim, with what the driver said in `spec`.
pub(super) fn volume(wanted: &Wanted<'_>, spec: PersistentVolumeSpec, driver: &str) -> PersistentVolume {
    let Wanted { volume, claim, class, .. } = *wanted;
    let asked = claim.spec.as_ref();
    let policy = class.reclaim_policy.clone().unwrap_or_else(|| "Delete".into());
    let request = || asked.and_then(|s| s.resources.as_ref()?.requests.clone());
    let finalizers = (policy == "Delete").then(|| vec![FINALIZER.to_owned()]);
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(volume.to_owned()),
            annotations: Some(super::annotations(driver)),
            finalizers,
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            capacity: spec.capacity.clone().or_else(request),
            access_modes: asked.and_then(|s| s.access_modes.clone()),
            volume_mode: asked.and_then(|s| s.volume_mode.clone()),
            mount_options: class.mount_options.clone(),
            persistent_volume_reclaim_policy: Some(policy),
            storage_class_name: Some(class.name().to_owned()),
            claim_ref: Some(ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("PersistentVolumeClaim".into()),
                namespace: claim.metadata.namespace.clone(),
                name: claim.metadata.name.clone(),
                uid: claim.metadata.uid.clone(),
                resource_version: claim.metadata.resource_version.clone(),
                ..ObjectReference::default()
            }),
            ..spec
        }),
        status: None,
    }
}

/// Decision about a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Another driver's, or in use.
    Leave,
    /// Add the finalizer: its policy is `Delete`.
    Hold,
    /// Remove the finalizer: its policy is another one by now.
    LetGo,
    /// Remove its storage, then the object.
    Remove,
}

/// Decides about a volume.
pub(super) fn fate(volume: &PersistentVolume, driver: &str) -> Fate {
    if volume.annotation(PROVISIONED_BY) != Some(driver) {
        return Fate::Leave;
    }
    let has = |name: &str| volume.metadata.finalizers.iter().flatten().any(|f| f == name);
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    match (policy == Some("Delete"), volume.is_deleting()) {
        (false, _) if has(FINALIZER) => Fate::LetGo,
        (false, _) => Fate::Leave,
        (true, false) if matches!(phase, "Released" | "Failed") => Fate::Remove,
        (true, false) if !has(FINALIZER) => Fate::Hold,
        (true, false) => Fate::Leave,
        // Somebody deletes the object first. Once it is bound no more its storage goes, too.
        (true, true) if has(FINALIZER) && !has(PROTECTION) && phase != "Bound" => Fate::Remove,
        (true, true) => Fate::Leave,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const DRIVER: &str = "x.io";

    fn claim(annotations: Value, spec: Value) -> PersistentVolumeClaim {
        let meta = json!({"name": "c", "namespace": "a", "uid": "u", "annotations": annotations});
        serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
    }

    fn class(mode: &str, extra: Value) -> StorageClass {
        let mut class = json!({"metadata": {"name": "s"}, "provisioner": DRIVER, "volumeBindingMode": mode});
        class.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        serde_json::from_value(class).unwrap()
    }

    #[test]
    fn a_claim_wants_a_volume_when_it_is_asked_for_and_placed() {
        let (now, later) = (class("Immediate", json!({})), class("WaitForFirstConsumer", json!({})));
        let [name, beta] = PROVISIONER;
        for (annotations, spec, class, want) in [
            (json!({}), json!({}), &now, false),
            (json!({name: DRIVER}), json!({}), &now, true),
            (json!({beta: DRIVER}), json!({}), &now, true),
            (json!({name: "y.io"}), json!({}), &now, false),
            (json!({name: DRIVER}), json!({"volumeName": "v"}), &now, false),
            (json!({name: DRIVER}), json!({}), &later, false),
            (json!({name: DRIVER, SELECTED_NODE: ""}), json!({}), &later, false),
            (json!({name: DRIVER, SELECTED_NODE: "n"}), json!({}), &later, true),
        ] {
            assert_eq!(is_wanted(&claim(annotations.clone(), spec), class, DRIVER), want, "{annotations}");
        }
        assert!(!is_wanted(&claim(json!({name: "z"}), json!({})), &now, "z"), "the class has another");
    }

    #[test]
    fn a_volume_has_what_claim_class_and_driver_say() {
        let claim = claim(
            json!({}),
            json!({"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
                "resources": {"requests": {"storage": "1Gi"}}}),
        );
        let make = |class: &StorageClass, spec: Value| {
            let wanted = Wanted { volume: "pvc-u", claim: &claim, class, node: None };
            serde_json::to_value(volume(&wanted, serde_json::from_value(spec).unwrap(), DRIVER)).unwrap()
        };
        let made =
            make(&class("Immediate", json!({"mountOptions": ["ro"]})), json!({"hostPath": {"path": "/d"}}));
        assert_eq!(made["metadata"]["finalizers"], json!([FINALIZER]));
        assert_eq!(made["metadata"]["annotations"], json!({PROVISIONED_BY: DRIVER}));
        let spec = &made["spec"];
        assert_eq!(spec["capacity"], json!({"storage": "1Gi"}));
        assert_eq!(spec["claimRef"]["uid"], "u");
        assert_eq!((&spec["hostPath"]["path"], &spec["mountOptions"]), (&json!("/d"), &json!(["ro"])));
        assert_eq!(
            (&spec["storageClassName"], &spec["accessModes"][0]),
            (&json!("s"), &json!("ReadWriteOnce"))
        );
        let kept = make(
            &class("Immediate", json!({"reclaimPolicy": "Retain"})),
            json!({"capacity": {"storage": "2Gi"}}),
        );
        assert_eq!(kept["metadata"].get("finalizers"), None);
        assert_eq!(
            (&kept["spec"]["capacity"]["storage"], &kept["spec"]["persistentVolumeReclaimPolicy"]),
            (&json!("2Gi"), &json!("Retain"))
        );
    }

    #[test]
    fn storage_goes_when_its_volume_is_released() {
        let volume = |policy: &str, phase: &str, finalizers: &[&str], deleting: bool| -> PersistentVolume {
            let mut meta =
                json!({"name": "v", "annotations": {PROVISIONED_BY: DRIVER}, "finalizers": finalizers});
            if deleting {
                meta["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            let spec = json!({"persistentVolumeReclaimPolicy": policy});
            serde_json::from_value(json!({"metadata": meta, "spec": spec, "status": {"phase": phase}}))
                .unwrap()
        };
        let (ours, both, none) = (&[FINALIZER][..], &[FINALIZER, PROTECTION][..], &[][..]);
        for (policy, phase, finalizers, deleting, want) in [
            ("Delete", "Bound", both, false, Fate::Leave),
            ("Delete", "Bound", none, false, Fate::Hold),
            ("Delete", "Released", both, false, Fate::Remove),
            ("Delete", "Failed", ours, false, Fate::Remove),
            ("Delete", "Bound", ours, true, Fate::Leave),
            ("Delete", "Released", both, true, Fate::Leave),
            ("Delete", "Released", ours, true, Fate::Remove),
            ("Delete", "Available", ours, true, Fate::Remove),
            ("Delete", "Released", none, true, Fate::Leave),
            ("Retain", "Released", none, false, Fate::Leave),
            ("Retain", "Released", ours, false, Fate::LetGo),
            ("Retain", "Released", ours, true, Fate::LetGo),
        ] {
            let volume = volume(policy, phase, finalizers, deleting);
            assert_eq!(fate(&volume, DRIVER), want, "{volume:?}");
            assert_eq!(fate(&volume, "y.io"), Fate::Leave);
        }
    }
}
