//! What all programs of one run share: the plan of its faults, and what is seen of it.

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
    faults::{Faults, Opportunity, Strike},
    trace::{Entry, Trace, What},
    wire::Process,
};

/// A write that a controller made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Which controller.
    pub who: Arc<str>,
    /// `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// What was written.
    pub path: String,
    /// The answer's code.
    pub code: u16,
}

impl std::fmt::Display for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} {} -> {}", self.who, self.verb, self.path, self.code)
    }
}

/// Where the faults of a run come from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) faults: Faults,
    /// Only at opportunities with these numbers.
    pub(crate) only: Option<BTreeSet<u64>>,
}

pub(crate) struct State {
    /// When somebody last tried to write.
    pub(crate) last_write: Instant,
    /// What controllers wrote since the cluster last settled.
    pub(crate) written: Vec<Written>,
    /// The faults of this run, in order.
    pub(crate) injected: Vec<(u64, String)>,
    pub(crate) trace: Trace,
    /// Writes from an older state than the writer's own last write.
    pub(crate) stale: Vec<String>,
    /// When scripted nodes will next do something that ends by itself.
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

    /// Lets faults strike from now on.
    pub(crate) fn arm(&self) {
        self.armed.store(!self.plan.faults.is_none(), Ordering::Relaxed);
    }

    /// Lets none strike.
    pub(crate) fn disarm(&self) {
        self.armed.store(false, Ordering::Relaxed);
    }

    /// Whether faults may still strike.
    pub(crate) fn is_armed(&self) -> bool {
        self.armed.load(Ordering::Relaxed)
    }

    /// Numbers an opportunity and says whether a fault strikes there.
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

    /// How long nobody has tried to write, and until when scripted nodes will do something.
    pub(crate) fn calm_since(&self) -> (Instant, Option<Instant>) {
        let now = Instant::now();
        let mut state = self.state();
        state.awaited.retain(|when| *when > now);
        (state.last_write, state.awaited.iter().max().copied())
    }

    /// A scripted node will do something after so long.
    pub(crate) fn await_script(&self, after: Duration) {
        // A moment more, so that it is done when that is over.
        if let Some(when) = Instant::now().checked_add(after + Duration::from_millis(20)) {
            self.state().awaited.push(when);
        }
    }
}
