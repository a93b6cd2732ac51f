//! Back-off of failed pods: a pod that a kubelet refuses is not made anew at once, again and again.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// A set, its generation and a node.
pub(super) type Place = (String, i64, String);

/// The last deletion of a failed pod in each place, and the time until the next one.
#[derive(Debug, Default)]
pub(super) struct Backoffs(Mutex<HashMap<Place, (Duration, Timestamp)>>);

fn passed(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or(Duration::ZERO)
}

impl Backoffs {
    /// Returns the time until a failed pod may be deleted.
    pub(super) fn wait(&self, place: &Place, now: Timestamp) -> Duration {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(place).map_or(Duration::ZERO, |(delay, since)| delay.saturating_sub(passed(*since, now)))
    }

    /// Records a deletion: the next one waits for a second, then twice as long each time, at most 15
    /// minutes. After half an hour without a deletion it starts anew.
    pub(super) fn deleted(&self, place: Place, now: Timestamp) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, (_, since)| passed(*since, now) <= LONGEST * 2);
        let next = all.get(&place).map_or(FIRST, |(delay, _)| (*delay * 2).min(LONGEST));
        all.insert(place, (next, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_waits_twice_as_long() {
        let (all, place) = (Backoffs::default(), ("u".to_owned(), 1, "n".to_owned()));
        let mut now = Timestamp::UNIX_EPOCH;
        let mut waits = Vec::new();
        for _ in 0..13 {
            let wait = all.wait(&place, now);
            waits.push(wait.as_secs());
            now += wait;
            assert_eq!(all.wait(&place, now), Duration::ZERO);
            all.deleted(place.clone(), now);
        }
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]);
        assert_eq!(all.wait(&("u".to_owned(), 2, "n".to_owned()), now), Duration::ZERO, "a new template");
        now += LONGEST * 2 + FIRST;
        all.deleted(place.clone(), now);
        assert_eq!(all.wait(&place, now), FIRST);
    }
}
