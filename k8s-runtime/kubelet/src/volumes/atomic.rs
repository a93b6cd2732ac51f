//! Replaces the files of a directory atomically.
//!
//! The layout is that of upstream's AtomicWriter: the files are in a timestamped directory
//! (`..2026_01_02_03_04_05.678`), `..data` is a symbolic link to it, and each visible name is a link through
//! `..data`. Renaming a new `..data` over the old one switches the version.
//!
//! Guarantee: all accesses go through descriptors and follow no links. A container that can mount
//! (`CAP_SYS_ADMIN`) and makes its read-only volume writable cannot redirect the writer.

#![expect(clippy::disallowed_methods, reason = "only the name of a directory has the time, as upstream")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read, Write},
    os::{
        fd::AsFd,
        unix::fs::{PermissionsExt, fchown, symlink},
    },
    path::{Component, Path, PathBuf},
};

use k8s_runtime::beneath::{self, Directory};

use super::VolumeError;

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";

/// Contents and mode of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) data: Vec<u8>,
    pub(crate) mode: u32,
}

/// Files by their path inside the volume.
pub(crate) type Files = BTreeMap<String, File>;

/// Refuses a path that leaves the volume or meets the writer's own names.
fn check(path: &str) -> Result<(), VolumeError> {
    let fine = !path.is_empty()
        && !path.starts_with("..")
        && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    if fine { Ok(()) } else { Err(VolumeError::Path(path.to_owned())) }
}

/// Makes `dir` contain exactly `files`. Returns `true` if anything changed.
pub(crate) fn write(dir: &Path, files: &Files, group: Option<u32>) -> Result<bool, VolumeError> {
    for path in files.keys() {
        check(path)?;
    }
    replace(dir, files, group).map_err(VolumeError::io("write the files of", dir))
}

fn replace(dir: &Path, files: &Files, group: Option<u32>) -> io::Result<bool> {
    let root = Directory::open(dir)?.without_links();
    // A link target that the writer does not generate is somebody else's: ignore it.
    let old = fs::read_link(root.entry(DATA)?).ok();
    let old = old.filter(|o| o.to_str().is_some_and(|o| o.starts_with("..2") && !o.contains('/')));
    if let Some(old) = &old
        && root.directory(old).is_ok_and(|old| same(&old, files))
    {
        return Ok(false);
    }
    let now = jiff::Timestamp::now();
    let stamp = now.to_string().replace(['-', ':', 'T'], "_").replace('Z', "");
    let name = format!("..{stamp}");
    fs::create_dir(root.entry(&name)?)?;
    let fresh = root.directory(Path::new(&name))?;
    set_dir_mode(&fresh, group)?;
    for (path, file) in files {
        let path = Path::new(path);
        let mut made: Vec<&Path> = path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
        made.reverse();
        for parent in made {
            fresh.make_directories(parent, 0o755)?;
            set_dir_mode(&fresh.directory(parent)?, group)?;
        }
        let mut target = fresh.create_new(path, 0o600)?;
        target.write_all(&file.data)?;
        if group.is_some() {
            fchown(&target, None, group)?;
        }
        let mode = if group.is_some() { file.mode | 0o440 } else { file.mode };
        target.set_permissions(fs::Permissions::from_mode(mode))?;
    }
    let tmp = root.entry(DATA_TMP)?;
    remove_if_there(&tmp)?;
    symlink(&name, &tmp)?;
    fs::rename(&tmp, root.entry(DATA)?)?;
    show(&root, files)?;
    if let Some(old) = old {
        match beneath::remove_all(&root.entry(old)?) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(true)
}

fn set_dir_mode(dir: &Directory, group: Option<u32>) -> io::Result<()> {
    if group.is_some() {
        fchown(dir, None, group)?;
    }
    let mode = if group.is_some() { 0o2755 } else { 0o755 };
    fs::set_permissions(beneath::by_descriptor(dir.as_fd()), fs::Permissions::from_mode(mode))
}

/// Creates the visible links and removes those without a file.
fn show(root: &Directory, files: &Files) -> io::Result<()> {
    let wanted: BTreeSet<&str> = files.keys().map(|p| p.split('/').next().unwrap_or(p)).collect();
    for name in &wanted {
        let visible = root.entry(name)?;
        if fs::symlink_metadata(&visible).is_err() {
            symlink(Path::new(DATA).join(name), &visible)?;
        }
    }
    for name in root.names()? {
        let text = name.to_string_lossy();
        if !text.starts_with("..") && !wanted.contains(&*text) {
            remove_if_there(&root.entry(&name)?)?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Returns `true` if the directory contains exactly these files with these contents.
fn same(dir: &Directory, files: &Files) -> bool {
    // Levels deeper than the deepest expected file are not read. No recursion: a path may have 2000 parts.
    fn count(root: &Directory, deepest: usize) -> Option<usize> {
        let mut found = 0_usize;
        let mut pending = vec![(PathBuf::new(), 0)];
        while let Some((path, depth)) = pending.pop() {
            let dir = root.directory(&path).ok()?;
            for name in dir.names().ok()? {
                if !fs::symlink_metadata(dir.entry(&name).ok()?).ok()?.is_dir() {
                    found += 1;
                } else if depth < deepest {
                    pending.push((path.join(&name), depth + 1));
                } else {
                    return None;
                }
            }
        }
        Some(found)
    }
    let deepest = files.keys().map(|p| p.split('/').count()).max().unwrap_or(0);
    let is = |path: &str, file: &File| -> Option<bool> {
        let mut have = dir.read(Path::new(path)).ok()?;
        let meta = have.metadata().ok()?;
        let mode = meta.permissions().mode() & 0o777;
        if mode | 0o440 != file.mode & 0o777 | 0o440 || meta.len() != file.data.len() as u64 {
            return Some(false);
        }
        let mut data = Vec::with_capacity(file.data.len());
        (&mut have).take(meta.len()).read_to_end(&mut data).ok()?;
        Some(data == file.data)
    };
    count(dir, deepest) == Some(files.len()) && files.iter().all(|(path, file)| is(path, file) == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(pairs: &[(&str, &str)]) -> Files {
        pairs
            .iter()
            .map(|(path, data)| ((*path).to_owned(), File { data: data.as_bytes().to_vec(), mode: 0o644 }))
            .collect()
    }

    #[test]
    fn switches_all_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(write(dir, &files(&[("a", "1"), ("d/b", "2")]), None).unwrap());
        assert_eq!(fs::read_to_string(dir.join("d/b")).unwrap(), "2");
        let before = fs::read_link(dir.join(DATA)).unwrap();
        assert!(!write(dir, &files(&[("a", "1"), ("d/b", "2")]), None).unwrap());
        assert_eq!(fs::read_link(dir.join(DATA)).unwrap(), before);
        assert!(write(dir, &files(&[("a", "3")]), None).unwrap());
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert!(fs::symlink_metadata(dir.join("d")).is_err());
        assert!(!dir.join(before).exists());
    }

    #[test]
    fn keeps_inside() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/x", "a/../b", "..data", ""] {
            assert!(write(dir.path(), &files(&[(path, "")]), None).is_err(), "{path}");
        }
    }

    #[test]
    fn links_that_a_container_put_there_lead_nowhere() {
        let (volume, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (dir, victim) = (volume.path(), host.path().join("victim"));
        fs::create_dir(&victim).unwrap();
        fs::write(victim.join("a"), "theirs").unwrap();
        write(dir, &files(&[("a", "1"), ("d/b", "2")]), None).unwrap();
        // Remove the link to the previous version, which the writer looks for.
        fs::remove_file(dir.join(DATA)).unwrap();
        symlink(&victim, dir.join(DATA)).unwrap();
        symlink(&victim, dir.join(DATA_TMP)).unwrap();
        assert!(write(dir, &files(&[("a", "3"), ("d/b", "4")]), Some(0)).unwrap());
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
        // A relative link that leads out of the volume, and a link in place of a version directory.
        let made = fs::read_link(dir.join(DATA)).unwrap();
        fs::rename(dir.join(&made), dir.join("..moved")).unwrap();
        symlink(&victim, dir.join(&made)).unwrap();
        write(dir, &files(&[("a", "5")]), None).ok();
        assert_eq!(fs::read_to_string(victim.join("a")).unwrap(), "theirs");
    }
}
