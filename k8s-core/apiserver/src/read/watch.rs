//! Watch: a client's place in a type's history, and what it is sent from there.
//!
//! A watcher takes events from the type's shared history after its client has read the previous ones. Nothing
//! is queued per watcher, so a slow client costs little. When the history no longer has its position, it gets
//! 410 and ends.

#![expect(clippy::disallowed_methods, reason = "deadline and bookmarks of a watch, in virtual time as well")]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use http::{HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use k8s_core::{
    client::{Body, BoxError},
    status::ApiStatus,
};
use k8s_store::{Event, EventKind, Stored, WatchCursor};
use serde_json::Value;
use tokio::time::Instant;

use super::{CHUNK, Presenter, Selection, revision, selection::Selected};
use crate::{
    call::Call,
    errors::{Read, gone},
    limits::InitialEvents,
    metrics::WatchMetrics,
    resources::Resource,
    state::State,
    value::{encode, set},
};

/// A watch sends a bookmark before it ends, so that the next watch need not repeat events.
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);
/// Number of events taken from the history at a time. With small objects they fill about one [`CHUNK`].
const BATCH: usize = 64;

/// State of one watch request: cursor, selectors, deadline, bookmarks.
struct Watch {
    state: Arc<State>,
    selection: Selection,
    presenter: Presenter,
    metrics: WatchMetrics,
    cursor: WatchCursor,
    /// The objects that there were when it began, and the key of the last one sent.
    initial: Option<(Selected, Arc<str>)>,
    /// Told when the initial events are sent.
    sent: InitialEvents,
    /// True if the end of the initial events is to be marked.
    mark_initial: bool,
    bookmarks: bool,
    out: Vec<u8>,
    /// True if a Table's columns were sent.
    begun: bool,
    ended: bool,
    deadline: Instant,
    next_bookmark: Instant,
}

/// GET of a collection with `watch`.
pub(crate) fn watch(
    state: &Arc<State>,
    call: &Call,
    resource: &Arc<Resource>,
) -> Result<Response<Body>, ApiStatus> {
    let presenter = Presenter::from_call(state, call, resource)?;
    let selection = Selection::from_call(call, resource)?;
    let store = &state.store;
    let (from, begin) = revision::of_watch(call, store)?;
    let initial = if begin {
        let selected = selection.select(store, &resource.storage, None);
        Some(selected.map_err(|e| gone(Read::Events, &e))?)
    } else {
        None
    };
    let after = match &initial {
        Some(selected) => selected.revision(),
        None if from == 0 => store.revision(),
        None => from,
    };
    let seconds = call.query.number("timeoutSeconds").and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0);
    let now = Instant::now();
    let pace = &state.pace;
    let timeout =
        Duration::from_secs(seconds.unwrap_or_else(|| k8s_core::random::range(pace.watch_seconds.clone())));
    let deadline = now.checked_add(timeout).unwrap_or(now + timeout.min(Duration::from_secs(3600)));
    let bookmarks = call.query.truth("allowWatchBookmarks");
    let content_type = HeaderValue::from_static(presenter.content_type(true));
    let sent = InitialEvents::default();
    let begins = initial.is_some();
    let watch = Watch {
        state: state.clone(),
        sent: sent.clone(),
        selection,
        presenter,
        metrics: state.metrics.watch(resource),
        cursor: store.watch(&resource.storage, after),
        mark_initial: bookmarks && call.query.truth("sendInitialEvents"),
        initial: initial.map(|selected| (selected, "".into())),
        bookmarks,
        out: Vec::new(),
        begun: false,
        ended: false,
        deadline,
        next_bookmark: next_bookmark(now, deadline, pace.bookmark_every),
    };
    let frames = frames(watch).map(|bytes| Ok::<_, BoxError>(Frame::data(bytes)));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    if begins {
        response.extensions_mut().insert(sent);
    }
    Ok(response)
}

fn next_bookmark(now: Instant, deadline: Instant, every: Duration) -> Instant {
    match deadline.checked_sub(BOOKMARK_BEFORE_END).filter(|last| *last > now) {
        Some(last) => last.min(now + every),
        // None any more.
        None => deadline + every,
    }
}

impl Watch {
    /// Queues an event about an object.
    fn push(&mut self, kind: &str, json: &[u8]) {
        let first = !std::mem::replace(&mut self.begun, true);
        let before = self.out.len();
        self.presenter.event(kind, json, first, &mut self.out);
        self.metrics.sent(self.out.len() - before);
    }

    /// Queues an event as this watcher sees it: an object that starts to be selected is added, one that stops
    /// is deleted.
    fn push_event(&mut self, event: &Event) {
        let before = event.before.as_deref().filter(|b| self.selection.accepts(b));
        let was = event.kind != EventKind::Added && before.is_some();
        let is = event.kind != EventKind::Deleted && self.selection.accepts(&event.object);
        let seen = match (was, is) {
            (false, false) => return,
            (false, true) => EventKind::Added,
            (true, true) => EventKind::Modified,
            (true, false) => EventKind::Deleted,
        };
        match (seen, before) {
            // The watcher gets the last state that was selected, at the revision where that ended.
            (EventKind::Deleted, Some(before)) if event.kind != EventKind::Deleted => {
                self.push("DELETED", &at_revision(before, event.object.revision));
            }
            (EventKind::Added, _) => self.push("ADDED", &event.object.json),
            (EventKind::Modified, _) => self.push("MODIFIED", &event.object.json),
            (EventKind::Deleted, _) => self.push("DELETED", &event.object.json),
        }
    }

    fn push_bookmark(&mut self, revision: u64, initial: bool) {
        self.presenter.bookmark(revision, initial, &mut self.out);
    }

    /// Queues the next of the objects that there were at the beginning; whether there were any to queue.
    fn take_initial(&mut self) -> bool {
        let Some((selected, after)) = self.initial.take() else { return false };
        let mut last = after.clone();
        let mut more = false;
        for object in selected.after(&after) {
            if self.out.len() >= CHUNK {
                more = true;
                break;
            }
            self.push("ADDED", &object.json);
            last = object.key.clone();
        }
        if more {
            self.initial = Some((selected, last));
        } else {
            if self.mark_initial {
                self.push_bookmark(selected.revision(), true);
            }
            self.sent.sent();
        }
        true
    }

    /// Queues what has happened; whether there was anything to look at.
    fn take(&mut self) -> bool {
        match self.cursor.take(BATCH) {
            Ok(events) => {
                self.out.reserve(events.iter().map(|event| event.object.json.len() + 48).sum());
                events.iter().for_each(|event| self.push_event(event));
                !events.is_empty()
            }
            Err(e) => {
                let status = gone(Read::Events, &e);
                self.presenter.failure(&status, &mut self.out);
                self.ended = true;
                true
            }
        }
    }
}

/// An object's JSON with another resourceVersion in it.
fn at_revision(object: &Stored, revision: u64) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(&object.json).unwrap_or_default();
    set(&mut value, "/metadata/resourceVersion", revision.to_string().into());
    encode(&value)
}

/// The frames of a watch, until its deadline or an error.
fn frames(watch: Watch) -> impl Stream<Item = Bytes> + Send {
    stream::unfold(watch, |mut watch| async move {
        loop {
            if !watch.out.is_empty() {
                return Some((Bytes::from(std::mem::take(&mut watch.out)), watch));
            }
            if watch.ended || Instant::now() >= watch.deadline {
                return None;
            }
            if watch.take_initial() || watch.take() {
                continue;
            }
            let wake = if watch.bookmarks { watch.next_bookmark.min(watch.deadline) } else { watch.deadline };
            // Read before waiting: nothing up to here is unseen when the wait begins and ends with the timer.
            let revision = watch.state.store.revision();
            tokio::select! {
                biased;
                () = watch.cursor.changed() => {}
                () = tokio::time::sleep_until(wake) => {
                    if watch.bookmarks && Instant::now() >= watch.next_bookmark && !watch.take() {
                        watch.push_bookmark(revision, false);
                        let every = watch.state.pace.bookmark_every;
                        watch.next_bookmark = next_bookmark(Instant::now(), watch.deadline, every);
                    }
                }
            }
        }
    })
}
