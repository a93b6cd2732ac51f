//! Resizes that wait for a decision: whether the node has room for what a pod asks for anew.
//!
//! The queue and its order, which is upstream's (`pkg/kubelet/allocation`). Not here: the decision
//! (`pod/allocate.rs`).

use std::{
    cmp::Reverse,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_core::meta::ObjectExt;

use crate::{
    resources::{Amounts, Qos, pod_requests, qos},
    types::*,
};

/// Takes the decision on a resize. Returns `true` if it goes on waiting.
pub(crate) type Decide = Box<dyn Fn(&Arc<Pod>) -> bool + Send + Sync>;

/// A pod that asks for other resources than it has.
struct Pending {
    pod: Arc<Pod>,
    decide: Decide,
    /// Position in the order of arrival.
    number: u64,
}

#[derive(Default)]
struct Queue {
    pending: Vec<Pending>,
    next: u64,
    /// The pods that the node had at its start are counted.
    open: bool,
}

/// The resizes of a node that wait.
#[derive(Default)]
pub(crate) struct Resizes(Mutex<Queue>);

impl Resizes {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allows decisions.
    pub(crate) fn open(&self) {
        self.queue().open = true;
    }

    /// Adds a resize, or replaces the pod's earlier one.
    pub(crate) fn push(&self, pod: Arc<Pod>, decide: Decide) {
        let mut queue = self.queue();
        match queue.pending.iter_mut().find(|p| p.pod.uid() == pod.uid()) {
            Some(known) => known.pod = pod,
            None => {
                let number = queue.next;
                queue.next += 1;
                queue.pending.push(Pending { pod, decide, number });
            }
        }
    }

    /// Removes the resize of a pod.
    pub(crate) fn forget(&self, uid: &str) {
        self.queue().pending.retain(|p| p.pod.uid() != uid);
    }

    /// Decides on all waiting resizes, in order. `held` returns what a pod holds.
    pub(crate) fn retry(&self, held: impl Fn(&str) -> Option<Amounts>) {
        let mut queue = self.queue();
        if !queue.open || queue.pending.is_empty() {
            return;
        }
        queue.pending.sort_by_cached_key(|p| rank(&p.pod, held(p.pod.uid()), p.number));
        queue.pending.retain(|Pending { pod, decide, .. }| decide(pod));
    }
}

/// Place in the order of decisions: resizes that ask for no more, then by priority, class and arrival.
fn rank(pod: &Pod, held: Option<Amounts>, number: u64) -> (bool, Reverse<i32>, bool, u64) {
    let spec = pod.spec.clone().unwrap_or_default();
    let (wanted, held) = (pod_requests(&spec), held.unwrap_or_default());
    let amount = |of: &Amounts, name: &str| of.get(name).copied().unwrap_or(0);
    let grows = ["cpu", "memory"].iter().any(|name| amount(&wanted, name) > amount(&held, name));
    (grows, Reverse(spec.priority.unwrap_or(0)), qos(&spec) != Qos::Guaranteed, number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn smaller_ones_then_priority_then_class_then_arrival() {
        let pod = |cpu: &str, priority: i32, limited: bool| -> Pod {
            let mut resources = json!({"requests": {"cpu": cpu, "memory": "1Mi"}});
            if limited {
                resources["limits"] = resources["requests"].clone();
            }
            let container = json!({"name": "c", "resources": resources});
            serde_json::from_value(json!({"spec": {"containers": [container], "priority": priority}}))
                .unwrap()
        };
        let held: Amounts = [("cpu".to_owned(), 1000), ("memory".to_owned(), 1 << 20)].into();
        let mut all = [
            ("late", rank(&pod("2", 0, false), Some(held.clone()), 5)),
            ("early", rank(&pod("2", 0, false), Some(held.clone()), 4)),
            ("guaranteed", rank(&pod("2", 0, true), Some(held.clone()), 6)),
            ("priority", rank(&pod("2", 9, false), Some(held.clone()), 7)),
            ("shrinks", rank(&pod("500m", -1, false), Some(held), 8)),
        ];
        all.sort_by_key(|(_, rank)| *rank);
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["shrinks", "priority", "guaranteed", "early", "late"]);
    }
}
