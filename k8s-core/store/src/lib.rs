//! The store: all objects of a cluster in memory with their recent history (MVCC), made durable by a backend.
//!
//! Flow: a write is checked against the newest state (pending writes included), gets the next revision, is
//! encoded with it, and is queued. A committer takes all queued writes, makes them durable with one flush
//! ([`Backend::commit`]), and only then makes them visible to readers and watchers and acknowledges them.
//!
//! Guarantees:
//! 1. An acknowledged write survives a crash; a write that was not acknowledged was never visible.
//! 2. Revisions are unique across all types and increase by one per write; events of a type are in revision
//!    order, without gaps.
//! 3. A [`Snapshot`] never changes and costs O(1); reads never wait for writes.
//! 4. A backend that cannot write (full disk) fails writes with [`StoreError::Unavailable`]; reads and state
//!    are unaffected. Recovery is attempted every second; [`Store::ailment`] has the reason meanwhile.
//!
//! Not here: the meaning of objects (the store knows key, labels, fields and bytes), and expiry (the API
//! server sweeps).

mod backend;
mod collection;
mod commit;
mod embedded;
mod group;
mod index;

pub use backend::{Backend, BackendError, Memory, Record};
pub use collection::{Event, EventKind, Snapshot, WatchCursor, WatchError};
pub use commit::{Expect, Store, StoreError};
pub use embedded::{Embedded, OpenError};
pub use index::{Candidates, Term};

use std::sync::Arc;

use bytes::Bytes;

/// A stored object. Immutable; a write creates a new one.
#[derive(Clone, Debug)]
pub struct Stored {
    /// `namespace/name`, or the name alone.
    pub key: Arc<str>,
    /// Revision of the write.
    pub revision: u64,
    /// Unique id.
    pub uid: Box<str>,
    /// Labels, sorted.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the selectable fields, in the order of the type's row.
    pub fields: Box<[Box<str>]>,
    /// The whole object as JSON, with its resourceVersion.
    pub json: Bytes,
}

impl Stored {
    /// Returns the value of a label.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| &**k == key).map(|(_, v)| &**v)
    }

    /// Returns the object's index data.
    fn meta(&self) -> Meta {
        Meta { uid: self.uid.clone(), labels: self.labels.clone(), fields: self.fields.clone() }
    }

    /// Returns the namespace; empty for cluster-scoped objects.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// Returns the object's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.key.rsplit_once('/').map_or(&self.key, |(_, name)| name)
    }
}

/// Index data of an object: everything that the store needs beside its bytes.
#[derive(Clone, Debug, Default)]
pub struct Meta {
    /// Unique id.
    pub uid: Box<str>,
    /// Labels, sorted.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the type's selectable fields.
    pub fields: Box<[Box<str>]>,
}
