//! The store: every object of a cluster in memory with its history, made durable by a small backend.
//!
//! Flow: a write is checked against the newest state (pending writes included), gets the next revision, is encoded once with that revision
//! in it, and waits in a queue; a committer takes all that has gathered, makes it durable with one flush ([`Backend::commit`]), and
//! only then shows it to readers and watchers and acknowledges it.
//!
//! Guarantees:
//! 1. A write that was acknowledged survives a crash; one that was not acknowledged was never seen by anybody.
//! 2. Revisions are unique across all types and grow by one per write; events of a type come in revision order, without gaps.
//! 3. A [`Snapshot`] never changes and costs O(1); reads never wait for writes.
//! 4. A backend that cannot write (full disk) fails those writes with [`StoreError::Unavailable`] and leaves reads and the state as they were. It is asked
//!    to mend itself every second, and [`Store::ailment`] says so meanwhile.
//!
//! Not here: what objects mean (the store knows a key, labels, fields and bytes) and time to live (the API server sweeps).

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

/// A stored object. Never changes; a write makes a new one.
#[derive(Clone, Debug)]
pub struct Stored {
    /// `namespace/name`, or the name alone.
    pub key: Arc<str>,
    /// The revision it was written at.
    pub revision: u64,
    /// Uid.
    pub uid: Box<str>,
    /// Labels, in order.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// The values of the type's selectable fields, as the type's row orders them.
    pub fields: Box<[Box<str>]>,
    /// The whole object as JSON, its resourceVersion included.
    pub json: Bytes,
}

impl Stored {
    /// The value of a label.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| &**k == key).map(|(_, v)| &**v)
    }

    /// What the store knows of it beside its bytes.
    fn meta(&self) -> Meta {
        Meta { uid: self.uid.clone(), labels: self.labels.clone(), fields: self.fields.clone() }
    }

    /// The namespace; empty for cluster-scoped objects.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.key.rsplit_once('/').map_or(&self.key, |(_, name)| name)
    }
}

/// What the store needs to know of an object that is written, beside its bytes.
#[derive(Clone, Debug, Default)]
pub struct Meta {
    /// Uid.
    pub uid: Box<str>,
    /// Labels, in order.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// The values of the type's selectable fields.
    pub fields: Box<[Box<str>]>,
}
