//! The work queue: deduplicated keys, each processed by one worker at a time.
//!
//! Flow: [`WorkQueue::add`] marks a key; [`WorkQueue::get`] gives it to a worker; [`WorkQueue::done`] returns
//! it, and a key that was added meanwhile is queued again. [`WorkQueue::add_after`] and [`WorkQueue::retry`]
//! add with a delay.
//!
//! Fairness: failed keys wait in a separate lane, which gets every fifth turn while others wait, and only
//! some of the workers. A thousand broken objects therefore do not slow down the healthy ones. A key is
//! handed out at most a hundred times per second.
//!
//! Guarantees: a key is queued at most once, is never with two workers, and no add is lost. Delays use tokio
//! time, so tests can pause it.

#![expect(clippy::disallowed_methods, reason = "delays of keys, in virtual time as well")]

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet, VecDeque},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{sync::Notify, time::Instant};

use crate::metrics::QueueMetrics;

/// Exponential back-off: the n-th retry waits `first * 2^n`, at most `longest`, reduced by jitter of up to
/// half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Delay before the first retry.
    pub first: Duration,
    /// Maximum delay.
    pub longest: Duration,
}

impl Default for Backoff {
    /// The values of upstream's controllers: 5 ms to 1000 s.
    fn default() -> Self {
        Backoff { first: Duration::from_millis(5), longest: Duration::from_secs(1000) }
    }
}

impl Backoff {
    /// Returns the delay before retry number `failures` (from 0), before jitter.
    ///
    /// ```
    /// use std::time::Duration;
    /// use k8s_controllers::Backoff;
    /// let backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(60) };
    /// let delays: Vec<u64> = (0..8).map(|failures| backoff.delay(failures).as_secs()).collect();
    /// assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60]);
    /// ```
    #[must_use]
    pub fn delay(&self, failures: u32) -> Duration {
        let factor = 1u32.checked_shl(failures).filter(|f| *f > 0).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.longest)
    }
}

struct State<K> {
    ready: VecDeque<K>,
    /// Like `ready`, for failed keys.
    failed: VecDeque<K>,
    /// Consecutive turns of `ready` while `failed` waited.
    turns: u32,
    /// Keys in processing that had failed before.
    failing: HashSet<K>,
    /// Times since which keys wait, and at which they were taken; recorded only with metrics.
    waiting: HashMap<K, Instant>,
    begun: HashMap<K, Instant>,
    metrics: Option<Arc<QueueMetrics>>,
    /// Keys that need work: in `ready` or `failed`, or added while being processed.
    dirty: HashSet<K>,
    processing: HashSet<K>,
    later: BinaryHeap<Reverse<(Instant, u64)>>,
    /// Keys of the entries in `later`; an entry without one is stale.
    later_keys: HashMap<u64, K>,
    due: HashMap<K, (Instant, u64)>,
    next_id: u64,
    failures: HashMap<K, u32>,
    /// Number of times that each key was taken in the current second, and its start.
    taken: HashMap<K, u32>,
    second: Instant,
    rng: StdRng,
    closed: bool,
}

/// A deduplicating queue with delays and back-off.
///
/// ```
/// use std::time::Duration;
/// use k8s_controllers::{Backoff, WorkQueue};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let queue = WorkQueue::new(Backoff::default(), 7);
/// queue.add("a");
/// queue.add("a"); // once
/// let key = queue.get().await.expect("the queue is open");
/// queue.add("a"); // changed meanwhile: it comes back
/// queue.done(&key);
/// assert_eq!((queue.len(), queue.get().await), (1, Some("a")));
/// assert!(queue.retry("a") <= Duration::from_millis(5) && queue.failures(&"a") == 1);
/// # }
/// ```
pub struct WorkQueue<K> {
    state: Mutex<State<K>>,
    wake: Notify,
    backoff: Backoff,
    /// Maximum number of workers on failed keys.
    most_failing: usize,
}

/// Maximum rate at which one key is handed out, per second. Without it two controllers that undo each other's
/// work, one with a lagging cache, would loop as fast as they can.
const A_SECOND: u32 = 100;
const SECOND: Duration = Duration::from_secs(1);

/// Turns of other keys before a failed key gets one.
const TURNS: u32 = 4;

impl<K> std::fmt::Debug for WorkQueue<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkQueue").field("backoff", &self.backoff).finish_non_exhaustive()
    }
}

impl<K: Clone + Eq + Hash> WorkQueue<K> {
    /// Creates an empty queue; `seed` determines the back-off's jitter.
    #[must_use]
    pub fn new(backoff: Backoff, seed: u64) -> Self {
        WorkQueue {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                failed: VecDeque::new(),
                turns: 0,
                failing: HashSet::new(),
                waiting: HashMap::new(),
                begun: HashMap::new(),
                metrics: None,
                dirty: HashSet::new(),
                processing: HashSet::new(),
                later: BinaryHeap::new(),
                later_keys: HashMap::new(),
                due: HashMap::new(),
                next_id: 0,
                failures: HashMap::new(),
                taken: HashMap::new(),
                second: Instant::now(),
                rng: StdRng::seed_from_u64(seed),
                closed: false,
            }),
            wake: Notify::new(),
            backoff,
            most_failing: usize::MAX,
        }
    }

    /// Limits the number of workers on failed keys.
    #[must_use]
    pub fn most_failing(mut self, workers: usize) -> Self {
        self.most_failing = workers.max(1);
        self
    }

    /// Records metrics.
    #[must_use]
    pub fn measured(self, metrics: Arc<QueueMetrics>) -> Self {
        self.lock().metrics = Some(metrics);
        self
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks a key as needing work.
    pub fn add(&self, key: K) {
        if self.lock().add(key) {
            self.wake.notify_one();
        }
    }

    /// Adds a key after `delay`; of several delays the earliest time counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let Some(when) = Instant::now().checked_add(delay) else { return };
        if self.lock().put_off(key, when) {
            self.wake.notify_one();
        }
    }

    /// Adds a failed key after its back-off. Returns the delay.
    pub fn retry(&self, key: K) -> Duration {
        let delay = {
            let mut state = self.lock();
            let failures = state.failures.entry(key.clone()).or_insert(0);
            let delay = self.backoff.delay(*failures);
            *failures = failures.saturating_add(1);
            delay.mul_f64(state.rng.random_range(0.5..=1.0))
        };
        if let Some(metrics) = &self.lock().metrics {
            metrics.retried();
        }
        self.add_after(key, delay);
        delay
    }

    /// Resets a key's back-off.
    pub fn forget(&self, key: &K) {
        self.lock().failures.remove(key);
    }

    /// Returns the number of consecutive failures of a key.
    #[must_use]
    pub fn failures(&self, key: &K) -> u32 {
        self.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// Returns the next key, exclusively until [`WorkQueue::done`]; `None` after the queue was closed.
    pub async fn get(&self) -> Option<K> {
        loop {
            let next_due = {
                let mut state = self.lock();
                if state.closed {
                    return None;
                }
                let now = Instant::now();
                state.promote(now);
                if let Some(key) = state.next(self.most_failing) {
                    state.count(&key, now);
                    state.dirty.remove(&key);
                    state.processing.insert(key.clone());
                    if let Some(metrics) = state.metrics.clone() {
                        let since = state.waiting.remove(&key).unwrap_or(now);
                        state.begun.insert(key.clone(), now);
                        metrics.taken(now.duration_since(since), now, state.depth());
                    }
                    // Wake another worker for the remaining keys and timers.
                    if state.depth() > 0 || !state.later.is_empty() {
                        self.wake.notify_one();
                    }
                    return Some(key);
                }
                state.later.peek().map(|Reverse((when, _))| *when)
            };
            let notified = self.wake.notified();
            match next_due {
                None => notified.await,
                Some(when) => tokio::select! {
                    biased;
                    () = notified => {}
                    () = tokio::time::sleep_until(when) => {}
                },
            }
        }
    }

    /// Returns a processed key.
    pub fn done(&self, key: &K) {
        self.rest(key);
        let mut state = self.lock();
        state.processing.remove(key);
        let again = state.dirty.contains(key) && !state.closed;
        if again {
            state.enqueue(key.clone());
        }
        drop(state);
        if again {
            self.wake.notify_one();
        }
    }

    /// Ends the processing of a key without making it available; [`WorkQueue::done`] must follow. The key no
    /// longer occupies a worker.
    pub fn rest(&self, key: &K) {
        let mut state = self.lock();
        let made_room = state.failing.remove(key) && !state.failed.is_empty();
        if let Some(begun) = state.begun.remove(key)
            && let Some(metrics) = &state.metrics
        {
            metrics.done(begun, state.depth());
        }
        drop(state);
        if made_room {
            self.wake.notify_one();
        }
    }

    /// Closes the queue: every [`WorkQueue::get`] returns `None`, adds are ignored.
    pub fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_waiters();
        self.wake.notify_one();
    }

    /// Returns the number of ready keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().depth()
    }

    /// Returns true if no key is ready.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    /// Adds a key; returns true if a worker should be woken.
    fn add(&mut self, key: K) -> bool {
        if self.closed || !self.dirty.insert(key.clone()) {
            return false;
        }
        let wakes = !self.processing.contains(&key);
        if wakes {
            self.enqueue(key);
        }
        if let Some(metrics) = &self.metrics {
            metrics.added(self.depth());
        }
        wakes
    }

    /// Schedules a key for `when`, unless it is due earlier. Returns true if a worker must update its timer.
    fn put_off(&mut self, key: K, when: Instant) -> bool {
        if self.closed || self.due.get(&key).is_some_and(|(known, _)| *known <= when) {
            return false;
        }
        let id = self.next_id;
        self.next_id += 1;
        if let Some((_, stale)) = self.due.insert(key.clone(), (when, id)) {
            self.later_keys.remove(&stale);
        }
        self.later_keys.insert(id, key);
        self.later.push(Reverse((when, id)));
        true
    }

    fn enqueue(&mut self, key: K) {
        let often = self.taken.get(&key).is_some_and(|times| *times >= A_SECOND);
        if often && self.second.elapsed() < SECOND {
            self.dirty.remove(&key);
            self.put_off(key, self.second + SECOND);
            return;
        }
        if self.metrics.is_some() {
            self.waiting.entry(key.clone()).or_insert_with(Instant::now);
        }
        if self.failures.contains_key(&key) {
            self.failed.push_back(key);
        } else {
            self.ready.push_back(key);
        }
    }

    fn depth(&self) -> usize {
        self.ready.len() + self.failed.len()
    }

    /// Counts a handed-out key.
    fn count(&mut self, key: &K, now: Instant) {
        if now.duration_since(self.second) >= SECOND {
            self.taken.clear();
            self.second = now;
        }
        *self.taken.entry(key.clone()).or_default() += 1;
    }

    /// Returns the next key by turns.
    fn next(&mut self, most_failing: usize) -> Option<K> {
        let may_fail = self.failing.len() < most_failing && !self.failed.is_empty();
        if may_fail && (self.ready.is_empty() || self.turns >= TURNS) {
            self.turns = 0;
            let key = self.failed.pop_front()?;
            self.failing.insert(key.clone());
            return Some(key);
        }
        self.turns = self.turns.saturating_add(u32::from(may_fail));
        self.ready.pop_front()
    }

    fn promote(&mut self, now: Instant) {
        while let Some(Reverse((when, id))) = self.later.peek().copied() {
            let stale = !self.later_keys.contains_key(&id);
            if !stale && when > now {
                return;
            }
            self.later.pop();
            if let Some(key) = self.later_keys.remove(&id) {
                self.due.remove(&key);
                self.add(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn queue() -> WorkQueue<u8> {
        WorkQueue::new(Backoff::default(), 1)
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_of_several_delays_counts() {
        let q = queue();
        let start = Instant::now();
        q.add_after(1, Duration::from_secs(60));
        q.add_after(1, Duration::from_secs(5));
        q.add_after(1, Duration::from_secs(30));
        assert_eq!(q.get().await, Some(1));
        assert_eq!(start.elapsed().as_secs(), 5);
        q.done(&1);
        assert!(tokio::time::timeout(Duration::from_secs(600), q.get()).await.is_err(), "added once only");
    }

    #[tokio::test(start_paused = true)]
    async fn a_delayed_key_is_not_late_while_another_worker_is_busy() {
        let q = Arc::new(queue());
        let second = tokio::spawn({
            let q = q.clone();
            async move {
                let start = Instant::now();
                let mut got = Vec::new();
                while let Some(key) = q.get().await {
                    got.push((key, start.elapsed().as_secs()));
                }
                got
            }
        });
        q.add(1);
        assert_eq!(q.get().await, Some(1)); // and keeps it
        q.add_after(2, Duration::from_secs(3));
        q.add(3);
        tokio::time::sleep(Duration::from_secs(10)).await;
        q.close();
        let mut got = second.await.unwrap();
        got.sort_unstable();
        assert_eq!(got, [(2, 3), (3, 0)]);
    }

    #[tokio::test(start_paused = true)]
    async fn back_off_grows_within_its_bounds_and_is_forgotten() {
        let q = queue();
        for n in 0..40 {
            let full = Backoff::default().delay(n);
            let delay = q.retry(7);
            assert!(delay <= full && delay >= full / 2, "{n}: {delay:?} of {full:?}");
        }
        assert_eq!(q.failures(&7), 40);
        q.forget(&7);
        assert!(q.retry(7) <= Duration::from_millis(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_failures_wait_behind_the_healthy_but_not_for_ever() {
        let q = WorkQueue::new(Backoff::default(), 1).most_failing(1);
        for key in 0..1000u32 {
            q.add(key);
            assert_eq!(q.get().await, Some(key));
            q.retry(key);
            q.done(&key);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        for key in 2000..2020u32 {
            q.add(key);
        }
        let mut healthy = 0;
        for turn in 0..25 {
            let key = q.get().await.unwrap();
            healthy += u32::from(key >= 2000);
            assert!(healthy >= turn * 4 / 5, "turn {turn}");
            q.done(&key);
        }
        assert_eq!(healthy, 20, "all of them within 25 turns");
        // A failed key is being processed: no other failed key is handed out, but a healthy one is.
        let broken = q.get().await.unwrap();
        assert!(broken < 1000);
        assert!(tokio::time::timeout(Duration::from_secs(1), q.get()).await.is_err());
        q.add(3000);
        assert_eq!(q.get().await, Some(3000));
        q.done(&broken);
        assert!(q.get().await.unwrap() < 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_rests_is_nobodys_and_takes_no_room() {
        let q = WorkQueue::new(Backoff::default(), 1).most_failing(1);
        for key in [1, 2] {
            q.retry(key);
        }
        let first = q.get().await.unwrap();
        let other = 3 - first;
        q.add(first);
        assert!(
            tokio::time::timeout(Duration::from_secs(1), q.get()).await.is_err(),
            "one at most that failed"
        );
        q.rest(&first);
        assert_eq!(q.get().await, Some(other));
        q.done(&other);
        assert!(tokio::time::timeout(Duration::from_secs(1), q.get()).await.is_err(), "it rests");
        q.done(&first);
        assert_eq!(q.get().await, Some(first), "added while it was worked on");
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_added_all_the_time_leaves_time_to_pass() {
        let q = queue();
        let start = Instant::now();
        for turn in 0..1000u32 {
            // Added during processing, or after it.
            if turn % 2 == 0 {
                q.add(1);
                assert_eq!(q.get().await, Some(1));
                q.add(1);
            } else {
                assert_eq!(q.get().await, Some(1));
            }
            q.done(&1);
            assert!(start.elapsed().as_secs() >= u64::from(turn / A_SECOND));
        }
        q.add(2);
        assert_eq!(q.get().await, Some(2), "others need not wait");
        assert!(start.elapsed().as_secs() < 11);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_measured_is_what_happens() {
        let metrics = Arc::new(QueueMetrics::new(&crate::metrics::Registry::default(), "q"));
        let q = WorkQueue::new(Backoff::default(), 1).measured(metrics.clone());
        q.add(1);
        q.add(1);
        q.add(2);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(q.get().await, Some(1));
        q.retry(1);
        q.done(&1);
        assert_eq!((metrics.adds(), metrics.retries()), (2, 1));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Add(u8),
        AddAfter(u8, u64),
        Get,
        Done(u8),
        Sleep(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0..4u8).prop_map(Op::Add),
            (0..4u8, 1..50u64).prop_map(|(k, d)| Op::AddAfter(k, d)),
            Just(Op::Get),
            (0..4u8).prop_map(Op::Done),
            (1..60u64).prop_map(Op::Sleep),
        ]
    }

    proptest! {
        /// A key is never with two workers and never duplicated, and every add is followed by a get.
        #[test]
        fn serial_and_lossless(ops in proptest::collection::vec(op(), 1..80)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let q = queue();
                let mut held = HashSet::new();
                let (mut owed, mut later) = (HashSet::new(), HashSet::new());
                for op in ops {
                    match op {
                        Op::Add(k) => { q.add(k); owed.insert(k); }
                        Op::AddAfter(k, ms) => { q.add_after(k, Duration::from_millis(ms)); later.insert(k); }
                        Op::Get => {
                            if let Ok(Some(k)) = tokio::time::timeout(Duration::from_nanos(1), q.get()).await {
                                assert!(held.insert(k), "{k} is with two workers");
                                assert!(owed.remove(&k) || later.contains(&k), "{k} came from nowhere");
                            }
                        }
                        Op::Done(k) => if held.remove(&k) { q.done(&k) },
                        Op::Sleep(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
                    }
                }
                for k in held.drain() { q.done(&k); }
                while let Ok(Some(k)) = tokio::time::timeout(Duration::from_secs(1), q.get()).await {
                    assert!(owed.remove(&k) || later.contains(&k), "{k} came from nowhere");
                    q.done(&k);
                }
                assert!(owed.is_empty(), "added and never handed out: {owed:?}");
            });
        }
    }
}
