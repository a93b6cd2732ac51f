//! Reads the CPU and memory usage of the node and of its running containers.
//!
//! Flow: a caller reads the counters of the runtime ([`containers`]) and of the machine ([`node`]), which the
//! kubelet's samples turn into rates.
//! Not here: sampling in the background. Without a caller nothing is read.

use futures::{StreamExt, stream};
use k8s_core::meta::ObjectExt;
use k8s_runtime::ContainerStats;

use crate::{
    context::Context,
    facts,
    samples::{Sample, sum},
    types::*,
};

/// Number of containers that are read at a time.
const AT_ONCE: usize = 16;

/// Usage of one running container.
#[derive(Clone, Debug)]
pub(super) struct ContainerUsage {
    pub(super) name: String,
    pub(super) started_at: Timestamp,
    pub(super) sample: Sample,
}

/// Usage of the running containers of a pod.
#[derive(Clone, Debug)]
pub(super) struct PodUsage {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) start_time: Option<Time>,
    pub(super) containers: Vec<ContainerUsage>,
}

impl PodUsage {
    /// Sum of the containers.
    pub(super) fn total(&self) -> Option<Sample> {
        sum(self.containers.iter().map(|container| container.sample.clone()))
    }
}

/// Reads the usage of every running container. Pods are in the order of their names; a container whose
/// counters cannot be read is absent.
pub(super) async fn containers(cx: &Context) -> Vec<PodUsage> {
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
pub(super) fn node(cx: &Context, pods: &[PodUsage]) -> Sample {
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
pub(super) fn boot_time() -> Option<Timestamp> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let seconds = text.lines().find_map(|line| line.strip_prefix("btime "))?;
    Timestamp::from_second(seconds.trim().parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_measured() {
        let (cpu, memory) = machine();
        assert!(cpu > 0 && memory > 0);
        assert!(boot_time().unwrap() < Timestamp::now());
    }
}
