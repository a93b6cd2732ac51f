//! The scheduler: assigns pods to nodes.
//!
//! Flow: changes of pods and nodes arrive from the shared caches and update a [`Cluster`] incrementally
//! (nothing is copied per decision). Pods without a node wait in a queue. A decision asks the plugins of the
//! pod's profile at upstream's extension points: [`PreFilter`] and [`Filter`] over all nodes, then
//! [`PreScore`], [`Score`] and [`NormalizeScore`] over the feasible ones. What plugins say about one node is
//! kept for the pods of one template until the node changes. The pod is assumed on the best node
//! ([`Reserve`]) and bound in a task ([`Permit`], [`PreBind`], [`Bind`], [`PostBind`]) while the next
//! decision is made. If no node is feasible, [`PostFilter`] may preempt pods, and [`EnqueueExtensions`] tell
//! the changes that wake the pod. A plugin is a row of [`Points`]; the built-in ones are rows of the same
//! table.
//! Extenders, webhooks of the configuration, are asked after the filters and about the scores, and may bind.
//!
//! Guarantees:
//! 1. A node is never overcommitted: an assumed pod counts from the decision on, until the API server
//!    confirms it or the binding fails.
//! 2. A decision violates no required constraint: the feasible nodes are those of a naive model, and the node
//!    is one with the highest score of all of them (unless `percentageOfNodesToScore` or extenders limit the
//!    search).
//! 3. An unschedulable pod is retried only after a change that a plugin that refused it expects to help, or
//!    after five minutes; never before its back-off is over.
//! 4. Room made by preemption is kept for the preemptor from pods of lower priority. Victims are of lower
//!    priority, none is needless, and each has the condition `DisruptionTarget` before it is deleted.
//! 5. Without extenders, decisions are determined by the order of changes and a seed. [`Builder::explain`]
//!    runs the same code.
//! 6. An extender only takes nodes away, and names no victim that is not of lower priority than the pod.
//!
//! Not here: evicting pods from unreachable nodes (node lifecycle controller), provisioning volumes (volume
//! controllers), pod groups.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests measure time and start tasks"))]

pub mod args;
mod cluster;
mod columns;
mod config;
mod cycle;
mod decide;
mod devices;
mod driver;
mod event;
mod extender;
mod extension;
mod failures;
mod feasible;
mod index;
mod journal;
mod many;
mod metrics;
mod node_info;
pub mod plugins;
mod pod_info;
mod points;
mod queue;
mod reject;
mod resources;
mod terms;
mod volumes;

pub use cluster::Cluster;
pub use config::{
    ClientConnection, ConfigError, Configuration, ExtenderConfig, ExtenderTls, LeaderElection,
    ManagedResource, PluginArgs, PluginRef, PluginSet, PluginSets, ProfileConfig,
};
pub use cycle::Cycle;
pub use driver::{
    Builder, ExplainError, Explanation, NodeRefusal, Plan, Planner, PluginScore, Preemption, Scheduler,
    Verdict,
};
pub use event::{Event, WakeOn};
pub use extension::{
    Bind, Candidate, EnqueueExtensions, Filter, Nomination, NormalizeScore, Permit, Placement, PostBind,
    PostFilter, PreBind, PreEnqueue, PreFilter, PreScore, QueueSort, Reserve, Score, Search,
};
pub use node_info::NodeInfo;
pub use pod_info::PodInfo;
pub use points::{Plugin, Points, PointsOf, ScoreExt};
pub use reject::Reject;
pub use resources::Resources;
