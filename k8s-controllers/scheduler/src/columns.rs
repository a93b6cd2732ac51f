//! The resources of all nodes as columns, so that a loop over thousands of nodes reads little memory.

use crate::NodeInfo;

/// The resources of the nodes by their index: CPU in millicores, the others in bytes.
#[derive(Debug, Default)]
pub(crate) struct Columns {
    /// Allocatable CPU, memory and ephemeral storage.
    pub(crate) allocatable: [Vec<i64>; 3],
    /// The sums of the pods' requests of them.
    pub(crate) requested: [Vec<i64>; 3],
    /// CPU and memory as scores count them: with defaults for pods without requests.
    pub(crate) counted: [Vec<i64>; 2],
    /// Numbers of pods.
    pub(crate) pods: Vec<i64>,
    /// Maximum numbers of pods.
    pub(crate) max_pods: Vec<i64>,
    /// The lowest priority of a pod on the node; `i32::MAX` without pods.
    pub(crate) lowest: Vec<i32>,
}

impl Columns {
    fn each(&mut self) -> impl Iterator<Item = &mut Vec<i64>> {
        let (a, r, c) = (&mut self.allocatable, &mut self.requested, &mut self.counted);
        a.iter_mut().chain(r).chain(c).chain([&mut self.pods, &mut self.max_pods])
    }

    /// Reads a node into the row `at`; the row after the last one is a new one.
    pub(crate) fn set(&mut self, at: usize, node: &NodeInfo) {
        let (have, used) = (&node.allocatable, &node.requested);
        let values = [
            have.milli_cpu,
            have.memory,
            have.ephemeral,
            used.milli_cpu,
            used.memory,
            used.ephemeral,
            node.counted.0,
            node.counted.1,
            i64::try_from(node.pods.len()).unwrap_or(i64::MAX),
            node.max_pods,
        ];
        for (column, value) in self.each().zip(values) {
            if at == column.len() {
                column.push(value);
            } else {
                column[at] = value;
            }
        }
        if at == self.lowest.len() {
            self.lowest.push(node.lowest);
        } else {
            self.lowest[at] = node.lowest;
        }
    }

    /// Removes a row; the last one takes its place.
    pub(crate) fn swap_remove(&mut self, at: usize) {
        for column in self.each() {
            column.swap_remove(at);
        }
        self.lowest.swap_remove(at);
    }
}
