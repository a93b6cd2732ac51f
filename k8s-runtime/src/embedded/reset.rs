//! Removes everything that a runtime has created, also after crashes: processes (by cgroup), mounts, files.

use std::{fs, io, path::Path, path::PathBuf, time::Duration};

use super::{EmbeddedConfig, cgroup::Cgroups, config_file, protocol::read_json, sandbox_files::unmount};
use crate::beneath;

/// Maximum wait for killed processes to exit.
const CGROUP_TIMEOUT: Duration = Duration::from_secs(20);

/// Describes what [`reset`] on the same state directory would remove.
pub fn leftovers(root: &Path) -> io::Result<Vec<String>> {
    let Some(config) = configured(root)? else { return Ok(Vec::new()) };
    let cgroups = Cgroups::detect()?;
    let mut found = Vec::new();
    for mount in mounts_below(&[&config.root, &config.run])? {
        found.push(format!("mount {}", mount.display()));
    }
    for directory in cgroups.directories(&config.cgroup_root).iter().filter(|d| d.exists()) {
        found.push(format!("cgroup {}", directory.display()));
    }
    for sandbox in fs::read_dir(config.sandboxes()).into_iter().flatten().flatten() {
        found.push(format!("sandbox {}", sandbox.file_name().to_string_lossy()));
    }
    for directory in [config.run.join("netns"), config.run.join("shm")] {
        if directory.exists() {
            found.push(format!("directory {}", directory.display()));
        }
    }
    Ok(found)
}

/// Removes everything that the runtime with this state directory has created: kills its processes, unmounts,
/// and deletes cgroups and files (not the images). No runtime may be running on the directory. It is
/// idempotent.
///
/// # Errors
/// Lists what could not be removed; everything else is removed.
pub fn reset(root: &Path) -> io::Result<()> {
    let Some(config) = configured(root)? else { return Ok(()) };
    let cgroups = Cgroups::detect()?;
    let mut last = cgroups.remove(&config.cgroup_root, CGROUP_TIMEOUT);
    let mut note = |result: io::Result<()>| {
        if let Err(error) = result
            && error.kind() != io::ErrorKind::NotFound
        {
            last = Err(error);
        }
    };
    for mount in mounts_below(&[&config.root, &config.run])? {
        note(unmount(&mount));
    }
    for directory in [config.run.join("netns"), config.run.join("shm"), config.sandboxes()] {
        note(beneath::remove_all(&directory));
    }
    // The directory may contain files of others.
    let _ = fs::remove_dir(&config.run);
    last?;
    // Last, so that an interrupted reset can be repeated.
    match fs::remove_file(config_file(&config.root)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => {
            let _ = fs::remove_dir(&config.root);
            Ok(())
        }
    }
}

fn configured(root: &Path) -> io::Result<Option<EmbeddedConfig>> {
    match read_json::<EmbeddedConfig>(&config_file(root)) {
        Ok(config) => Ok(Some(config)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Returns the mount points at or below the directories, innermost first.
fn mounts_below(directories: &[&PathBuf]) -> io::Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(unescape(path)))
        .filter(|path| directories.iter().any(|d| path.starts_with(d)))
        .collect();
    found.sort();
    found.reverse();
    Ok(found)
}

/// Decodes the octal escapes of mountinfo (`\040`).
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_escapes() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape(r"/plain\9"), r"/plain\9");
    }
}
