//! Removal of a directory tree of any depth.
//!
//! `std::fs::remove_dir_all` needs stack and a descriptor per level, and a pod or an image can nest more
//! directories than a thread has stack for. Here a directory found in a subdirectory is renamed into the top
//! directory and handled next, so that every step works two levels deep.
//!
//! Guarantees: no recursion; at most four open descriptors; no link is followed; nothing is removed through
//! a mount point below the top directory.

use std::{
    ffi::{CStr, CString},
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    },
    path::Path,
};

use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::renameat,
    unistd::{UnlinkatFlags, unlinkat},
};

use crate::sys;

/// Maximum number of passes over the top directory. Without a concurrent writer one or two are enough.
const ROUNDS: u32 = 1000;
/// Maximum number of names tried for one directory that is renamed.
const NAMES: u32 = 1000;

/// Removes the directory at `path` with everything in it, as `std::fs::remove_dir_all`, but at any depth. A
/// symbolic link at `path` is itself removed. What vanishes meanwhile is no error.
///
/// A failed call may leave directories renamed to `.removing-…` in the top directory; a later call removes
/// them.
///
/// # Errors
/// `path` does not exist (`NotFound`) or is another file (`NotADirectory`); an entry cannot be removed, such
/// as a mount point (`EBUSY`); or another process keeps making entries (`DirectoryNotEmpty`).
///
/// ```
/// let root = tempfile::tempdir()?;
/// let tree = root.path().join("tree");
/// std::fs::create_dir_all(tree.join("a/b/c"))?;
/// k8s_runtime::beneath::remove_all(&tree)?;
/// assert!(!tree.exists());
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn remove_all(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_symlink() {
        return fs::remove_file(path);
    }
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let top: OwnedFd = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?.into();
    for _ in 0..ROUNDS {
        empty(top.as_fd())?;
        match fs::remove_dir(path) {
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => return other,
        }
    }
    Err(Errno::ENOTEMPTY.into())
}

/// Passes once over the directory and removes its entries.
fn empty(top: BorrowedFd<'_>) -> io::Result<()> {
    // Names in `top` of directories that are still to be emptied. The last one is handled first.
    let mut pending: Vec<CString> = Vec::new();
    for entry in open(top, c".")?.iter() {
        let entry = entry?;
        if !is_real(entry.file_name()) || remove_entry(top, entry.file_name(), entry.file_type())? {
            continue;
        }
        pending.push(entry.file_name().to_owned());
        while let Some(name) = pending.pop() {
            empty_one(top, name, &mut pending)?;
        }
    }
    Ok(())
}

/// Removes the directory `name` of `top`. Its directories with entries are renamed into `top` and added to
/// `pending`.
fn empty_one(top: BorrowedFd<'_>, name: CString, pending: &mut Vec<CString>) -> io::Result<()> {
    let mut directory = match open(top, &name) {
        Ok(directory) => directory,
        Err(e) => {
            return match e.raw_os_error() {
                Some(libc::ENOENT) => Ok(()),
                // Another process has replaced it.
                Some(libc::ENOTDIR | libc::ELOOP) => remove_entry(top, &name, None).map(drop),
                _ => Err(e),
            };
        }
    };
    let (mut progress, mut full) = (false, None);
    let below = directory.as_fd().try_clone_to_owned()?;
    let before = pending.len();
    for entry in directory.iter() {
        let entry = entry?;
        if !is_real(entry.file_name()) {
            continue;
        }
        if remove_entry(below.as_fd(), entry.file_name(), entry.file_type())? {
            progress = true;
            continue;
        }
        match move_up(below.as_fd(), entry.file_name(), entry.ino(), top) {
            Ok(moved) => {
                pending.extend(moved);
                progress = true;
            }
            // `top` takes no more names. It does after the directories moved so far are removed.
            Err(errno @ (Errno::EMLINK | Errno::ENOSPC | Errno::EDQUOT)) => full = Some(errno),
            Err(errno) => return Err(errno.into()),
        }
    }
    match (full, progress) {
        (Some(errno), false) => Err(errno.into()),
        (Some(_), true) => {
            pending.insert(before, name);
            Ok(())
        }
        // If it has got new entries in between, the next pass over `top` finds it.
        (None, _) => remove_entry(top, &name, Some(Type::Directory)).map(drop),
    }
}

/// Renames a directory into `top`. Returns its new name, or `None` if it has vanished.
fn move_up(
    from: BorrowedFd<'_>,
    name: &CStr,
    inode: u64,
    top: BorrowedFd<'_>,
) -> nix::Result<Option<CString>> {
    for attempt in 0..NAMES {
        // The inode number makes the name unique, unless somebody has chosen such a name.
        let fresh = CString::new(format!(".removing-{inode:x}-{attempt}")).map_err(|_| Errno::EINVAL)?;
        // A directory replaces nothing but an empty directory. It would be removed too.
        match renameat(from, name, top, fresh.as_c_str()) {
            Ok(()) => return Ok(Some(fresh)),
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::EEXIST | Errno::ENOTEMPTY | Errno::ENOTDIR | Errno::EISDIR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EEXIST)
}

/// Removes an entry of `parent`. Returns `false` if it is a directory with entries. A vanished entry counts
/// as removed.
fn remove_entry(parent: BorrowedFd<'_>, name: &CStr, kind: Option<Type>) -> io::Result<bool> {
    let mut flag = match kind {
        Some(Type::Directory) => UnlinkatFlags::RemoveDir,
        _ => UnlinkatFlags::NoRemoveDir,
    };
    // Another process may replace it by an entry of the other kind each time.
    for _ in 0..NAMES {
        flag = match unlinkat(parent, name, flag) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(true),
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => return Ok(false),
            Err(Errno::EISDIR) => UnlinkatFlags::RemoveDir,
            Err(Errno::ENOTDIR) => UnlinkatFlags::NoRemoveDir,
            Err(errno) => return Err(errno.into()),
        };
    }
    Err(Errno::EBUSY.into())
}

/// Opens the directory `name` of `parent`. A link or a mount point is refused.
fn open(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<Dir> {
    let path = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let resolve = sys::RESOLVE_BENEATH | sys::RESOLVE_NO_SYMLINKS | sys::RESOLVE_NO_XDEV;
    Ok(Dir::from_fd(sys::openat2(parent, path, flags, 0, resolve)?)?)
}

/// Returns `false` for the directory itself and its parent.
fn is_real(name: &CStr) -> bool {
    name != c"." && name != c".."
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, path::PathBuf};

    use nix::{
        fcntl::{OFlag, openat},
        sys::stat::{Mode, mkdirat},
    };

    use super::*;

    /// A directory that a failed test leaves behind: `TempDir` would remove it with std's recursion. In
    /// memory where possible, since a disk needs seconds for that many directories.
    fn scratch() -> PathBuf {
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("tempdir").keep()
    }

    /// Makes `path` and nested directories beneath it, with a file in each.
    fn nest(path: &Path, levels: u32) {
        fs::create_dir(path).expect("mkdir");
        let mut at: OwnedFd = fs::File::open(path).expect("open").into();
        for _ in 0..levels {
            mkdirat(&at, "d", Mode::S_IRWXU).expect("mkdirat");
            let made = openat(&at, "f", OFlag::O_CREAT | OFlag::O_CLOEXEC, Mode::S_IRWXU).expect("file");
            drop(made);
            at = openat(&at, "d", OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).expect("openat");
        }
    }

    fn on_a_small_stack(path: &Path) -> io::Result<()> {
        let path = path.to_owned();
        let thread = std::thread::Builder::new().stack_size(256 << 10);
        thread.spawn(move || remove_all(&path)).expect("thread").join().expect("no panic")
    }

    #[test]
    fn thirty_thousand_levels_need_no_stack() {
        let scratch = scratch();
        nest(&scratch.join("tree"), 30_000);
        on_a_small_stack(&scratch.join("tree")).expect("removed");
        fs::remove_dir(&scratch).expect("nothing is left");
    }

    #[test]
    fn many_deep_branches_are_removed() {
        let scratch = scratch();
        let tree = scratch.join("tree");
        fs::create_dir_all(tree.join("a/b")).expect("mkdir");
        for n in 0..20 {
            for above in ["", "a", "a/b"] {
                nest(&tree.join(above).join(format!("branch{n}")), 30);
            }
        }
        on_a_small_stack(&tree).expect("removed");
        fs::remove_dir(&scratch).expect("nothing is left");
    }

    #[test]
    fn names_that_the_removal_uses_may_be_taken() {
        use std::os::unix::fs::MetadataExt;
        let scratch = tempfile::tempdir().expect("tempdir");
        let tree = scratch.path().join("tree");
        fs::create_dir_all(tree.join("a/b/c")).expect("mkdir");
        let inode = fs::metadata(tree.join("a/b")).expect("stat").ino();
        fs::write(tree.join(format!(".removing-{inode:x}-0")), "").expect("write");
        fs::create_dir_all(tree.join(format!(".removing-{inode:x}-1/full"))).expect("mkdir");
        symlink("/", tree.join(format!(".removing-{inode:x}-2"))).expect("link");
        remove_all(&tree).expect("removed");
        assert!(fs::symlink_metadata(&tree).is_err());
    }

    #[test]
    fn a_link_is_removed_and_not_followed() {
        let (scratch, outside) =
            (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
        fs::create_dir(outside.path().join("kept")).expect("mkdir");
        fs::write(outside.path().join("kept/file"), "").expect("write");
        let tree = scratch.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).expect("mkdir");
        for link in ["out", "a/out", "a/b/out"] {
            symlink(outside.path(), tree.join(link)).expect("link");
        }
        symlink(&tree, scratch.path().join("top")).expect("link");
        remove_all(&scratch.path().join("top")).expect("the link itself");
        assert!(tree.join("a").exists());
        remove_all(&tree).expect("removed");
        assert_eq!(fs::read_dir(scratch.path()).expect("read").count(), 0);
        assert!(outside.path().join("kept/file").exists());
    }

    #[test]
    fn a_concurrent_writer_is_survived() {
        let scratch = scratch();
        let tree = scratch.join("tree");
        nest(&tree, 50);
        let removed = std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..2000 {
                    // Fails after `tree` is gone.
                    let _ = fs::create_dir(tree.join(format!("n{n}")));
                    let _ = fs::create_dir(tree.join(format!("n{n}/below")));
                    let _ = fs::rename(tree.join(format!("n{n}/below")), tree.join("d"));
                }
            });
            remove_all(&tree)
        });
        removed.expect("removed");
        fs::remove_dir(&scratch).expect("nothing is left");
    }

    #[test]
    fn results_are_those_of_std() {
        let scratch = tempfile::tempdir().expect("tempdir");
        let file = scratch.path().join("file");
        fs::write(&file, "").expect("write");
        for path in [scratch.path().join("none"), file.join("below"), file.clone()] {
            let (own, std) = (remove_all(&path), fs::remove_dir_all(&path));
            assert_eq!(own.map_err(|e| e.kind()), std.map_err(|e| e.kind()), "{path:?}");
        }
        assert!(file.exists());
        fs::create_dir(scratch.path().join("empty")).expect("mkdir");
        remove_all(&scratch.path().join("empty")).expect("removed");
        assert!(!scratch.path().join("empty").exists());
    }
}
