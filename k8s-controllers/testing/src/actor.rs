//! A program as the run sees it: its name, its role, its lives.

#![expect(clippy::disallowed_methods, reason = "the lab is the owner of virtual time")]

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::role::Recorded;

/// Requests of a program under test at once, and then for each second of virtual time.
const BURST: u32 = 1000;
const PER_SECOND: u32 = 100;

/// Limits the rate of requests in virtual time. Requests take no virtual time, so two programs that undo each
/// other's writes at once would stop the clock, and what ends their quarrel (a late event) would never come.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Requests that may be sent at once, at a time.
    tokens: u32,
    at: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Pace { tokens: BURST, at: now }
    }

    /// Takes a request's turn; returns the time to wait for it.
    fn take(&mut self, now: Instant) -> Duration {
        let each = Duration::from_secs(1) / PER_SECOND;
        let gained = u32::try_from(now.saturating_duration_since(self.at).as_millis() / each.as_millis());
        let gained = gained.unwrap_or(BURST);
        if gained > 0 {
            self.tokens = self.tokens.saturating_add(gained).min(BURST);
            self.at = now;
        }
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                Duration::ZERO
            }
            None => {
                // In a queue of its own: the next one waits for longer.
                self.at += each;
                self.at.saturating_duration_since(now)
            }
        }
    }
}

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
    pace: Mutex<Pace>,
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
            pace: Mutex::new(Pace::new(Instant::now())),
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

    /// Takes a request's turn; returns the virtual time to wait for it.
    pub(crate) fn take_turn(&self) -> Duration {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_burst_requests_take_time() {
        let begun = Instant::now();
        let mut pace = Pace::new(begun);
        assert!((0..BURST).all(|_| pace.take(begun).is_zero()));
        let waits: Vec<_> = (0..3).map(|_| pace.take(begun).as_millis()).collect();
        assert_eq!(waits, [10, 20, 30], "each waits for its own turn");
        let later = begun + Duration::from_millis(80);
        assert!((0..5).all(|_| pace.take(later).is_zero()));
        assert_eq!(pace.take(later).as_millis(), 10);
        let rested = later + Duration::from_secs(3600);
        assert!((0..BURST).all(|_| pace.take(rested).is_zero()), "no more than a burst is saved");
        assert!(!pace.take(rested).is_zero());
    }
}
