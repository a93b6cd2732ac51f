//! The scheduler's view of the cluster: nodes and the pods on them, updated incrementally.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_core::{
    api::api::core::v1::{Namespace, Node},
    cache::Cache,
    meta::ObjectExt,
};

use crate::{
    NodeInfo, PodInfo,
    columns::Columns,
    index::{Domains, Index, Kind, Question},
    journal::Journal,
    node_info::Flags,
    terms::AffinityTerm,
    volumes::Lists,
};

/// The label of a node's zone.
pub(crate) const ZONE: &str = "topology.kubernetes.io/zone";

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
    /// Pods without a node that wait for room on one, by its name.
    nominated: HashMap<String, Vec<Arc<PodInfo>>>,
    namespaces: Option<Cache<Namespace>>,
    lists: Option<Lists>,
    index: Mutex<Index>,
    with_affinity: usize,
    /// Number of nodes that have each image.
    images: HashMap<String, usize>,
    /// Number of nodes with a zone.
    zoned: usize,
    flagged: Flagged,
    columns: Columns,
    journal: Journal,
    identity: Identity,
}

/// Numbers of nodes by their flags.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flagged {
    pub(crate) cordoned: usize,
    pub(crate) hard_taints: usize,
    pub(crate) soft_taints: usize,
}

impl Flagged {
    fn add(&mut self, flags: Flags) {
        self.cordoned += usize::from(flags.cordoned);
        self.hard_taints += usize::from(flags.hard_taints);
        self.soft_taints += usize::from(flags.soft_taints);
    }

    fn subtract(&mut self, flags: Flags) {
        self.cordoned -= usize::from(flags.cordoned);
        self.hard_taints -= usize::from(flags.hard_taints);
        self.soft_taints -= usize::from(flags.soft_taints);
    }
}

/// Tells one cluster from another.
#[derive(Clone, Debug, Default)]
pub(crate) struct Identity(Arc<()>);

impl Identity {
    pub(crate) fn is_of(&self, cluster: &Cluster) -> bool {
        Arc::ptr_eq(&self.0, &cluster.identity.0)
    }
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
    pub(crate) fn watching(namespaces: Cache<Namespace>, lists: Lists) -> Self {
        Cluster { namespaces: Some(namespaces), lists: Some(lists), ..Cluster::default() }
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

    /// Returns the index of a node.
    pub(crate) fn slot(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Returns the resources of all nodes.
    pub(crate) fn columns(&self) -> &Columns {
        &self.columns
    }

    /// Returns the changes of nodes.
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Returns the numbers of cordoned and tainted nodes.
    pub(crate) fn flagged(&self) -> Flagged {
        self.flagged
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity.clone()
    }

    /// Takes in that a node was changed.
    fn changed(&mut self, at: usize) {
        self.journal.note(at);
        let node = &mut self.nodes[at];
        (node.slot, node.version) = (at, self.journal.now());
        self.columns.set(at, node);
    }

    /// Returns true if any placed pod has affinity or anti-affinity terms.
    pub(crate) fn has_affinity(&self) -> bool {
        self.with_affinity > 0
    }

    /// Returns true if any node has a zone.
    pub(crate) fn has_zones(&self) -> bool {
        self.zoned > 0
    }

    /// Returns the number of nodes that have an image, by its normalized name.
    pub(crate) fn nodes_with(&self, image: &str) -> usize {
        self.images.get(image).copied().unwrap_or(0)
    }

    /// Returns the other objects that plugins read; without caches there are none.
    pub(crate) fn lists(&self) -> Option<&Lists> {
        self.lists.as_ref()
    }

    pub(crate) fn namespace_labels(&self, namespace: &str) -> BTreeMap<String, String> {
        let namespace = self.namespaces.as_ref().and_then(|n| n.get("", namespace));
        namespace.and_then(|n| n.metadata.labels.clone()).unwrap_or_default()
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the question of placed pods that all terms select. `None`: they select no pod.
    pub(crate) fn question<'t>(&self, terms: impl IntoIterator<Item = &'t AffinityTerm>) -> Option<Question> {
        self.index().question(terms, |selector, namespace| {
            let namespace = self.namespaces.as_ref().and_then(|n| n.get("", namespace));
            selector.matches(namespace.as_ref().and_then(|n| n.metadata.labels.as_ref()))
        })
    }

    /// Returns the number of pods by the domain of a topology key; `None` counts none.
    pub(crate) fn by_domain(&self, question: Option<&Question>, key: &str) -> Domains {
        match question {
            Some(question) => self.index().by_domain(&self.nodes, question, key),
            None => self.index().domains(&self.nodes, key),
        }
    }

    /// Returns the number of pods by node.
    pub(crate) fn by_node(&self, question: &Question) -> Arc<Vec<i32>> {
        self.index().by_node(&self.nodes, question)
    }

    /// Returns the numbers of placed pods with terms that select a pod, by topology key and domain: each pod
    /// counts what `weight` says for its term.
    pub(crate) fn selecting(
        &self,
        pod: &PodInfo,
        weight: impl Fn(Kind) -> i64,
        selects: impl Fn(&AffinityTerm) -> bool,
    ) -> Vec<(String, Domains)> {
        let index = self.index();
        let mut found: Vec<(String, Domains)> = Vec::new();
        for counted in index.terms_for(pod) {
            let weight = weight(counted.kind);
            if weight == 0 || counted.by_domain.is_empty() || !selects(counted.term) {
                continue;
            }
            let key = &counted.term.topology_key;
            let at = found.iter().position(|(known, _)| known == key).unwrap_or_else(|| {
                found.push((key.clone(), index.domains(&self.nodes, key)));
                found.len() - 1
            });
            let domains = &mut found[at].1;
            for (domain, pods) in counted.by_domain {
                domains.add_in(*domain, weight * pods);
            }
        }
        found
    }

    /// Adds or updates a node.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.name().to_owned();
        let zoned = node.label(ZONE).is_some();
        match self.by_name.get(&name).copied() {
            Some(at) => {
                let same = images(&self.nodes[at].node) == images(&node);
                self.zoned -= usize::from(self.nodes[at].label(ZONE).is_some());
                self.flagged.subtract(self.nodes[at].flags);
                if !same {
                    self.count_images(at, false);
                }
                self.nodes[at].set_node(node);
                if !same {
                    self.count_images(at, true);
                }
                self.flagged.add(self.nodes[at].flags);
                self.index.get_mut().unwrap_or_else(PoisonError::into_inner).set_node(&self.nodes, at);
                self.changed(at);
            }
            None => {
                let at = self.nodes.len();
                self.by_name.insert(name.clone(), at);
                self.nodes.push(NodeInfo::new(node));
                self.flagged.add(self.nodes[at].flags);
                self.count_images(at, true);
                let index = self.index.get_mut().unwrap_or_else(PoisonError::into_inner);
                index.set_node(&self.nodes, at);
                for pod in self.elsewhere.remove(&name).unwrap_or_default() {
                    index.moved(&self.nodes, &pod, at, 1);
                    self.nodes[at].add(pod);
                }
                self.with_affinity += self.nodes[at].with_affinity;
                self.changed(at);
            }
        }
        self.zoned += usize::from(zoned);
    }

    fn count_images(&mut self, at: usize, added: bool) {
        for image in self.nodes[at].images.keys() {
            match self.images.get_mut(image) {
                Some(number) if added => *number += 1,
                Some(number) => {
                    *number -= 1;
                    if *number == 0 {
                        self.images.remove(image);
                    }
                }
                None => drop(self.images.insert(image.clone(), 1)),
            }
        }
    }

    /// Removes a node. Its pods are kept until they are removed themselves.
    pub fn remove_node(&mut self, name: &str) {
        let Some(at) = self.by_name.remove(name) else { return };
        self.count_images(at, false);
        let index = self.index.get_mut().unwrap_or_else(PoisonError::into_inner);
        for pod in &self.nodes[at].pods {
            index.moved(&self.nodes, pod, at, -1);
        }
        index.swap_remove(at, self.nodes.len() - 1);
        let info = self.nodes.swap_remove(at);
        self.with_affinity -= info.with_affinity;
        self.zoned -= usize::from(info.label(ZONE).is_some());
        self.flagged.subtract(info.flags);
        self.columns.swap_remove(at);
        self.journal.note(at);
        if let Some(moved) = self.nodes.get(at) {
            self.by_name.insert(moved.name().to_owned(), at);
            self.changed(at);
        }
        if !info.pods.is_empty() {
            self.elsewhere.insert(name.to_owned(), info.pods);
        }
    }

    fn place(&mut self, pod: Arc<PodInfo>, node: &str, assumed: bool) {
        self.remove_pod(pod.uid());
        self.nominate(&pod, None);
        let placed = Placed { node: node.to_owned(), assumed, info: pod.clone() };
        self.pods.insert(pod.uid().to_owned(), placed);
        match self.slot(node) {
            Some(at) => {
                let index = self.index.get_mut().unwrap_or_else(PoisonError::into_inner);
                index.moved(&self.nodes, &pod, at, 1);
                let info = &mut self.nodes[at];
                let before = info.with_affinity;
                info.add(pod);
                self.with_affinity = self.with_affinity + info.with_affinity - before;
                self.changed(at);
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
        self.pods.get(uid).is_some_and(|p| p.assumed) && self.remove_pod(uid).is_some()
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

    /// Removes a pod that was deleted or has ended, and returns it.
    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let placed = self.pods.remove(uid)?;
        match self.slot(&placed.node) {
            Some(at) => {
                let index = self.index.get_mut().unwrap_or_else(PoisonError::into_inner);
                index.moved(&self.nodes, &placed.info, at, -1);
                let info = &mut self.nodes[at];
                let before = info.with_affinity;
                info.remove(uid);
                self.with_affinity = self.with_affinity + info.with_affinity - before;
                self.changed(at);
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
        Some(placed.info)
    }

    /// Sets the node that a pod without one waits for; its room there is kept from pods of lower priority.
    pub(crate) fn nominate(&mut self, pod: &Arc<PodInfo>, node: Option<&str>) {
        if !self.nominated.is_empty() {
            self.withdraw(pod.uid());
        }
        if let Some(node) = node.filter(|node| !node.is_empty()) {
            self.nominated.entry(node.to_owned()).or_default().push(pod.clone());
        }
    }

    /// Forgets the nomination of a pod, and returns its node.
    pub(crate) fn withdraw(&mut self, uid: &str) -> Option<String> {
        let mut found = None;
        self.nominated.retain(|node, pods| {
            let before = pods.len();
            pods.retain(|p| p.uid() != uid);
            if pods.len() != before {
                found = Some(node.clone());
            }
            !pods.is_empty()
        });
        found
    }

    /// Returns the pods that wait for room on a node.
    pub(crate) fn nominated_on(&self, node: &str) -> &[Arc<PodInfo>] {
        if self.nominated.is_empty() {
            return &[];
        }
        self.nominated.get(node).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns true if a pod waits for room on a node.
    pub(crate) fn has_nominated(&self) -> bool {
        !self.nominated.is_empty()
    }

    /// Returns the nodes on which pods wait for room, in no order.
    pub(crate) fn with_nominated(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nominated.keys().filter_map(|name| self.node(name))
    }

    /// Returns the sorted uids of all confirmed pods.
    pub(crate) fn confirmed(&self) -> Vec<String> {
        let placed = self.pods.iter().filter(|(_, p)| !p.assumed);
        let mut uids: Vec<String> = placed.map(|(uid, _)| uid.clone()).collect();
        uids.sort_unstable();
        uids
    }
}

fn images(node: &Node) -> Option<&Vec<k8s_core::api::api::core::v1::ContainerImage>> {
    node.status.as_ref()?.images.as_ref()
}
