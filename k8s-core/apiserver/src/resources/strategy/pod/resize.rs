//! The subresource `resize`: CPU and memory of a pod change in place, and nothing else.
//!
//! Rules and messages are upstream's (`pkg/registry/core/pod/strategy.go`, `podResizeStrategy`, and
//! `pkg/apis/core/validation`, `ValidatePodResize`).

use k8s_core::meta::Quantity;
use serde_json::{Map, Value};

use super::qos_class;
use crate::{
    invalid::FieldErrors,
    value::{array_at, child, object_at, set, str_at, take},
};

const LISTS: [&str; 2] = ["requests", "limits"];
const CONTAINERS: [&str; 2] = ["containers", "initContainers"];

/// Reverts all changes but those of resources and resize policies. A write that adds, removes or renames
/// containers stays as it is, and is refused by [`check`].
pub(super) fn keep_all_but_resources(new: &mut Value, old: &Value) {
    if CONTAINERS.iter().any(|list| names(new, list) != names(old, list)) {
        return;
    }
    let mut kept = old.clone();
    for list in CONTAINERS {
        let at = format!("/spec/{list}");
        let Some(targets) = kept.pointer_mut(&at).and_then(Value::as_array_mut) else { continue };
        for (target, container) in targets.iter_mut().zip(array_at(new, &at)) {
            for field in ["resources", "resizePolicy"] {
                copy(container, target, field);
            }
        }
    }
    if let (Some(from), Some(to)) = (new.get("spec"), child(&mut kept, "spec")) {
        copy(from, to, "resources");
    }
    match new.pointer_mut("/metadata/managedFields").map(Value::take) {
        Some(fields) => set(&mut kept, "/metadata/managedFields", fields),
        None => drop(take(&mut kept, "/metadata", "managedFields")),
    }
    *new = kept;
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    let all = array_at(pod, &format!("/spec/{list}")).iter();
    all.map(|container| str_at(container, "/name").to_owned()).collect()
}

fn copy(from: &Value, to: &mut Value, field: &str) {
    let Some(to) = to.as_object_mut() else { return };
    match from.get(field) {
        Some(value) => drop(to.insert(field.to_owned(), value.clone())),
        None => drop(to.remove(field)),
    }
}

/// Checks a resize. Both pods have their defaults.
pub(super) fn check(new: &Value, old: &Value, errors: &mut FieldErrors) {
    if object_at(old, "/metadata/annotations").is_some_and(|a| a.contains_key("kubernetes.io/config.mirror"))
    {
        return errors.forbidden("", "static pods cannot be resized");
    }
    if str_at(old, "/spec/os/name") == "windows" {
        return errors.forbidden("", "windows pods cannot be resized");
    }
    let spec = |pod: &Value| pod.get("spec").cloned().unwrap_or_default();
    let class = match str_at(old, "/status/qosClass") {
        "" => qos_class(&spec(old)).to_owned(),
        known => known.to_owned(),
    };
    if qos_class(&spec(new)) != class {
        let shown = str_at(new, "/status/qosClass");
        errors.invalid("spec", shown, "Pod QOS Class may not change as a result of resizing");
    }
    if !node_resizes(old) {
        errors.forbidden("spec", "Pod running on node without support for resize");
    }
    check_pod_level(new, old, errors);
    if !array_at(old, "/status/nodeAllocatableResourceClaimStatuses").is_empty() {
        errors.forbidden("spec", "pods with node allocatable resource claims cannot be resized");
    }
    if !check_order(new, old, errors) {
        return;
    }
    for list in ["initContainers", "containers"] {
        for (i, (new, old)) in pairs(new, old, list).enumerate() {
            check_removed(new, old, &format!("spec.{list}[{i}].resources"), errors);
        }
    }
    for (new, old) in pairs(new, old, "containers") {
        if !differs_by_amounts(new, old) {
            errors.forbidden("spec", "only cpu and memory resources are mutable");
        }
    }
    for (i, (new, old)) in pairs(new, old, "initContainers").enumerate() {
        let at = format!("spec.initContainers[{i}]");
        if !differs_by_amounts(new, old) {
            let detail = "only cpu and memory resources for init or sidecar containers are mutable";
            errors.forbidden(&at, detail);
        }
        let restarts = array_at(new, "/resizePolicy").iter();
        let restarts = restarts.filter(|p| str_at(p, "/restartPolicy") == "RestartContainer");
        if str_at(new, "/restartPolicy") != "Always" && !same_resources(new, old) {
            for _ in restarts {
                let detail =
                    "non-sidecar init containers with a resize policy of RestartContainer cannot be resized";
                errors.forbidden(&at, detail);
            }
        }
    }
}

fn pairs<'a>(
    new: &'a Value,
    old: &'a Value,
    list: &str,
) -> impl Iterator<Item = (&'a Value, &'a Value)> + use<'a> {
    let at = format!("/spec/{list}");
    array_at(new, &at).iter().zip(array_at(old, &at))
}

/// Returns `false` if a running container shows that its node reports no resources, and so resizes none.
fn node_resizes(pod: &Value) -> bool {
    let mut running = array_at(pod, "/status/containerStatuses").iter();
    running.find(|s| s.pointer("/state/running").is_some()).is_none_or(|s| s.get("resources").is_some())
}

/// Checks the resources of the whole pod.
fn check_pod_level(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let filled = |pod: &Value| {
        LISTS.iter().any(|list| !amounts(pod.get("spec").unwrap_or(&Value::Null), list).is_empty())
    };
    if !filled(new) && !filled(old) {
        return;
    }
    let resources = |pod: &Value| pod.pointer("/spec/resources").filter(|r| !r.is_null()).is_some();
    if resources(old) && !resources(new) {
        return errors.forbidden("spec.resources", "pod-level resources cannot be removed");
    }
    let empty = Value::Null;
    let (new, old) = (new.get("spec").unwrap_or(&empty), old.get("spec").unwrap_or(&empty));
    for list in LISTS {
        if is_removed(&amounts(new, list), &amounts(old, list)) {
            let detail = format!("pod-level resource {list} cannot be removed");
            errors.forbidden(format!("spec.resources.{list}"), &detail);
        }
    }
    if !same_but_amounts(new, old) {
        errors.forbidden("spec", "only cpu and memory resources are mutable at pod-level");
    }
}

/// Checks that containers are neither added, removed, renamed nor moved. Returns `true` if they are not.
fn check_order(new: &Value, old: &Value, errors: &mut FieldErrors) -> bool {
    let before = errors.len();
    for list in CONTAINERS {
        let (now, then) = (names(new, list), names(old, list));
        if now.len() != then.len() {
            let detail = format!("{list} may not be added or removed on resize");
            errors.forbidden(format!("spec.{list}"), &detail);
            continue;
        }
        for (i, _) in now.iter().zip(&then).enumerate().filter(|(_, (now, then))| now != then) {
            let detail = format!("{list} may not be renamed or reordered on resize");
            errors.forbidden(format!("spec.{list}[{i}].name"), &detail);
        }
    }
    errors.len() == before
}

fn check_removed(new: &Value, old: &Value, at: &str, errors: &mut FieldErrors) {
    for (list, what) in LISTS.into_iter().zip(["resource requests", "resource limits"]) {
        if is_removed(&amounts(new, list), &amounts(old, list)) {
            errors.forbidden(format!("{at}.{list}"), &format!("{what} cannot be removed"));
        }
    }
}

/// Returns `true` if a resource of `old` is not in `new`.
fn is_removed(new: &Map<String, Value>, old: &Map<String, Value>) -> bool {
    old.keys().any(|name| !new.contains_key(name))
}

/// Returns a list of a container's or a spec's resources.
fn amounts(of: &Value, list: &str) -> Map<String, Value> {
    object_at(of, &format!("/resources/{list}")).cloned().unwrap_or_default()
}

/// Returns `true` if two containers differ in nothing but their amounts of CPU and memory.
fn differs_by_amounts(new: &Value, old: &Value) -> bool {
    let rest = |container: &Value| {
        let mut rest = container.clone();
        if let Some(map) = rest.as_object_mut() {
            map.remove("resources");
            // An empty list is the same as none.
            if map.get("resizePolicy").is_some_and(|p| p.as_array().is_some_and(Vec::is_empty)) {
                map.remove("resizePolicy");
            }
        }
        rest
    };
    rest(new) == rest(old) && same_but_amounts(new, old)
}

/// Returns `true` if resources differ in nothing but CPU and memory.
fn same_but_amounts(new: &Value, old: &Value) -> bool {
    let others = |of: &Value, list: &str| {
        let mut all = amounts(of, list);
        all.retain(|name, _| !matches!(name.as_str(), "cpu" | "memory"));
        all
    };
    let claims = |of: &Value| array_at(of, "/resources/claims").to_vec();
    claims(new) == claims(old)
        && LISTS.iter().all(|list| equal_amounts(&others(new, list), &others(old, list)))
}

fn same_resources(new: &Value, old: &Value) -> bool {
    LISTS.iter().all(|list| equal_amounts(&amounts(new, list), &amounts(old, list)))
}

/// Compares amounts by their value: `1` equals `1000m`.
fn equal_amounts(a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    let quantity = |value: &Value| value.as_str().and_then(|q| q.parse::<Quantity>().ok());
    a.len() == b.len()
        && a.iter().all(|(name, value)| {
            b.get(name).is_some_and(|other| value == other || quantity(value) == quantity(other))
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn amounts_of(cpu: &str, memory: &str) -> Value {
        let mut list = json!({});
        for (name, amount) in [("cpu", cpu), ("memory", memory)] {
            if !amount.is_empty() {
                list[name] = amount.into();
            }
        }
        list
    }

    /// A container `c1`: requests and limits of CPU and memory.
    fn container(requests: (&str, &str), limits: (&str, &str)) -> Value {
        let mut resources = json!({});
        for (list, (cpu, memory)) in [("requests", requests), ("limits", limits)] {
            if !(cpu.is_empty() && memory.is_empty()) {
                resources[list] = amounts_of(cpu, memory);
            }
        }
        json!({"name": "c1", "image": "i", "resources": resources})
    }

    fn pod(spec: Value) -> Value {
        let class = qos_class(&spec);
        json!({"metadata": {"name": "p"}, "spec": spec, "status": {"qosClass": class}})
    }

    fn lines(new: &Value, old: &Value) -> Vec<String> {
        let mut errors = FieldErrors::default();
        let mut new = new.clone();
        keep_all_but_resources(&mut new, old);
        check(&new, old, &mut errors);
        errors.lines()
    }

    #[test]
    fn containers_of_one_pod() {
        let limits = "spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed";
        let requests =
            "spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed";
        let class = |of: &str| {
            format!("spec: Invalid value: \"{of}\": Pod QOS Class may not change as a result of resizing")
        };
        let none = ("", "");
        for (old, new, want) in [
            ((("1", "1Gi"), ("1", "1Gi")), (("2", "2Gi"), ("2", "2Gi")), vec![]),
            ((("1", "1Gi"), none), (("1000m", "1024Mi"), none), vec![]),
            ((("1", "1Gi"), none), (("1", "1Gi"), ("2", "2Gi")), vec![]),
            ((none, none), (("1", ""), none), vec![class("BestEffort")]),
            ((("1", "1Gi"), ("2", "2Gi")), (("2", "2Gi"), ("2", "2Gi")), vec![class("Burstable")]),
            (
                (("1", "1Gi"), ("1", "1Gi")),
                (("1", "1Gi"), none),
                vec![class("Guaranteed"), limits.to_owned()],
            ),
            ((("1", "1Gi"), none), (("1", ""), none), vec![requests.to_owned()]),
            ((("1", "1Gi"), ("2", "2Gi")), (("1", "1Gi"), ("2", "")), vec![limits.to_owned()]),
        ] {
            let spec = |(requests, limits)| pod(json!({"containers": [container(requests, limits)]}));
            assert_eq!(lines(&spec(new), &spec(old)), want, "{old:?} {new:?}");
        }
    }

    #[test]
    fn everything_else_stays() {
        let old = pod(json!({"nodeName": "n", "containers": [container(("1", ""), ("", ""))]}));
        let mut new = old.clone();
        new["metadata"]["labels"] = json!({"a": "b"});
        new["spec"]["nodeName"] = "m".into();
        new["spec"]["containers"][0]["image"] = "other".into();
        new["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "2".into();
        new["status"]["phase"] = "Failed".into();
        keep_all_but_resources(&mut new, &old);
        let mut want = old.clone();
        want["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "2".into();
        assert_eq!(new, want);
    }

    #[test]
    fn other_resources_policies_and_names_are_fixed() {
        let two = |a: &str, b: &str| {
            let mut list = [container(("1", ""), ("", "")), container(("1", ""), ("", ""))];
            (list[0]["name"], list[1]["name"]) = (a.into(), b.into());
            pod(json!({"containers": list}))
        };
        let renamed = |i: usize| {
            format!(
                "spec.containers[{i}].name: Forbidden: containers may not be renamed or reordered on resize"
            )
        };
        assert_eq!(lines(&two("b", "a"), &two("a", "b")), [renamed(0), renamed(1)]);
        let one = pod(json!({"containers": [container(("1", ""), ("", ""))]}));
        let added = "spec.containers: Forbidden: containers may not be added or removed on resize";
        assert_eq!(lines(&two("c1", "d"), &one), [added]);
        let fixed = "spec: Forbidden: only cpu and memory resources are mutable";
        let mut disk = one.clone();
        disk["spec"]["containers"][0]["resources"]["requests"]["ephemeral-storage"] = "1".into();
        let mut more = disk.clone();
        more["spec"]["containers"][0]["resources"]["requests"]["ephemeral-storage"] = "3".into();
        assert_eq!(lines(&more, &disk), [fixed]);
        let mut policy = one.clone();
        policy["spec"]["containers"][0]["resizePolicy"] =
            json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]);
        assert_eq!(lines(&policy, &one), [fixed]);
    }

    #[test]
    fn init_containers_resize_in_place_only() {
        let spec = |cpu: &str, policy: &str| {
            let mut init = container((cpu, ""), ("", ""));
            init["name"] = "init".into();
            init["resizePolicy"] = json!([{"resourceName": "cpu", "restartPolicy": policy}]);
            pod(json!({"initContainers": [init], "containers": [container(("1", ""), ("", ""))]}))
        };
        assert_eq!(lines(&spec("2", "NotRequired"), &spec("1", "NotRequired")), [""; 0]);
        let want = "spec.initContainers[0]: Forbidden: non-sidecar init containers with a resize policy of RestartContainer cannot be resized";
        assert_eq!(lines(&spec("2", "RestartContainer"), &spec("1", "RestartContainer")), [want]);
    }

    #[test]
    fn resources_of_the_whole_pod_grow_and_are_not_removed() {
        let spec = |resources: Value| {
            let mut spec = json!({"containers": [container(("1", ""), ("", ""))]});
            if !resources.is_null() {
                spec["resources"] = resources;
            }
            pod(spec)
        };
        let old = spec(json!({"requests": {"cpu": "2"}, "limits": {"cpu": "3"}}));
        assert_eq!(lines(&spec(json!({"requests": {"cpu": "3"}, "limits": {"cpu": "3"}})), &old), [""; 0]);
        let gone = "spec.resources: Forbidden: pod-level resources cannot be removed";
        assert_eq!(lines(&spec(Value::Null), &old), [gone]);
        let limits = "spec.resources.limits: Forbidden: pod-level resource limits cannot be removed";
        assert_eq!(lines(&spec(json!({"requests": {"cpu": "2"}})), &old), [limits]);
    }

    #[test]
    fn some_pods_are_not_resized() {
        let base = pod(json!({"containers": [container(("1", ""), ("", ""))]}));
        let with = |at: &str, value: Value| {
            let mut pod = base.clone();
            set(&mut pod, at, value);
            lines(&pod, &pod)
        };
        assert_eq!(
            with("/metadata/annotations", json!({"kubernetes.io/config.mirror": "x"})),
            [": Forbidden: static pods cannot be resized"]
        );
        assert_eq!(
            with("/spec/os", json!({"name": "windows"})),
            [": Forbidden: windows pods cannot be resized"]
        );
        assert_eq!(
            with("/status/containerStatuses", json!([{"name": "c1", "state": {"running": {}}}])),
            ["spec: Forbidden: Pod running on node without support for resize"]
        );
    }
}
