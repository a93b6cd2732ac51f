//! The files of a container's log: the current file, and rotated files with the time of the rotation in their
//! names.
//!
//! The shim rotates a log while it writes, so that the log never exceeds its limit. The kubelet does it for
//! runtimes that do not. All accesses go through the directory's descriptor.

use std::{fs, io};

use jiff::Timestamp;

use crate::beneath::Directory;

/// Returns the names of the rotated files of the log `name`, oldest first.
pub fn parts(directory: &Directory, name: &str) -> io::Result<Vec<String>> {
    let prefix = format!("{name}.");
    let mut parts: Vec<String> =
        directory.names()?.into_iter().filter_map(|n| n.into_string().ok()).collect();
    parts.retain(|n| n.starts_with(&prefix));
    parts.sort();
    Ok(parts)
}

/// Renames the log `name`, and removes the oldest rotated files so that `files` remain, the next log included
/// (at least 2). Returns the new name. A writer keeps the renamed file open.
pub fn rotate(directory: &Directory, name: &str, now: Timestamp, files: usize) -> io::Result<String> {
    let old = parts(directory, name)?;
    let keep = files.saturating_sub(2);
    for part in old.iter().take(old.len().saturating_sub(keep)) {
        match fs::remove_file(directory.entry(part)?) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    // Nanoseconds have leading zeros, so that the names sort by time.
    let moved = format!("{name}.{}.{:09}", now.strftime("%Y%m%d-%H%M%S"), now.subsec_nanosecond());
    fs::rename(directory.entry(name)?, directory.entry(&moved)?)?;
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest() {
        let dir = tempfile::tempdir().expect("tempdir");
        let directory = Directory::open(dir.path()).expect("open");
        for n in 0..6 {
            fs::write(dir.path().join("0.log"), n.to_string()).expect("write");
            // Two rotations per second.
            let now = Timestamp::from_millisecond(1_800_000_000_000 + n * 500).expect("time");
            rotate(&directory, "0.log", now, 3).expect("rotate");
        }
        let read = |p: &String| fs::read_to_string(dir.path().join(p)).expect("read");
        let left: Vec<String> = parts(&directory, "0.log").expect("parts").iter().map(read).collect();
        assert_eq!(left, ["4", "5"]);
    }
}
