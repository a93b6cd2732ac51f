//! Removal of everything that a cluster created on this machine.
//!
//! Guarantee: a directory without this program's marker file is refused, whatever path is given. In one with
//! it, only entries that this program creates are removed, and the directory itself only if it is empty then.

use std::{fs, io, path::Path};

use crate::{
    error::ClusterError,
    paths::{Lock, Paths},
};

/// Lists the remains of a cluster, one per line.
///
/// # Errors
/// They cannot be listed.
pub fn leftovers(paths: &Paths) -> Result<Vec<String>, ClusterError> {
    let mut found = k8s_runtime::embedded::leftovers(&paths.containers())
        .map_err(ClusterError::io("look for containers"))?;
    found.extend(crate::network::leftovers(paths));
    found.extend(
        mounts_below(&paths.data).into_iter().chain(mounts_below(&paths.run)).map(|m| format!("mount {m}")),
    );
    let own = if paths.data.exists() { paths.own_entries() } else { Ok(Vec::new()) };
    let own = own.map_err(ClusterError::io(format!("look into {}", paths.data.display())))?;
    found.extend(own.iter().map(|path| path.display().to_string()));
    if paths.run.exists() {
        found.push(format!("directory {}", paths.run.display()));
    }
    Ok(found)
}

/// Refuses a directory that this program did not create.
///
/// # Errors
/// [`ClusterError::NoDataDirectory`], [`ClusterError::OtherDistribution`], [`ClusterError::Io`].
pub fn check(paths: &Paths) -> Result<(), ClusterError> {
    let shown = paths.data.display();
    paths.check_owner()?;
    if !paths.data.exists() || paths.is_ours().map_err(ClusterError::io(format!("look into {shown}")))? {
        return Ok(());
    }
    Err(ClusterError::NoDataDirectory { path: paths.data.clone() })
}

/// Removes a stopped cluster: containers, mounts, namespaces, cgroups, network, files.
///
/// # Errors
/// [`ClusterError::DirectoryInUse`], or something could not be removed; everything else is.
pub fn remove(paths: &Paths) -> Result<(), ClusterError> {
    remove_telling(paths, |_| {})
}

/// As [`remove`], but calls `tell` for each item before the removal. A running cluster is refused before the
/// first call.
///
/// # Errors
/// As [`remove`].
pub fn remove_telling(paths: &Paths, tell: impl Fn(&str)) -> Result<(), ClusterError> {
    check(paths)?;
    // Taking the lock would create the directory.
    let lock = paths.data.exists().then(|| Lock::take(paths)).transpose()?;
    leftovers(paths)?.iter().for_each(|line| tell(line));
    let mut problems = Vec::new();
    if let Err(e) = k8s_runtime::embedded::reset(&paths.containers()) {
        problems.push(format!("containers: {e}"));
    }
    if let Err(e) = crate::network::cleanup(paths) {
        problems.push(format!("network: {e}"));
    }
    for mount in mounts_below(&paths.data).into_iter().chain(mounts_below(&paths.run)).rev() {
        if let Err(e) = nix::mount::umount2(mount.as_str(), nix::mount::MntFlags::MNT_DETACH) {
            problems.push(format!("unmount {mount}: {e}"));
        }
    }
    if problems.is_empty() {
        let mut entries = paths.own_entries().unwrap_or_default();
        // What shows that the directory is ours goes last, so that a reset that failed can be repeated.
        entries.sort_by_key(|entry| entry.ends_with(crate::paths::MARKER));
        let (run, entries) = (&paths.run, entries.iter());
        for entry in [run].into_iter().chain(entries) {
            if !problems.is_empty() && entry.ends_with(crate::paths::MARKER) {
                break;
            }
            let removed = match fs::symlink_metadata(entry) {
                Ok(meta) if meta.is_dir() => k8s_runtime::beneath::remove_all(entry),
                Ok(_) => fs::remove_file(entry),
                // /run/NAME is root's alone: another user has made nothing there.
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied && entry == &paths.run => Ok(()),
                Err(e) => Err(e),
            };
            if let Err(e) = removed.or_else(absent_is_fine) {
                problems.push(format!("remove {}: {e}", entry.display()));
            }
        }
        // The directory stays if it has foreign content or a mounted file system.
        let _ = fs::remove_dir(&paths.data);
        // The parent directory is shared with other clusters; the last one removes it.
        if let Some(parent) = paths.run.parent() {
            let _ = fs::remove_dir(parent);
        }
    }
    drop(lock);
    if problems.is_empty() { Ok(()) } else { Err(ClusterError::Remains { remains: problems }) }
}

fn absent_is_fine(e: io::Error) -> io::Result<()> {
    if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) }
}

/// Lists the mount points below a directory in mount order. The directory itself, if a mount point, is the
/// administrator's.
fn mounts_below(directory: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(|p| p.replace("\\040", " "));
    points.filter(|p| Path::new(p) != directory && Path::new(p).starts_with(directory)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Works on directories of the test only: a wrong `reset` would remove whatever it is given.
    #[test]
    fn only_what_a_cluster_made_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        // A foreign directory that resembles a data directory, such as /etc with its `network`.
        let foreign = Paths::new("hyperkube", &parent.path().join("etc")).unwrap();
        fs::create_dir_all(foreign.data.join("network")).unwrap();
        fs::write(foreign.data.join("passwd"), "root").unwrap();
        let refused = remove(&foreign).unwrap_err();
        assert!(matches!(refused, ClusterError::NoDataDirectory { .. }), "{refused}");
        assert!(Lock::take(&foreign).is_err());
        assert_eq!(fs::read_dir(&foreign.data).unwrap().count(), 2, "nothing was made or removed in it");
        assert!(foreign.data.join("network").exists());

        // A data directory with a file of the administrator and a symbolic link that leads out.
        let ours = Paths::new("hyperkube", &parent.path().join("data")).unwrap();
        drop(Lock::take(&ours).unwrap());
        fs::write(ours.data.join("registries.yaml"), "mirrors: {}").unwrap();
        fs::write(ours.data.join("letter.txt"), "").unwrap();
        fs::write(ours.store(), "").unwrap();
        std::os::unix::fs::symlink(&foreign.data, ours.logs().join("out")).unwrap();
        remove(&ours).unwrap();
        let mut left: Vec<_> = fs::read_dir(&ours.data).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["letter.txt", "registries.yaml"]);
        assert!(foreign.data.join("passwd").exists(), "links are not followed");

        let empty = Paths::new("hyperkube", &parent.path().join("empty")).unwrap();
        drop(Lock::take(&empty).unwrap());
        remove(&empty).unwrap();
        assert!(!empty.data.exists());
        remove(&empty).unwrap();
    }
}
