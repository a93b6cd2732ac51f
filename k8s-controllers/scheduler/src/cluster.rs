//! The scheduler's view of the cluster: nodes and the pods on them, updated incrementally.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_core::{
    api::api::core::v1::{Namespace, Node},
    cache::Cache,
    meta::ObjectExt,
};

use crate::{NodeInfo, PodInfo, volumes::VolumeCaches};

struct Placed {
    node: String,
    /// Assumed by a decision and not yet confirmed by the API server.
    assumed: bool,
    info: Arc<PodInfo>,
}

/// The nodes and the pods on them.
#[derive(Default)]
pub struct Cluster {
    nodes: Vec<NodeInfo>,
    by_name: HashMap<String, usize>,
    pods: HashMap<String, Placed>,
    /// Pods whose node is unknown (not yet seen, or deleted).
    elsewhere: HashMap<String, Vec<Arc<PodInfo>>>,
    namespaces: Option<Cache<Namespace>>,
    pub(crate) volumes: Option<VolumeCaches>,
    with_affinity: usize,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("nodes", &self.nodes.len())
            .field("pods", &self.pods.len())
            .finish_non_exhaustive()
    }
}

impl Cluster {
    pub(crate) fn watching(namespaces: Cache<Namespace>, volumes: VolumeCaches) -> Self {
        Cluster { namespaces: Some(namespaces), volumes: Some(volumes), ..Cluster::default() }
    }

    /// Returns all nodes.
    #[must_use]
    pub fn nodes(&self) -> &[NodeInfo] {
        &self.nodes
    }

    /// Returns a node by name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.by_name.get(name).map(|at| &self.nodes[*at])
    }

    /// Returns true if any placed pod has affinity or anti-affinity terms.
    pub(crate) fn has_affinity(&self) -> bool {
        self.with_affinity > 0
    }

    pub(crate) fn namespace_labels(&self, namespace: &str) -> BTreeMap<String, String> {
        let namespace = self.namespaces.as_ref().and_then(|n| n.get("", namespace));
        namespace.and_then(|n| n.metadata.labels.clone()).unwrap_or_default()
    }

    /// Adds or updates a node.
    pub fn set_node(&mut self, node: Arc<Node>) {
        if let Some(at) = self.by_name.get(node.name()) {
            self.nodes[*at].set_node(node);
            return;
        }
        let name = node.name().to_owned();
        let mut info = NodeInfo::new(node);
        for pod in self.elsewhere.remove(&name).unwrap_or_default() {
            info.add(pod);
        }
        self.with_affinity += info.with_affinity;
        self.by_name.insert(name, self.nodes.len());
        self.nodes.push(info);
    }

    /// Removes a node. Its pods are kept until they are removed themselves.
    pub fn remove_node(&mut self, name: &str) {
        let Some(at) = self.by_name.remove(name) else { return };
        let info = self.nodes.swap_remove(at);
        self.with_affinity -= info.with_affinity;
        if let Some(moved) = self.nodes.get(at) {
            self.by_name.insert(moved.name().to_owned(), at);
        }
        if !info.pods.is_empty() {
            self.elsewhere.insert(name.to_owned(), info.pods);
        }
    }

    fn place(&mut self, pod: Arc<PodInfo>, node: &str, assumed: bool) {
        self.remove_pod(pod.uid());
        let placed = Placed { node: node.to_owned(), assumed, info: pod.clone() };
        self.pods.insert(pod.uid().to_owned(), placed);
        match self.by_name.get(node) {
            Some(at) => {
                let info = &mut self.nodes[*at];
                let before = info.with_affinity;
                info.add(pod);
                self.with_affinity = self.with_affinity + info.with_affinity - before;
            }
            None => self.elsewhere.entry(node.to_owned()).or_default().push(pod),
        }
    }

    /// Places a pod on a node, as confirmed by the API server.
    pub fn set_pod(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.place(pod, node, false);
    }

    /// Places a pod on a node by a decision; it counts there from now on.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.place(pod, node, true);
    }

    /// Removes an assumed pod whose binding failed. A confirmed pod stays.
    pub fn forget(&mut self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|p| p.assumed) && self.remove_pod(uid)
    }

    /// Returns true if the pod is on a node, confirmed or assumed.
    #[must_use]
    pub fn is_placed(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    /// Returns the confirmed pod if it is on this node.
    pub(crate) fn has_confirmed(&self, uid: &str, node: &str) -> Option<&Arc<PodInfo>> {
        self.pods.get(uid).filter(|p| !p.assumed && p.node == node).map(|p| &p.info)
    }

    /// Removes a pod that was deleted or has ended; returns true if it was known.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        let Some(placed) = self.pods.remove(uid) else { return false };
        match self.by_name.get(&placed.node) {
            Some(at) => {
                let info = &mut self.nodes[*at];
                let before = info.with_affinity;
                info.remove(uid);
                self.with_affinity = self.with_affinity + info.with_affinity - before;
            }
            None => {
                if let Some(pods) = self.elsewhere.get_mut(&placed.node) {
                    pods.retain(|p| p.uid() != uid);
                    if pods.is_empty() {
                        self.elsewhere.remove(&placed.node);
                    }
                }
            }
        }
        true
    }

    /// Returns the sorted uids of all confirmed pods.
    pub(crate) fn confirmed(&self) -> Vec<String> {
        let placed = self.pods.iter().filter(|(_, p)| !p.assumed);
        let mut uids: Vec<String> = placed.map(|(uid, _)| uid.clone()).collect();
        uids.sort_unstable();
        uids
    }
}
