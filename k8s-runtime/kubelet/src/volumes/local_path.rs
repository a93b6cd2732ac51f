//! Volumes of the class `local-path`: directories below the kubelet's own, which it makes when it mounts them
//! and removes when the provisioner asks it to.
//!
//! Guarantees: the names come from PersistentVolumes, which users write. Nothing outside of `<root>/storage`
//! is made or removed, and no link is followed on the way. Removing what is not there succeeds.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use k8s_runtime::beneath::Directory;

use super::{VolumeError, cleanup, ownership};

/// Name of the CSI driver whose volumes these are.
pub const LOCAL_PATH: &str = "local-path.hyperkube.dev";

/// Returns an error unless `handle` is a name that the provisioner makes: letters, digits, `-`, `_` and `.`,
/// not at the start.
fn check(handle: &str) -> Result<(), VolumeError> {
    let valid = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !handle.is_empty() && handle.len() <= 255 && !handle.starts_with('.') && handle.chars().all(valid) {
        return Ok(());
    }
    Err(VolumeError::Other(format!("spec.csi.volumeHandle: {handle:?} is not a name of a directory")))
}

/// Directory of all volumes of the node.
fn parent(root: &Path) -> PathBuf {
    root.join("storage")
}

/// Makes the directory of a volume with mode 0777, and gives it to the group. An existing one keeps its mode.
/// Returns its path.
pub(super) fn set_up(root: &Path, handle: &str, group: Option<u32>) -> Result<PathBuf, VolumeError> {
    check(handle)?;
    let parent = parent(root);
    fs::create_dir_all(&parent).map_err(VolumeError::io("create", &parent))?;
    let path = parent.join(handle);
    let make = || {
        let all = Directory::open(&parent)?.without_links();
        all.make_directories(Path::new(handle), 0o777)?;
        // Not a file or a link.
        all.directory(Path::new(handle))
    };
    make().map_err(VolumeError::io("create", &path))?;
    if let Some(group) = group {
        ownership::give_to_group(&path, group)?;
    }
    Ok(path)
}

/// Removes the directory of a volume and everything in it, after unmounting what is mounted there.
pub(crate) fn remove(root: &Path, handle: &str) -> Result<(), VolumeError> {
    check(handle)?;
    let parent = parent(root);
    let found = Directory::open(&parent).and_then(|all| all.without_links().directory(Path::new(handle)));
    match found {
        Ok(_) => cleanup::remove_pod_dir(&parent.join(handle)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(VolumeError::io("remove", &parent.join(handle))(e)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_directory_is_made_kept_and_removed() {
        let root = tempfile::tempdir().unwrap();
        remove(root.path(), "pvc-u_a_c").unwrap();
        let path = set_up(root.path(), "pvc-u_a_c", None).unwrap();
        assert_eq!(path, root.path().join("storage/pvc-u_a_c"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o777);
        fs::write(path.join("f"), "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        set_up(root.path(), "pvc-u_a_c", None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700, "as its pod left it");
        assert_eq!(fs::read_to_string(path.join("f")).unwrap(), "x");
        remove(root.path(), "pvc-u_a_c").unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn nothing_outside_is_made_or_removed() {
        let (root, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(host.path().join("f"), "x").unwrap();
        fs::create_dir(root.path().join("pods")).unwrap();
        fs::create_dir(root.path().join("storage")).unwrap();
        let absolute = host.path().join("x").display().to_string();
        for handle in
            ["", ".", "..", "../pods", "a/b", "/", ".hidden", "a\0b", "a b", &absolute, &"a".repeat(256)]
        {
            assert!(set_up(root.path(), handle, None).is_err(), "{handle:?}");
            assert!(remove(root.path(), handle).is_err(), "{handle:?}");
        }
        // Not even through a link that is there, nor in a file's place.
        symlink(host.path(), root.path().join("storage/link")).unwrap();
        fs::write(root.path().join("storage/file"), "").unwrap();
        for handle in ["link", "file"] {
            assert!(set_up(root.path(), handle, Some(0)).is_err(), "{handle}");
            assert!(remove(root.path(), handle).is_err(), "{handle}");
        }
        // A pod's links in its volume are removed, not followed.
        let path = set_up(root.path(), "v", None).unwrap();
        symlink(host.path(), path.join("out")).unwrap();
        remove(root.path(), "v").unwrap();
        assert!(!path.exists() && host.path().join("f").exists() && root.path().join("pods").exists());
    }
}
