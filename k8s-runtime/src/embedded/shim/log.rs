//! Container logs in the CRI format: `2026-01-02T03:04:05.000000006Z stdout F a line`.
//!
//! Lines are split at 16 KiB: all parts but the last have the tag `P`, the last one has `F`. Output without a
//! final line feed gets the tag `P`, so that readers reproduce the exact bytes. A log is rotated while it is
//! written, so that it never exceeds its size limit, however fast the container writes.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use crate::{beneath::Directory, log_files};

/// Maximum length of the text in one entry, bytes.
const MAX_LINE: usize = 16 << 10;

/// The output stream of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamName {
    Stdout,
    Stderr,
}

/// Size limits of a log.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limit {
    /// Maximum size of a file, bytes. 0: unlimited.
    pub(crate) bytes: u64,
    /// Maximum number of files, the current one included.
    pub(crate) files: usize,
}

/// The log file of a container.
#[derive(Debug)]
pub(crate) struct Log {
    /// The log root. No link is followed below it, since a pod with the directory as a hostPath volume can
    /// create links.
    root: PathBuf,
    /// Path of the file, relative to `root`. Empty: no log.
    path: PathBuf,
    file: Option<File>,
    /// Size of the file, bytes.
    length: u64,
    limit: Limit,
    /// Start of an unfinished line, per stream.
    partial: [Vec<u8>; 2],
}

impl Log {
    /// Opens the file for appending. An empty path: no log. `pod_dir` is the pod's log directory.
    pub(crate) fn open(pod_dir: &Path, path: &Path, limit: Limit) -> io::Result<Log> {
        let root = pod_dir.parent().filter(|_| path.starts_with(pod_dir));
        let root = root.or(path.parent()).unwrap_or(Path::new("/"));
        let relative = path.strip_prefix(root).unwrap_or(Path::new(""));
        let (root, path) = (root.to_owned(), relative.to_owned());
        let mut log = Log { root, path, file: None, length: 0, limit, partial: [Vec::new(), Vec::new()] };
        log.reopen()?;
        Ok(log)
    }

    /// Opens the file again by its name.
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
        let file = file.map_err(named)?;
        self.length = file.metadata().map(|m| m.len()).unwrap_or(0);
        self.file = Some(file);
        Ok(())
    }

    /// Appends entries, and rotates the file if it is full.
    fn append(&mut self, entries: &[u8], now: Timestamp) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(entries)?;
        self.length += entries.len() as u64;
        if self.limit.bytes == 0 || self.length <= self.limit.bytes {
            return Ok(());
        }
        // If the rotation fails, it is retried after the same number of bytes.
        self.length = 0;
        let directory = Directory::open(&self.root)?.without_links();
        let directory = directory.directory(self.path.parent().unwrap_or(Path::new("")))?;
        let name = self.path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        match log_files::rotate(&directory, name, now, self.limit.files) {
            // The kubelet has renamed the file already.
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        self.reopen()
    }

    /// Appends the output of a stream.
    pub(crate) fn write(&mut self, stream: StreamName, bytes: &[u8], now: Timestamp) -> io::Result<()> {
        if self.file.is_none() {
            return Ok(());
        }
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
        self.append(&entries, now)
    }

    /// Ends a stream: writes its unfinished line.
    pub(crate) fn finish(&mut self, stream: StreamName, now: Timestamp) -> io::Result<()> {
        let rest = std::mem::take(&mut self.partial[stream as usize]);
        if rest.is_empty() {
            return Ok(());
        }
        let mut entries = Vec::new();
        entry(&mut entries, stream, b'P', &rest, now);
        self.append(&entries, now)
    }
}

fn entry(out: &mut Vec<u8>, stream: StreamName, tag: u8, line: &[u8], now: Timestamp) {
    let name = match stream {
        StreamName::Stdout => "stdout",
        StreamName::Stderr => "stderr",
    };
    // Writing to a `Vec` does not fail.
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
        let mut log = Log::open(&dir.path().join("pod"), &path, Limit::default()).expect("open");
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
        const NONE: Limit = Limit { bytes: 0, files: 0 };
        let pod = dir.path().join("logs/pod");
        fs::create_dir_all(pod.join("c")).expect("mkdir");
        symlink(host.path().join("victim"), pod.join("c/0.log")).expect("link");
        symlink(host.path(), pod.join("d")).expect("link");
        assert!(Log::open(&pod, &pod.join("c/0.log"), NONE).is_err());
        assert!(Log::open(&pod, &pod.join("d/0.log"), NONE).is_err());
        assert!(Log::open(Path::new(""), &pod.join("c/0.log"), NONE).is_err());
        assert_eq!(fs::read_dir(host.path()).expect("read").count(), 0);
        Log::open(&pod, &pod.join("e/0.log"), NONE).expect("made");
        Log::open(Path::new(""), &pod.join("f.log"), NONE).expect("made");
        Log::open(Path::new(""), Path::new(""), NONE).expect("no log");
    }

    #[test]
    fn much_at_once_takes_no_more_room_than_the_limit() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("pod/c/0.log");
        let limit = Limit { bytes: 100_000, files: 3 };
        let mut log = Log::open(&dir.path().join("pod"), &path, limit).expect("open");
        for n in 0..2000_i64 {
            let now = Timestamp::from_microsecond(1_800_000_000_000_000 + n).expect("time");
            log.write(StreamName::Stdout, format!("{n:01000}\n").as_bytes(), now).expect("write");
        }
        let parts = fs::read_dir(dir.path().join("pod/c")).expect("read");
        let mut names: Vec<PathBuf> = parts.map(|e| e.expect("entry").path()).collect();
        names.sort();
        assert_eq!(names.len(), 3);
        assert!(names.iter().all(|p| fs::metadata(p).expect("stat").len() < 102_000));
        // "0.log" sorts first but is the newest.
        names.rotate_left(1);
        let text: String = names.iter().map(|p| fs::read_to_string(p).expect("read")).collect();
        let number =
            |line: &str| line.rsplit(' ').next().and_then(|n| n.parse::<i64>().ok()).expect("number");
        let numbers: Vec<i64> = text.lines().map(number).collect();
        assert_eq!(numbers.last(), Some(&1999));
        assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1), "no line is lost between parts");
        assert!(numbers.len() > 190, "{}", numbers.len());
    }
}
