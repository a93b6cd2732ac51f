//! Pods: defaults, rules, and what may change.

mod details;
mod resize;
mod rules;
mod status;
mod volumes;
mod whole;

use k8s_core::meta::Quantity;
use serde_json::{Map, Value, json};

use super::{BASE, Proxied, Strategy};
use crate::{
    invalid::FieldErrors,
    value::{array_at, child, default, default_text, int_at, set, str_at, take},
};

pub(super) use details::{NODE_SELECTOR, TOLERATION};
pub(super) use rules::check_template;
pub(super) use volumes::{check_sources, default_old_sources};

/// Defaults and validation of Pods.
pub static STRATEGY: Strategy = Strategy {
    fixed_by_status: &["ownerReferences"],
    proxied: Some(Proxied::Pod),
    grace: |pod| {
        (!has_ended(pod) && !str_at(pod, "/spec/nodeName").is_empty())
            .then(|| int_at(pod, "/spec/terminationGracePeriodSeconds").unwrap_or(30).max(0))
    },
    is_deleted_unread: |is| {
        is("status.phase", "Succeeded") || is("status.phase", "Failed") || is("spec.nodeName", "")
    },
    generation: true,
    returns_deleted: true,
    default: |pod| {
        if let Some(spec) = child(pod, "spec") {
            default_spec(spec);
            default_pod_requests(spec);
            default(spec, "enableServiceLinks", true);
        }
    },
    create: |pod| {
        let qos = qos_class(pod.get("spec").unwrap_or(&Value::Null));
        pod["status"] = json!({"phase": "Pending", "qosClass": qos});
    },
    validate: |pod, errors| {
        super::check_labels(pod, "/metadata/labels", "metadata.labels", errors);
        rules::check_spec(pod.get("spec").unwrap_or(&Value::Null), "spec", errors);
    },
    validate_update: rules::check_update,
    validate_status: status::check,
    view: |view, new, errors| {
        if view.part == "ephemeralcontainers" {
            keep_all_but_ephemeral_containers(new, view.old);
            rules::check_ephemeral_update(new, view.old, errors);
        }
        if view.part == "resize" {
            if let Some(spec) = child(new, "spec") {
                default_spec(spec);
                default_pod_requests(spec);
            }
            resize::keep_all_but_resources(new, view.old);
            resize::check(new, view.old, errors);
        }
    },
    ..BASE
};

/// Returns true if the pod has ended: no container runs again.
fn has_ended(pod: &Value) -> bool {
    ["Succeeded", "Failed"].contains(&str_at(pod, "/status/phase"))
}

/// Puts back all that a write of `ephemeralcontainers` may not change.
fn keep_all_but_ephemeral_containers(new: &mut Value, old: &Value) {
    let mut kept = old.clone();
    match new.pointer_mut("/spec/ephemeralContainers").map(Value::take) {
        Some(containers) => set(&mut kept, "/spec/ephemeralContainers", containers),
        None => drop(take(&mut kept, "/spec", "ephemeralContainers")),
    }
    if let Some(fields) = new.pointer_mut("/metadata/managedFields").map(Value::take) {
        set(&mut kept, "/metadata/managedFields", fields);
    }
    *new = kept;
}

/// Fills in a pod spec, in a pod or a template.
pub(super) fn default_spec(spec: &mut Value) {
    default_text(spec, "restartPolicy", "Always");
    default(spec, "terminationGracePeriodSeconds", 30);
    default_text(spec, "dnsPolicy", "ClusterFirst");
    default(spec, "securityContext", json!({}));
    default_text(spec, "schedulerName", "default-scheduler");
    // The old name of serviceAccountName; both are kept equal.
    let account = match str_at(spec, "/serviceAccountName") {
        "" => str_at(spec, "/serviceAccount").to_owned(),
        name => name.to_owned(),
    };
    if !account.is_empty() {
        spec["serviceAccountName"] = account.clone().into();
        spec["serviceAccount"] = account.into();
    }
    let host_network = crate::value::bool_at(spec, "/hostNetwork");
    for field in ["containers", "initContainers", "ephemeralContainers"] {
        for container in each(spec, field) {
            default_container(container, host_network);
        }
    }
    for volume in each(spec, "volumes") {
        default_volume(volume);
    }
    for constraint in each(spec, "topologySpreadConstraints") {
        default_text(constraint, "whenUnsatisfiable", "DoNotSchedule");
    }
}

/// Sets missing requests of a pod that has limits of its own: what its containers request, else the limit.
fn default_pod_requests(spec: &mut Value) {
    let limits = spec.pointer("/resources/limits").and_then(Value::as_object).cloned().unwrap_or_default();
    if limits.is_empty() {
        return;
    }
    let of_containers = k8s_quota::pod::of_containers(spec, "requests");
    let Some(requests) = child(spec, "resources").and_then(|resources| child(resources, "requests")) else {
        return;
    };
    for (name, amount) in of_containers.iter().filter(|(name, _)| matches!(*name, "cpu" | "memory")) {
        default(requests, name, amount.to_string());
    }
    for (name, limit) in limits.iter().filter(|(name, _)| is_of_pods(name)) {
        default(requests, name, limit.clone());
    }
    // An empty list stays absent.
    if requests.as_object().is_some_and(Map::is_empty) {
        take(spec, "/resources", "requests");
    }
}

/// Returns true for resources that a whole pod may have.
fn is_of_pods(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

fn each<'a>(object: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten()
}

fn default_container(container: &mut Value, host_network: bool) {
    default(container, "resources", json!({}));
    default_text(container, "terminationMessagePath", "/dev/termination-log");
    default_text(container, "terminationMessagePolicy", "File");
    let policy = if tag_is_latest(str_at(container, "/image")) { "Always" } else { "IfNotPresent" };
    default_text(container, "imagePullPolicy", policy);
    for port in each(container, "ports") {
        default_text(port, "protocol", "TCP");
        if host_network && let Some(number) = port.get("containerPort").cloned() {
            default(port, "hostPort", number);
        }
    }
    for env in each(container, "env") {
        if let Some(reference) = env.pointer_mut("/valueFrom/fieldRef") {
            default_text(reference, "apiVersion", "v1");
        }
        if let Some(reference) = env.pointer_mut("/valueFrom/resourceFieldRef") {
            default(reference, "divisor", "0");
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(name).filter(|p| p.is_object()) {
            default(probe, "timeoutSeconds", 1);
            default(probe, "periodSeconds", 10);
            default(probe, "successThreshold", 1);
            default(probe, "failureThreshold", 3);
            default_http(probe);
            if let Some(grpc) = probe.get_mut("grpc") {
                default(grpc, "service", "");
            }
        }
    }
    for name in ["postStart", "preStop"] {
        if let Some(hook) = container.pointer_mut(&format!("/lifecycle/{name}")) {
            default_http(hook);
        }
    }
    // A limit without a request is the request.
    let limits = container.pointer("/resources/limits").and_then(Value::as_object).cloned();
    if let Some(limits) = limits
        && let Some(requests) = child(container, "resources").and_then(|r| child(r, "requests"))
    {
        for (name, limit) in limits {
            default(requests, &name, limit);
        }
    }
}

fn default_http(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet").filter(|g| g.is_object()) {
        default_text(get, "path", "/");
        default_text(get, "scheme", "HTTP");
    }
}

/// Returns true if an image reference means the tag `latest`.
fn tag_is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn default_volume(volume: &mut Value) {
    let Some(map) = volume.as_object_mut() else { return };
    if map.keys().all(|k| k == "name") {
        map.insert("emptyDir".into(), json!({}));
    }
    for name in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(name).filter(|s| s.is_object()) {
            default(source, "defaultMode", 420);
            default_items(source);
        }
    }
    if let Some(image) = volume.get_mut("image").filter(|image| image.is_object()) {
        let policy = if tag_is_latest(str_at(image, "/reference")) { "Always" } else { "IfNotPresent" };
        default_text(image, "pullPolicy", policy);
    }
    if let Some(host) = volume.get_mut("hostPath").filter(|s| s.is_object()) {
        default(host, "type", "");
    }
    default_old_sources(volume);
    volumes::default_ephemeral(volume);
    let sources = volume.pointer_mut("/projected/sources").and_then(Value::as_array_mut);
    for source in sources.into_iter().flatten() {
        if let Some(token) = source.get_mut("serviceAccountToken").filter(|s| s.is_object()) {
            default(token, "expirationSeconds", 3600);
        }
        if let Some(downward) = source.get_mut("downwardAPI") {
            default_items(downward);
        }
    }
}

fn default_items(source: &mut Value) {
    for item in each(source, "items") {
        if let Some(reference) = item.get_mut("fieldRef").filter(|r| r.is_object()) {
            default_text(reference, "apiVersion", "v1");
        }
    }
}

/// The quality of service that requests and limits amount to.
#[must_use]
pub fn qos_class(spec: &Value) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    let containers = array_at(spec, "/containers").iter().chain(array_at(spec, "/initContainers"));
    // Resources of the whole pod take the place of those of its containers.
    let whole = is_pod_level(spec).then_some(spec);
    let containers = containers.filter(|_| whole.is_none());
    for container in whole.into_iter().chain(containers) {
        let amounts = |name: &str| -> Map<String, Value> {
            container
                .pointer(&format!("/resources/{name}"))
                .and_then(Value::as_object)
                .cloned()
                .unwrap_or_default()
        };
        let (requests, limits) = (amounts("requests"), amounts("limits"));
        let amount = |map: &Map<String, Value>, name: &str| {
            map.get(name)
                .and_then(Value::as_str)
                .and_then(|q| q.parse::<Quantity>().ok())
                .filter(|q| !q.is_zero())
        };
        for name in ["cpu", "memory"] {
            let (request, limit) = (amount(&requests, name), amount(&limits, name));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Returns true if a pod has resources of its own, beside those of its containers.
fn is_pod_level(spec: &Value) -> bool {
    let mut lists = ["requests", "limits"]
        .into_iter()
        .filter_map(|list| spec.pointer(&format!("/resources/{list}")).and_then(Value::as_object));
    lists.any(|list| list.keys().any(|name| is_of_pods(name)))
}

/// Marks a pod as placed on a node; for the binding subresource.
///
/// # Errors
/// The reason, in upstream's words.
pub(crate) fn bind(pod: &mut Value, node: &str, binding: &Value, now: &str) -> Result<(), String> {
    if pod.pointer("/metadata/deletionTimestamp").is_some() {
        return Err(format!(
            "pod {} is being deleted, cannot be assigned to a host",
            str_at(pod, "/metadata/name")
        ));
    }
    let have = str_at(pod, "/spec/nodeName");
    if !have.is_empty() {
        return Err(format!("pod {} is already assigned to node {have:?}", str_at(pod, "/metadata/name")));
    }
    if !array_at(pod, "/spec/schedulingGates").is_empty() {
        return Err(format!("pod {} has non-empty .spec.schedulingGates", str_at(pod, "/metadata/name")));
    }
    if let Some(spec) = child(pod, "spec") {
        spec["nodeName"] = node.into();
    }
    for field in ["annotations", "labels"] {
        let given =
            crate::value::object_at(binding, &format!("/metadata/{field}")).filter(|all| !all.is_empty());
        if let Some(given) = given
            && let Some(target) = child(pod, "metadata").and_then(|m| child(m, field))
        {
            for (key, value) in given {
                target[key] = value.clone();
            }
        }
    }
    if let Some(status) = child(pod, "status") {
        let mut conditions: Vec<Value> = array_at(status, "/conditions").to_vec();
        conditions.retain(|c| str_at(c, "/type") != "PodScheduled");
        conditions.push(json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now}));
        status["conditions"] = conditions.into();
    }
    Ok(())
}

/// Returns true for a missing value or an empty string.
pub(super) fn is_blank(value: Option<&Value>) -> bool {
    value.is_none_or(|v| v.is_null() || v == "")
}

/// Checks a whole template's metadata and spec.
pub(super) fn template_errors(template: &Value, field: &str, errors: &mut FieldErrors) {
    check_template(template, field, errors);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, latest) in [
            ("nginx", true),
            ("nginx:1.7.9", false),
            ("r:5000/nginx", true),
            ("a/b:latest", true),
            ("a@sha256:00", false),
        ] {
            assert_eq!(tag_is_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn quality_of_service() {
        let with = |resources: Value| json!({"containers": [{"resources": resources}]});
        assert_eq!(qos_class(&with(json!({}))), "BestEffort");
        assert_eq!(qos_class(&with(json!({"requests": {"cpu": "1"}}))), "Burstable");
        assert_eq!(
            qos_class(&with(
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}})
            )),
            "Guaranteed"
        );
    }
}
