//! Paths of fields in messages. Keys come from users and may be as long as a body: what is kept is bounded.

/// Most bytes of a key that a path shows.
const PART: usize = 256;
/// Most paths that are kept, and most of their bytes.
const MOST: usize = 1000;
const BYTES: usize = 256 << 10;

/// Returns the beginning of a key, as paths show it: at most 256 bytes.
///
/// ```
/// assert_eq!(k8s_schema::paths::part("name"), "name");
/// assert_eq!(k8s_schema::paths::part(&"x".repeat(1_000_000)).len(), 256);
/// ```
#[must_use]
pub fn part(key: &str) -> &str {
    let end = (0..=PART.min(key.len())).rev().find(|at| key.is_char_boundary(*at)).unwrap_or(0);
    key.get(..end).unwrap_or_default()
}

/// Paths of fields, the first 1,000 of them.
///
/// ```
/// use k8s_schema::paths::Paths;
/// let mut paths = Paths::default();
/// (0..5000).for_each(|i| paths.push(&format!("a{i}")));
/// assert_eq!((paths.as_slice()[1].as_str(), paths.more()), ("a1", 4000));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    kept: Vec<String>,
    bytes: usize,
    more: usize,
}

impl Paths {
    /// Adds a path; it is only counted if there are many.
    pub fn push(&mut self, path: &str) {
        if self.kept.len() >= MOST || self.bytes + path.len() > BYTES && !self.kept.is_empty() {
            self.more += 1;
            return;
        }
        self.bytes += path.len();
        self.kept.push(path.to_owned());
    }

    /// Returns the paths that are kept.
    #[must_use]
    pub fn as_slice(&self) -> &[String] {
        &self.kept
    }

    /// Returns the number of those that are not.
    #[must_use]
    pub fn more(&self) -> usize {
        self.more
    }

    /// Returns true if there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Returns a line for each path that is kept, and one that counts the others.
    pub fn lines(&self, line: impl Fn(&str) -> String) -> Vec<String> {
        let mut lines: Vec<String> = self.kept.iter().map(|path| line(path)).collect();
        if self.more > 0 {
            lines.push(format!("and {} more", self.more));
        }
        lines
    }
}
