//! Directories that only their owner can enter.
//!
//! Unpacked images contain set-user-ID programs, and volumes contain Secrets. Only root may access them,
//! whichever command created the directory.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};

/// Creates a directory with mode 0700, and its missing parents. The mode of an existing directory is
/// restricted to its owner.
pub fn private_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let directory = fs::File::open(path)?;
    let mode = directory.metadata()?.permissions().mode();
    if mode & 0o077 != 0 {
        directory.set_permissions(fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::ImageStore;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("stat").permissions().mode() & 0o7777
    }

    #[test]
    fn an_image_store_is_private_whoever_made_its_directory() {
        let dir = tempfile::tempdir().expect("tempdir");
        let made = dir.path().join("data/images");
        ImageStore::open(&made).expect("open");
        assert_eq!([mode(&made), mode(&dir.path().join("data"))], [0o700; 2]);
        let there = dir.path().join("there");
        fs::create_dir(&there).expect("mkdir");
        fs::set_permissions(&there, fs::Permissions::from_mode(0o755)).expect("chmod");
        ImageStore::open(&there).expect("open");
        assert_eq!(mode(&there), 0o700);
    }
}
