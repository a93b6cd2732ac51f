//! Detects mounts, links, cgroups and processes that tests leave on the machine.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Result, bail};

/// Objects of the kinds that clusters create, one line each.
pub(crate) struct Leftovers(BTreeSet<String>);

impl Leftovers {
    /// Lists the present ones.
    pub(crate) fn now() -> Self {
        let mut found = BTreeSet::new();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in mounts
            .lines()
            .filter(|l| ["overlay", "hk-", "hyperkube", "/tmp/.tmp"].iter().any(|w| l.contains(w)))
        {
            found.insert(format!("mount {}", line.split(' ').nth(4).unwrap_or(line)));
        }
        for name in entries(Path::new("/sys/class/net")).filter(|n| n.starts_with("hk")) {
            found.insert(format!("network interface {name}"));
        }
        for controller in std::iter::once(String::new()).chain(entries(Path::new("/sys/fs/cgroup"))) {
            let groups = Path::new("/sys/fs/cgroup").join(&controller);
            for name in entries(&groups)
                .filter(|n| n.starts_with("hyperkube") || n.starts_with("k8s-") || n.starts_with("kubepods"))
            {
                found.insert(format!("cgroup {}", groups.join(name).display()));
            }
        }
        for name in entries(Path::new("/run/netns")).chain(entries(Path::new("/run/hyperkube"))) {
            found.insert(format!("in /run: {name}"));
        }
        found.extend(processes());
        found.extend(tables());
        Leftovers(found)
    }

    /// Fails if there are more than when `self` was taken.
    pub(crate) fn compare(&self) -> Result<()> {
        // The kernel needs a moment to remove killed processes.
        for _ in 0..50 {
            if Leftovers::now().0.is_subset(&self.0) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        let left: Vec<String> = Leftovers::now().0.difference(&self.0).cloned().collect();
        if left.is_empty() {
            println!(
                "no mounts, interfaces, cgroups, network namespaces, processes or firewall tables are left"
            );
            return Ok(());
        }
        bail!("left behind:\n  {}", left.join("\n  "))
    }
}

fn entries(directory: &Path) -> impl Iterator<Item = String> + use<> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
}

/// Lists running programs of this repository.
fn processes() -> impl Iterator<Item = String> {
    entries(Path::new("/proc")).filter(|pid| pid.bytes().all(|b| b.is_ascii_digit())).filter_map(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let first = line.split(' ').next()?;
        // A shim has the name of its distribution: `hyperkube-shim`.
        ["hyperkube", "-shim", "-zygote"]
            .iter()
            .any(|p| first.ends_with(p))
            .then(|| format!("process {pid}: {}", line.trim()))
    })
}

/// Lists nftables tables with our names, if `nft` is installed.
fn tables() -> Vec<String> {
    let Ok(out) = Command::new("nft").args(["list", "tables"]).output() else { return Vec::new() };
    let text = String::from_utf8_lossy(&out.stdout);
    text.lines()
        // As tests name their distributions.
        .filter(|l| [" hk-", "hyperkube", "kube-"].iter().any(|name| l.contains(name)))
        .map(|l| format!("nftables {l}"))
        .collect()
}
