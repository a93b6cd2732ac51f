//! Rules that plugins about pods share.

use serde_json::Value;

use crate::{
    admission::Operation,
    resources::Resource,
    value::{array_at, child, str_at},
};

/// Fields of a pod's spec that are lists of containers.
pub(super) const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Returns true for creates and updates of pods themselves.
pub(super) fn handles_pods(operation: Operation, resource: &Resource, part: &str) -> bool {
    matches!(operation, Operation::Create | Operation::Update)
        && part.is_empty()
        && resource.storage.as_ref() == "pods"
}

/// Returns true if the first toleration tolerates all that the second one does.
pub(super) fn includes(wide: &Value, narrow: &Value) -> bool {
    if wide == narrow {
        return true;
    }
    let text = |of: &Value, field: &str| str_at(of, &format!("/{field}")).to_owned();
    let (key, operator) = (text(wide, "key"), text(wide, "operator"));
    if text(narrow, "key") != key && (!key.is_empty() || operator != "Exists") {
        return false;
    }
    let effect = text(wide, "effect");
    if text(narrow, "effect") != effect && !effect.is_empty() {
        return false;
    }
    if effect == "NoExecute"
        && let Some(most) = wide.get("tolerationSeconds").and_then(Value::as_i64)
        && narrow.get("tolerationSeconds").and_then(Value::as_i64).is_none_or(|seconds| seconds > most)
    {
        return false;
    }
    match operator.as_str() {
        "" | "Equal" => {
            matches!(text(narrow, "operator").as_str(), "" | "Equal")
                && text(narrow, "value") == text(wide, "value")
        }
        "Exists" => true,
        _ => false,
    }
}

/// Adds tolerations to a pod's. Those that another one includes are left out.
pub(super) fn add_tolerations(pod: &mut Value, more: &[Value]) {
    if more.is_empty() {
        return;
    }
    let all: Vec<Value> = array_at(pod, "/spec/tolerations").iter().chain(more).cloned().collect();
    let mut merged: Vec<Value> = Vec::new();
    for (i, one) in all.iter().enumerate() {
        let known = merged.iter().any(|other| includes(other, one));
        let later = all.iter().skip(i + 1).any(|other| other != one && includes(other, one));
        if !known && !later {
            merged.push(one.clone());
        }
    }
    if let Some(spec) = child(pod, "spec") {
        spec["tolerations"] = merged.into();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tolerations_are_merged() {
        let all = json!({"operator": "Exists"});
        let one = json!({"key": "a", "operator": "Equal", "value": "1", "effect": "NoSchedule"});
        let brief = json!({"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5});
        let long = json!({"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9});
        assert!(includes(&all, &one) && !includes(&one, &all));
        assert!(includes(&long, &brief) && !includes(&brief, &long));
        let mut pod = json!({"spec": {"tolerations": [one, brief]}});
        add_tolerations(&mut pod, std::slice::from_ref(&long));
        assert_eq!(pod["spec"]["tolerations"], json!([one, long]));
        add_tolerations(&mut pod, std::slice::from_ref(&all));
        assert_eq!(pod["spec"]["tolerations"], json!([all]));
    }
}
