//! `persistentVolumeClaim` and `ephemeral`: claims that are bound to a path of this node (`hostPath` and
//! `local` volumes, and those of the class `local-path`).

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use k8s_core::meta::ObjectExt;

use super::{Setup, Volume, VolumeError, host_path, local_path, ownership};
use crate::types::{self, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimVolumeSource};

enum Claim {
    Named(PersistentVolumeClaimVolumeSource),
    /// Claim `<pod>-<volume>`, created by the ephemeral volume controller.
    Ephemeral(String),
}

pub(super) fn plugin(volume: &types::Volume) -> Option<Box<dyn Volume>> {
    if let Some(source) = volume.persistent_volume_claim.clone() {
        return Some(Box::new(Claim::Named(source)));
    }
    volume.ephemeral.as_ref()?;
    Some(Box::new(Claim::Ephemeral(volume.name.clone())))
}

#[async_trait]
impl Volume for Claim {
    async fn set_up(&self, setup: &Setup<'_>) -> Result<PathBuf, VolumeError> {
        let name = match self {
            Claim::Named(source) => source.claim_name.clone(),
            Claim::Ephemeral(volume) => format!("{}-{volume}", setup.pod.name()),
        };
        let claims = setup.cx.client.namespaced::<PersistentVolumeClaim>(setup.pod.namespace());
        let claim = claims.get(&name).await?;
        let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
        let bound = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).filter(|n| !n.is_empty());
        let Some(bound) = bound.filter(|_| phase == "Bound") else {
            return Err(VolumeError::Other(format!("PVC {name:?} is not bound")));
        };
        let volume = setup.cx.client.all::<PersistentVolume>().get(bound).await?;
        let spec = volume.spec.unwrap_or_default();
        if let Some(source) = spec.host_path {
            let path = PathBuf::from(source.path);
            host_path::check(&path, source.type_.as_deref().unwrap_or_default())?;
            return Ok(path);
        }
        if let Some(source) = spec.local {
            let path = PathBuf::from(source.path);
            host_path::check(Path::new(&path), "Directory")?;
            if let Some(group) = setup.fs_group {
                ownership::give_to_group(&path, group)?;
            }
            return Ok(path);
        }
        if let Some(source) = spec.csi.filter(|source| source.driver == local_path::LOCAL_PATH) {
            if source.read_only == Some(true) {
                let why = "spec.csi.readOnly is not supported; set readOnly where the pod names the claim";
                return Err(VolumeError::Other(format!("PersistentVolume {bound:?}: {why}")));
            }
            return local_path::set_up(&setup.cx.config.root_dir, &source.volume_handle, setup.fs_group);
        }
        Err(VolumeError::Other(format!(
            "PersistentVolume {bound:?} is of a kind that this kubelet cannot mount"
        )))
    }
}
