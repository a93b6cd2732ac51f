//! Containers' logs on disk: reading, following, rotating.
//!
//! The runtime writes CRI lines (`time stream F|P text`); this module never writes to a log, it only renames and removes.

pub(crate) mod line;
pub(crate) mod read;
pub(crate) mod rotate;

use std::{
    fs,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

/// The end of a log as plain text: at most so many lines and bytes.
pub(crate) fn tail_text(path: &Path, lines: usize, bytes: usize) -> Vec<u8> {
    let Ok(mut file) = fs::File::open(path) else { return Vec::new() };
    let length = file.metadata().map(|m| m.len()).unwrap_or(0);
    // Each line has its time and stream in front; twice the bytes is plenty for what is wanted.
    let window = (bytes as u64 + lines as u64 * 64).min(length);
    let mut raw = Vec::new();
    if file.seek(SeekFrom::Start(length - window)).is_err() || file.read_to_end(&mut raw).is_err() {
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

/// Removes a log and its rotated parts.
pub(crate) fn remove(path: &Path) {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else { return };
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let file = entry.file_name();
        let own = file
            .to_str()
            .is_some_and(|f| f.strip_prefix(name).is_some_and(|r| r.is_empty() || r.starts_with('.')));
        if own && let Err(e) = fs::remove_file(entry.path()) {
            tracing::debug!(path = ?entry.path(), error = %e, "log not removed");
        }
    }
}
