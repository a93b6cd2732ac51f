//! State of one decision.

use std::any::{Any, TypeId};

use crate::Cluster;

/// State of one decision: the cluster and the values that plugins stored for this pod.
///
/// ```
/// use k8s_scheduler::{Cluster, Cycle};
/// struct Racks(usize);
/// let cluster = Cluster::default();
/// let mut cycle = Cycle::new(&cluster);
/// cycle.put(Racks(3)); // in `pre_filter` or `pre_score`, once for a pod
/// assert!(cycle.get::<Racks>().is_some_and(|racks| racks.0 == 3)); // in `filter` and `score`
/// assert!(cycle.cluster().nodes().is_empty());
/// ```
pub struct Cycle<'a> {
    cluster: &'a Cluster,
    // A list: a decision has few values, and a lookup happens for every node.
    state: Vec<(TypeId, Box<dyn Any + Send + Sync>)>,
    only: Option<Vec<String>>,
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
        Cycle { cluster, state: Vec::new(), only: None }
    }

    /// Returns the cluster.
    #[must_use]
    pub fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    /// Stores a value for the rest of the decision; one per type.
    pub fn put<T: Any + Send + Sync>(&mut self, value: T) {
        let id = TypeId::of::<T>();
        match self.state.iter_mut().find(|(known, _)| *known == id) {
            Some((_, slot)) => *slot = Box::new(value),
            None => self.state.push((id, Box::new(value))),
        }
    }

    /// Returns the stored value of a type.
    #[must_use]
    pub fn get<T: Any + Send + Sync>(&self) -> Option<&T> {
        let id = TypeId::of::<T>();
        self.state.iter().find(|(known, _)| *known == id)?.1.downcast_ref()
    }

    /// Returns the stored value of a type, to change it.
    pub fn get_mut<T: Any + Send + Sync>(&mut self) -> Option<&mut T> {
        let id = TypeId::of::<T>();
        self.state.iter_mut().find(|(known, _)| *known == id)?.1.downcast_mut()
    }

    /// Restricts the decision to these nodes, in `pre_filter`. Several restrictions intersect.
    pub fn restrict(&mut self, mut names: Vec<String>) {
        if let Some(before) = &self.only {
            names.retain(|name| before.contains(name));
        }
        names.sort_unstable();
        names.dedup();
        self.only = Some(names);
    }

    /// Returns the names of the nodes that the decision is restricted to.
    pub(crate) fn only(&self) -> Option<&[String]> {
        self.only.as_deref()
    }
}
