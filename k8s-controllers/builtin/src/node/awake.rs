//! Durations that count only the time in which this process ran.
//!
//! After a stopped process or a suspended machine resumes, its last observations are old: no lease renewal
//! was seen because nobody looked. Pauses do not count, nor do clock adjustments.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Maximum interval between two calls of [`Awake::look`].
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Gap between two calls that counts as a pause of the process.
const PAUSED: SignedDuration = SignedDuration::from_secs(25);

/// Start of a state, and the time of the last observation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Awake {
    since: Timestamp,
    looked: Timestamp,
}

impl Awake {
    /// Starts a state at `now`.
    pub(super) fn begin(now: Timestamp) -> Self {
        Awake { since: now, looked: now }
    }

    /// Returns the duration of the state without pauses.
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
            // Paused for a minute, then running again.
            (1080, 20),
            (1090, 30),
            // The clock is set back by an hour, then forward.
            (1090 - 3600, 30),
            (1100 - 3600, 40),
            (1100, 40),
            (1120, 60),
        ] {
            assert_eq!(awake.look(at(now)), Duration::from_secs(want), "{now}");
        }
    }
}
