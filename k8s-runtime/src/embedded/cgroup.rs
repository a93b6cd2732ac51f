//! Control groups (cgroups), versions 1 and 2.
//!
//! A group is a path below the runtime's root group (such as
//! `hyperkube-ab12/burstable/pod<uid>/<container>`). In version 1 the path is created in every mounted
//! hierarchy, also in those without limits. A container's cgroup namespace starts at its own groups; in a
//! hierarchy without such a group it would see the host's root group. In version 2 there is one path.
//! Guarantee: [`Cgroups::remove`] returns `Ok` only after the groups are gone.
//! Not here: assigning processes to groups.

#![expect(clippy::disallowed_methods, reason = "the kernel empties a cgroup in real time")]

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::api::{ContainerStats, Resources};

/// Version 1 controllers, and `systemd`, the service manager's named hierarchy.
const V1_CONTROLLERS: [&str; 15] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "misc",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
    "systemd",
];
/// Version 1 controllers that the runtime needs.
const V1_NEEDED: [&str; 5] = ["cpu", "cpuacct", "devices", "memory", "pids"];
/// Name for a hierarchy without a known controller: a named one, or the unified one beside version 1.
const OTHER: &str = "";
const V2_CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// The cgroup mounts of this machine.
#[derive(Clone, Debug)]
pub(crate) enum Cgroups {
    /// Controllers with the mount point of their hierarchy; a hierarchy may have several controllers.
    V1(Vec<(&'static str, PathBuf)>),
    /// Mount point of the unified hierarchy.
    V2(PathBuf),
}

impl Cgroups {
    /// Detects the cgroup mounts from mountinfo.
    pub(crate) fn detect() -> io::Result<Cgroups> {
        Ok(Self::from_mounts(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    fn from_mounts(mountinfo: &str) -> Cgroups {
        let mut v1: Vec<(&'static str, PathBuf)> = Vec::new();
        let mut v2 = None;
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let mut left = left.split(' ').skip(4);
            let (Some(target), Some(flags)) = (left.next(), left.next()) else { continue };
            let read_only = flags.split(',').any(|flag| flag == "ro");
            let mut right = right.split(' ');
            let (kind, options) = (right.next(), right.nth(1).unwrap_or_default());
            match kind {
                Some("cgroup2") if v2.is_none() => v2 = Some((PathBuf::from(target), read_only)),
                Some("cgroup") => {
                    let options: Vec<&str> =
                        options.split(',').map(|o| o.strip_prefix("name=").unwrap_or(o)).collect();
                    let known = V1_CONTROLLERS.into_iter().filter(|c| options.contains(c));
                    let mut names: Vec<&str> = known.collect();
                    if names.is_empty() {
                        names.push(OTHER);
                    }
                    // If a hierarchy is mounted twice, the first mount is used.
                    names.retain(|name| *name == OTHER || !v1.iter().any(|(known, _)| known == name));
                    // No group can be created there. If the controller is needed, creating a group fails
                    // later, with the path in the error.
                    if read_only && !names.iter().any(|name| V1_NEEDED.contains(name)) {
                        continue;
                    }
                    v1.extend(names.into_iter().map(|name| (name, PathBuf::from(target))));
                }
                _ => {}
            }
        }
        match v2 {
            Some((root, _)) if !v1.iter().any(|(c, _)| *c == "memory" || *c == "pids") => Cgroups::V2(root),
            unified => {
                v1.extend(unified.filter(|(_, read_only)| !read_only).map(|(root, _)| (OTHER, root)));
                Cgroups::V1(v1)
            }
        }
    }

    /// Returns the missing controllers.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        match self {
            Cgroups::V1(found) => V2_CONTROLLERS
                .into_iter()
                .filter(|want| !found.iter().any(|(controller, _)| controller == want))
                .collect(),
            Cgroups::V2(root) => {
                let have = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
                V2_CONTROLLERS
                    .into_iter()
                    .filter(|want| !have.split_whitespace().any(|h| h == *want))
                    .collect()
            }
        }
    }

    /// Returns the directories of a group, without duplicates.
    pub(crate) fn directories(&self, group: &str) -> Vec<PathBuf> {
        match self {
            Cgroups::V1(hierarchies) => {
                let mut all: Vec<PathBuf> = hierarchies.iter().map(|(_, root)| root.join(group)).collect();
                all.sort();
                all.dedup();
                all
            }
            Cgroups::V2(root) => vec![root.join(group)],
        }
    }

    /// Returns the directory with a controller's files of a group.
    pub(super) fn controller(&self, controller: &str, group: &str) -> Option<PathBuf> {
        match self {
            Cgroups::V1(hierarchies) => {
                hierarchies.iter().find(|(c, _)| *c == controller).map(|(_, root)| root.join(group))
            }
            Cgroups::V2(root) => Some(root.join(group)),
        }
    }

    /// Creates a group for processes, and its parents.
    pub(crate) fn create(&self, group: &str) -> io::Result<()> {
        match self {
            Cgroups::V1(_) => {
                self.directories(group).iter().try_for_each(fs::create_dir_all)?;
                self.share_processors(group)
            }
            Cgroups::V2(root) => {
                let mut at = root.clone();
                for part in Path::new(group) {
                    // A group has a controller only if all ancestors delegate it in `cgroup.subtree_control`.
                    // A missing controller is reported as an error of the limit that needs it.
                    let have = fs::read_to_string(at.join("cgroup.controllers")).unwrap_or_default();
                    let control = at.join("cgroup.subtree_control");
                    for controller in
                        V2_CONTROLLERS.iter().filter(|c| have.split_whitespace().any(|h| h == **c))
                    {
                        fs::write(&control, format!("+{controller}")).map_err(|e| {
                            io::Error::new(e.kind(), format!("enable {controller} in {control:?}: {e}"))
                        })?;
                    }
                    at.push(part);
                    match fs::create_dir(&at) {
                        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                        _ => {}
                    }
                }
                Ok(())
            }
        }
    }

    /// Copies the CPUs and memory nodes of the parent to a new version 1 group: a cpuset starts empty and
    /// accepts no process.
    fn share_processors(&self, group: &str) -> io::Result<()> {
        let Some(mut at) = self.controller("cpuset", "") else { return Ok(()) };
        for part in Path::new(group) {
            let above = at.clone();
            at.push(part);
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if fs::read_to_string(at.join(file))?.trim().is_empty() {
                    fs::write(at.join(file), fs::read_to_string(above.join(file))?.trim())?;
                }
            }
        }
        Ok(())
    }

    /// Moves the calling process into a group.
    pub(crate) fn join(&self, group: &str) -> io::Result<()> {
        for directory in self.directories(group) {
            let file = directory.join("cgroup.procs");
            fs::write(&file, "0").map_err(|e| io::Error::new(e.kind(), format!("join {file:?}: {e}")))?;
        }
        Ok(())
    }

    /// Opens the directory for `CLONE_INTO_CGROUP`. `None` in version 1.
    pub(crate) fn birthplace(&self, group: &str) -> io::Result<Option<fs::File>> {
        match self {
            Cgroups::V1(_) => Ok(None),
            Cgroups::V2(root) => fs::File::open(root.join(group)).map(Some),
        }
    }

    /// Sets limits. `None` leaves a limit unchanged.
    pub(crate) fn limit(&self, group: &str, limits: &Resources) -> io::Result<()> {
        let set = |controller: &str, file: &str, value: String| -> io::Result<()> {
            let Some(directory) = self.controller(controller, group) else { return Ok(()) };
            let path = directory.join(file);
            fs::write(&path, &value)
                .map_err(|e| io::Error::new(e.kind(), format!("write {value:?} to {path:?}: {e}")))
        };
        let v2 = matches!(self, Cgroups::V2(_));
        let or_max = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
        if let Some(shares) = limits.cpu_shares {
            let shares = shares.clamp(2, 262_144);
            // Conversion of shares in [2, 262144] to weights in [1, 10000], as the OCI runtimes do.
            if v2 {
                set("cpu", "cpu.weight", (1 + (shares - 2) * 9999 / 262_142).to_string())?;
            } else {
                set("cpu", "cpu.shares", shares.to_string())?;
            }
        }
        if limits.cpu_quota_us.is_some() || limits.cpu_period_us.is_some() {
            let period = limits.cpu_period_us.unwrap_or(100_000);
            let quota = limits.cpu_quota_us.unwrap_or(-1);
            if v2 {
                set("cpu", "cpu.max", format!("{} {period}", or_max(quota)))?;
            } else {
                set("cpu", "cpu.cfs_period_us", period.to_string())?;
                set("cpu", "cpu.cfs_quota_us", quota.to_string())?;
            }
        }
        if let Some(memory) = limits.memory_bytes {
            if v2 {
                set("memory", "memory.max", or_max(memory))?;
            } else {
                set("memory", "memory.limit_in_bytes", memory.to_string())?;
            }
        }
        if let Some(pids) = limits.pids {
            set("pids", "pids.max", or_max(if pids == 0 { -1 } else { pids }))?;
        }
        Ok(())
    }

    /// Number of processes in this group that the OOM killer ended.
    pub(crate) fn oom_kills(&self, group: &str) -> u64 {
        let file = if matches!(self, Cgroups::V2(_)) { "memory.events" } else { "memory.oom_control" };
        let Some(directory) = self.controller("memory", group) else { return 0 };
        keyed(&directory.join(file), "oom_kill")
    }

    /// Reads the resource usage of a group.
    pub(crate) fn stats(&self, group: &str) -> io::Result<ContainerStats> {
        let directory = |controller| {
            self.controller(controller, group).filter(|d| d.exists()).ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotFound, format!("no {controller} cgroup {group}"))
            })
        };
        let (cpu, memory, pids) = match self {
            Cgroups::V1(_) => (directory("cpuacct")?, directory("memory")?, directory("pids")?),
            Cgroups::V2(_) => (directory("cpu")?, directory("memory")?, directory("pids")?),
        };
        let (cpu_nanos, memory_bytes, [reclaimable, rss_bytes]) = match self {
            Cgroups::V1(_) => (
                number(&cpu.join("cpuacct.usage")),
                number(&memory.join("memory.usage_in_bytes")),
                ["total_inactive_file", "total_rss"].map(|key| keyed(&memory.join("memory.stat"), key)),
            ),
            Cgroups::V2(_) => (
                keyed(&cpu.join("cpu.stat"), "usage_usec") * 1000,
                number(&memory.join("memory.current")),
                ["inactive_file", "anon"].map(|key| keyed(&memory.join("memory.stat"), key)),
            ),
        };
        Ok(ContainerStats {
            cpu_nanos,
            memory_bytes,
            working_set_bytes: memory_bytes.saturating_sub(reclaimable),
            rss_bytes,
            pids: number(&pids.join("pids.current")),
        })
    }

    /// Returns the processes of the group itself, without its children.
    pub(crate) fn processes(&self, group: &str) -> Vec<i32> {
        let mut all: Vec<i32> = self
            .directories(group)
            .iter()
            .filter_map(|directory| fs::read_to_string(directory.join("cgroup.procs")).ok())
            .flat_map(|text| text.lines().filter_map(|l| l.parse().ok()).collect::<Vec<i32>>())
            .filter(|pid| *pid > 0)
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Sends a signal to every process of a group.
    pub(crate) fn signal(&self, group: &str, signal: i32) {
        let signal = nix::sys::signal::Signal::try_from(signal).ok();
        for pid in self.processes(group) {
            // The process may have exited in between.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
        }
    }

    /// Kills all processes in a group and its children, waits up to `patience` for them to exit, and removes
    /// the groups.
    pub(crate) fn remove(&self, group: &str, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_micros(200);
        loop {
            let mut last = Ok(());
            for directory in self.directories(group) {
                if let Err(error) = remove_tree(&directory) {
                    last = Err(io::Error::new(error.kind(), format!("remove {directory:?}: {error}")));
                }
            }
            if last.is_ok() || Instant::now() >= deadline {
                return last;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Removes a group unless it has processes or children.
    pub(crate) fn remove_if_empty(&self, group: &str) {
        for directory in self.directories(group) {
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Kills what is in the group and its children, and removes them. No recursion: a container may nest groups
/// deeper than the stack allows.
fn remove_tree(directory: &Path) -> io::Result<()> {
    // Groups, and whether their children were removed before. The last one is handled first.
    let mut pending = vec![(directory.to_owned(), false)];
    while let Some((directory, childless)) = pending.pop() {
        match fs::remove_dir(&directory) {
            Ok(()) => continue,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) if childless => return Err(e),
            Err(_) => {}
        }
        if fs::write(directory.join("cgroup.kill"), "1").is_err() {
            kill_all(&directory.join("cgroup.procs"));
        }
        let children = fs::read_dir(&directory)?;
        pending.push((directory, true));
        for entry in children.flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                pending.push((entry.path(), false));
            }
        }
    }
    Ok(())
}

fn kill_all(list: &Path) {
    for line in fs::read_to_string(list).unwrap_or_default().lines() {
        if let Some(pid) = line.parse().ok().filter(|pid| *pid > 0) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
    }
}

fn number(path: &Path) -> u64 {
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn keyed(path: &Path, key: &str) -> u64 {
    fs::read_to_string(path)
        .ok()
        .and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_apart() {
        let v2 = "30 22 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        assert!(matches!(Cgroups::from_mounts(v2), Cgroups::V2(root) if root == Path::new("/sys/fs/cgroup")));
        let hybrid = "1 2 0:1 / /cg/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      1 2 0:1 / /cg/memory rw - cgroup cgroup rw,memory\n\
                      1 2 0:1 / /cg/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                      1 2 0:1 / /cg/rdma ro,nosuid - cgroup cgroup rw,rdma\n\
                      1 2 0:1 / /cg/unified rw - cgroup2 cgroup2 rw";
        let found = Cgroups::from_mounts(hybrid);
        assert_eq!(
            found.directories("a"),
            ["/cg/cpu,cpuacct/a", "/cg/memory/a", "/cg/systemd/a", "/cg/unified/a"].map(PathBuf::from)
        );
        assert_eq!(found.missing(), ["pids"]);
    }

    #[test]
    fn limits_in_version_2() {
        let root = tempfile::tempdir().expect("tempdir");
        let cgroups = Cgroups::V2(root.path().to_owned());
        std::fs::create_dir(root.path().join("pod")).expect("mkdir");
        let limits = Resources {
            cpu_shares: Some(1024),
            cpu_quota_us: Some(50_000),
            memory_bytes: Some(1 << 20),
            pids: Some(0),
            ..Resources::default()
        };
        cgroups.limit("pod", &limits).expect("written");
        let read = |name: &str| std::fs::read_to_string(root.path().join("pod").join(name)).expect("read");
        assert_eq!(
            ["cpu.weight", "cpu.max", "memory.max", "pids.max"].map(read),
            ["39", "50000 100000", "1048576", "max"]
        );
        std::fs::write(root.path().join("pod/memory.events"), "low 0\noom 3\noom_kill 2\n").expect("write");
        assert_eq!(cgroups.oom_kills("pod"), 2);
    }
}
