//! Liveness, readiness and startup probes.
//!
//! Flow: the pod's worker runs one task per running container and active probe. The task runs the check
//! ([`handler`]), counts results ([`Counter`]), and reports a failure or a changed verdict. Liveness and
//! readiness probes start after the startup probe has succeeded.

pub(crate) mod check;
pub(crate) mod handler;

use k8s_runtime::ContainerId;

use crate::types::*;

/// The question that a probe answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    /// The first word of events.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

/// The result of a probe.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) container: String,
    pub(crate) id: ContainerId,
    pub(crate) kind: Kind,
    /// The reason of this failure.
    pub(crate) failure: Option<String>,
    /// Enough successes or failures in a row.
    pub(crate) verdict: Option<bool>,
}

/// Counts results in a row against the thresholds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counter {
    success_threshold: i32,
    failure_threshold: i32,
    last: Option<bool>,
    row: i32,
}

impl Counter {
    pub(crate) fn new(probe: &Probe) -> Self {
        Counter {
            success_threshold: probe.success_threshold.unwrap_or(1).max(1),
            failure_threshold: probe.failure_threshold.unwrap_or(3).max(1),
            last: None,
            row: 0,
        }
    }

    /// Takes a result; says the verdict where there is one now.
    pub(crate) fn take(&mut self, success: bool) -> Option<bool> {
        if self.last == Some(success) {
            self.row = self.row.saturating_add(1);
        } else {
            self.last = Some(success);
            self.row = 1;
        }
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        (self.row >= threshold).then_some(success)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Probe::default() };
        let mut counter = Counter::new(&probe);
        let results = [true, true, true, false, false, true, false, false, false, false];
        let have: Vec<_> = results.into_iter().map(|r| counter.take(r)).collect();
        let want = [None, Some(true), Some(true), None, None, None, None, None, Some(false), Some(false)];
        assert_eq!(have, want);
    }
}
