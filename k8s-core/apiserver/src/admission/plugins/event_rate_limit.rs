//! EventRateLimit: a flood of events does not reach the store.
//!
//! A limit is a bucket of `burst` tokens that `qps` tokens per second refill. There is one bucket for the
//! server, or one for each namespace, user, or source and object; the least recently used ones are dropped.
//! The buckets are this server's: with several servers, each has its own, as upstream's.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_core::{
    clock::Clock,
    status::{ApiStatus, Reason},
};
use serde_json::Value;

use crate::{
    admission::{Admission, Admit, Operation},
    resources::Resource,
    value::{array_at, int_at, str_at},
};

/// Number of buckets of a limit if its configuration says nothing.
const BUCKETS: i64 = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Server,
    Namespace,
    User,
    SourceAndObject,
}

/// A bucket: tokens, and the time when they were counted.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Timestamp,
}

struct Limit {
    kind: Kind,
    qps: f64,
    burst: f64,
    most: usize,
    buckets: Mutex<HashMap<String, Bucket>>,
}

pub(super) struct EventRateLimit {
    clock: Clock,
    limits: Vec<Limit>,
}

impl EventRateLimit {
    /// Reads `limits`.
    ///
    /// # Errors
    /// A missing configuration, or a wrong field of it.
    pub(super) fn new(clock: Clock, configuration: &Value) -> Result<Self, String> {
        let limits = array_at(configuration, "/limits");
        if limits.is_empty() {
            return Err("limits: required".into());
        }
        let limits = limits.iter().enumerate().map(|(i, limit)| {
            let kind = match str_at(limit, "/type") {
                "Server" => Kind::Server,
                "Namespace" => Kind::Namespace,
                "User" => Kind::User,
                "SourceAndObject" => Kind::SourceAndObject,
                other => {
                    return Err(format!(
                        "limits[{i}].type: Unsupported value: {other:?}: supported values: \"Server\", \"Namespace\", \"User\", \"SourceAndObject\""
                    ));
                }
            };
            let positive = |field: &str, least: i64| match int_at(limit, &format!("/{field}")) {
                Some(n) if n >= least => u32::try_from(n).map_err(|_| format!("limits[{i}].{field}: too large")),
                found => Err(format!("limits[{i}].{field}: want at least {least}, not {}", found.unwrap_or(0))),
            };
            let (qps, burst) = (positive("qps", 1)?, positive("burst", 1)?);
            let most = int_at(limit, "/cacheSize").filter(|n| *n != 0).unwrap_or(BUCKETS);
            let most = usize::try_from(most).map_err(|_| format!("limits[{i}].cacheSize: must not be negative"))?;
            Ok(Limit { kind, qps: qps.into(), burst: burst.into(), most, buckets: Mutex::default() })
        });
        Ok(EventRateLimit { clock, limits: limits.collect::<Result<_, _>>()? })
    }
}

impl Limit {
    fn key(&self, admission: &Admission<'_>) -> String {
        match self.kind {
            Kind::Server => String::new(),
            Kind::Namespace => admission.request.namespace.clone(),
            Kind::User => admission.user.name.clone(),
            Kind::SourceAndObject => {
                let event = &*admission.object;
                let about = ["kind", "namespace", "name", "uid", "apiVersion"];
                let about = about.map(|field| str_at(event, &format!("/involvedObject/{field}")));
                let source = ["component", "host"].map(|field| str_at(event, &format!("/source/{field}")));
                [&source[..], &about[..]].concat().concat()
            }
        }
    }

    /// Takes a token; returns false if there is none.
    fn take(&self, key: &str, now: Timestamp) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if !buckets.contains_key(key) && buckets.len() >= self.most.max(1) {
            let oldest = buckets.iter().min_by_key(|(_, bucket)| bucket.at).map(|(key, _)| key.clone());
            oldest.and_then(|oldest| buckets.remove(&oldest));
        }
        let bucket = buckets.entry(key.to_owned()).or_insert(Bucket { tokens: self.burst, at: now });
        let passed = now.duration_since(bucket.at).as_secs_f64().max(0.0);
        bucket.tokens = (bucket.tokens + passed * self.qps).min(self.burst);
        bucket.at = now;
        let enough = bucket.tokens >= 1.0;
        if enough {
            bucket.tokens -= 1.0;
        }
        enough
    }
}

#[async_trait]
impl Admit for EventRateLimit {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
            && part.is_empty()
            && resource.kind == "Event"
            && matches!(resource.group.as_str(), "" | "events.k8s.io")
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        if admission.dry_run {
            return Ok(());
        }
        let now = self.clock.now();
        let refused: Vec<String> = self
            .limits
            .iter()
            .filter_map(|limit| {
                let key = limit.key(admission);
                (!limit.take(&key, now))
                    .then(|| format!("limit reached on type {:?} for key {key}", limit.kind))
            })
            .collect();
        match refused.as_slice() {
            [] => Ok(()),
            [one] => Err(ApiStatus::of(Reason::TooManyRequests, one.clone()).retry_after(1)),
            all => {
                Err(ApiStatus::of(Reason::TooManyRequests, format!("[{}]", all.join(", "))).retry_after(1))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn buckets_fill_again_and_are_bounded() {
        let limit = |most| Limit { kind: Kind::User, qps: 2.0, burst: 3.0, most, buckets: Mutex::default() };
        let (one, at) = (limit(2), |s| Timestamp::from_second(s).unwrap());
        let taken = |key: &str, second| (0..5).filter(|_| one.take(key, at(second))).count();
        assert_eq!((taken("a", 0), taken("a", 1), taken("a", 9)), (3, 2, 3));
        assert_eq!((taken("b", 9), taken("c", 10)), (3, 3));
        assert_eq!(one.buckets.lock().unwrap().len(), 2);
    }

    #[test]
    fn wrong_configurations_name_the_field() {
        for (limits, problem) in [
            (json!([]), "limits: required"),
            (json!([{"type": "Any"}]), "limits[0].type: Unsupported value: \"Any\""),
            (json!([{"type": "User", "qps": 0, "burst": 1}]), "limits[0].qps: want at least 1, not 0"),
            (json!([{"type": "User", "qps": 1}]), "limits[0].burst: want at least 1"),
        ] {
            let error = EventRateLimit::new(Clock::system(), &json!({"limits": limits})).err().unwrap();
            assert!(error.starts_with(problem), "{error}");
        }
    }
}
