//! The feasible nodes of one decision.

use std::cell::OnceCell;

use crate::{Cluster, NodeInfo};

/// The feasible nodes by their index, in order. They are listed on demand if verdicts tell them.
#[derive(Debug)]
pub(crate) struct Feasible<'a> {
    /// By the node's index: 0 for a feasible node.
    verdicts: Option<&'a [u32]>,
    number: usize,
    list: OnceCell<Vec<u32>>,
}

impl<'a> Feasible<'a> {
    /// Lists nodes by their index.
    pub(crate) fn listed(list: Vec<u32>) -> Self {
        Feasible { verdicts: None, number: list.len(), list: OnceCell::from(list) }
    }

    /// Lists nodes of the cluster.
    pub(crate) fn of_nodes(nodes: &[&NodeInfo]) -> Self {
        let slots = nodes.iter().map(|node| u32::try_from(node.slot).unwrap_or(u32::MAX));
        Feasible::listed(slots.collect())
    }

    /// The nodes whose verdict is 0; there are `number` of them.
    pub(crate) fn of(verdicts: &'a [u32], number: usize) -> Self {
        Feasible { verdicts: Some(verdicts), number, list: OnceCell::new() }
    }

    /// Returns true if the verdicts tell the nodes.
    pub(crate) fn by_verdicts(&self) -> bool {
        self.verdicts.is_some()
    }

    pub(crate) fn len(&self) -> usize {
        self.number
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.number == 0
    }

    /// Returns the indexes.
    pub(crate) fn slots(&self) -> &[u32] {
        self.list.get_or_init(|| {
            let mut slots = Vec::with_capacity(self.number);
            let verdicts = (0u32..).zip(self.verdicts.into_iter().flatten());
            slots.extend(verdicts.filter(|(_, verdict)| **verdict == 0).map(|(slot, _)| slot));
            slots
        })
    }

    /// Returns the nodes.
    pub(crate) fn nodes<'c>(&self, cluster: &'c Cluster) -> Vec<&'c NodeInfo> {
        self.slots().iter().filter_map(|slot| cluster.nodes().get(*slot as usize)).collect()
    }
}
