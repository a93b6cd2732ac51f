//! An Ingress controller as a library: Ingresses of the API become routes of an HTTP proxy in this process.
//!
//! ```
//! use k8s_ingress::{Proxy, ProxyConfig};
//! use tokio::net::TcpListener;
//! use tokio_util::sync::CancellationToken;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let proxy = Proxy::new(ProxyConfig::default())?;
//! let http = TcpListener::bind("127.0.0.1:0").await?;
//! let https = TcpListener::bind("127.0.0.1:0").await?;
//! let stop = CancellationToken::new();
//! # stop.cancel();
//! // `k8s_ingress::run` fills its table from an API server.
//! proxy.serve(http, https, stop).await;
//! # Ok(()) }
//! ```
//!
//! Flow: [`run`] reads Ingresses, IngressClasses, Services, EndpointSlices and Secrets into caches. At each
//! change [`plan()`] makes a [`Table`], and [`Proxy::replace`] puts it in place. Addresses are written into
//! the status of the Ingresses, and problems with them become events.
//!
//! Guarantees:
//! 1. A request is routed by one table from its beginning to its end.
//! 2. Bodies pass in parts; memory per connection is bounded.
//! 3. An Ingress uses Secrets and Services of its own namespace only, and no endpoints on the machine itself.
//! 4. Headers with which a client tells its own address are replaced, unless the configuration trusts them.
//! 5. A request that this process has sent is not served again, so that loops end.
//! 6. Patterns are bounded in number, size and time.
//!
//! Not here: the Service that leads to the listeners (the `hyperkube` crate), the Gateway API.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests measure time and start tasks"))]

mod access;
mod annotations;
mod backend;
mod certificates;
mod controller;
mod headers;
mod paths;
mod patterns;
mod plan;
mod proxy;
mod rewrite;
mod settings;
mod table;

pub use access::{Auth, AuthTarget, CanaryRule};
pub use annotations::Problem;
pub use backend::Backend;
pub use certificates::Certificate;
pub use controller::{ControllerConfig, run};
pub use paths::{Match, Paths, normalize};
pub use patterns::Patterns;
pub use plan::{CONTROLLER, Classes, Lookup, Objects, Plan, plan};
pub use proxy::{Proxy, ProxyConfig, ProxyError};
pub use settings::{Affinity, Limits, Protocol, Settings, read};
pub use table::{Route, Table};
