//! Container logs in the CRI format: `2026-01-02T03:04:05.000000006Z stdout F a line`.
//!
//! Lines are split at 16 KiB; a part that goes on is tagged `P`, a line's end `F`. What a stream leaves without a line
//! feed at its end is a `P`, so that readers give back exactly what was written.
//! Not here: rotation (the kubelet renames the file and asks for a reopen).

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::PathBuf,
};

use jiff::Timestamp;

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
    path: PathBuf,
    file: Option<File>,
    /// What was read of an unfinished line, per stream.
    partial: [Vec<u8>; 2],
}

impl Log {
    /// Opens the file for appending; an empty path means no log.
    pub(crate) fn open(path: PathBuf) -> io::Result<Log> {
        let mut log = Log { path, file: None, partial: [Vec::new(), Vec::new()] };
        log.reopen()?;
        Ok(log)
    }

    /// Opens the file of the same name anew.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        if self.path.as_os_str().is_empty() {
            return Ok(());
        }
        if let Some(directory) = self.path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let open = |path: &PathBuf| OpenOptions::new().append(true).create(true).open(path);
        self.file = Some(
            open(&self.path)
                .map_err(|e| io::Error::new(e.kind(), format!("open log {:?}: {e}", self.path)))?,
        );
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
        let mut log = Log::open(path.clone()).expect("open");
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
}
