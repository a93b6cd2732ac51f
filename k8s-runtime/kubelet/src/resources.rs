//! Quality-of-service classes, and the cgroup settings of requests and limits.

use std::collections::BTreeMap;

use k8s_core::meta::Quantity;
use k8s_runtime::{Requests, Resources};

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

type List = BTreeMap<String, ApiQuantity>;

/// Returns one resource of a list. Zero counts as absent.
pub(crate) fn amount(list: Option<&List>, name: &str) -> Option<Quantity> {
    let quantity = Quantity::try_from(list?.get(name)?).ok()?;
    (!quantity.is_zero()).then_some(quantity)
}

fn limits(container: &Container) -> Option<&List> {
    container.resources.as_ref()?.limits.as_ref()
}

fn requests(container: &Container) -> Option<&List> {
    container.resources.as_ref()?.requests.as_ref()
}

/// Returns a request; the default is the limit.
fn request(container: &Container, name: &str) -> Option<Quantity> {
    amount(requests(container), name).or_else(|| amount(limits(container), name))
}

fn all_containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.containers.iter().chain(spec.init_containers.iter().flatten())
}

/// Computes the quality-of-service class of a pod, from CPU and memory only.
pub(crate) fn qos(spec: &PodSpec) -> Qos {
    let mut any = false;
    let mut all_limited = true;
    let mut equal = true;
    for container in all_containers(spec) {
        for name in ["cpu", "memory"] {
            let limit = amount(limits(container), name);
            let request = request(container, name);
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

fn shares(milli: i64) -> u64 {
    u64::try_from(milli.saturating_mul(1024) / 1000).unwrap_or(0).clamp(2, 262_144)
}

fn quota(milli: i64) -> i64 {
    milli.saturating_mul(100).max(1000)
}

/// The `oom_score_adj` of a container: higher is killed first when memory is short.
fn oom_score_adj(qos: Qos, container: &Container, node_memory: i64) -> i32 {
    match qos {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let wanted = request(container, "memory").map_or(0, |q| q.units());
            let share = i128::from(wanted) * 1000 / i128::from(node_memory.max(1));
            i32::try_from(1000 - share).unwrap_or(3).clamp(3, 999)
        }
    }
}

/// Amounts of resources by name: millicores of CPU, units of all others.
pub(crate) type Amounts = BTreeMap<String, i64>;

/// Returns what a container requests; the default of a request is its limit.
fn container_requests(requirements: Option<&ResourceRequirements>) -> Amounts {
    let mut list = List::new();
    for part in requirements.into_iter().flat_map(|r| [&r.limits, &r.requests]).flatten() {
        list.extend(part.clone());
    }
    let amount = |name: &str, quantity: &ApiQuantity| {
        let quantity = Quantity::try_from(quantity).unwrap_or(Quantity::ZERO);
        if name == "cpu" { quantity.milli() } else { quantity.units() }
    };
    list.iter().map(|(name, quantity)| (name.clone(), amount(name, quantity))).collect()
}

fn combine(total: &mut Amounts, other: &Amounts, with: impl Fn(i64, i64) -> i64) {
    for (name, amount) in other {
        let have = total.entry(name.clone()).or_default();
        *have = with(*have, *amount);
    }
}

/// Returns what a pod requests of the node: the maximum of the containers' sum and of each init container,
/// both with the sidecars beside it, plus the overhead. Requests of the whole pod replace those of its
/// containers.
pub(crate) fn pod_requests(spec: &PodSpec) -> Amounts {
    let (mut sidecars, mut initial) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let own = container_requests(container.resources.as_ref());
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
        combine(&mut total, &container_requests(container.resources.as_ref()), i64::saturating_add);
    }
    combine(&mut total, &initial, i64::max);
    combine(&mut total, &container_requests(spec.resources.as_ref()), |_, whole| whole);
    let overhead =
        ResourceRequirements { requests: spec.overhead.clone(), ..ResourceRequirements::default() };
    combine(&mut total, &container_requests(Some(&overhead)), i64::saturating_add);
    total
}

/// CPU and memory that a container requests.
pub(crate) fn requested(container: &Container) -> Requests {
    let positive = |value: i64| u64::try_from(value).unwrap_or(0);
    Requests {
        cpu_milli: request(container, "cpu").map_or(0, |q| positive(q.milli())),
        memory_bytes: request(container, "memory").map_or(0, |q| positive(q.units())),
    }
}

/// The cgroup limits of a container.
pub(crate) fn container(qos: Qos, container: &Container, node_memory: i64) -> Resources {
    let cpu_limit = amount(limits(container), "cpu");
    Resources {
        cpu_shares: Some(shares(request(container, "cpu").map_or(0, |q| q.milli()))),
        cpu_quota_us: cpu_limit.map(|q| quota(q.milli())),
        cpu_period_us: cpu_limit.map(|_| 100_000),
        memory_bytes: amount(limits(container), "memory").map(|q| q.units()),
        pids: None,
        oom_score_adj: Some(oom_score_adj(qos, container, node_memory)),
    }
}

/// The cgroup limits of a whole pod. A resource is limited only if every container limits it.
pub(crate) fn pod(spec: &PodSpec) -> Resources {
    let sum = |of: &dyn Fn(&Container) -> Option<i64>| spec.containers.iter().map(of).sum::<Option<i64>>();
    let init_max = |of: &dyn Fn(&Container) -> Option<i64>| {
        spec.init_containers.iter().flatten().map(of).try_fold(0, |max: i64, v| v.map(|v| max.max(v)))
    };
    let whole = |of: &dyn Fn(&Container) -> Option<i64>| Some(sum(of)?.max(init_max(of)?));
    let cpu_limit = whole(&|c| amount(limits(c), "cpu").map(|q| q.milli()));
    let cpu_request: i64 = spec.containers.iter().filter_map(|c| request(c, "cpu")).map(|q| q.milli()).sum();
    Resources {
        cpu_shares: Some(shares(cpu_request)),
        cpu_quota_us: cpu_limit.map(quota),
        cpu_period_us: cpu_limit.map(|_| 100_000),
        memory_bytes: whole(&|c| amount(limits(c), "memory").map(|q| q.units())),
        ..Resources::default()
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
        }
    }

    #[test]
    fn kernel_terms() {
        let spec = spec(&[("cpu", "100m"), ("memory", "100Mi")], &[("cpu", "500m"), ("memory", "200Mi")]);
        let have = container(Qos::Burstable, &spec.containers[0], 1000 << 20);
        assert_eq!(have.cpu_shares, Some(102));
        assert_eq!(have.cpu_quota_us, Some(50_000));
        assert_eq!(have.memory_bytes, Some(200 << 20));
        assert_eq!(have.oom_score_adj, Some(900));
        assert_eq!(pod(&spec).memory_bytes, Some(200 << 20));
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
