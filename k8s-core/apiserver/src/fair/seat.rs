//! A request's seat in its level.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::Fairness;

/// Time that a request has waited for its client: for the rest of its body, or until its answer is read.
#[derive(Debug, Default)]
pub(super) struct Idle {
    /// Microseconds of the server's time since which it waits, plus one; 0 while the server works.
    since: AtomicU64,
    /// Microseconds of waits that have ended.
    total: AtomicU64,
}

impl Idle {
    pub(super) fn begin(&self, now: Duration) {
        let _ = self.since.compare_exchange(0, micros(now) + 1, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub(super) fn end(&self, now: Duration) {
        let since = self.since.swap(0, Ordering::Relaxed);
        if since > 0 {
            self.total.fetch_add((micros(now) + 1).saturating_sub(since), Ordering::Relaxed);
        }
    }

    /// Returns the sum of all waits.
    pub(super) fn time(&self, now: Duration) -> Duration {
        let total = self.total.load(Ordering::Relaxed);
        let current = match self.since.load(Ordering::Relaxed) {
            0 => 0,
            since => (micros(now) + 1).saturating_sub(since),
        };
        Duration::from_micros(total + current)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX - 1)
}

/// A place in a level, until it is dropped or left.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(super) fair: Arc<Fairness>,
    pub(super) level: Arc<str>,
    pub(super) id: u64,
    pub(super) idle: Arc<Idle>,
    pub(super) left: AtomicBool,
}

impl Seat {
    /// Gives the seat back; the request's work goes on. Later calls change nothing.
    pub(crate) fn leave(&self) {
        if !self.left.swap(true, Ordering::AcqRel) {
            self.fair.free(&self.level, self.id);
        }
    }

    /// Notes that the request waits for its client.
    pub(crate) fn waits(&self) {
        self.idle.begin(self.fair.now());
    }

    /// Notes that the server works on the request.
    pub(crate) fn works(&self) {
        self.idle.end(self.fair.now());
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}
