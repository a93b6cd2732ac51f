//! Values of annotations, as ingress-nginx spells them.

use std::{collections::BTreeMap, time::Duration};

use crate::patterns::Patterns;

/// Prefixes of annotations, the current one and that of before version 0.9.
pub(crate) const PREFIXES: [&str; 2] = ["nginx.ingress.kubernetes.io/", "ingress.kubernetes.io/"];

/// Something about an Ingress that its owner should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Reason of the event.
    pub reason: &'static str,
    /// Message of the event.
    pub message: String,
}

impl Problem {
    pub(crate) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Problem { reason, message: message.into() }
    }
}

/// The annotations of an Ingress, and what was wrong with them.
pub(crate) struct Reader<'a> {
    pub(crate) values: BTreeMap<&'a str, &'a str>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) patterns: &'a Patterns,
    /// Annotations that were asked for.
    pub(crate) read: Vec<&'static str>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(annotations: &'a BTreeMap<String, String>, patterns: &'a Patterns) -> Self {
        let mut values = BTreeMap::new();
        for prefix in PREFIXES.iter().rev() {
            let own = annotations.iter().filter_map(|(key, value)| Some((key.strip_prefix(prefix)?, value)));
            values.extend(own.map(|(key, value)| (key, value.trim())));
        }
        Reader { values, problems: Vec::new(), patterns, read: Vec::new() }
    }

    pub(crate) fn text(&mut self, name: &'static str) -> Option<&'a str> {
        self.read.push(name);
        self.values.get(name).copied().filter(|value| !value.is_empty())
    }

    pub(crate) fn wrong(&mut self, name: &str, why: &str) {
        let value = self.values.get(name).copied().unwrap_or_default();
        let value: String = value.chars().take(100).collect();
        let message = format!("annotation {}{name}: {value:?}: {why}", PREFIXES[0]);
        self.problems.push(Problem::new("InvalidAnnotation", message));
    }

    /// Returns a value that `parse` accepts; another is a problem.
    pub(crate) fn parsed<T>(
        &mut self,
        name: &'static str,
        expected: &str,
        parse: impl FnOnce(&'a str) -> Option<T>,
    ) -> Option<T> {
        let value = self.text(name)?;
        let parsed = parse(value);
        if parsed.is_none() {
            self.wrong(name, &format!("must be {expected}"));
        }
        parsed
    }

    pub(crate) fn flag(&mut self, name: &'static str) -> Option<bool> {
        self.parsed(name, "true or false", |value| match &*value.to_ascii_lowercase() {
            "true" | "1" | "t" => Some(true),
            "false" | "0" | "f" => Some(false),
            _ => None,
        })
    }

    pub(crate) fn seconds(&mut self, name: &'static str) -> Option<Duration> {
        self.parsed(name, "a number of seconds from 1 to 86400", |value| {
            let number = value.strip_suffix('s').unwrap_or(value).parse::<u64>().ok()?;
            (1..=86400).contains(&number).then(|| Duration::from_secs(number))
        })
    }

    pub(crate) fn number(&mut self, name: &'static str) -> Option<u32> {
        self.parsed(name, "a number from 0 to 1000000", |value| {
            value.parse::<u32>().ok().filter(|n| *n <= 1_000_000)
        })
    }
}
