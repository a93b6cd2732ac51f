//! All nodes and where pods are: the state that decisions read, kept current one change at a time.

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
    /// Not yet said by the API server.
    assumed: bool,
    info: Arc<PodInfo>,
}

/// The nodes and the pods on them.
#[derive(Default)]
pub struct Cluster {
    nodes: Vec<NodeInfo>,
    by_name: HashMap<String, usize>,
    pods: HashMap<String, Placed>,
    /// Pods on nodes that are not known (yet).
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

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[NodeInfo] {
        &self.nodes
    }

    /// One node.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.by_name.get(name).map(|at| &self.nodes[*at])
    }

    /// Whether any placed pod has rules about other pods.
    pub(crate) fn has_affinity(&self) -> bool {
        self.with_affinity > 0
    }

    pub(crate) fn namespace_labels(&self, namespace: &str) -> BTreeMap<String, String> {
        let namespace = self.namespaces.as_ref().and_then(|n| n.get("", namespace));
        namespace.and_then(|n| n.metadata.labels.clone()).unwrap_or_default()
    }

    /// A node is new or changed.
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

    /// A node is gone; its pods are remembered until they are gone too.
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

    /// The API server says that a pod is on a node.
    pub fn set_pod(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.place(pod, node, false);
    }

    /// A decision was made; the pod counts from now on.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.place(pod, node, true);
    }

    /// An assumed pod was not bound after all. One that the API server has confirmed stays.
    pub fn forget(&mut self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|p| p.assumed) && self.remove_pod(uid)
    }

    /// Whether the pod is on a node, or assumed to be.
    #[must_use]
    pub fn is_placed(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    /// Whether a pod on a node asks for, and has, exactly this: then an update of it changes nothing here.
    pub(crate) fn has_confirmed(&self, uid: &str, node: &str) -> Option<&Arc<PodInfo>> {
        self.pods.get(uid).filter(|p| !p.assumed && p.node == node).map(|p| &p.info)
    }

    /// A pod is gone or has ended; whether it was known.
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

    /// Uids of all pods that are on nodes, assumed ones left out, in order.
    pub(crate) fn confirmed(&self) -> Vec<String> {
        let placed = self.pods.iter().filter(|(_, p)| !p.assumed);
        let mut uids: Vec<String> = placed.map(|(uid, _)| uid.clone()).collect();
        uids.sort_unstable();
        uids
    }
}
