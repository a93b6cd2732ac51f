//! Sets up a sandbox: namespaces, loopback, sysctls, the pinned network namespace, shared memory, cgroup.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::Pid,
};

use super::{pause, rootfs::doing};
use crate::{
    api::SandboxSpec,
    embedded::{cgroup::Cgroups, protocol::SandboxRecord},
    sys,
    sysctl::{self, Namespace},
};

const NONE: Option<&str> = None;

/// Moves the calling process into the sandbox's new namespaces. Returns the shared PID namespace if the
/// specification asks for one.
pub(super) fn set_up(
    dir: &Path,
    sandbox: &SandboxRecord,
    cgroups: &Cgroups,
) -> Result<Option<(Pid, OwnedFd)>, String> {
    let spec = &sandbox.spec;
    let mut namespaces = CloneFlags::empty();
    namespaces.set(CloneFlags::CLONE_NEWNET, !spec.host_network);
    // With the host's network, upstream shows the node's host name.
    namespaces.set(CloneFlags::CLONE_NEWUTS, !spec.host_network);
    namespaces.set(CloneFlags::CLONE_NEWIPC, !spec.host_ipc);
    unshare(namespaces).map_err(doing("make namespaces"))?;
    if !spec.host_network {
        sys::loopback_up().map_err(doing("set the loopback interface up"))?;
        if !spec.hostname.is_empty() {
            nix::unistd::sethostname(&spec.hostname)
                .map_err(doing(format!("set host name {:?}", spec.hostname)))?;
            let text = format!("{}\n", spec.hostname);
            fs::write(dir.join("hostname"), text).map_err(doing("write hostname"))?;
        }
    }
    if !spec.resolv_conf.is_empty() {
        fs::write(dir.join("resolv.conf"), &spec.resolv_conf).map_err(doing("write resolv.conf"))?;
    }
    for (name, value) in &spec.sysctls {
        let path = sysctl_file(name, spec)?;
        fs::write(&path, value).map_err(doing(format!("set sysctl {name} to {value:?}")))?;
    }
    if let Some(pin) = &sandbox.netns {
        pin_network_namespace(pin).map_err(doing(format!("pin the network namespace at {pin:?}")))?;
    }
    if let Some(shm) = &sandbox.shm {
        fs::create_dir_all(shm).map_err(doing(format!("make {shm:?}")))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("shm"), shm, Some("tmpfs"), flags, Some("mode=1777,size=65536k"))
            .map_err(doing(format!("mount {shm:?}")))?;
    }
    cgroups.create(&sandbox.cgroup).map_err(doing(format!("make cgroup {:?}", sandbox.cgroup)))?;
    cgroups.limit(&sandbox.cgroup, &spec.resources).map_err(doing("limit the pod"))?;
    if !spec.share_process_namespace || spec.host_pid {
        return Ok(None);
    }
    let pid = pause::spawn().map_err(|f| format!("{f:?}"))?;
    let namespace =
        fs::File::open(format!("/proc/{pid}/ns/pid")).map_err(doing("open the shared process namespace"))?;
    Ok(Some((pid, namespace.into())))
}

fn pin_network_namespace(pin: &Path) -> io::Result<()> {
    if let Some(directory) = pin.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::File::create_new(pin)?;
    mount(Some("/proc/self/ns/net"), pin, NONE, MsFlags::MS_BIND, NONE)?;
    Ok(())
}

/// Path of a sysctl that is namespaced in this sandbox. Any other is refused, since it is the host's.
fn sysctl_file(name: &str, spec: &SandboxSpec) -> Result<PathBuf, String> {
    let own = match sysctl::namespace_of(name) {
        Some(Namespace::Net) => !spec.host_network,
        Some(Namespace::Ipc) => !spec.host_ipc,
        None => false,
    };
    if !own {
        return Err(format!("sysctl {name:?} is not in a separate kernel namespace"));
    }
    sysctl::path(name).ok_or_else(|| format!("invalid sysctl name {name:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_sysctl_of_the_host_is_written() {
        let own = SandboxSpec::default();
        let hosts = SandboxSpec { host_network: true, host_ipc: true, ..SandboxSpec::default() };
        for name in ["net.core.somaxconn", "kernel.shmmax", "kernel/sem", "fs.mqueue.msg_max"] {
            assert!(sysctl_file(name, &own).is_ok(), "{name}");
            assert!(sysctl_file(name, &hosts).is_err(), "{name}");
        }
        for name in ["kernel.core_pattern", "vm.swappiness", "net.//.kernel.core_pattern", "kernel.shmmax.x"]
        {
            assert!(sysctl_file(name, &own).is_err(), "{name}");
        }
    }
}
