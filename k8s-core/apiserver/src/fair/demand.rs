//! Demand of a level for seats over time.

use std::time::Duration;

/// Interval of adjustments of the levels' limits.
pub(super) const PERIOD: Duration = Duration::from_secs(10);
/// Part of the smoothed demand that is left after a [`PERIOD`] without demand: its half-life is 5 minutes.
const DECAY: f64 = 0.977;

/// Statistics of the last period.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Statistics {
    pub(super) highest: f64,
    pub(super) average: f64,
    pub(super) deviation: f64,
    /// Falls slowly and rises at once.
    pub(super) smoothed: f64,
}

/// Number of seats that a level could use, weighted by time.
#[derive(Debug, Default)]
pub(super) struct Demand {
    value: f64,
    since: Duration,
    begun: Duration,
    highest: f64,
    sum: f64,
    squares: f64,
    last: Statistics,
}

impl Demand {
    /// Returns demand that is measured from `now` on.
    pub(super) fn new(now: Duration) -> Self {
        Demand { since: now, begun: now, ..Demand::default() }
    }

    /// Sets the current demand.
    pub(super) fn set(&mut self, now: Duration, seats: usize) {
        self.pass(now);
        self.value = seats as f64;
        self.highest = self.highest.max(self.value);
    }

    fn pass(&mut self, now: Duration) {
        let seconds = now.saturating_sub(self.since).as_secs_f64();
        self.sum += self.value * seconds;
        self.squares += self.value * self.value * seconds;
        self.since = now;
    }

    /// Ends a period, which may be longer than [`PERIOD`], and begins the next one.
    pub(super) fn end(&mut self, now: Duration) -> Statistics {
        self.pass(now);
        let seconds = now.saturating_sub(self.begun).as_secs_f64();
        self.last.highest = self.highest;
        if seconds > 0.0 {
            let average = self.sum / seconds;
            let deviation = (self.squares / seconds - average * average).max(0.0).sqrt();
            let envelope = average + deviation;
            let kept = DECAY.powf(seconds / PERIOD.as_secs_f64());
            let smoothed = kept * self.last.smoothed + (1.0 - kept) * envelope;
            self.last.average = average;
            self.last.deviation = deviation;
            self.last.smoothed = smoothed.max(envelope);
        }
        (self.begun, self.highest, self.sum, self.squares) = (now, self.value, 0.0, 0.0);
        self.last
    }

    /// Returns the statistics of the last period.
    pub(super) fn last(&self) -> Statistics {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demand_rises_at_once_and_falls_slowly() {
        let at = Duration::from_secs;
        let mut demand = Demand::new(at(0));
        demand.set(at(0), 8);
        demand.set(at(5), 0);
        let busy = demand.end(at(10));
        assert_eq!((busy.highest, busy.average, busy.deviation, busy.smoothed), (8.0, 4.0, 4.0, 8.0));
        let after = demand.end(at(20));
        assert_eq!((after.highest, after.average), (0.0, 0.0));
        assert!((after.smoothed - 8.0 * DECAY).abs() < 1e-9);
        // A server that nobody asked for a while decays as one that looked every ten seconds.
        assert!((demand.end(at(320)).smoothed - 8.0 * DECAY.powi(31)).abs() < 1e-9);
    }
}
