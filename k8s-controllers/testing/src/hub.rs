//! State shared by all programs of a run: the fault plan, and the record of requests and faults.

#![expect(clippy::disallowed_methods, reason = "the lab is the owner of virtual time")]

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    actor::Process,
    faults::{Faults, Opportunity, Strike},
    trace::{Entry, Trace, What},
};

/// A controller's write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Name of the controller.
    pub who: Arc<str>,
    /// `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// Request path.
    pub path: String,
    /// HTTP status of the response.
    pub code: u16,
}

impl std::fmt::Display for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} {} -> {}", self.who, self.verb, self.path, self.code)
    }
}

/// Seed and kinds of a run's faults.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) faults: Faults,
    /// Inject only at opportunities with these numbers. Default: at all.
    pub(crate) only: Option<BTreeSet<u64>>,
}

pub(crate) struct State {
    /// Time of the last attempted write.
    pub(crate) last_write: Instant,
    /// Effective writes of controllers since the cluster last settled.
    pub(crate) written: Vec<Written>,
    /// Injected faults in order: number and description.
    pub(crate) injected: Vec<(u64, String)>,
    pub(crate) trace: Trace,
    /// Writes that were based on an older revision than the writer's own last write.
    pub(crate) stale: Vec<String>,
    /// Times at which scripted pods will change state by themselves.
    pub(crate) awaited: Vec<Instant>,
}

pub(crate) struct Hub {
    pub(crate) plan: Plan,
    pub(crate) begun: Instant,
    armed: AtomicBool,
    number: AtomicU64,
    state: Mutex<State>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl Hub {
    pub(crate) fn new(plan: Plan, whole_trace: bool) -> Self {
        let now = Instant::now();
        Hub {
            plan,
            begun: now,
            armed: AtomicBool::new(false),
            number: AtomicU64::new(0),
            state: Mutex::new(State {
                last_write: now,
                written: Vec::new(),
                injected: Vec::new(),
                trace: Trace::new(whole_trace),
                stale: Vec::new(),
                awaited: Vec::new(),
            }),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enables fault injection.
    pub(crate) fn arm(&self) {
        self.armed.store(!self.plan.faults.is_none(), Ordering::Relaxed);
    }

    /// Disables fault injection.
    pub(crate) fn disarm(&self) {
        self.armed.store(false, Ordering::Relaxed);
    }

    /// Returns true if faults may be injected.
    pub(crate) fn is_armed(&self) -> bool {
        self.armed.load(Ordering::Relaxed)
    }

    /// Numbers an opportunity and returns the fault to inject there, if any.
    pub(crate) fn strike(
        &self,
        who: &Process,
        at: Opportunity,
        what: impl FnOnce() -> String,
    ) -> Option<Strike> {
        if !who.suffers() || !self.armed.load(Ordering::Relaxed) {
            return None;
        }
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let strike = self.plan.faults.strike(self.plan.seed, number, at)?;
        if self.plan.only.as_ref().is_some_and(|only| !only.contains(&number)) {
            return None;
        }
        let mut state = self.state();
        if state.injected.len() >= self.plan.faults.most() {
            return None;
        }
        let what = format!("{:?} at {} of {}", strike.kind, what(), who.name());
        state.injected.push((number, what.clone()));
        state.trace.push(self.entry(who, What::Fault { number, what }));
        Some(strike)
    }

    fn entry(&self, who: &Process, what: What) -> Entry {
        let at = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        Entry { at, who: who.name().clone(), what }
    }

    pub(crate) fn note(&self, who: &Process, what: What) {
        let entry = self.entry(who, what);
        self.state().trace.push(entry);
    }

    /// Returns the time of the last attempted write, and that of the last pending step of a scripted pod.
    pub(crate) fn calm_since(&self) -> (Instant, Option<Instant>) {
        let now = Instant::now();
        let mut state = self.state();
        state.awaited.retain(|when| *when > now);
        (state.last_write, state.awaited.iter().max().copied())
    }

    /// Registers a scripted pod's step after a delay.
    pub(crate) fn await_script(&self, after: Duration) {
        // A little longer, so that the step's writes are done when the time is over.
        if let Some(when) = Instant::now().checked_add(after + Duration::from_millis(20)) {
            self.state().awaited.push(when);
        }
    }
}
