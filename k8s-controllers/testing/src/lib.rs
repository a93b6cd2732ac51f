//! A whole control plane inside a `#[test]`: no sockets, no files, no TLS, no containers, and hours pass in milliseconds.
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
//! A controller of one's own comes in by `.with(Controller::<Shop>::new(), || Shops)`: the closure makes the reconciler anew after each crash. Any other
//! program, such as an unmodified kube-rs controller, comes in by `.program("name", |life| async move { ... })` and runs on
//! `kube::Client::new(life.service(), "default")`. A custom resource comes in by `.crd::<Shop>()`, or as YAML by `.manifests(...)`.
//!
//! # When it fails
//!
//! The panic names the seed, the fewest faults without which it would have gone well, what happened last, and the call that replays it:
//!
//! ```text
//! seed 17 fails with 1 of its 9 faults:
//!   6: Crash at patch /api/v1/namespaces/default/configmaps/a-copy of copier
//! ...
//! replay it with .replay("seed:17 faults:6")
//! ```
//!
//! ```
//! # use k8s_testing::{Faults, Lab};
//! Lab::new().faults(Faults::all()).replay("seed:17 faults:6").run(async |lab| lab.settle().await);
//! ```
//!
//! # What goes wrong
//!
//! [`Fault`] lists it. Faults are for the controllers, built-in ones included; never for the test itself, the scheduler or the nodes. They strike from each
//! change that the test makes until the cluster has settled, at most sixty in a run ([`Faults::at_most`]), and each seed has a rate and a choice of
//! kinds of its own.
//!
//! # What is checked
//!
//! | | |
//! | --- | --- |
//! | rules that hold at every moment | [`Running::always`]: no more pods than surge allows |
//! | it converges | [`Running::settle`] panics when the cluster does not come to rest |
//! | it does not spin | [`Running::assert_quiet_for`], [`Running::writes_since_settled`] |
//! | it is idempotent | [`Running::assert_idempotent`]: looking at everything again writes nothing |
//! | it never reads stale after its own write | [`Running::assert_never_stale`] |
//! | which rights it needs | [`Running::needed_role`]: the smallest role, as YAML; [`Report::needed_role`] over all seeds |
//! | what it does | [`Lab::record`] writes a trace as JSON lines, [`Lab::replays`] compares with one |
//!
//! # More
//!
//! [`Running::fork`] goes on from one state in many ways, for tests by table. [`Lab::pods`] says by [`Script`] what becomes of pods. `SEEDS=1000` runs more
//! seeds, `REPLAY="seed:17 faults:6"` replays one, and `RECORD=trace.jsonl` with it keeps all that happened. `USE_EXISTING_CLUSTER=true` runs the same
//! test once, without faults and in real time, in the cluster that `KUBECONFIG` names. [`TestCluster`] is a cluster to be started by hand inside a runtime
//! of one's own.
//!
//! # Guarantees
//!
//! 1. A run has a thread and a paused runtime to itself: its time stands still while anything can be done, and passes at once when nothing can.
//! 2. Randomness follows from the seed: names, uids, addresses, delays, faults. The same seed is the same run, to the last byte of its trace.
//! 3. When a run ends, everything that it started ends.
//!
//! Not here: real containers, kubelets, networks (`hyperkube`'s `Cluster` has those).

mod base;
mod cluster;
pub mod controllers;
mod faults;
mod hub;
mod lab;
mod listed;
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
