//! The log backend: a line for each event, in a file that is rotated, or on standard output.
//!
//! Guarantees: files have mode 0600. In mode batch a disk that is full or slow neither delays nor refuses
//! requests; the events that are lost are counted.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError, mpsc},
};

use jiff::Timestamp;
use k8s_core::clock::Clock;
use k8s_metrics::Counter;

use super::{
    Event, Sink,
    truncate::{Truncation, fitted},
};

/// Bytes of a megabyte in `--audit-log-maxsize`.
const MEGABYTE: u64 = 1 << 20;
/// Seconds of a day.
const DAY: i64 = 24 * 60 * 60;

/// Form of the lines of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// A JSON object for each event.
    #[default]
    Json,
    /// A line of words for each event, without bodies and annotations.
    Legacy,
}

/// Relation of requests to the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// A thread writes events from a buffer. Events that do not fit are lost.
    Batch,
    /// A request waits until its events are written. Events that cannot be written are lost.
    #[default]
    Blocking,
    /// As blocking, and a request is refused if its first event cannot be written.
    BlockingStrict,
}

/// Settings of a log backend (`--audit-log-*`).
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// File of the log; `-`: standard output.
    pub path: PathBuf,
    /// Form of the lines. Default: JSON.
    pub format: Format,
    /// Mode. Default: blocking.
    pub mode: Mode,
    /// Size from which the file is rotated, megabytes; 0: never. Default: 100.
    pub max_size: u64,
    /// Number of rotated files that are kept; 0: all. Default: 100.
    pub max_backups: usize,
    /// Age from which rotated files are removed, days; 0: never. Default: 366.
    pub max_age: u32,
    /// Compress rotated files with gzip. Default: false.
    pub compress: bool,
    /// Number of events in the buffer of mode batch. Default: 10000.
    pub buffer: usize,
    /// Limits of the sizes of events. Default: none.
    pub truncation: Option<Truncation>,
}

impl LogSettings {
    /// Returns upstream's defaults for a file.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        LogSettings {
            path: path.into(),
            format: Format::Json,
            mode: Mode::Blocking,
            max_size: 100,
            max_backups: 100,
            max_age: 366,
            compress: false,
            buffer: 10_000,
            truncation: None,
        }
    }
}

/// An audit log.
#[derive(Debug)]
pub struct Log {
    format: Format,
    mode: Mode,
    truncation: Option<Truncation>,
    way: Way,
    errors: Arc<OnceLock<Counter>>,
}

/// The way of lines to the output.
#[derive(Debug)]
enum Way {
    Direct(Mutex<Output>),
    Buffered(mpsc::SyncSender<Vec<u8>>),
}

impl Log {
    /// Opens a log, and with mode batch starts its thread, which ends with the log.
    ///
    /// # Errors
    /// The file cannot be opened, or the thread cannot be started.
    pub fn open(settings: &LogSettings) -> io::Result<Self> {
        let mut output = Output::open(settings)?;
        let errors: Arc<OnceLock<Counter>> = Arc::default();
        let way = if settings.mode == Mode::Batch {
            let (send, lines) = mpsc::sync_channel::<Vec<u8>>(settings.buffer.max(1));
            let errors = errors.clone();
            std::thread::Builder::new().name("audit-log".into()).spawn(move || {
                for line in lines {
                    if let Err(error) = output.write(&line) {
                        lost(&errors, &error);
                    }
                }
            })?;
            Way::Buffered(send)
        } else {
            Way::Direct(Mutex::new(output))
        };
        let (format, mode, truncation) = (settings.format, settings.mode, settings.truncation);
        Ok(Log { format, mode, truncation, way, errors })
    }
}

/// Counts and logs an event that is lost.
fn lost(errors: &OnceLock<Counter>, error: &io::Error) {
    if let Some(counter) = errors.get() {
        counter.inc();
    }
    tracing::error!(plugin = "log", %error, "an audit event is lost");
}

impl Sink for Log {
    fn name(&self) -> &'static str {
        "log"
    }

    fn count_errors(&self, counter: Counter) {
        let _ = self.errors.set(counter);
    }

    fn record(&self, event: &Event) -> io::Result<()> {
        let line = match (self.format, &self.truncation) {
            // The legacy form has no objects.
            (Format::Legacy, None) => Ok(event.legacy().into_bytes()),
            (Format::Legacy, limits) => fitted(event, limits.as_ref()).map(|_| event.legacy().into_bytes()),
            (Format::Json, limits) => fitted(event, limits.as_ref()),
        };
        let mut line = match line {
            Ok(line) => line,
            Err(error) => {
                // As one that is written: what the limits leave out refuses no request.
                lost(&self.errors, &error);
                return Ok(());
            }
        };
        line.push(b'\n');
        let written = match &self.way {
            Way::Direct(output) => output.lock().unwrap_or_else(PoisonError::into_inner).write(&line),
            Way::Buffered(send) => {
                let full = |_| io::Error::other("the buffer of --audit-log-batch-buffer-size is full");
                send.try_send(line).map_err(full)
            }
        };
        if let Err(error) = &written {
            lost(&self.errors, error);
        }
        if self.mode == Mode::BlockingStrict { written } else { Ok(()) }
    }
}

/// The output of a log.
#[derive(Debug)]
enum Output {
    Stdout,
    File(Rotated),
}

impl Output {
    fn open(settings: &LogSettings) -> io::Result<Self> {
        if settings.path == Path::new("-") {
            return Ok(Output::Stdout);
        }
        let file = append(&settings.path)?;
        let size = file.metadata()?.len();
        Ok(Output::File(Rotated { settings: settings.clone(), file, size, torn: false }))
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Output::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(line)?;
                out.flush()
            }
            Output::File(file) => file.write(line),
        }
    }
}

/// Opens a file to append to it. A new one has mode 0600.
fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// A file that is renamed when it is large.
#[derive(Debug)]
struct Rotated {
    settings: LogSettings,
    file: File,
    size: u64,
    /// The last write broke off within a line.
    torn: bool,
}

impl Rotated {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let limit = self.settings.max_size.saturating_mul(MEGABYTE);
        if limit > 0 && self.size > 0 && self.size.saturating_add(line.len() as u64) > limit {
            self.rotate()?;
        }
        if self.torn {
            self.file.write_all(b"\n")?;
            self.torn = false;
            self.size += 1;
        }
        if let Err(error) = self.file.write_all(line) {
            let now = self.file.metadata().map_or(self.size, |found| found.len());
            self.torn = now != self.size;
            self.size = now;
            return Err(error);
        }
        self.size += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let path = &self.settings.path;
        let backup = self.free_name();
        std::fs::rename(path, &backup)?;
        self.file = append(path)?;
        (self.size, self.torn) = (0, false);
        let settings = self.settings.clone();
        // A rotated file is compressed beside the writer, which requests may wait for.
        let work = move || {
            if settings.compress
                && let Err(error) = compress(&backup)
            {
                tracing::warn!(%error, file = %backup.display(), "compress a rotated audit log");
            }
            if let Err(error) = remove_old(&settings, Clock::system().now()) {
                tracing::warn!(%error, "remove old audit logs");
            }
        };
        std::thread::Builder::new().name("audit-rotate".into()).spawn(work).map(drop)
    }

    /// Returns the name of a rotated file, with the time in milliseconds.
    fn free_name(&self) -> PathBuf {
        let (stem, extension) = parts(&self.settings.path);
        let mut at = Clock::system().now();
        loop {
            let time = at.strftime("%Y-%m-%dT%H-%M-%S%.3f");
            let path = self.settings.path.with_file_name(format!("{stem}-{time}{extension}"));
            let gz = PathBuf::from(format!("{}.gz", path.display()));
            if !path.exists() && !gz.exists() {
                return path;
            }
            at = at.saturating_add(jiff::SignedDuration::from_millis(1)).unwrap_or(at);
        }
    }
}

/// Splits the name of a log file before its extension.
fn parts(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let extension = path.extension().map(|e| format!(".{}", e.to_string_lossy()));
    (text(path.file_stem()), extension.unwrap_or_default())
}

fn compress(path: &Path) -> io::Result<()> {
    let target = PathBuf::from(format!("{}.gz", path.display()));
    let out = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&target)?;
    let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
    let copied = io::copy(&mut File::open(path)?, &mut encoder).and_then(|_| encoder.finish());
    if let Err(error) = copied {
        let _ = std::fs::remove_file(&target);
        return Err(error);
    }
    std::fs::remove_file(path)
}

/// Removes rotated files that are too many or too old.
fn remove_old(settings: &LogSettings, now: Timestamp) -> io::Result<()> {
    let (stem, extension) = parts(&settings.path);
    let directory = match settings.path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let time = name
            .strip_prefix(&format!("{stem}-"))
            .and_then(|rest| rest.strip_suffix(".gz").unwrap_or(rest).strip_suffix(extension.as_str()));
        let parsed = time.and_then(|time| jiff::civil::DateTime::strptime("%Y-%m-%dT%H-%M-%S%.f", time).ok());
        let time = parsed.and_then(|time| time.to_zoned(jiff::tz::TimeZone::UTC).ok());
        if let Some(time) = time {
            found.push((time.timestamp(), entry.path()));
        }
    }
    found.sort();
    found.reverse();
    let oldest = now.as_second().saturating_sub(i64::from(settings.max_age) * DAY);
    for (i, (time, path)) in found.iter().enumerate() {
        let too_many = settings.max_backups > 0 && i >= settings.max_backups;
        if too_many || (settings.max_age > 0 && time.as_second() < oldest) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::fs::PermissionsExt};

    use super::*;

    fn files(directory: &Path) -> Vec<String> {
        let all = std::fs::read_dir(directory).unwrap();
        let mut all: Vec<String> =
            all.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        all.sort();
        all
    }

    #[test]
    fn files_are_private_and_rotated() {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = LogSettings::new(directory.path().join("audit.log"));
        (settings.max_size, settings.compress) = (1, true);
        let mut output = Output::open(&settings).unwrap();
        let line = vec![b'x'; 600 << 10];
        for _ in 0..2 {
            output.write(&line).unwrap();
        }
        let begun = std::time::Instant::now();
        let rotated = loop {
            let all = files(directory.path());
            match all.as_slice() {
                [one, log] if one.ends_with(".log.gz") && log == "audit.log" => break one.clone(),
                _ => assert!(begun.elapsed().as_secs() < 20, "{all:?}"),
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        };
        for name in [rotated.as_str(), "audit.log"] {
            let mode = std::fs::metadata(directory.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let mut text = Vec::new();
        let file = File::open(directory.path().join(rotated)).unwrap();
        flate2::read::GzDecoder::new(file).read_to_end(&mut text).unwrap();
        assert_eq!(text.len(), 600 << 10);
        assert_eq!(std::fs::metadata(&settings.path).unwrap().len(), 600 << 10);
    }

    #[test]
    fn too_many_and_too_old_files_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = LogSettings::new(directory.path().join("audit.log"));
        (settings.max_backups, settings.max_age) = (2, 10);
        for name in [
            "audit-2026-11-01T00-00-00.000.log",
            "audit-2026-11-26T00-00-00.000.log.gz",
            "audit-2026-11-27T00-00-00.000.log",
            "audit-2026-11-28T00-00-00.000.log",
            "audit-other.log",
            "audit.log",
        ] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        let now: Timestamp = "2026-11-28T12:00:00Z".parse().unwrap();
        remove_old(&settings, now).unwrap();
        let left = [
            "audit-2026-11-27T00-00-00.000.log",
            "audit-2026-11-28T00-00-00.000.log",
            "audit-other.log",
            "audit.log",
        ];
        assert_eq!(files(directory.path()), left);
        settings.max_backups = 0;
        remove_old(&settings, "2026-12-07T12:00:00Z".parse().unwrap()).unwrap();
        assert_eq!(files(directory.path()), left[1..], "older than ten days");
    }
}
