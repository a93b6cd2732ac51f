//! Reads a log for a client: start position, limits, and following.
//!
//! Following waits for a change of the directory (inotify) or for the end of the container; it does not poll.

use std::{
    io::{self, SeekFrom},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use k8s_runtime::beneath;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
    net::unix::pipe,
    sync::mpsc,
};

use super::{LogFile, line::Line};
use crate::{context::Context, types::Timestamp};

const CHUNK: usize = 64 * 1024;
/// Longer lines are cut. Runtimes write at most 16 KiB per line.
const LONGEST_LINE: usize = 1 << 20;

/// The part of a log that a client wants.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Options {
    pub(crate) follow: bool,
    pub(crate) tail: Option<u64>,
    pub(crate) since: Option<Timestamp>,
    pub(crate) timestamps: bool,
    pub(crate) limit: Option<u64>,
    /// `stdout` or `stderr`. `None`: both.
    pub(crate) stream: Option<String>,
}

/// The container whose log is followed.
pub(crate) struct Whose {
    pub(crate) cx: Arc<Context>,
    pub(crate) pod_uid: String,
    pub(crate) container: String,
    pub(crate) id: k8s_runtime::ContainerId,
}

impl Whose {
    /// Returns `true` if the container has exited, so that its log is complete.
    fn ended(&self) -> bool {
        let view = self.cx.view(&self.pod_uid);
        let container = view.as_ref().and_then(|v| v.containers.get(&self.container));
        !container.is_some_and(|c| c.running && c.id.as_ref() == Some(&self.id))
    }
}

type Sender = mpsc::Sender<io::Result<Bytes>>;

/// Sends what a client wants of a log, until all is sent, the client is gone, or (following) the container
/// has ended.
pub(crate) async fn send(log: LogFile, options: Options, whose: Option<Whose>, sender: Sender) {
    let mut output = Output::new(options, sender.clone());
    let result = tokio::select! {
        result = read(&log, &mut output, whose) => result,
        () = sender.closed() => return,
    };
    if let Err(e) = result {
        // The receiver may be gone; then there is nobody to report the error to.
        let _ = sender.send(Err(e)).await;
    }
}

/// Opens the current log or a rotated file.
fn open(log: &LogFile, name: &str) -> io::Result<File> {
    log.directory()?.read(Path::new(name)).map(File::from_std)
}

async fn read(log: &LogFile, output: &mut Output, whose: Option<Whose>) -> io::Result<()> {
    let mut files = log.parts();
    files.push(log.name().to_owned());
    let mut skip = match output.options.tail {
        Some(lines) => start_of_tail(log, &files, lines).await?,
        None => (0, 0),
    };
    let mut current = None;
    for (index, name) in files.iter().enumerate().skip(skip.0) {
        let mut file = match open(log, name) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        file.seek(SeekFrom::Start(skip.1)).await?;
        skip.1 = 0;
        if !output.copy(&mut file).await? {
            return Ok(());
        }
        if index + 1 == files.len() {
            current = Some(file);
        } else {
            output.end_of_file().await?;
        }
    }
    match whose.filter(|_| output.options.follow) {
        Some(whose) => follow(log, current, output, &whose).await,
        None => output.finish().await,
    }
}

async fn follow(log: &LogFile, mut file: Option<File>, output: &mut Output, whose: &Whose) -> io::Result<()> {
    let dir = log.directory()?;
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    inotify.add_watch(
        &beneath::by_descriptor(dir.as_fd()),
        AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO,
    )?;
    // The inotify descriptor is read like a pipe; the contents of the events are not needed.
    let inotify = pipe::Receiver::from_owned_fd_unchecked(inotify.into())?;
    let mut events = [0; 4096];
    let mut views = whose.cx.view_changes();
    loop {
        // Read the state before the file: all lines written before the exit are then in the file.
        let ended = whose.ended();
        if let Some(file) = &mut file
            && !output.copy(file).await?
        {
            return Ok(());
        }
        if let Some(next) = successor(log, file.as_ref()).await? {
            // The lines between the last read and the rotation; nothing more comes.
            if let Some(file) = &mut file
                && !output.copy(file).await?
            {
                return Ok(());
            }
            output.end_of_file().await?;
            file = Some(next);
            continue;
        }
        if ended {
            return output.finish().await;
        }
        tokio::select! {
            ready = inotify.readable() => {
                ready?;
                while matches!(inotify.try_read(&mut events), Ok(1..)) {}
            }
            _ = views.changed() => {}
        }
    }
}

/// Returns the file that follows `file`, or `None` if `file` is still the current log. The log may have been
/// rotated more than once since the last read.
async fn successor(log: &LogFile, file: Option<&File>) -> io::Result<Option<File>> {
    let there = match open(log, log.name()) {
        Ok(there) => there,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let Some(file) = file else { return Ok(Some(there)) };
    let own = file.metadata().await?.ino();
    if own == there.metadata().await?.ino() {
        return Ok(None);
    }
    // Newest first: the last one before our own is its successor. When our own is gone, all that are left
    // are.
    let mut next = there;
    for name in log.parts().iter().rev() {
        match open(log, name) {
            Ok(part) if part.metadata().await?.ino() == own => break,
            Ok(part) => next = part,
            Err(e) if e.kind() == io::ErrorKind::NotFound => break,
            Err(e) => return Err(e),
        }
    }
    Ok(Some(next))
}

/// The start of the last `lines` lines: the file's index and the offset in it.
async fn start_of_tail(log: &LogFile, files: &[String], lines: u64) -> io::Result<(usize, u64)> {
    let mut wanted = lines;
    for (index, name) in files.iter().enumerate().rev() {
        let mut file = match open(log, name) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let length = file.metadata().await?.len();
        if wanted == 0 {
            return Ok((index, length));
        }
        let mut end = length;
        // The line feed at the end of the file does not start another line.
        let mut at_end = true;
        while end > 0 {
            let size = end.min(CHUNK as u64);
            let start = end - size;
            file.seek(SeekFrom::Start(start)).await?;
            let mut chunk = vec![0; usize::try_from(size).unwrap_or(CHUNK)];
            file.read_exact(&mut chunk).await?;
            for (at, byte) in chunk.iter().enumerate().rev() {
                if *byte == b'\n' {
                    if !at_end {
                        wanted -= 1;
                    }
                    if wanted == 0 {
                        return Ok((index, start + at as u64 + 1));
                    }
                }
                at_end = false;
            }
            end = start;
        }
        if length > 0 {
            wanted -= 1;
            if wanted == 0 {
                return Ok((index, 0));
            }
        }
    }
    Ok((0, 0))
}

/// Converts raw log bytes into the client's output.
struct Output {
    options: Options,
    sender: Sender,
    /// Start of a line whose end has not been read yet.
    rest: Vec<u8>,
    ready: Vec<u8>,
    /// The last line sent was partial.
    inside: bool,
    left: Option<u64>,
}

impl Output {
    fn new(options: Options, sender: Sender) -> Self {
        let left = options.limit;
        Output { options, sender, rest: Vec::new(), ready: Vec::new(), inside: false, left }
    }

    /// Copies a file from its current position to its end. Returns `false` if a limit is reached.
    async fn copy(&mut self, file: &mut File) -> io::Result<bool> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let n = file.read(&mut chunk).await?;
            if n == 0 {
                return Ok(true);
            }
            self.take(&chunk[..n]);
            if !self.flush().await? {
                return Ok(false);
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let rest = std::mem::take(&mut self.rest);
        let mut from = 0;
        while let Some(length) = rest[from..].iter().position(|b| *b == b'\n') {
            self.line(&rest[from..=from + length]);
            from += length + 1;
        }
        self.rest = rest[from..].to_vec();
        if self.rest.len() > LONGEST_LINE {
            self.rest.clear();
        }
    }

    fn line(&mut self, raw: &[u8]) {
        let Some(line) = Line::parse(raw) else { return };
        if self.options.stream.as_deref().is_some_and(|s| s != line.stream) {
            return;
        }
        if let Some(since) = self.options.since
            && line.timestamp().is_some_and(|t| t < since)
        {
            return;
        }
        if self.options.timestamps && !self.inside {
            self.ready.extend_from_slice(line.time.as_bytes());
            self.ready.push(b' ');
        }
        self.ready.extend_from_slice(&line.text_with_end());
        self.inside = line.partial;
    }

    /// Sends the buffered output. Returns `false` if a limit is reached.
    async fn flush(&mut self) -> io::Result<bool> {
        let mut ready = std::mem::take(&mut self.ready);
        if let Some(left) = &mut self.left {
            ready.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= ready.len() as u64;
        }
        if !ready.is_empty() && self.sender.send(Ok(ready.into())).await.is_err() {
            return Ok(false);
        }
        Ok(self.left != Some(0))
    }

    /// Handles the end of a file, which may lack the last line feed.
    async fn end_of_file(&mut self) -> io::Result<()> {
        let rest = std::mem::take(&mut self.rest);
        if !rest.is_empty() {
            self.line(&rest);
        }
        self.flush().await.map(drop)
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.end_of_file().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(log: &Path, options: Options) -> String {
        let (sender, mut receiver) = mpsc::channel(16);
        let log = LogFile::new(log.parent().unwrap(), log);
        let task = tokio::spawn(send(log, options, None, sender));
        let mut all = Vec::new();
        while let Some(bytes) = receiver.recv().await {
            all.extend_from_slice(&bytes.unwrap());
        }
        task.await.unwrap();
        String::from_utf8(all).unwrap()
    }

    #[tokio::test]
    async fn options() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        std::fs::write(
            dir.path().join("0.log.20260101-000000"),
            "2026-01-01T00:00:01Z stdout F one\n2026-01-01T00:00:02Z stderr F two\n",
        )
        .unwrap();
        std::fs::write(
            &log,
            "2026-01-01T00:00:03Z stdout P thr\n2026-01-01T00:00:03Z stdout F ee\n2026-01-01T00:00:04Z stdout F four\n",
        )
        .unwrap();
        let base = Options::default();
        for (options, want) in [
            (base.clone(), "one\ntwo\nthree\nfour\n"),
            (Options { tail: Some(1), ..base.clone() }, "four\n"),
            (Options { tail: Some(4), ..base.clone() }, "two\nthree\nfour\n"),
            (Options { tail: Some(5), ..base.clone() }, "one\ntwo\nthree\nfour\n"),
            (Options { tail: Some(50), ..base.clone() }, "one\ntwo\nthree\nfour\n"),
            (Options { tail: Some(0), ..base.clone() }, ""),
            (Options { limit: Some(5), ..base.clone() }, "one\nt"),
            (Options { stream: Some("stderr".into()), ..base.clone() }, "two\n"),
            (Options { since: Some("2026-01-01T00:00:04Z".parse().unwrap()), ..base.clone() }, "four\n"),
            (
                Options { timestamps: true, tail: Some(3), ..base.clone() },
                "2026-01-01T00:00:03Z three\n2026-01-01T00:00:04Z four\n",
            ),
        ] {
            assert_eq!(get(&log, options.clone()).await, want, "{options:?}");
        }
    }

    #[tokio::test]
    async fn rotated_parts_are_read_one_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let log = LogFile::new(dir.path(), &path);
        std::fs::write(&path, "1").unwrap();
        let mut file = open(&log, "0.log").unwrap();
        for n in 2..5 {
            std::fs::rename(&path, dir.path().join(format!("0.log.2026010{n}"))).unwrap();
            std::fs::write(&path, n.to_string()).unwrap();
        }
        let mut read = Vec::new();
        while let Some(next) = successor(&log, Some(&file)).await.unwrap() {
            file = next;
            let mut text = String::new();
            file.read_to_string(&mut text).await.unwrap();
            read.push(text);
        }
        assert_eq!(read, ["2", "3", "4"]);
        assert!(successor(&log, Some(&file)).await.unwrap().is_none());
    }
}
