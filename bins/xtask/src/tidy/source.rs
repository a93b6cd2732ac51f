//! Source files as text.

use std::path::{Path, PathBuf};

/// Rust files below a directory, without those of unit tests.
pub(super) fn files(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (mut found, mut todo) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = todo.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if stem == "tests" || stem.ends_with("_tests") {
                continue;
            }
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The text with every line comment cut off. (A `//` in a string is cut as well, which hides no import.)
pub(super) fn blank_comments(text: &str) -> String {
    text.lines().flat_map(|line| [line.split("//").next().unwrap_or_default(), "\n"]).collect()
}

/// The text without modules that are for tests.
pub(super) fn without_tests(text: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut kept = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(MARK) {
        let after = &rest[at + MARK.len()..];
        kept.push_str(&rest[..at]);
        let item = after.trim_start();
        let is_module =
            item.starts_with("mod ") || item.starts_with("pub mod ") || item.starts_with("pub(crate) mod ");
        let end = after.find([';', '{']).filter(|_| is_module);
        rest = match end {
            Some(end) if after[end..].starts_with('{') => &after[end + block(&after[end..])..],
            Some(end) => &after[end + 1..],
            None => after,
        };
    }
    kept + rest
}

/// The length of a block in braces.
fn block(text: &str) -> usize {
    let mut depth = 0;
    for (i, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return i + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    text.len()
}
