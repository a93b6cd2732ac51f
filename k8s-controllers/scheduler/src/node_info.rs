//! A node and the pods on it.

use std::{collections::HashMap, sync::Arc};

use k8s_core::{
    api::api::core::v1::{ContainerImage, Node, Taint},
    meta::{ObjectExt, Quantity},
};

use crate::{PodInfo, Resources, pod_info::HostPort};

/// A node with its confirmed and assumed pods. Updated incrementally.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    /// The Node object.
    pub node: Arc<Node>,
    /// Allocatable resources.
    pub allocatable: Resources,
    /// Maximum number of pods.
    pub max_pods: i64,
    /// Sum of the pods' requests.
    pub requested: Resources,
    /// CPU (milli) and memory (bytes) as scores count them: with defaults for pods without requests.
    pub(crate) counted: (i64, i64),
    /// Confirmed and assumed pods.
    pub pods: Vec<Arc<PodInfo>>,
    host_ports: Vec<HostPort>,
    /// Facts about the Node object that every decision asks for.
    pub(crate) flags: Flags,
    /// Sizes of the node's images in bytes, by normalized name.
    pub(crate) images: Arc<HashMap<String, i64>>,
    /// Number of pods with affinity or anti-affinity terms.
    pub(crate) with_affinity: usize,
    /// The lowest priority of a pod; `i32::MAX` without pods.
    pub(crate) lowest: i32,
    /// Index in the cluster, also of a copy with other pods; [`NOWHERE`] if it is in none.
    pub(crate) slot: usize,
    /// Number of the cluster's changes until the last one of this node.
    pub(crate) version: u64,
}

/// The index of a node that is in no cluster.
pub(crate) const NOWHERE: usize = usize::MAX;

/// Facts about a Node object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    /// `spec.unschedulable`.
    pub(crate) cordoned: bool,
    /// There are taints with the effect `NoSchedule` or `NoExecute`.
    pub(crate) hard_taints: bool,
    /// There are taints with the effect `PreferNoSchedule`.
    pub(crate) soft_taints: bool,
}

impl Flags {
    fn of(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        let taints = spec.and_then(|s| s.taints.as_deref()).unwrap_or_default();
        Flags {
            cordoned: spec.and_then(|s| s.unschedulable) == Some(true),
            hard_taints: taints.iter().any(|t| t.effect != "PreferNoSchedule"),
            soft_taints: taints.iter().any(|t| t.effect == "PreferNoSchedule"),
        }
    }
}

impl NodeInfo {
    /// Creates an entry for a node without pods.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Self {
        let mut info = NodeInfo {
            node: node.clone(),
            allocatable: Resources::default(),
            max_pods: 0,
            requested: Resources::default(),
            counted: (0, 0),
            pods: Vec::new(),
            host_ports: Vec::new(),
            flags: Flags::default(),
            images: Arc::default(),
            with_affinity: 0,
            lowest: i32::MAX,
            slot: NOWHERE,
            version: 0,
        };
        info.read(&node);
        info.read_images(&node);
        info
    }

    /// Updates the Node object; the pods stay.
    pub fn set_node(&mut self, node: Arc<Node>) {
        fn images(node: &Node) -> Option<&Vec<ContainerImage>> {
            node.status.as_ref()?.images.as_ref()
        }
        if images(&self.node) != images(&node) {
            self.read_images(&node);
        }
        self.read(&node);
        self.node = node;
        // A copy with other labels is another node.
        self.slot = NOWHERE;
    }

    fn read_images(&mut self, node: &Node) {
        let mut images = HashMap::new();
        for image in node.status.iter().flat_map(|s| s.images.iter().flatten()) {
            for name in image.names.iter().flatten() {
                images.insert(normalized(name), image.size_bytes.unwrap_or(0));
            }
        }
        self.images = Arc::new(images);
    }

    fn read(&mut self, node: &Node) {
        self.flags = Flags::of(node);
        let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
        self.allocatable = Resources::from_api(allocatable);
        let pods = allocatable.and_then(|a| a.get("pods")).and_then(|q| Quantity::try_from(q).ok());
        self.max_pods = pods.map_or(0, |q| q.units());
    }

    /// Returns the node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.node.name()
    }

    /// Returns the value of a label.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.node.label(key)
    }

    /// Returns the node's taints.
    #[must_use]
    pub fn taints(&self) -> &[Taint] {
        self.node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default()
    }

    /// Returns true if the host port is in use. `0.0.0.0` conflicts with every address.
    pub(crate) fn has_port(&self, (address, protocol, number): &HostPort) -> bool {
        let any = "0.0.0.0";
        self.host_ports
            .iter()
            .any(|(a, p, n)| n == number && p == protocol && (a == address || a == any || address == any))
    }

    /// Adds a pod.
    pub fn add(&mut self, pod: Arc<PodInfo>) {
        self.count(&pod);
        self.host_ports.extend(pod.host_ports.iter().cloned());
        self.with_affinity += usize::from(pod.has_terms());
        self.lowest = self.lowest.min(pod.priority);
        self.pods.push(pod);
    }

    fn count(&mut self, pod: &PodInfo) {
        self.requested.add(&pod.requests);
        self.counted.0 = self.counted.0.saturating_add(pod.counted.0);
        self.counted.1 = self.counted.1.saturating_add(pod.counted.1);
    }

    /// Takes a pod that is no longer in the list out of the sums.
    fn discount(&mut self, pod: &PodInfo) {
        let at_limit = |amount: i64| amount == i64::MAX || amount == i64::MIN;
        if self.requested.names().any(|(_, amount)| at_limit(amount))
            || at_limit(self.counted.0)
            || at_limit(self.counted.1)
        {
            // A sum at a limit is not exact: the sums are made anew.
            self.requested = Resources::default();
            self.counted = (0, 0);
            let pods = std::mem::take(&mut self.pods);
            pods.iter().for_each(|pod| self.count(pod));
            self.pods = pods;
            return;
        }
        self.requested.subtract(&pod.requests);
        self.counted.0 = self.counted.0.saturating_sub(pod.counted.0);
        self.counted.1 = self.counted.1.saturating_sub(pod.counted.1);
    }

    /// Removes a pod; returns true if it was on the node.
    pub fn remove(&mut self, uid: &str) -> bool {
        let Some(at) = self.pods.iter().position(|p| p.uid() == uid) else { return false };
        let pod = self.pods.swap_remove(at);
        self.discount(&pod);
        for port in &pod.host_ports {
            if let Some(at) = self.host_ports.iter().position(|p| p == port) {
                self.host_ports.swap_remove(at);
            }
        }
        self.with_affinity -= usize::from(pod.has_terms());
        if pod.priority == self.lowest {
            self.lowest = self.pods.iter().map(|p| p.priority).min().unwrap_or(i32::MAX);
        }
        true
    }
}

/// Returns an image's name with the tag `latest` if it has neither tag nor digest.
pub(crate) fn normalized(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || last.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::columns::Columns;

    fn pod(name: &str, requests: Value) -> Arc<PodInfo> {
        let pod = json!({
            "metadata": {"name": name, "namespace": "default", "uid": name},
            "spec": {"containers": [{"name": "c", "resources": {"requests": requests}}]},
        });
        Arc::new(PodInfo::new(Arc::new(serde_json::from_value(pod).expect("pod"))))
    }

    #[test]
    fn a_huge_pod_leaves_no_trace_in_the_sums() {
        let node = json!({"metadata": {"name": "n"},
            "status": {"allocatable": {"cpu": "8", "memory": "16Gi", "pods": "110"}}});
        let mut info = NodeInfo::new(Arc::new(serde_json::from_value(node).expect("node")));
        info.add(pod("a", json!({"cpu": "2", "memory": "10Gi", "e.com/x": "3"})));
        info.add(pod("b", json!({"cpu": "1", "memory": "1Gi"})));
        let mut columns = Columns::default();
        let mut sums = |info: &NodeInfo| {
            let r = &info.requested;
            columns.set(0, info);
            let column = [columns.requested[0][0], columns.requested[1][0]];
            assert_eq!(column, [r.milli_cpu, r.memory]);
            (r.milli_cpu, r.memory, r.other("e.com/x"), info.counted)
        };
        let before = sums(&info);
        assert_eq!(before, (3000, 11 << 30, 3, (3000, 11 << 30)));
        let most = i64::MAX.to_string();
        let huge = json!({"cpu": most, "memory": most, "e.com/x": most});
        info.add(pod("huge", huge.clone()));
        assert_eq!(sums(&info), (i64::MAX, i64::MAX, i64::MAX, (i64::MAX, i64::MAX)));
        // Another pod goes while the huge one is there: the node stays full.
        assert!(info.remove("b"));
        assert_eq!(sums(&info), (i64::MAX, i64::MAX, i64::MAX, (i64::MAX, i64::MAX)));
        // Two of them, of which one goes.
        info.add(pod("huge-2", huge));
        assert!(info.remove("huge"));
        assert_eq!(sums(&info).0, i64::MAX);
        assert!(info.remove("huge-2"));
        info.add(pod("b", json!({"cpu": "1", "memory": "1Gi"})));
        assert_eq!(sums(&info), before);
        assert!(info.remove("a") && info.remove("b"));
        assert_eq!(sums(&info), (0, 0, 0, (0, 0)));
    }
}
