//! Comments in plain words, and files of a size that can be read.

use std::path::{Path, PathBuf};

/// Comments that may begin with a question word, in the whole tree.
const OPENERS: usize = 80;
/// Comment lines wider than [`WIDTH`], in the whole tree.
const WIDE: usize = 40;
const WIDTH: usize = 110;
/// Lines of a source file.
const LINES: usize = 700;
/// Words that begin a comment with a question or a riddle instead of a noun or verb.
const QUESTIONS: [&str; 14] = [
    "What", "Which", "Whether", "How", "Who", "Whom", "Whose", "Where", "When", "Why", "As whom", "For whom",
    "To whom", "Of what",
];

/// Returns the findings that are over the limits.
pub(super) fn problems(root: &Path, files: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let mut problems = Vec::new();
    let (mut openers, mut wide) = (Vec::new(), Vec::new());
    for file in files {
        let text = std::fs::read_to_string(root.join(file))?;
        let lines = text.lines().count();
        if lines > LINES {
            problems.push(format!("{}: {lines} lines, at most {LINES}: split it", file.display()));
        }
        let mut before = "";
        for (i, line) in text.lines().enumerate() {
            if let Some(comment) = comment(line) {
                let place = format!("{}:{}", file.display(), i + 1);
                if comment_starts(before) && asks(comment) {
                    openers.push(place.clone());
                }
                if line.chars().count() > WIDTH {
                    wide.push(place);
                }
            }
            before = line;
        }
    }
    for (found, most, what) in [
        (openers, OPENERS, "comments begin with a question word"),
        (wide, WIDE, "comment lines are wider than 110 columns"),
    ] {
        if found.len() > most {
            let some = found.iter().take(20).map(String::as_str).collect::<Vec<_>>().join("\n  ");
            problems.push(format!("{} {what}, at most {most}:\n  {some}", found.len()));
        }
    }
    Ok(problems)
}

fn comment(line: &str) -> Option<&str> {
    Some(line.trim().strip_prefix("//")?.trim_start_matches(['/', '!']).trim())
}

/// True if a comment after this line is the first of its paragraph.
fn comment_starts(before: &str) -> bool {
    comment(before).is_none_or(str::is_empty)
}

fn asks(comment: &str) -> bool {
    QUESTIONS.iter().any(|question| {
        comment.strip_prefix(question).is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_told_from_words_that_begin_like_them() {
        assert!(asks("Whether it is there.") && asks("As whom it calls."));
        assert!(!asks("Whatever.") && !asks("Returns what is there."));
        assert!(comment_starts("let x = 1;") && comment_starts("///") && !comment_starts("/// Says"));
    }
}
