//! Paths: their normal form, and the rule that a request's path matches.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use regex::bytes::Regex;

/// Returns the form of a request's path that rules are matched with: percent-encoded characters decoded,
/// `.` and `..` resolved, repeated slashes merged. `None` if it does not begin with a slash, leads above the
/// root, or has a wrong percent-encoding or a NUL.
///
/// ```
/// use k8s_ingress::normalize;
/// assert_eq!(normalize("/shop//a%62/../b/").as_deref(), Some("/shop/b/"));
/// assert_eq!(normalize("/shop/%2e%2e/%2E./admin"), None);
/// ```
#[must_use]
pub fn normalize(path: &str) -> Option<Cow<'_, str>> {
    if !path.starts_with('/') {
        return None;
    }
    let plain = !path.contains('%') && !path.contains("//") && !path.contains("/.") && !path.contains('\0');
    if plain {
        return Some(Cow::Borrowed(path));
    }
    let decoded = decode(path.as_bytes())?;
    let mut out: Vec<&[u8]> = Vec::new();
    let mut is_folder = false;
    for segment in decoded.split(|b| *b == b'/') {
        is_folder = matches!(segment, b"" | b"." | b"..");
        match segment {
            b"" | b"." => {}
            b".." => drop(out.pop()?),
            name => out.push(name),
        }
    }
    let mut whole = vec![b'/'];
    whole.extend(out.join(&b'/'));
    if is_folder && whole.len() > 1 {
        whole.push(b'/');
    }
    Some(Cow::Owned(String::from_utf8_lossy(&whole).into_owned()))
}

fn decode(path: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path.iter();
    while let Some(byte) = rest.next() {
        let mut digit = || rest.next().and_then(|b| char::from(*b).to_digit(16));
        let byte = match byte {
            b'%' => u8::try_from(digit()? * 16 + digit()?).ok()?,
            other => *other,
        };
        if byte == 0 {
            return None;
        }
        out.push(byte);
    }
    Some(out)
}

/// Matching of a path.
#[derive(Clone, Debug)]
pub enum Match {
    /// The whole path.
    Exact(String),
    /// The path or its first elements; a slash at the end is ignored.
    Prefix(String),
    /// The first characters of the path.
    Start(String),
    /// A pattern; the second part is its length for the order of patterns.
    Pattern(Arc<Regex>, usize),
}

/// Rules by path. An exact path goes first, then patterns (the longest first), then the longest prefix.
#[derive(Debug)]
pub struct Paths<T> {
    exact: HashMap<Box<str>, T>,
    patterns: Vec<(Arc<Regex>, usize, T)>,
    /// Without a slash at the end.
    prefixes: HashMap<Box<str>, T>,
    longest_prefix: usize,
    starts: HashMap<Box<str>, T>,
    /// Lengths of `starts`, the longest first.
    lengths: Vec<usize>,
}

impl<T> Default for Paths<T> {
    fn default() -> Self {
        Paths {
            exact: HashMap::new(),
            patterns: Vec::new(),
            prefixes: HashMap::new(),
            longest_prefix: 0,
            starts: HashMap::new(),
            lengths: Vec::new(),
        }
    }
}

impl<T> Paths<T> {
    /// Adds a rule, unless there is one for the same path. Returns the one that is there.
    pub fn add(&mut self, matching: Match, rule: T) -> Result<(), &mut T> {
        use std::collections::hash_map::Entry;
        let (map, key) = match matching {
            Match::Exact(path) => (&mut self.exact, path),
            Match::Prefix(path) => {
                let path = path.trim_end_matches('/').to_owned();
                self.longest_prefix = self.longest_prefix.max(path.len());
                (&mut self.prefixes, path)
            }
            Match::Start(path) => {
                if let Err(at) = self.lengths.binary_search_by(|length| path.len().cmp(length)) {
                    self.lengths.insert(at, path.len());
                }
                (&mut self.starts, path)
            }
            Match::Pattern(pattern, length) => {
                let same = self.patterns.iter().position(|(other, ..)| other.as_str() == pattern.as_str());
                if let Some(at) = same {
                    return Err(&mut self.patterns[at].2);
                }
                let at = self.patterns.partition_point(|(_, other, _)| *other >= length);
                self.patterns.insert(at, (pattern, length, rule));
                return Ok(());
            }
        };
        match map.entry(key.into_boxed_str()) {
            Entry::Occupied(there) => Err(there.into_mut()),
            Entry::Vacant(free) => {
                free.insert(rule);
                Ok(())
            }
        }
    }

    /// Returns the rule of a normalized path.
    pub fn find(&self, path: &str) -> Option<&T> {
        if let Some(found) = self.exact.get(path) {
            return Some(found);
        }
        if let Some((.., found)) = self.patterns.iter().find(|(regex, ..)| regex.is_match(path.as_bytes())) {
            return Some(found);
        }
        match (self.prefix(path), self.start(path)) {
            (Some((prefix, found)), Some((start, _))) if prefix >= start => Some(found),
            (_, Some((_, found))) | (Some((_, found)), None) => Some(found),
            (None, None) => None,
        }
    }

    /// Returns the longest prefix's length, with its slash at the end, and rule.
    fn prefix(&self, path: &str) -> Option<(usize, &T)> {
        if self.prefixes.is_empty() {
            return None;
        }
        let mut left = path.trim_end_matches('/');
        if left.len() > self.longest_prefix {
            // Only what may be long enough for an entry is looked up.
            let slash = left.as_bytes().iter().take(self.longest_prefix + 1).rposition(|b| *b == b'/');
            left = slash.and_then(|at| left.get(..at)).unwrap_or_default();
        }
        loop {
            if let Some(found) = self.prefixes.get(left) {
                return Some((left.len().max(1), found));
            }
            left = left.rfind('/').and_then(|at| left.get(..at))?;
        }
    }

    fn start(&self, path: &str) -> Option<(usize, &T)> {
        self.lengths.iter().find_map(|length| Some((*length, self.starts.get(path.get(..*length)?)?)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{
        prelude::{Strategy, any},
        prop_assert_eq, proptest, sample,
    };

    use super::*;

    fn paths(rules: &[(&str, &str)]) -> Paths<String> {
        let mut paths = Paths::default();
        for (kind, path) in rules {
            let text = (*path).to_owned();
            let matching = match *kind {
                "Exact" => Match::Exact(text),
                "Prefix" => Match::Prefix(text),
                "Pattern" => Match::Pattern(Arc::new(Regex::new(&format!("^{path}")).unwrap()), path.len()),
                _ => Match::Start(text),
            };
            paths.add(matching, format!("{kind} {path}")).unwrap();
        }
        paths
    }

    /// The examples of the documentation of Ingress, "Path types".
    #[test]
    fn the_specifications_examples() {
        for (rules, path, want) in [
            (&[("Prefix", "/")][..], "/any/path", Some("Prefix /")),
            (&[("Exact", "/foo")], "/foo", Some("Exact /foo")),
            (&[("Exact", "/foo")], "/bar", None),
            (&[("Exact", "/foo")], "/foo/", None),
            (&[("Exact", "/foo/")], "/foo", None),
            (&[("Prefix", "/foo")], "/foo", Some("Prefix /foo")),
            (&[("Prefix", "/foo")], "/foo/", Some("Prefix /foo")),
            (&[("Prefix", "/foo/")], "/foo", Some("Prefix /foo/")),
            (&[("Prefix", "/foo/")], "/foo/", Some("Prefix /foo/")),
            (&[("Prefix", "/aaa/bb")], "/aaa/bbb", None),
            (&[("Prefix", "/aaa/bbb")], "/aaa/bbb", Some("Prefix /aaa/bbb")),
            (&[("Prefix", "/aaa/bbb/")], "/aaa/bbb", Some("Prefix /aaa/bbb/")),
            (&[("Prefix", "/aaa/bbb")], "/aaa/bbb/", Some("Prefix /aaa/bbb")),
            (&[("Prefix", "/aaa/bbb")], "/aaa/bbb/ccc", Some("Prefix /aaa/bbb")),
            (&[("Prefix", "/aaa/bbb")], "/aaa/bbbxyz", None),
            (&[("Prefix", "/"), ("Prefix", "/aaa")], "/aaa/ccc", Some("Prefix /aaa")),
            (
                &[("Prefix", "/"), ("Prefix", "/aaa"), ("Prefix", "/aaa/bbb")],
                "/aaa/bbb",
                Some("Prefix /aaa/bbb"),
            ),
            (&[("Prefix", "/"), ("Prefix", "/aaa"), ("Prefix", "/aaa/bbb")], "/ccc", Some("Prefix /")),
            (&[("Prefix", "/aaa")], "/ccc", None),
            (&[("Prefix", "/foo"), ("Exact", "/foo")], "/foo", Some("Exact /foo")),
            // As in ingress-nginx: characters, not elements.
            (&[("Start", "/foo")], "/foobar", Some("Start /foo")),
            (&[("Start", "/foo"), ("Prefix", "/foo/bar")], "/foo/bar/x", Some("Prefix /foo/bar")),
            (&[("Start", "/foo/ba"), ("Prefix", "/foo")], "/foo/bar/x", Some("Start /foo/ba")),
            (&[("Pattern", "/f.*"), ("Prefix", "/foo/bar")], "/foo/bar", Some("Pattern /f.*")),
            (&[("Pattern", "/f.*"), ("Pattern", "/foo/.*")], "/foo/bar", Some("Pattern /foo/.*")),
        ] {
            assert_eq!(paths(rules).find(path).map(String::as_str), want, "{rules:?} {path}");
        }
    }

    #[test]
    fn a_second_rule_for_a_path_is_told() {
        let mut paths = paths(&[("Prefix", "/a"), ("Exact", "/a"), ("Pattern", "/a")]);
        assert_eq!(paths.add(Match::Prefix("/a/".into()), String::new()).unwrap_err(), "Prefix /a");
        assert!(paths.add(Match::Exact("/a/".into()), String::new()).is_ok());
        let same = Match::Pattern(Arc::new(Regex::new("^/a").unwrap()), 2);
        assert_eq!(paths.add(same, String::new()).unwrap_err(), "Pattern /a");
    }

    #[test]
    fn normal_forms() {
        for (path, want) in [
            ("/", Some("/")),
            ("/a/b", Some("/a/b")),
            ("//a///b/", Some("/a/b/")),
            ("/a/./b/.", Some("/a/b/")),
            ("/a/../b", Some("/b")),
            ("/a/..", Some("/")),
            ("/..", None),
            ("/a/%2e%2E/%2e./b", None),
            ("/%61%2fb", Some("/a/b")),
            ("/%zz", None),
            ("/%4", None),
            ("/a%00b", None),
            ("/.well-known/x", Some("/.well-known/x")),
            ("a", None),
            ("*", None),
            ("", None),
        ] {
            assert_eq!(normalize(path).as_deref(), want, "{path}");
        }
    }

    /// The specification in the fewest words: of the rules that match, the exact one, else the longest.
    fn naive(rules: &[(&'static str, String)], path: &str) -> Option<usize> {
        let elements = |path: &str| -> Vec<String> {
            path.trim_end_matches('/').split('/').map(str::to_owned).collect()
        };
        let matches = |(kind, rule): &(&'static str, String)| match *kind {
            "Exact" => rule == path,
            "Prefix" => elements(path).starts_with(&elements(rule)),
            _ => path.starts_with(rule.as_str()),
        };
        let rank = |(kind, rule): &(&'static str, String)| match *kind {
            "Exact" => (true, rule.len(), true),
            "Prefix" => (false, rule.trim_end_matches('/').len().max(1), true),
            _ => (false, rule.len(), false),
        };
        (0..rules.len()).filter(|i| matches(&rules[*i])).max_by_key(|i| rank(&rules[*i]))
    }

    fn a_path() -> impl Strategy<Value = String> {
        proptest::collection::vec(sample::select(vec!["/", "/a", "/b", "/ab", "a"]), 0..5)
            .prop_map(|parts| normalize(&format!("/{}", parts.concat())).unwrap().into_owned())
    }

    proptest! {
        #[test]
        fn lookups_agree_with_the_naive_model(
            rules in proptest::collection::vec(
                (sample::select(vec!["Exact", "Prefix", "Start"]), a_path()), 0..6),
            path in a_path(),
        ) {
            let (mut table, mut kept) = (Paths::default(), Vec::new());
            for (kind, rule) in rules {
                let matching = match kind {
                    "Exact" => Match::Exact(rule.clone()),
                    "Prefix" => Match::Prefix(rule.clone()),
                    _ => Match::Start(rule.clone()),
                };
                if table.add(matching, kept.len()).is_ok() {
                    kept.push((kind, rule));
                }
            }
            prop_assert_eq!(table.find(&path).copied(), naive(&kept, &path));
        }

        #[test]
        fn normal_forms_are_stable_and_stay_below_the_root(path in any::<String>()) {
            if let Some(normal) = normalize(&path) {
                prop_assert_eq!(normal.contains("/../") || normal.contains("//"), false);
                if !normal.contains('%') {
                    let again = normalize(&normal).map(Cow::into_owned);
                    prop_assert_eq!(again.as_deref(), Some(&*normal));
                }
            }
        }
    }
}
