//! The admitted pods of the node: what they hold, and the way to preempt them.
//!
//! Guarantee: a check and the admission that follows from it are one step ([`Ledger::admit`]), so that two
//! pods never get the same resource. A pod holds its resources until nothing of it runs, its status is
//! terminal or its object is gone.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_core::meta::ObjectExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::fit::{self, HostPort};
use crate::{
    resources::{Amounts, pod_requests},
    types::*,
};

/// An admitted pod.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) pod: Arc<Pod>,
    pub(super) requests: Amounts,
    ports: Vec<HostPort>,
    /// Cancelled when the pod is preempted.
    pub(super) preempt: CancellationToken,
}

/// The resources that the admitted pods hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    entries: HashMap<String, Entry>,
    used: BTreeMap<String, i64>,
}

impl Held {
    /// Adds a pod, or replaces it by a newer state.
    pub(super) fn insert(&mut self, pod: &Pod) -> CancellationToken {
        let spec = pod.spec.clone().unwrap_or_default();
        let preempt = self.remove(pod.uid()).map(|entry| entry.preempt).unwrap_or_default();
        let requests = pod_requests(&spec);
        for (name, amount) in &requests {
            *self.used.entry(name.clone()).or_default() += amount;
        }
        let ports = fit::host_ports(&spec).collect();
        let entry = Entry { pod: Arc::new(pod.clone()), requests, ports, preempt: preempt.clone() };
        self.entries.insert(pod.uid().to_owned(), entry);
        preempt
    }

    fn remove(&mut self, uid: &str) -> Option<Entry> {
        let entry = self.entries.remove(uid)?;
        for (name, amount) in &entry.requests {
            *self.used.entry(name.clone()).or_default() -= amount;
        }
        Some(entry)
    }

    /// Number of pods.
    pub(super) fn count(&self) -> usize {
        self.entries.len()
    }

    /// Sum of the requests of a resource, in millicores for CPU.
    pub(super) fn used(&self, name: &str) -> i64 {
        self.used.get(name).copied().unwrap_or(0)
    }

    pub(super) fn ports(&self) -> impl Iterator<Item = HostPort> {
        self.entries.values().flat_map(|entry| entry.ports.iter().cloned())
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// Returns the pods without one of them.
    pub(super) fn without(&self, uid: &str) -> Held {
        let mut rest = self.clone();
        rest.remove(uid);
        rest
    }
}

/// The admitted pods of a kubelet.
#[derive(Debug)]
pub(crate) struct Ledger {
    held: Mutex<Held>,
    releases: watch::Sender<()>,
}

impl Default for Ledger {
    fn default() -> Self {
        Ledger { held: Mutex::default(), releases: watch::Sender::new(()) }
    }
}

impl Ledger {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a pod without a check, or renews what it holds. The token is cancelled if the pod is preempted.
    pub(crate) fn hold(&self, pod: &Pod) -> CancellationToken {
        self.held().insert(pod)
    }

    /// Admits a pod if `check` finds nothing against it.
    pub(super) fn admit<E>(
        &self,
        pod: &Pod,
        check: impl FnOnce(&Held) -> Result<(), E>,
    ) -> Result<CancellationToken, E> {
        let mut held = self.held();
        check(&held)?;
        Ok(held.insert(pod))
    }

    /// Frees what a pod holds.
    pub(crate) fn release(&self, uid: &str) {
        if self.held().remove(uid).is_some() {
            self.releases.send_replace(());
        }
    }

    /// Returns when none of these pods is admitted any more.
    pub(super) async fn released(&self, uids: &[String]) {
        let mut releases = self.releases.subscribe();
        loop {
            if !uids.iter().any(|uid| self.held().entries.contains_key(uid)) {
                return;
            }
            // The sender lives as long as `self`.
            let _ = releases.changed().await;
        }
    }

    /// Passes what is held to `read`, without one pod.
    pub(crate) fn beside(&self, uid: &str) -> Beside {
        Beside(self.held().without(uid))
    }
}

/// What the other pods of the node hold.
#[derive(Debug)]
pub(crate) struct Beside(pub(super) Held);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_held_is_freed_once() {
        let pod = |uid: &str, cpu: &str| -> Pod {
            let container = json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
            serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": {"containers": [container]}}))
                .unwrap()
        };
        let ledger = Ledger::default();
        ledger.hold(&pod("a", "1"));
        // A newer state replaces the older one, and keeps its token.
        let token = ledger.hold(&pod("a", "500m"));
        assert_eq!(ledger.held().used("cpu"), 500);
        let refused =
            ledger.admit(&pod("b", "2"), |held| if held.used("cpu") > 0 { Err(()) } else { Ok(()) });
        assert!(refused.is_err());
        let figures = || {
            let held = ledger.held();
            (held.count(), held.used("cpu"))
        };
        assert_eq!(figures(), (1, 500));
        assert!(ledger.admit(&pod("b", "2"), |_| Ok::<(), ()>(())).is_ok());
        assert_eq!(ledger.beside("b").0.used("cpu"), 500);
        ledger.release("a");
        ledger.release("a");
        assert_eq!(figures(), (1, 2000));
        assert!(!token.is_cancelled());
    }
}
