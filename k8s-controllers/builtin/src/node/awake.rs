//! Durations that count only the time in which this process ran.
//!
//! A process that was stopped, or whose machine slept, comes back to observations of long ago: no renewed
//! lease was seen, but nobody looked either. Time in which nobody looked does not count, nor does a clock
//! that was set.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Longest time between two calls of [`Awake::look`] on one thing.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Gap between two looks from which on the process must have been stopped.
const PAUSED: SignedDuration = SignedDuration::from_secs(25);

/// The beginning of a state, and the last time that it was looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Awake {
    since: Timestamp,
    looked: Timestamp,
}

impl Awake {
    /// Begins a state now.
    pub(super) fn begin(now: Timestamp) -> Self {
        Awake { since: now, looked: now }
    }

    /// Returns for how long the state has held, pauses not counted.
    pub(super) fn look(&mut self, now: Timestamp) -> Duration {
        let gap = now.duration_since(self.looked);
        self.looked = now;
        if gap > PAUSED || gap < SignedDuration::ZERO {
            self.since = self.since.saturating_add(gap).unwrap_or(now);
        }
        Duration::try_from(now.duration_since(self.since)).unwrap_or(Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_and_set_clocks_do_not_count() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let mut awake = Awake::begin(at(1000));
        for (now, want) in [
            (1010, 10),
            (1020, 20),
            // Stopped for a minute, then on.
            (1080, 20),
            (1090, 30),
            // The clock was set back by an hour, and forward again.
            (1090 - 3600, 30),
            (1100 - 3600, 40),
            (1100, 40),
            (1120, 60),
        ] {
            assert_eq!(awake.look(at(now)), Duration::from_secs(want), "{now}");
        }
    }
}
