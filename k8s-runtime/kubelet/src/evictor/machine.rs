//! The free resources of the machine.

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf};

use crate::{
    config::Config,
    eviction::{
        plan::{Observation, Observations},
        signals::Signals,
        thresholds::Signal,
    },
    facts,
};

/// The machine that the kubelet runs on.
#[derive(Debug)]
pub(crate) struct Machine {
    root: PathBuf,
    images: PathBuf,
}

impl Machine {
    pub(crate) fn new(config: &Config) -> Self {
        let root = config.root_dir.clone();
        Machine { images: config.image_dir.clone().unwrap_or_else(|| root.clone()), root }
    }
}

/// Returns process ids that are free, and their number.
fn pids() -> Option<Observation> {
    let number = |path: &str| fs::read_to_string(path).ok()?.split_whitespace().next()?.parse::<i64>().ok();
    let most = number("/proc/sys/kernel/pid_max")?;
    let capacity = number("/proc/sys/kernel/threads-max").map_or(most, |threads| most.min(threads));
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    let tasks: i64 = load.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    Some(Observation { available: capacity.saturating_sub(tasks), capacity })
}

impl Signals for Machine {
    fn observe(&self) -> Observations {
        let mut all = Observations::new();
        if let (Some(available), Some(capacity)) =
            (facts::meminfo("MemAvailable"), facts::meminfo("MemTotal"))
        {
            all.insert(Signal::MemoryAvailable, Observation { available, capacity });
        }
        for (directory, bytes, inodes) in [
            (&self.root, Signal::NodeFsAvailable, Signal::NodeFsInodesFree),
            (&self.images, Signal::ImageFsAvailable, Signal::ImageFsInodesFree),
        ] {
            if let Some(disk) = facts::disk(directory) {
                all.insert(bytes, disk.bytes);
                all.insert(inodes, disk.inodes);
            }
        }
        all.extend(pids().map(|pids| (Signal::PidAvailable, pids)));
        all
    }

    fn has_image_disk(&self) -> bool {
        let device = |path: &PathBuf| fs::metadata(path).ok().map(|found| found.dev());
        let (root, images) = (device(&self.root), device(&self.images));
        root.is_some() && images.is_some() && root != images
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_all_signals() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { root_dir: dir.path().join("not/yet/made"), ..Config::default() };
        let machine = Machine::new(&config);
        let seen = machine.observe();
        assert_eq!(seen.len(), 6, "{seen:?}");
        assert!(seen.values().all(|o| (0..=o.capacity).contains(&o.available)), "{seen:?}");
        assert!(!machine.has_image_disk());
    }
}
