//! Growing delays: 10 s, doubled up to 5 min, forgotten after 10 min without trouble (client-go's
//! `flowcontrol.Backoff` as the kubelet uses it).

use std::time::Duration;

use crate::types::Timestamp;

const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(300);

/// A delay that grows with each failure.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Backoff {
    entry: Option<(Duration, Timestamp)>,
}

impl Backoff {
    /// Returns the time before which no attempt may follow the failure at `event`. `None`: an attempt may be
    /// made at once.
    pub(crate) fn blocked_until(&self, event: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let (delay, updated) = self.entry?;
        if expired(event, updated) {
            return None;
        }
        let until = event.saturating_add(delay).unwrap_or(event);
        (now < until).then_some(until)
    }

    /// Records an attempt that follows the failure at `event`: doubles the delay before the next one.
    pub(crate) fn advance(&mut self, event: Timestamp, now: Timestamp) {
        let delay = match self.entry {
            Some((delay, updated)) if !expired(event, updated) => (delay * 2).min(LONGEST),
            _ => FIRST,
        };
        self.entry = Some((delay, now));
    }

    /// The present delay; zero before the first failure.
    pub(crate) fn delay(&self) -> Duration {
        self.entry.map_or(Duration::ZERO, |(delay, _)| delay)
    }
}

fn expired(event: Timestamp, updated: Timestamp) -> bool {
    Duration::try_from(event.duration_since(updated)).unwrap_or(Duration::ZERO) > LONGEST * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn doubles_to_five_minutes_and_forgets() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.blocked_until(at(0), at(0)), None, "the first restart is immediate");
        let mut now = 0;
        let mut seen = Vec::new();
        for _ in 0..8 {
            backoff.advance(at(now), at(now));
            seen.push(backoff.delay().as_secs());
            let until = backoff.blocked_until(at(now), at(now)).unwrap();
            assert_eq!(backoff.blocked_until(at(now), until), None);
            now = until.as_second();
        }
        assert_eq!(seen, [10, 20, 40, 80, 160, 300, 300, 300]);
        let later = now + 2000;
        assert_eq!(backoff.blocked_until(at(later), at(later)), None);
        backoff.advance(at(later), at(later));
        assert_eq!(backoff.delay().as_secs(), 10);
    }
}
