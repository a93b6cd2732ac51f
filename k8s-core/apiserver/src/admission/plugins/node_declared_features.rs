//! NodeDeclaredFeatureValidator: a pod on a node changes only in ways that its node has declared to support.
//!
//! The features are those of upstream 1.36 that an update may need: resizes of init containers that are no
//! sidecars, and of the resources of the whole pod. A node declares them in `status.declaredFeatures`.

use async_trait::async_trait;
use k8s_core::status::ApiStatus;
use k8s_store::Store;
use serde_json::Value;

use crate::{
    admission::{Admission, Admit, Operation},
    resources::Resource,
    value::{array_at, same_spec, str_at},
};

pub(super) struct NodeDeclaredFeatureValidator {
    pub(super) store: Store,
}

#[async_trait]
impl Admit for NodeDeclaredFeatureValidator {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        operation == Operation::Update && &*resource.storage == "pods" && matches!(part, "" | "resize")
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        let (new, node) = (&*admission.object, str_at(admission.object, "/spec/nodeName"));
        let Some(old) = admission.old.filter(|old| !node.is_empty() && !same_spec(new, old)) else {
            return Ok(());
        };
        let needed = needed(new, old);
        if needed.is_empty() {
            return Ok(());
        }
        let stored = self.store.get("nodes", node);
        let live: Option<Value> = stored.and_then(|stored| serde_json::from_slice(&stored.json).ok());
        let Some(live) = live else {
            return Err(admission.forbidden(&format!("node {node:?} not found")));
        };
        let declared = array_at(&live, "/status/declaredFeatures");
        let missing: Vec<&str> =
            needed.into_iter().filter(|feature| !declared.iter().any(|d| d == feature)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let missing = missing.join(", ");
        Err(admission.forbidden(&format!(
            "pod update requires features {missing} which are not available on node {node:?}"
        )))
    }
}

/// Returns the features that a change of a pod needs, by name.
fn needed(new: &Value, old: &Value) -> Vec<&'static str> {
    let filled = |pod: &Value| pod.pointer("/spec/resources").filter(|r| !r.is_null()).cloned();
    let resources = |container: &Value| container.get("resources").cloned().unwrap_or_default();
    let after = array_at(new, "/spec/initContainers");
    let mut init = array_at(old, "/spec/initContainers").iter().zip(after);
    let resizes =
        init.any(|(old, new)| str_at(old, "/restartPolicy") != "Always" && resources(old) != resources(new));
    [
        (filled(new) != filled(old), "InPlacePodLevelResourcesVerticalScaling"),
        (resizes, "InPlacePodVerticalScalingInitContainers"),
    ]
    .into_iter()
    .filter_map(|(needs, feature)| needs.then_some(feature))
    .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    #[test]
    fn resizes_of_init_containers_and_whole_pods_need_features() {
        let pod = |cpu: &str, policy: &str, whole: Value| {
            let resources = json!({"requests": {"cpu": cpu}});
            let init = json!([{"name": "i", "restartPolicy": policy, "resources": resources}]);
            json!({"spec": {"initContainers": init, "resources": whole, "containers": [{"resources": resources}]}})
        };
        let whole = json!({"requests": {"cpu": "1"}});
        for (old, new, want) in [
            (pod("1", "", Value::Null), pod("1", "", Value::Null), &[][..]),
            (pod("1", "Always", Value::Null), pod("2", "Always", Value::Null), &[]),
            (
                pod("1", "", Value::Null),
                pod("2", "", Value::Null),
                &["InPlacePodVerticalScalingInitContainers"],
            ),
            (
                pod("1", "", Value::Null),
                pod("2", "", whole),
                &["InPlacePodLevelResourcesVerticalScaling", "InPlacePodVerticalScalingInitContainers"],
            ),
        ] {
            assert_eq!(needed(&new, &old), want, "{old} {new}");
        }
        let plugin: Arc<dyn Admit> = Arc::new(NodeDeclaredFeatureValidator { store: Store::memory() });
        let registry = crate::resources::Registry::new(&[]);
        let pods = registry.find("", "v1", "pods").unwrap();
        assert!(
            plugin.handles(Operation::Update, pods, "resize") && plugin.handles(Operation::Update, pods, "")
        );
        assert!(
            !plugin.handles(Operation::Update, pods, "status")
                && !plugin.handles(Operation::Create, pods, "")
        );
    }
}
