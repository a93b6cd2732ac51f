//! Upstream's extension points, one trait each.
//!
//! The order of a decision: [`PreEnqueue`] (may the pod enter the queue), [`QueueSort`] (its turn),
//! [`PreFilter`], [`Filter`], and [`PostFilter`] if no node passed; [`PreScore`], [`Score`],
//! [`NormalizeScore`], [`Reserve`]. The rest runs in a task while the next decision is made: [`Permit`],
//! [`PreBind`], [`Bind`], [`PostBind`].

use std::{cmp::Ordering, sync::Arc};

use async_trait::async_trait;
use futures::future::BoxFuture;
use k8s_core::client::{Client, Error};

use crate::{Cluster, Cycle, Event, NodeInfo, PodInfo, Reject, WakeOn};

/// Holds pods back from the queue.
pub trait PreEnqueue: Send + Sync + 'static {
    /// Called when the pod is created or changed.
    ///
    /// # Errors
    /// The pod is not scheduled before it changes.
    fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), Reject>;
}

/// Orders the queue. A scheduler uses the one of its first profile.
pub trait QueueSort: Send + Sync + 'static {
    /// Returns `Less` if `a` is scheduled before `b`. Pods that are equal are scheduled first in, first out.
    fn compare(&self, a: &PodInfo, b: &PodInfo) -> Ordering;
}

/// Prepares the filtering of a pod.
pub trait PreFilter: Send + Sync + 'static {
    /// Called once per decision. `false` skips the plugin's filter for the pod.
    ///
    /// # Errors
    /// Rejects the pod on every node.
    fn pre_filter(&self, cx: &mut Cycle<'_>, pod: &PodInfo) -> Result<bool, Reject>;

    /// Updates the stored state as if `other` were added to the node (`by` is 1) or removed from it (-1).
    /// Preemption and nominated pods need it. Default: the state does not depend on other pods.
    fn moved(&self, cx: &mut Cycle<'_>, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, by: i64) {
        let _ = (cx, pod, other, node, by);
    }
}

/// Selects the feasible nodes.
///
/// ```
/// use std::sync::Arc;
/// use k8s_core::api::{Node, Pod};
/// use k8s_scheduler::{Cluster, Cycle, Filter, NodeInfo, PodInfo, Points, Reject, Scheduler};
///
/// /// Keeps pods off nodes that are being repaired.
/// struct NotInRepair;
///
/// impl Filter for NotInRepair {
///     fn filter(&self, _: &Cycle<'_>, _: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
///         match node.label("example.com/repair") {
///             Some(_) => Err(Reject::never("node(s) were in repair")), // preemption cannot help
///             None => Ok(()),
///         }
///     }
/// }
///
/// let cluster = Cluster::default();
/// let mut node = Node::default();
/// node.metadata.labels = Some([("example.com/repair".into(), "disk".into())].into());
/// let (node, pod) = (NodeInfo::new(Arc::new(node)), PodInfo::new(Arc::new(Pod::default())));
/// assert!(NotInRepair.filter(&Cycle::new(&cluster), &pod, &node).is_err());
/// let scheduler = Scheduler::builder().plugin(Points::of(NotInRepair).filters());
/// ```
pub trait Filter: Send + Sync + 'static {
    /// Checks one node.
    ///
    /// # Errors
    /// The node is not feasible.
    fn filter(&self, cx: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject>;
}

/// A node, and the pods on it whose deletion makes room for a pod.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Name of the node.
    pub node: String,
    /// The pods to delete, most important first.
    pub victims: Vec<Arc<PodInfo>>,
    /// Number of victims that a disruption budget protects.
    pub violating: usize,
}

/// Outcome of a [`PostFilter`].
#[derive(Clone, Debug)]
pub enum Nomination {
    /// Extenders may drop some of these and choose other victims. The cheapest one is then preempted: with
    /// the fewest violated budgets, then the lowest priorities of victims, then the fewest victims.
    Candidates(Vec<Candidate>),
    /// The pods are deleted, and the pod is nominated to run on the node. No extender is asked.
    Preempt {
        /// Name of the node.
        node: String,
        /// The pods to delete, most important first.
        victims: Vec<Arc<PodInfo>>,
    },
    /// The pod waits for room that is being made on its nominated node. The message is appended to the
    /// failure's.
    Wait(String),
    /// Nothing can be done. The message is appended to that of the failure, and a nomination ends.
    No(String),
}

/// Makes room for a pod that no node passed the filters for.
pub trait PostFilter: Send + Sync + 'static {
    /// Called if no node is feasible; the plugins are asked in turn until one does something.
    fn post_filter(&self, search: &mut dyn Search) -> Nomination;

    /// Called if no plugin makes room. Returns a request that gives up what keeps the pod from other nodes;
    /// the scheduler sends it. Default: there is nothing.
    fn release(&self, cluster: &Cluster, pod: &PodInfo, client: &Client) -> Option<BoxFuture<'static, ()>> {
        let _ = (cluster, pod, client);
        None
    }
}

/// A failed decision that a [`PostFilter`] looks for a way out of, by trials on copies of nodes. A trial runs
/// the same filters as the decision.
pub trait Search {
    /// Returns the cluster.
    fn cluster(&self) -> &Cluster;
    /// Returns the pod that no node passed the filters for.
    fn pod(&self) -> &PodInfo;
    /// Returns the names of the nodes whose refusal deletions of pods could resolve.
    fn resolvable(&self) -> &[String];
    /// Returns the indexes of those nodes in [`Cluster::nodes`].
    fn resolvable_at(&self) -> Vec<usize> {
        let nodes = self.cluster().nodes();
        let names = self.resolvable();
        (0..nodes.len()).filter(|at| names.iter().any(|name| name == nodes[*at].name())).collect()
    }
    /// Returns what [`Search::remember`] was told about a node. `None`: nothing, or it may have changed,
    /// because the node, the pods on it or a disruption budget changed. It is told for pods of the same
    /// template and priority, and only if all filters of the pod depend on one node alone
    /// ([`PointsOf::depends_on_node`](crate::PointsOf::depends_on_node)).
    fn recall(&self, at: usize) -> Option<Option<Candidate>> {
        let _ = at;
        None
    }
    /// Takes in the outcome of the trial on a node by its index; `None`: there are no victims there.
    fn remember(&mut self, at: usize, outcome: &Option<Candidate>) {
        let _ = (at, outcome);
    }
    /// Begins a trial on a copy of the node; ends the one before. `false`: there is no such node.
    fn visit(&mut self, node: &str) -> bool;
    /// Removes a pod from the copy.
    fn remove(&mut self, pod: &Arc<PodInfo>);
    /// Adds a pod to the copy that was removed from it.
    fn restore(&mut self, pod: &Arc<PodInfo>);
    /// Returns true if the pod passes all filters on the copy.
    fn fits(&mut self) -> bool;
}

/// Prepares the scoring of a pod.
pub trait PreScore: Send + Sync + 'static {
    /// Called once per decision with the feasible nodes. `false` skips the plugin's score for the pod.
    fn pre_score(&self, cx: &mut Cycle<'_>, pod: &PodInfo, nodes: &[&NodeInfo]) -> bool;
}

/// Ranks the feasible nodes.
///
/// ```
/// use std::sync::Arc;
/// use k8s_core::api::{Node, Pod};
/// use k8s_scheduler::{Cluster, Cycle, NodeInfo, PodInfo, Score};
///
/// /// Prefers nodes with few pods.
/// struct Empty;
///
/// impl Score for Empty {
///     fn score(&self, _: &Cycle<'_>, _: &PodInfo, node: &NodeInfo) -> i64 {
///         100 - i64::try_from(node.pods.len()).unwrap_or(100).min(100)
///     }
/// }
///
/// let cluster = Cluster::default();
/// let mut node = NodeInfo::new(Arc::new(Node::default()));
/// node.add(Arc::new(PodInfo::new(Arc::new(Pod::default()))));
/// assert_eq!(Empty.score(&Cycle::new(&cluster), &PodInfo::new(Arc::new(Pod::default())), &node), 99);
/// ```
pub trait Score: Send + Sync + 'static {
    /// Rates a node; after [`NormalizeScore::normalize`] in the range 0 to 100.
    fn score(&self, cx: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> i64;
}

/// Scales the scores of a plugin.
pub trait NormalizeScore: Send + Sync + 'static {
    /// Scales the scores of all feasible nodes to 0 to 100.
    fn normalize(&self, cx: &Cycle<'_>, pod: &PodInfo, nodes: &[&NodeInfo], scores: &mut [i64]);
}

/// Keeps account of resources that are not in the cluster's state.
pub trait Reserve: Send + Sync + 'static {
    /// Called when a node was chosen, before the next decision.
    ///
    /// # Errors
    /// The pod is not placed. [`Reserve::unreserve`] is called for it.
    fn reserve(&self, cluster: &Cluster, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject>;

    /// Called when the pod is not bound after all, also if `reserve` was not called. Must not fail.
    fn unreserve(&self, pod: &PodInfo, node: &str);
}

/// A pod and the node that was chosen for it, for the extension points of binding.
#[derive(Clone, Debug)]
pub struct Placement {
    /// Client of the scheduler.
    pub client: Client,
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// Name of the node.
    pub node: String,
}

/// Delays or prevents the binding of a pod.
#[async_trait]
pub trait Permit: Send + Sync + 'static {
    /// Waits until the pod may be bound, for 15 minutes at most.
    ///
    /// # Errors
    /// The pod is not bound and returns to the queue.
    async fn permit(&self, placement: &Placement) -> Result<(), Reject>;
}

/// Does the work that a pod needs before it is bound.
#[async_trait]
pub trait PreBind: Send + Sync + 'static {
    /// Prepares the node for the pod.
    ///
    /// # Errors
    /// The pod is not bound and is retried after a back-off.
    async fn pre_bind(&self, placement: &Placement) -> Result<(), Error>;
}

/// Binds pods.
#[async_trait]
pub trait Bind: Send + Sync + 'static {
    /// Binds the pod. `false` leaves it to the next plugin.
    ///
    /// # Errors
    /// The pod is not bound and is retried after a back-off.
    async fn bind(&self, placement: &Placement) -> Result<bool, Error>;
}

/// Learns of bound pods.
#[async_trait]
pub trait PostBind: Send + Sync + 'static {
    /// Called when the pod was bound.
    async fn post_bind(&self, placement: &Placement);
}

/// Tells the changes that may help a pod that the plugin refused.
pub trait EnqueueExtensions: Send + Sync + 'static {
    /// Returns the kinds of changes.
    fn wakes_on(&self) -> WakeOn;

    /// Returns false if a change of such a kind cannot help this pod. Default: it may.
    fn hint(&self, cluster: &Cluster, pod: &PodInfo, event: &Event<'_>) -> bool {
        let _ = (cluster, pod, event);
        true
    }
}
