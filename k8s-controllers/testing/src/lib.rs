//! A whole control plane inside a `#[test]`, in virtual time: no sockets, files, TLS or containers, and hours
//! pass in milliseconds.
//!
//! # A test
//!
//! ```
//! use std::time::Duration;
//! use k8s_core::api::api::apps::v1::Deployment;
//! use k8s_testing::{Faults, Lab, controllers::{deployment, replica_set}};
//!
//! // In a plain #[test]:
//! Lab::new()
//!     .controllers([deployment(), replica_set()])
//!     .nodes(3)
//!     .seeds(0..10)
//!     .faults(Faults::all())                        // conflicts, lost and late events, crashes
//!     .run(async |lab| {
//!         lab.apply("
//! apiVersion: apps/v1
//! kind: Deployment
//! metadata: {name: web}
//! spec:
//!   replicas: 3
//!   selector: {matchLabels: {app: web}}
//!   template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: i}]}}
//! ").await;
//!         lab.settle().await;                        // virtual time: returns when nothing more will happen
//!         let web: Deployment = lab.get("web").await;
//!         assert_eq!(web.status.unwrap().ready_replicas, Some(3));
//!         lab.sleep(Duration::from_secs(86_400)).await; // a day
//!         assert_eq!(lab.writes_since_settled(), 0);
//!     });
//! ```
//!
//! The cluster is extended by the methods that `hyperkube`'s `Cluster::builder()` has: [`Lab::resource`],
//! [`Lab::controller`], [`Lab::admit`], [`Lab::scheduler_plugin`], [`Lab::authenticator`],
//! [`Lab::controllers`]. With `.with(Controller::<Shop>::new(), || Shops::new())` the closure creates a
//! controller's reconciler again after each crash. Any other program, such as an unmodified kube-rs
//! controller ([`operators`] is a page about those), is added by `.program("name", |life| async move { ...
//! })` and connects with `kube::Client::new(life.service(), "default")`. A custom resource as YAML is added
//! by `.manifests(...)`.
//!
//! # Failures
//!
//! The panic message has the seed, a minimal set of faults that reproduces the failure, the last requests and
//! events, and the call that replays it:
//!
//! ```text
//! seed 17 fails with 1 of its 9 faults:
//!   Crash at patch /api/v1/namespaces/default/configmaps/a-copy #1 of copier
//! ...
//! replay it with .replay("seed:17 | copier patch /api/v1/namespaces/default/configmaps/a-copy #1")
//! keep it as a test with .seeds(17..18)
//!   .fail("patch", "/api/v1/namespaces/default/configmaps/a-copy", Fault::Crash)
//! ```
//!
//! A fault's place is the n-th request of a program with a verb and path, so it stays the same when other
//! faults are left out, and when the program changes elsewhere.
//!
//! # Faults
//!
//! [`Fault`] lists the kinds. Faults hit the controllers, built-in ones included, but never the test itself,
//! the scheduler or the nodes. They are injected from each change by the test until the cluster has settled,
//! at most sixty in a run ([`Faults::at_most`]). Each seed has a rate and a choice of kinds of its own. A
//! test that asked for faults and had none fails. [`Lab::fail`] injects one into a chosen request.
//!
//! # Checks
//!
//! | | |
//! | --- | --- |
//! | invariants, after every change | [`Running::always`]: no more pods than surge allows |
//! | convergence | [`Running::settle`] panics when the cluster does not settle |
//! | no hot loops | [`Running::assert_quiet_for`], [`Running::writes_since_settled`] |
//! | idempotence | [`Running::assert_idempotent`]: a second reconcile of everything writes nothing |
//! | no stale reads after own writes | [`Running::assert_never_stale`] |
//! | required permissions | [`Running::needed_role`]: the smallest role, as YAML; [`Report::needed_role`] over all seeds |
//! | recorded behaviour | [`Lab::record`] writes a trace as JSON lines, [`Lab::replays`] compares with one |
//!
//! # More
//!
//! [`Running::fork`] continues from one state in several ways, for table tests. [`Lab::pods`] scripts the
//! pods with [`Script`]. `SEEDS=1000` runs more seeds, `REPLAY="seed:17 | ..."` replays one, and with
//! `RECORD=trace.jsonl` its trace is recorded. `USE_EXISTING_CLUSTER=true` runs the same test once, without
//! faults and in real time, in the cluster of `KUBECONFIG`. [`TestCluster`] is a cluster to start by hand in
//! a runtime of your own; [`Connection`] is one component's connection to it, which a test counts on and
//! disturbs.
//!
//! # Guarantees
//!
//! 1. Each run has its own thread and a runtime with paused time: the clock advances only when no task is
//!    ready, and then at once.
//! 2. Names, uids, addresses, delays and faults follow from the seed. The same seed gives the same run, to
//!    the last byte of its trace.
//! 3. Requests take no virtual time, up to a thousand at once; then a program under test gets a hundred a
//!    second, so that two that undo each other's writes cannot stop the clock.
//! 4. When a run ends, everything that it started has ended.
//!
//! Not here: real containers, kubelets, networks (`hyperkube`'s `Cluster` has those).

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests measure time and start tasks"))]

mod actor;
mod base;
mod cluster;
mod connection;
pub mod controllers;
mod error;
mod exits;
mod faults;
mod grants;
mod hub;
mod lab;
mod listed;
mod listening;
pub mod node;
mod objects;
pub mod operators;
mod place;
mod process;
mod report;
mod role;
mod running;
mod seeds;
mod setup;
mod shrink;
mod trace;
#[cfg(feature = "wall-clock")]
mod wall_clock;
mod watch;
mod wire;

pub use cluster::{Builder, TestCluster};
pub use connection::Connection;
pub use error::Error;
pub use faults::{Fault, Faults};
pub use hub::Written;
pub use k8s_simulated::Script;
pub use lab::Lab;
pub use listening::Listening;
pub use process::Life;
pub use report::Report;
pub use role::NeededRole;
pub use running::Running;
pub use trace::{Difference, Entry, Trace, What};
pub use wire::Service;
