//! Usage by kind, and the kind that a name of a quota is about.

use jiff::Timestamp;
use k8s_quantity::Quantity;
use serde_json::Value;

use crate::{Amounts, pod};

/// Resources without usage.
const IGNORED: [&str; 2] = ["events", "events.events.k8s.io"];
/// Resources whose plain name is a name of quotas, too.
const ALIASED: [&str; 7] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];
/// Separates a storage class from the name that is limited for it.
const STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
/// Annotation that named a claim's class before the field did.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// Returns the resource that a name of a quota limits. `None`: nothing is counted under the name.
///
/// ```
/// use k8s_quota::resource_of;
/// assert_eq!(resource_of("count/deployments.apps"), Some("deployments.apps"));
/// assert_eq!(resource_of("requests.nvidia.com/gpu"), Some("pods"));
/// let of_class = "gold.storageclass.storage.k8s.io/requests.storage";
/// assert_eq!(resource_of(of_class), Some("persistentvolumeclaims"));
/// assert_eq!(resource_of("limits.hugepages-2Mi"), None);
/// ```
#[must_use]
pub fn resource_of(name: &str) -> Option<&str> {
    if let Some(counted) = name.strip_prefix("count/") {
        return Some(counted).filter(|resource| !IGNORED.contains(resource));
    }
    if ALIASED.contains(&name) {
        return Some(name);
    }
    let requested = name.strip_prefix("requests.");
    let basic = name.strip_prefix("limits.").or(requested).unwrap_or(name);
    if matches!(basic, "cpu" | "memory" | "ephemeral-storage") {
        return Some("pods");
    }
    if requested.unwrap_or(name).starts_with("hugepages-") {
        return Some("pods");
    }
    match name {
        "services.nodeports" | "services.loadbalancers" => return Some("services"),
        "requests.storage" => return Some("persistentvolumeclaims"),
        _ => {}
    }
    if let Some((_, limited)) = name.split_once(STORAGE_CLASS) {
        let of_claims = matches!(limited, "requests.storage" | "persistentvolumeclaims");
        return of_claims.then_some("persistentvolumeclaims");
    }
    requested.filter(|r| pod::is_extended(r) || r.starts_with(pod::DEVICE_CLASS)).map(|_| "pods")
}

/// Returns the usage of an object under all names that may limit it.
///
/// ```
/// use serde_json::json;
/// let service = json!({"spec": {"type": "NodePort", "ports": [{"port": 80}, {"port": 443}]}});
/// let usage = k8s_quota::usage("services", &service, jiff::Timestamp::UNIX_EPOCH);
/// assert_eq!(usage.without_zeros().to_string(), "count/services=1,services=1,services.nodeports=2");
/// ```
#[must_use]
pub fn usage(resource: &str, object: &Value, now: Timestamp) -> Amounts {
    if IGNORED.contains(&resource) {
        return Amounts::default();
    }
    if resource == "pods" {
        return pod::usage(object, now);
    }
    let one = Quantity::from_units(1);
    let mut usage: Amounts = [(format!("count/{resource}"), one)].into_iter().collect();
    if ALIASED.contains(&resource) {
        usage.set(resource, one);
    }
    match resource {
        "services" => ports(object, &mut usage),
        "persistentvolumeclaims" => storage(object, &mut usage),
        _ => {}
    }
    usage
}

/// Adds load balancers, and the node ports that a Service has or will get.
fn ports(service: &Value, usage: &mut Amounts) {
    let none = Value::Null;
    let spec = service.get("spec").unwrap_or(&none);
    let ports = spec.get("ports").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let chosen =
        || ports.iter().filter(|port| port.get("nodePort").and_then(Value::as_i64).unwrap_or(0) != 0).count();
    let allocates = spec.get("allocateLoadBalancerNodePorts") != Some(&Value::Bool(false));
    let (balancers, node_ports) = match spec.get("type").and_then(Value::as_str) {
        Some("NodePort") => (0, ports.len()),
        Some("LoadBalancer") if allocates => (1, ports.len()),
        Some("LoadBalancer") => (1, chosen()),
        _ => (0, 0),
    };
    usage.set("services.loadbalancers", Quantity::from_units(balancers));
    usage.set("services.nodeports", Quantity::from_units(i64::try_from(node_ports).unwrap_or(i64::MAX)));
}

/// Adds the storage that a claim requests or has been allocated, and both amounts for its class.
fn storage(claim: &Value, usage: &mut Amounts) {
    let old = claim.get("metadata").and_then(|m| m.get("annotations")).and_then(|a| a.get(CLASS_ANNOTATION));
    let class =
        old.or_else(|| claim.pointer("/spec/storageClassName")).and_then(Value::as_str).unwrap_or_default();
    let amount = |pointer: &str| Amounts::of(claim.pointer(pointer)).get("storage");
    let requested = amount("/spec/resources/requests").map(|requested| {
        let allocated = amount("/status/allocatedResources").unwrap_or(Quantity::ZERO);
        let most = requested.max(allocated);
        // A part of a byte counts as one.
        let whole = Quantity::from_bytes(most.units());
        if whole == most { most } else { whole }
    });
    let mut add = |name: &str, amount: Quantity| {
        usage.set(name, amount);
        if !class.is_empty() {
            usage.set(format!("{class}{STORAGE_CLASS}{name}"), amount);
        }
    };
    add("persistentvolumeclaims", Quantity::from_units(1));
    if let Some(requested) = requested {
        add("requests.storage", requested);
    }
}
