//! The backend of a store that has its process for itself: it numbers writes and makes them durable in
//! groups.
//!
//! Flow: a write is checked against the newest state (writes that wait for their flush included), gets the
//! next revision, is encoded once with it, and waits in a queue. The commit thread takes all that has
//! gathered, makes it durable with one flush ([`Log::commit`]), and gives it to the sink. A log that does
//! not block is committed in the writer's own call.
//!
//! Guarantee: when a flush fails, every write that was checked against its writes fails with it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    Backend, BackendError, Change, Done, Effect, Expect, Loaded, Log, Record, Sink, Volatile, Write,
    pace::{BATCH, Pace},
};

/// The pause between attempts to mend a log that cannot write.
const MEND_EVERY: Duration = Duration::from_secs(1);
const NO_SPACE: &str = "no space left on the disk";

/// A [`Backend`] over a [`Log`]: the only writer of what the log keeps.
pub struct Local(Arc<Mutex<Writer>>);

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Local").field("revision", &lock(&self.0).revision).finish_non_exhaustive()
    }
}

impl Local {
    /// Makes a backend of a log.
    #[must_use]
    pub fn new(log: impl Log) -> Self {
        Local(Arc::new(Mutex::new(Writer {
            revision: 0,
            overlay: HashMap::new(),
            losers: Vec::new(),
            queue: Queue::Idle(Box::new(log)),
        })))
    }

    /// Keeps objects in memory only. Revisions go on from `revision`.
    #[must_use]
    pub fn memory(revision: u64) -> Self {
        Local::new(Volatile { revision })
    }
}

/// The state that writers share, under one lock.
struct Writer {
    revision: u64,
    overlay: Overlay,
    losers: Vec<Loser>,
    queue: Queue,
}

/// The newest state of objects with writes that wait for their flush.
type Overlay = HashMap<(Arc<str>, Arc<str>), Waiting>;

struct Waiting {
    revision: u64,
    /// The object after the write; `None`: it will be deleted.
    state: Option<(u64, Bytes)>,
}

/// A write that lost against one that waits for its flush. It is refused when that one is visible or has
/// failed.
struct Loser {
    to: u64,
    key: Box<str>,
    have: Option<u64>,
    done: Done,
}

impl Loser {
    fn tell(self) {
        self.done.conflict(&self.key, self.have);
    }
}

enum Queue {
    /// The log is not opened yet.
    Idle(Box<dyn Log>),
    /// The log does not block: commits happen in the writer's own call.
    Inline(Box<dyn Log>, Arc<dyn Sink>),
    /// The commit thread owns the log.
    Thread(mpsc::Sender<Pending>, Arc<dyn Sink>),
    /// The log could not be opened: all writes fail.
    Ended,
}

/// A write that waits for its flush.
struct Pending {
    record: Record,
    change: Change,
}

fn lock(writer: &Mutex<Writer>) -> MutexGuard<'_, Writer> {
    // Nothing that runs under the lock panics half-way through a change.
    writer.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backend for Local {
    fn start(&self, sink: Arc<dyn Sink>) -> Result<u64, BackendError> {
        let mut writer = lock(&self.0);
        let Queue::Idle(mut log) = std::mem::replace(&mut writer.queue, Queue::Ended) else {
            return Err(BackendError("the backend was started before".into()));
        };
        let mut newest = 0;
        let revision = log.load(&mut |record| {
            let Record { resource, key, revision, bytes: Some(bytes), .. } = record else { return };
            newest = newest.max(revision);
            sink.load(Loaded { resource, key, revision, bytes, stamped: true });
        })?;
        writer.revision = revision.max(newest);
        if !log.is_well() {
            sink.ailing(Some(NO_SPACE.to_owned()));
        }
        if !log.blocks() {
            writer.queue = Queue::Inline(log, sink);
            return Ok(writer.revision);
        }
        let (sender, receiver) = mpsc::channel();
        let thread = Committer { log, sink: sink.clone(), writer: Arc::downgrade(&self.0) };
        std::thread::Builder::new()
            .name("store-commit".into())
            .spawn(move || thread.run(&receiver))
            .map_err(|e| BackendError(format!("start the commit thread: {e}")))?;
        writer.queue = Queue::Thread(sender, sink);
        Ok(writer.revision)
    }

    fn write(&self, write: Write<'_>, done: Done) {
        lock(&self.0).write(write, done);
    }
}

impl Writer {
    fn write(&mut self, write: Write<'_>, done: Done) {
        let Write { resource, key, expect, effect, encode } = write;
        let sink = match &self.queue {
            Queue::Inline(_, sink) | Queue::Thread(_, sink) => sink,
            // Dropping `done` tells the writer.
            Queue::Idle(_) | Queue::Ended => return,
        };
        let slot: (Arc<str>, Arc<str>) = (resource.into(), key.into());
        let (waiting, before) = match self.overlay.get(&slot) {
            Some(waiting) => (Some(waiting.revision), waiting.state.clone()),
            None => (None, sink.current(resource, key)),
        };
        let have = before.as_ref().map(|(revision, _)| *revision);
        let want = match expect {
            Expect::Absent => None,
            Expect::Revision(revision) => Some(revision),
        };
        if have != want {
            let loser = Loser { to: waiting.unwrap_or(0), key: key.into(), have, done };
            match waiting {
                Some(_) => self.losers.push(loser),
                None => loser.tell(),
            }
            return;
        }
        let revision = self.revision + 1;
        self.revision = revision;
        let bytes = encode(Some(revision));
        let left = matches!(effect, Effect::Put(_)).then(|| bytes.clone());
        let record =
            Record { resource: slot.0.clone(), key: slot.1.clone(), revision, bytes: left.clone(), before };
        let change = Change {
            resource: slot.0.clone(),
            key: slot.1.clone(),
            revision,
            effect,
            bytes,
            stamped: true,
            done: Some(done),
        };
        match &mut self.queue {
            Queue::Inline(log, sink) => match log.commit(&[record]) {
                Ok(()) => {
                    sink.apply(vec![change]);
                }
                Err(e) => refuse([change], &e),
            },
            Queue::Thread(queue, _) => {
                // Without a thread the write is dropped here, which tells its writer.
                if queue.send(Pending { record, change }).is_ok() {
                    let state = left.map(|bytes| (revision, bytes));
                    self.overlay.insert(slot, Waiting { revision, state });
                }
            }
            Queue::Idle(_) | Queue::Ended => {}
        }
    }

    /// Takes out the writes that lost against those up to `last`.
    fn losers_to(&mut self, last: u64) -> Vec<Loser> {
        self.losers.extract_if(.., |loser| loser.to <= last).collect()
    }
}

fn refuse(changes: impl IntoIterator<Item = Change>, error: &BackendError) {
    changes.into_iter().filter_map(|change| change.done).for_each(|done| done.unavailable(error));
}

/// The thread that commits groups of writes to the log.
struct Committer {
    log: Box<dyn Log>,
    sink: Arc<dyn Sink>,
    /// Weak: the queue ends when the backend is dropped.
    writer: Weak<Mutex<Writer>>,
}

impl Committer {
    /// Commits one group after the other, until the backend is dropped.
    #[expect(clippy::disallowed_methods, reason = "a disk recovers in real time, and a thread waits for it")]
    fn run(mut self, queue: &mpsc::Receiver<Pending>) {
        let mut pace = Pace::default();
        // The time of the next attempt to mend a log that cannot write.
        let mut attempt = (!self.log.is_well()).then(Instant::now);
        loop {
            let first = match attempt {
                None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => queue.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            if attempt.is_some_and(|at| at <= Instant::now()) {
                let mended = self.log.mend();
                attempt = mended.is_err().then(|| Instant::now() + MEND_EVERY);
                self.sink.ailing(mended.err().map(|e| e.to_string()));
            }
            let first = match first {
                Ok(first) => first,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let group = gather(first, queue, &mut pace);
            let Some(writer) = self.writer.upgrade() else { return };
            if !self.commit(group, queue, &writer, &mut attempt) {
                return;
            }
        }
    }

    /// Commits a group and tells its writers. Returns false when the store is gone.
    #[expect(clippy::disallowed_methods, reason = "a disk recovers in real time, and a thread waits for it")]
    fn commit(
        &mut self,
        group: Vec<Pending>,
        queue: &mpsc::Receiver<Pending>,
        writer: &Mutex<Writer>,
        attempt: &mut Option<Instant>,
    ) -> bool {
        let (records, mut changes): (Vec<Record>, Vec<Change>) =
            group.into_iter().map(|pending| (pending.record, pending.change)).unzip();
        match self.log.commit(&records) {
            Ok(()) => {
                if attempt.is_none() && !self.log.is_well() {
                    *attempt = Some(Instant::now() + MEND_EVERY);
                    self.sink.ailing(Some(format!("only deletions are written: {NO_SPACE}")));
                }
                if !self.sink.apply(changes) {
                    return false;
                }
                let mut writer = lock(writer);
                forget(&records, &mut writer.overlay);
                let losers = writer.losers_to(records.last().map_or(0, |last| last.revision));
                drop(writer);
                losers.into_iter().for_each(Loser::tell);
            }
            Err(e) => {
                attempt.get_or_insert_with(|| Instant::now() + MEND_EVERY);
                self.sink.ailing(Some(e.to_string()));
                // Writes that were checked against these must fail with them: so the whole queue goes, under
                // the lock.
                let mut writer = lock(writer);
                changes.extend(queue.try_iter().map(|pending| pending.change));
                writer.overlay.clear();
                let losers = writer.losers_to(u64::MAX);
                drop(writer);
                refuse(changes, &e);
                losers.into_iter().for_each(Loser::tell);
            }
        }
        true
    }
}

/// Takes the writes that have gathered behind the first one, after a pause where that pays.
fn gather(first: Pending, queue: &mpsc::Receiver<Pending>, pace: &mut Pace) -> Vec<Pending> {
    let mut group = vec![first];
    let fill = |group: &mut Vec<Pending>| {
        group.extend(queue.try_iter().take(BATCH - group.len()));
        group.len()
    };
    let waiting = fill(&mut group);
    let pause = pace.pause(waiting);
    if !pause.is_zero() {
        std::thread::sleep(pause);
        pace.learn(waiting, fill(&mut group));
    }
    group
}

fn forget(records: &[Record], overlay: &mut Overlay) {
    for record in records {
        let slot = (record.resource.clone(), record.key.clone());
        if overlay.get(&slot).is_some_and(|waiting| waiting.revision == record.revision) {
            overlay.remove(&slot);
        }
    }
}

#[cfg(test)]
mod tests;
