//! The scheduler: assigns pods to nodes.
//!
//! Flow: changes of pods and nodes arrive from the shared caches and update a [`Cluster`] incrementally
//! (nothing is copied per decision). Pods without a node wait in a queue. A decision runs the [`Filter`]s
//! over nodes until enough are feasible, ranks those with the [`Score`]s, assumes the pod on the best one,
//! and binds it in the background while the next decision is made.
//!
//! Guarantees:
//! 1. A node is never overcommitted: an assumed pod counts from the decision on, until the API server
//!    confirms it or the binding fails.
//! 2. An unschedulable pod is retried only after a change that could help it, or after five minutes.
//! 3. Decisions are determined by the order of changes and a seed.
//!
//! Not here: evicting pods from unreachable nodes (node lifecycle controller), provisioning volumes (volume
//! controllers).

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests measure time and start tasks"))]

mod cluster;
mod decide;
mod driver;
mod failures;
mod metrics;
mod node_info;
mod plugin;
pub mod plugins;
mod pod_info;
mod preemption;
mod queue;
mod reject;
mod resources;
mod terms;
mod volumes;

pub use cluster::Cluster;
pub use driver::{Builder, Scheduler};
pub use node_info::NodeInfo;
pub use plugin::{Cycle, Filter, Plugin, Score, ScoreExt, WakeOn, Weighted};
pub use pod_info::PodInfo;
pub use reject::Reject;
pub use resources::Resources;
