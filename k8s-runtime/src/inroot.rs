//! Path resolution inside a root directory.
//!
//! Guarantee: nothing outside of `root` is opened or created, whatever symbolic links exist below it. The
//! kernel resolves every step with `RESOLVE_IN_ROOT`. Used for mount points in containers and for unpacking
//! layers.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::{Mode, mkdirat},
};

use crate::sys;

const RESOLVE: u64 = sys::RESOLVE_IN_ROOT | sys::RESOLVE_NO_MAGICLINKS;

/// Opens `path` inside `root` with `O_PATH`.
pub(crate) fn open(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    sys::open_in_root(root, &relative(path), libc::O_PATH, RESOLVE)
}

/// Opens the directory at `path` inside `root`; creates its missing components.
pub(crate) fn make_directory(root: BorrowedFd<'_>, path: &Path, mode: Mode) -> io::Result<OwnedFd> {
    let path = relative(path);
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    match sys::open_in_root(root, &path, flags, RESOLVE) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let mut at = root.try_clone_to_owned()?;
    let mut walked = PathBuf::from(".");
    for part in path.components() {
        let Component::Normal(name) = part else { continue };
        walked.push(name);
        at = match sys::open_in_root(root, &walked, flags, RESOLVE) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // `name` has no slash and mkdir does not follow links, so the result is in `at`. For a
                // dangling link mkdir returns "exists" and the second open "not found", which ends the loop.
                match mkdirat(at.as_fd(), name, mode) {
                    Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                sys::open_in_root(root, &walked, flags, RESOLVE)?
            }
            other => other?,
        };
    }
    Ok(at)
}

/// Opens the file at `path` inside `root` with `O_PATH`; creates an empty one if missing.
pub(crate) fn make_file(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    match open(root, path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let path = relative(path);
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "path without a file name"))?;
    let parent =
        make_directory(root, path.parent().unwrap_or(Path::new("")), Mode::from_bits_truncate(0o755))?;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent.as_fd(), name, flags, Mode::from_bits_truncate(0o644))?;
    open(root, &path)
}

/// Removes the leading slash, and `.` and `..` (which cannot lead above the root).
pub(crate) fn relative(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    if clean.as_os_str().is_empty() {
        clean.push(".");
    }
    clean
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn links_do_not_lead_out() {
        let outside = tempfile::tempdir().expect("tempdir");
        let inside = tempfile::tempdir().expect("tempdir");
        symlink(outside.path(), inside.path().join("absolute")).expect("symlink");
        symlink("../../../../../../tmp", inside.path().join("up")).expect("symlink");
        symlink("/nowhere", inside.path().join("dangling")).expect("symlink");
        let root = fs::File::open(inside.path()).expect("open");
        let mode = Mode::from_bits_truncate(0o755);
        assert!(make_directory(root.as_fd(), Path::new("/absolute/x"), mode).is_err());
        assert!(make_directory(root.as_fd(), Path::new("/dangling/x"), mode).is_err());
        assert!(make_file(root.as_fd(), Path::new("up/escaped-file")).is_err());
        assert_eq!(fs::read_dir(outside.path()).expect("read").count(), 0);
        make_directory(root.as_fd(), Path::new("/../../a/./b/../c"), mode).expect("made");
        assert!(inside.path().join("a/c").is_dir());
        make_file(root.as_fd(), Path::new("/a/new/file")).expect("made");
        assert!(inside.path().join("a/new/file").is_file());
    }
}
