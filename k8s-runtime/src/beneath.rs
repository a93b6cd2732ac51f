//! Path resolution beneath a directory that others may change concurrently.
//!
//! A container can replace a directory of its volume by a symbolic link between the check of a path and its
//! use. Paths are therefore not checked: the kernel resolves them beneath an open directory (`openat2` with
//! `RESOLVE_BENEATH`), and the result is used by its descriptor.
//!
//! Guarantee: no function opens, creates or names anything outside of the directory, whatever links exist
//! below it.
//! Not here: the path of the directory itself; the caller must trust it.

use std::{
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Component, Path, PathBuf},
};

use nix::sys::stat::{Mode, mkdirat};

use crate::sys;

mod removal;
mod usage;

pub use removal::remove_all;
pub use usage::{DiskUsage, measure, usage};

/// Maximum number of `openat2` calls. It returns `EAGAIN` if a rename runs while it resolves `..`.
const ATTEMPTS: u32 = 128;

/// An open directory; paths are resolved beneath it.
///
/// ```
/// use std::{fs, path::Path};
/// use k8s_runtime::beneath::Directory;
/// let root = tempfile::tempdir()?;
/// fs::write(root.path().join("inside"), "x")?;
/// std::os::unix::fs::symlink("/etc/passwd", root.path().join("link"))?;
/// let directory = Directory::open(root.path())?;
/// assert!(directory.read(Path::new("inside")).is_ok());
/// assert!(directory.read(Path::new("link")).is_err() && directory.read(Path::new("../x")).is_err());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    resolve: u64,
}

impl Directory {
    /// Opens the directory at `path`, and follows links in `path`. Links beneath it are followed unless they
    /// lead out of it.
    pub fn open(path: &Path) -> io::Result<Directory> {
        let file = fs::File::open(path)?;
        if !file.metadata()?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Directory { fd: file.into(), resolve: sys::RESOLVE_BENEATH | sys::RESOLVE_NO_MAGICLINKS })
    }

    /// Refuses every symbolic link beneath the directory (`ELOOP`).
    #[must_use]
    pub fn without_links(mut self) -> Directory {
        self.resolve |= sys::RESOLVE_NO_SYMLINKS;
        self
    }

    /// Opens `path`, of any file type, with `O_PATH`: without access to its contents.
    pub fn place(&self, path: &Path) -> io::Result<OwnedFd> {
        self.resolve(path, libc::O_PATH, 0)
    }

    /// Opens the directory at `path`, with the same rule for links.
    pub fn directory(&self, path: &Path) -> io::Result<Directory> {
        let fd = self.resolve(path, libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        Ok(Directory { fd, resolve: self.resolve })
    }

    /// Opens the regular file at `path` for reading. Other file types are refused, such as a FIFO that would
    /// block.
    pub fn read(&self, path: &Path) -> io::Result<fs::File> {
        regular(self.resolve(path, libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY, 0)?)
    }

    /// Opens the regular file at `path` for appending; creates it with `mode` if missing.
    pub fn append(&self, path: &Path, mode: u32) -> io::Result<fs::File> {
        let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT | libc::O_NONBLOCK | libc::O_NOCTTY;
        regular(self.resolve(path, flags, mode)?)
    }

    /// Creates the file at `path` with `mode` (minus the umask) and opens it for writing. An existing entry
    /// is an error.
    pub fn create_new(&self, path: &Path, mode: u32) -> io::Result<fs::File> {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
        self.resolve(path, flags, mode).map(Into::into)
    }

    /// Creates the missing directories of `path` with exactly `mode`. Existing entries may have any file
    /// type.
    pub fn make_directories(&self, path: &Path, mode: u32) -> io::Result<()> {
        match self.place(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other.map(drop),
        }
        let mut at = self.fd.try_clone()?;
        let mut walked = PathBuf::new();
        for part in path.components() {
            let name = match part {
                Component::Normal(name) => name,
                Component::CurDir => continue,
                _ => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        "path must be relative and without '..'",
                    ));
                }
            };
            walked.push(name);
            at = match self.place(&walked) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => make_one(at.as_fd(), name, mode)?,
                other => other?,
            };
        }
        Ok(())
    }

    /// Returns a path of a directory entry that goes through the directory's descriptor, for calls that do
    /// not follow a link there (`lstat`, `readlink`, `symlink`, `rename`, `unlink`, [`remove_all`]). It is
    /// valid while the directory is open.
    ///
    /// # Errors
    /// `name` is not a single path component.
    pub fn entry(&self, name: impl AsRef<OsStr>) -> io::Result<PathBuf> {
        let name = name.as_ref();
        let mut parts = Path::new(name).components();
        match (parts.next(), parts.next()) {
            (Some(Component::Normal(only)), None) if only == name => Ok(self.by_descriptor().join(name)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is not a file name"))),
        }
    }

    /// Reads the names of the directory's entries.
    pub fn names(&self) -> io::Result<Vec<std::ffi::OsString>> {
        fs::read_dir(self.by_descriptor())?.map(|entry| Ok(entry?.file_name())).collect()
    }

    /// Duplicates the descriptor.
    pub fn try_clone(&self) -> io::Result<Directory> {
        Ok(Directory { fd: self.fd.try_clone()?, resolve: self.resolve })
    }

    /// The metadata of the directory itself.
    pub fn metadata(&self) -> io::Result<fs::Metadata> {
        fs::metadata(self.by_descriptor())
    }

    fn by_descriptor(&self) -> PathBuf {
        by_descriptor(self.fd.as_fd())
    }

    fn resolve(&self, path: &Path, flags: i32, mode: u32) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        for _ in 1..ATTEMPTS {
            match sys::openat2(self.fd.as_fd(), path, flags, mode, self.resolve) {
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {}
                other => return other,
            }
        }
        sys::openat2(self.fd.as_fd(), path, flags, mode, self.resolve)
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Returns the path of an open descriptor, for calls that take only paths. It is valid while the descriptor
/// is open.
pub fn by_descriptor(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// `name` has no slash and neither call follows links, so the result is in `at`.
fn make_one(at: BorrowedFd<'_>, name: &OsStr, mode: u32) -> io::Result<OwnedFd> {
    match mkdirat(at, name, Mode::from_bits_truncate(mode & 0o777)) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let made = fs::File::from(sys::openat2(at, Path::new(name), flags, 0, sys::RESOLVE_BENEATH)?);
    // Another process may have replaced the directory in between: keep the mode of that one.
    if made.metadata()?.uid() == nix::unistd::geteuid().as_raw() {
        made.set_permissions(fs::Permissions::from_mode(mode))?;
    }
    Ok(made.into())
}

fn regular(fd: OwnedFd) -> io::Result<fs::File> {
    let file = fs::File::from(fd);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::fs::symlink};

    use super::*;

    fn tree() -> (tempfile::TempDir, tempfile::TempDir) {
        let (inside, outside) =
            (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
        fs::create_dir_all(inside.path().join("a/b")).expect("mkdir");
        fs::write(inside.path().join("a/f"), "inside").expect("write");
        fs::write(outside.path().join("f"), "outside").expect("write");
        symlink("a", inside.path().join("in")).expect("link");
        symlink(outside.path(), inside.path().join("out")).expect("link");
        symlink("../../../../../../tmp", inside.path().join("up")).expect("link");
        symlink("/nowhere", inside.path().join("dangling")).expect("link");
        (inside, outside)
    }

    #[test]
    fn links_beneath_are_followed_and_links_out_are_not() {
        let (inside, outside) = tree();
        let root = Directory::open(inside.path()).expect("open");
        let mut text = String::new();
        root.read(Path::new("in/f")).expect("read").read_to_string(&mut text).expect("text");
        assert_eq!(text, "inside");
        for path in ["out", "out/f", "up", "dangling/x", "../x", "/etc/passwd", "a/../../x"] {
            assert!(root.place(Path::new(path)).is_err(), "{path}");
            assert!(root.read(Path::new(path)).is_err(), "{path}");
            assert!(root.append(Path::new(path), 0o600).is_err(), "{path}");
        }
        for path in ["out/new", "dangling/new", "up/new", "../new", "/new"] {
            assert!(root.make_directories(Path::new(path), 0o755).is_err(), "{path}");
        }
        assert_eq!(fs::read_dir(outside.path()).expect("read").count(), 1);
    }

    #[test]
    fn without_links_refuses_those_beneath_too() {
        let (inside, _outside) = tree();
        let root = Directory::open(inside.path()).expect("open").without_links();
        assert!(root.read(Path::new("in/f")).is_err());
        root.read(Path::new("a/f")).expect("read");
        assert!(root.create_new(Path::new("dangling"), 0o600).is_err());
        assert!(root.directory(Path::new("in")).is_err());
    }

    #[test]
    fn directories_are_made_with_the_mode_asked_for() {
        let (inside, _outside) = tree();
        let root = Directory::open(inside.path()).expect("open");
        root.make_directories(Path::new("./in/new/er"), 0o2777).expect("made");
        let mode = fs::metadata(inside.path().join("a/new/er")).expect("stat").permissions().mode();
        assert_eq!(mode & 0o7777, 0o2777);
        root.make_directories(Path::new("a/f"), 0o755).expect("a file is there already");
    }

    #[test]
    fn only_regular_files_are_read() {
        let (inside, _outside) = tree();
        nix::unistd::mkfifo(&inside.path().join("fifo"), Mode::from_bits_truncate(0o600)).expect("mkfifo");
        let root = Directory::open(inside.path()).expect("open");
        assert!(root.read(Path::new("fifo")).is_err());
        assert!(root.append(Path::new("fifo"), 0o600).is_err());
        for name in ["", ".", "..", "a/f", "/a", "a/"] {
            assert!(root.entry(name).is_err(), "{name:?}");
        }
        assert!(root.entry("..data").is_ok());
    }
}
