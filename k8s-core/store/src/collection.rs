//! The objects and recent history of one type.

use std::{
    collections::VecDeque,
    sync::{Arc, RwLock},
};

use super::{
    Stored,
    index::{Candidates, Index, Term},
};
use k8s_progress::Progress;
use rpds::RedBlackTreeMapSync;

/// Maximum number of events kept for resumed watches.
const HISTORY_EVENTS: usize = 8192;
/// Maximum size of the kept events' objects, in bytes.
const HISTORY_BYTES: usize = 8 << 20;
/// Number of events that are kept whatever their size.
const HISTORY_LEAST: usize = 256;

/// Kind of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The object was created.
    Added,
    /// The object was changed.
    Modified,
    /// The object was deleted; the event has its last state, at the revision of the deletion.
    Deleted,
}

/// A change of an object.
#[derive(Debug)]
pub struct Event {
    /// Kind of the change.
    pub kind: EventKind,
    /// State after the change.
    pub object: Arc<Stored>,
    /// State before the change, if there was one.
    pub before: Option<Arc<Stored>>,
}

impl Event {
    pub(super) fn new(kind: EventKind, object: Arc<Stored>, before: Option<Arc<Stored>>) -> Self {
        Event { kind, object, before }
    }

    /// Returns the size of its objects in bytes.
    fn size(&self) -> usize {
        self.object.json.len() + self.before.as_ref().map_or(0, |b| b.json.len())
    }
}

/// A consistent view of a type's objects. Costs O(1) and never changes.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Revision of the whole store at that time.
    pub revision: u64,
    objects: RedBlackTreeMapSync<Arc<str>, Arc<Stored>>,
}

impl Snapshot {
    /// Returns an object by key; `None` if there is none.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Arc<Stored>> {
        self.objects.get(key)
    }

    /// Iterates over objects whose key starts with `prefix` and is greater than `after`, in key order.
    ///
    /// ```
    /// use k8s_store::{Expect, Meta, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = Store::memory();
    /// for key in ["default/a", "default/b", "kube-system/a"] {
    ///     store.put("configmaps", key, Expect::Absent, Meta::default(), |_| "{}".into()).await?;
    /// }
    /// let snapshot = store.snapshot("configmaps");
    /// // The second page of a namespace.
    /// let page: Vec<&str> = snapshot.range("default/", "default/a").map(|object| object.name()).collect();
    /// assert_eq!(page, ["b"]);
    /// # Ok(()) }
    /// ```
    pub fn range<'a>(&'a self, prefix: &'a str, after: &str) -> impl Iterator<Item = &'a Arc<Stored>> {
        use std::ops::Bound;
        let from: Arc<str> = if after > prefix { after.into() } else { prefix.into() };
        let after: Arc<str> = after.into();
        self.objects
            .range((Bound::Included(from), Bound::Unbounded))
            .map(|(_, stored)| stored)
            .skip_while(move |stored| !after.is_empty() && *stored.key <= *after)
            .take_while(move |stored| stored.key.starts_with(prefix))
    }

    /// Returns the number of objects.
    #[must_use]
    pub fn len(&self) -> usize {
        self.objects.size()
    }

    /// Returns true if there are no objects.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }
}

#[derive(Debug)]
struct Visible {
    objects: RedBlackTreeMapSync<Arc<str>, Arc<Stored>>,
    /// Copy-on-write: shared with forks.
    index: Arc<Index>,
    history: VecDeque<Arc<Event>>,
    history_bytes: usize,
    /// `history` has all events after this revision.
    complete_after: u64,
    /// Older states are not shown any more, even where history would do.
    compacted: u64,
    /// Revision of the newest event.
    revision: u64,
}

impl Visible {
    /// Iterates over the events after a revision, newest first.
    fn after(&self, revision: u64) -> impl Iterator<Item = &Arc<Event>> {
        self.history.iter().rev().take_while(move |e| e.object.revision > revision)
    }

    fn at(&self, revision: u64) -> Option<Snapshot> {
        if revision < self.complete_after || revision < self.compacted {
            return None;
        }
        let mut objects = self.objects.clone();
        for event in self.after(revision) {
            match &event.before {
                Some(before) => objects.insert_mut(before.key.clone(), before.clone()),
                None => {
                    objects.remove_mut(&event.object.key);
                }
            }
        }
        Some(Snapshot { revision, objects })
    }
}

/// The objects and recent history of one type.
#[derive(Debug)]
pub(super) struct Collection {
    visible: RwLock<Visible>,
    /// Revision up to which events are visible; wakes watchers.
    progress: Progress,
}

/// Reason for which a watch cannot continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// Events after the requested revision are no longer in history: list again.
    #[error("too old resource version: {asked} ({oldest})")]
    TooOld {
        /// Revision from which the watch asked for events.
        asked: u64,
        /// The oldest revision from which a watch can start.
        oldest: u64,
    },
}

impl Collection {
    pub(super) fn new(revision: u64) -> Self {
        Collection {
            visible: RwLock::new(Visible {
                objects: RedBlackTreeMapSync::default(),
                index: Arc::default(),
                history: VecDeque::new(),
                history_bytes: 0,
                complete_after: revision,
                compacted: 0,
                revision,
            }),
            progress: Progress::new(revision),
        }
    }

    /// Returns an independent copy at `revision`, without history.
    pub(super) fn fork(&self, revision: u64) -> Self {
        let visible = self.read();
        Collection {
            visible: RwLock::new(Visible {
                objects: visible.objects.clone(),
                index: visible.index.clone(),
                history: VecDeque::new(),
                history_bytes: 0,
                complete_after: revision,
                compacted: 0,
                revision: visible.revision,
            }),
            progress: Progress::new(revision),
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Visible> {
        // No code under the lock can panic during a change.
        self.visible.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Visible> {
        self.visible.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn load(&self, object: Stored) {
        let mut visible = self.write();
        Arc::make_mut(&mut visible.index).replace(None, Some(&object));
        visible.objects.insert_mut(object.key.clone(), Arc::new(object));
    }

    /// Begins history at the revision at which the store was opened.
    pub(super) fn opened(&self, revision: u64) {
        let mut visible = self.write();
        visible.revision = visible.revision.max(revision);
        visible.complete_after = revision;
        self.progress.advance(revision);
    }

    pub(super) fn last_change(&self) -> u64 {
        self.read().revision
    }

    pub(super) fn get(&self, key: &str) -> Option<Arc<Stored>> {
        self.read().objects.get(key).cloned()
    }

    /// Returns the current state. `revision` is the newest of the whole store, read before.
    pub(super) fn snapshot(&self, revision: u64) -> Snapshot {
        let visible = self.read();
        Snapshot { revision: revision.max(visible.revision), objects: visible.objects.clone() }
    }

    /// Returns the state at `revision` by undoing later events; `None` if history does not reach back that
    /// far.
    pub(super) fn snapshot_at(&self, revision: u64) -> Option<Snapshot> {
        self.read().at(revision)
    }

    /// Returns the current state (`newest` is the newest revision of the whole store, read before) or an
    /// older one, with the objects that may match `wanted`.
    pub(super) fn select(
        &self,
        newest: u64,
        at: Option<u64>,
        wanted: &[Vec<Term<'_>>],
    ) -> Option<(Snapshot, Candidates)> {
        let visible = self.read();
        let candidates = visible.index.candidates(wanted, visible.objects.size());
        let Some(at) = at else {
            let revision = newest.max(visible.revision);
            return Some((Snapshot { revision, objects: visible.objects.clone() }, candidates));
        };
        let candidates = candidates.map(|mut keys| {
            keys.extend(visible.after(at).map(|event| event.object.key.clone()));
            keys.sort_unstable();
            keys.dedup();
            keys
        });
        Some((visible.at(at)?, candidates))
    }

    /// Makes a committed event visible. [`Collection::wake`] wakes the watchers.
    pub(super) fn apply(&self, event: Arc<Event>) {
        let mut visible = self.write();
        let after = (event.kind != EventKind::Deleted).then_some(&*event.object);
        Arc::make_mut(&mut visible.index).replace(event.before.as_deref(), after);
        match event.kind {
            EventKind::Deleted => {
                visible.objects.remove_mut(&event.object.key);
            }
            EventKind::Added | EventKind::Modified => {
                visible.objects.insert_mut(event.object.key.clone(), event.object.clone());
            }
        }
        visible.revision = event.object.revision;
        visible.history_bytes += event.size();
        visible.history.push_back(event);
        while visible.history.len() > HISTORY_EVENTS
            || (visible.history_bytes > HISTORY_BYTES && visible.history.len() > HISTORY_LEAST)
        {
            if let Some(old) = visible.history.pop_front() {
                visible.history_bytes -= old.size();
                visible.complete_after = old.object.revision;
            }
        }
    }

    /// Forgets the events up to a revision, and the states before it. A watch from before goes on if no event
    /// after its revision is forgotten.
    pub(super) fn compact(&self, revision: u64) {
        let mut visible = self.write();
        visible.compacted = visible.compacted.max(revision);
        while let Some(old) = visible.history.pop_front_if(|event| event.object.revision <= revision) {
            visible.history_bytes -= old.size();
            visible.complete_after = old.object.revision;
        }
        visible.history.shrink_to_fit();
    }

    /// Replaces objects by a new representation, if their revision is unchanged.
    pub(super) fn reshape(&self, objects: Vec<Stored>) {
        let mut visible = self.write();
        for new in objects {
            let Some(old) = visible.objects.get(&new.key).filter(|old| old.revision == new.revision) else {
                continue;
            };
            let old = old.clone();
            Arc::make_mut(&mut visible.index).replace(Some(&old), Some(&new));
            visible.objects.insert_mut(old.key.clone(), Arc::new(new));
        }
    }

    pub(super) fn wake(&self, revision: u64) {
        self.progress.advance(revision);
    }

    pub(super) fn cursor(self: &Arc<Self>, after: u64) -> WatchCursor {
        WatchCursor { collection: self.clone(), after, seen: self.progress.get() }
    }
}

/// Position of a watch in a type's history.
///
/// ```
/// use k8s_store::{EventKind, Expect, Meta, Store};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = Store::memory();
/// let mut watch = store.watch("configmaps", store.revision());
/// let put = store.put("configmaps", "default/a", Expect::Absent, Meta::default(), |_| "{}".into());
/// let (_, written) = tokio::join!(watch.changed(), put);
/// let events = watch.take(100)?;
/// assert_eq!((events[0].kind, watch.position()), (EventKind::Added, written?.revision));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct WatchCursor {
    collection: Arc<Collection>,
    after: u64,
    /// Progress at the last wait.
    seen: u64,
}

impl WatchCursor {
    /// Returns up to `most` events after the cursor and advances it; empty if there are none yet.
    ///
    /// # Errors
    /// [`WatchError::TooOld`] if history no longer has all of them.
    pub fn take(&mut self, most: usize) -> Result<Vec<Arc<Event>>, WatchError> {
        let visible = self.collection.read();
        if self.after < visible.complete_after {
            return Err(WatchError::TooOld { asked: self.after, oldest: visible.complete_after });
        }
        let first = visible.history.partition_point(|e| e.object.revision <= self.after);
        let events: Vec<Arc<Event>> = visible.history.range(first..).take(most).cloned().collect();
        if let Some(last) = events.last() {
            self.after = last.object.revision;
        }
        Ok(events)
    }

    /// Waits until there was a commit to the type since the last call.
    pub async fn changed(&mut self) {
        self.seen = self.collection.progress.reached(self.seen + 1).await;
    }

    /// Returns the revision up to which events were taken.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.after
    }
}
