//! Requests and limits of containers and pods, and quality-of-service classes.
//!
//! Resources of the whole pod (`spec.resources`) take the place of those of its containers, as upstream
//! (`component-helpers/resource`, `PodRequests` and `PodLimits`). Not here: cgroups ([`crate::cgroups`]).

use std::collections::BTreeMap;

use k8s_core::meta::Quantity;
use k8s_runtime::Requests;

use crate::types::*;

/// Quality-of-service class of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

pub(crate) type List = BTreeMap<String, ApiQuantity>;

/// Returns one resource of a list. Zero counts as absent.
pub(crate) fn amount(list: Option<&List>, name: &str) -> Option<Quantity> {
    let quantity = Quantity::try_from(list?.get(name)?).ok()?;
    (!quantity.is_zero()).then_some(quantity)
}

pub(crate) fn limits(container: &Container) -> Option<&List> {
    container.resources.as_ref()?.limits.as_ref()
}

pub(crate) fn requests(container: &Container) -> Option<&List> {
    container.resources.as_ref()?.requests.as_ref()
}

/// Returns a request; the default is the limit.
pub(crate) fn request(container: &Container, name: &str) -> Option<Quantity> {
    amount(requests(container), name).or_else(|| amount(limits(container), name))
}

pub(crate) fn all_containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.containers.iter().chain(spec.init_containers.iter().flatten())
}

/// Returns `true` for resources that a whole pod may have.
fn is_of_pods(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// Returns the resources of the whole pod. `None`: it has none of its own.
pub(crate) fn whole(spec: &PodSpec) -> Option<&ResourceRequirements> {
    let own = spec.resources.as_ref()?;
    let mut names = own.requests.iter().chain(&own.limits).flat_map(|list| list.keys());
    names.any(|name| is_of_pods(name)).then_some(own)
}

/// Computes the quality-of-service class of a pod, from CPU and memory only.
pub(crate) fn qos(spec: &PodSpec) -> Qos {
    let whole = whole(spec);
    let containers = all_containers(spec).filter(|_| whole.is_none()).map(|c| c.resources.as_ref());
    let mut any = false;
    let mut all_limited = true;
    let mut equal = true;
    for resources in whole.into_iter().map(Some).chain(containers) {
        for name in ["cpu", "memory"] {
            let limit = amount(resources.and_then(|r| r.limits.as_ref()), name);
            let request = amount(resources.and_then(|r| r.requests.as_ref()), name).or(limit);
            any |= limit.is_some() || request.is_some();
            all_limited &= limit.is_some();
            equal &= limit == request;
        }
    }
    match (any, all_limited && equal) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// Path of a pod's cgroup below the runtime's root.
pub(crate) fn cgroup_parent(qos: Qos, uid: &str) -> String {
    match qos {
        Qos::Guaranteed => format!("pod{uid}"),
        Qos::Burstable => format!("burstable/pod{uid}"),
        Qos::BestEffort => format!("besteffort/pod{uid}"),
    }
}

/// Amounts of resources by name: millicores of CPU, units of all others.
pub(crate) type Amounts = BTreeMap<String, i64>;

fn amounts(list: Option<&List>) -> Amounts {
    let amount = |name: &str, quantity: &ApiQuantity| {
        let quantity = Quantity::try_from(quantity).unwrap_or(Quantity::ZERO);
        if name == "cpu" { quantity.milli() } else { quantity.units() }
    };
    let entries = list.into_iter().flatten();
    entries.map(|(name, quantity)| (name.clone(), amount(name, quantity))).collect()
}

/// Returns what a container or pod requests; the default of a request is its limit.
fn all_requests(requirements: Option<&ResourceRequirements>) -> Amounts {
    let mut all = all_limits(requirements);
    all.extend(amounts(requirements.and_then(|r| r.requests.as_ref())));
    all
}

/// Returns the limits of a container or pod.
fn all_limits(requirements: Option<&ResourceRequirements>) -> Amounts {
    amounts(requirements.and_then(|r| r.limits.as_ref()))
}

fn combine(total: &mut Amounts, other: &Amounts, with: impl Fn(i64, i64) -> i64) {
    for (name, amount) in other {
        let have = total.entry(name.clone()).or_default();
        *have = with(*have, *amount);
    }
}

/// Returns the maximum of the containers' sum and of each init container, both with the sidecars beside it.
fn of_containers(spec: &PodSpec, of: impl Fn(Option<&ResourceRequirements>) -> Amounts) -> Amounts {
    let (mut sidecars, mut initial) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let own = of(container.resources.as_ref());
        if container.restart_policy.as_deref() == Some("Always") {
            combine(&mut sidecars, &own, i64::saturating_add);
            combine(&mut initial, &sidecars, i64::max);
        } else {
            let mut together = own;
            combine(&mut together, &sidecars, i64::saturating_add);
            combine(&mut initial, &together, i64::max);
        }
    }
    let mut total = sidecars;
    for container in &spec.containers {
        combine(&mut total, &of(container.resources.as_ref()), i64::saturating_add);
    }
    combine(&mut total, &initial, i64::max);
    total
}

/// Returns what a pod requests of the node, overhead included.
pub(crate) fn pod_requests(spec: &PodSpec) -> Amounts {
    let mut total = of_containers(spec, all_requests);
    total.extend(all_requests(whole(spec)).into_iter().filter(|(name, _)| is_of_pods(name)));
    combine(&mut total, &amounts(spec.overhead.as_ref()), i64::saturating_add);
    total
}

/// Returns the limits of a pod. Overhead is added to limits that are not zero.
pub(crate) fn pod_limits(spec: &PodSpec) -> Amounts {
    let mut total = of_containers(spec, all_limits);
    total.extend(all_limits(whole(spec)).into_iter().filter(|(name, _)| is_of_pods(name)));
    for (name, overhead) in amounts(spec.overhead.as_ref()) {
        if let Some(limit) = total.get_mut(&name).filter(|limit| **limit != 0) {
            *limit = limit.saturating_add(overhead);
        }
    }
    total
}

/// Converts amounts back into the form of the API.
pub(crate) fn to_api(amounts: &Amounts) -> List {
    let quantity = |name: &str, amount: i64| match name {
        "cpu" => Quantity::from_milli(amount),
        "memory" | "ephemeral-storage" => Quantity::from_bytes(amount),
        name if name.starts_with("hugepages-") => Quantity::from_bytes(amount),
        _ => Quantity::from_units(amount),
    };
    amounts.iter().map(|(name, amount)| (name.clone(), quantity(name, *amount).to_api())).collect()
}

/// CPU and memory that a container requests.
pub(crate) fn requested(container: &Container) -> Requests {
    let positive = |value: i64| u64::try_from(value).unwrap_or(0);
    Requests {
        cpu_milli: request(container, "cpu").map_or(0, |q| positive(q.milli())),
        memory_bytes: request(container, "memory").map_or(0, |q| positive(q.units())),
    }
}

/// The reason for which a `resourceFieldRef` has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FieldError {
    #[error("unsupported container resource : {0}")]
    Resource(String),
    #[error("container {0} not found")]
    Container(String),
}

/// The value of a `resourceFieldRef` (`limits.cpu`), in units of its divisor, rounded up. A missing limit is
/// the node's allocatable.
pub(crate) fn field(
    spec: &PodSpec,
    own_container: Option<&str>,
    selector: &ResourceFieldSelector,
    allocatable: &List,
) -> Result<String, FieldError> {
    let name =
        selector.container_name.as_deref().filter(|n| !n.is_empty()).or(own_container).unwrap_or_default();
    let container = all_containers(spec)
        .find(|c| c.name == name)
        .ok_or_else(|| FieldError::Container(name.to_owned()))?;
    let unsupported = || FieldError::Resource(selector.resource.clone());
    let (kind, resource) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let known =
        matches!(resource, "cpu" | "memory" | "ephemeral-storage") || resource.starts_with("hugepages-");
    let value = match kind {
        _ if !known => return Err(unsupported()),
        "limits" => amount(limits(container), resource).or_else(|| amount(Some(allocatable), resource)),
        "requests" => request(container, resource),
        _ => return Err(unsupported()),
    };
    let value = value.unwrap_or(Quantity::ZERO);
    let divisor = selector.divisor.as_ref().and_then(|d| Quantity::try_from(d).ok()).filter(|d| !d.is_zero());
    let divisor = divisor.unwrap_or(Quantity::from_units(1));
    let result = if resource == "cpu" {
        ceil_div(value.milli(), divisor.milli())
    } else {
        ceil_div(value.units(), divisor.units())
    };
    Ok(result.to_string())
}

fn ceil_div(value: i64, divisor: i64) -> i64 {
    let divisor = divisor.max(1);
    value / divisor + i64::from(value % divisor > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(pairs: &[(&str, &str)]) -> Option<List> {
        (!pairs.is_empty())
            .then(|| pairs.iter().map(|(k, v)| ((*k).to_owned(), ApiQuantity((*v).to_owned()))).collect())
    }

    fn spec(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> PodSpec {
        PodSpec {
            containers: vec![Container {
                name: "c".into(),
                resources: Some(ResourceRequirements {
                    requests: list(requests),
                    limits: list(limits),
                    claims: None,
                }),
                ..Container::default()
            }],
            ..PodSpec::default()
        }
    }

    #[test]
    fn classes() {
        for (requests, limits, want) in [
            (&[][..], &[][..], Qos::BestEffort),
            (&[("cpu", "1")][..], &[][..], Qos::Burstable),
            (&[][..], &[("cpu", "1"), ("memory", "1Gi")][..], Qos::Guaranteed),
            (&[("cpu", "1000m")][..], &[("cpu", "1"), ("memory", "1Gi")][..], Qos::Guaranteed),
            (&[("cpu", "500m")][..], &[("cpu", "1"), ("memory", "1Gi")][..], Qos::Burstable),
        ] {
            assert_eq!(qos(&spec(requests, limits)), want, "{requests:?} {limits:?}");
            // Resources of the whole pod take the place of those of its containers.
            let mut whole = spec(&[("cpu", "1")], &[]);
            whole.resources = spec(requests, limits).containers.remove(0).resources;
            let want = if want == Qos::BestEffort { Qos::Burstable } else { want };
            assert_eq!(qos(&whole), want, "whole pod: {requests:?} {limits:?}");
        }
    }

    #[test]
    fn requests_of_a_pod() {
        let container = |cpu: &str| serde_json::json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        let mut sidecar = container("100m");
        sidecar["restartPolicy"] = "Always".into();
        let mut limited = container("1");
        limited["resources"] = serde_json::json!({"limits": {"memory": "64Mi"}});
        for (spec, cpu, memory) in [
            (
                serde_json::json!({"containers": [container("200m"), container("300m"), limited]}),
                500,
                64 << 20,
            ),
            (
                serde_json::json!({"initContainers": [container("900m")], "containers": [container("300m")]}),
                900,
                0,
            ),
            (
                serde_json::json!({"initContainers": [sidecar, container("900m")], "containers": [container("300m")]}),
                1000,
                0,
            ),
            (
                serde_json::json!({"initContainers": [sidecar], "containers": [container("300m")], "overhead": {"cpu": "50m"}}),
                450,
                0,
            ),
            (
                serde_json::json!({"containers": [container("300m")], "resources": {"requests": {"cpu": "2"}}}),
                2000,
                0,
            ),
        ] {
            let have = pod_requests(&serde_json::from_value(spec.clone()).unwrap());
            let of = |name: &str| have.get(name).copied().unwrap_or(0);
            assert_eq!((of("cpu"), of("memory")), (cpu, memory), "{spec}");
        }
    }

    #[test]
    fn fields() {
        let spec = spec(&[("cpu", "250m")], &[("memory", "100Mi")]);
        let get = |resource: &str, divisor: &str| {
            let selector = ResourceFieldSelector {
                resource: resource.into(),
                divisor: (!divisor.is_empty()).then(|| ApiQuantity(divisor.into())),
                container_name: None,
            };
            field(&spec, Some("c"), &selector, &list(&[("cpu", "4")]).unwrap())
        };
        assert_eq!(get("requests.cpu", "").unwrap(), "1");
        assert_eq!(get("requests.cpu", "1m").unwrap(), "250");
        assert_eq!(get("limits.cpu", "").unwrap(), "4");
        assert_eq!(get("limits.memory", "1Mi").unwrap(), "100");
        assert!(get("limits.gold", "").is_err());
    }
}
