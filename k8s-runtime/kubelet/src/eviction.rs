//! Eviction: thresholds, pressure conditions, the order of pods and their limits of local storage.
//!
//! Flow: [`plan`] compares observations with the [`thresholds`], and returns conditions and shortages. Node
//! status and admission read the conditions from [`Pressure`]. [`rank`] sorts pods by their usage, [`local`]
//! finds those beyond their limits.
//! Not here: I/O, which is the evictor's ([`crate::evictor`]).

pub(crate) mod local;
pub(crate) mod plan;
pub(crate) mod rank;
pub(crate) mod signals;
pub(crate) mod thresholds;

use tokio::sync::watch;

use self::plan::Condition;

/// Reason of an evicted pod's status and event.
pub(crate) const EVICTED: &str = "Evicted";

/// The pressure conditions of the node.
#[derive(Debug)]
pub(crate) struct Pressure(watch::Sender<Vec<Condition>>);

impl Default for Pressure {
    fn default() -> Self {
        Pressure(watch::Sender::new(Vec::new()))
    }
}

impl Pressure {
    pub(crate) fn holds(&self, condition: Condition) -> bool {
        self.0.borrow().contains(&condition)
    }

    /// Returns the types of the conditions that hold.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.0.borrow().iter().map(|condition| condition.name()).collect()
    }

    /// Returns a channel that is notified when they change.
    pub(crate) fn changes(&self) -> watch::Receiver<Vec<Condition>> {
        self.0.subscribe()
    }

    /// Replaces the conditions that hold.
    pub(crate) fn set(&self, now: Vec<Condition>) {
        self.0.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
    }
}
