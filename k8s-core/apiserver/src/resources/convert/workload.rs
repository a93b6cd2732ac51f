//! Workloads before apps/v1.

use serde_json::{Map, Value, json};

use super::Conversion;
use crate::value::text;

/// Conversion of workloads before apps/v1: the selector defaults to the template's labels.
pub(in crate::resources) static OLD_WORKLOAD: Conversion =
    Conversion { to_storage: old_workload, from_storage: |_| {}, generate: None };

fn old_workload(object: &mut Value) {
    let labels = object.pointer("/spec/template/metadata/labels").cloned();
    let kind = text(object, "/kind").to_owned();
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let absent = spec.get("selector").is_none_or(|s| s.as_object().is_none_or(Map::is_empty));
    if let (true, Some(labels)) = (absent, labels) {
        spec.insert("selector".into(), json!({"matchLabels": labels}));
    }
    if kind == "Deployment" {
        // The default before apps/v1beta2.
        spec.remove("rollbackTo");
        spec.entry("revisionHistoryLimit").or_insert(json!(2));
        let strategy = spec.entry("strategy").or_insert_with(|| json!({}));
        if strategy.get("type").is_none_or(|t| t == "RollingUpdate")
            && let Some(strategy) = strategy.as_object_mut()
        {
            let rolling = strategy.entry("rollingUpdate").or_insert_with(|| json!({}));
            if let Some(rolling) = rolling.as_object_mut() {
                rolling.entry("maxSurge").or_insert(json!(1));
                rolling.entry("maxUnavailable").or_insert(json!(1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_deployments_select_by_their_template() {
        let mut object =
            json!({"kind": "Deployment", "spec": {"template": {"metadata": {"labels": {"a": "b"}}}}});
        (OLD_WORKLOAD.to_storage)(&mut object);
        assert_eq!(object["spec"]["selector"], json!({"matchLabels": {"a": "b"}}));
    }
}
