//! JSON files with atomic replacement.

use std::path::Path;

use serde::{Serialize, de::DeserializeOwned};

/// Reads a JSON file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> std::io::Result<T> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

/// Replaces a JSON file atomically: readers see the old or the new content. A file that has the content
/// already is left alone, so that a full disk is no error then.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> std::io::Result<()> {
    let content = serde_json::to_vec(value)?;
    if std::fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let temporary = path.with_extension("tmp");
    let written = std::fs::write(&temporary, content).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // A part of it would take space that others need.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}
