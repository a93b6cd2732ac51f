//! The scheduler: which node each pod runs on.
//!
//! Flow: changes of pods and nodes come from the shared caches and keep a [`Cluster`] current, one change at a time (nothing is copied per
//! decision). Pods without a node wait in a [`Queue`]. A decision runs the [`Filter`]s over nodes until enough fit, lets the [`Score`]s
//! choose among those, assumes the pod there, and binds it in the background while the next decision is made.
//!
//! Guarantees:
//! 1. A node is never given more than it has: an assumed pod counts from the decision on, until the API server says otherwise.
//! 2. A pod that fits nowhere is not tried again before something changes that could help it, or five minutes pass.
//! 3. Decisions follow from the order of changes and a seed.
//!
//! Not here: deleting pods from bad nodes (node lifecycle controller), and making volumes (volume controllers).

mod cluster;
mod decide;
mod driver;
mod failures;
mod node_info;
mod plugin;
pub mod plugins;
mod pod_info;
mod preemption;
mod queue;
mod resources;
mod terms;
mod volumes;

pub use cluster::Cluster;
pub use decide::{Decision, Fit, Unschedulable};
pub use driver::{Builder, Scheduler};
pub use node_info::NodeInfo;
pub use plugin::{Cycle, Filter, Plugin, Reject, Score, ScoreExt, WakeOn, Weighted};
pub use pod_info::PodInfo;
pub use queue::{Attempt, Queue};
pub use resources::Resources;
