//! CPU and memory usage of the node and of its running containers.
//!
//! Flow: a caller reads the counters of the runtime ([`containers`]) and of the machine ([`node`]).
//! [`Samples`] keeps the last sample of each, from which it computes the CPU usage rate.
//! Guarantees: counters are read at most once per [`WINDOW`], however many callers there are. A rate spans at
//! least that time, unless the container is new.
//! Not here: sampling in the background. Without a caller nothing is read, and the first sample of a container
//! that is older than [`NEW`] has no rate.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream};
use k8s_core::meta::ObjectExt;
use k8s_runtime::ContainerStats;

use crate::{context::Context, facts, types::*};

/// Shortest time between two samples.
const WINDOW: Duration = Duration::from_secs(1);
/// Age up to which the first sample of a container has its average rate since the start.
const NEW: Duration = Duration::from_secs(60);
/// Number of containers that are read at a time.
const AT_ONCE: usize = 16;

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
    fn idle(at: Timestamp) -> Self {
        Sample { at, cpu_nanos: 0, nano_cores: Some(0), memory_bytes: 0, working_set_bytes: 0, rss_bytes: 0 }
    }
}

/// The last samples, by container id; the machine's has the empty id.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    known: Mutex<HashMap<String, Sample>>,
}

impl Samples {
    /// Returns the last sample if it is newer than [`WINDOW`].
    fn fresh(&self, id: &str, now: Timestamp) -> Option<Sample> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(id).filter(|sample| age(sample.at, now).is_some_and(|age| age < WINDOW)).cloned()
    }

    /// Keeps new counters as the last sample, and returns it with the rate since the one before.
    fn take(&self, id: &str, started_at: Timestamp, now: Timestamp, stats: &ContainerStats) -> Sample {
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
    fn retain(&self, running: &HashSet<&str>) {
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

/// Usage of one running container.
#[derive(Clone, Debug)]
pub(crate) struct ContainerUsage {
    pub(crate) name: String,
    pub(crate) started_at: Timestamp,
    pub(crate) sample: Sample,
}

/// Usage of the running containers of a pod.
#[derive(Clone, Debug)]
pub(crate) struct PodUsage {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) start_time: Option<Time>,
    pub(crate) containers: Vec<ContainerUsage>,
}

impl PodUsage {
    /// Sum of the containers.
    pub(crate) fn total(&self) -> Option<Sample> {
        sum(self.containers.iter().map(|container| container.sample.clone()))
    }
}

/// Adds samples. The time is that of the newest; the rate is known if every one is.
fn sum(samples: impl Iterator<Item = Sample>) -> Option<Sample> {
    samples.reduce(|a, b| Sample {
        at: a.at.max(b.at),
        cpu_nanos: a.cpu_nanos.saturating_add(b.cpu_nanos),
        nano_cores: a.nano_cores.zip(b.nano_cores).map(|(a, b)| a.saturating_add(b)),
        memory_bytes: a.memory_bytes.saturating_add(b.memory_bytes),
        working_set_bytes: a.working_set_bytes.saturating_add(b.working_set_bytes),
        rss_bytes: a.rss_bytes.saturating_add(b.rss_bytes),
    })
}

/// Reads the usage of every running container. Pods are in the order of their names; a container whose
/// counters cannot be read is absent.
pub(crate) async fn containers(cx: &Context) -> Vec<PodUsage> {
    let mut pods = Vec::new();
    let mut wanted = Vec::new();
    for pod in cx.pods.list() {
        let Some(view) = cx.view(pod.uid()) else { continue };
        for (name, container) in view.containers {
            if let (Some(started_at), Some(id)) = (container.running_since, container.id) {
                wanted.push((pods.len(), name, started_at, id));
            }
        }
        pods.push(PodUsage {
            namespace: pod.namespace().to_owned(),
            name: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
            start_time: view.status.start_time,
            containers: Vec::new(),
        });
    }
    cx.samples.retain(&wanted.iter().map(|(.., id)| id.as_ref()).collect());
    let read = stream::iter(wanted)
        .map(|(pod, name, started_at, id)| async move {
            let sample = match cx.samples.fresh(&id.0, cx.clock.now()) {
                Some(sample) => sample,
                None => {
                    let stats = cx.runtime.stats(&id).await.ok()?;
                    cx.samples.take(&id.0, started_at, cx.clock.now(), &stats)
                }
            };
            Some((pod, ContainerUsage { name, started_at, sample }))
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(std::future::ready);
    for (pod, usage) in read.collect::<Vec<(usize, ContainerUsage)>>().await {
        if let Some(pod) = pods.get_mut(pod) {
            pod.containers.push(usage);
        }
    }
    pods.retain(|pod| !pod.containers.is_empty());
    pods.iter_mut().for_each(|pod| pod.containers.sort_by(|a, b| a.name.cmp(&b.name)));
    pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    pods
}

/// Reads the usage of the node: the machine's, or for a simulated node the sum of its pods.
pub(crate) fn node(cx: &Context, pods: &[PodUsage]) -> Sample {
    let now = cx.clock.now();
    if !cx.config.machine_pressure {
        return sum(pods.iter().filter_map(PodUsage::total)).unwrap_or_else(|| Sample::idle(now));
    }
    cx.samples.fresh("", now).unwrap_or_else(|| {
        let (cpu_nanos, memory) = machine();
        let stats = ContainerStats {
            cpu_nanos,
            memory_bytes: memory,
            working_set_bytes: memory,
            ..ContainerStats::default()
        };
        cx.samples.take("", Timestamp::UNIX_EPOCH, now, &stats)
    })
}

/// Returns the machine's CPU time (nanoseconds) and memory usage (bytes).
fn machine() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = text.lines().next().unwrap_or_default();
    let fields: Vec<u64> = first.split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    // Fields user, nice, system, (idle, iowait,) irq, softirq, steal, in ticks of 10 ms.
    let busy: u64 =
        fields.iter().enumerate().filter(|(n, _)| !matches!(n, 3 | 4) && *n < 8).map(|(_, v)| v).sum();
    let memory = |key: &str| facts::meminfo(key).and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0);
    (busy * 10_000_000, memory("MemTotal").saturating_sub(memory("MemAvailable")))
}

/// Returns the time at which the machine was started.
pub(crate) fn boot_time() -> Option<Timestamp> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let seconds = text.lines().find_map(|line| line.strip_prefix("btime "))?;
    Timestamp::from_second(seconds.trim().parse().ok()?).ok()
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

    #[test]
    fn this_machine_is_measured() {
        let (cpu, memory) = machine();
        assert!(cpu > 0 && memory > 0);
        assert!(boot_time().unwrap() < Timestamp::now());
    }
}
