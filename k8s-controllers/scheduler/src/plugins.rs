//! The built-in plugins, with upstream's names, weights and messages.

mod affinity;
mod node;
mod spread;
mod volume;

pub use affinity::InterPodAffinity;
pub use node::{
    BalancedAllocation, ImageLocality, LeastAllocated, NodeAffinity, NodeName, NodePorts, NodeResourcesFit,
    NodeUnschedulable, TaintToleration,
};
pub use spread::{GroupSpread, PodTopologySpread};
pub use volume::VolumeBinding;

use crate::{Filter, Score};

/// Returns the built-in filters, cheapest first.
#[must_use]
pub fn filters() -> Vec<Box<dyn Filter>> {
    vec![
        Box::new(NodeName),
        Box::new(NodeUnschedulable),
        Box::new(TaintToleration),
        Box::new(NodeAffinity),
        Box::new(NodePorts),
        Box::new(NodeResourcesFit),
        Box::new(VolumeBinding),
        Box::new(PodTopologySpread),
        Box::new(InterPodAffinity),
    ]
}

/// Returns the built-in scores with their weights.
#[must_use]
pub fn scores() -> Vec<(i64, Box<dyn Score>)> {
    vec![
        (3, Box::new(TaintToleration)),
        (2, Box::new(NodeAffinity)),
        (1, Box::new(LeastAllocated)),
        (1, Box::new(BalancedAllocation)),
        (1, Box::new(ImageLocality)),
        (2, Box::new(PodTopologySpread)),
        (2, Box::new(GroupSpread)),
        (2, Box::new(InterPodAffinity)),
    ]
}
