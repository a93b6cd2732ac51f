//! Disk usage of a directory tree of any depth, which others may change concurrently.
//!
//! A directory is opened by its path beneath an open ancestor, the anchor. Where that path gets long, the
//! directory becomes an anchor itself. The newest directory is read first, so that few anchors are open; if
//! many are, the oldest directories are read first, which closes their anchors.
//!
//! [`measure`] reads in the background, and stops when it is dropped or after a time.
//!
//! Guarantees: no recursion; no link is followed; no mount point below the top directory is crossed; the
//! descriptors and the memory have fixed limits. What lies beyond the limits is not counted.

use std::{
    cell::Cell,
    collections::{HashSet, VecDeque},
    ffi::CStr,
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    },
    path::{Path, PathBuf},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::{
    dir::Dir,
    fcntl::AtFlags,
    sys::stat::{FileStat, SFlag, fstatat},
};
use serde::{Deserialize, Serialize};

use crate::sys;

/// Length of a path, bytes, from which a directory becomes an anchor. The kernel takes 4096.
const LONG: usize = 2048;
/// Number of anchors from which the oldest directories are read first.
const MANY_ANCHORS: usize = 32;
/// Maximum number of anchors.
const MOST_ANCHORS: usize = 256;
/// Maximum number of directories that wait to be read.
const MOST_PENDING: usize = 250_000;
/// Maximum number of files with several names that are told apart. Further ones count with each name.
const MOST_LINKED: usize = 1_000_000;

/// Disk space and inodes of a directory tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUsage {
    /// Allocated bytes. A file with several names counts once.
    pub bytes: u64,
    /// Number of inodes, the top directory included.
    pub inodes: u64,
}

impl DiskUsage {
    /// Returns the sum of both.
    #[must_use]
    pub fn plus(self, other: DiskUsage) -> DiskUsage {
        DiskUsage {
            bytes: self.bytes.saturating_add(other.bytes),
            inodes: self.inodes.saturating_add(other.inodes),
        }
    }
}

/// A directory beneath whose descriptor others are opened.
struct Anchor {
    fd: OwnedFd,
    /// The number of open anchors.
    open: Rc<Cell<usize>>,
}

impl Anchor {
    fn new(fd: OwnedFd, open: &Rc<Cell<usize>>) -> Rc<Self> {
        open.set(open.get() + 1);
        Rc::new(Anchor { fd, open: open.clone() })
    }
}

impl Drop for Anchor {
    fn drop(&mut self) {
        self.open.set(self.open.get().saturating_sub(1));
    }
}

/// A directory to read: its name in a directory that has been read.
struct Pending {
    anchor: Rc<Anchor>,
    /// Path of its parent beneath the anchor.
    parent: Rc<Path>,
    name: Box<CStr>,
}

impl Pending {
    fn path(&self) -> PathBuf {
        self.parent.join(std::ffi::OsStr::from_bytes(self.name.to_bytes()))
    }
}

/// Measures the tree at `path`. It stops once it has counted more than `enough` bytes. What vanishes
/// meanwhile is no error.
///
/// # Errors
/// `path` cannot be read (`NotFound`), or is a link or another file (`NotADirectory`).
///
/// ```
/// let tree = tempfile::tempdir()?;
/// std::fs::write(tree.path().join("file"), vec![1; 10_000])?;
/// let used = k8s_runtime::beneath::usage(tree.path(), u64::MAX)?;
/// assert_eq!(used.inodes, 2);
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn usage(path: &Path, enough: u64) -> io::Result<DiskUsage> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let top = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    Walk::new(enough).run(top.into())
}

/// Stops a walk when it is dropped.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// As [`usage`], on a thread for blocking work. After `patience` it returns what it has counted so far.
///
/// # Errors
/// As [`usage`].
pub async fn measure(path: PathBuf, enough: u64, patience: Duration) -> io::Result<DiskUsage> {
    let stop = Stop(Arc::default());
    let stopped = stop.0.clone();
    let mut walk = tokio::task::spawn_blocking(move || {
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let top = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        Walk { stopped, ..Walk::new(enough) }.run(top.into())
    });
    match tokio::time::timeout(patience, &mut walk).await {
        Ok(done) => done.map_err(io::Error::other)?,
        Err(_) => {
            drop(stop);
            walk.await.map_err(io::Error::other)?
        }
    }
}

#[derive(Default)]
struct Walk {
    enough: u64,
    sum: DiskUsage,
    /// Inodes of files with several names that are counted.
    linked: HashSet<u64>,
    pending: VecDeque<Pending>,
    anchors: Rc<Cell<usize>>,
    /// Ends the walk.
    stopped: Arc<AtomicBool>,
    /// The most anchors that were open.
    #[cfg(test)]
    peak: usize,
}

impl Walk {
    fn new(enough: u64) -> Self {
        Walk { enough, ..Walk::default() }
    }

    fn run(&mut self, top: OwnedFd) -> io::Result<DiskUsage> {
        let own = fstatat(&top, "", AtFlags::AT_EMPTY_PATH)?;
        self.count(&own);
        let anchor = Anchor::new(top.try_clone()?, &self.anchors);
        self.read(top, &anchor, Path::new(""), own.st_dev)?;
        drop(anchor);
        while !self.is_done() {
            #[cfg(test)]
            {
                self.peak = self.peak.max(self.anchors.get());
            }
            let next = match self.anchors.get() {
                0..=MANY_ANCHORS => self.pending.pop_back(),
                _ => self.pending.pop_front(),
            };
            let Some(next) = next else { break };
            let path = next.path();
            let resolve = sys::RESOLVE_BENEATH | sys::RESOLVE_NO_SYMLINKS | sys::RESOLVE_NO_XDEV;
            let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
            // It may have vanished, or been replaced by a link, or be a mount point.
            let Ok(fd) = sys::openat2(next.anchor.fd.as_fd(), &path, flags, 0, resolve) else { continue };
            let far = path.as_os_str().len() >= LONG;
            if far && self.anchors.get() >= MOST_ANCHORS {
                continue;
            }
            let read = if far {
                let anchor = Anchor::new(fd.try_clone()?, &self.anchors);
                self.read(fd, &anchor, Path::new(""), own.st_dev)
            } else {
                self.read(fd, &next.anchor, &path, own.st_dev)
            };
            if let Err(error) = read {
                tracing::debug!(?path, %error, "read a directory");
            }
        }
        Ok(self.sum)
    }

    /// Counts the entries of a directory, and notes its directories.
    fn read(&mut self, fd: OwnedFd, anchor: &Rc<Anchor>, path: &Path, device: u64) -> io::Result<()> {
        let mut directory = Dir::from_fd(fd)?;
        let at = directory.as_fd().try_clone_to_owned()?;
        let parent: Rc<Path> = path.into();
        for entry in directory.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let Ok(found) = fstatat(&at, name, AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
            if found.st_dev != device {
                continue;
            }
            self.count(&found);
            if self.is_done() {
                return Ok(());
            }
            let is_directory = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
            if is_directory && self.pending.len() < MOST_PENDING {
                let (anchor, parent) = (anchor.clone(), parent.clone());
                self.pending.push_back(Pending { anchor, parent, name: name.into() });
            }
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.sum.bytes > self.enough || self.stopped.load(Ordering::Relaxed)
    }

    fn count(&mut self, found: &FileStat) {
        let is_directory = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
        if !is_directory && found.st_nlink > 1 {
            if self.linked.contains(&found.st_ino) {
                return;
            }
            if self.linked.len() < MOST_LINKED {
                self.linked.insert(found.st_ino);
            }
        }
        let bytes = u64::try_from(found.st_blocks).unwrap_or(0).saturating_mul(512);
        self.sum = self.sum.plus(DiskUsage { bytes, inodes: 1 });
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::{
        fcntl::{OFlag, openat},
        sys::stat::{Mode, mkdirat},
    };

    use super::*;

    fn measured(path: &Path) -> DiskUsage {
        usage(path, u64::MAX).expect("measured")
    }

    #[test]
    fn links_count_themselves_and_names_of_a_file_once() {
        let (tree, outside) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
        let large = outside.path().join("large");
        fs::write(&large, vec![1; 8 << 20]).expect("write");
        fs::create_dir_all(tree.path().join("a/b")).expect("mkdir");
        fs::write(tree.path().join("a/b/file"), vec![1; 1 << 20]).expect("write");
        fs::hard_link(tree.path().join("a/b/file"), tree.path().join("again")).expect("link");
        symlink(&large, tree.path().join("file-link")).expect("link");
        symlink(outside.path(), tree.path().join("a/directory-link")).expect("link");
        symlink("/", tree.path().join("root")).expect("link");
        let used = measured(tree.path());
        assert!((1 << 20..2 << 20).contains(&used.bytes), "{used:?}");
        // Three directories, the file, three links.
        assert_eq!(used.inodes, 7);
        symlink(tree.path(), outside.path().join("top")).expect("link");
        assert!(usage(&outside.path().join("top"), u64::MAX).is_err(), "a link is no directory");
        assert_eq!(usage(Path::new("/nowhere"), 0).expect_err("nothing").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn it_stops_once_it_has_counted_enough() {
        let tree = tempfile::tempdir().expect("tempdir");
        for n in 0..20 {
            fs::create_dir(tree.path().join(format!("{n}"))).expect("mkdir");
            fs::write(tree.path().join(format!("{n}/file")), vec![1; 1 << 20]).expect("write");
        }
        let (some, all) = (usage(tree.path(), 2 << 20).expect("measured"), measured(tree.path()));
        assert!(some.bytes > 2 << 20 && some.bytes < 4 << 20, "{some:?}");
        assert!(all.bytes >= 20 << 20, "{all:?}");
    }

    #[tokio::test]
    async fn a_walk_ends_in_time_and_when_nobody_waits() {
        let tree = tempfile::tempdir().expect("tempdir");
        for n in 0..200 {
            fs::create_dir_all(tree.path().join(format!("{n}/below"))).expect("mkdir");
        }
        let whole = measure(tree.path().into(), u64::MAX, Duration::from_secs(60)).await.expect("measured");
        assert_eq!(whole, measured(tree.path()));
        let some = measure(tree.path().into(), u64::MAX, Duration::ZERO).await.expect("measured");
        assert!(some.inodes <= whole.inodes, "{some:?}");
        let mut walk = Walk::new(u64::MAX);
        drop(Stop(walk.stopped.clone()));
        let none = walk.run(fs::File::open(tree.path()).expect("open").into()).expect("measured");
        assert!(none.inodes <= 2, "the top directory and its first entry: {none:?}");
        assert!(measure("/nowhere".into(), 0, Duration::ZERO).await.is_err());
    }

    #[test]
    fn nothing_outside_is_counted_while_a_pod_swaps_directories_and_links() {
        let (tree, outside) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
        fs::create_dir(outside.path().join("below")).expect("mkdir");
        fs::write(outside.path().join("below/large"), vec![1; 4 << 20]).expect("write");
        let path = |name: &str| tree.path().join(name);
        fs::create_dir_all(path("real/below")).expect("mkdir");
        let done = AtomicBool::new(false);
        let most = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    // In turn a directory and a link that leads out of the tree.
                    let _ = fs::rename(path("real"), path("at"));
                    let _ = fs::rename(path("at"), path("real"));
                    let _ = symlink(outside.path(), path("at"));
                    let _ = fs::remove_file(path("at"));
                }
            });
            let most = (0..2000).map(|_| measured(tree.path()).bytes).max();
            done.store(true, Ordering::Relaxed);
            most
        });
        assert!(most.is_some_and(|bytes| bytes < 1 << 20), "{most:?}");
    }

    /// Nested directories with long names, each with another directory beside the next one; and a file at
    /// the bottom.
    #[test]
    fn any_depth_is_counted_with_few_descriptors() {
        const LEVELS: u64 = 3000;
        let scratch = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("tempdir");
        let tree = scratch.path().join("tree");
        fs::create_dir(&tree).expect("mkdir");
        let name = "n".repeat(200);
        let mut at: OwnedFd = fs::File::open(&tree).expect("open").into();
        for _ in 0..LEVELS {
            for name in [&*name, "beside", "zz"] {
                mkdirat(&at, name, Mode::S_IRWXU).expect("mkdirat");
            }
            at = openat(&at, &*name, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).expect("openat");
        }
        let mut file: fs::File =
            openat(&at, "file", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRWXU).expect("file").into();
        io::Write::write_all(&mut file, &vec![1; 1 << 20]).expect("write");
        let mut walk = Walk::new(u64::MAX);
        let used = walk.run(fs::File::open(&tree).expect("open").into()).expect("measured");
        assert_eq!(used.inodes, 3 * LEVELS + 2);
        assert!(used.bytes >= 1 << 20);
        assert!(walk.peak > 8 && walk.peak <= MANY_ANCHORS + 4, "{} anchors", walk.peak);
        assert_eq!(walk.anchors.get(), 0, "all anchors are closed");
        crate::beneath::remove_all(&tree).expect("removed");
    }
}
