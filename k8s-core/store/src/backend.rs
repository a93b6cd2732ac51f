//! The seam between the store and the place that keeps its objects.
//!
//! A [`Backend`] decides: it takes conditional writes, compares and swaps, gives revisions, and streams
//! every change, its own and those of others, to a [`Sink`]. The store behind the sink only shows what
//! arrives. So a backend may be this process alone ([`Local`](crate::Local)), a database with several
//! writers and revisions of its own, or a wrapper around another backend (encryption, for example).

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::{BackendError, Expect, Meta, StoreError, Stored};

/// Keeps objects and orders their changes.
///
/// # Contract
/// 1. [`Backend::start`] gives every object to the sink, and after that every change, in the order of
///    revisions, once each.
/// 2. A write takes effect if and only if the object is in the state that it expects. A write that took
///    effect is durable before its change reaches the sink.
/// 3. The change of a write of this process carries the write's [`Done`]: the writer is told when its change
///    is visible.
/// 4. A [`Done`] that is dropped tells its writer that the store cannot write.
pub trait Backend: Send + Sync + 'static {
    /// Loads every object into the sink and begins to stream changes to it. Returns the newest revision (0
    /// for an empty store). Called once, before any write.
    ///
    /// # Errors
    /// When what is kept cannot be read.
    fn start(&self, sink: Arc<dyn Sink>) -> Result<u64, BackendError>;

    /// Begins a write and returns without waiting for a device or a network. `done` learns of a refusal; of
    /// success it learns by going along with the change.
    fn write(&self, write: Write<'_>, done: Done);
}

/// A write that takes effect only if the object is in the expected state.
pub struct Write<'a> {
    /// The type, such as `deployments.apps`.
    pub resource: &'a str,
    /// The object's key in its type.
    pub key: &'a str,
    /// The state that the object must be in.
    pub expect: Expect,
    /// The new state: the object, or its deletion.
    pub effect: Effect,
    /// Encodes the object: with its revision where the backend knows it now, else without. Called at most
    /// once; a second call returns nothing. For a deletion these are the bytes of the last state.
    pub encode: &'a mut dyn FnMut(Option<u64>) -> Bytes,
}

impl std::fmt::Debug for Write<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Write").field("key", &self.key).field("expect", &self.expect).finish_non_exhaustive()
    }
}

/// The effect of a write or change.
#[derive(Clone, Debug)]
pub enum Effect {
    /// The object is there. `None`: its metadata is read from its bytes when the change arrives.
    Put(Option<Meta>),
    /// The object is gone.
    Delete,
}

/// A change that took effect and is durable.
#[derive(Debug)]
pub struct Change {
    /// The type, such as `deployments.apps`.
    pub resource: Arc<str>,
    /// The object's key in its type.
    pub key: Arc<str>,
    /// The revision of the change. Greater than that of any change before.
    pub revision: u64,
    /// The new state: the object, or its deletion.
    pub effect: Effect,
    /// The object's bytes; for a deletion, those of its last state.
    pub bytes: Bytes,
    /// The bytes have the revision in them. Otherwise the store puts it in on arrival ([`Format::stamp`]).
    pub stamped: bool,
    /// The writer, if it is of this process.
    pub done: Option<Done>,
}

/// An object that was there before the store was opened.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The type, such as `deployments.apps`.
    pub resource: Arc<str>,
    /// The object's key in its type.
    pub key: Arc<str>,
    /// The revision of its last write.
    pub revision: u64,
    /// The object's bytes.
    pub bytes: Bytes,
    /// The bytes have the revision in them.
    pub stamped: bool,
}

/// The store, as a backend sees it.
pub trait Sink: Send + Sync {
    /// Takes an object that was there before. Only during [`Backend::start`].
    fn load(&self, object: Loaded);

    /// Shows changes to readers and watchers, and tells their writers. Returns false when the store is gone,
    /// so that the backend can end.
    fn apply(&self, changes: Vec<Change>) -> bool;

    /// The visible state of an object: its revision and its bytes. `None`: it is not there.
    fn current(&self, resource: &str, key: &str) -> Option<(u64, Bytes)>;

    /// Reports the reason why writes fail now, or `None` when they work again.
    fn ailing(&self, reason: Option<String>);
}

/// The bytes of objects, to the one who knows what they are.
pub trait Format: Send + Sync + 'static {
    /// Reads uid, labels and selectable fields from an object's bytes.
    fn describe(&self, resource: &str, bytes: &[u8]) -> Meta;

    /// Puts the revision into an object's bytes.
    fn stamp(&self, bytes: Bytes, revision: u64) -> Bytes;
}

/// A format for bytes without metadata and without a revision: for tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Opaque;

impl Format for Opaque {
    fn describe(&self, _: &str, _: &[u8]) -> Meta {
        Meta::default()
    }

    fn stamp(&self, bytes: Bytes, _: u64) -> Bytes {
        bytes
    }
}

/// A writer that waits for the outcome.
#[derive(Debug)]
pub struct Done(oneshot::Sender<Result<Arc<Stored>, StoreError>>);

impl Done {
    pub(crate) fn new() -> (Done, oneshot::Receiver<Result<Arc<Stored>, StoreError>>) {
        let (sender, receiver) = oneshot::channel();
        (Done(sender), receiver)
    }

    /// Refuses the write: the object is at another revision (`None`: not there). To be told when that state
    /// is visible, so that a writer that reads again and retries does not meet the same state.
    pub fn conflict(self, key: &str, have: Option<u64>) {
        self.send(Err(StoreError::Conflict { key: key.to_owned(), have }));
    }

    /// Refuses the write: it was not made, and a later one may succeed.
    pub fn unavailable(self, error: &BackendError) {
        self.send(Err(StoreError::Unavailable(error.to_string())));
    }

    pub(crate) fn written(self, object: Arc<Stored>) {
        self.send(Ok(object));
    }

    fn send(self, outcome: Result<Arc<Stored>, StoreError>) {
        // A writer that went away needs no answer.
        let _ = self.0.send(outcome);
    }
}
