//! Setting up a sandbox: namespaces, loopback, sysctls, the pinned network namespace, shared memory, cgroup.

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
use crate::embedded::{cgroup::Cgroups, protocol::SandboxRecord, sys};

const NONE: Option<&str> = None;

/// Makes the calling process the holder of a sandbox's namespaces. Returns the shared process namespace, where asked for.
pub(super) fn set_up(
    dir: &Path,
    sandbox: &SandboxRecord,
    cgroups: &Cgroups,
) -> Result<Option<(Pid, OwnedFd)>, String> {
    let spec = &sandbox.spec;
    let mut namespaces = CloneFlags::empty();
    namespaces.set(CloneFlags::CLONE_NEWNET, !spec.host_network);
    // A host name of one's own on the host's network would surprise: upstream shows the node's there.
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
        let path = sysctl_path(name).ok_or_else(|| format!("invalid sysctl name {name:?}"))?;
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

/// `net.ipv4.ip_forward` or `net/ipv4/ip_forward`; with slashes, dots belong to names.
fn sysctl_path(name: &str) -> Option<PathBuf> {
    let relative = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    let fine = !relative.is_empty()
        && relative.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    fine.then(|| Path::new("/proc/sys").join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_names() {
        let check =
            |name, want: Option<&str>| assert_eq!(sysctl_path(name), want.map(PathBuf::from), "{name}");
        check("net.ipv4.ip_forward", Some("/proc/sys/net/ipv4/ip_forward"));
        check("net/ipv4/conf/eth0.1/forwarding", Some("/proc/sys/net/ipv4/conf/eth0.1/forwarding"));
        check("net/../kernel/core_pattern", None);
        check("..kernel", None);
        check("", None);
    }
}
