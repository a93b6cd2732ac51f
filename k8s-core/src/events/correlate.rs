//! Event correlation and rate limits.
//!
//! As upstream's `EventCorrelator`: a repeated event increments a count; of similar events (equal except for
//! the message) the eleventh within ten minutes and all later ones are combined, and the message says so;
//! each object has a burst of 25 events and then one every five minutes.
//!
//! Pure; its memory is bounded.

use std::{collections::HashMap, collections::HashSet, hash::Hash, time::Duration};

use jiff::Timestamp;

/// Number of similar events that are recorded separately.
const SIMILAR: usize = 10;
/// Time window of similar events.
const TOGETHER: Duration = Duration::from_secs(600);
/// Burst of events per object.
const BURST: f64 = 25.0;
/// Seconds per further event.
const REFILL: f64 = 300.0;
/// Maximum size of each map; a full map is cleared.
const REMEMBERED: usize = 4096;
const COMBINED: &str = "(combined from similar events): ";

/// An event without its message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Subject {
    pub(super) object: Object,
    pub(super) warning: bool,
    pub(super) reason: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Object {
    pub(super) namespace: String,
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) field: String,
}

/// Decision about an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Drop it: over the rate limit.
    Drop,
    /// Create an event with this message.
    New(String),
    /// Update the count and message of this event.
    Again { name: String, count: i32, message: String },
}

/// Identity of a recorded event; without message for combined ones.
type Same = (Subject, Option<String>);

struct Similar {
    messages: HashSet<String>,
    last: Timestamp,
}

struct Bucket {
    tokens: f64,
    last: Timestamp,
}

#[derive(Default)]
pub(super) struct Correlator {
    similar: HashMap<Subject, Similar>,
    known: HashMap<Same, (String, i32)>,
    buckets: HashMap<Object, Bucket>,
}

fn seconds_between(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}

/// Clears a full map.
fn make_room<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    if map.len() >= REMEMBERED {
        map.clear();
    }
}

impl Correlator {
    /// Decides about an event, and returns its identity for [`Correlator::wrote`].
    pub(super) fn judge(&mut self, subject: Subject, message: String, now: Timestamp) -> (Verdict, Same) {
        make_room(&mut self.similar);
        let fresh = || Similar { messages: HashSet::new(), last: now };
        let similar = self.similar.entry(subject.clone()).or_insert_with(fresh);
        if seconds_between(similar.last, now) > TOGETHER.as_secs_f64() {
            *similar = fresh();
        }
        similar.last = now;
        similar.messages.insert(message.clone());
        let many = similar.messages.len() > SIMILAR;
        if many {
            // The set stays full without growing.
            similar.messages.remove(&message);
        }
        let message = if many { format!("{COMBINED}{message}") } else { message };
        let same = (subject.clone(), (!many).then(|| message.clone()));
        let verdict = match self.known.get_mut(&same) {
            Some((name, count)) => {
                *count = count.saturating_add(1);
                Verdict::Again { name: name.clone(), count: *count, message }
            }
            None => Verdict::New(message),
        };
        if self.may(&subject.object, now) { (verdict, same) } else { (Verdict::Drop, same) }
    }

    /// Takes a token from an object's bucket.
    fn may(&mut self, object: &Object, now: Timestamp) -> bool {
        make_room(&mut self.buckets);
        let bucket = self.buckets.entry(object.clone()).or_insert(Bucket { tokens: BURST, last: now });
        bucket.tokens = (bucket.tokens + seconds_between(bucket.last, now) / REFILL).min(BURST);
        bucket.last = now;
        let may = bucket.tokens >= 1.0;
        if may {
            bucket.tokens -= 1.0;
        }
        may
    }

    /// Remembers a written event.
    pub(super) fn wrote(&mut self, same: Same, name: String) {
        make_room(&mut self.known);
        self.known.insert(same, (name, 1));
    }

    /// Forgets an event that no longer exists.
    pub(super) fn forget(&mut self, same: &Same) {
        self.known.remove(same);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn subject(name: &str) -> Subject {
        let object = Object { name: name.into(), ..Object::default() };
        Subject { object, warning: true, reason: "Failed".into() }
    }

    /// Judges an event and remembers it as the recorder does.
    fn say(correlator: &mut Correlator, name: &str, message: &str, second: i64) -> Verdict {
        let (verdict, same) = correlator.judge(subject(name), message.into(), at(second));
        if matches!(verdict, Verdict::New(_)) {
            correlator.wrote(same, format!("{name}.{second}"));
        }
        verdict
    }

    #[test]
    fn the_same_is_counted_and_the_similar_combined_after_ten() {
        let mut c = Correlator::default();
        assert_eq!(say(&mut c, "a", "m", 0), Verdict::New("m".into()));
        let again = Verdict::Again { name: "a.0".into(), count: 2, message: "m".into() };
        assert_eq!(say(&mut c, "a", "m", 1), again);
        for i in 1..10 {
            assert_eq!(say(&mut c, "a", &i.to_string(), 2), Verdict::New(i.to_string()), "{i}");
        }
        assert_eq!(say(&mut c, "a", "10", 3), Verdict::New(format!("{COMBINED}10")));
        let more = Verdict::Again { name: "a.3".into(), count: 2, message: format!("{COMBINED}11") };
        assert_eq!(say(&mut c, "a", "11", 4), more);
        assert_eq!(say(&mut c, "b", "11", 4), Verdict::New("11".into()), "another object");
        assert_eq!(say(&mut c, "a", "12", 700), Verdict::New("12".into()), "ten minutes later");
    }

    #[test]
    fn one_object_is_given_a_burst_and_then_one_every_five_minutes() {
        let mut c = Correlator::default();
        let mut count = |from: i64, tries: usize| {
            (0..tries).filter(|_| say(&mut c, "a", "m", from) != Verdict::Drop).count()
        };
        assert_eq!(count(0, 40), 25);
        assert_eq!(count(299, 5), 0);
        assert_eq!(count(900, 5), 3);
        assert_eq!(count(1_000_000, 40), 25);
    }
}
