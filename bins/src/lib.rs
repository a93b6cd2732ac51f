//! Cluster composition, and the programs on top of it.
//!
//! [`Cluster`] is a whole cluster in this process; the programs are command lines around it and around the
//! single components. A custom distribution is another small `main` over the same calls.
//!
//! ```no_run
//! # async fn f() -> Result<(), Box<dyn std::error::Error>> {
//! use hyperkube::{Cluster, Node};
//! use k8s_core::api::api::core::v1::Pod;
//!
//! let cluster = Cluster::builder()
//!     .data_dir("/var/lib/shop")
//!     .node(Node::simulated(3))
//!     .listen("127.0.0.1:6443".parse()?)
//!     .start().await?;
//! let pods = cluster.client().namespaced::<Pod>("default");
//! println!("{} pods", pods.list(&Default::default()).await?.len());
//! std::fs::write("kubeconfig", cluster.kubeconfig()?)?;
//! cluster.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! Not here: any component of a cluster; each is a crate of its own.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests measure time and start tasks"))]

mod addons;
mod admission;
mod apply;
mod audit;
mod authentication;
mod authorization;
mod autoscaling;
mod cluster;
mod commands;
mod control_plane;
mod distribution;
mod duration;
mod encryption;
mod error;
mod eviction;
mod extensions;
pub mod front_proxy;
pub mod identities;
mod inflight;
mod ingress;
mod lifecycle;
pub mod network;
pub mod node;
mod node_health;
pub mod paths;
pub mod pki;
mod program;
pub mod ranges;
mod reload;
mod renewal;
pub mod reset;
mod serving;
mod settings;
mod signing;
mod simulated;
pub mod user_kubeconfig;
mod versions;

pub use addons::Addon;
pub use cluster::{Cluster, ClusterBuilder, ClusterConfig, Node, host_name, open_images};
pub use distribution::{Distribution, distribution};
pub use error::ClusterError;
pub use extensions::Builder;
pub use k8s_kubelet::{Eviction, EvictionSettings};
pub use program::Program;
