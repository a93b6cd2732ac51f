//! Samples of CPU and memory usage, and the rates between them.
//!
//! Guarantees: counters are read at most once per [`WINDOW`], however many callers there are. A rate spans at
//! least that time, unless the container is new.
//! Not here: reading the counters (`server/usage.rs`).

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use k8s_runtime::ContainerStats;

use crate::types::*;

/// Shortest time between two samples.
const WINDOW: Duration = Duration::from_secs(1);
/// Age up to which the first sample of a container has its average rate since the start.
const NEW: Duration = Duration::from_secs(60);

/// Usage at a time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    /// Time of the measurement.
    pub(crate) at: Timestamp,
    /// CPU time since the start, nanoseconds.
    pub(crate) cpu_nanos: u64,
    /// CPU usage rate in billionths of a CPU. `None`: not known yet.
    pub(crate) nano_cores: Option<u64>,
    /// Memory in bytes, page cache included.
    pub(crate) memory_bytes: u64,
    /// Memory in bytes without reclaimable page cache.
    pub(crate) working_set_bytes: u64,
    /// Anonymous memory in bytes.
    pub(crate) rss_bytes: u64,
}

impl Sample {
    /// Returns the sample of a node that uses nothing.
    pub(crate) fn idle(at: Timestamp) -> Self {
        Sample { at, cpu_nanos: 0, nano_cores: Some(0), memory_bytes: 0, working_set_bytes: 0, rss_bytes: 0 }
    }
}

/// Adds samples. The time is that of the newest; the rate is known if every one is.
pub(crate) fn sum(samples: impl Iterator<Item = Sample>) -> Option<Sample> {
    samples.reduce(|a, b| Sample {
        at: a.at.max(b.at),
        cpu_nanos: a.cpu_nanos.saturating_add(b.cpu_nanos),
        nano_cores: a.nano_cores.zip(b.nano_cores).map(|(a, b)| a.saturating_add(b)),
        memory_bytes: a.memory_bytes.saturating_add(b.memory_bytes),
        working_set_bytes: a.working_set_bytes.saturating_add(b.working_set_bytes),
        rss_bytes: a.rss_bytes.saturating_add(b.rss_bytes),
    })
}

/// The last samples, by container id; the machine's has the empty id.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    known: Mutex<HashMap<String, Sample>>,
}

impl Samples {
    /// Returns the last sample if it is newer than [`WINDOW`].
    pub(crate) fn fresh(&self, id: &str, now: Timestamp) -> Option<Sample> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(id).filter(|sample| age(sample.at, now).is_some_and(|age| age < WINDOW)).cloned()
    }

    /// Keeps new counters as the last sample, and returns it with the rate since the one before.
    pub(crate) fn take(
        &self,
        id: &str,
        started_at: Timestamp,
        now: Timestamp,
        stats: &ContainerStats,
    ) -> Sample {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.get(id).map(|sample| (sample.at, sample.cpu_nanos));
        let since_start = || {
            let is_new = age(started_at, now).is_some_and(|age| age <= NEW);
            is_new.then_some((started_at, 0)).and_then(|from| rate(from, now, stats.cpu_nanos))
        };
        let sample = Sample {
            at: now,
            cpu_nanos: stats.cpu_nanos,
            nano_cores: before.and_then(|from| rate(from, now, stats.cpu_nanos)).or_else(since_start),
            memory_bytes: stats.memory_bytes,
            working_set_bytes: stats.working_set_bytes,
            rss_bytes: stats.rss_bytes,
        };
        known.insert(id.to_owned(), sample.clone());
        sample
    }

    /// Forgets containers that no longer run.
    pub(crate) fn retain(&self, running: &HashSet<&str>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|id, _| id.is_empty() || running.contains(id.as_str()));
    }
}

/// Returns the time from `at` to `now`. `None`: the clock was set back.
fn age(at: Timestamp, now: Timestamp) -> Option<Duration> {
    let age = now.duration_since(at);
    (!age.is_negative()).then(|| age.unsigned_abs())
}

/// Returns the CPU usage since an earlier sample. `None`: no time has passed, or the counter was reset.
fn rate((at, cpu_nanos): (Timestamp, u64), now: Timestamp, cpu_now: u64) -> Option<u64> {
    let nanos = age(at, now)?.as_nanos();
    let used = u128::from(cpu_now.checked_sub(cpu_nanos)?);
    u64::try_from((used * 1_000_000_000).checked_div(nanos)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(1_800_000_000_000 + millis).unwrap()
    }

    #[test]
    fn rates_span_the_time_between_samples() {
        let samples = Samples::default();
        let stats =
            |cpu_millis: u64| ContainerStats { cpu_nanos: cpu_millis * 1_000_000, ..Default::default() };
        // The start, the time and the CPU time in ms; the rate in thousandths of a CPU.
        for (id, started, now, cpu, want) in [
            ("new", 0, 0, 0, None),
            ("young", 0, 10_000, 5_000, Some(500)),
            ("young", 0, 12_000, 6_000, Some(500)),
            ("young", 0, 13_000, 8_000, Some(2_000)),
            ("old", 0, 100_000, 90_000, None),
            ("old", 0, 110_000, 91_000, Some(100)),
            // The counter was reset, and the clock was set back.
            ("old", 0, 120_000, 0, None),
            ("old", 0, 119_000, 5_000, None),
        ] {
            let sample = samples.take(id, at(started), at(now), &stats(cpu));
            assert_eq!(sample.nano_cores.map(|n| n / 1_000_000), want, "{id} at {now}");
        }
        assert!(samples.fresh("young", at(13_999)).is_some());
        assert!(samples.fresh("young", at(14_000)).is_none());
        samples.retain(&["old"].into());
        assert!(samples.fresh("young", at(13_999)).is_none());
    }
}
