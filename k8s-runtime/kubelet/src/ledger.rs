//! The admitted pods of the node: what they hold, and the way to end them.
//!
//! Guarantee: a check and the admission that follows from it are one step ([`Ledger::admit`]), so that two
//! pods never get the same resource. A pod holds its resources until nothing of it runs, its status is
//! terminal or its object is gone.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_core::meta::ObjectExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    resources::{Amounts, pod_requests},
    types::*,
};

/// A port of the node that a container takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    protocol: String,
    ip: String,
    port: i32,
}

const ANY_ADDRESS: &str = "0.0.0.0";

impl HostPort {
    pub(crate) fn conflicts(&self, other: &HostPort) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == ANY_ADDRESS || other.ip == ANY_ADDRESS)
    }
}

/// Returns the host ports of the containers and sidecars.
pub(crate) fn host_ports(spec: &PodSpec) -> impl Iterator<Item = HostPort> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports.filter_map(|p| {
        let or = |value: Option<&String>, default: &str| {
            value.filter(|v| !v.is_empty()).cloned().unwrap_or_else(|| default.to_owned())
        };
        Some(HostPort {
            protocol: or(p.protocol.as_ref(), "TCP"),
            ip: or(p.host_ip.as_ref(), ANY_ADDRESS),
            port: p.host_port.filter(|port| *port > 0)?,
        })
    })
}

/// The reason for which the kubelet ends a pod that could go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disruption {
    /// Reason of the pod's status.
    pub(crate) reason: &'static str,
    /// Message of the pod's status.
    pub(crate) message: String,
    /// Message of the condition DisruptionTarget. `None`: there is no condition.
    pub(crate) condition: Option<String>,
    /// Maximum grace period. `None`: the pod's own.
    pub(crate) grace: Option<Duration>,
}

/// The way to end an admitted pod. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Leash {
    order: watch::Sender<Option<Disruption>>,
    /// Cancelled when nothing of the pod runs or is mounted any more.
    pub(crate) down: CancellationToken,
}

impl Default for Leash {
    fn default() -> Self {
        Leash { order: watch::Sender::new(None), down: CancellationToken::new() }
    }
}

impl Leash {
    /// Ends the pod. The first call counts.
    pub(crate) fn end(&self, why: Disruption) {
        self.order.send_if_modified(|order| {
            let is_first = order.is_none();
            order.get_or_insert(why);
            is_first
        });
    }

    /// Returns `true` if the pod was told to end.
    pub(crate) fn is_ending(&self) -> bool {
        self.order.borrow().is_some()
    }

    /// Returns the maximum grace period of the pod, if it was told to end.
    pub(crate) fn grace(&self) -> Option<Duration> {
        self.order.borrow().as_ref()?.grace
    }

    /// Resolves when the pod is told to end.
    pub(crate) async fn ended(&self) -> Disruption {
        let mut orders = self.order.subscribe();
        loop {
            if let Some(order) = orders.borrow_and_update().clone() {
                return order;
            }
            // The sender lives as long as `self`.
            let _ = orders.changed().await;
        }
    }
}

/// An admitted pod.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) pod: Arc<Pod>,
    pub(crate) requests: Amounts,
    ports: Vec<HostPort>,
    pub(crate) leash: Leash,
}

/// The resources that the admitted pods hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    entries: HashMap<String, Entry>,
    used: BTreeMap<String, i64>,
}

impl Held {
    /// Adds a pod, or replaces it by a newer state.
    pub(crate) fn insert(&mut self, pod: &Pod) -> Leash {
        let spec = pod.spec.clone().unwrap_or_default();
        let leash = self.remove(pod.uid()).map(|entry| entry.leash).unwrap_or_default();
        let requests = pod_requests(&spec);
        for (name, amount) in &requests {
            *self.used.entry(name.clone()).or_default() += amount;
        }
        let ports = host_ports(&spec).collect();
        let entry = Entry { pod: Arc::new(pod.clone()), requests, ports, leash: leash.clone() };
        self.entries.insert(pod.uid().to_owned(), entry);
        leash
    }

    fn remove(&mut self, uid: &str) -> Option<Entry> {
        let entry = self.entries.remove(uid)?;
        for (name, amount) in &entry.requests {
            *self.used.entry(name.clone()).or_default() -= amount;
        }
        Some(entry)
    }

    /// Number of pods.
    pub(crate) fn count(&self) -> usize {
        self.entries.len()
    }

    /// Sum of the requests of a resource, in millicores for CPU.
    pub(crate) fn used(&self, name: &str) -> i64 {
        self.used.get(name).copied().unwrap_or(0)
    }

    pub(crate) fn ports(&self) -> impl Iterator<Item = HostPort> {
        self.entries.values().flat_map(|entry| entry.ports.iter().cloned())
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// Returns the pods without one of them.
    pub(crate) fn without(&self, uid: &str) -> Held {
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

    /// Admits a pod without a check, or renews what it holds.
    pub(crate) fn hold(&self, pod: &Pod) -> Leash {
        self.held().insert(pod)
    }

    /// Admits a pod if `check` finds nothing against it.
    pub(crate) fn admit<E>(&self, pod: &Pod, check: impl FnOnce(&Held) -> Result<(), E>) -> Result<Leash, E> {
        let mut held = self.held();
        check(&held)?;
        Ok(held.insert(pod))
    }

    /// Replaces what an admitted pod holds by what it asks for, if `check` finds nothing against it beside
    /// the other pods. `None`: the pod is not admitted, or not any more.
    pub(crate) fn resize<E>(
        &self,
        pod: &Pod,
        check: impl FnOnce(&Held) -> Result<(), E>,
    ) -> Option<Result<(), E>> {
        let mut held = self.held();
        if !held.entries.contains_key(pod.uid()) {
            return None;
        }
        Some(check(&held.without(pod.uid())).map(|()| drop(held.insert(pod))))
    }

    /// Returns what an admitted pod holds.
    pub(crate) fn requests(&self, uid: &str) -> Option<Amounts> {
        self.held().entries.get(uid).map(|entry| entry.requests.clone())
    }

    /// Returns the admitted pods, in the order of their uids.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let mut all: Vec<Entry> = self.held().entries.values().cloned().collect();
        all.sort_by(|a, b| a.pod.uid().cmp(b.pod.uid()));
        all
    }

    /// Frees what a pod holds. Returns `true` if it held something.
    pub(crate) fn release(&self, uid: &str) -> bool {
        let was_there = self.held().remove(uid).is_some();
        if was_there {
            self.releases.send_replace(());
        }
        was_there
    }

    /// Returns when none of these pods is admitted any more.
    pub(crate) async fn released(&self, uids: &[String]) {
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
pub(crate) struct Beside(pub(crate) Held);

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
        // A newer state replaces the older one, and keeps its leash.
        let first = ledger.hold(&pod("a", "1"));
        let leash = ledger.hold(&pod("a", "500m"));
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
        let end = |reason: &'static str| {
            leash.end(Disruption { reason, message: String::new(), condition: None, grace: None });
        };
        assert!(!first.is_ending());
        end("first");
        end("second");
        assert_eq!(first.order.borrow().as_ref().map(|order| order.reason), Some("first"));
    }

    #[test]
    fn a_resize_counts_the_other_pods_only() {
        let pod = |uid: &str, cpu: &str| -> Pod {
            let container = json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
            serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": {"containers": [container]}}))
                .unwrap()
        };
        let ledger = Ledger::default();
        ledger.hold(&pod("a", "1"));
        ledger.hold(&pod("b", "1"));
        // Three CPUs in all.
        let resize = |pod: &Pod, wanted: i64| {
            ledger.resize(pod, |others| if others.used("cpu") + wanted > 3000 { Err(()) } else { Ok(()) })
        };
        assert_eq!(resize(&pod("a", "2"), 2000), Some(Ok(())));
        assert_eq!(resize(&pod("b", "2"), 2000), Some(Err(())));
        assert_eq!(ledger.held().used("cpu"), 3000, "a refused resize changes nothing");
        assert_eq!(resize(&pod("c", "1"), 1000), None);
        assert_eq!(ledger.requests("a").and_then(|held| held.get("cpu").copied()), Some(2000));
    }

    #[test]
    fn addresses_of_host_ports() {
        let spec = |ip: &str| -> PodSpec {
            let port = json!({"containerPort": 80, "hostPort": 80, "protocol": "TCP", "hostIP": ip});
            serde_json::from_value(json!({"containers": [{"name": "c", "ports": [port]}]})).unwrap()
        };
        let one = |ip: &str| host_ports(&spec(ip)).next().unwrap();
        assert!(one("10.0.0.1").conflicts(&one("")) && one("").conflicts(&one("10.0.0.1")));
        assert!(!one("10.0.0.1").conflicts(&one("10.0.0.2")));
    }
}
