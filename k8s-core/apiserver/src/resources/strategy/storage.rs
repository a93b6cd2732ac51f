//! PersistentVolumes, PersistentVolumeClaims and StorageClasses.

use serde_json::{Value, json};

use super::{BASE, Strategy, immutable};
use crate::{
    invalid::FieldErrors,
    value::{child, default_text, list, map, text},
};

const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn check_modes(object: &Value, errors: &mut FieldErrors) {
    let modes = list(object, "/spec/accessModes");
    if modes.is_empty() {
        errors.required("spec.accessModes", "at least 1 access mode is required");
    }
    for mode in modes {
        if !mode.as_str().is_some_and(|m| MODES.contains(&m)) {
            errors.not_supported("spec.accessModes", mode.clone(), &MODES);
        }
    }
}

/// PersistentVolumes.
pub static PERSISTENT_VOLUME: Strategy = Strategy {
    returns_deleted: true,
    default: |volume| {
        let Some(spec) = child(volume, "spec") else { return };
        default_text(spec, "persistentVolumeReclaimPolicy", "Retain");
        default_text(spec, "volumeMode", "Filesystem");
        if let Some(host) = spec.get_mut("hostPath").filter(|h| h.is_object()) {
            crate::value::default(host, "type", "");
        }
    },
    create: |volume| volume["status"] = json!({"phase": "Pending"}),
    validate: |volume, errors| {
        check_modes(volume, errors);
        if map(volume, "/spec/capacity").is_none_or(|c| !c.contains_key("storage")) {
            errors.required("spec.capacity", "");
        }
        const PLAIN: [&str; 10] = [
            "accessModes",
            "capacity",
            "claimRef",
            "mountOptions",
            "nodeAffinity",
            "persistentVolumeReclaimPolicy",
            "storageClassName",
            "volumeMode",
            "volumeAttributesClassName",
            "csiDriver",
        ];
        let mut sources = map(volume, "/spec")
            .into_iter()
            .flatten()
            .map(|(k, _)| k)
            .filter(|k| !PLAIN.contains(&k.as_str()));
        if sources.next().is_none() {
            errors.required("spec", "must specify a volume type");
        }
        for extra in sources {
            errors.forbidden(format!("spec.{extra}"), "may not specify more than 1 volume type");
        }
        let policy = text(volume, "/spec/persistentVolumeReclaimPolicy");
        if !["Delete", "Recycle", "Retain"].contains(&policy) {
            errors.not_supported(
                "spec.persistentVolumeReclaimPolicy",
                policy,
                &["Delete", "Recycle", "Retain"],
            );
        }
    },
    ..BASE
};

/// PersistentVolumeClaims.
pub static PERSISTENT_VOLUME_CLAIM: Strategy = Strategy {
    returns_deleted: true,
    default: |claim| {
        if let Some(spec) = child(claim, "spec") {
            default_text(spec, "volumeMode", "Filesystem");
        }
    },
    create: |claim| claim["status"] = json!({"phase": "Pending"}),
    validate: |claim, errors| {
        check_modes(claim, errors);
        if map(claim, "/spec/resources/requests").is_none_or(|r| !r.contains_key("storage")) {
            errors.required("spec.resources[storage]", "");
        }
    },
    validate_update: |new, old, errors| {
        let frozen = |claim: &Value| {
            let mut spec = claim.get("spec").cloned().unwrap_or_default();
            if let Some(map) = spec.as_object_mut() {
                map.remove("resources");
                map.remove("volumeAttributesClassName");
                if text(old, "/spec/volumeName").is_empty() {
                    map.remove("volumeName");
                }
                if old.pointer("/spec/storageClassName").is_none() {
                    map.remove("storageClassName");
                }
            }
            spec
        };
        if frozen(new) != frozen(old) {
            errors.forbidden("spec", "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims");
        }
    },
    ..BASE
};

/// StorageClasses.
pub static STORAGE_CLASS: Strategy = Strategy {
    returns_deleted: true,
    default: |class| {
        default_text(class, "reclaimPolicy", "Delete");
        default_text(class, "volumeBindingMode", "Immediate");
    },
    validate: |class, errors| {
        if text(class, "/provisioner").is_empty() {
            errors.required("provisioner", "");
        }
        let mode = text(class, "/volumeBindingMode");
        if !["Immediate", "WaitForFirstConsumer"].contains(&mode) {
            errors.not_supported("volumeBindingMode", mode, &["Immediate", "WaitForFirstConsumer"]);
        }
    },
    validate_update: |new, old, errors| {
        for (pointer, field) in [
            ("/parameters", "parameters"),
            ("/provisioner", "provisioner"),
            ("/reclaimPolicy", "reclaimPolicy"),
        ] {
            if new.pointer(pointer) != old.pointer(pointer) {
                errors.forbidden(field, "updates to this field are forbidden.");
            }
        }
        immutable(new, old, "/volumeBindingMode", errors);
    },
    ..BASE
};
