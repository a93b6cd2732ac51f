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

#[derive(Debug)]
struct Kept {
    since: Instant,
    /// Seconds.
    ttl: u32,
    code: ResponseCode,
    authentic: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
}

/// The answers of one server block.
#[derive(Debug)]
pub(super) struct AnswerCache {
    limits: CacheLimits,
    kept: Mutex<HashMap<Key, Kept>>,
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
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.get(key)?;
        let end = found.since + Duration::from_secs(found.ttl.into());
        let left = end.checked_duration_since(now).filter(|left| !left.is_zero())?;
        let left = u32::try_from(left.as_secs()).unwrap_or(u32::MAX).max(1);
        let aged = |records: &[Record]| -> Vec<Record> {
            let mut records = records.to_vec();
            records.iter_mut().for_each(|record| record.ttl = record.ttl.min(left));
            records
        };
        let mut message = answer::reply(question, found.code);
        message.metadata.authentic_data = found.authentic;
        message.add_answers(aged(&found.answers));
        message.authorities = aged(&found.authorities);
        message.additionals = aged(&found.additionals);
        Some((message, end))
    }

    /// Keeps an answer, in the place of any other one when there are too many.
    pub(super) fn put(&self, key: Key, found: &Message, now: Instant) {
        let Some(ttl) = lifetime(found, &self.limits) else { return };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= self.limits.capacity && !kept.contains_key(&key) {
            let Some(other) = kept.keys().next().cloned() else { return };
            kept.remove(&other);
        }
        let answer = Kept {
            since: now,
            ttl,
            code: found.metadata.response_code,
            authentic: found.metadata.authentic_data,
            answers: found.answers.clone(),
            authorities: found.authorities.clone(),
            additionals: found.additionals.clone(),
        };
        kept.insert(key, answer);
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

    #[test]
    fn an_answer_lives_as_long_as_its_shortest_record_and_the_limit_allow() {
        let (cache, now) = (AnswerCache::new(CacheLimits::default()), Instant::now());
        let asked = question("A.test.");
        let key = || Key::of(&asked).unwrap();
        let after = |seconds| now + Duration::from_secs(seconds);
        cache.put(key(), &found(&[20, 300]), now);
        let (message, _) = cache.get(&key(), &asked, after(5)).unwrap();
        assert_eq!(message.answers.iter().map(|r| r.ttl).collect::<Vec<_>>(), [15, 15]);
        assert_eq!(message.metadata.id, asked.metadata.id);
        assert!(cache.get(&key(), &asked, after(20)).is_none());
        cache.put(key(), &found(&[3000]), now);
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
        cache.put(key(), &denial, now);
        assert!(cache.get(&key(), &asked, now).is_none());
        let name = Name::from_ascii("test.").unwrap();
        let soa = SOA::new(name.clone(), name.clone(), 1, 1, 1, 1, 7);
        denial.add_authority(Record::from_rdata(name, 900, RData::SOA(soa)));
        cache.put(key(), &denial, now);
        let (kept, end) = cache.get(&key(), &asked, now).unwrap();
        assert_eq!(kept.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(end, now + Duration::from_secs(7));
        let failed = answer::reply(&asked, ResponseCode::ServFail);
        let other = question("other.test.");
        cache.put(Key::of(&other).unwrap(), &failed, now);
        assert!(cache.get(&Key::of(&other).unwrap(), &other, now).is_none());
    }

    #[test]
    fn the_cache_keeps_no_more_than_its_capacity() {
        let cache = AnswerCache::new(CacheLimits { capacity: 3, ..CacheLimits::default() });
        for number in 0..10 {
            let asked = question(&format!("n{number}.test."));
            cache.put(Key::of(&asked).unwrap(), &found(&[60]), Instant::now());
        }
        assert_eq!(cache.kept.lock().unwrap().len(), 3);
    }
}
