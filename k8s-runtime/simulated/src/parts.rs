//! What all tasks of a simulation share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_core::{
    api::api::core::v1::{Node, Pod},
    cache::Cache,
    client::Client,
    clock::Clock,
    meta::ObjectExt,
};

use crate::board::Board;

/// Content type of a strategic merge patch.
pub(crate) const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// Returns the client of a node's writes.
pub(crate) type Writer = Arc<dyn Fn(&str) -> Client + Send + Sync>;

/// The parts that tasks share.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) pods: Cache<Pod>,
    pub(crate) nodes: Option<Cache<Node>>,
    pub(crate) writer: Writer,
    pub(crate) clock: Clock,
    pub(crate) board: Arc<Mutex<Board>>,
}

impl Parts {
    pub(crate) fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the pod of a uid as the cache has it.
    pub(crate) fn pod(&self, uid: &str) -> Option<Arc<Pod>> {
        let key = self.board().pods.get(uid)?.key.clone();
        self.pods.by_key(&key).filter(|pod| pod.uid() == uid)
    }
}
