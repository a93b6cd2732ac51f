//! The trace of a run.

use std::{collections::VecDeque, fmt, path::Path, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::actor::Kind;

/// Entries kept in a run that is not recorded; a failure prints the last of them.
const RECENT: usize = 200;

/// Content of a trace entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum What {
    /// A request and its response.
    Request {
        /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
        verb: String,
        /// Path and query.
        path: String,
        /// HTTP status; 0 if there was no response.
        code: u16,
        /// Request body.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        body: String,
    },
    /// A delivered watch event.
    Event {
        /// Path of the watch.
        path: String,
        /// The event's JSON line.
        line: String,
    },
    /// An injected fault.
    Fault {
        /// Kind and place of the fault.
        what: String,
    },
    /// The n-th start of a program.
    Start(u64),
}

/// One line of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Virtual time since the start of the run, in milliseconds.
    pub at: u64,
    /// Name of the program.
    pub who: Arc<str>,
    /// The request, event, fault or start.
    #[serde(flatten)]
    pub what: What,
}

impl Entry {
    /// Returns true for a successful read: of a part of the lab it says nothing about a program under test.
    fn is_successful_read(&self) -> bool {
        let What::Request { verb, code: 200, .. } = &self.what else { return false };
        matches!(verb.as_str(), "get" | "list" | "watch")
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Entry { at, who, what } = self;
        write!(f, "{:>9}.{:03} {who}: ", at / 1000, at % 1000)?;
        match what {
            What::Request { verb, path, code: 0, .. } => write!(f, "{verb} {path} -> no answer"),
            What::Request { verb, path, code, .. } => write!(f, "{verb} {path} -> {code}"),
            What::Event { path, line } => {
                write!(f, "event of {path}: {}", line.chars().take(120).collect::<String>())
            }
            What::Fault { what } => write!(f, "fault: {what}"),
            What::Start(n) => write!(f, "started ({n})"),
        }
    }
}

/// The trace of a run: the last two hundred entries without successful reads of the built-in controllers, the
/// scheduler and the nodes, or all entries if the lab records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    entries: VecDeque<Entry>,
    whole: bool,
}

/// The first difference of two traces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Zero-based line number.
    pub line: usize,
    /// The left trace's entry; `None` at its end.
    pub left: Option<Entry>,
    /// The right trace's entry; `None` at its end.
    pub right: Option<Entry>,
}

impl Trace {
    pub(crate) fn new(whole: bool) -> Self {
        Trace { entries: VecDeque::new(), whole }
    }

    /// Returns true if bodies and watch events are traced.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }

    /// Adds an entry of a program of some kind.
    pub(crate) fn push(&mut self, entry: Entry, of: Kind) {
        let is_part = matches!(of, Kind::BuiltIn | Kind::Part | Kind::Node);
        if !self.whole && is_part && entry.is_successful_read() {
            return;
        }
        if !self.whole && self.entries.len() >= RECENT {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }

    /// Formats the last entries.
    pub(crate) fn recent(&self) -> String {
        self.entries.iter().rev().take(25).rev().map(|entry| format!("\n{entry}")).collect()
    }

    /// Iterates over the entries.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Encodes the trace as JSON lines.
    #[must_use]
    pub fn to_json_lines(&self) -> String {
        let lines = self.entries.iter().filter_map(|e| serde_json::to_string(e).ok());
        lines.fold(String::new(), |all, line| all + &line + "\n")
    }

    /// Decodes a trace from JSON lines.
    ///
    /// # Errors
    /// A line is not a valid entry.
    pub fn from_json_lines(text: &str) -> Result<Self, serde_json::Error> {
        let entries = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        Ok(Trace { entries, whole: true })
    }

    /// Reads a recorded trace from a file.
    ///
    /// # Errors
    /// The file cannot be read or is not a trace.
    pub fn read(path: impl AsRef<Path>) -> std::io::Result<Self> {
        Self::from_json_lines(&std::fs::read_to_string(path)?).map_err(std::io::Error::other)
    }

    /// Returns the first difference of two traces.
    #[must_use]
    pub fn difference(&self, other: &Trace) -> Option<Difference> {
        let longest = self.entries.len().max(other.entries.len());
        (0..longest).find(|at| self.entries.get(*at) != other.entries.get(*at)).map(|line| Difference {
            line,
            left: self.entries.get(line).cloned(),
            right: other.entries.get(line).cloned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_of_the_labs_parts_do_not_crowd_out_what_matters() {
        let request = |verb: &str, code| Entry {
            at: 0,
            who: "gc".into(),
            what: What::Request { verb: verb.into(), path: "/apis".into(), code, body: String::new() },
        };
        let mut trace = Trace::new(false);
        for (verb, code, of, kept) in [
            ("list", 200, Kind::BuiltIn, 0),
            ("get", 200, Kind::Node, 0),
            ("get", 503, Kind::BuiltIn, 1),
            ("patch", 200, Kind::Part, 2),
            ("get", 200, Kind::Tested, 3),
            ("list", 200, Kind::Test, 4),
        ] {
            trace.push(request(verb, code), of);
            assert_eq!(trace.entries().count(), kept, "{verb} {code} of {of:?}");
        }
    }
}
