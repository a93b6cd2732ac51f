//! The trace of a run.

use std::{collections::VecDeque, fmt, path::Path, sync::Arc};

use serde::{Deserialize, Serialize};

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
        /// Number of its opportunity.
        number: u64,
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
    /// Returns true for successful discovery requests: the garbage collector alone sends forty of them a
    /// minute.
    fn is_discovery(&self) -> bool {
        let What::Request { verb, path, code: 200, .. } = &self.what else { return false };
        let depth = path.split('/').skip(1).count();
        verb == "get"
            && ((path.starts_with("/apis") && depth <= 3) || (path.starts_with("/api") && depth <= 2))
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
            What::Fault { number, what } => write!(f, "fault {number}: {what}"),
            What::Start(n) => write!(f, "started ({n})"),
        }
    }
}

/// The trace of a run: the last two hundred entries without successful discovery, or all entries if the lab
/// records.
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

    pub(crate) fn push(&mut self, entry: Entry) {
        if !self.whole && entry.is_discovery() {
            return;
        }
        if !self.whole && self.entries.len() >= RECENT {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
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
    fn discovery_does_not_crowd_out_what_matters() {
        let request = |path: &str, code| Entry {
            at: 0,
            who: "gc".into(),
            what: What::Request { verb: "get".into(), path: path.into(), code, body: String::new() },
        };
        let mut trace = Trace::new(false);
        for path in ["/api", "/apis", "/api/v1", "/apis/apps", "/apis/apps/v1"] {
            trace.push(request(path, 200));
            assert_eq!(trace.entries().count(), 0, "{path}");
        }
        for kept in [("/api/v1/namespaces/default", 200), ("/apis/apps/v1/deployments", 200), ("/apis", 503)]
        {
            trace.push(request(kept.0, kept.1));
        }
        assert_eq!(trace.entries().count(), 3);
    }
}
