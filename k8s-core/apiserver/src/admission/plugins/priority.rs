//! Priority: the priority that a pod's PriorityClass, or the default one, gives it.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_core::status::ApiStatus;
use k8s_store::{Store, Stored};
use serde_json::Value;

use super::pods::handles_pods;
use crate::{
    admission::{Admission, Admit, Operation},
    resources::Resource,
    value::{child, int_at, str_at},
};

pub(super) struct Priority {
    pub(super) store: Store,
}

#[async_trait]
impl Admit for Priority {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        operation == Operation::Create && handles_pods(operation, resource, part)
    }

    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        priority(&self.store, admission.object).map_err(|why| admission.forbidden(&why))
    }
}

/// # Errors
/// The name of the class that does not exist.
fn priority(store: &Store, pod: &mut Value) -> Result<(), String> {
    let class = str_at(pod, "/spec/priorityClassName").to_owned();
    let found = |name: &str| -> Option<Value> {
        let stored = store.get("priorityclasses.scheduling.k8s.io", name)?;
        serde_json::from_slice(&stored.json).ok()
    };
    let class = if class.is_empty() {
        let snapshot = store.snapshot("priorityclasses.scheduling.k8s.io");
        // Asked for every pod: the others are not decoded.
        let is_default = |s: &&Arc<Stored>| {
            k8s_core::json::find(&s.json, &["globalDefault"])
                .is_some_and(|place| s.json[place] == b"true"[..])
        };
        let defaults = snapshot.range("", "").filter(is_default);
        let defaults = defaults.filter_map(|s| serde_json::from_slice::<Value>(&s.json).ok());
        // Of several, the one with the lowest value.
        defaults.min_by_key(|class| int_at(class, "/value").unwrap_or(0))
    } else {
        let found = found(&class);
        if found.is_none() {
            return Err(format!("no PriorityClass with name {class} was found"));
        }
        found
    };
    let Some(spec) = child(pod, "spec") else { return Ok(()) };
    let (value, policy, name) = match &class {
        Some(class) => (
            class.get("value").cloned().unwrap_or(0.into()),
            str_at(class, "/preemptionPolicy").to_owned(),
            str_at(class, "/metadata/name").to_owned(),
        ),
        None => (0.into(), "PreemptLowerPriority".into(), String::new()),
    };
    let policy = if policy.is_empty() { "PreemptLowerPriority".to_owned() } else { policy };
    // A pod has what its class says, or the class limits nobody.
    let given = spec.get("priority").filter(|given| !given.is_null() && **given != value);
    if let Some(given) = given {
        return Err(format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        ));
    }
    let given = str_at(spec, "/preemptionPolicy");
    if !given.is_empty() && given != policy {
        return Err(format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        ));
    }
    spec["priority"] = value;
    spec["preemptionPolicy"] = policy.into();
    if !name.is_empty() {
        spec["priorityClassName"] = name.into();
    }
    Ok(())
}
