//! The traces of a sandbox outside of its processes, and their removal: the pinned network namespace, the
//! shared-memory mount, cgroups, files. Used by the shim in an orderly end and by the node process when the
//! shim is dead.
//!
//! Guarantee: every function is idempotent, and succeeds only when the thing is gone.

use std::{fs, io, path::Path, time::Duration};

use nix::mount::{MntFlags, umount2};

use super::{cgroup::Cgroups, protocol::SandboxRecord};

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

/// Unmounts everything that is mounted on `path`.
pub(crate) fn unmount(path: &Path) -> io::Result<()> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(named("unmount", path)(errno.into())),
        }
    }
}

/// Gives back what is in the host's namespaces; the sandbox's processes are dead.
pub(crate) fn release(sandbox: &SandboxRecord, cgroups: &Cgroups) -> io::Result<()> {
    if let Some(pin) = &sandbox.netns {
        unmount(pin)?;
        absent_is_fine(fs::remove_file(pin)).map_err(named("remove", pin))?;
    }
    if let Some(shm) = &sandbox.shm {
        unmount(shm)?;
        absent_is_fine(fs::remove_dir(shm)).map_err(named("remove", shm))?;
    }
    // Another attempt of the same pod may be in it.
    cgroups.remove_if_empty(&sandbox.cgroup);
    Ok(())
}

/// As [`release`], with everything that a dead shim may have left running.
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

/// Removes a container's files (its log is elsewhere and stays).
pub(crate) fn remove_container(dir: &Path, id: &str) -> io::Result<()> {
    let own = dir.join("c").join(id);
    absent_is_fine(fs::remove_dir_all(&own)).map_err(named("remove", &own))
}
