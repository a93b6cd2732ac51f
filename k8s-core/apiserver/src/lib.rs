//! The Kubernetes API server as a `tower::Service`.
//!
//! Flow: `http::Request -> http::Response`. Every request is authenticated, authorized and then served by one
//! generic set of handlers over one table of resources ([`resources`]). CustomResourceDefinitions and
//! ThirdPartyResources add rows to it at run time.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! use k8s_apiserver::{ApiServer, User};
//! use k8s_core::api::api::core::v1::Namespace;
//! use k8s_store::Store;
//!
//! let server = ApiServer::builder(Store::memory()).build().await.unwrap();
//! let client = server.client_as(User::admin());
//! let namespace = client.all::<Namespace>().get("default").await.unwrap();
//! assert_eq!(namespace.status.unwrap().phase.as_deref(), Some("Active"));
//! # });
//! ```
//!
//! Guarantees:
//! 1. Stored bytes are served as they are: objects are encoded once, on write ([`value::encode`]).
//! 2. A write is validated completely before it is stored, and reports all problems at once ([`invalid`]).
//! 3. No input panics: depth, size and count are limited where input is decoded ([`decode`]).
//!
//! Modules import only those below them: values and requests, then resources, then the state, storage and
//! bodies, then the handlers, then the pipeline (`server`) and the listener.
//!
//! Not here: controllers (garbage collection, namespace contents), the node, the listener's certificates.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests measure time and start tasks"))]

mod accept;
pub mod admission;
mod aggregate;
mod allocate;
mod apiservices;
pub mod audit;
pub mod auth;
mod blocking;
mod body;
mod bootstrap;
mod call;
mod compaction;
mod compress;
mod conversion;
mod crd;
mod debug;
pub mod decode;
mod delete;
mod discovery;
mod errors;
mod event_ttl;
mod expressions;
mod fair;
mod flow_status;
pub mod format;
pub mod health;
pub mod invalid;
pub mod limits;
pub mod listen;
mod metrics;
mod openapi;
mod policy_status;
pub mod proxy;
mod read;
pub mod request;
pub mod resources;
mod respond;
mod reviews;
mod scale;
mod server;
mod service_ranges;
pub mod stages;
mod state;
mod storage;
mod subresources;
mod tls;
mod token_uses;
mod tokens;
mod unenforced;
mod user;
pub mod value;
mod webhook_client;
mod write;
mod yaml;

pub use aggregate::LocalApi;
pub use format::describe;
pub use server::{ApiServer, BuildError, Builder};
pub use state::Pace;
pub use tls::ClientIdentity;
pub use user::User;
