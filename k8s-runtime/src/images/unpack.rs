//! Unpacks a layer into a directory for overlayfs.
//!
//! Guarantees: the kernel resolves every path inside the directory (see [`inroot`]), so no entry, symbolic
//! link or hard link leads out of it. Whiteouts become overlayfs's own markers (a 0/0 character device, an
//! "opaque" attribute).

use std::{
    ffi::OsStr,
    fs, io,
    io::Read,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::AtFlags,
    sys::stat::{Mode, SFlag, UtimensatFlags, mknodat, utimensat},
    sys::time::{TimeSpec, TimeValLike},
    unistd::{Gid, Uid, fchownat},
};
use sha2::{Digest, Sha256};

use crate::{beneath, inroot, sys};

/// A reader that hashes and counts the bytes it passes on.
pub(crate) struct Hashing<R> {
    inner: R,
    hash: Sha256,
    pub(crate) length: u64,
}

impl<R: Read> Hashing<R> {
    pub(crate) fn new(inner: R) -> Hashing<R> {
        Hashing { inner, hash: Sha256::new(), length: 0 }
    }

    /// Reads to the end and returns the digest of all bytes.
    pub(crate) fn finish(mut self) -> io::Result<String> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(digest_of(self.hash))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.hash.update(&buf[..read]);
        self.length += read as u64;
        Ok(read)
    }
}

/// Formats a digest as `sha256:<hex>`.
pub(crate) fn digest_of(hash: Sha256) -> String {
    use std::fmt::Write;
    hash.finalize().iter().fold("sha256:".to_owned(), |mut text, byte| {
        // Writing to a `String` does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Decompresses gzip or zstd, detected by the magic number; other data is passed on unchanged.
pub(crate) fn decompress<'a>(mut source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::with_capacity(4);
    (&mut source).take(4).read_to_end(&mut magic)?;
    let whole = io::Cursor::new(magic.clone()).chain(source);
    Ok(match magic[..] {
        [0x1f, 0x8b, ..] => {
            Box::new(flate2::read::MultiGzDecoder::new(io::BufReader::with_capacity(1 << 16, whole)))
        }
        [0x28, 0xb5, 0x2f, 0xfd] => {
            Box::new(ruzstd::decoding::StreamingDecoder::new(whole).map_err(io::Error::other)?)
        }
        _ => Box::new(whole),
    })
}

/// Unpacks an uncompressed layer into `directory`, which must be empty. Returns the layer's diff id and the
/// total size of its files.
pub(crate) fn unpack(source: impl Read, directory: &Path) -> io::Result<(String, u64)> {
    let root: OwnedFd = fs::File::open(directory)?.into();
    let mut archive = tar::Archive::new(Hashing::new(source));
    let mut size = 0;
    // Directory times are set last, since creating entries changes them.
    let mut times: Vec<(PathBuf, u64)> = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let named = |e: io::Error| io::Error::new(e.kind(), format!("unpack {path:?}: {e}"));
        size += one(&root, &mut entry, &path, &mut times).map_err(named)?;
    }
    for (path, seconds) in times.into_iter().rev() {
        if let Ok(directory) = inroot::open(root.as_fd(), &path) {
            set_time(&directory, OsStr::new("."), seconds)?;
        }
    }
    Ok((archive.into_inner().finish()?, size))
}

fn refused(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn one<R: Read>(
    root: &OwnedFd,
    entry: &mut tar::Entry<'_, R>,
    path: &Path,
    times: &mut Vec<(PathBuf, u64)>,
) -> io::Result<u64> {
    let clean = inroot::relative(path);
    let kind = entry.header().entry_type();
    let (mode, seconds) = (entry.header().mode()? & 0o7777, entry.header().mtime().unwrap_or(0));
    // Missing fields count as 0.
    let (uid, gid) = (id(entry.header().uid().unwrap_or(0))?, id(entry.header().gid().unwrap_or(0))?);
    if clean == Path::new(".") {
        // The root of the layer.
        set_owner_and_mode(root, OsStr::new("."), uid, gid, Some(mode))?;
        return Ok(0);
    }
    let name = clean.file_name().ok_or_else(|| refused("entry without a name"))?;
    let parent_path = clean.parent().unwrap_or(Path::new(""));
    let parent = inroot::make_directory(root.as_fd(), parent_path, Mode::from_bits_truncate(0o755))?;

    if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
        if hidden == b".wh..opq" {
            let directory = sys::open_in_root(
                root.as_fd(),
                &inroot::relative(parent_path),
                libc::O_RDONLY | libc::O_DIRECTORY,
                sys::RESOLVE_IN_ROOT,
            )?;
            sys::set_xattr(directory.as_fd(), OsStr::new("trusted.overlay.opaque"), b"y")?;
        } else if !hidden.starts_with(b".wh.") && !hidden.is_empty() && hidden != b"." && hidden != b".." {
            let hidden = OsStr::from_bytes(hidden);
            clear(&parent, hidden, false)?;
            mknodat(&parent, hidden, SFlag::S_IFCHR, Mode::empty(), 0)?;
        }
        return Ok(0);
    }

    clear(&parent, name, kind.is_dir())?;
    let mut size = 0;
    match kind {
        tar::EntryType::Directory => {
            match nix::sys::stat::mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            times.push((clean.clone(), seconds));
        }
        tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(below(&parent, name))?;
            size = io::copy(entry, &mut file)?;
            let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            nix::unistd::fchown(&file, owner.0, owner.1)?;
            nix::sys::stat::fchmod(&file, Mode::from_bits_truncate(mode))?;
            attributes(entry, &file)?;
            set_time(&parent, name, seconds)?;
            return Ok(size);
        }
        tar::EntryType::Symlink => {
            let target = entry.link_name()?.ok_or_else(|| refused("symbolic link without a target"))?;
            std::os::unix::fs::symlink(&target, below(&parent, name))?;
            set_owner_and_mode(&parent, name, uid, gid, None)?;
            return set_time(&parent, name, seconds).map(|()| 0);
        }
        tar::EntryType::Link => {
            let target = entry.link_name()?.ok_or_else(|| refused("hard link without a target"))?;
            let target = inroot::relative(&target);
            let from_name = target.file_name().ok_or_else(|| refused("hard link to a directory"))?;
            let from = inroot::open(root.as_fd(), target.parent().unwrap_or(Path::new("")))?;
            nix::unistd::linkat(&from, from_name, &parent, name, AtFlags::empty())?;
            return Ok(0);
        }
        tar::EntryType::Fifo => mknodat(&parent, name, SFlag::S_IFIFO, Mode::from_bits_truncate(0o600), 0)?,
        tar::EntryType::Char | tar::EntryType::Block => {
            let header = entry.header();
            let (major, minor) = (header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0));
            let format = if kind == tar::EntryType::Char { SFlag::S_IFCHR } else { SFlag::S_IFBLK };
            let device = nix::sys::stat::makedev(major.into(), minor.into());
            mknodat(&parent, name, format, Mode::from_bits_truncate(0o600), device)?;
        }
        // Metadata entries, such as a global header.
        _ => return Ok(0),
    }
    set_owner_and_mode(&parent, name, uid, gid, Some(mode))?;
    Ok(size)
}

fn id(value: u64) -> io::Result<u32> {
    u32::try_from(value).map_err(|_| refused("owner out of range"))
}

/// Path of `name` in the directory `parent`, through its descriptor. `name` has no slash.
fn below(parent: &OwnedFd, name: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name)
}

/// Removes an existing entry that a later one replaces. Directories are merged.
fn clear(parent: &OwnedFd, name: &OsStr, keep_directory: bool) -> io::Result<()> {
    let path = below(parent, name);
    let Ok(meta) = fs::symlink_metadata(&path) else { return Ok(()) };
    match (meta.is_dir(), keep_directory) {
        (true, true) => Ok(()),
        (true, false) => beneath::remove_all(&path),
        (false, _) => fs::remove_file(path),
    }
}

fn set_owner_and_mode(
    parent: &OwnedFd,
    name: &OsStr,
    uid: u32,
    gid: u32,
    mode: Option<u32>,
) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    fchownat(parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if let Some(mode) = mode {
        // This process has just created it and it is not a link, so the path cannot be redirected.
        fs::set_permissions(below(parent, name), std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    }
    Ok(())
}

fn set_time(parent: &OwnedFd, name: &OsStr, seconds: u64) -> io::Result<()> {
    let time = TimeSpec::seconds(i64::try_from(seconds).unwrap_or(0));
    utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}

/// Sets extended attributes from PAX headers (such as file capabilities).
fn attributes<R: Read>(entry: &mut tar::Entry<'_, R>, file: &fs::File) -> io::Result<()> {
    let Some(extensions) = entry.pax_extensions()? else { return Ok(()) };
    for extension in extensions {
        let extension = extension?;
        let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") else { continue };
        // Overlayfs's own attributes (`trusted.overlay.*`) must not come from an image.
        if name.starts_with(b"trusted.") {
            continue;
        }
        match sys::set_xattr(file.as_fd(), OsStr::from_bytes(name), extension.value_bytes()) {
            Err(e) if e.raw_os_error() != Some(libc::EOPNOTSUPP) => return Err(e),
            _ => {}
        }
    }
    Ok(())
}
