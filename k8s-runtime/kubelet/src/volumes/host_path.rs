//! `hostPath`: a path of the node, checked against its `type`.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use async_trait::async_trait;

use super::{Setup, Volume, VolumeError};
use crate::types::{self, HostPathVolumeSource};

struct HostPath(HostPathVolumeSource);

pub(super) fn plugin(volume: &types::Volume) -> Option<Box<dyn Volume>> {
    Some(Box::new(HostPath(volume.host_path.clone()?)))
}

/// Checks a path against its `type`, and creates it if the type allows that.
pub(super) fn check(path: &Path, kind: &str) -> Result<(), VolumeError> {
    let found = fs::metadata(path).ok();
    let make_dir = || {
        fs::create_dir_all(path).map_err(VolumeError::io("create", path))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(VolumeError::io("chmod", path))
    };
    let wrong = |want| Err(VolumeError::HostPathType { path: path.to_owned(), want });
    let is = |test: fn(&fs::FileType) -> bool| found.as_ref().is_some_and(|m| test(&m.file_type()));
    match kind {
        // Container runtimes create a directory if nothing exists.
        "" if found.is_none() => make_dir(),
        "" => Ok(()),
        "DirectoryOrCreate" if found.is_none() => make_dir(),
        "FileOrCreate" if found.is_none() => {
            fs::write(path, b"").map_err(VolumeError::io("create", path))?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o644))
                .map_err(VolumeError::io("chmod", path))
        }
        "Directory" | "DirectoryOrCreate" if is(fs::FileType::is_dir) => Ok(()),
        "File" | "FileOrCreate" if is(fs::FileType::is_file) => Ok(()),
        "Socket" if is(FileTypeExt::is_socket) => Ok(()),
        "CharDevice" if is(FileTypeExt::is_char_device) => Ok(()),
        "BlockDevice" if is(FileTypeExt::is_block_device) => Ok(()),
        "Directory" | "DirectoryOrCreate" => wrong("a directory"),
        "File" | "FileOrCreate" => wrong("a file"),
        "Socket" => wrong("a socket file"),
        "CharDevice" => wrong("a character device"),
        "BlockDevice" => wrong("a block device"),
        other => Err(VolumeError::Other(format!("{other:?} is an invalid volume type"))),
    }
}

#[async_trait]
impl Volume for HostPath {
    async fn set_up(&self, _setup: &Setup<'_>) -> Result<PathBuf, VolumeError> {
        let path = PathBuf::from(&self.0.path);
        if !path.is_absolute() || path.components().any(|c| c == std::path::Component::ParentDir) {
            return Err(VolumeError::Other(format!("hostPath {path:?} must be absolute and without '..'")));
        }
        check(&path, self.0.type_.as_deref().unwrap_or_default())?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        let made = dir.path().join("a/b");
        assert!(check(&file, "File").is_err());
        check(&file, "FileOrCreate").unwrap();
        check(&file, "File").unwrap();
        assert!(check(&file, "Directory").is_err());
        assert!(check(&file, "Socket").is_err());
        assert!(check(&made, "Directory").is_err());
        check(&made, "DirectoryOrCreate").unwrap();
        check(&made, "Directory").unwrap();
        check(Path::new("/dev/null"), "CharDevice").unwrap();
        assert!(check(&made, "Nonsense").is_err());
    }
}
