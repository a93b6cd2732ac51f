//! `emptyDir`: a directory with the lifetime of the pod; with `medium: Memory` a tmpfs.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use k8s_core::meta::Quantity;
use nix::mount::{MsFlags, mount};

use super::{Setup, Volume, VolumeError, ownership};
use crate::types::{self, EmptyDirVolumeSource};

struct EmptyDir {
    name: String,
    source: EmptyDirVolumeSource,
}

pub(super) fn plugin(volume: &types::Volume) -> Option<Box<dyn Volume>> {
    let source = volume.empty_dir.clone()?;
    Some(Box::new(EmptyDir { name: volume.name.clone(), source }))
}

/// Returns `true` if the directory is a mount point.
fn is_mount_point(dir: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|m| m.dev()).ok();
    dir.parent().is_some_and(|parent| device(dir) != device(parent))
}

/// Mounts a tmpfs on a directory. An existing mount is kept.
pub(super) fn tmpfs(dir: &Path, size: Option<i64>, mode: u32) -> Result<(), VolumeError> {
    fs::create_dir_all(dir).map_err(VolumeError::io("create", dir))?;
    if is_mount_point(dir) {
        return Ok(());
    }
    let mut options = format!("mode={mode:o}");
    if let Some(size) = size {
        options.push_str(&format!(",size={size}"));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(VolumeError::io("mount tmpfs on", dir))
}

#[async_trait]
impl Volume for EmptyDir {
    async fn set_up(&self, setup: &Setup<'_>) -> Result<PathBuf, VolumeError> {
        let dir = setup.dir("empty-dir", &self.name);
        let new = !dir.exists();
        match self.source.medium.as_deref().unwrap_or_default() {
            "Memory" if setup.cx.config.tmpfs => {
                let limit = self.source.size_limit.as_ref().and_then(|q| Quantity::try_from(q).ok());
                tmpfs(&dir, limit.map(|q| q.units()).filter(|s| *s > 0), 0o777)?;
            }
            "" | "Memory" => fs::create_dir_all(&dir).map_err(VolumeError::io("create", &dir))?,
            other => return Err(VolumeError::Other(format!("emptyDir medium {other:?} is not supported"))),
        }
        if new {
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o777))
                .map_err(VolumeError::io("chmod", &dir))?;
            if let Some(group) = setup.fs_group {
                ownership::give_to_group(&dir, group)?;
            }
        }
        Ok(dir)
    }
}
