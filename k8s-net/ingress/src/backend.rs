//! A Service's endpoints, which take turns.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use k8s_core::meta::ObjectKey;

/// A port of a Service, and its ready endpoints.
#[derive(Debug)]
pub struct Backend {
    /// The Service.
    pub service: ObjectKey,
    /// Name or number of its port, as the Ingress has it.
    pub port: String,
    /// Endpoints that are ready.
    pub endpoints: Vec<SocketAddr>,
    next: AtomicUsize,
}

impl Backend {
    /// Creates a backend. Requests go to its endpoints in turn, beginning with number `first`.
    #[must_use]
    pub fn new(service: ObjectKey, port: String, endpoints: Vec<SocketAddr>, first: usize) -> Self {
        Backend { service, port, endpoints, next: AtomicUsize::new(first) }
    }

    /// Returns the next endpoint that is not in `tried`, or any if all are; `None` without endpoints.
    #[must_use]
    pub fn choose(&self, tried: &[SocketAddr]) -> Option<SocketAddr> {
        let count = self.endpoints.len();
        let start = self.next.fetch_add(1, Ordering::Relaxed) % count.max(1);
        let turn = || self.endpoints.iter().cycle().skip(start).take(count).copied();
        turn().find(|endpoint| !tried.contains(endpoint)).or_else(|| turn().next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_take_turns_and_those_that_failed_are_passed_over() {
        let ends: Vec<SocketAddr> = (1..=3).map(|i| SocketAddr::from(([10, 0, 0, i], 80))).collect();
        let backend = Backend::new(ObjectKey::new("a", "b"), "80".into(), ends.clone(), 7);
        let mut seen: Vec<_> = (0..3).filter_map(|_| backend.choose(&[])).collect();
        seen.sort();
        assert_eq!(seen, ends);
        for _ in 0..5 {
            assert_eq!(backend.choose(&ends[..2]), Some(ends[2]));
            assert!(backend.choose(&ends).is_some(), "all failed: any is tried again");
        }
        assert_eq!(Backend::new(ObjectKey::new("a", "b"), String::new(), Vec::new(), 0).choose(&[]), None);
    }
}
