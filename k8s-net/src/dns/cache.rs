//! Forwarded answers, kept for their time to live.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{DNSClass, RData, Record, RecordType},
};

use super::{answer, settings::CacheLimits};

/// Shortest time for which an answer is kept, in seconds, whatever its server says.
const SHORTEST: u32 = 5;

/// The parts of a query that its answer depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    name: String,
    kind: RecordType,
    /// DNSSEC records are asked for.
    signed: bool,
    /// The client checks signatures itself.
    unchecked: bool,
}

impl Key {
    /// Returns the key of a query; `None` for one whose answer is not kept.
    pub(super) fn of(question: &Message) -> Option<Self> {
        let [query] = &question.queries[..] else { return None };
        let wanted = question.metadata.recursion_desired && query.query_class() == DNSClass::IN;
        wanted.then(|| Key {
            name: answer::plain(query.name()),
            kind: query.query_type(),
            signed: question.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok),
            unchecked: question.metadata.checking_disabled,
        })
    }
}

/// Longest answer that is kept, in bytes.
const LONGEST: usize = 4096;
/// Bytes of all answers of a cache.
const MOST_BYTES: usize = 8 << 20;

/// An answer. It is kept as it came: decoded it would be many times as large.
#[derive(Debug)]
struct Kept {
    until: Instant,
    answer: Box<[u8]>,
}

#[derive(Debug, Default)]
struct Answers {
    by_query: HashMap<Key, Kept>,
    /// Bytes of all answers.
    bytes: usize,
}

impl Answers {
    fn remove(&mut self, key: &Key) {
        if let Some(kept) = self.by_query.remove(key) {
            self.bytes -= kept.answer.len();
        }
    }

    /// Makes room for an answer: those that have ended go first, then any others.
    fn make_room(&mut self, capacity: usize, length: usize, now: Instant) {
        let is_full =
            |answers: &Self| answers.by_query.len() >= capacity || answers.bytes + length > MOST_BYTES;
        if is_full(self) {
            self.by_query.retain(|_, kept| kept.until > now);
            self.bytes = self.by_query.values().map(|kept| kept.answer.len()).sum();
        }
        while is_full(self) {
            let Some(other) = self.by_query.keys().next().cloned() else { return };
            self.remove(&other);
        }
    }
}

/// The answers of one server block.
#[derive(Debug)]
pub(super) struct AnswerCache {
    limits: CacheLimits,
    kept: Mutex<Answers>,
}

/// Returns the seconds for which an answer may be kept; `None`: it may not.
fn lifetime(found: &Message, limits: &CacheLimits) -> Option<u32> {
    if found.metadata.truncation {
        return None;
    }
    let soa = |record: &Record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    };
    let (ttl, most) = match found.metadata.response_code {
        ResponseCode::NoError if !found.answers.is_empty() => {
            (found.answers.iter().map(|record| record.ttl).min(), limits.ttl)
        }
        // Without an SOA record a denial is not kept (RFC 2308, section 5).
        ResponseCode::NoError | ResponseCode::NXDomain => {
            (found.authorities.iter().find_map(soa), limits.denial_ttl)
        }
        _ => (None, 0),
    };
    ttl.map(|ttl| ttl.max(SHORTEST).min(most)).filter(|ttl| *ttl > 0)
}

impl AnswerCache {
    pub(super) fn new(limits: CacheLimits) -> Self {
        AnswerCache { limits, kept: Mutex::default() }
    }

    /// Returns the answer to a query, with the time to live that is left, and when it ends.
    pub(super) fn get(&self, key: &Key, question: &Message, now: Instant) -> Option<(Message, Instant)> {
        let (mut found, end) = {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let found = kept.by_query.get(key)?;
            (Message::from_vec(&found.answer).ok()?, found.until)
        };
        let left = end.checked_duration_since(now).filter(|left| !left.is_zero())?;
        let left = u32::try_from(left.as_secs()).unwrap_or(u32::MAX).max(1);
        for records in [&mut found.answers, &mut found.authorities, &mut found.additionals] {
            records.iter_mut().for_each(|record| record.ttl = record.ttl.min(left));
        }
        let mut message = answer::reply(question, found.metadata.response_code);
        message.metadata.authentic_data = found.metadata.authentic_data;
        message.add_answers(found.answers);
        message.authorities = found.authorities;
        message.additionals = found.additionals;
        Some((message, end))
    }

    /// Keeps an answer, of which `bytes` is the form in which it came.
    pub(super) fn put(&self, key: Key, found: &Message, bytes: &[u8], now: Instant) {
        let Some(ttl) = lifetime(found, &self.limits).filter(|_| bytes.len() <= LONGEST) else { return };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.remove(&key);
        kept.make_room(self.limits.capacity, bytes.len(), now);
        kept.bytes += bytes.len();
        kept.by_query
            .insert(key, Kept { until: now + Duration::from_secs(ttl.into()), answer: bytes.into() });
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::Query,
        rr::{
            Name,
            rdata::{A, SOA},
        },
    };

    use super::*;

    fn question(name: &str) -> Message {
        let mut question = Message::query();
        question.metadata.recursion_desired = true;
        question.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        question
    }

    fn found(ttls: &[u32]) -> Message {
        let mut found = answer::reply(&question("a.test."), ResponseCode::NoError);
        let name = Name::from_ascii("a.test.").unwrap();
        let record = |ttl: &u32| Record::from_rdata(name.clone(), *ttl, RData::A(A::new(192, 0, 2, 1)));
        found.add_answers(ttls.iter().map(record));
        found
    }

    fn put(cache: &AnswerCache, key: Key, found: &Message, now: Instant) {
        cache.put(key, found, &found.to_vec().unwrap(), now);
    }

    #[test]
    fn an_answer_lives_as_long_as_its_shortest_record_and_the_limit_allow() {
        let (cache, now) = (AnswerCache::new(CacheLimits::default()), Instant::now());
        let asked = question("A.test.");
        let key = || Key::of(&asked).unwrap();
        let after = |seconds| now + Duration::from_secs(seconds);
        put(&cache, key(), &found(&[20, 300]), now);
        let (message, _) = cache.get(&key(), &asked, after(5)).unwrap();
        assert_eq!(message.answers.iter().map(|r| r.ttl).collect::<Vec<_>>(), [15, 15]);
        assert_eq!(message.metadata.id, asked.metadata.id);
        assert!(cache.get(&key(), &asked, after(20)).is_none());
        put(&cache, key(), &found(&[3000]), now);
        assert!(cache.get(&key(), &asked, after(29)).is_some());
        assert!(cache.get(&key(), &asked, after(30)).is_none());
        // The key is that of the query, not only of the name.
        let mut other = asked.clone();
        other.metadata.checking_disabled = true;
        assert!(cache.get(&Key::of(&other).unwrap(), &other, now).is_none());
    }

    #[test]
    fn denials_need_an_soa_record_and_failures_are_not_kept() {
        let (cache, now) = (AnswerCache::new(CacheLimits::default()), Instant::now());
        let asked = question("none.test.");
        let key = || Key::of(&asked).unwrap();
        let mut denial = answer::reply(&asked, ResponseCode::NXDomain);
        put(&cache, key(), &denial, now);
        assert!(cache.get(&key(), &asked, now).is_none());
        let name = Name::from_ascii("test.").unwrap();
        let soa = SOA::new(name.clone(), name.clone(), 1, 1, 1, 1, 7);
        denial.add_authority(Record::from_rdata(name, 900, RData::SOA(soa)));
        put(&cache, key(), &denial, now);
        let (kept, end) = cache.get(&key(), &asked, now).unwrap();
        assert_eq!(kept.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(end, now + Duration::from_secs(7));
        let failed = answer::reply(&asked, ResponseCode::ServFail);
        let other = question("other.test.");
        put(&cache, Key::of(&other).unwrap(), &failed, now);
        assert!(cache.get(&Key::of(&other).unwrap(), &other, now).is_none());
    }

    #[test]
    fn the_cache_keeps_no_more_than_its_capacity() {
        let cache = AnswerCache::new(CacheLimits { capacity: 3, ..CacheLimits::default() });
        for number in 0..10 {
            let asked = question(&format!("n{number}.test."));
            put(&cache, Key::of(&asked).unwrap(), &found(&[60]), Instant::now());
        }
        assert_eq!(cache.kept.lock().unwrap().by_query.len(), 3);
    }

    #[test]
    fn the_cache_keeps_no_more_than_its_bytes_and_no_long_answers() {
        let cache = AnswerCache::new(CacheLimits { capacity: 100_000, ..CacheLimits::default() });
        let long = found(&[60; 200]);
        let length = long.to_vec().unwrap().len();
        assert!((3000..LONGEST).contains(&length), "{length}");
        for number in 0..2 * MOST_BYTES / length {
            let asked = question(&format!("n{number}.test."));
            put(&cache, Key::of(&asked).unwrap(), &long, Instant::now());
            let kept = cache.kept.lock().unwrap();
            let sum: usize = kept.by_query.values().map(|kept| kept.answer.len()).sum();
            assert!(kept.bytes == sum && sum <= MOST_BYTES, "{sum} of {}", kept.bytes);
        }
        let asked = question("longer.test.");
        put(&cache, Key::of(&asked).unwrap(), &found(&[60; 400]), Instant::now());
        assert!(cache.get(&Key::of(&asked).unwrap(), &asked, Instant::now()).is_none());
    }
}
