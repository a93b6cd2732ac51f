//! What every program of a cluster shares: Kubernetes types, a client, caches, clock and randomness.
//!
//! ```
//! use k8s_core::{api::{ConfigMap, Pod}, client::{Client, ListParams}, meta::ObjectExt};
//!
//! async fn crowded(client: &Client) -> Result<bool, k8s_core::client::Error> {
//!     let pods = client.namespaced::<Pod>("default").list(&ListParams::default()).await?;
//!     Ok(pods.iter().filter(|pod| pod.label("app") == Some("web")).count() > 100)
//! }
//!
//! // Objects are those of k8s-openapi, with accessors that treat absent as empty.
//! let mut map = ConfigMap::default();
//! map.set_label("app", "web");
//! assert_eq!((map.label("app"), map.namespace()), (Some("web"), ""));
//! ```
//!
//! Flow: a program reaches an API server through a [`client::Client`], in the same process or over TLS; a
//! [`cache`] lists and watches a type once and is read by everyone; a `Clock` ([`clock`]) and seeded
//! [`random`]ness are handed in, so that a test can run hours in milliseconds and replay them.
//!
//! Guarantees: an object that cannot be decoded is skipped, counted and logged once, and stops no cache. This
//! crate makes no Linux calls.
//!
//! Features: `derive` (default) has custom resources from structs and JSON schemas of all types; `tls`
//! (default) has connections over https and credential plugins.
//!
//! Not here: the API server (`k8s-apiserver`) and its engine (`k8s-schema`, `k8s-cel`, `k8s-store`),
//! controllers (`k8s-controllers`), the node (`k8s-runtime`, `k8s-kubelet`).

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests measure time and start tasks"))]

pub mod api;
pub mod cache;
pub mod client;
pub mod clock;
#[cfg(feature = "derive")]
pub mod custom;
pub mod events;
pub mod json;
pub mod legacy;
pub mod meta;
pub mod pem;
pub mod random;
#[doc(hidden)]
pub mod shared;
pub mod status;

/// Makes a custom resource of the struct of its spec: see [`k8s_derive`].
#[cfg(feature = "derive")]
pub use k8s_derive::Resource;
