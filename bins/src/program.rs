//! Settings of a program that are not settings of its cluster.

use std::{
    cell::Cell,
    sync::OnceLock,
    time::{Duration, Instant},
};

/// A program: its name, and its idle work.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    pub(crate) name: &'static str,
    pub(crate) when_idle: Option<fn()>,
}

/// Minimum interval between two calls of the program's idle work by one thread.
const IDLE: Duration = Duration::from_secs(3);

/// Idle work of this process.
static WHEN_IDLE: OnceLock<fn()> = OnceLock::new();

/// Sets the idle work of this process. The first counts.
pub(crate) fn when_idle(work: fn()) {
    let _ = WHEN_IDLE.set(work);
}

/// To be called whenever a thread of a runtime parks, which is often.
#[expect(clippy::disallowed_methods, reason = "threads are idle in real time")]
pub(crate) fn idle() {
    let Some(work) = WHEN_IDLE.get() else { return };
    thread_local! {
        static LAST: Cell<Option<Instant>> = const { Cell::new(None) };
    }
    let now = Instant::now();
    if LAST.get().is_none_or(|last| now - last >= IDLE) {
        LAST.set(Some(now));
        work();
    }
}
