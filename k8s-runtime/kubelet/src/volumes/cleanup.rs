//! Removes a pod's directory and everything mounted below it, without deleting through a mount.

use std::{
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use k8s_runtime::beneath;
use nix::mount::MntFlags;

use super::VolumeError;

/// Returns the mount points at or below `dir`, deepest first.
fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>, VolumeError> {
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(table).map_err(VolumeError::io("read", table))?;
    let mut found: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|path| path.starts_with(dir))
        .collect();
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    Ok(found)
}

/// Decodes the octal escapes of mountinfo (blank, tab, line feed, backslash).
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut result = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'\\')
            .then(|| bytes.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                result.push(byte);
                at += 4;
            }
            None => {
                result.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(result))
}

/// Unmounts everything below a pod's directory and removes it, if it exists.
pub(crate) fn remove_pod_dir(dir: &Path) -> Result<(), VolumeError> {
    let Ok(dir) = fs::canonicalize(dir) else { return Ok(()) };
    for mount in mounts_below(&dir)? {
        // A path component may have been replaced by a symbolic link in between.
        let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
        nix::mount::umount2(&mount, flags).map_err(VolumeError::io("unmount", &mount))?;
    }
    if let Some(left) = mounts_below(&dir)?.first() {
        return Err(VolumeError::Other(format!("{left:?} is still mounted")));
    }
    match beneath::remove_all(&dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(VolumeError::io("remove", &dir)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal() {
        assert_eq!(unescape("/a\\040b"), PathBuf::from("/a b"));
        assert_eq!(unescape("/a\\"), PathBuf::from("/a\\"));
    }
}
