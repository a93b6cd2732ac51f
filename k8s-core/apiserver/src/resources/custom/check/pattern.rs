//! Patterns of texts. They are compiled when they are first used: definitions have many, and a class of letters
//! of all scripts takes megabytes.

use std::{fmt, sync::OnceLock};

use regex::{Regex, RegexBuilder};

/// Sizes of compiled patterns in bytes. Each is tried until one is enough.
const SIZES: [usize; 4] = [4 << 10, 64 << 10, 1 << 20, 16 << 20];

/// Room for the compiled patterns of one definition, in bytes.
#[derive(Debug)]
pub(super) struct Room(usize);

impl Default for Room {
    fn default() -> Self {
        Room(256 << 20)
    }
}

/// A pattern that is known to compile.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    text: String,
    /// Maximum size in bytes.
    size: usize,
    compiled: OnceLock<Option<Regex>>,
}

fn compiled(text: &str, size: usize) -> Result<Regex, regex::Error> {
    RegexBuilder::new(text).size_limit(size).build()
}

impl Pattern {
    /// Checks a pattern, and takes its size from the definition's room.
    ///
    /// # Errors
    /// It is malformed or too large.
    pub(super) fn new(text: &str, room: &mut Room) -> Result<Self, regex::Error> {
        let mut result = Err(regex::Error::CompiledTooBig(room.0));
        for size in SIZES.into_iter().filter(|size| *size <= room.0) {
            result = compiled(text, size).map(|_| size);
            if !matches!(result, Err(regex::Error::CompiledTooBig(_))) {
                break;
            }
        }
        let size = result?;
        room.0 -= size;
        Ok(Pattern { text: text.to_owned(), size, compiled: OnceLock::new() })
    }

    /// Returns true if the pattern is somewhere in a text.
    pub(super) fn is_match(&self, text: &str) -> bool {
        let compiled = self.compiled.get_or_init(|| compiled(&self.text, self.size).ok());
        compiled.as_ref().is_some_and(|pattern| pattern.is_match(text))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_scripts_are_a_pattern() {
        // Of OpenShift's definition of ingresses.
        let label = r"[a-zA-Z0-9\p{S}\p{L}]";
        let host = Pattern::new(
            &format!(r"^({label}((-?{label}{{0,62}})?)(\.)){{1,}}([a-zA-Z\p{{L}}]){{2,63}}$"),
            &mut Room::default(),
        )
        .unwrap();
        assert!(host.is_match("grüße.example.com") && !host.is_match("no spaces.example.com"));
        assert!(Pattern::new("(", &mut Room::default()).is_err());
        let mut room = Room::default();
        let large = |i: usize| format!(r"\p{{L}}{{0,62}}{i}");
        let taken = (0..10_000).take_while(|i| Pattern::new(&large(*i), &mut room).is_ok()).count();
        assert!((10..1000).contains(&taken), "{taken} large patterns of one definition");
    }
}
