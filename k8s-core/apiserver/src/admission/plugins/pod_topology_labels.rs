//! PodTopologyLabels: a pod has the zone and region of its node as labels.

use async_trait::async_trait;
use k8s_core::status::ApiStatus;
use k8s_store::Store;
use serde_json::Value;

use crate::{
    admission::{Admission, Admit, Operation},
    resources::Resource,
    value::{child, object_at, str_at},
};

pub(super) struct PodTopologyLabels {
    pub(super) store: Store,
}

const LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

#[async_trait]
impl Admit for PodTopologyLabels {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        operation == Operation::Create
            && matches!(part, "" | "binding")
            && resource.storage.as_ref() == "pods"
    }

    /// A pod with a node gets the labels; of a Binding the pod takes them.
    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        let object = &*admission.object;
        let node = if admission.request.subresource.is_empty() {
            str_at(object, "/spec/nodeName")
        } else if matches!(str_at(object, "/target/kind"), "" | "Node") {
            str_at(object, "/target/name")
        } else {
            ""
        };
        if node.is_empty() {
            return Ok(());
        }
        let Some(stored) = self.store.get("nodes", node) else { return Ok(()) };
        let node: Value = serde_json::from_slice(&stored.json).map_err(ApiStatus::internal)?;
        let Some(of_node) = object_at(&node, "/metadata/labels") else { return Ok(()) };
        for label in LABELS {
            let Some(value) = of_node.get(label) else { continue };
            let labels = child(admission.object, "metadata").and_then(|metadata| child(metadata, "labels"));
            if let Some(labels) = labels {
                labels[label] = value.clone();
            }
        }
        Ok(())
    }
}
