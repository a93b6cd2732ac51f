//! PodResizeValidator: a pod grows only on a Linux node that has room for it.

use async_trait::async_trait;
use k8s_core::{meta::Quantity, status::ApiStatus};
use k8s_store::Store;
use serde_json::Value;

use crate::{
    admission::{Admission, Admit, Operation},
    resources::Resource,
    value::{array_at, same_spec, str_at},
};

pub(super) struct PodResizeValidator {
    pub(super) store: Store,
}

#[async_trait]
impl Admit for PodResizeValidator {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        operation == Operation::Update && part == "resize" && resource.storage.as_ref() == "pods"
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        let pod = &*admission.object;
        let name = str_at(pod, "/spec/nodeName");
        if name.is_empty() || admission.old.is_some_and(|old| same_spec(pod, old)) {
            return Ok(());
        }
        let stored = self.store.get("nodes", name);
        let node: Option<Value> = stored.and_then(|stored| serde_json::from_slice(&stored.json).ok());
        let Some(node) = node else {
            return Err(admission.forbidden(&format!("node {name:?} not found")));
        };
        let os = str_at(&node, "/status/nodeInfo/operatingSystem");
        if !matches!(os, "" | "linux") {
            let why = format!("pod resize is only supported for linux nodes, node {name:?} runs {os}");
            return Err(admission.forbidden(&why));
        }
        for resource in ["cpu", "memory"] {
            let amount = |at: &str, of: &Value| str_at(of, at).parse::<Quantity>().ok();
            let Some(most) = amount(&format!("/status/allocatable/{resource}"), &node) else { continue };
            let requests = array_at(pod, "/spec/containers").iter();
            let requests = requests.filter_map(|c| amount(&format!("/resources/requests/{resource}"), c));
            let wanted =
                requests.fold(None, |sum: Option<Quantity>, one| Some(sum.map_or(one, |sum| sum + one)));
            if wanted.is_some_and(|wanted| wanted > most) {
                let why = format!("requests of {resource} are more than node {name:?} has allocatable");
                return Err(admission.forbidden(&why));
            }
        }
        Ok(())
    }
}
