//! A number that only grows, and tasks that wait until it is large enough.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let revision = k8s_progress::Progress::new(3);
//! assert_eq!(revision.reached(2).await, 3);
//! revision.advance(7);
//! assert_eq!(revision.reached(5).await, 7);
//! # }
//! ```
//!
//! Like `tokio::sync::watch`, with one more guarantee: waiters wake in the order in which they began to wait.
//! With one seed, a cluster in a test therefore does everything in the same order again.
//!
//! Not here: numbers that fall, channels, values of other types.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests measure time and start tasks"))]

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// A number that only grows. Shared by reference; every method takes `&self`.
#[derive(Debug, Default)]
pub struct Progress {
    at: AtomicU64,
    grown: Notify,
}

impl Progress {
    /// Creates a number that starts at `at`.
    #[must_use]
    pub fn new(at: u64) -> Self {
        Progress { at: AtomicU64::new(at), grown: Notify::new() }
    }

    /// Returns the number as it is now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.at.load(Ordering::Acquire)
    }

    /// Raises the number to `to` and wakes waiters; does nothing if it is there already.
    ///
    /// ```
    /// let revision = k8s_progress::Progress::new(3);
    /// revision.advance(7);
    /// revision.advance(5); // it never falls
    /// revision.step();
    /// assert_eq!(revision.get(), 8);
    /// ```
    pub fn advance(&self, to: u64) {
        if self.at.fetch_max(to, Ordering::AcqRel) < to {
            self.grown.notify_waiters();
        }
    }

    /// Raises the number by one and wakes waiters.
    pub fn step(&self) {
        self.at.fetch_add(1, Ordering::AcqRel);
        self.grown.notify_waiters();
    }

    /// Waits until the number is at least `least`, and returns it.
    pub async fn reached(&self, least: u64) -> u64 {
        loop {
            let grown = self.grown.notified();
            tokio::pin!(grown);
            // Registers before the number is read: no growth is missed from here on.
            grown.as_mut().enable();
            let at = self.get();
            if at >= least {
                return at;
            }
            grown.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn waiters_wake_in_order_and_miss_nothing() {
        let progress = Arc::new(Progress::new(3));
        assert_eq!(progress.reached(2).await, 3);
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for i in 0..50 {
            let (progress, order) = (progress.clone(), order.clone());
            tasks.push(tokio::spawn(async move {
                progress.reached(10).await;
                order.lock().unwrap().push(i);
            }));
        }
        tokio::task::yield_now().await;
        progress.advance(5);
        tokio::task::yield_now().await;
        assert!(order.lock().unwrap().is_empty());
        progress.advance(12);
        progress.advance(11);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), (0..50).collect::<Vec<_>>());
        assert_eq!(progress.get(), 12);
    }
}
