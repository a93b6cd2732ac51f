//! Compiled patterns, kept from one table to the next by their text.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use regex::bytes::{Regex, RegexBuilder};

/// Characters of a pattern at most, and bytes of its program and of each memory for matching.
pub(crate) const LONGEST_PATTERN: usize = 1024;
const LARGEST_PATTERN: usize = 64 * 1024;
/// Matches the empty text only, as paths and headers have no NUL. A pattern with it can be read in two ways,
/// so that `regex` makes no one-pass automaton of it, which has up to 1 MiB beside the program.
const TWO_WAYS: &str = r"(?:\x00??\x00??)";

/// Patterns of a table at most.
const MOST: usize = 1000;
/// Patterns of an Ingress at most.
pub(crate) const MOST_OF_ONE: usize = 100;

/// Compiled patterns.
///
/// Guarantee: a table has at most 1,000 different ones, those that cannot be used among them, so that their
/// memory and the time to compile them are bounded.
#[derive(Debug, Default)]
pub struct Patterns(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Number of the table that is made now.
    table: u64,
    /// Patterns of this table so far.
    count: usize,
    patterns: HashMap<Box<str>, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// Number of the last table that has it.
    table: u64,
    compiled: Result<Arc<Regex>, String>,
}

impl Patterns {
    /// Begins another table. Patterns that the last one did not have are forgotten.
    pub(crate) fn begin(&self) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = known.table;
        known.patterns.retain(|_, entry| entry.table == last);
        known.table += 1;
        known.count = 0;
    }

    /// Returns a pattern, compiled.
    ///
    /// # Errors
    /// The reason why it cannot be used.
    pub(crate) fn get(&self, text: &str) -> Result<Arc<Regex>, String> {
        if text.len() > LONGEST_PATTERN {
            // Refused at once, and its text is not kept.
            return pattern(text);
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Known { table, count, patterns } = &mut *known;
        if let Some(entry) = patterns.get(text).filter(|entry| entry.table == *table) {
            return entry.compiled.clone();
        }
        if *count >= MOST {
            return Err(format!("the Ingresses of the cluster have {MOST} patterns already"));
        }
        *count += 1;
        if let Some(entry) = patterns.get_mut(text) {
            entry.table = *table;
            return entry.compiled.clone();
        }
        let compiled = pattern(text);
        patterns.insert(text.into(), Entry { table: *table, compiled: compiled.clone() });
        compiled
    }
}

/// Compiles the pattern of a path or a header. Its size is bounded; matching takes linear time.
///
/// # Errors
/// The reason why it cannot be used.
pub(crate) fn pattern(text: &str) -> Result<Arc<Regex>, String> {
    if text.len() > LONGEST_PATTERN {
        return Err(format!("a pattern has at most {LONGEST_PATTERN} characters"));
    }
    let repeats = |text: &str| text.starts_with(['*', '+', '?', '{']);
    let text = match text.strip_prefix('^') {
        _ if repeats(text) => text.to_owned(),
        // Behind the anchor, which is looked for at the beginning.
        Some(rest) if !repeats(rest) => format!("^{TWO_WAYS}{rest}"),
        _ => format!("{TWO_WAYS}{text}"),
    };
    let mut builder = RegexBuilder::new(&text);
    // A line break in a path does not end a match.
    builder
        .case_insensitive(true)
        .dot_matches_new_line(true)
        .unicode(false)
        .size_limit(LARGEST_PATTERN)
        .dfa_size_limit(LARGEST_PATTERN);
    builder.nest_limit(32).build().map(Arc::new).map_err(|e| {
        let text = e.to_string();
        text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(patterns: &Patterns) -> usize {
        patterns.0.lock().unwrap().patterns.len()
    }

    #[test]
    fn patterns_are_kept_for_the_next_table_and_then_forgotten() {
        let patterns = Patterns::default();
        patterns.begin();
        let first = patterns.get("^/a").unwrap();
        assert!(patterns.get("(").is_err() && patterns.get("(").is_err());
        assert!(patterns.get(&"a".repeat(LONGEST_PATTERN + 1)).is_err());
        patterns.begin();
        assert_eq!(known(&patterns), 2);
        assert!(Arc::ptr_eq(&first, &patterns.get("^/a").unwrap()));
        patterns.begin();
        assert_eq!(known(&patterns), 1);
        patterns.begin();
        assert_eq!(known(&patterns), 0);
        assert!(!Arc::ptr_eq(&first, &patterns.get("^/a").unwrap()));
    }

    #[test]
    fn a_table_has_so_many_patterns_and_no_more() {
        let patterns = Patterns::default();
        for _ in 0..2 {
            patterns.begin();
            for i in 0..MOST {
                assert!(patterns.get(&format!("^/{i}")).is_ok());
            }
            assert!(patterns.get("^/more").unwrap_err().contains("1000 patterns"));
            assert!(patterns.get("^/7").is_ok(), "one that is there already");
        }
        assert_eq!(known(&patterns), MOST);
    }

    #[test]
    fn patterns_match_as_they_are_written() {
        for (text, value, want) in [
            ("^/a", &b"/A/b"[..], Some(&b"/A"[..])),
            ("^/a|b$", b"xb", Some(b"b")),
            ("^/a|b$", b"x/a", None),
            ("(?x) ^ /a #", b"/a", Some(b"/a")),
            ("^?/a", b"x/a", Some(b"/a")),
            ("^*/a", b"x/a", Some(b"/a")),
            ("b+", b"abbc", Some(b"bb")),
            ("", b"abc", Some(b"")),
            ("^", b"abc", Some(b"")),
            ("^(a|ab)(c|bcd)$", b"abcd", Some(b"abcd")),
        ] {
            let pattern = pattern(text).unwrap();
            assert_eq!(pattern.find(value).map(|found| found.as_bytes()), want, "{text}");
        }
        let groups = pattern("^/api(/|$)(.*)").unwrap();
        assert_eq!(groups.captures(b"/api/v1").unwrap().get(2).unwrap().as_bytes(), b"v1");
        for bad in ["*a", "+", "?", "{2}", "^**("] {
            assert!(pattern(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn patterns_are_bounded() {
        assert!(pattern("^/a(/|$)(.*)").unwrap().is_match(b"/A/b"));
        for bad in [
            "(",
            "(?P<",
            &"a".repeat(LONGEST_PATTERN + 1),
            "(a{1000}){1000}",
            "[a-z]{2000}",
            &"(".repeat(500),
        ] {
            assert!(pattern(bad).is_err(), "{bad}");
        }
    }
}
