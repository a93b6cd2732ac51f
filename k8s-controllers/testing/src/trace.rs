//! What happened in a run, line by line.

use std::{collections::VecDeque, fmt, path::Path, sync::Arc};

use serde::{Deserialize, Serialize};

/// How many entries are kept of a run that is not recorded: what a failure shows.
const RECENT: usize = 200;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum What {
    /// A request and its answer.
    Request {
        /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
        verb: String,
        /// Path and query.
        path: String,
        /// The answer's code; 0: there was none.
        code: u16,
        /// What was sent.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        body: String,
    },
    /// A watch event that was delivered.
    Event {
        /// The watch's path.
        path: String,
        /// The event, as it was sent.
        line: String,
    },
    /// A fault that was injected.
    Fault {
        /// The number of its opportunity.
        number: u64,
        /// Its kind and where it struck.
        what: String,
    },
    /// A program began, for the n-th time.
    Start(u64),
}

/// One line of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Milliseconds of the cluster's time since the run began.
    pub at: u64,
    /// Which program.
    pub who: Arc<str>,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

impl Entry {
    /// An answer about what is served: the garbage collector alone asks for forty of them a minute.
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

/// What happened in a run: the last two hundred things (but for discovery that went well), or all of them where the lab was told to record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    entries: VecDeque<Entry>,
    whole: bool,
}

/// Where two traces part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The number of the line, from 0.
    pub line: usize,
    /// What the one has there.
    pub left: Option<Entry>,
    /// What the other has there.
    pub right: Option<Entry>,
}

impl Trace {
    pub(crate) fn new(whole: bool) -> Self {
        Trace { entries: VecDeque::new(), whole }
    }

    /// Whether bodies and watch events are wanted too.
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

    /// Its lines.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// As JSON lines.
    #[must_use]
    pub fn to_json_lines(&self) -> String {
        let lines = self.entries.iter().filter_map(|e| serde_json::to_string(e).ok());
        lines.fold(String::new(), |all, line| all + &line + "\n")
    }

    /// From JSON lines.
    ///
    /// # Errors
    /// The first line that is not one.
    pub fn from_json_lines(text: &str) -> Result<Self, serde_json::Error> {
        let entries = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        Ok(Trace { entries, whole: true })
    }

    /// Reads a trace that was recorded to a file.
    ///
    /// # Errors
    /// When it cannot be read or is not one.
    pub fn read(path: impl AsRef<Path>) -> std::io::Result<Self> {
        Self::from_json_lines(&std::fs::read_to_string(path)?).map_err(std::io::Error::other)
    }

    /// The first line in which two traces differ.
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
