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

mod apply;
mod cluster;
pub mod commands;
mod control_plane;
pub mod distribution;
pub mod exit;
mod extensions;
pub mod front_proxy;
pub mod identities;
pub mod network;
pub mod node;
pub mod paths;
pub mod pki;
pub mod ranges;
pub mod reset;
mod text_pages;
pub mod user_kubeconfig;

use std::{process::ExitCode, sync::OnceLock};

pub use cluster::{Cluster, ClusterBuilder, ClusterConfig, Node, host_name, open_images};
pub use distribution::{Distribution, distribution};
pub use extensions::Builder;

static WHEN_IDLE: OnceLock<fn()> = OnceLock::new();

/// Registers a function that idle runtime threads call every few seconds; a program returns allocator memory
/// there.
pub fn when_idle(work: fn()) {
    // The first registration wins.
    let _ = WHEN_IDLE.set(work);
}

/// The `main` of `hyperkube`. Must be called before any thread is started.
#[must_use]
pub fn main() -> ExitCode {
    k8s_runtime::embedded::run_if_zygote();
    commands::run(std::env::args_os().collect())
}

/// The `main` of a single-component program: equals `hyperkube <component>`.
#[must_use]
pub fn component_main(component: &str) -> ExitCode {
    k8s_runtime::embedded::run_if_zygote();
    let mut args: Vec<std::ffi::OsString> = vec!["hyperkube".into(), component.into()];
    args.extend(std::env::args_os().skip(1));
    commands::run(args)
}
