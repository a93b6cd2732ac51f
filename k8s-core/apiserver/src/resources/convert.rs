//! Older versions of stored resources: how each is turned into the stored form and back.
//!
//! Where the shapes are equal, only `apiVersion` changes and there is no [`Conversion`]. A version that lost a field keeps it in an annotation, so that a
//! round trip loses nothing.

use k8s_core::schema::{Generate, generate};
use serde_json::{Map, Value, json};

use crate::value::{take, text};

/// A legacy version of a stored resource.
#[derive(Debug)]
pub struct Legacy {
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) storage_group: &'static str,
    pub(super) plural: &'static str,
    pub(super) conversion: Option<&'static Conversion>,
}

impl Legacy {
    pub(super) const fn new(
        group: &'static str,
        version: &'static str,
        storage_group: &'static str,
        plural: &'static str,
    ) -> Self {
        Legacy { group, version, storage_group, plural, conversion: None }
    }

    pub(super) const fn with(mut self, conversion: &'static Conversion) -> Self {
        self.conversion = Some(conversion);
        self
    }
}

/// From and to the stored form. Both are total: what does not fit is left for validation to find.
#[derive(Debug)]
pub struct Conversion {
    /// Makes the stored form.
    pub to_storage: fn(&mut Value),
    /// Makes the served form.
    pub from_storage: fn(&mut Value),
    /// Type of the served form, where it is not the stored one's.
    pub generate: Option<Generate>,
}

/// Workloads before apps/v1: the selector may be left out, and is then the template's labels.
pub(super) static OLD_WORKLOAD: Conversion =
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
        // The old default, in force until apps/v1beta2.
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

/// Ingress before networking.k8s.io/v1: `serviceName` and `servicePort`.
pub(super) static OLD_INGRESS: Conversion = Conversion {
    to_storage: ingress_to_v1,
    from_storage: ingress_from_v1,
    generate: Some(generate::<k8s_core::legacy::Ingress>),
};

fn each_backend(spec: &mut Map<String, Value>, change: fn(&mut Value)) {
    let rules = spec.get_mut("rules").and_then(Value::as_array_mut);
    for rule in rules.into_iter().flatten() {
        let paths = rule.pointer_mut("/http/paths").and_then(Value::as_array_mut);
        for path in paths.into_iter().flatten() {
            if let Some(backend) = path.get_mut("backend") {
                change(backend);
            }
        }
    }
}

fn backend_to_v1(backend: &mut Value) {
    let Some(map) = backend.as_object_mut() else { return };
    let (name, port) = (map.remove("serviceName"), map.remove("servicePort"));
    if name.is_none() && port.is_none() {
        return;
    }
    let mut service = json!({"name": name.unwrap_or_default()});
    match port {
        Some(Value::String(port)) => match port.parse::<u16>() {
            Ok(number) => service["port"] = json!({"number": number}),
            Err(_) => service["port"] = json!({"name": port}),
        },
        Some(number) => service["port"] = json!({"number": number}),
        None => {}
    }
    map.insert("service".into(), service);
}

fn backend_from_v1(backend: &mut Value) {
    let Some(map) = backend.as_object_mut() else { return };
    let Some(service) = map.remove("service") else { return };
    map.insert("serviceName".into(), service.get("name").cloned().unwrap_or_default());
    let port = service.get("port");
    if let Some(port) = port.and_then(|p| p.get("number").or_else(|| p.get("name"))) {
        map.insert("servicePort".into(), port.clone());
    }
}

fn ingress_to_v1(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if let Some(mut backend) = spec.remove("backend") {
        backend_to_v1(&mut backend);
        spec.insert("defaultBackend".into(), backend);
    }
    each_backend(spec, backend_to_v1);
    let rules = spec.get_mut("rules").and_then(Value::as_array_mut);
    for rule in rules.into_iter().flatten() {
        let paths = rule.pointer_mut("/http/paths").and_then(Value::as_array_mut);
        for path in paths.into_iter().flatten().filter_map(Value::as_object_mut) {
            path.entry("pathType").or_insert_with(|| "ImplementationSpecific".into());
        }
    }
}

fn ingress_from_v1(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if let Some(mut backend) = spec.remove("defaultBackend") {
        backend_from_v1(&mut backend);
        spec.insert("backend".into(), backend);
    }
    each_backend(spec, backend_from_v1);
}

/// autoscaling/v1: one CPU target instead of metrics; the others travel in annotations.
pub(super) static HPA_V1: Conversion = Conversion {
    to_storage: hpa_to_v2,
    from_storage: hpa_from_v2,
    generate: Some(generate::<k8s_core::api::api::autoscaling::v1::HorizontalPodAutoscaler>),
};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

fn cpu_metric(target: Value) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": target}}})
}

fn is_cpu(metric: &Value) -> bool {
    text(metric, "/type") == "Resource"
        && text(metric, "/resource/name") == "cpu"
        && text(metric, "/resource/target/type") == "Utilization"
}

fn hpa_to_v2(object: &mut Value) {
    let mut metrics = Vec::new();
    if let Some(target) = take(object, "/spec", "targetCPUUtilizationPercentage") {
        metrics.push(cpu_metric(target));
    }
    if let Some(Value::String(more)) = take(object, "/metadata/annotations", METRICS) {
        metrics.extend(serde_json::from_str::<Vec<Value>>(&more).unwrap_or_default());
    }
    let behavior = take(object, "/metadata/annotations", BEHAVIOR);
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        if !metrics.is_empty() {
            spec.insert("metrics".into(), metrics.into());
        }
        if let Some(behavior) =
            behavior.as_ref().and_then(Value::as_str).and_then(|b| serde_json::from_str(b).ok())
        {
            spec.insert("behavior".into(), behavior);
        }
    }
    if let Some(now) = take(object, "/status", "currentCPUUtilizationPercentage")
        && let Some(status) = object.get_mut("status").and_then(Value::as_object_mut)
    {
        let current = json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": now, "averageValue": "0"}}}]);
        status.entry("currentMetrics").or_insert(current);
    }
}

fn hpa_from_v2(object: &mut Value) {
    let metrics = take(object, "/spec", "metrics");
    let behavior = take(object, "/spec", "behavior");
    let mut others = Vec::new();
    for metric in metrics.iter().filter_map(Value::as_array).flatten() {
        if is_cpu(metric) && object.pointer("/spec/targetCPUUtilizationPercentage").is_none() {
            object["spec"]["targetCPUUtilizationPercentage"] =
                metric.pointer("/resource/target/averageUtilization").cloned().unwrap_or_default();
        } else {
            others.push(metric.clone());
        }
    }
    if !others.is_empty() {
        object["metadata"]["annotations"][METRICS] = Value::from(others).to_string().into();
    }
    if let Some(behavior) = behavior {
        object["metadata"]["annotations"][BEHAVIOR] = behavior.to_string().into();
    }
    let current = take(object, "/status", "currentMetrics");
    take(object, "/status", "conditions");
    let cpu =
        current.iter().filter_map(Value::as_array).flatten().find(|m| text(m, "/resource/name") == "cpu");
    if let Some(used) = cpu.and_then(|m| m.pointer("/resource/current/averageUtilization")) {
        object["status"]["currentCPUUtilizationPercentage"] = used.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(conversion: &Conversion, old: Value) {
        let mut object = old.clone();
        (conversion.to_storage)(&mut object);
        assert_ne!(object, old);
        (conversion.from_storage)(&mut object);
        assert_eq!(object, old);
    }

    #[test]
    fn old_ingress_survives() {
        round_trip(
            &OLD_INGRESS,
            json!({"spec": {"backend": {"serviceName": "d", "servicePort": "http"},
                "rules": [{"host": "h", "http": {"paths": [{"path": "/a", "pathType": "Prefix", "backend": {"serviceName": "s", "servicePort": 80}}]}}]}}),
        );
    }

    #[test]
    fn old_autoscaler_survives() {
        round_trip(
            &HPA_V1,
            json!({"metadata": {"annotations": {}}, "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}}),
        );
    }

    #[test]
    fn old_deployments_select_by_their_template() {
        let mut object =
            json!({"kind": "Deployment", "spec": {"template": {"metadata": {"labels": {"a": "b"}}}}});
        (OLD_WORKLOAD.to_storage)(&mut object);
        assert_eq!(object["spec"]["selector"], json!({"matchLabels": {"a": "b"}}));
    }
}
