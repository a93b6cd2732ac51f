//! Patterns of texts. They are compiled when they are first used: definitions have many, and a class of letters
//! of all scripts takes megabytes.

use std::{fmt, sync::OnceLock};

use regex::{Regex, RegexBuilder};

/// Maximum size of a compiled pattern in bytes.
const SIZE: usize = 16 << 20;

/// A pattern that is known to compile.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    text: String,
    compiled: OnceLock<Option<Regex>>,
}

fn compiled(text: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(text).size_limit(SIZE).build()
}

impl Pattern {
    /// Checks a pattern.
    ///
    /// # Errors
    /// It is malformed or too large.
    pub(super) fn new(text: &str) -> Result<Self, regex::Error> {
        compiled(text)?;
        Ok(Pattern { text: text.to_owned(), compiled: OnceLock::new() })
    }

    /// Returns true if the pattern is somewhere in a text.
    pub(super) fn is_match(&self, text: &str) -> bool {
        let compiled = self.compiled.get_or_init(|| compiled(&self.text).ok());
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
        let host =
            Pattern::new(&format!(r"^({label}((-?{label}{{0,62}})?)(\.)){{1,}}([a-zA-Z\p{{L}}]){{2,63}}$"))
                .unwrap();
        assert!(host.is_match("grüße.example.com") && !host.is_match("no spaces.example.com"));
        assert!(Pattern::new("(").is_err());
    }
}
