//! Tells of a program that ends the process: a run that `std::process::exit` cuts off must not look passed.

#![expect(unsafe_code, reason = "registers a function of the C library")]

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{
        Arc, Mutex, Once, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{hub::Hub, place::Replay};

/// Exit code of a process that a program ended, as of a failed test.
const FAILED: i32 = 101;

/// Runs in progress.
static RUNS: Mutex<BTreeMap<u64, Arc<Hub>>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// Number of this thread's run; 0: none. It has no destructor, so that it can be read at the exit.
    static RUN: Cell<u64> = const { Cell::new(0) };
}

/// A run in progress.
pub(crate) struct Noticed {
    number: u64,
    before: u64,
}

/// Notices an exit of the process until the value is dropped.
pub(crate) fn during(hub: Arc<Hub>) -> Noticed {
    static HOOK: Once = Once::new();
    static NEXT: AtomicU64 = AtomicU64::new(1);
    HOOK.call_once(|| {
        // SAFETY: the function is one of this program, and is there at its exit. It does not unwind.
        if unsafe { libc::atexit(at_exit) } != 0 {
            eprintln!("a program that ends the process will not be noticed");
        }
    });
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    RUNS.lock().unwrap_or_else(PoisonError::into_inner).insert(number, hub);
    Noticed { number, before: RUN.replace(number) }
}

impl Drop for Noticed {
    fn drop(&mut self) {
        RUN.set(self.before);
        RUNS.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

/// Prints the run of the thread that ends the process, and changes the exit code.
extern "C" fn at_exit() {
    let own = RUN.get();
    // Another thread ends the process: a test's own, or one that a program started.
    let Ok(runs) = RUNS.try_lock() else { return };
    let Some(hub) = runs.get(&own).or_else(|| runs.values().next()) else { return };
    let (places, trace) = {
        let state = hub.state();
        (state.injected.iter().map(|(place, _)| place.clone()).collect(), state.trace.clone())
    };
    let replay = Replay { seed: hub.plan.seed, places };
    eprintln!(
        "\nthe process is ended during a run of a lab: a program calls std::process::exit\n\nwhat happened \
         last:{}\n\nreplay it with .replay(\"{replay}\")",
        trace.recent()
    );
    drop(runs);
    // SAFETY: ends the process; no other exit handlers are needed by one that failed.
    unsafe { libc::_exit(FAILED) }
}
