//! Preflight checks: everything that this machine lacks for running containers.

use std::path::Path;

use super::{EmbeddedConfig, cgroup::Cgroups};

/// A missing requirement; the message says how to provide it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Missing {
    /// The process is not root.
    #[error("containers need root (effective user is {uid}); run with sudo")]
    Root {
        /// User id of this process.
        uid: u32,
    },
    /// The kernel does not support a namespace type.
    #[error("the kernel has no {name} namespaces; use one with CONFIG_NAMESPACES and all of its kinds")]
    Namespace {
        /// Name of the type's file in `/proc/self/ns`.
        name: &'static str,
    },
    /// The kernel does not support a file system.
    #[error("the kernel has no {name} file system; load it with `modprobe {name}`")]
    FileSystem {
        /// File system type as in `/proc/filesystems`.
        name: &'static str,
    },
    /// No cgroup file system is mounted.
    #[error(
        "no cgroup file system is mounted at /sys/fs/cgroup; mount one (`ip netns exec` hides them: enter the namespace with `nsenter --net=/run/netns/NAME` instead)"
    )]
    NoCgroups,
    /// A cgroup controller is missing.
    #[error("cgroup controller {controller} is not available below /sys/fs/cgroup")]
    Controller {
        /// Name of the controller.
        controller: &'static str,
    },
    /// The kernel is too old.
    #[error("the kernel is {have}; at least 5.12 is needed")]
    Kernel {
        /// Version of the running kernel.
        have: String,
    },
    /// The file system of the state directory does not support overlayfs upper directories.
    #[error("{path:?} is on {kind}, where overlayfs cannot write; choose another --data-dir")]
    Directory {
        /// The runtime's state directory.
        path: std::path::PathBuf,
        /// Type of its file system.
        kind: &'static str,
    },
}

/// Checks the requirements of the embedded runtime without changing anything. Empty: all are met.
///
/// ```
/// use k8s_runtime::embedded::{EmbeddedConfig, preflight};
/// let config = EmbeddedConfig {
///     name: "shop".into(),
///     root: "/var/lib/shop/containers".into(),
///     run: "/run/shop".into(),
///     cgroup_root: "shop".into(),
/// };
/// for missing in preflight(&config) {
///     println!("{missing}"); // with the remedy
/// }
/// ```
pub fn preflight(config: &EmbeddedConfig) -> Vec<Missing> {
    let mut missing = Vec::new();
    let uid = nix::unistd::geteuid();
    if !uid.is_root() {
        missing.push(Missing::Root { uid: uid.as_raw() });
    }
    for name in ["net", "mnt", "pid", "ipc", "uts"] {
        if !Path::new("/proc/self/ns").join(name).exists() {
            missing.push(Missing::Namespace { name });
        }
    }
    let kernel =
        nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
    if version(&kernel) < (5, 12) {
        missing.push(Missing::Kernel { have: kernel });
    }
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    for name in ["overlay", "tmpfs", "mqueue"] {
        if !known.lines().any(|l| l.split_whitespace().last() == Some(name)) && !loadable(name) {
            missing.push(Missing::FileSystem { name });
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if has_cgroups(&mounts) {
        let controllers = Cgroups::detect().map(|c| c.missing()).unwrap_or_else(|_| vec!["memory"]);
        missing.extend(controllers.into_iter().map(|controller| Missing::Controller { controller }));
    } else {
        missing.push(Missing::NoCgroups);
    }
    let existing = config.root.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    if let Ok(stat) = nix::sys::statfs::statfs(existing)
        && stat.filesystem_type() == nix::sys::statfs::OVERLAYFS_SUPER_MAGIC
    {
        missing.push(Missing::Directory { path: config.root.clone(), kind: "overlayfs" });
    }
    missing
}

/// Returns `true` if `/proc/self/mountinfo` has a cgroup file system at or below /sys/fs/cgroup.
fn has_cgroups(mountinfo: &str) -> bool {
    mountinfo.lines().any(|line| {
        let at = line.split(' ').nth(4).is_some_and(|at| Path::new(at).starts_with("/sys/fs/cgroup"));
        let kind = line.split(" - ").nth(1).and_then(|rest| rest.split(' ').next());
        at && matches!(kind, Some("cgroup" | "cgroup2"))
    })
}

/// Returns `true` if the kernel can load the module on demand.
fn loadable(module: &str) -> bool {
    let Ok(name) = nix::sys::utsname::uname() else { return false };
    let list = Path::new("/lib/modules").join(name.release()).join("modules.dep");
    std::fs::read_to_string(list).is_ok_and(|text| {
        text.lines().any(|l| {
            l.split('/').next_back().is_some_and(|f| f.starts_with(&format!("{module}.ko")))
                || l.contains(&format!("/{module}.ko"))
        })
    })
}

fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_cgroups_are_told_from_missing_controllers() {
        let sys = "24 1 0:22 / /sys rw,nosuid - sysfs sysfs rw";
        let tmpfs = "25 24 0:23 / /sys/fs/cgroup rw - tmpfs tmpfs rw";
        for (mounts, there) in [
            (sys.to_owned(), false),
            (format!("{sys}\n{tmpfs}"), false),
            (format!("{sys}\n30 24 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw"), true),
            (format!("{tmpfs}\n31 25 0:27 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu"), true),
        ] {
            assert_eq!(has_cgroups(&mounts), there, "{mounts}");
        }
    }

    #[test]
    fn kernel_versions() {
        assert_eq!(version("6.18.44-fc-v669"), (6, 18));
        assert_eq!(version("5.4.0"), (5, 4));
        assert_eq!(version(""), (0, 0));
    }
}
