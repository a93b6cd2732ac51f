//! The commit thread: takes what has gathered, makes it durable, shows it, and tells the writers.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, Weak,
        atomic::Ordering,
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use tokio::sync::{oneshot, watch};
use tracing::{error, info};

use super::{
    Backend, BackendError, Event, Record, Stored,
    collection::Collection,
    commit::{Inner, StoreError},
};

/// How many writes one flush carries at most.
const BATCH: usize = 512;
/// How often a backend that cannot write is asked to mend itself.
const MEND_EVERY: Duration = Duration::from_secs(1);

/// A write that waits for its flush.
pub(super) struct Pending {
    pub(super) collection: Arc<Collection>,
    pub(super) record: Record,
    pub(super) event: Arc<Event>,
    pub(super) done: oneshot::Sender<Result<Arc<Stored>, StoreError>>,
}

/// The newest state of an object with pending writes: `None` when it will be deleted.
pub(super) type Overlay = HashMap<(Arc<str>, Arc<str>), (u64, Option<Arc<Stored>>)>;

/// How long the commit thread lets more writes come before it flushes what has gathered. A flush costs much more than one more write in it; but whoever
/// writes alone should not wait. So it waits only where several write at once, and only as long as waiting brings enough of them.
#[derive(Debug, Default)]
struct Pace {
    window: Duration,
    /// How many groups go by before another attempt.
    rest: u32,
}

impl Pace {
    /// So many writes at once are many.
    const MANY: usize = 4;
    const SHORTEST: Duration = Duration::from_micros(250);
    const LONGEST: Duration = Duration::from_millis(2);
    /// After an attempt that brought nothing.
    const REST: u32 = 32;

    /// How long to wait with so many writes there.
    fn pause(&mut self, waiting: usize) -> Duration {
        if !(Self::MANY..BATCH / 2).contains(&waiting) {
            return Duration::ZERO;
        }
        if self.window.is_zero() {
            if self.rest > 0 {
                self.rest -= 1;
                return Duration::ZERO;
            }
            self.window = Self::SHORTEST;
        }
        self.window
    }

    /// What the wait brought: `before` writes have become `after`.
    fn learn(&mut self, before: usize, after: usize) {
        if after >= before + before / 4 {
            self.window = (self.window * 2).min(Self::LONGEST);
        } else {
            self.window /= 2;
            if self.window < Self::SHORTEST {
                *self = Pace { window: Duration::ZERO, rest: Self::REST };
            }
        }
    }
}

/// Commits one group after the other, until the store is dropped.
pub(super) fn commit_loop(
    mut backend: Box<dyn Backend>,
    queue: &mpsc::Receiver<Pending>,
    settled: &watch::Sender<u64>,
    store: &Weak<Inner>,
) {
    let mut pace = Pace::default();
    // The next attempt to mend a backend that cannot write.
    let mut attempt = (!backend.is_well()).then(Instant::now);
    loop {
        let first = match attempt {
            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => queue.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        if attempt.is_some_and(|at| at <= Instant::now()) {
            let mended = backend.mend();
            attempt = mended.is_err().then(|| Instant::now() + MEND_EVERY);
            match store.upgrade() {
                Some(store) => tell(&store, mended.err().map(|e| e.to_string())),
                None => return,
            }
        }
        let first = match first {
            Ok(first) => first,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let mut batch = vec![first];
        let gather = |batch: &mut Vec<Pending>| {
            batch.extend(queue.try_iter().take(BATCH - batch.len()));
            batch.len()
        };
        let waiting = gather(&mut batch);
        let pause = pace.pause(waiting);
        if !pause.is_zero() {
            std::thread::sleep(pause);
            pace.learn(waiting, gather(&mut batch));
        }
        let Some(store) = store.upgrade() else { return };
        let mut last = batch.last().map_or(0, |p| p.record.revision);
        let records: Vec<Record> = batch.iter().map(|p| p.record.clone()).collect();
        match backend.commit(&records) {
            Ok(()) => {
                if attempt.is_none() && !backend.is_well() {
                    attempt = Some(Instant::now() + MEND_EVERY);
                    tell(&store, Some("only deletions are written: no space left on the disk".to_owned()));
                }
                show(&batch, &store);
                let mut writer = store.writer.lock().unwrap_or_else(PoisonError::into_inner);
                forget(&batch, &mut writer.overlay);
                drop(writer);
                acknowledge(batch);
            }
            Err(e) => {
                attempt.get_or_insert_with(|| Instant::now() + MEND_EVERY);
                tell(&store, Some(e.to_string()));
                // Whatever was checked against these writes must fail with them, so the whole queue goes, under the writers' lock.
                let mut writer = store.writer.lock().unwrap_or_else(PoisonError::into_inner);
                batch.extend(queue.try_iter());
                writer.overlay.clear();
                last = writer.revision;
                drop(writer);
                refuse(batch, &e);
            }
        }
        settled.send_replace(last);
    }
}

/// Keeps what ails the backend, for those who ask, and logs when that begins and ends.
fn tell(store: &Inner, now: Option<String>) {
    let mut ailment = store.ailment.write().unwrap_or_else(PoisonError::into_inner);
    match (&*ailment, &now) {
        (None, Some(why)) => error!(why, "the store cannot write"),
        (Some(_), None) => info!("the store writes again"),
        _ => {}
    }
    *ailment = now;
}

/// Commits in the caller's own time, under the writers' lock.
pub(super) fn commit(backend: &mut dyn Backend, batch: Vec<Pending>, store: &Inner, overlay: &mut Overlay) {
    let records: Vec<Record> = batch.iter().map(|p| p.record.clone()).collect();
    match backend.commit(&records) {
        Ok(()) => {
            show(&batch, store);
            forget(&batch, overlay);
            acknowledge(batch);
        }
        Err(e) => refuse(batch, &e),
    }
}

fn show(batch: &[Pending], store: &Inner) {
    let mut last = 0;
    for pending in batch {
        pending.collection.apply(pending.event.clone());
        last = pending.record.revision;
    }
    store.visible.fetch_max(last, Ordering::Release);
    let mut woken: Vec<&Arc<Collection>> = Vec::new();
    for pending in batch {
        if !woken.iter().any(|c| Arc::ptr_eq(c, &pending.collection)) {
            pending.collection.wake(last);
            woken.push(&pending.collection);
        }
    }
}

fn forget(batch: &[Pending], overlay: &mut Overlay) {
    for Pending { record, .. } in batch {
        let slot = (record.resource.clone(), record.key.clone());
        if overlay.get(&slot).is_some_and(|(revision, _)| *revision == record.revision) {
            overlay.remove(&slot);
        }
    }
}

fn acknowledge(batch: Vec<Pending>) {
    for pending in batch {
        // A writer that went away does not need to know.
        let _ = pending.done.send(Ok(pending.event.object.clone()));
    }
}

fn refuse(batch: Vec<Pending>, error: &BackendError) {
    for pending in batch {
        let _ = pending.done.send(Err(StoreError::Unavailable(error.to_string())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pause before each of `groups` flushes, with `writers` of whom `returning` come back while the thread waits.
    fn pauses(writers: usize, returning: usize, groups: usize) -> Vec<Duration> {
        let mut pace = Pace::default();
        let one = |_| {
            let pause = pace.pause(writers);
            if !pause.is_zero() {
                pace.learn(writers, writers + returning);
            }
            pause
        };
        (0..groups).map(one).collect()
    }

    #[test]
    fn a_few_writers_never_wait() {
        for writers in 1..Pace::MANY {
            assert!(pauses(writers, 10, 1000).iter().all(Duration::is_zero));
        }
    }

    #[test]
    fn a_stream_of_writes_gathers_for_longer_and_longer() {
        let all = pauses(8, 8, 50);
        assert!(all.is_sorted());
        assert_eq!(all.last(), Some(&Pace::LONGEST));
    }

    #[test]
    fn who_waits_in_vain_stops_soon_and_tries_seldom() {
        let all = pauses(8, 0, 1000);
        assert!(all.iter().sum::<Duration>() < Duration::from_millis(10), "of a thousand groups: {all:?}");
        assert!(all[500..].iter().any(|p| !p.is_zero()), "but it does try again");
    }
}
