//! Replaces a directory's files all at once.
//!
//! Layout, as upstream's atomic writer has it: the files are in a directory of their own (`..2026_01_02_03_04_05.678`), `..data` is a
//! symbolic link to it, and each visible name is a link through `..data`. Renaming a new `..data` over the old one is the switch.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Component, Path},
};

use super::VolumeError;

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";

/// One file to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) data: Vec<u8>,
    pub(crate) mode: u32,
}

/// Files by their path inside the volume.
pub(crate) type Files = BTreeMap<String, File>;

/// Whether a path stays inside the volume and does not meet the writer's own names.
fn check(path: &str) -> Result<(), VolumeError> {
    let fine = !path.is_empty()
        && !path.starts_with("..")
        && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    if fine { Ok(()) } else { Err(VolumeError::Path(path.to_owned())) }
}

/// Makes `dir` hold exactly `files`. Returns whether anything changed.
pub(crate) fn write(dir: &Path, files: &Files, group: Option<u32>) -> Result<bool, VolumeError> {
    for path in files.keys() {
        check(path)?;
    }
    let link = dir.join(DATA);
    let old = fs::read_link(&link).ok();
    if let Some(old) = &old
        && same(&dir.join(old), files)
    {
        return Ok(false);
    }
    let now = jiff::Timestamp::now();
    let stamp = now.to_string().replace(['-', ':', 'T'], "_").replace('Z', "");
    let name = format!("..{stamp}");
    let fresh = dir.join(&name);
    fs::create_dir(&fresh).map_err(VolumeError::io("create", &fresh))?;
    make_dir_mode(&fresh, group)?;
    for (path, file) in files {
        let target = fresh.join(path);
        if let Some(parent) = target.parent()
            && parent != fresh
        {
            fs::create_dir_all(parent).map_err(VolumeError::io("create", parent))?;
            for made in parent.ancestors().take_while(|a| *a != fresh) {
                make_dir_mode(made, group)?;
            }
        }
        fs::write(&target, &file.data).map_err(VolumeError::io("write", &target))?;
        let mode = if group.is_some() { file.mode | 0o440 } else { file.mode };
        fs::set_permissions(&target, fs::Permissions::from_mode(mode))
            .map_err(VolumeError::io("chmod", &target))?;
        if group.is_some() {
            chown(&target, None, group).map_err(VolumeError::io("chown", &target))?;
        }
    }
    let tmp = dir.join(DATA_TMP);
    remove_if_there(&tmp)?;
    symlink(&name, &tmp).map_err(VolumeError::io("link", &tmp))?;
    fs::rename(&tmp, &link).map_err(VolumeError::io("rename", &tmp))?;
    show(dir, files)?;
    if let Some(old) = old {
        let old = dir.join(old);
        fs::remove_dir_all(&old).map_err(VolumeError::io("remove", &old))?;
    }
    Ok(true)
}

fn make_dir_mode(dir: &Path, group: Option<u32>) -> Result<(), VolumeError> {
    if group.is_some() {
        chown(dir, None, group).map_err(VolumeError::io("chown", dir))?;
    }
    let mode = if group.is_some() { 0o2755 } else { 0o755 };
    fs::set_permissions(dir, fs::Permissions::from_mode(mode)).map_err(VolumeError::io("chmod", dir))
}

/// Links the visible names, and takes away those that are no longer there.
fn show(dir: &Path, files: &Files) -> Result<(), VolumeError> {
    let wanted: BTreeSet<&str> = files.keys().map(|p| p.split('/').next().unwrap_or(p)).collect();
    for name in &wanted {
        let visible = dir.join(name);
        if fs::symlink_metadata(&visible).is_err() {
            let target = Path::new(DATA).join(name);
            symlink(target, &visible).map_err(VolumeError::io("link", &visible))?;
        }
    }
    for entry in fs::read_dir(dir).map_err(VolumeError::io("read", dir))? {
        let entry = entry.map_err(VolumeError::io("read", dir))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(&*name) {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<(), VolumeError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(VolumeError::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Whether a directory holds exactly these files with these contents.
fn same(dir: &Path, files: &Files) -> bool {
    fn count(dir: &Path) -> usize {
        let Ok(entries) = fs::read_dir(dir) else { return usize::MAX };
        entries.flatten().fold(0, |n, e| {
            n.saturating_add(if e.file_type().is_ok_and(|t| t.is_dir()) { count(&e.path()) } else { 1 })
        })
    }
    count(dir) == files.len()
        && files.iter().all(|(path, file)| {
            let path = dir.join(path);
            let mode = fs::metadata(&path).map(|m| m.permissions().mode() & 0o777).unwrap_or(0);
            mode | 0o440 == file.mode & 0o777 | 0o440 && fs::read(&path).is_ok_and(|have| have == file.data)
        })
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
}
