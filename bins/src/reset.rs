//! Removing exactly what a cluster made on this machine.

use std::{fs, path::Path};

use crate::{
    exit::Failure,
    paths::{Lock, Paths},
};

/// What is there of a cluster, one line each.
///
/// # Errors
/// When it cannot be looked at.
pub fn leftovers(paths: &Paths) -> Result<Vec<String>, Failure> {
    let mut found =
        k8s_runtime::embedded::leftovers(&paths.containers()).map_err(Failure::io("look for containers"))?;
    found.extend(crate::network::leftovers(paths));
    found.extend(
        mounts_below(&paths.data).into_iter().chain(mounts_below(&paths.run)).map(|m| format!("mount {m}")),
    );
    for directory in [&paths.data, &paths.run] {
        if directory.exists() {
            found.push(format!("directory {}", directory.display()));
        }
    }
    Ok(found)
}

/// Removes a cluster that nobody runs any more: containers, mounts, namespaces, cgroups, network, files.
///
/// # Errors
/// In use (4); what could not be removed: everything else is.
pub fn remove(paths: &Paths) -> Result<(), Failure> {
    remove_telling(paths, |_| {})
}

/// As [`remove`], and tells of each thing before it is removed. A cluster that runs is refused before anything is told.
///
/// # Errors
/// As [`remove`].
pub fn remove_telling(paths: &Paths, tell: impl Fn(&str)) -> Result<(), Failure> {
    // Taking the lock would make the directory.
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
        for directory in [&paths.run, &paths.data] {
            match fs::remove_dir_all(directory) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    problems.push(format!("remove {}: {e}", directory.display()));
                }
                _ => {}
            }
        }
        // The parent is shared with other clusters; it goes with the last one.
        if let Some(parent) = paths.run.parent() {
            let _ = fs::remove_dir(parent);
        }
    }
    drop(lock);
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(crate::exit::Code::Failed, problems.join("; ")))
    }
}

/// Mount points below a directory, in the order they were made.
fn mounts_below(directory: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(|p| p.replace("\\040", " "));
    points.filter(|p| Path::new(p).starts_with(directory)).collect()
}
