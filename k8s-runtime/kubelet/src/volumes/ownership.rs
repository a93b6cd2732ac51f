//! `fsGroup`: group ownership of a volume's files.
//!
//! Guarantee: every step goes through descriptors. A pod that shares the volume and replaces its entries
//! during the walk cannot redirect the change to files outside of the volume.

use std::{
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::Path,
};

use k8s_runtime::beneath::{self, Directory};
use nix::{
    fcntl::AtFlags,
    unistd::{Gid, fchownat},
};

use super::VolumeError;

/// Maximum depth of directories; each level holds a descriptor during the walk.
const DEEPEST: usize = 256;

/// Changes the group of a directory and of everything in it, and makes it readable and writable by the group.
/// The setgid bit makes new files inherit the group.
pub(crate) fn give_to_group(path: &Path, group: u32) -> Result<(), VolumeError> {
    let give = || {
        let root = Directory::open(path)?.without_links();
        give_one(root.as_fd(), &root.metadata()?, group)?;
        walk(root, group)
    };
    give().map_err(VolumeError::io("give to the pod's fsGroup", path))
}

fn walk(root: Directory, group: u32) -> io::Result<()> {
    let names = root.names()?;
    let mut open = vec![(root, names)];
    while let Some((directory, names)) = open.last_mut() {
        let Some(name) = names.pop() else {
            open.pop();
            continue;
        };
        let Some(below) = give_entry(directory, &name, group)? else { continue };
        if open.len() == DEEPEST {
            return Err(io::Error::other(format!("directories are nested deeper than {DEEPEST}")));
        }
        let names = below.names()?;
        open.push((below, names));
    }
    Ok(())
}

/// Changes one entry. Returns it if it is a directory.
fn give_entry(directory: &Directory, name: &OsStr, group: u32) -> io::Result<Option<Directory>> {
    let gone_is_fine = |e: io::Error| if e.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(e) };
    let place = match directory.place(Path::new(name)) {
        Ok(place) => place,
        // A symbolic link: change the link itself, not its target.
        Err(e) if e.raw_os_error() == Some(nix::libc::ELOOP) => {
            let given =
                fchownat(directory, name, None, Some(Gid::from_raw(group)), AtFlags::AT_SYMLINK_NOFOLLOW);
            return given.map(|()| None).map_err(io::Error::from).or_else(gone_is_fine);
        }
        Err(e) => return gone_is_fine(e),
    };
    let meta = fs::metadata(beneath::by_descriptor(place.as_fd()))?;
    give_one(place.as_fd(), &meta, group)?;
    if !meta.is_dir() {
        return Ok(None);
    }
    directory.directory(Path::new(name)).map(Some).or_else(|e| {
        // The entry was replaced in between: skip it; only the pod itself is affected.
        match e.raw_os_error() {
            Some(nix::libc::ELOOP | nix::libc::ENOTDIR | nix::libc::ENOENT) => Ok(None),
            _ => Err(e),
        }
    })
}

fn give_one(place: BorrowedFd<'_>, meta: &fs::Metadata, group: u32) -> io::Result<()> {
    if meta.gid() != group {
        fchownat(place, "", None, Some(Gid::from_raw(group)), AtFlags::AT_EMPTY_PATH)?;
    }
    let mode = meta.permissions().mode() & 0o7777;
    let wanted = if meta.is_dir() { mode | 0o2770 } else { mode | 0o660 };
    if wanted != mode || meta.gid() != group {
        fs::set_permissions(beneath::by_descriptor(place), fs::Permissions::from_mode(wanted))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::symlink,
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;

    #[test]
    fn everything_is_given_and_links_are_not_followed() {
        let (volume, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(volume.path().join("a/b")).unwrap();
        fs::write(volume.path().join("a/b/f"), "").unwrap();
        fs::write(host.path().join("f"), "").unwrap();
        symlink(host.path(), volume.path().join("a/out")).unwrap();
        give_to_group(volume.path(), 4242).unwrap();
        for (path, mode) in [("", 0o2770), ("a", 0o2770), ("a/b", 0o2770), ("a/b/f", 0o660)] {
            let meta = fs::metadata(volume.path().join(path)).unwrap();
            assert_eq!((meta.gid(), meta.permissions().mode() & mode), (4242, mode), "{path}");
        }
        assert_eq!(fs::symlink_metadata(volume.path().join("a/out")).unwrap().gid(), 4242);
        for path in ["", "f"] {
            assert_ne!(fs::metadata(host.path().join(path)).unwrap().gid(), 4242, "{path}");
        }
    }

    #[test]
    fn a_directory_swapped_for_a_link_gives_nothing_outside() {
        let (volume, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (a, b) = (volume.path().join("a"), volume.path().join("b"));
        fs::create_dir(&a).unwrap();
        fs::write(a.join("f"), "").unwrap();
        fs::write(host.path().join("f"), "").unwrap();
        symlink(host.path(), &b).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (here, flags) = (nix::fcntl::AT_FDCWD, nix::fcntl::RenameFlags::RENAME_EXCHANGE);
                while !stop.load(Ordering::Relaxed) {
                    nix::fcntl::renameat2(here, &a, here, &b, flags).unwrap();
                }
            });
            let given: Result<Vec<()>, _> =
                (0..1000).map(|n| give_to_group(volume.path(), 4000 + n % 2)).collect();
            stop.store(true, Ordering::Relaxed);
            given.unwrap();
        });
        for path in ["", "f"] {
            assert!(fs::metadata(host.path().join(path)).unwrap().gid() < 4000, "{path}");
        }
    }
}
