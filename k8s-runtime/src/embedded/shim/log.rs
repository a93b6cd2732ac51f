//! Container logs in the CRI format: `2026-01-02T03:04:05.000000006Z stdout F a line`.
//!
//! Lines are split at 16 KiB; a part that goes on is tagged `P`, a line's end `F`. What a stream leaves without a line
//! feed at its end is a `P`, so that readers give back exactly what was written.
//! Not here: rotation (the kubelet renames the file and asks for a reopen).

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use crate::beneath::Directory;

/// Longest part of a line in one entry.
const MAX_LINE: usize = 16 << 10;

/// Which stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamName {
    Stdout,
    Stderr,
}

/// One container's log file.
#[derive(Debug)]
pub(crate) struct Log {
    /// The directory of all pods' logs. Below it no link is followed: a pod that has it as a hostPath may put one there.
    root: PathBuf,
    /// The file, relative to `root`; empty: no log.
    path: PathBuf,
    file: Option<File>,
    /// What was read of an unfinished line, per stream.
    partial: [Vec<u8>; 2],
}

impl Log {
    /// Opens the file for appending; an empty path means no log. `pod_dir` is the directory of the pod's logs.
    pub(crate) fn open(pod_dir: &Path, path: &Path) -> io::Result<Log> {
        let root = pod_dir.parent().filter(|_| path.starts_with(pod_dir));
        let root = root.or(path.parent()).unwrap_or(Path::new("/"));
        let relative = path.strip_prefix(root).unwrap_or(Path::new(""));
        let (root, path) = (root.to_owned(), relative.to_owned());
        let mut log = Log { root, path, file: None, partial: [Vec::new(), Vec::new()] };
        log.reopen()?;
        Ok(log)
    }

    /// Opens the file of the same name anew.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        if self.path.as_os_str().is_empty() {
            return Ok(());
        }
        let open = || {
            fs::create_dir_all(&self.root)?;
            let root = Directory::open(&self.root)?.without_links();
            root.make_directories(self.path.parent().unwrap_or(Path::new("")), 0o755)?;
            root.append(&self.path, 0o640)
        };
        let file = open();
        let named = |e: io::Error| {
            io::Error::new(e.kind(), format!("open log {:?}: {e}", self.root.join(&self.path)))
        };
        self.file = Some(file.map_err(named)?);
        Ok(())
    }

    /// Takes what a stream wrote.
    pub(crate) fn write(&mut self, stream: StreamName, bytes: &[u8], now: Timestamp) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let partial = &mut self.partial[stream as usize];
        let mut entries = Vec::with_capacity(bytes.len() + 64);
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            partial.extend_from_slice(piece);
            let ended = partial.last() == Some(&b'\n');
            if ended {
                partial.pop();
            }
            while partial.len() > MAX_LINE {
                entry(&mut entries, stream, b'P', &partial[..MAX_LINE], now);
                partial.drain(..MAX_LINE);
            }
            if ended {
                entry(&mut entries, stream, b'F', partial, now);
                partial.clear();
            }
        }
        file.write_all(&entries)
    }

    /// The stream has ended.
    pub(crate) fn finish(&mut self, stream: StreamName, now: Timestamp) -> io::Result<()> {
        let rest = std::mem::take(&mut self.partial[stream as usize]);
        let Some(file) = self.file.as_mut().filter(|_| !rest.is_empty()) else { return Ok(()) };
        let mut entries = Vec::new();
        entry(&mut entries, stream, b'P', &rest, now);
        file.write_all(&entries)
    }
}

fn entry(out: &mut Vec<u8>, stream: StreamName, tag: u8, line: &[u8], now: Timestamp) {
    let name = match stream {
        StreamName::Stdout => "stdout",
        StreamName::Stderr => "stderr",
    };
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{now:.9} {name} {} ", char::from(tag));
    out.extend_from_slice(line);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_and_parts() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("pod/0.log");
        let now: Timestamp = "2026-01-02T03:04:05.000000006Z".parse().expect("time");
        let mut log = Log::open(&dir.path().join("pod"), &path).expect("open");
        log.write(StreamName::Stdout, b"one\ntw", now).expect("write");
        log.write(StreamName::Stderr, b"err\n", now).expect("write");
        log.write(StreamName::Stdout, b"o\n\nrest", now).expect("write");
        log.finish(StreamName::Stdout, now).expect("finish");
        let t = "2026-01-02T03:04:05.000000006Z";
        let want = format!(
            "{t} stdout F one\n{t} stderr F err\n{t} stdout F two\n{t} stdout F \n{t} stdout P rest\n"
        );
        assert_eq!(std::fs::read_to_string(&path).expect("read"), want);

        std::fs::rename(&path, dir.path().join("pod/0.log.1")).expect("rename");
        log.reopen().expect("reopen");
        let long = vec![b'x'; MAX_LINE + 5];
        log.write(StreamName::Stdout, &long, now).expect("write");
        log.write(StreamName::Stdout, b"\n", now).expect("write");
        let text = std::fs::read_to_string(&path).expect("read");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0], format!("{t} stdout P {}", "x".repeat(MAX_LINE)));
        assert_eq!(lines[1], format!("{t} stdout F xxxxx"));
    }

    #[test]
    fn links_in_the_log_directory_are_not_followed() {
        use std::os::unix::fs::symlink;
        let (dir, host) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
        let pod = dir.path().join("logs/pod");
        fs::create_dir_all(pod.join("c")).expect("mkdir");
        symlink(host.path().join("victim"), pod.join("c/0.log")).expect("link");
        symlink(host.path(), pod.join("d")).expect("link");
        assert!(Log::open(&pod, &pod.join("c/0.log")).is_err());
        assert!(Log::open(&pod, &pod.join("d/0.log")).is_err());
        assert!(Log::open(Path::new(""), &pod.join("c/0.log")).is_err());
        assert_eq!(fs::read_dir(host.path()).expect("read").count(), 0);
        Log::open(&pod, &pod.join("e/0.log")).expect("made");
        Log::open(Path::new(""), &pod.join("f.log")).expect("made");
        Log::open(Path::new(""), Path::new("")).expect("no log");
    }
}
