//! Default requests and limits of containers.

use serde_json::{Map, Value};

use crate::value::{child, object_at, str_at};

/// Annotation that lists the defaults that were set.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// Sets the requests and limits that a pod's containers lack, and annotates the pod with them.
pub(super) fn set(limits: &[Value], pod: &mut Value) {
    let of = |field: &str| -> Map<String, Value> {
        let items = limits.iter().filter(|limit| str_at(limit, "/type") == "Container");
        items
            .filter_map(|limit| object_at(limit, field))
            .flatten()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    };
    let (requests, most) = (of("/defaultRequest"), of("/default"));
    let mut notes = Vec::new();
    for (kind, noun) in [("containers", "container"), ("initContainers", "init container")] {
        let containers = pod.pointer_mut(&format!("/spec/{kind}")).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = str_at(container, "/name").to_owned();
            let mut note = |list: &str, what: &str, defaults: &Map<String, Value>| {
                let added = add(container, list, defaults);
                if !added.is_empty() {
                    notes.push(format!("{} {what} for {noun} {name}", added.join(", ")));
                }
            };
            note("requests", "request", &requests);
            note("limits", "limit", &most);
        }
    }
    if !notes.is_empty() {
        let text = format!("LimitRanger plugin set: {}", notes.join("; "));
        if let Some(annotations) = child(pod, "metadata").and_then(|metadata| child(metadata, "annotations"))
        {
            annotations[ANNOTATION] = text.into();
        }
    }
}

/// Adds defaults to a list of a container's resources. Returns the names that were added, in order.
fn add(container: &mut Value, list: &str, defaults: &Map<String, Value>) -> Vec<String> {
    let pointer = format!("/resources/{list}");
    let have = object_at(container, &pointer).cloned().unwrap_or_default();
    let mut added: Vec<String> = defaults.keys().filter(|name| !have.contains_key(*name)).cloned().collect();
    added.sort();
    if !added.is_empty() {
        let mut all = have;
        all.extend(added.iter().filter_map(|name| Some((name.clone(), defaults.get(name)?.clone()))));
        crate::value::set(container, &pointer, all.into());
    }
    added
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn missing_amounts_are_set_and_noted() {
        let limits = [
            json!({"type": "Pod", "max": {"cpu": "9"}}),
            json!({"type": "Container", "default": {"memory": "1Gi", "cpu": "1"}, "defaultRequest": {"cpu": "100m"}}),
        ];
        let mut pod = json!({"metadata": {}, "spec": {
            "containers": [{"name": "a", "resources": {"limits": {"cpu": "2"}, "requests": {"cpu": "1"}}}, {"name": "b"}],
            "initContainers": [{"name": "i"}]}});
        set(&limits, &mut pod);
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: memory limit for container a; cpu request for container b; cpu, memory limit for container b; cpu request for init container i; cpu, memory limit for init container i"
        );
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1"}})
        );
        assert_eq!(
            pod["spec"]["initContainers"][0]["resources"],
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}})
        );
        let whole = pod.clone();
        set(&limits, &mut pod);
        assert_eq!(pod, whole, "nothing is missing any more");
    }
}
