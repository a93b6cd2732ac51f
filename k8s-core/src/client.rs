//! API client, for a server in the same process or over TLS.
//!
//! [`Client`] is a cheap handle on a [`Transport`]; [`Api`] is a client for one type in one scope. The typed
//! layer is thin: all I/O is in `request`.
//!
//! ```
//! # use k8s_core::{api::api::core::v1::Pod, client::{Client, Error, ListParams}};
//! # async fn example() -> Result<(), Error> {
//! let client = Client::try_default()?;                  // KUBECONFIG, ~/.kube/config or the pod's account
//! for pod in client.namespaced::<Pod>(client.namespace()).list(&ListParams::default()).await? {
//!     println!("{}", pod.metadata.name.unwrap_or_default());
//! }
//! # Ok(()) }
//! ```
//!
//! A client over the network repeats a call after 429 with `Retry-After` ([`Client::retrying`]), and once
//! after 401 when its credential plugin has a new credential. A streamed request ([`Client::send`]) is not
//! repeated.
//!
//! Not here: other retries (the caller knows whether a call may be repeated), caches (see [`crate::cache`]),
//! `auth-provider` of a kubeconfig, SOCKS and https proxies, `HTTPS_PROXY`.

mod api;
mod credentials;
mod decode;
mod environment;
mod error;
mod exec;
mod kubeconfig;
mod long_query;
mod observe;
mod proxy;
mod remote;
mod request;
mod retry;
mod wait;

pub use api::{Api, DeleteOptions, ListParams, Patch, PostParams, WatchEvent};
pub(crate) use decode::decode_list;
pub use decode::{Page, Unreadable, unreadable_objects};
pub use environment::Environment;
pub use error::Error;
pub use exec::ExecPlugin;
pub use kubeconfig::{Kubeconfig, KubeconfigError, NamedCluster, NamedContext};
pub use long_query::LongQuery;
pub use observe::{Observe, RequestEnd};
pub use proxy::{Proxy, ProxyError};
pub use remote::{Impersonation, Remote, RemoteConfig};
pub use request::{Body, BoxError, Client, DynObject, Resource, Transport, body_from_bytes, empty_body};
