//! Decides which pressure conditions hold, and on which threshold to act. Pure.
//!
//! As upstream (`pkg/kubelet/eviction`, `synchronize`): a threshold is met while less is available than it
//! says. Once it has been met for its grace period, it stays met until its minimum reclaim is available, too.
//! A condition holds from the first sight of a met threshold until none was met for the transition period.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_core::meta::Quantity;

use super::thresholds::{Eviction, Signal, Starved, Threshold};
use crate::types::Timestamp;

/// Capacity and free part of a resource, in bytes or numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Free part.
    pub available: i64,
    /// Whole amount.
    pub capacity: i64,
}

/// Observations by signal. A signal without one is never below its threshold.
pub type Observations = BTreeMap<Signal, Observation>;

/// A pressure condition of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Condition {
    Memory,
    Disk,
    Pid,
}

impl Condition {
    /// Type of the condition in the node's status.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Condition::Memory => "MemoryPressure",
            Condition::Disk => "DiskPressure",
            Condition::Pid => "PIDPressure",
        }
    }

    fn of(signal: Signal) -> Self {
        match signal.resource() {
            Starved::Memory => Condition::Memory,
            Starved::EphemeralStorage | Starved::Inodes => Condition::Disk,
            Starved::Pids => Condition::Pid,
        }
    }
}

/// A threshold is met: what it asks for, and what is available.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Met {
    pub(crate) threshold: Threshold,
    pub(crate) quantity: Quantity,
    pub(crate) available: Quantity,
}

/// Result of a look at the node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Round {
    pub(crate) conditions: Vec<Condition>,
    /// The thresholds that are to be acted on. Those of memory come first.
    pub(crate) starved: Vec<Met>,
}

/// Observations of earlier looks.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Time since when a threshold, by its place, is met without a break.
    first_met: BTreeMap<usize, Timestamp>,
    /// Thresholds that were to be acted on in the last round.
    acted: BTreeSet<usize>,
    /// Time at which a threshold of a condition was last met.
    last_seen: BTreeMap<Condition, Timestamp>,
}

/// Returns the amount in the format of its resource.
fn quantity(signal: Signal, amount: i64) -> Quantity {
    match signal.resource() {
        Starved::Memory | Starved::EphemeralStorage => Quantity::from_bytes(amount),
        Starved::Inodes | Starved::Pids => Quantity::from_units(amount),
    }
}

/// Returns what a threshold asks for, if less is available. `reclaim`: its minimum reclaim included.
fn below(threshold: &Threshold, seen: &Observations, reclaim: bool) -> Option<Met> {
    let observed = seen.get(&threshold.signal)?;
    let quantity_asked = threshold.value.of(observed.capacity);
    let reclaim = threshold.minimum_reclaim.as_ref().filter(|_| reclaim);
    let asked = reclaim.map_or(quantity_asked, |more| quantity_asked + more.of(observed.capacity));
    let available = quantity(threshold.signal, observed.available);
    (asked > available).then(|| Met { threshold: threshold.clone(), quantity: quantity_asked, available })
}

/// Returns `true` if all thresholds and their minimum reclaims are satisfied.
pub(crate) fn is_satisfied(eviction: &Eviction, seen: &Observations) -> bool {
    eviction.thresholds.iter().all(|threshold| below(threshold, seen, true).is_none())
}

impl State {
    /// Takes a look at the node into account.
    pub(crate) fn observe(&mut self, now: Timestamp, eviction: &Eviction, seen: &Observations) -> Round {
        let met = eviction.thresholds.iter().enumerate().filter_map(|(place, threshold)| {
            let unresolved = self.acted.contains(&place);
            below(threshold, seen, unresolved).map(|met| (place, met))
        });
        let met: BTreeMap<usize, Met> = met.collect();
        self.first_met.retain(|place, _| met.contains_key(place));
        for (place, met) in &met {
            self.first_met.entry(*place).or_insert(now);
            self.last_seen.insert(Condition::of(met.threshold.signal), now);
        }
        let since = |at: Timestamp| Duration::try_from(now.duration_since(at)).unwrap_or_default();
        self.last_seen.retain(|_, at| *at == now || since(*at) < eviction.pressure_transition_period);
        let first_met = &self.first_met;
        let is_due = |place: &usize, met: &Met| {
            first_met.get(place).is_some_and(|at| since(*at) >= met.threshold.grace_period)
        };
        let mut due: Vec<(usize, Met)> = met.into_iter().filter(|(place, met)| is_due(place, met)).collect();
        self.acted = due.iter().map(|(place, _)| *place).collect();
        due.sort_by_key(|(place, met)| (met.threshold.signal.resource() != Starved::Memory, *place));
        Round {
            conditions: self.last_seen.keys().copied().collect(),
            starved: due.into_iter().map(|(_, met)| met).collect(),
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
