//! The evictor: ends pods before the node runs out of memory, disk or process ids.
//!
//! Flow: every ten seconds it reads what is free, and [`plan`] returns the pressure conditions and the
//! thresholds that are met. Pods beyond their limits of local storage ([`local`]) are evicted first. For a
//! threshold that is met, the node frees what no pod needs ([`reclaim`]); if that is not enough, the evictor
//! measures the pods ([`measure`]) and evicts the first of their order ([`rank`]).
//! Guarantees:
//! 1. At most one pod is evicted for a threshold at a time; the next look comes after it is gone, or has not
//!    ended in time.
//! 2. Critical pods are not evicted.
//! 3. Nothing is freed and nobody is evicted before the node's pods are known.
//!
//! Not here: the end of a pod (`pod/world`), notifications of the kernel (`kernelMemcgNotification`), garbage
//! collection of images by age or percentage.

mod machine;
mod measure;
mod reclaim;

use std::{collections::HashMap, sync::Arc, time::Duration};

use k8s_core::{events::involved_container, meta::ObjectExt};
use tracing::{info, warn};

pub(crate) use self::machine::Machine;
use crate::{
    context::Context,
    eviction::{
        EVICTED, local,
        plan::{self, Met, Observation, Observations, Round},
        rank::{self, Disks, Usage},
        thresholds::{Eviction, Signal, Starved},
    },
    ledger::{Disruption, Entry},
    node::involved_node,
    pod::admit,
    types::Timestamp,
};

/// Interval of looks at the node, as upstream.
const EVERY: Duration = Duration::from_secs(10);
/// Time for an evicted pod to be gone after its grace period, as upstream.
const PATIENCE: Duration = Duration::from_secs(30);
/// Grace period of pods that are evicted at once.
const AT_ONCE: Duration = Duration::from_secs(1);
/// The pause after a measurement of a pod's disk usage, in multiples of the time that it took.
const REST: u32 = 20;

/// Evicts the pods of a kubelet.
pub(crate) struct Evictor {
    cx: Arc<Context>,
    eviction: Eviction,
    state: plan::State,
    images: reclaim::ImagesSeen,
    /// Time before which a pod's disk usage is not measured for its limits, by uid.
    rest: HashMap<String, Timestamp>,
}

impl Evictor {
    pub(crate) fn new(cx: Arc<Context>) -> Self {
        let eviction = match cx.config.machine_pressure {
            true => cx.config.eviction.clone(),
            false => Eviction::none(),
        };
        let (state, images, rest) = Default::default();
        Evictor { cx, eviction, state, images, rest }
    }

    /// Reads what is free, and publishes the conditions.
    pub(crate) async fn look(&mut self) -> Round {
        if self.eviction.thresholds.is_empty() {
            return Round::default();
        }
        let seen = self.observe().await;
        let round = self.state.observe(self.cx.clock.now(), &self.eviction, &seen);
        self.cx.pressure.set(round.conditions.clone());
        round
    }

    async fn observe(&self) -> Observations {
        let mut seen = self.cx.signals.observe();
        let signal = Signal::AllocatableMemoryAvailable;
        if self.eviction.thresholds.iter().any(|t| t.signal == signal) && !seen.contains_key(&signal) {
            let mut used = 0_i64;
            for entry in self.cx.ledger.entries() {
                let memory = measure::memory(&self.cx, &entry.pod).await.map_or(0, |usage| usage.memory());
                used = used.saturating_add(i64::try_from(memory).unwrap_or(i64::MAX));
            }
            let capacity = self.cx.facts.memory;
            seen.insert(signal, Observation { available: capacity.saturating_sub(used), capacity });
        }
        seen
    }

    /// Evicts pods as needed. Runs until it is dropped.
    pub(crate) async fn run(mut self) {
        self.cx.pods.synced().await;
        loop {
            let evicted = self.round().await;
            if evicted.is_empty() {
                self.cx.clock.sleep(EVERY).await;
            } else {
                self.wait_for(&evicted).await;
            }
        }
    }

    /// Waits until pods are gone, or have not ended in time.
    async fn wait_for(&self, evicted: &[Entry]) {
        let grace = evicted.iter().filter_map(|entry| entry.leash.grace()).max().unwrap_or_default();
        let gone = async {
            for entry in evicted {
                entry.leash.down.cancelled().await;
            }
        };
        tokio::select! {
            () = gone => {}
            () = self.cx.clock.sleep(grace.saturating_add(PATIENCE)) => warn!("evicted pods are not gone yet"),
        }
    }

    /// Looks at the node once, and acts. Returns the pods that it has evicted.
    async fn round(&mut self) -> Vec<Entry> {
        let round = self.look().await;
        if !self.eviction.thresholds.is_empty() {
            self.images.look(&self.cx).await;
        }
        let evicted = self.enforce_limits().await;
        let Some(met) = round.starved.first().filter(|_| evicted.is_empty()) else { return evicted };
        let resource = met.threshold.signal.resource().name();
        warn!(resource, signal = %met.threshold.signal, available = %met.available, "attempting to reclaim");
        let message = format!("Attempting to reclaim {resource}");
        self.cx.events.warning(involved_node(&self.cx.config.node_name), "EvictionThresholdMet", message);
        if self.reclaim(met.threshold.signal).await {
            info!(resource, "enough is free without an eviction");
            return Vec::new();
        }
        self.evict_one(met).await.into_iter().collect()
    }

    fn disks(&self) -> Disks {
        if self.cx.signals.has_image_disk() { Disks::Split } else { Disks::Shared }
    }

    /// Frees what no pod needs. Returns `true` if that is enough.
    async fn reclaim(&mut self, signal: Signal) -> bool {
        let is_of_images = matches!(signal, Signal::ImageFsAvailable | Signal::ImageFsInodesFree);
        let is_shared = self.disks() == Disks::Shared;
        match signal.resource() {
            Starved::Memory | Starved::Pids => return false,
            Starved::EphemeralStorage | Starved::Inodes => {}
        }
        if is_shared || !is_of_images {
            reclaim::containers(&self.cx).await;
        }
        if is_shared || is_of_images {
            self.images.remove_unused(&self.cx).await;
        }
        plan::is_satisfied(&self.eviction, &self.observe().await)
    }

    /// Evicts the first pod in the order of eviction.
    async fn evict_one(&self, met: &Met) -> Option<Entry> {
        let signal = met.threshold.signal;
        let mut pods: Vec<(Entry, Option<Usage>)> = Vec::new();
        for entry in self.cx.ledger.entries() {
            if entry.leash.is_ending() || admit::is_critical(&entry.pod) {
                continue;
            }
            let usage = match signal.resource() {
                Starved::Memory | Starved::Pids => measure::memory(&self.cx, &entry.pod).await,
                Starved::EphemeralStorage | Starved::Inodes => {
                    Some(measure::disk(&self.cx, &entry.pod, u64::MAX).await)
                }
            };
            pods.push((entry, usage));
        }
        rank::rank(signal, self.disks(), &mut pods, |(entry, usage)| (&entry.pod, usage.as_ref()));
        let Some((entry, usage)) = pods.into_iter().next() else {
            warn!(%signal, "thresholds are met, but there is no pod to evict");
            return None;
        };
        let message = rank::message(met, &entry.pod, usage.as_ref());
        let grace = if met.threshold.is_hard() {
            AT_ONCE
        } else {
            let own = entry.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
            let most = i64::from(self.eviction.max_pod_grace_period);
            Duration::from_secs(u64::try_from(own.map_or(most, |own| own.min(most))).unwrap_or(0))
        };
        self.evict(&entry, signal.name(), grace, message.clone(), Some(message));
        Some(entry)
    }

    /// Evicts the pods that exceed their limits of local storage.
    async fn enforce_limits(&mut self) -> Vec<Entry> {
        let mut evicted = Vec::new();
        let entries = self.cx.ledger.entries();
        self.rest.retain(|uid, _| entries.iter().any(|entry| entry.pod.uid() == uid));
        for entry in entries {
            let limits = entry.pod.spec.as_ref().and_then(local::Limits::of);
            let Some(limits) = limits.filter(|_| !entry.leash.is_ending() && !admit::is_critical(&entry.pod))
            else {
                continue;
            };
            let begun = self.cx.clock.now();
            if self.rest.get(entry.pod.uid()).is_some_and(|until| begun < *until) {
                continue;
            }
            let enough = limits.largest();
            let usage = if limits.is_of_volumes() {
                Usage { volumes: measure::volumes(&self.cx, &entry.pod, enough).await, ..Usage::default() }
            } else {
                measure::disk(&self.cx, &entry.pod, enough).await
            };
            // Large trees are read less often.
            let pause = self.cx.clock.since(begun).saturating_mul(REST);
            let until = self.cx.clock.now().saturating_add(pause).unwrap_or(begun);
            self.rest.insert(entry.pod.uid().to_owned(), until);
            if let Some(excess) = limits.exceeded(&usage) {
                self.evict(&entry, excess.signal, AT_ONCE, excess.message, None);
                evicted.push(entry);
            }
        }
        evicted
    }

    fn evict(
        &self,
        entry: &Entry,
        signal: &str,
        grace: Duration,
        message: String,
        condition: Option<String>,
    ) {
        info!(pod = %entry.pod.key(), message, "pod evicted");
        self.cx.events.warning(involved_container(&entry.pod, None), EVICTED, &message);
        self.cx.metrics.evicted(signal);
        entry.leash.end(Disruption { reason: EVICTED, message, condition, grace: Some(grace) });
    }
}
