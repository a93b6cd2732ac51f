//! Suggested pause of rejected clients.

use std::time::Duration;

/// Longest pause, seconds.
const LONGEST: u64 = 32;

/// Number of seconds in `Retry-After`, which follows the number of rejections: it doubles while they
/// are many, and falls by one while they are few.
#[derive(Debug)]
pub(super) struct RetryAfter {
    seconds: u64,
    since: Duration,
    rejected: u64,
}

impl RetryAfter {
    pub(super) fn new(now: Duration) -> Self {
        RetryAfter { seconds: 1, since: now, rejected: 0 }
    }

    /// Counts a rejection. Returns its pause in seconds, 1 to 32.
    pub(super) fn reject(&mut self, now: Duration) -> u64 {
        if now.saturating_sub(self.since).as_secs() >= self.seconds {
            if self.rejected >= 3 * self.seconds {
                self.seconds = (self.seconds * 2).min(LONGEST);
            } else if self.rejected < self.seconds && self.seconds > 1 {
                self.seconds -= 1;
            }
            (self.since, self.rejected) = (now, 0);
        }
        self.rejected += 1;
        self.seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_follows_the_rejections() {
        let mut retry = RetryAfter::new(Duration::ZERO);
        let mut at = |ms: u64| retry.reject(Duration::from_millis(ms));
        for second in 0..60 {
            for i in 0..200 {
                at(second * 1000 + i);
            }
        }
        assert_eq!(at(60_000), 32, "many");
        let few = (0..10).map(|i| at(100_000 + i * 40_000)).last();
        assert_eq!(few, Some(23), "one less for each look");
    }
}
