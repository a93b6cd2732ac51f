//! The evictor: ends pods before the node runs out of memory, disk or process ids.
//!
//! Flow: every ten seconds it reads what is free, and [`plan`] returns the pressure conditions and the
//! thresholds that are met. For a threshold that is met, the node frees what no pod needs ([`reclaim`]); if
//! that is not enough, the evictor measures the pods ([`measure`]) and evicts the first of their order
//! ([`rank`]). Apart from that, [`limits`] evicts pods beyond their limits of local storage.
//! Guarantees:
//! 1. At most one pod is evicted for a threshold at a time; the next look comes after it is gone, or has not
//!    ended in time.
//! 2. Critical pods are not evicted.
//! 3. Nothing is freed and nobody is evicted before the node's pods are known.
//!
//! Not here: the end of a pod (`pod/world`), notifications of the kernel (`kernelMemcgNotification`), garbage
//! collection of images by age or percentage.

pub(crate) mod limits;
mod machine;
mod measure;
mod reclaim;

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use k8s_core::{events::involved_container, meta::ObjectExt};
use tracing::{info, warn};

pub(crate) use self::machine::Machine;
use crate::{
    context::Context,
    eviction::{
        EVICTED,
        plan::{self, Met, Observation, Observations, Round},
        rank::{self, Disks, Usage},
        thresholds::{Eviction, Signal, Starved},
    },
    ledger::{Disruption, Entry},
    node::involved_node,
    pod::admit,
};

/// Interval of looks at the node, as upstream.
const EVERY: Duration = Duration::from_secs(10);
/// Time for an evicted pod to be gone after its grace period, as upstream.
const PATIENCE: Duration = Duration::from_secs(30);
/// Number of pods that are measured at a time.
const PODS_AT_ONCE: usize = 4;
/// Grace period of pods that are evicted at once.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Evicts the pods of a kubelet.
pub(crate) struct Evictor {
    cx: Arc<Context>,
    eviction: Eviction,
    state: plan::State,
    images: reclaim::ImagesSeen,
}

impl Evictor {
    pub(crate) fn new(cx: Arc<Context>) -> Self {
        let eviction = match cx.config.machine_pressure {
            true => cx.config.eviction.clone(),
            false => Eviction::none(),
        };
        let (state, images) = Default::default();
        Evictor { cx, eviction, state, images }
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
        if self.eviction.thresholds.is_empty() {
            return;
        }
        loop {
            match self.round().await {
                None => self.cx.clock.sleep(EVERY).await,
                Some(evicted) => self.wait_for(&evicted).await,
            }
        }
    }

    /// Waits until a pod is gone, or has not ended in time.
    async fn wait_for(&self, evicted: &Entry) {
        let patience = evicted.leash.grace().unwrap_or_default().saturating_add(PATIENCE);
        tokio::select! {
            () = evicted.leash.down.cancelled() => {}
            () = self.cx.clock.sleep(patience) => {
                warn!(pod = %evicted.pod.key(), "the evicted pod is not gone yet");
            }
        }
    }

    /// Looks at the node once, and acts. Returns the pod that it has evicted.
    async fn round(&mut self) -> Option<Entry> {
        let round = self.look().await;
        self.images.look(&self.cx).await;
        let met = round.starved.first()?;
        let resource = met.threshold.signal.resource().name();
        warn!(resource, signal = %met.threshold.signal, available = %met.available, "attempting to reclaim");
        let message = format!("Attempting to reclaim {resource}");
        self.cx.events.warning(involved_node(&self.cx.config.node_name), "EvictionThresholdMet", message);
        if self.reclaim(met.threshold.signal).await {
            info!(resource, "enough is free without an eviction");
            return None;
        }
        self.evict_one(met).await
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
        let measured = stream::iter(candidates(&self.cx)).map(|entry| async {
            let usage = match signal.resource() {
                Starved::Memory | Starved::Pids => measure::memory(&self.cx, &entry.pod).await,
                Starved::EphemeralStorage | Starved::Inodes => {
                    Some(measure::disk(&self.cx, &entry.pod, u64::MAX).await)
                }
            };
            (entry, usage)
        });
        let mut pods: Vec<(Entry, Option<Usage>)> = measured.buffered(PODS_AT_ONCE).collect().await;
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
        evict(&self.cx, &entry, signal.name(), grace, (message.clone(), Some(message)));
        Some(entry)
    }
}

/// Returns the pods that may be evicted.
fn candidates(cx: &Context) -> impl Iterator<Item = Entry> + use<> {
    let all = cx.ledger.entries().into_iter();
    all.filter(|entry| !entry.leash.is_ending() && !admit::is_critical(&entry.pod))
}

/// Evicts a pod. `condition`: message of the condition DisruptionTarget.
fn evict(
    cx: &Context,
    entry: &Entry,
    signal: &str,
    grace: Duration,
    (message, condition): (String, Option<String>),
) {
    info!(pod = %entry.pod.key(), message, "pod evicted");
    cx.events.warning(involved_container(&entry.pod, None), EVICTED, &message);
    cx.metrics.evicted(signal);
    entry.leash.end(Disruption { reason: EVICTED, message, condition, grace: Some(grace) });
}
