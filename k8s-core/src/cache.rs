//! Shared caches: the current objects of one resource type in memory, kept up to date by a watch.
//!
//! Flow: a reflector lists and watches through an [`Api`](crate::client::Api), stores each object in the
//! [`Cache`] as an `Arc` and notifies the subscribers. A broken watch is resumed from the last seen revision;
//! a new list is needed only after 410 Gone. A server that cannot stream the initial state in a watch (before
//! Kubernetes 1.32, or over an etcd without progress requests) is listed page by page.
//!
//! Guarantees:
//! 1. Readers never wait for I/O, and never see a partial update.
//! 2. A subscriber that keeps up sees every change in order; one that falls behind is told to read the whole
//!    cache ([`Change::Resync`]).
//! 3. [`Cache::reached`] returns only when every change up to that revision is in the cache or was skipped as
//!    unreadable.
//! 4. An object that does not deserialize into the type blocks nothing: it is skipped, or its last readable
//!    version stays. It is counted ([`unreadable_objects`](crate::client::unreadable_objects)) and logged
//!    once.

mod reflector;
mod shared;
mod state;
mod weigh;

pub(crate) use weigh::weigh;

pub use reflector::{Reflector, reflect, reflect_trimmed};
pub use shared::{Cache, Change, Subscription};
