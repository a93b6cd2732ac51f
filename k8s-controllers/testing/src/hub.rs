//! State shared by all programs of a run: the fault plan, and the record of requests and faults.

#![expect(clippy::disallowed_methods, reason = "the lab is the owner of virtual time")]

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    actor::{Kind, Process},
    faults::{Fault, Faults, Opportunity, Strike},
    place::{Counts, Place},
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

/// A fault at a chosen request.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    /// Verb of the request; `event` for an event of a watch.
    pub(crate) verb: String,
    /// End of the path; `*` is any text without a slash.
    pub(crate) path: String,
    /// Number among the requests that match, from 1.
    pub(crate) n: u32,
    pub(crate) fault: Fault,
}

impl std::fmt::Display for Chosen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} at {} {} #{}", self.fault, self.verb, self.path, self.n)
    }
}

impl Chosen {
    fn matches(&self, place: &Place) -> bool {
        let (mut wanted, mut found) = (self.path.rsplit('/'), place.path.rsplit('/'));
        // The part before the first slash of a pattern is empty, and is not compared.
        let segments = self.path.matches('/').count();
        place.verb == self.verb
            && (0..segments).all(|_| match (wanted.next(), found.next()) {
                (Some(wanted), Some(found)) => fits(wanted, found),
                _ => false,
            })
    }
}

/// Compares a path's segment with a pattern.
fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            text.char_indices().map(|(at, _)| at).chain([text.len()]).any(|at| fits(rest, &text[at..]))
        }),
    }
}

/// Seed and kinds of a run's faults.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) faults: Faults,
    /// Inject only at these places. Default: at all.
    pub(crate) only: Option<BTreeSet<Place>>,
    /// Every place of `only` must be reached: they are a replay's, and not those of a step of shrinking.
    pub(crate) replays: bool,
    /// Faults at chosen requests.
    pub(crate) chosen: Arc<[Chosen]>,
}

impl Plan {
    /// Returns true if faults are injected at all.
    pub(crate) fn injects(&self) -> bool {
        !self.faults.is_none() || !self.chosen.is_empty()
    }
}

/// Program, verb and path of a request.
type Request = (Arc<str>, String, String);

pub(crate) struct State {
    /// Time of the last attempted write.
    pub(crate) last_write: Instant,
    /// Effective writes of controllers since the cluster last settled.
    pub(crate) written: Vec<Written>,
    /// Injected faults in order.
    pub(crate) injected: Vec<(Place, Fault)>,
    /// Requests and events at which faults of the plan's kinds could have been injected.
    pub(crate) opportunities: usize,
    pub(crate) trace: Trace,
    /// Writes that were based on an older revision than the writer's own last write.
    pub(crate) stale: Vec<String>,
    /// Times at which scripted pods will change state by themselves.
    pub(crate) awaited: Vec<Instant>,
    /// Requests of programs under test that a fault hit and that were not repeated since, with the time of
    /// the fault.
    pub(crate) unrepeated: HashMap<Request, Instant>,
    /// The first request that a program's role forbids.
    pub(crate) forbidden: Option<String>,
    counts: Counts,
    /// By chosen fault: the number of matching requests.
    matched: Vec<u32>,
}

pub(crate) struct Hub {
    pub(crate) plan: Plan,
    pub(crate) begun: Instant,
    armed: AtomicBool,
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
        let matched = vec![0; plan.chosen.len()];
        Hub {
            plan,
            begun: now,
            armed: AtomicBool::new(false),
            state: Mutex::new(State {
                last_write: now,
                written: Vec::new(),
                injected: Vec::new(),
                opportunities: 0,
                trace: Trace::new(whole_trace),
                stale: Vec::new(),
                awaited: Vec::new(),
                unrepeated: HashMap::new(),
                forbidden: None,
                counts: Counts::default(),
                matched,
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

    /// Returns the fault to inject into a request or event, if any. `path` is without its query.
    pub(crate) fn strike(&self, who: &Process, verb: &str, path: String, at: Opportunity) -> Option<Strike> {
        if !who.suffers() || !self.plan.injects() {
            return None;
        }
        let mut state = self.state();
        let place = state.counts.place(who.name(), verb, path);
        let strike =
            self.chosen(&mut state, &place, at).or_else(|| self.by_chance(&mut state, who, &place, at))?;
        state.injected.push((place.clone(), strike.kind));
        if who.kind() == Kind::Tested && at != Opportunity::Event && at != Opportunity::Watch {
            let request = (place.who.clone(), place.verb.clone(), place.path.clone());
            state.unrepeated.insert(request, Instant::now());
        }
        let what = format!("{:?} at {} {} #{}", strike.kind, place.verb, place.path, place.n);
        state.trace.push(self.entry(who, What::Fault { what }), who.kind());
        Some(strike)
    }

    fn chosen(&self, state: &mut State, place: &Place, at: Opportunity) -> Option<Strike> {
        let mut strike = None;
        for (chosen, matched) in self.plan.chosen.iter().zip(&mut state.matched) {
            if chosen.fault.fits(at) && chosen.matches(place) {
                *matched += 1;
                if *matched == chosen.n {
                    strike = Some(Strike::chosen(chosen.fault, self.plan.seed, place));
                }
            }
        }
        strike
    }

    fn by_chance(&self, state: &mut State, who: &Process, place: &Place, at: Opportunity) -> Option<Strike> {
        let starting = who.is_starting() && !self.plan.faults.strike_at_start();
        if !self.is_armed() || (starting && matches!(at, Opportunity::Read | Opportunity::Watch)) {
            return None;
        }
        state.opportunities += 1;
        let strike = self.plan.faults.strike(self.plan.seed, place, at)?;
        let left_out = self.plan.only.as_ref().is_some_and(|only| !only.contains(place));
        (!left_out && state.injected.len() < self.plan.faults.most()).then_some(strike)
    }

    /// Tells that the server answered a request of a program under test.
    pub(crate) fn answered(&self, who: &Process, verb: &str, path: String) {
        let mut state = self.state();
        if !state.unrepeated.is_empty() {
            state.unrepeated.remove(&(who.name().clone(), verb.to_owned(), path));
        }
    }

    /// Forgets the requests of a program whose life has ended.
    pub(crate) fn ended(&self, who: &Process) {
        self.state().unrepeated.retain(|(name, ..), _| name != who.name());
    }

    /// Returns the number of injected faults, and of requests and events that chance could have hit.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let state = self.state();
        (state.injected.len(), state.opportunities)
    }

    /// Returns the chosen faults and places of a replay that were not reached.
    pub(crate) fn missed(&self) -> Vec<String> {
        let state = self.state();
        let chosen =
            self.plan.chosen.iter().zip(&state.matched).filter(|(chosen, matched)| **matched < chosen.n);
        let replayed = self.plan.only.iter().filter(|_| self.plan.replays).flatten();
        let replayed =
            replayed.filter(|place| !state.injected.iter().any(|(injected, _)| injected == *place));
        chosen.map(|(chosen, _)| chosen.to_string()).chain(replayed.map(ToString::to_string)).collect()
    }

    fn entry(&self, who: &Process, what: What) -> Entry {
        let at = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        Entry { at, who: who.name().clone(), what }
    }

    pub(crate) fn note(&self, who: &Process, what: What) {
        let entry = self.entry(who, what);
        self.state().trace.push(entry, who.kind());
    }

    /// Returns the time of the last attempted write, and the time until which something is expected to
    /// happen: a pending step of a scripted pod, or the repetition of a request that a fault hit, which is
    /// waited for as long as `retries`.
    pub(crate) fn calm_since(&self, retries: Duration) -> (Instant, Option<Instant>) {
        let now = Instant::now();
        let mut state = self.state();
        state.awaited.retain(|when| *when > now);
        state.unrepeated.retain(|_, hit| *hit + retries > now);
        let repeated = state.unrepeated.values().max().map(|hit| *hit + retries);
        (state.last_write, state.awaited.iter().copied().chain(repeated).max())
    }

    /// Registers a scripted pod's step after a delay.
    pub(crate) fn await_script(&self, after: Duration) {
        // A little longer, so that the step's writes are done when the time is over.
        if let Some(when) = Instant::now().checked_add(after + Duration::from_millis(20)) {
            self.state().awaited.push(when);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(verb: &str, path: &str) -> Chosen {
        Chosen { verb: verb.into(), path: path.into(), n: 1, fault: Fault::Conflict }
    }

    #[test]
    fn a_pattern_is_compared_by_segments_from_the_end() {
        let place = |path: &str| Place { who: "a".into(), verb: "patch".into(), path: path.into(), n: 1 };
        let status = place("/apis/kube.rs/v1/namespaces/default/documents/samuel/status");
        for path in ["/documents/*/status", "/documents/sam*/status", "/*/status", &status.path, "/s*a*s"] {
            assert!(chosen("patch", path).matches(&status), "{path}");
        }
        for path in ["/documents/*", "/documents/status", "/ocuments/*/status", "/x/apis/*/v1/*/*/*/*/*"] {
            assert!(!chosen("patch", path).matches(&status), "{path}");
        }
        assert!(!chosen("update", "/*/status").matches(&status));
    }
}
