//! RuntimeClass: a pod's class must exist; its overhead and scheduling become the pod's.

use async_trait::async_trait;
use k8s_core::{meta::Quantity, status::ApiStatus};
use k8s_store::Store;
use serde_json::{Map, Value};

use super::pods::{add_tolerations, handles_pods};
use crate::{
    admission::{Admission, Admit, Operation},
    resources::Resource,
    value::{array_at, child, object_at, str_at},
};

pub(super) struct RuntimeClass {
    pub(super) store: Store,
}

const MISMATCH: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

impl RuntimeClass {
    /// Returns the class that a pod names, if it names one.
    fn class(&self, admission: &Admission<'_>) -> Result<Option<Value>, ApiStatus> {
        let name = str_at(admission.object, "/spec/runtimeClassName");
        if name.is_empty() {
            return Ok(None);
        }
        let stored = self.store.get("runtimeclasses.node.k8s.io", name);
        let class = stored.and_then(|stored| serde_json::from_slice(&stored.json).ok());
        match class {
            Some(class) => Ok(Some(class)),
            None => Err(admission.forbidden(&format!("pod rejected: RuntimeClass {name:?} not found"))),
        }
    }
}

/// Returns true if two lists of resources have equal amounts.
fn same(a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    let amount = |value: &Value| value.as_str().and_then(|text| text.parse::<Quantity>().ok());
    a.len() == b.len()
        && a.iter().all(|(name, value)| b.get(name).is_some_and(|o| amount(o) == amount(value)))
}

#[async_trait]
impl Admit for RuntimeClass {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        operation == Operation::Create && handles_pods(operation, resource, part)
    }

    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        let Some(class) = self.class(admission)? else { return Ok(()) };
        if let Some(overhead) = object_at(&class, "/overhead/podFixed") {
            let own = object_at(admission.object, "/spec/overhead").filter(|own| !own.is_empty());
            if own.is_some_and(|own| !same(own, overhead)) {
                return Err(admission.forbidden(MISMATCH));
            }
            if let Some(spec) = child(admission.object, "spec") {
                spec["overhead"] = Value::Object(overhead.clone());
            }
        }
        let selector = object_at(&class, "/scheduling/nodeSelector").cloned().unwrap_or_default();
        for (key, value) in &selector {
            let own = object_at(admission.object, "/spec/nodeSelector").and_then(|all| all.get(key));
            if let Some(own) = own.filter(|own| *own != value) {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                return Err(admission.forbidden(&format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                    text(value),
                    text(own)
                )));
            }
        }
        if !selector.is_empty()
            && let Some(own) = child(admission.object, "spec").and_then(|spec| child(spec, "nodeSelector"))
            && let Some(own) = own.as_object_mut()
        {
            own.extend(selector);
        }
        add_tolerations(admission.object, array_at(&class, "/scheduling/tolerations"));
        Ok(())
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        let class = self.class(admission)?;
        let wanted = class.as_ref().and_then(|class| object_at(class, "/overhead/podFixed"));
        match (wanted, object_at(admission.object, "/spec/overhead")) {
            (Some(wanted), own) if !own.is_some_and(|own| same(own, wanted)) => {
                Err(admission.forbidden(MISMATCH))
            }
            (None, Some(_)) => Err(admission.forbidden(
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
            )),
            _ => Ok(()),
        }
    }
}
