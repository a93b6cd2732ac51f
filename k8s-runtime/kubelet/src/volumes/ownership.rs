//! `fsGroup`: who owns what is in a volume.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, lchown},
    path::Path,
};

use super::VolumeError;

/// Gives a directory and everything in it to a group, readable and writable by it. New files inherit the group.
pub(crate) fn give_to_group(path: &Path, group: u32) -> Result<(), VolumeError> {
    let meta = fs::symlink_metadata(path).map_err(VolumeError::io("stat", path))?;
    if meta.gid() != group {
        lchown(path, None, Some(group)).map_err(VolumeError::io("chown", path))?;
    }
    if meta.file_type().is_symlink() {
        return Ok(());
    }
    let mode = meta.permissions().mode() & 0o7777;
    let wanted = if meta.is_dir() { mode | 0o2770 } else { mode | 0o660 };
    if wanted != mode || meta.gid() != group {
        fs::set_permissions(path, fs::Permissions::from_mode(wanted))
            .map_err(VolumeError::io("chmod", path))?;
    }
    if meta.is_dir() {
        for entry in fs::read_dir(path).map_err(VolumeError::io("read", path))? {
            give_to_group(&entry.map_err(VolumeError::io("read", path))?.path(), group)?;
        }
    }
    Ok(())
}
