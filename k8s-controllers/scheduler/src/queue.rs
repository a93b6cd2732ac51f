//! The scheduling queue: pods that are active, in back-off, or unschedulable until a change could help.

use std::{
    cmp::Ordering,
    collections::{BTreeSet, BinaryHeap, HashMap},
    sync::Arc,
    time::Duration,
};

use k8s_core::api::api::core::v1::Pod;
use tokio::time::Instant;

use crate::{PodInfo, QueueSort, WakeOn};

/// Time after which an unschedulable pod is retried without any change.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// A pod and its number of failed attempts.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    /// The pod.
    pub(crate) pod: Arc<PodInfo>,
    /// Number of failed attempts so far.
    pub(crate) failures: u32,
}

/// The reasons for which a pod waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The plugins that refused, one bit for each row of the profile.
    pub(crate) by: u64,
    /// Kinds of changes that may help.
    pub(crate) wakes_on: WakeOn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Ready to be tried. The number identifies its heap entry; entries with other numbers are stale.
    Active(u64),
    Backoff {
        until: Instant,
    },
    Waiting {
        since: Instant,
        backoff_until: Instant,
        refusal: Refusal,
    },
}

struct Entry {
    pod: Arc<PodInfo>,
    failures: u32,
    place: Place,
}

/// An entry of the heap; the greatest is scheduled first.
struct Ranked {
    pod: Arc<PodInfo>,
    number: u64,
    sort: Arc<dyn QueueSort>,
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.sort.compare(&other.pod, &self.pod).then_with(|| other.number.cmp(&self.number))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ranked {}

/// The scheduling queue.
pub(crate) struct Queue {
    entries: HashMap<String, Entry>,
    active: BinaryHeap<Ranked>,
    next: u64,
    /// Uids of entries that are not active, so that a change need not scan thousands of active ones.
    asleep: BTreeSet<String>,
    /// Earliest time at which an entry becomes active by itself.
    due: Option<Instant>,
    /// Union of the change kinds that can help any waiting pod.
    wakes_on: Option<WakeOn>,
    sort: Arc<dyn QueueSort>,
    backoff: (Duration, Duration),
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("pods", &self.entries.len()).finish_non_exhaustive()
    }
}

/// Returns true if an update could change the pod's feasibility. (The scheduler's own status writes cannot.)
fn matters(old: &Pod, new: &Pod) -> bool {
    old.spec != new.spec
        || old.metadata.labels != new.metadata.labels
        || old.metadata.annotations != new.metadata.annotations
        || generated_claims(old) != generated_claims(new)
}

fn generated_claims(pod: &Pod) -> Option<&Vec<k8s_core::api::api::core::v1::PodResourceClaimStatus>> {
    pod.status.as_ref()?.resource_claim_statuses.as_ref()
}

impl Queue {
    /// Creates a queue in this order. `backoff` has the first and the longest back-off of a pod.
    pub(crate) fn new(sort: Arc<dyn QueueSort>, backoff: (Duration, Duration)) -> Self {
        Queue {
            entries: HashMap::new(),
            active: BinaryHeap::new(),
            next: 0,
            asleep: BTreeSet::new(),
            due: None,
            wakes_on: None,
            sort,
            backoff,
        }
    }

    fn backoff(&self, failures: u32) -> Duration {
        let factor = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX).max(1);
        self.backoff.0.saturating_mul(factor).min(self.backoff.1)
    }

    /// Returns the number of pods in the queue.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns the number of pods in back-off, or unschedulable until a change could help.
    #[must_use]
    pub(crate) fn asleep(&self) -> usize {
        self.asleep.len()
    }

    fn activate(&mut self, pod: Arc<PodInfo>, failures: u32) {
        let number = self.next;
        self.next += 1;
        let uid = pod.uid().to_owned();
        self.active.push(Ranked { pod: pod.clone(), number, sort: self.sort.clone() });
        self.asleep.remove(&uid);
        self.entries.insert(uid, Entry { pod, failures, place: Place::Active(number) });
    }

    fn sleep(&mut self, pod: Arc<PodInfo>, failures: u32, place: Place) {
        let uid = pod.uid().to_owned();
        self.due = self.due.into_iter().chain(due(&place)).min();
        if let Place::Waiting { refusal: Refusal { wakes_on, .. }, .. } = place {
            self.wakes_on = Some(self.wakes_on.map_or(wakes_on, |all| all.or(wakes_on)));
        }
        self.asleep.insert(uid.clone());
        self.entries.insert(uid, Entry { pod, failures, place });
    }

    /// Returns the parsed pod with the newest object in it, if it is in the queue and has not changed in a
    /// way that matters.
    pub(crate) fn get(&self, pod: &Arc<Pod>) -> Option<Arc<PodInfo>> {
        let entry = self.entries.get(k8s_core::meta::ObjectExt::uid(&**pod))?;
        if matters(&entry.pod.pod, pod) {
            return None;
        }
        // Only the status changed: keep the parsed parts and replace the Pod object.
        let mut info = (*entry.pod).clone();
        info.pod = pod.clone();
        Some(Arc::new(info))
    }

    /// Returns the object of a pod in the queue.
    pub(crate) fn object(&self, uid: &str) -> Option<&Pod> {
        Some(&*self.entries.get(uid)?.pod.pod)
    }

    /// Adds or updates a pod. A change of anything but its status lets it be tried at once.
    pub(crate) fn set(&mut self, pod: Arc<PodInfo>) {
        let Some(entry) = self.entries.get_mut(pod.uid()) else { return self.activate(pod, 0) };
        if matters(&entry.pod.pod, &pod.pod) {
            let failures = entry.failures;
            return self.activate(pod, failures);
        }
        entry.pod = pod;
    }

    /// Removes a pod; returns true if it was in the queue.
    pub(crate) fn remove(&mut self, uid: &str) -> bool {
        self.asleep.remove(uid);
        self.entries.remove(uid).is_some()
    }

    /// Takes the next pod to schedule. It leaves the queue until [`Queue::wait`] or [`Queue::retry`] returns
    /// it.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<Attempt> {
        self.release_due(now);
        while let Some(Ranked { pod, number, .. }) = self.active.pop() {
            let current = self.entries.get(pod.uid()).is_some_and(|e| e.place == Place::Active(number));
            if current && let Some(entry) = self.entries.remove(pod.uid()) {
                return Some(Attempt { pod: entry.pod, failures: entry.failures });
            }
        }
        None
    }

    /// Returns an unschedulable pod to the queue; it waits for a change that helps.
    pub(crate) fn wait(&mut self, attempt: Attempt, refusal: Refusal, now: Instant) {
        let failures = attempt.failures.saturating_add(1);
        let place = Place::Waiting { since: now, backoff_until: now + self.backoff(failures), refusal };
        self.sleep(attempt.pod, failures, place);
    }

    /// Returns a pod after an error; it is retried after a back-off.
    pub(crate) fn retry(&mut self, attempt: Attempt, now: Instant) {
        let failures = attempt.failures.saturating_add(1);
        let place = Place::Backoff { until: now + self.backoff(failures) };
        self.sleep(attempt.pod, failures, place);
    }

    /// Activates the pods that a change may help; those that failed recently first serve the rest of their
    /// back-off. `helps` is asked about a pod and the plugins that refused it.
    pub(crate) fn wake(
        &mut self,
        change: WakeOn,
        now: Instant,
        helps: &mut dyn FnMut(&PodInfo, u64) -> bool,
    ) {
        if !self.wakes_on.is_some_and(|all| all.meets(change)) {
            return;
        }
        let (mut ready, mut rest) = (Vec::new(), None::<WakeOn>);
        for uid in &self.asleep {
            let Some(entry) = self.entries.get_mut(uid) else { continue };
            let Place::Waiting { backoff_until, refusal, .. } = entry.place else { continue };
            let wakes_on = refusal.wakes_on;
            if !wakes_on.meets(change) || !helps(&entry.pod, refusal.by) {
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

    /// Lets a waiting pod be tried after its back-off, whatever it waits for.
    pub(crate) fn hurry(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        if let Place::Waiting { backoff_until, .. } = entry.place {
            entry.place = Place::Backoff { until: backoff_until };
            self.due = self.due.into_iter().chain([backoff_until]).min();
        }
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

    /// Activates pods in sorted order, because the map's order is not deterministic.
    fn activate_all(&mut self, mut uids: Vec<String>) {
        uids.sort_unstable();
        for uid in uids {
            if let Some(entry) = self.entries.remove(&uid) {
                self.activate(entry.pod, entry.failures);
            }
        }
    }

    /// Returns the earliest time at which a pod becomes active by itself.
    #[must_use]
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.due
    }
}

/// Returns the time at which a pod becomes active by itself.
fn due(place: &Place) -> Option<Instant> {
    match *place {
        Place::Active(_) => None,
        Place::Backoff { until } => Some(until),
        Place::Waiting { since, .. } => Some(since + LONGEST_WAIT),
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;

    use k8s_core::api::{api::core::v1::PodSpec, apimachinery::pkg::apis::meta::v1::ObjectMeta};
    use proptest::prelude::*;

    use super::*;

    fn queue() -> Queue {
        Queue::new(Arc::new(crate::plugins::PrioritySort), (Duration::from_secs(1), Duration::from_secs(10)))
    }

    fn on(wakes_on: WakeOn) -> Refusal {
        Refusal { by: 1, wakes_on }
    }

    fn wake(q: &mut Queue, change: WakeOn) {
        q.wake(change, Instant::now(), &mut |_, _| true);
    }

    fn pod(uid: u8, priority: i32) -> Arc<Pod> {
        Arc::new(Pod {
            metadata: ObjectMeta { uid: Some(uid.to_string()), ..ObjectMeta::default() },
            spec: Some(PodSpec { priority: Some(priority), ..PodSpec::default() }),
            status: None,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn order_back_off_and_wake_up() {
        let mut q = queue();
        for (uid, priority) in [(1, 0), (2, 10), (3, 0)] {
            q.set(Arc::new(PodInfo::new(pod(uid, priority))));
        }
        let order: Vec<_> = std::iter::from_fn(|| q.pop(Instant::now())).collect();
        assert_eq!(order.iter().map(|a| a.pod.uid()).collect::<Vec<_>>(), ["2", "1", "3"]);
        q.wait(order[0].clone(), on(WakeOn::NODE), Instant::now());
        wake(&mut q, WakeOn::POD_GONE);
        tokio::time::advance(Duration::from_secs(20)).await;
        assert!(q.pop(Instant::now()).is_none(), "not woken by what cannot help");
        q.wake(WakeOn::NODE, Instant::now(), &mut |_, _| false);
        assert!(q.pop(Instant::now()).is_none(), "not woken if the plugin says that it does not help");
        wake(&mut q, WakeOn::NODE);
        let again = q.pop(Instant::now()).unwrap();
        assert_eq!(again.failures, 1);
        q.wait(again, on(WakeOn::NODE), Instant::now());
        wake(&mut q, WakeOn::NODE);
        assert!(q.pop(Instant::now()).is_none(), "its back-off is not over");
        assert_eq!(q.next_due(), Some(Instant::now() + Duration::from_secs(2)));
        tokio::time::advance(Duration::from_secs(2)).await;
        let again = q.pop(Instant::now()).unwrap();
        q.wait(again, on(WakeOn::NOTHING), Instant::now());
        tokio::time::advance(LONGEST_WAIT).await;
        assert!(q.pop(Instant::now()).is_some(), "after five minutes anyway");
    }

    proptest! {
        /// A pod is in the queue at most once after any operations; pods are popped by priority.
        #[test]
        fn never_twice(ops in proptest::collection::vec((0..5u8, 0..6u8, -2..3i32), 1..100)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let mut q = queue();
                let mut out: HashMap<String, Attempt> = HashMap::new();
                for (op, uid, priority) in ops {
                    let now = Instant::now();
                    match op {
                        0 => if !out.contains_key(&uid.to_string()) { q.set(Arc::new(PodInfo::new(pod(uid, priority)))) },
                        1 => if let Some(a) = q.pop(now) { assert!(out.insert(a.pod.uid().to_owned(), a).is_none()) },
                        2 => if let Some(a) = out.remove(&uid.to_string()) { q.wait(a, on(WakeOn::NODE), now) },
                        3 => { wake(&mut q, WakeOn::NODE); q.remove(&uid.to_string()); }
                        _ => tokio::time::advance(Duration::from_secs(uid.into())).await,
                    }
                    assert!(out.keys().all(|uid| !q.entries.contains_key(uid)));
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
