//! Shared caches: the present state of one resource type in memory, kept current by a watch.
//!
//! Flow: a reflector lists and watches through an [`Api`](crate::client::Api), puts every object into the [`Cache`] as an `Arc` and tells the subscribers
//! what changed. A broken watch is resumed from the last revision seen; a list is taken again only when history no longer has it. A server that does not
//! send the initial state in a watch (before Kubernetes 1.32, or over an etcd without progress requests) is listed, page by page.
//!
//! Guarantees:
//! 1. Readers never wait for I/O, and get consistent objects (never half an update).
//! 2. A subscriber that keeps up sees every change in order; one that does not is told to look at the whole cache ([`Change::Resync`]).
//! 3. [`Cache::reached`] returns only when everything up to that revision is in the cache, or was left out as unreadable.
//! 4. An object that the type cannot hold stops nothing: it is left out, or stays as it was when it could be read last; it is counted
//!    ([`unreadable_objects`](crate::client::unreadable_objects)) and logged once.

mod reflector;
mod shared;
mod state;
mod weigh;

pub use reflector::{Reflector, reflect, reflect_trimmed};
pub use shared::{Cache, Change, Subscription};
