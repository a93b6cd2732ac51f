//! A number that grows, and those who wait for it.
//!
//! As `tokio::sync::watch`, but waiters wake in the order in which they began to wait: under one seed, a cluster in a test does everything in the same
//! order again.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// A number that grows.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    at: AtomicU64,
    grown: Notify,
}

impl Progress {
    pub(crate) fn new(at: u64) -> Self {
        Progress { at: AtomicU64::new(at), grown: Notify::new() }
    }

    pub(crate) fn get(&self) -> u64 {
        self.at.load(Ordering::Acquire)
    }

    /// Lets it grow to `to`, if that is more than it is, and wakes those who wait.
    pub(crate) fn advance(&self, to: u64) {
        if self.at.fetch_max(to, Ordering::AcqRel) < to {
            self.grown.notify_waiters();
        }
    }

    /// Lets it grow by one, and wakes those who wait.
    pub(crate) fn step(&self) {
        self.at.fetch_add(1, Ordering::AcqRel);
        self.grown.notify_waiters();
    }

    /// Waits until it is at least `least`; what it is then.
    pub(crate) async fn reached(&self, least: u64) -> u64 {
        loop {
            let grown = self.grown.notified();
            tokio::pin!(grown);
            // From here on no growth is missed.
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
