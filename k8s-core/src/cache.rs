//! Shared caches: the present state of one resource type in memory, kept current by a watch.
//!
//! Flow: a reflector lists and watches through an [`Api`](crate::client::Api), puts every object into the [`Cache`] as an `Arc` and tells the subscribers
//! what changed. A broken watch is resumed from the last revision seen; a list is taken again only when history no longer has it.
//!
//! Guarantees:
//! 1. Readers never wait for I/O, and get consistent objects (never half an update).
//! 2. A subscriber that keeps up sees every change in order; one that does not is told to look at the whole cache ([`Change::Resync`]).
//! 3. [`Cache::reached`] returns only when everything up to that revision is in the cache.

mod reflector;
mod shared;
mod state;
mod weigh;

pub use reflector::{Reflector, reflect, reflect_trimmed};
pub use shared::{Cache, Change, Subscription};
