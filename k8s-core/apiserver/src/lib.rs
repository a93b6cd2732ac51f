//! The Kubernetes API server as a `tower::Service`.
//!
//! Flow: `http::Request -> http::Response`. Every request is authenticated, authorized and then served by one generic set of handlers over one table of
//! resources ([`resources`]); CustomResourceDefinitions and ThirdPartyResources add rows to it at run time.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! use k8s_apiserver::{ApiServer, User};
//! use k8s_core::{api::api::core::v1::Namespace, store::Store};
//!
//! let server = ApiServer::builder(Store::memory()).build().await.unwrap();
//! let client = server.client_as(User::admin());
//! let namespace = client.all::<Namespace>().get("default").await.unwrap();
//! assert_eq!(namespace.status.unwrap().phase.as_deref(), Some("Active"));
//! # });
//! ```
//!
//! Guarantees:
//! 1. Stored bytes are what clients get: encoded once at write time ([`value::encode`]).
//! 2. A write is checked completely before anything is stored, and all problems are answered at once ([`invalid`]).
//! 3. No input panics; depth, size and count are limited where input is decoded ([`decode`]).
//!
//! Not here: controllers (garbage collection, namespace contents), the node, the listener's certificates.

mod accept;
pub mod admission;
mod aggregate;
pub mod allocate;
pub mod auth;
mod bootstrap;
mod compress;
mod conversion;
pub mod decode;
mod delete;
mod discovery;
mod extend;
pub mod format;
pub mod health;
pub mod invalid;
pub mod limits;
pub mod listen;
mod openapi;
mod outbound;
pub mod proxy;
mod read;
pub mod request;
pub mod resources;
mod respond;
mod reviews;
mod server;
mod special;
pub mod stages;
mod sweep;
mod table;
mod tokens;
mod typed;
mod unenforced;
mod user;
pub mod value;
mod write;
mod yaml;

pub use outbound::ClientIdentity;
pub use server::{ApiServer, Builder, Pace, describe};
pub use user::User;
