//! Pods: requests and limits, their usage, and the amounts that a quota requires them to name.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_quantity::Quantity;
use serde_json::Value;

use crate::Amounts;

/// Amounts that each container must name if a quota limits them.
const REQUIRED: [&str; 6] =
    ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

/// Prefix of device classes that are requested as extended resources.
pub(crate) const DEVICE_CLASS: &str = "deviceclass.resource.kubernetes.io/";

fn list<'a>(of: &'a Value, name: &str) -> &'a [Value] {
    of.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Returns the `requests` or `limits` of a container.
#[must_use]
pub fn of_container(container: &Value, list: &str) -> Amounts {
    Amounts::of(container.get("resources").and_then(|resources| resources.get(list)))
}

/// Returns the `requests` or `limits` of a pod's containers: the maximum of their sum and of each init
/// container, both with the sidecars that run beside it.
#[must_use]
pub fn of_containers(spec: &Value, kind: &str) -> Amounts {
    let mut total = Amounts::default();
    list(spec, "containers").iter().for_each(|container| total.add(&of_container(container, kind)));
    let (mut sidecars, mut initial) = (Amounts::default(), Amounts::default());
    for container in list(spec, "initContainers") {
        let own = of_container(container, kind);
        if container.get("restartPolicy").is_some_and(|policy| policy == "Always") {
            total.add(&own);
            sidecars.add(&own);
            initial.raise_to(&sidecars);
        } else {
            let mut together = own;
            together.add(&sidecars);
            initial.raise_to(&together);
        }
    }
    total.raise_to(&initial);
    total
}

/// Returns the amounts of a pod: those of its containers, replaced by those of the pod itself for resources
/// that `may` be given for a pod.
#[must_use]
pub fn of_pod(spec: &Value, kind: &str, may: impl Fn(&str) -> bool) -> Amounts {
    let mut total = of_containers(spec, kind);
    for (name, amount) in of_container(spec, kind).iter().filter(|(name, _)| may(name)) {
        total.set(name, amount);
    }
    total
}

/// Returns true for resources that can be given for a pod.
fn of_whole_pod(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// Returns true if the pod's own resources are set.
fn has_whole(spec: &Value) -> bool {
    ["requests", "limits"].iter().any(|kind| of_container(spec, kind).names().any(of_whole_pod))
}

/// Returns true for resources that are neither Kubernetes' own nor without a domain.
pub(crate) fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/")
}

/// Returns the usage that requests and limits amount to, under the names of quotas.
fn compute(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut usage: Amounts = [("pods", Quantity::from_units(1))].into_iter().collect();
    for (name, amount) in requests.iter() {
        let is_basic =
            matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
        if is_basic {
            usage.set(name, amount);
        }
        if is_basic || is_extended(name) || name.starts_with(DEVICE_CLASS) {
            usage.set(format!("requests.{name}"), amount);
        }
    }
    for (name, amount) in
        limits.iter().filter(|(name, _)| matches!(*name, "cpu" | "memory" | "ephemeral-storage"))
    {
        usage.set(format!("limits.{name}"), amount);
    }
    usage
}

/// Returns the usage of a pod. One that has finished, or whose deletion is overdue, uses `count/pods` only.
pub(crate) fn usage(pod: &Value, now: Timestamp) -> Amounts {
    let mut usage: Amounts = [("count/pods", Quantity::from_units(1))].into_iter().collect();
    if is_over(pod, now) {
        return usage;
    }
    let none = Value::Null;
    let resized = in_resize(pod);
    let spec = resized.as_ref().or(pod.get("spec")).unwrap_or(&none);
    let overhead = Amounts::of(spec.get("overhead"));
    let (mut requests, mut limits) =
        (of_pod(spec, "requests", of_whole_pod), of_pod(spec, "limits", of_whole_pod));
    requests.add(&overhead);
    let limited = limits.clone().without_zeros();
    limits.add(&overhead.only(|name| limited.get(name).is_some()));
    usage.add(&compute(&requests, &limits));
    usage
}

/// Returns the specification of a pod in the course of a resize, with the larger of what each container asks
/// for and of what its node allocated and applied. If the node finds the resize infeasible, only the latter
/// counts. `None`: no container has a status that differs.
fn in_resize(pod: &Value) -> Option<Value> {
    let spec = pod.get("spec")?;
    let status = pod.get("status")?;
    let infeasible = list(status, "conditions").iter().any(|condition| {
        let is = |field: &str, value: &str| condition.get(field).is_some_and(|found| found == value);
        is("type", "PodResizePending") && is("reason", "Infeasible")
    });
    let mut changed = None;
    for (kind, statuses) in [("containers", "containerStatuses"), ("initContainers", "initContainerStatuses")]
    {
        for (i, container) in list(spec, kind).iter().enumerate() {
            let status = list(status, statuses).iter().find(|s| s.get("name") == container.get("name"));
            let is_sidecar = container.get("restartPolicy").is_some_and(|policy| policy == "Always");
            let Some(status) = status.filter(|s| s.get("resources").is_some()) else { continue };
            if kind == "initContainers" && !is_sidecar {
                continue;
            }
            for (name, allocated) in
                [("requests", Amounts::of(status.get("allocatedResources"))), ("limits", Amounts::default())]
            {
                let asked = of_container(container, name);
                let mut effective = if infeasible { Amounts::default() } else { asked.clone() };
                effective.raise_to(&of_container(status, name));
                effective.raise_to(&allocated);
                if effective != asked {
                    let changed: &mut Value = changed.get_or_insert_with(|| spec.clone());
                    let texts = effective.iter();
                    let texts =
                        texts.map(|(name, amount)| (name.to_owned(), Value::from(amount.to_string())));
                    changed[kind][i]["resources"][name] = texts.collect::<serde_json::Map<_, _>>().into();
                }
            }
        }
    }
    changed
}

/// Returns true for pods that have finished, and for those that should have been gone for their grace period.
fn is_over(pod: &Value, now: Timestamp) -> bool {
    let phase = pod.pointer("/status/phase").and_then(Value::as_str);
    if matches!(phase, Some("Failed" | "Succeeded")) {
        return true;
    }
    let metadata = |field: &str| pod.pointer(&format!("/metadata/{field}"));
    let deleted =
        metadata("deletionTimestamp").and_then(Value::as_str).and_then(|t| t.parse::<Timestamp>().ok());
    let grace = metadata("deletionGracePeriodSeconds").and_then(Value::as_i64);
    deleted.zip(grace).is_some_and(|(at, grace)| now.as_second() > at.as_second().saturating_add(grace))
}

/// Returns `must specify ...` if containers lack amounts that the limited names require.
pub(crate) fn missing<'a>(pod: &Value, limited: impl Iterator<Item = &'a str>) -> Option<String> {
    let spec = pod.get("spec")?;
    if has_whole(spec) {
        return None;
    }
    let mut missing = BTreeMap::<&str, Vec<&str>>::new();
    for name in limited.filter(|name| REQUIRED.contains(name)) {
        let containers = list(spec, "containers").iter().chain(list(spec, "initContainers"));
        for container in containers {
            let has = compute(&of_container(container, "requests"), &of_container(container, "limits"));
            if has.get(name).is_none() {
                let container = container.get("name").and_then(Value::as_str).unwrap_or_default();
                missing.entry(name).or_default().push(container);
            }
        }
    }
    let texts: Vec<String> = missing
        .into_iter()
        .map(|(name, mut containers)| {
            containers.sort_unstable();
            containers.dedup();
            format!("{name} for: {}", containers.join(","))
        })
        .collect();
    (!texts.is_empty()).then(|| format!("must specify {}", texts.join("; ")))
}

/// Returns true for pods with a deadline.
pub(crate) fn has_deadline(pod: &Value) -> bool {
    pod.pointer("/spec/activeDeadlineSeconds").and_then(Value::as_i64).is_some_and(|seconds| seconds >= 0)
}

/// Returns true for pods without any amount of CPU or memory.
pub(crate) fn is_best_effort(pod: &Value) -> bool {
    let Some(spec) = pod.get("spec") else { return true };
    let of = |container: &Value| {
        ["requests", "limits"].iter().any(|kind| {
            let amounts = of_container(container, kind).without_zeros();
            amounts.get("cpu").is_some() || amounts.get("memory").is_some()
        })
    };
    !of(spec) && !list(spec, "containers").iter().chain(list(spec, "initContainers")).any(of)
}

/// Returns true for pods whose affinity or anti-affinity looks into other namespaces.
pub(crate) fn has_far_affinity(pod: &Value) -> bool {
    let is_far = |term: &Value| {
        !list(term, "namespaces").is_empty() || term.get("namespaceSelector").is_some_and(|s| !s.is_null())
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let Some(affinity) = pod.pointer(&format!("/spec/affinity/{kind}")) else { return false };
        let required = list(affinity, "requiredDuringSchedulingIgnoredDuringExecution").iter();
        let preferred = list(affinity, "preferredDuringSchedulingIgnoredDuringExecution").iter();
        required.chain(preferred.filter_map(|weighted| weighted.get("podAffinityTerm"))).any(is_far)
    })
}
