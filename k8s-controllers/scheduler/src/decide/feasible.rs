//! The feasible nodes of one decision.

use std::cell::OnceCell;

use super::memo::Memo;
use crate::{Cluster, NodeInfo};

/// The feasible nodes by their index, in order. If they are those of a memo, they are listed only on demand.
#[derive(Debug)]
pub(crate) struct Feasible<'a> {
    pub(super) memo: Option<&'a Memo>,
    /// True if every feasible node of the memo is feasible.
    pub(super) all_of_memo: bool,
    number: usize,
    list: OnceCell<Vec<u32>>,
}

impl<'a> Feasible<'a> {
    pub(super) fn listed(list: Vec<u32>, memo: Option<&'a Memo>) -> Self {
        Feasible { memo, all_of_memo: false, number: list.len(), list: OnceCell::from(list) }
    }

    /// Lists nodes of the cluster.
    pub(crate) fn of_nodes(nodes: &[&NodeInfo]) -> Self {
        let slots = nodes.iter().map(|node| u32::try_from(node.slot).unwrap_or(u32::MAX));
        Feasible::listed(slots.collect(), None)
    }

    pub(super) fn of(memo: &'a Memo) -> Self {
        Feasible { memo: Some(memo), all_of_memo: true, number: memo.feasible(), list: OnceCell::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.number
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.number == 0
    }

    /// Returns the indexes.
    pub(crate) fn slots(&self) -> &[u32] {
        self.list.get_or_init(|| self.memo.map(Memo::passed).unwrap_or_default())
    }

    /// Returns the nodes.
    pub(crate) fn nodes<'c>(&self, cluster: &'c Cluster) -> Vec<&'c NodeInfo> {
        self.slots().iter().filter_map(|slot| cluster.nodes().get(*slot as usize)).collect()
    }
}
