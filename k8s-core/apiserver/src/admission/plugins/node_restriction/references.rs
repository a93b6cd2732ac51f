//! References of pods to objects, and the audiences of their tokens.

use k8s_store::Store;
use serde_json::Value;

use crate::{
    auth::node::{Kind, references},
    value::{array_at, str_at},
};

/// Kinds of volumes that refer to no object.
const PLAIN: [&str; 22] = [
    "awsElasticBlockStore",
    "azureDisk",
    "cephfs",
    "cinder",
    "downwardAPI",
    "emptyDir",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "hostPath",
    "image",
    "iscsi",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

/// Returns the kind of object that a pod refers to, if any.
///
/// # Errors
/// A volume of an unknown kind.
pub(super) fn refers_to(pod: &Value) -> Result<Option<&'static str>, String> {
    if !str_at(pod, "/spec/serviceAccountName").is_empty() {
        return Ok(Some("serviceaccounts"));
    }
    let found = references(pod);
    let has = |kind: Kind| found.iter().any(|(k, _)| *k == kind);
    if has(Kind::Secret) {
        return Ok(Some("secrets"));
    }
    if has(Kind::ConfigMap) {
        return Ok(Some("configmaps"));
    }
    if !array_at(pod, "/spec/resourceClaims").is_empty() {
        return Ok(Some("resourceclaims"));
    }
    for volume in array_at(pod, "/spec/volumes") {
        if let Some(what) = of_volume(volume)? {
            return Ok(Some(what));
        }
    }
    Ok(None)
}

fn of_volume(volume: &Value) -> Result<Option<&'static str>, String> {
    let is = |kind: &str| volume.get(kind).is_some_and(|v| !v.is_null());
    let name = str_at(volume, "/name");
    for (kind, what) in [
        ("configMap", "configmaps (via configmap volumes)"),
        ("secret", "secrets (via secret volumes)"),
        ("csi", "csidrivers (via CSI volumes)"),
        ("glusterfs", "endpoints (via glusterFS volumes)"),
        ("persistentVolumeClaim", "persistentvolumeclaims"),
        ("ephemeral", "persistentvolumeclaims (via ephemeral volumes)"),
        ("azureFile", "secrets (via azureFile volumes)"),
    ] {
        if is(kind) {
            return Ok(Some(what));
        }
    }
    if is("projected") {
        for source in array_at(volume, "/projected/sources") {
            let is = |kind: &str| source.get(kind).is_some_and(|v| !v.is_null());
            for (kind, what) in [
                ("configMap", "configmaps (via projected volumes)"),
                ("secret", "secrets (via projected volumes)"),
                ("serviceAccountToken", "serviceaccounts (via projected volumes)"),
                ("clusterTrustBundle", "clustertrustbundles"),
                ("podCertificate", "podcertificates"),
            ] {
                if is(kind) {
                    return Ok(Some(what));
                }
            }
            if !is("downwardAPI") {
                return Err(format!("unknown source for projected volume {name:?}"));
            }
        }
        return Ok(None);
    }
    match PLAIN.iter().any(|kind| is(kind)) {
        true => Ok(None),
        false => Err(format!("unknown volume type for volume {name:?}")),
    }
}

/// Returns true if a volume of the pod, or the CSI driver of one, asks for tokens of an audience.
pub(super) fn has_audience(store: &Store, namespace: &str, pod: &Value, audience: &str) -> bool {
    let stored = |resource: &str, key: &str| -> Option<Value> {
        let stored = store.get(resource, key)?;
        serde_json::from_slice(&stored.json).ok()
    };
    let driver_of_claim = |claim: &str| -> Option<String> {
        let claim = stored("persistentvolumeclaims", &format!("{namespace}/{claim}"))?;
        let volume = stored("persistentvolumes", str_at(&claim, "/spec/volumeName"))?;
        Some(str_at(&volume, "/spec/csi/driver").to_owned())
    };
    let asks = |driver: &str| {
        let driver = stored("csidrivers.storage.k8s.io", driver);
        driver.is_some_and(|driver| {
            array_at(&driver, "/spec/tokenRequests").iter().any(|r| str_at(r, "/audience") == audience)
        })
    };
    array_at(pod, "/spec/volumes").iter().any(|volume| {
        let projects = array_at(volume, "/projected/sources").iter().any(|source| {
            source.get("serviceAccountToken").is_some_and(|token| str_at(token, "/audience") == audience)
        });
        let claim = str_at(volume, "/persistentVolumeClaim/claimName");
        let driver = if volume.get("ephemeral").is_some() {
            driver_of_claim(&format!("{}-{}", str_at(pod, "/metadata/name"), str_at(volume, "/name")))
        } else if !claim.is_empty() {
            driver_of_claim(claim)
        } else {
            Some(str_at(volume, "/csi/driver").to_owned())
        };
        projects || driver.is_some_and(|driver| !driver.is_empty() && asks(&driver))
    })
}
