//! Pods that wait for a node: ready to be tried, waiting out a back-off, or waiting for a change that could help.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap},
    sync::Arc,
    time::Duration,
};

use k8s_core::api::api::core::v1::Pod;
use tokio::time::Instant;

use crate::{PodInfo, WakeOn};

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// A pod is tried again after so long even if nothing seems to have changed.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// A pod to be tried.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// How often it was tried before.
    pub failures: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// With the number of its entry in the heap; older entries are stale.
    Active(u64),
    Backoff {
        until: Instant,
    },
    Waiting {
        since: Instant,
        backoff_until: Instant,
        wakes_on: WakeOn,
    },
}

struct Entry {
    pod: Arc<PodInfo>,
    failures: u32,
    place: Place,
}

/// Higher priority first, then who came first.
type Rank = (i32, Reverse<u64>);

/// The pods that wait.
#[derive(Default)]
pub struct Queue {
    entries: HashMap<String, Entry>,
    active: BinaryHeap<(Rank, String)>,
    next: u64,
    /// Those of `entries` that are not active, so that a change need not look at thousands that are.
    asleep: BTreeSet<String>,
    /// Nothing becomes due by itself before this.
    due: Option<Instant>,
    /// No change but these can help any pod that waits.
    wakes_on: Option<WakeOn>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("pods", &self.entries.len()).finish_non_exhaustive()
    }
}

fn backoff(failures: u32) -> Duration {
    let factor = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX).max(1);
    FIRST_BACKOFF.saturating_mul(factor).min(LONGEST_BACKOFF)
}

/// Whether an update could make a difference to where the pod fits. (What the scheduler itself writes to its status does not.)
fn matters(old: &Pod, new: &Pod) -> bool {
    old.spec != new.spec
        || old.metadata.labels != new.metadata.labels
        || old.metadata.annotations != new.metadata.annotations
}

impl Queue {
    /// How many pods wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether the pod waits.
    #[must_use]
    pub fn contains(&self, uid: &str) -> bool {
        self.entries.contains_key(uid)
    }

    fn activate(&mut self, pod: Arc<PodInfo>, failures: u32) {
        let number = self.next;
        self.next += 1;
        let uid = pod.uid().to_owned();
        self.active.push(((pod.priority, Reverse(number)), uid.clone()));
        self.asleep.remove(&uid);
        self.entries.insert(uid, Entry { pod, failures, place: Place::Active(number) });
    }

    fn sleep(&mut self, pod: Arc<PodInfo>, failures: u32, place: Place) {
        let uid = pod.uid().to_owned();
        self.due = self.due.into_iter().chain(due(&place)).min();
        if let Place::Waiting { wakes_on, .. } = place {
            self.wakes_on = Some(self.wakes_on.map_or(wakes_on, |all| all.or(wakes_on)));
        }
        self.asleep.insert(uid.clone());
        self.entries.insert(uid, Entry { pod, failures, place });
    }

    /// A pod is new or changed.
    pub fn set(&mut self, pod: Arc<Pod>) {
        let uid = k8s_core::meta::ObjectExt::uid(&*pod);
        let Some(entry) = self.entries.get_mut(uid) else {
            return self.activate(Arc::new(PodInfo::new(pod)), 0);
        };
        if !matters(&entry.pod.pod, &pod) {
            // Its status alone: keep what was worked out, with the newer pod in it.
            let mut info = (*entry.pod).clone();
            info.pod = pod;
            entry.pod = Arc::new(info);
            return;
        }
        let failures = entry.failures;
        self.activate(Arc::new(PodInfo::new(pod)), failures);
    }

    /// The pod no longer waits; whether it did.
    pub fn remove(&mut self, uid: &str) -> bool {
        self.asleep.remove(uid);
        self.entries.remove(uid).is_some()
    }

    /// The next pod to try. It is out of the queue until it is put back.
    pub fn pop(&mut self, now: Instant) -> Option<Attempt> {
        self.release_due(now);
        while let Some(((_, Reverse(number)), uid)) = self.active.pop() {
            let current = self.entries.get(&uid).is_some_and(|e| e.place == Place::Active(number));
            if current && let Some(entry) = self.entries.remove(&uid) {
                return Some(Attempt { pod: entry.pod, failures: entry.failures });
            }
        }
        None
    }

    /// The pod fits nowhere: it waits for a change of these kinds.
    pub fn wait(&mut self, attempt: Attempt, wakes_on: WakeOn, now: Instant) {
        let failures = attempt.failures.saturating_add(1);
        let place = Place::Waiting { since: now, backoff_until: now + backoff(failures), wakes_on };
        self.sleep(attempt.pod, failures, place);
    }

    /// Something went wrong with the pod: it is tried again after a back-off.
    pub fn retry(&mut self, attempt: Attempt, now: Instant) {
        let failures = attempt.failures.saturating_add(1);
        let place = Place::Backoff { until: now + backoff(failures) };
        self.sleep(attempt.pod, failures, place);
    }

    /// Something changed: pods that it may help are tried again, those that failed lately after the rest of their back-off.
    pub fn wake(&mut self, change: WakeOn, now: Instant) {
        if !self.wakes_on.is_some_and(|all| all.meets(change)) {
            return;
        }
        let (mut ready, mut rest) = (Vec::new(), None::<WakeOn>);
        for uid in &self.asleep {
            let Some(entry) = self.entries.get_mut(uid) else { continue };
            let Place::Waiting { backoff_until, wakes_on, .. } = entry.place else { continue };
            if !wakes_on.meets(change) {
                rest = Some(rest.map_or(wakes_on, |all| all.or(wakes_on)));
            } else if backoff_until > now {
                entry.place = Place::Backoff { until: backoff_until };
                self.due = self.due.into_iter().chain([backoff_until]).min();
            } else {
                ready.push(uid.clone());
            }
        }
        self.wakes_on = rest;
        self.activate_all(ready);
    }

    fn release_due(&mut self, now: Instant) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        let (mut ready, mut next) = (Vec::new(), None::<Instant>);
        for uid in &self.asleep {
            let Some(when) = self.entries.get(uid).and_then(|e| due(&e.place)) else { continue };
            if when <= now {
                ready.push(uid.clone());
            } else {
                next = next.into_iter().chain([when]).min();
            }
        }
        self.due = next;
        self.activate_all(ready);
    }

    /// In a fixed order, whatever order the map has.
    fn activate_all(&mut self, mut uids: Vec<String>) {
        uids.sort_unstable();
        for uid in uids {
            if let Some(entry) = self.entries.remove(&uid) {
                self.activate(entry.pod, entry.failures);
            }
        }
    }

    /// When something may be due by itself.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.due
    }
}

/// When a pod comes back by itself.
fn due(place: &Place) -> Option<Instant> {
    match *place {
        Place::Active(_) => None,
        Place::Backoff { until } => Some(until),
        Place::Waiting { since, .. } => Some(since + LONGEST_WAIT),
    }
}

#[cfg(test)]
mod tests {
    use k8s_core::api::{api::core::v1::PodSpec, apimachinery::pkg::apis::meta::v1::ObjectMeta};
    use proptest::prelude::*;

    use super::*;

    fn pod(uid: u8, priority: i32) -> Arc<Pod> {
        Arc::new(Pod {
            metadata: ObjectMeta { uid: Some(uid.to_string()), ..ObjectMeta::default() },
            spec: Some(PodSpec { priority: Some(priority), ..PodSpec::default() }),
            status: None,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn order_back_off_and_wake_up() {
        let mut q = Queue::default();
        for (uid, priority) in [(1, 0), (2, 10), (3, 0)] {
            q.set(pod(uid, priority));
        }
        let order: Vec<_> = std::iter::from_fn(|| q.pop(Instant::now())).collect();
        assert_eq!(order.iter().map(|a| a.pod.uid()).collect::<Vec<_>>(), ["2", "1", "3"]);
        q.wait(order[0].clone(), WakeOn::NODE, Instant::now());
        q.wake(WakeOn::POD_GONE, Instant::now());
        tokio::time::advance(Duration::from_secs(20)).await;
        assert!(q.pop(Instant::now()).is_none(), "not woken by what cannot help");
        q.wake(WakeOn::NODE, Instant::now());
        let again = q.pop(Instant::now()).unwrap();
        assert_eq!(again.failures, 1);
        q.wait(again, WakeOn::NODE, Instant::now());
        q.wake(WakeOn::NODE, Instant::now());
        assert!(q.pop(Instant::now()).is_none(), "its back-off is not over");
        assert_eq!(q.next_due(), Some(Instant::now() + Duration::from_secs(2)));
        tokio::time::advance(Duration::from_secs(2)).await;
        let again = q.pop(Instant::now()).unwrap();
        q.wait(again, WakeOn::NOTHING, Instant::now());
        tokio::time::advance(LONGEST_WAIT).await;
        assert!(q.pop(Instant::now()).is_some(), "after five minutes anyway");
    }

    proptest! {
        /// A pod is in the queue once, whatever is done; those that are popped come by priority.
        #[test]
        fn never_twice(ops in proptest::collection::vec((0..5u8, 0..6u8, -2..3i32), 1..100)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let mut q = Queue::default();
                let mut out: HashMap<String, Attempt> = HashMap::new();
                for (op, uid, priority) in ops {
                    let now = Instant::now();
                    match op {
                        0 => if !out.contains_key(&uid.to_string()) { q.set(pod(uid, priority)) },
                        1 => if let Some(a) = q.pop(now) { assert!(out.insert(a.pod.uid().to_owned(), a).is_none()) },
                        2 => if let Some(a) = out.remove(&uid.to_string()) { q.wait(a, WakeOn::NODE, now) },
                        3 => { q.wake(WakeOn::NODE, now); q.remove(&uid.to_string()); }
                        _ => tokio::time::advance(Duration::from_secs(uid.into())).await,
                    }
                    assert!(out.keys().all(|uid| !q.contains(uid)));
                }
                let waiting = q.len();
                tokio::time::advance(LONGEST_WAIT).await;
                let all: Vec<Attempt> = std::iter::from_fn(|| q.pop(Instant::now())).collect();
                assert_eq!(all.len(), waiting);
                assert!(all.is_sorted_by_key(|a| Reverse(a.pod.priority)));
            });
        }
    }
}
