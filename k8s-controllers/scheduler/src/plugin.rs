//! The plugin traits: [`Filter`], [`Score`] and [`Plugin`].

use std::{
    any::{Any, TypeId},
    collections::HashMap,
};

use crate::{Cluster, NodeInfo, PodInfo, Reject};

/// State of one decision: the cluster and the values that plugins stored for this pod.
///
/// ```
/// use k8s_scheduler::{Cluster, Cycle};
/// struct Racks(usize);
/// let cluster = Cluster::default();
/// let mut cycle = Cycle::new(&cluster);
/// cycle.put(Racks(3)); // in `prepare`, once for a pod
/// assert!(cycle.get::<Racks>().is_some_and(|racks| racks.0 == 3)); // in `filter` and `score`
/// assert!(cycle.cluster().nodes().is_empty());
/// ```
pub struct Cycle<'a> {
    cluster: &'a Cluster,
    state: HashMap<TypeId, Box<dyn Any + Send + Sync>>,
}

impl std::fmt::Debug for Cycle<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cycle").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl<'a> Cycle<'a> {
    /// Creates the state of a decision over this cluster.
    #[must_use]
    pub fn new(cluster: &'a Cluster) -> Self {
        Cycle { cluster, state: HashMap::new() }
    }

    /// Returns the cluster.
    #[must_use]
    pub fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    /// Stores a value for the rest of the decision; one per type.
    pub fn put<T: Any + Send + Sync>(&mut self, value: T) {
        self.state.insert(TypeId::of::<T>(), Box::new(value));
    }

    /// Returns the stored value of a type.
    #[must_use]
    pub fn get<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.state.get(&TypeId::of::<T>())?.downcast_ref()
    }
}

/// A set of kinds of changes that may make an unschedulable pod schedulable.
///
/// ```
/// use k8s_scheduler::WakeOn;
/// let wakes = WakeOn::NODE.or(WakeOn::POD_GONE);
/// assert!(wakes.meets(WakeOn::POD_GONE) && !wakes.meets(WakeOn::VOLUME));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WakeOn(u8);

impl WakeOn {
    /// A node was added, or its labels, taints or capacity changed.
    pub const NODE: WakeOn = WakeOn(1);
    /// A pod left a node.
    pub const POD_GONE: WakeOn = WakeOn(2);
    /// A pod was placed on a node, or its labels changed.
    pub const POD_PLACED: WakeOn = WakeOn(4);
    /// A volume, claim or storage class changed.
    pub const VOLUME: WakeOn = WakeOn(8);
    /// Every kind of change.
    pub const ANYTHING: WakeOn = WakeOn(15);
    /// The empty set.
    pub const NOTHING: WakeOn = WakeOn(0);

    /// Returns the union.
    #[must_use]
    pub const fn or(self, other: WakeOn) -> Self {
        WakeOn(self.0 | other.0)
    }

    /// Returns true if the sets intersect.
    #[must_use]
    pub const fn meets(self, other: WakeOn) -> bool {
        self.0 & other.0 != 0
    }
}

fn short_name<T: ?Sized>() -> &'static str {
    std::any::type_name::<T>().rsplit("::").next().unwrap_or_default()
}

/// Selects the feasible nodes.
///
/// ```
/// use std::sync::Arc;
/// use k8s_core::api::{Node, Pod};
/// use k8s_scheduler::{Cluster, Cycle, Filter, NodeInfo, PodInfo, Reject};
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
/// assert_eq!(NotInRepair.name(), "NotInRepair");
/// ```
pub trait Filter: Send + Sync + 'static {
    /// Name of the plugin. Default: the name of the type.
    fn name(&self) -> &'static str {
        short_name::<Self>()
    }

    /// Called once per decision. `false` skips this filter for the pod.
    ///
    /// # Errors
    /// Rejects the pod on every node.
    fn prepare(&self, cx: &mut Cycle<'_>, pod: &PodInfo) -> Result<bool, Reject> {
        let _ = (cx, pod);
        Ok(true)
    }

    /// Checks one node.
    ///
    /// # Errors
    /// The node is not feasible.
    fn filter(&self, cx: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject>;

    /// Returns the kinds of changes that may help a pod that this filter rejected. Default: any.
    fn wakes_on(&self) -> WakeOn {
        WakeOn::ANYTHING
    }
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
    /// Name of the plugin. Default: the name of the type.
    fn name(&self) -> &'static str {
        short_name::<Self>()
    }

    /// Called once per decision. `false` skips this score for the pod.
    fn prepare(&self, cx: &mut Cycle<'_>, pod: &PodInfo) -> bool {
        let _ = (cx, pod);
        true
    }

    /// Rates a node; after [`Score::normalize`] in the range 0 to 100.
    fn score(&self, cx: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> i64;

    /// Scales the scores of all candidates to 0 to 100.
    fn normalize(&self, scores: &mut [i64]) {
        let _ = scores;
    }
}

/// A filter, a score, or several of them, for a scheduler's builder.
pub trait Plugin {
    /// Adds its filters and weighted scores.
    fn register(self, filters: &mut Vec<Box<dyn Filter>>, scores: &mut Vec<(i64, Box<dyn Score>)>);
}

/// A score and its weight.
#[derive(Clone, Copy, Debug)]
pub struct Weighted<S> {
    score: S,
    weight: i64,
}

/// Adds [`ScoreExt::weight`] to every score.
///
/// ```
/// use k8s_core::client::Client;
/// use k8s_scheduler::{Scheduler, ScoreExt, plugins::ImageLocality};
///
/// async fn run(client: Client) {
///     Scheduler::builder().plugin(ImageLocality.weight(3)).run(client).await;
/// }
/// ```
pub trait ScoreExt: Score + Sized {
    /// Multiplies the score by `weight`.
    fn weight(self, weight: i64) -> Weighted<Self> {
        Weighted { score: self, weight }
    }
}

impl<S: Score> ScoreExt for S {}

impl<S: Score> Plugin for Weighted<S> {
    fn register(self, _: &mut Vec<Box<dyn Filter>>, scores: &mut Vec<(i64, Box<dyn Score>)>) {
        scores.push((self.weight, Box::new(self.score)));
    }
}

/// Scales to 0 to 100 in proportion to the largest; `reverse` gives the smallest score 100.
pub(crate) fn proportional(scores: &mut [i64], reverse: bool) {
    let most = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let part = if most <= 0 { 0 } else { (*score).max(0) * 100 / most };
        *score = if reverse { 100 - part } else { part };
    }
}

/// Scales linearly: the smallest becomes 0, the largest 100.
pub(crate) fn spread(scores: &mut [i64]) {
    let (least, most) =
        (scores.iter().copied().min().unwrap_or(0), scores.iter().copied().max().unwrap_or(0));
    for score in scores {
        *score = if most == least { 0 } else { (*score - least) * 100 / (most - least) };
    }
}
