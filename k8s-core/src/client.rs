//! API client, for a server in the same process or over TLS.
//!
//! [`Client`] is a cheap handle on a [`Transport`]; [`Api`] is a client for one type in one scope. The typed
//! layer is thin: all I/O is in `request`.
//!
//! Not here: retries (the caller knows whether a call may be repeated) and caches (see [`crate::cache`]).

mod api;
mod decode;
mod error;
mod kubeconfig;
mod remote;
mod request;

pub use api::{Api, DeleteOptions, ListParams, Patch, PostParams, WatchEvent};
pub use decode::{Page, Unreadable, unreadable_objects};
pub use error::Error;
pub use kubeconfig::{Kubeconfig, KubeconfigError, NamedCluster, NamedContext};
pub use remote::{Remote, RemoteConfig};
pub use request::{Body, BoxError, Client, DynObject, Resource, Transport, body_from_bytes, empty_body};
