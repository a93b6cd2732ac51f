//! Volumes that this kubelet cannot mount: disks of cloud providers and network file systems. The pod waits,
//! and its events say why.

use std::path::PathBuf;

use async_trait::async_trait;

use super::{Setup, Volume, VolumeError};
use crate::types;

struct Unsupported(&'static str);

pub(super) fn plugin(volume: &types::Volume) -> Option<Box<dyn Volume>> {
    let known = [
        (volume.nfs.is_some(), "kubernetes.io/nfs"),
        (volume.iscsi.is_some(), "kubernetes.io/iscsi"),
        (volume.aws_elastic_block_store.is_some(), "kubernetes.io/aws-ebs"),
        (volume.gce_persistent_disk.is_some(), "kubernetes.io/gce-pd"),
        (volume.azure_disk.is_some(), "kubernetes.io/azure-disk"),
        (volume.azure_file.is_some(), "kubernetes.io/azure-file"),
        (volume.cephfs.is_some(), "kubernetes.io/cephfs"),
        (volume.cinder.is_some(), "kubernetes.io/cinder"),
        (volume.csi.is_some(), "kubernetes.io/csi"),
        (volume.fc.is_some(), "kubernetes.io/fc"),
        (volume.flex_volume.is_some(), "kubernetes.io/flexvolume"),
        (volume.flocker.is_some(), "kubernetes.io/flocker"),
        (volume.git_repo.is_some(), "kubernetes.io/git-repo"),
        (volume.glusterfs.is_some(), "kubernetes.io/glusterfs"),
        (volume.photon_persistent_disk.is_some(), "kubernetes.io/photon-pd"),
        (volume.portworx_volume.is_some(), "kubernetes.io/portworx-volume"),
        (volume.quobyte.is_some(), "kubernetes.io/quobyte"),
        (volume.rbd.is_some(), "kubernetes.io/rbd"),
        (volume.scale_io.is_some(), "kubernetes.io/scaleio"),
        (volume.storageos.is_some(), "kubernetes.io/storageos"),
        (volume.vsphere_volume.is_some(), "kubernetes.io/vsphere-volume"),
    ];
    let (_, name) = known.into_iter().find(|(there, _)| *there)?;
    Some(Box::new(Unsupported(name)))
}

#[async_trait]
impl Volume for Unsupported {
    async fn set_up(&self, _setup: &Setup<'_>) -> Result<PathBuf, VolumeError> {
        Err(VolumeError::Other(format!("volume plugin {:?} is not supported by this kubelet", self.0)))
    }
}
