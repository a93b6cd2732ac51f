//! A program as the run sees it: its name, its role, its lives.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

use crate::role::Recorded;

/// Role of a program in the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The test itself.
    Test,
    /// A node.
    Node,
    /// The scheduler.
    Part,
    /// A built-in controller.
    BuiltIn,
    /// A controller under test.
    Tested,
}

/// A program that calls the API server, across restarts.
#[derive(Debug)]
pub(crate) struct Process {
    name: Arc<str>,
    kind: Kind,
    /// Number of restarts; requests of an earlier life are aborted.
    pub(crate) life: AtomicU64,
    pub(crate) crashed: Notify,
    /// False until the first successful list or watch of the current life, or its first write.
    started: AtomicBool,
    /// User whose permissions the program has. `None`: a cluster administrator.
    pub(crate) user: Option<String>,
    pub(crate) recorded: Mutex<Recorded>,
    /// Revision of the program's last write of each object.
    pub(crate) own: Mutex<HashMap<String, u64>>,
}

impl Process {
    pub(crate) fn new(name: &str, kind: Kind, user: Option<String>) -> Self {
        Process {
            name: name.into(),
            kind,
            life: AtomicU64::new(0),
            crashed: Notify::new(),
            started: AtomicBool::new(false),
            user,
            recorded: Mutex::default(),
            own: Mutex::default(),
        }
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns true if faults are injected into the program's requests.
    pub(crate) fn suffers(&self) -> bool {
        matches!(self.kind, Kind::BuiltIn | Kind::Tested)
    }

    /// Returns true for a program under test that has neither listed nor written in its current life.
    pub(crate) fn is_starting(&self) -> bool {
        self.kind == Kind::Tested && !self.started.load(Ordering::Relaxed)
    }

    /// Ends the start of the current life.
    pub(crate) fn started(&self) {
        self.started.store(true, Ordering::Relaxed);
    }

    pub(crate) fn recorded(&self) -> Recorded {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the current life.
    pub(crate) fn crash(&self) {
        self.life.fetch_add(1, Ordering::Relaxed);
        self.started.store(false, Ordering::Relaxed);
        self.own.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.crashed.notify_one();
    }
}
