//! Container logs on disk: reading, following, rotation.
//!
//! The runtime writes CRI lines (`time stream F|P text`); this module never writes to a log, it only renames
//! and removes.
//!
//! Guarantee: below the directory of all logs no symbolic link is followed and only regular files are read. A
//! pod that has that directory as a hostPath could otherwise have the kubelet read the host's files out to
//! it.

pub(crate) mod line;
pub(crate) mod read;
pub(crate) mod rotate;

use std::{
    fs,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use k8s_runtime::{beneath::Directory, log_files};

/// The log of one container: the log root and the file below it.
#[derive(Clone, Debug)]
pub(crate) struct LogFile {
    root: PathBuf,
    relative: PathBuf,
}

impl LogFile {
    /// Creates the log at `path`. `root` is the log root; for a path outside of it, the path's own directory
    /// is the root.
    pub(crate) fn new(root: &Path, path: &Path) -> Self {
        let parent = path.parent().unwrap_or(Path::new("/"));
        let root = if path.starts_with(root) { root } else { parent };
        let relative = path.strip_prefix(root).unwrap_or(path).to_owned();
        LogFile { root: root.to_owned(), relative }
    }

    /// Opens the directory of the log and its rotated files.
    fn directory(&self) -> io::Result<Directory> {
        let root = Directory::open(&self.root)?.without_links();
        root.directory(self.relative.parent().unwrap_or(Path::new("")))
    }

    /// File name of the current log.
    fn name(&self) -> &str {
        self.relative.file_name().and_then(|n| n.to_str()).unwrap_or_default()
    }

    /// Opens the current log for reading.
    fn open(&self) -> io::Result<fs::File> {
        self.directory()?.read(Path::new(self.name()))
    }

    /// Returns the names of the rotated files, oldest first.
    fn parts(&self) -> Vec<String> {
        self.directory().and_then(|d| log_files::parts(&d, self.name())).unwrap_or_default()
    }
}

/// Returns the end of a log without the CRI prefixes: at most `lines` lines and `bytes` bytes.
pub(crate) fn tail_text(log: &LogFile, lines: usize, bytes: usize) -> Vec<u8> {
    let Ok(mut file) = log.open() else { return Vec::new() };
    let length = file.metadata().map(|m| m.len()).unwrap_or(0);
    // Each line has a prefix of time and stream: 64 bytes per line are enough for it.
    let window = (bytes as u64 + lines as u64 * 64).min(length);
    let mut raw = Vec::new();
    if file.seek(SeekFrom::Start(length - window)).is_err()
        || file.take(window).read_to_end(&mut raw).is_err()
    {
        return Vec::new();
    }
    let mut texts: Vec<Vec<u8>> = raw
        .split_inclusive(|b| *b == b'\n')
        .filter_map(line::Line::parse)
        .map(|line| line.text_with_end().into_owned())
        .collect();
    let skip = texts.len().saturating_sub(lines);
    let mut text = texts.split_off(skip).concat();
    let cut = text.len().saturating_sub(bytes);
    text.split_off(cut)
}

/// Removes a log and its rotated files.
pub(crate) fn remove(log: &LogFile) {
    let Ok(dir) = log.directory() else { return };
    for name in log.parts().iter().map(String::as_str).chain([log.name()]) {
        if let Err(e) = dir.entry(name).and_then(fs::remove_file)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(?log, name, error = %e, "log not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_below_the_logs_are_not_followed() {
        let (logs, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let secret = host.path().join("0.log");
        fs::write(&secret, "2026-01-01T00:00:01Z stdout F secret\n").unwrap();
        fs::create_dir_all(logs.path().join("pod/c")).unwrap();
        symlink(&secret, logs.path().join("pod/c/0.log")).unwrap();
        symlink(host.path(), logs.path().join("pod/d")).unwrap();
        for path in ["pod/c/0.log", "pod/d/0.log"] {
            let log = LogFile::new(logs.path(), &logs.path().join(path));
            assert!(log.open().is_err(), "{path}");
            assert!(tail_text(&log, 10, 100).is_empty(), "{path}");
            remove(&log);
        }
        assert!(secret.exists());
    }
}
