//! A store of objects with revisions, history and watches: every object in memory, kept durable by a backend.
//!
//! ```
//! use k8s_store::{Expect, Meta, Store};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = Store::memory();
//! let mut watch = store.watch("configmaps", store.revision());
//! let written = store
//!     .put("configmaps", "default/a", Expect::Absent, Meta::default(), |_| "{}".into())
//!     .await?;
//! assert_eq!(store.get("configmaps", "default/a").map(|object| object.revision), Some(written.revision));
//! assert_eq!(watch.take(10)?.len(), 1);
//! # Ok(()) }
//! ```
//!
//! Flow: a write goes to the [`Backend`], which checks it against the newest state, gives it a revision and
//! makes it durable. The change then comes back through a [`Sink`]; the store shows it to readers and
//! watchers and acknowledges the write. [`Local`] is the backend of a store that is alone with its data: it
//! commits writes in groups to a [`Log`], such as [`Embedded`]. A database with other writers, or a wrapper
//! that encrypts, implements [`Backend`].
//!
//! Guarantees:
//! 1. A write that was acknowledged survives a crash; one that was not was never seen by anybody.
//! 2. Revisions are unique across all types and grow; events of a type come in the order of revisions,
//!    without gaps.
//! 3. A [`Snapshot`] never changes and costs O(1); reads never wait for writes.
//! 4. A backend that cannot write (full disk) fails those writes with [`StoreError::Unavailable`] and leaves
//!    reads and state as they were. It tries to mend itself every second; [`Store::ailment`] has the reason
//!    meanwhile.
//!
//! Features: `embedded` (default), the redb log. Not here: the meaning of objects (the store knows a key,
//! labels, fields and bytes; a [`Format`] reads them) and expiry (the API server deletes old events).

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests measure time and start tasks"))]

mod backend;
mod collection;
#[cfg(feature = "embedded")]
mod embedded;
mod index;
mod local;
mod log;
mod outcome;
mod pace;
#[cfg(feature = "sealed")]
pub mod sealed;
mod store;

pub use backend::{Backend, Change, Done, Effect, Format, Loaded, Opaque, Sink, Write};
pub use collection::{Event, EventKind, Snapshot, WatchCursor, WatchError};
#[cfg(feature = "embedded")]
pub use embedded::{Embedded, OpenError};
pub use index::{Candidates, Term};
pub use local::Local;
pub use log::{Log, Record, Volatile};
pub use outcome::{BackendError, Expect, StoreError};
pub use store::Store;

use std::sync::Arc;

use bytes::Bytes;

/// A stored object. Immutable; a write creates a new one.
#[derive(Clone, Debug)]
pub struct Stored {
    /// `namespace/name`, or the name alone.
    pub key: Arc<str>,
    /// Revision of the write.
    pub revision: u64,
    /// Unique id (`metadata.uid`).
    pub uid: Box<str>,
    /// Labels as key and value, sorted by key.
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
    /// Unique id (`metadata.uid`).
    pub uid: Box<str>,
    /// Labels as key and value, sorted by key.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the type's selectable fields.
    pub fields: Box<[Box<str>]>,
}
