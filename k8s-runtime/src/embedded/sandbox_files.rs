//! Resources of a sandbox other than its processes, and their release: the pinned network namespace, the
//! shared memory mount, cgroups, files. The shim uses it on a shutdown, the node process if the shim is dead.
//!
//! Guarantee: every function is idempotent, and returns `Ok` only after the resource is gone.

use std::{fs, io, path::Path, time::Duration};

use nix::mount::{MntFlags, umount2};

use super::{cgroup::Cgroups, protocol::SandboxRecord};
use crate::beneath;

fn named(context: &str, path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    let context = format!("{context} {path:?}");
    move |e| io::Error::new(e.kind(), format!("{context}: {e}"))
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Unmounts all mounts on `path`.
pub(crate) fn unmount(path: &Path) -> io::Result<()> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(named("unmount", path)(errno.into())),
        }
    }
}

/// Releases what the sandbox holds in the host's namespaces. Its processes must be dead.
pub(crate) fn release(sandbox: &SandboxRecord, cgroups: &Cgroups) -> io::Result<()> {
    if let Some(pin) = &sandbox.netns {
        unmount(pin)?;
        absent_is_fine(fs::remove_file(pin)).map_err(named("remove", pin))?;
    }
    if let Some(shm) = &sandbox.shm {
        unmount(shm)?;
        absent_is_fine(fs::remove_dir(shm)).map_err(named("remove", shm))?;
    }
    // Another sandbox of the same pod may use the group.
    cgroups.remove_if_empty(&sandbox.cgroup);
    Ok(())
}

/// Kills what a dead shim may have left running, then does the same as [`release`].
pub(crate) fn release_by_force(
    sandbox: &SandboxRecord,
    containers: &[String],
    cgroups: &Cgroups,
) -> io::Result<()> {
    for cgroup in containers {
        cgroups.remove(cgroup, Duration::from_secs(5))?;
    }
    release(sandbox, cgroups)
}

/// Removes a container's files. Its log is elsewhere and stays.
pub(crate) fn remove_container(dir: &Path, id: &str) -> io::Result<()> {
    let own = dir.join("c").join(id);
    absent_is_fine(beneath::remove_all(&own)).map_err(named("remove", &own))
}
