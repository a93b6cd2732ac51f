//! Runs many seeds, and shrinks one that fails.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc, Mutex, Once, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use k8s_core::clock::Clock;
use k8s_store::Store;

use crate::{
    base, exits,
    faults::{Fault, Faults},
    hub::{Chosen, Plan},
    place::{Place, Replay},
    report::Report,
    role::Recorded,
    running::Running,
    setup::Setup,
    shrink,
    trace::Trace,
};

/// Everything that the runs of a lab have in common.
pub(crate) struct Job {
    pub(crate) setup: Arc<Setup>,
    pub(crate) image: Store,
    pub(crate) faults: Faults,
    pub(crate) only: Option<BTreeSet<Place>>,
    pub(crate) chosen: Arc<[Chosen]>,
    pub(crate) expected: Option<PathBuf>,
}

/// Result of a successful run.
#[derive(Default)]
struct Passed {
    faults: usize,
    opportunities: usize,
    recorded: Recorded,
    name: String,
    trace: Trace,
}

/// Result of a failed run.
pub(crate) struct Failed {
    seed: u64,
    message: String,
    injected: Vec<(Place, Fault)>,
    trace: Trace,
}

thread_local! {
    /// Panics on this thread are expected: the hook stores instead of printing them.
    static QUIET: Cell<bool> = const { Cell::new(false) };
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Installs a panic hook that is silent during runs: the lab reports a failure once, not once per shrinking
/// step.
fn quieten() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if QUIET.with(Cell::get) {
                SAID.with(|said| *said.borrow_mut() = Some(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
        .unwrap_or_else(|| "panicked".into())
}

/// Runs `work` and returns a panic as its message: unless they are allowed, also one that a task or the
/// program itself caught.
fn caught(allowed: bool, work: impl FnOnce()) -> Result<(), String> {
    quieten();
    SAID.take();
    let before = QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(before);
    let said = SAID.take();
    match result {
        Ok(()) => said.filter(|_| !allowed).map_or(Ok(()), |said| Err(format!("in a task: {said}"))),
        Err(panic) => {
            let text = text_of(&*panic);
            // The hook's text has the location as well, if it belongs to the same panic.
            Err(said.filter(|said| said.contains(&text)).unwrap_or(text))
        }
    }
}

impl Job {
    fn one(
        &self,
        seed: u64,
        only: Option<&BTreeSet<Place>>,
        test: &impl AsyncFn(Running),
    ) -> Result<Passed, Failed> {
        let seen = RefCell::new(None);
        let mut passed = Passed::default();
        let result = caught(self.setup.panics, || {
            base::block_on(seed, async {
                let plan = Plan {
                    seed,
                    faults: self.faults.clone(),
                    only: only.cloned(),
                    replays: self.only.is_some(),
                    chosen: self.chosen.clone(),
                };
                let clock = Clock::starting_at(base::epoch());
                base::follow(&clock);
                let lab = Running::begin(self.setup.clone(), self.image.fork(), plan, clock).await;
                let _noticed = exits::during(lab.hub());
                *seen.borrow_mut() = Some(lab.hub());
                test(lab.clone()).await;
                (passed.recorded, passed.name) = lab.recorded();
                (passed.faults, passed.opportunities) = lab.hub().counts();
                lab.finish().await;
            });
        });
        let hub = seen.into_inner();
        let trace = hub.as_ref().map(|hub| hub.state().trace.clone()).unwrap_or_default();
        let result = result.and_then(|()| self.compare(&trace));
        passed.trace = trace.clone();
        result.map(|()| passed).map_err(|message| {
            let injected = hub.map(|hub| hub.state().injected.clone()).unwrap_or_default();
            Failed { seed, message, injected, trace }
        })
    }

    fn record(&self, trace: &Trace) -> Result<(), String> {
        let Some(path) = &self.setup.record else { return Ok(()) };
        std::fs::write(path, trace.to_json_lines()).map_err(|e| format!("write {}: {e}", path.display()))
    }

    /// Compares a trace with the recorded one.
    fn compare(&self, trace: &Trace) -> Result<(), String> {
        let Some(path) = &self.expected else { return Ok(()) };
        let expected = Trace::read(path).map_err(|e| format!("read {}: {e}", path.display()))?;
        let Some(difference) = expected.difference(trace) else { return Ok(()) };
        let show = |entry: &Option<crate::trace::Entry>| {
            entry.as_ref().map_or("nothing".into(), ToString::to_string)
        };
        Err(format!(
            "line {} of {} is not what happened:\n  recorded {}\n  happened {}",
            difference.line + 1,
            path.display(),
            show(&difference.left),
            show(&difference.right)
        ))
    }
}

/// Runs all seeds on several threads. Panics with the first failure, shrunk.
pub(crate) fn run(
    job: &Job,
    seeds: Range<u64>,
    threads: usize,
    test: &(impl AsyncFn(Running) + Sync),
) -> Report {
    let (next, failed_at) = (AtomicU64::new(seeds.start), AtomicU64::new(u64::MAX));
    let failed: Mutex<Option<Failed>> = Mutex::new(None);
    let passed: Mutex<(usize, Passed)> = Mutex::default();
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || seed > failed_at.load(Ordering::Relaxed) {
                return;
            }
            match job.one(seed, job.only.as_ref(), test) {
                Ok(one) => {
                    job.record(&one.trace).unwrap_or_else(|e| panic!("{e}"));
                    let mut all = passed.lock().unwrap_or_else(PoisonError::into_inner);
                    all.0 += 1;
                    all.1.faults += one.faults;
                    all.1.opportunities += one.opportunities;
                    all.1.recorded.merge(&one.recorded);
                    all.1.name = one.name;
                }
                Err(one) => {
                    let mut lowest = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    failed_at.fetch_min(seed, Ordering::Relaxed);
                    if lowest.as_ref().is_none_or(|f| f.seed > seed) {
                        *lowest = Some(one);
                    }
                }
            }
        }
    };
    let count = usize::try_from(seeds.end.saturating_sub(seeds.start)).unwrap_or(usize::MAX);
    let threads = threads.min(count);
    if threads <= 1 || job.setup.record.is_some() {
        work();
    } else {
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(work);
            }
        });
    }
    if let Some(failed) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        let all = failed.injected.len();
        // No shrinking: a trace would differ with fewer faults, and explicit faults are meant to be run as
        // given.
        let is_known = job.expected.is_some() || job.only.is_some();
        let failed = if is_known { failed } else { smallest(job, failed, test) };
        // A trace is most useful for a failed run.
        job.record(&failed.trace).unwrap_or_else(|e| panic!("{e}"));
        panic!("{}", failed.report(all));
    }
    let (runs, passed) = passed.into_inner().unwrap_or_else(PoisonError::into_inner);
    // The seed of a replay or a recorded trace is not the author's choice.
    let is_given = job.only.is_some() || job.expected.is_some() || job.setup.record.is_some();
    assert!(passed.faults > 0 || job.faults.is_none() || is_given, "{}", untested(runs, &passed));
    Report { runs, faults: passed.faults, needed_role: passed.recorded.role(&passed.name, false) }
}

/// Explains runs for which faults were asked and that had none.
fn untested(runs: usize, passed: &Passed) -> String {
    let why = match passed.opportunities {
        0 => {
            "no program made a request while faults were on. They begin with the test's first write (by any \
             client of the lab), hit programs that were added to the lab, and not those whose clients were made \
             elsewhere."
        }
        _ => "so few requests were made that chance spared them all: run more seeds.",
    };
    let count = passed.opportunities;
    format!("faults were asked for, but none struck in {runs} runs ({count} requests and events): {why}")
}

/// Shrinks a failure to a minimal set of faults of the same seed.
fn smallest(job: &Job, failed: Failed, test: &impl AsyncFn(Running)) -> Failed {
    let seed = failed.seed;
    let places: Vec<Place> = failed.injected.iter().map(|(place, _)| place.clone()).collect();
    let mut best = failed;
    shrink::smallest(
        places,
        &mut |faults| match job.one(seed, Some(&faults.iter().cloned().collect()), test) {
            Ok(_) => false,
            Err(failed) => {
                best = failed;
                true
            }
        },
    );
    best
}

impl Failed {
    fn report(&self, all: usize) -> String {
        let Failed { seed, message, injected, trace } = self;
        let mut text = format!("seed {seed} fails");
        match injected.len() {
            0 if all == 0 => text += ":",
            0 => text += &format!(" without any of its {all} faults too:"),
            n => text += &format!(" with {n} of its {all} faults:"),
        }
        for (place, fault) in injected {
            let Place { who, verb, path, n } = place;
            text += &format!("\n  {fault:?} at {verb} {path} #{n} of {who}");
        }
        text += &format!("\n\n{message}\n\nwhat happened last:");
        text += &trace.recent();
        let replay =
            Replay { seed: *seed, places: injected.iter().map(|(place, _)| place.clone()).collect() };
        text += &format!("\n\nreplay it with .replay(\"{replay}\")");
        if !injected.is_empty() {
            text += &format!("\nkeep it as a test with .seeds({seed}..{})", seed.saturating_add(1));
        }
        for (Place { verb, path, n, .. }, fault) in injected {
            text += &match n {
                1 => format!("\n  .fail(\"{verb}\", \"{path}\", Fault::{fault:?})"),
                n => format!("\n  .fail_nth({n}, \"{verb}\", \"{path}\", Fault::{fault:?})"),
            };
        }
        text
    }
}

/// Runs once in an existing cluster.
pub(crate) fn run_existing(
    kubeconfig: Option<PathBuf>,
    setup: Setup,
    seed: u64,
    test: &impl AsyncFn(Running),
) -> Report {
    let client = base::existing(kubeconfig).unwrap_or_else(|e| panic!("the existing cluster: {e}"));
    base::real_runtime().block_on(async {
        let lab = Running::join(Arc::new(setup), client, seed).await;
        test(lab.clone()).await;
        let (recorded, name) = lab.recorded();
        lab.finish().await;
        Report { runs: 1, faults: 0, needed_role: recorded.role(&name, false) }
    })
}
