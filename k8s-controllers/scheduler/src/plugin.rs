//! What can be plugged into a decision.

use std::{
    any::{Any, TypeId},
    borrow::Cow,
    collections::HashMap,
};

use crate::{Cluster, NodeInfo, PodInfo};

/// One decision: the cluster as it is, and what plugins worked out for this pod.
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
    /// A decision over this cluster.
    #[must_use]
    pub fn new(cluster: &'a Cluster) -> Self {
        Cycle { cluster, state: HashMap::new() }
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    /// Remembers something for the rest of the decision; one value per type.
    pub fn put<T: Any + Send + Sync>(&mut self, value: T) {
        self.state.insert(TypeId::of::<T>(), Box::new(value));
    }

    /// What was remembered.
    #[must_use]
    pub fn get<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.state.get(&TypeId::of::<T>())?.downcast_ref()
    }
}

/// Why a node (or, from `prepare`, every node) cannot take a pod, in the words that users see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// One or more reasons.
    pub reasons: Vec<Cow<'static, str>>,
    /// Whether deleting other pods could help.
    pub resolvable: bool,
}

impl Reject {
    /// Deleting other pods could help.
    #[must_use]
    pub fn full(reason: impl Into<Cow<'static, str>>) -> Self {
        Reject { reasons: vec![reason.into()], resolvable: true }
    }

    /// Whatever is deleted, the pod does not fit.
    #[must_use]
    pub fn never(reason: impl Into<Cow<'static, str>>) -> Self {
        Reject { reasons: vec![reason.into()], resolvable: false }
    }
}

/// Kinds of changes that may help a pod that fits nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WakeOn(u8);

impl WakeOn {
    /// A node is new, or its labels, taints or capacity changed.
    pub const NODE: WakeOn = WakeOn(1);
    /// A pod left a node.
    pub const POD_GONE: WakeOn = WakeOn(2);
    /// A pod came to a node, or its labels changed.
    pub const POD_PLACED: WakeOn = WakeOn(4);
    /// A volume, claim or storage class changed.
    pub const VOLUME: WakeOn = WakeOn(8);
    /// Any change.
    pub const ANYTHING: WakeOn = WakeOn(15);
    /// No change.
    pub const NOTHING: WakeOn = WakeOn(0);

    /// Either.
    #[must_use]
    pub const fn or(self, other: WakeOn) -> Self {
        WakeOn(self.0 | other.0)
    }

    /// Whether they have a kind of change in common.
    #[must_use]
    pub const fn meets(self, other: WakeOn) -> bool {
        self.0 & other.0 != 0
    }
}

fn short_name<T: ?Sized>() -> &'static str {
    std::any::type_name::<T>().rsplit("::").next().unwrap_or_default()
}

/// Says which nodes can take a pod.
pub trait Filter: Send + Sync + 'static {
    /// Its name.
    fn name(&self) -> &'static str {
        short_name::<Self>()
    }

    /// Called once per decision. `false`: nothing about this pod concerns this filter, so it is not asked.
    ///
    /// # Errors
    /// When no node at all can take the pod.
    fn prepare(&self, cx: &mut Cycle<'_>, pod: &PodInfo) -> Result<bool, Reject> {
        let _ = (cx, pod);
        Ok(true)
    }

    /// Whether the node can take the pod.
    ///
    /// # Errors
    /// When it cannot.
    fn filter(&self, cx: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject>;

    /// Which changes may help a pod that this filter rejected.
    fn wakes_on(&self) -> WakeOn {
        WakeOn::ANYTHING
    }
}

/// Says which of the nodes that can take a pod should.
pub trait Score: Send + Sync + 'static {
    /// Its name.
    fn name(&self) -> &'static str {
        short_name::<Self>()
    }

    /// Called once per decision. `false`: all nodes are the same to this score.
    fn prepare(&self, cx: &mut Cycle<'_>, pod: &PodInfo) -> bool {
        let _ = (cx, pod);
        true
    }

    /// How good the node is; after [`Score::normalize`] 0 to 100.
    fn score(&self, cx: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> i64;

    /// Brings the scores of all candidates to 0 to 100.
    fn normalize(&self, scores: &mut [i64]) {
        let _ = scores;
    }
}

/// Something that a scheduler can be built with.
pub trait Plugin {
    /// Puts itself in.
    fn register(self, filters: &mut Vec<Box<dyn Filter>>, scores: &mut Vec<(i64, Box<dyn Score>)>);
}

/// A score and how much it counts.
#[derive(Clone, Copy, Debug)]
pub struct Weighted<S> {
    score: S,
    weight: i64,
}

/// `weight` for every score.
pub trait ScoreExt: Score + Sized {
    /// Counts so many times.
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

/// 0 to 100 in proportion to the largest; `reverse`: the smallest is best.
pub(crate) fn proportional(scores: &mut [i64], reverse: bool) {
    let most = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let part = if most <= 0 { 0 } else { (*score).max(0) * 100 / most };
        *score = if reverse { 100 - part } else { part };
    }
}

/// 0 for the smallest, 100 for the largest.
pub(crate) fn spread(scores: &mut [i64]) {
    let (least, most) =
        (scores.iter().copied().min().unwrap_or(0), scores.iter().copied().max().unwrap_or(0));
    for score in scores {
        *score = if most == least { 0 } else { (*score - least) * 100 / (most - least) };
    }
}
