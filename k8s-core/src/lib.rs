//! Kubernetes API machinery: types, resource table, schema engine, store, client and caches.
//!
//! Everything above this crate uses the public API through a [`client::Client`], in the same process or over
//! TLS, and reads through a [`cache::Cache`]. This crate makes no Linux calls.
//!
//! Not here: the API server (`k8s-apiserver`), controllers (`k8s-controllers`), the node (`k8s-runtime`,
//! `k8s-kubelet`).

pub mod api;
pub mod cache;
pub mod client;
pub mod clock;
#[cfg(feature = "derive")]
pub mod custom;
pub mod json;
pub mod legacy;
pub mod meta;
pub mod random;
pub mod status;

/// Makes a custom resource of the struct of its spec: see [`k8s_derive`].
#[cfg(feature = "derive")]
pub use k8s_derive::Resource;
