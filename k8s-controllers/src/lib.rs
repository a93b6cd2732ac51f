//! The framework that controllers are written with: caches, work queue, reconcile loop, leader election.
//!
//! # A controller
//!
//! ```
//! use k8s_controllers::prelude::*;
//! use k8s_core::api::api::core::v1::{ConfigMap, Secret};
//!
//! /// Keeps a Secret beside every ConfigMap.
//! struct Secrets;
//!
//! impl Reconcile for Secrets {
//!     type Kind = ConfigMap;
//!     async fn reconcile(&self, cx: &Context, map: Arc<ConfigMap>) -> Result<Action, Error> {
//!         let mut secret = Secret { string_data: map.data.clone(), ..Secret::default() };
//!         secret.metadata.name = map.metadata.name.clone();
//!         cx.apply(&map, &secret).await?; // owned by the map, so garbage collected with it
//!         Ok(Action::await_change())
//!     }
//! }
//!
//! # async fn f(client: k8s_core::client::Client) {
//! Controller::<ConfigMap>::new().owns::<Secret>().run(client, Secrets).await;
//! # }
//! ```
//!
//! It runs unchanged against an API server in the same process, one behind TLS, and any other Kubernetes.
//! Test it with `k8s-testing`.
//!
//! Flow: a reflector per type fills a shared cache ([`Caches`]). A [`Controller`] maps changes of owned and
//! watched objects to keys on a [`WorkQueue`]. Workers take one key at a time and call
//! [`Reconcile::reconcile`] with the cached object; the returned [`Action`] schedules the next one. A
//! [`Manager`] runs many controllers over one set of caches, and serves their health and [`metrics`].
//!
//! Guarantees:
//! 1. A key is never reconciled by two workers at once, and a change during a reconcile is not lost.
//! 2. After a write through its [`Context`], a key is not reconciled before the caches have that write. So
//!    controllers need no expectations of creations and deletions.
//! 3. A reconcile that fails or panics is retried with exponential, jittered back-off; other keys are not
//!    delayed, however many fail.
//! 4. Time comes from one [`k8s_core::clock::Clock`], randomness from one seed.
//! 5. With [`leader`] election only one process works; work that ignores a lost lease is dropped before
//!    another process starts.
//!
//! Not here: the built-in controllers (`k8s-builtin`), the scheduler (`k8s-scheduler`) and a cluster for
//! tests (`k8s-testing`).

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests measure time and start tasks"))]

/// Imports for writing a controller.
pub mod prelude {
    pub use std::sync::Arc;

    pub use k8s_core::meta::ObjectExt;

    pub use crate::{Action, Conditions, Context, Controller, Error, EventType, Reconcile};
}

mod action;
mod caches;
mod conditions;
mod context;
mod controller;
mod handle;
#[cfg(feature = "serve")]
pub mod health;
pub mod leader;
mod manager;
pub mod metrics;
mod partial;
pub mod predicates;
mod queue;
mod runnable;

pub use action::{Action, Error};
pub use caches::{Caches, Usage};
pub use conditions::{Conditions, StatusOf};
pub use context::{Context, Environment, Owner};
pub use controller::{Controller, Reconcile};
pub use handle::{Handle, Stopped};
pub use k8s_core::events::{EventType, Recorder, involved};
pub use manager::Manager;
pub use partial::MetadataOnly;
pub use queue::{Backoff, WorkQueue};
pub use runnable::Runnable;
