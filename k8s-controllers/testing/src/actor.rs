//! A program as the run sees it: its name, its role, its lives.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

use crate::role::Recorded;

/// Role of a program in the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The test itself, or a node.
    Bystander,
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
    pub(crate) recorded: Mutex<Recorded>,
    /// Revision of the program's last write of each object.
    pub(crate) own: Mutex<HashMap<String, u64>>,
}

impl Process {
    pub(crate) fn new(name: &str, kind: Kind) -> Self {
        Process {
            name: name.into(),
            kind,
            life: AtomicU64::new(0),
            crashed: Notify::new(),
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

    pub(crate) fn recorded(&self) -> Recorded {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the current life.
    pub(crate) fn crash(&self) {
        self.life.fetch_add(1, Ordering::Relaxed);
        self.own.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.crashed.notify_one();
    }
}
