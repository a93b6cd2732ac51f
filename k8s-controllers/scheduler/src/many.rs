//! Built-in plugins over many nodes at once. The results are those of their extension points node by node.

use crate::{Cluster, Cycle, PodInfo, Reject, feasible::Feasible};

/// The nodes that a filter passes.
pub(crate) enum Passes {
    /// All nodes.
    All,
    /// Those with `true` by their index; the filter is asked about the others.
    These(Vec<bool>),
    /// The filter is asked about each node.
    Ask,
}

/// A plugin whose filter and raw score of a node depend on this node with its pods and on the pod's template
/// alone. Its results are kept until the node changes.
pub(crate) trait PerNode: Send + Sync {
    /// True if the plugin may read everything of the pod but its name and status. Otherwise it reads what
    /// `decide::memo` compares.
    fn reads_all(&self) -> bool {
        false
    }

    /// Returns the nodes that the filter passes.
    fn passes(&self, cluster: &Cluster, pod: &PodInfo) -> Passes {
        let _ = (cluster, pod);
        Passes::Ask
    }

    /// Writes the raw scores of all nodes by their index. `false`: the plugin is to be asked node by node.
    fn scores(&self, cluster: &Cluster, pod: &PodInfo, scores: &mut [i64]) -> bool {
        let _ = (cluster, pod, scores);
        false
    }
}

/// A plugin of a caller that says that its results may be kept.
pub(crate) struct Kept;

impl PerNode for Kept {
    fn reads_all(&self) -> bool {
        true
    }
}

/// A plugin that has its own columns for one decision.
pub(crate) trait AtOnce: Send + Sync {
    /// Returns the filter of nodes by their index: 0 passes, others are refusals by number.
    fn filter<'a>(&'a self, cx: &'a Cycle<'_>, pod: &'a PodInfo) -> Box<dyn Fn(usize) -> u8 + 'a> {
        let _ = (cx, pod);
        Box::new(|_| 0)
    }

    /// Returns the refusal of a number.
    fn refusal(&self, number: u8) -> Reject {
        let _ = number;
        Reject::never("")
    }

    /// As [`PreScore::pre_score`](crate::PreScore::pre_score).
    fn pre_score(&self, cx: &mut Cycle<'_>, pod: &PodInfo, nodes: &Feasible<'_>) -> bool;

    /// Writes the raw scores of these nodes.
    fn score(&self, cx: &Cycle<'_>, pod: &PodInfo, nodes: &[u32], scores: &mut [i64]);

    /// Scales the scores of these nodes to 0 to 100.
    fn normalize(&self, cx: &Cycle<'_>, nodes: &[u32], scores: &mut [i64]) {
        let _ = (cx, nodes, scores);
    }
}
