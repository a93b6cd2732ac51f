//! A whole control plane inside a test: no sockets, no files, no TLS, no containers.
//!
//! Flow: [`TestCluster::builder`] chooses controllers and nodes, [`Builder::start`] gives an API server over a store in memory, the scheduler, the
//! chosen built-in controllers and nodes that say of every pod bound to them that it runs ([`node`]). [`TestCluster::client`] is our client,
//! [`TestCluster::service`] a `tower::Service` that any kube-rs program runs on.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use k8s_core::api::api::apps::v1::Deployment;
//! use k8s_testing::TestCluster;
//!
//! let cluster = TestCluster::builder().nodes(3).start().await?;
//! let manifest = serde_json::json!({
//!     "metadata": {"name": "web"},
//!     "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": {
//!         "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]},
//!     }},
//! });
//! cluster.create::<Deployment>("default", &manifest).await?;
//! let web = cluster.until::<Deployment>("default", "web", |d| d.status.as_ref().is_some_and(|s| s.ready_replicas == Some(3))).await?;
//! assert_eq!(web.status.unwrap().available_replicas, Some(3));
//! # Ok(()) }
//! ```
//!
//! Guarantees:
//! 1. All time is tokio's: in a test with paused time, hours of cluster life take milliseconds.
//! 2. Randomness follows from one seed.
//! 3. When a cluster is dropped, everything that it started ends.
//!
//! Not here yet: faults, shrinking of seeds, reports about a controller (DESIGN's "Time, randomness, tests without a cluster").

mod base;
mod cluster;
pub mod controllers;
mod faults;
mod hub;
mod lab;
pub mod node;
mod objects;
mod process;
mod role;
mod running;
mod script;
mod seeds;
mod setup;
mod shrink;
mod trace;
mod watch;
mod wire;

pub use cluster::{Builder, Error, TestCluster};
pub use faults::{Fault, Faults};
pub use hub::Written;
pub use lab::{Lab, Report};
pub use process::Life;
pub use role::NeededRole;
pub use running::Running;
pub use script::Script;
pub use trace::{Difference, Entry, Trace, What};
pub use wire::Service;
