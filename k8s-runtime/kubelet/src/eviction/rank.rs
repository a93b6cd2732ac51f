//! The order in which pods are evicted, and what is told of it. Pure.
//!
//! As upstream (`pkg/kubelet/eviction/helpers.go`): first pods that use more than they request, then those of
//! a lower priority, then those that are the furthest above their request. Pods without figures come first.

use std::{cmp::Reverse, collections::BTreeMap};

use k8s_core::meta::{ObjectExt, Quantity};
use k8s_runtime::DiskUsage;

use super::{
    plan::Met,
    thresholds::{Signal, Starved},
};
use crate::{resources, types::*};

/// Usage of a container. `None`: not measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ContainerUsage {
    pub(crate) name: String,
    /// Working set, bytes.
    pub(crate) memory: Option<u64>,
    /// Processes and threads.
    pub(crate) pids: u64,
    /// The writable layer.
    pub(crate) layer: Option<DiskUsage>,
    pub(crate) logs: Option<DiskUsage>,
}

/// Usage of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Usage {
    pub(crate) containers: Vec<ContainerUsage>,
    /// Local volumes by name.
    pub(crate) volumes: BTreeMap<String, DiskUsage>,
}

impl Usage {
    pub(crate) fn memory(&self) -> u64 {
        self.containers.iter().filter_map(|c| c.memory).sum()
    }

    fn pids(&self) -> u64 {
        self.containers.iter().map(|c| c.pids).sum()
    }

    /// Returns layers, logs and volumes together.
    pub(crate) fn disk(&self) -> DiskUsage {
        let containers = self.containers.iter().flat_map(|c| [c.layer, c.logs]).flatten();
        containers.chain(self.volumes.values().copied()).fold(DiskUsage::default(), DiskUsage::plus)
    }
}

/// Place of the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disks {
    /// On the disk of the pods.
    Shared,
    /// On a disk of their own.
    Split,
}

/// Returns what a pod uses of the resource behind a signal.
fn used(signal: Signal, disks: Disks, usage: &Usage) -> u64 {
    match signal {
        Signal::MemoryAvailable | Signal::AllocatableMemoryAvailable => usage.memory(),
        Signal::PidAvailable => usage.pids(),
        // Pods have nothing on it.
        Signal::ImageFsAvailable | Signal::ImageFsInodesFree if disks == Disks::Split => 0,
        Signal::NodeFsAvailable | Signal::ImageFsAvailable => usage.disk().bytes,
        Signal::NodeFsInodesFree | Signal::ImageFsInodesFree => usage.disk().inodes,
    }
}

/// Place in the order: whether figures are there, whether the usage is within the request, the priority,
/// and how far the usage is above the request.
type Place = (bool, bool, i32, Reverse<i128>);

fn place(signal: Signal, disks: Disks, pod: &Pod, usage: Option<&Usage>) -> Place {
    let spec = pod.spec.as_ref();
    let priority = spec.and_then(|s| s.priority).unwrap_or(0);
    let Some(usage) = usage else { return (false, false, priority, Reverse(0)) };
    let used = i128::from(used(signal, disks, usage));
    let starved = signal.resource();
    let requests = spec.map(resources::pod_requests).unwrap_or_default();
    let request = i128::from(requests.get(starved.name()).copied().unwrap_or(0));
    // Nobody requests process ids: the priority alone comes before their number.
    let is_within = starved == Starved::Pids || used <= request;
    (true, is_within, priority, Reverse(used - request))
}

/// Sorts pods, with what they use, by the order of eviction.
pub(crate) fn rank<T>(
    signal: Signal,
    disks: Disks,
    pods: &mut [T],
    of: impl Fn(&T) -> (&Pod, Option<&Usage>),
) {
    let is_pids = signal.resource() == Starved::Pids;
    pods.sort_by_cached_key(|candidate| {
        let (pod, usage) = of(candidate);
        let (is_known, is_within, priority, above) = place(signal, disks, pod, usage);
        let first = if is_pids { priority } else { 0 };
        (first, is_known, is_within, priority, above, pod.uid().to_owned())
    });
}

/// Returns the message of an eviction.
pub(crate) fn message(met: &Met, pod: &Pod, usage: Option<&Usage>) -> String {
    let starved = met.threshold.signal.resource();
    let name = starved.name();
    let mut text = format!(
        "The node was low on resource: {name}. Threshold quantity: {}, available: {}. ",
        met.quantity, met.available
    );
    let (Some(spec), Some(usage)) = (&pod.spec, usage) else { return text };
    let bytes = |n: u64| Quantity::from_bytes(i64::try_from(n).unwrap_or(i64::MAX));
    let asked = |list: Option<&resources::List>| {
        list.and_then(|l| Quantity::try_from(l.get(name)?).ok()).unwrap_or(Quantity::ZERO)
    };
    if starved == Starved::Memory
        && let Some(requests) = resources::whole(spec).and_then(|whole| whole.requests.as_ref())
        && requests.contains_key(name)
    {
        let (used, request) = (bytes(usage.memory()), asked(Some(requests)));
        text += &format!(
            "Pod {} was using {used}, request is {request}, has larger consumption of {name}. ",
            pod.name()
        );
    }
    for container in &usage.containers {
        let Some(known) = resources::all_containers(spec).find(|c| c.name == container.name) else {
            continue;
        };
        let used = match starved {
            Starved::Memory => container.memory,
            Starved::EphemeralStorage => container.layer.zip(container.logs).map(|(a, b)| a.plus(b).bytes),
            Starved::Inodes | Starved::Pids => None,
        };
        let request = asked(resources::requests(known));
        if let Some(used) = used.map(bytes).filter(|used| *used > request) {
            text += &format!(
                "Container {} was using {used}, request is {request}, has larger consumption of {name}. ",
                container.name
            );
        }
    }
    text
}

#[cfg(test)]
#[path = "rank_tests.rs"]
mod tests;
