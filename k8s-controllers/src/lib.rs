//! The reconcile-loop framework, and every built-in controller on it.
//!
//! Flow: a reflector per type fills a shared cache ([`Caches`]); a [`Controller`] turns changes of what it owns and watches into keys on a
//! [`WorkQueue`]; workers take keys one at a time and call [`Reconcile::reconcile`] with the cached object; what it returns says when to come
//! back. A [`Manager`] runs many controllers over one set of caches.
//!
//! Guarantees:
//! 1. One key is never reconciled by two workers at once, and a change that comes while it is worked on is not lost.
//! 2. After a write through its [`Context`], a key is not reconciled again before the caches have that write. So there is no bookkeeping of
//!    expected creations and deletions in any controller.
//! 3. A reconcile that fails or panics is retried with growing, jittered delays; no other key waits for it.
//! 4. Time comes from one [`k8s_core::clock::Clock`], randomness from one seed.
//!
//! Not here: the scheduler (`k8s-scheduler`) and a cluster for tests (`k8s-testing`).

/// What a controller is written with.
pub mod prelude {
    pub use std::sync::Arc;

    pub use k8s_core::meta::ObjectExt;

    pub use crate::{Action, Conditions, Context, Controller, Error, EventType, Reconcile};
}

mod action;
pub mod builtin;
mod caches;
mod conditions;
mod context;
mod controller;
mod health;
pub mod leader;
mod manager;
pub mod metrics;
mod partial;
pub mod predicates;
mod queue;
mod recorder;

pub use action::{Action, Error};
pub use caches::Caches;
pub use conditions::{Conditions, StatusOf};
pub use context::{Context, Environment, Owner};
pub use controller::{Controller, Reconcile};
pub use manager::Manager;
pub use partial::MetadataOnly;
pub use queue::{Backoff, WorkQueue};
pub use recorder::{EventType, Recorder, involved};
