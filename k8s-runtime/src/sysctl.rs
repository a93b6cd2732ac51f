//! Sysctls and the kernel namespaces that they belong to.
//!
//! All other sysctls belong to the whole machine: a pod that sets one changes all other pods and the host
//! (`kernel.core_pattern` runs a program as root). The kubelet admits pods by this list, and the shim checks
//! again before it writes. As in `sysctl(8)`, names may be separated by dots or slashes: the first separator
//! decides, and the other character is then part of a name.

use std::path::{Path, PathBuf};

/// Kernel namespace of a sysctl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// System V and POSIX message queues, shared memory, semaphores.
    Ipc,
    /// Network stack settings (`net.*`).
    Net,
}

impl Namespace {
    /// Returns the name in upstream's messages.
    pub fn name(self) -> &'static str {
        match self {
            Namespace::Ipc => "IPC",
            Namespace::Net => "Net",
        }
    }
}

const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];
const PREFIXES: [(&str, Namespace); 2] = [("net.", Namespace::Net), ("fs.mqueue.", Namespace::Ipc)];

/// Returns the name with dots as separators: `net.ipv4.conf.eth0/1.forwarding` for
/// `net/ipv4/conf/eth0.1/forwarding`.
pub fn normalize(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(first) if name.as_bytes().get(first) == Some(&b'/') => swap(name),
        _ => name.to_owned(),
    }
}

fn swap(name: &str) -> String {
    let other = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    name.chars().map(other).collect()
}

/// Returns the namespace of a sysctl. `None`: it belongs to the whole machine.
///
/// ```
/// use k8s_runtime::sysctl::{Namespace, namespace_of};
/// assert_eq!(namespace_of("net.core.somaxconn"), Some(Namespace::Net));
/// assert_eq!(namespace_of("kernel/shmmax"), Some(Namespace::Ipc));
/// assert_eq!(namespace_of("kernel.core_pattern"), None); // of the whole machine
/// ```
pub fn namespace_of(name: &str) -> Option<Namespace> {
    let name = normalize(name);
    if IPC.contains(&name.as_str()) {
        return Some(Namespace::Ipc);
    }
    PREFIXES.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, namespace)| *namespace)
}

/// Returns the namespace of all sysctls that start with `prefix`. `None`: there is no common one.
pub fn namespace_of_prefix(prefix: &str) -> Option<Namespace> {
    match normalize(prefix).as_str() {
        "kernel.shm" | "kernel.msg" => Some(Namespace::Ipc),
        prefix => namespace_of(prefix),
    }
}

/// Returns the file of a sysctl, always below `/proc/sys`.
pub(crate) fn path(name: &str) -> Option<PathBuf> {
    let relative = swap(&normalize(name));
    let fine = !relative.is_empty()
        && !relative.contains('\0')
        && relative.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    fine.then(|| Path::new("/proc/sys").join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces() {
        for (name, want) in [
            ("net.core.somaxconn", Some(Namespace::Net)),
            ("net/ipv4/conf/eth0.1/forwarding", Some(Namespace::Net)),
            ("kernel.shm_rmid_forced", Some(Namespace::Ipc)),
            ("kernel/sem", Some(Namespace::Ipc)),
            ("fs.mqueue.msg_max", Some(Namespace::Ipc)),
            ("kernel.core_pattern", None),
            ("kernel/core_pattern", None),
            ("kernel.shm", None),
            ("kernel.shmfoo", None),
            ("kernel.msg_next_id", None),
            ("vm.swappiness", None),
            ("network.x", None),
            ("fs.mqueue", None),
            ("net", None),
            ("", None),
        ] {
            assert_eq!(namespace_of(name), want, "{name}");
        }
        assert_eq!(namespace_of_prefix("kernel.shm"), Some(Namespace::Ipc));
        assert_eq!(namespace_of_prefix("net."), Some(Namespace::Net));
        assert_eq!(namespace_of_prefix("kernel."), None);
        assert_eq!(namespace_of_prefix(""), None);
    }

    #[test]
    fn files() {
        let check = |name, want: Option<&str>| assert_eq!(path(name), want.map(PathBuf::from), "{name}");
        check("net.ipv4.ip_forward", Some("/proc/sys/net/ipv4/ip_forward"));
        check("net/ipv4/conf/eth0.1/forwarding", Some("/proc/sys/net/ipv4/conf/eth0.1/forwarding"));
        check("net.ipv4.conf.eth0/1.forwarding", Some("/proc/sys/net/ipv4/conf/eth0.1/forwarding"));
        check("net/../kernel/core_pattern", None);
        check("net.//.kernel.core_pattern", None);
        check("net...kernel.core_pattern", None);
        check("..kernel", None);
        check("", None);
    }
}
