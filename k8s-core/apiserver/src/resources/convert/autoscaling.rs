//! HorizontalPodAutoscaler before autoscaling/v2.

use crate::resources::types::generate;
use serde_json::{Value, json};

use super::Conversion;
use crate::value::{set, take, text};

/// autoscaling/v1: one CPU target instead of metrics; other metrics are kept in annotations.
pub(in crate::resources) static V1: Conversion = Conversion {
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
    // Remove the annotations that carried these fields.
    if object
        .pointer("/metadata/annotations")
        .and_then(Value::as_object)
        .is_some_and(serde_json::Map::is_empty)
    {
        take(object, "/metadata", "annotations");
    }
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
            let target = metric.pointer("/resource/target/averageUtilization").cloned();
            set(object, "/spec/targetCPUUtilizationPercentage", target.unwrap_or_default());
        } else {
            others.push(metric.clone());
        }
    }
    if !others.is_empty() {
        annotate(object, METRICS, &others.into());
    }
    if let Some(behavior) = behavior {
        annotate(object, BEHAVIOR, &behavior);
    }
    let current = take(object, "/status", "currentMetrics");
    take(object, "/status", "conditions");
    let cpu =
        current.iter().filter_map(Value::as_array).flatten().find(|m| text(m, "/resource/name") == "cpu");
    if let Some(used) = cpu.and_then(|m| m.pointer("/resource/current/averageUtilization")) {
        set(object, "/status/currentCPUUtilizationPercentage", used.clone());
    }
}

/// Stores a value in an annotation.
fn annotate(object: &mut Value, key: &str, value: &Value) {
    set(
        object,
        "/metadata/annotations",
        object.pointer("/metadata/annotations").cloned().unwrap_or(json!({})),
    );
    if let Some(map) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        map.insert(key.to_owned(), value.to_string().into());
    }
}

/// autoscaling/v2beta1: target values are siblings of the metric instead of members of `target`.
pub(in crate::resources) static V2BETA1: Conversion = Conversion {
    to_storage: |object| each_metric(object, to_v2),
    from_storage: |object| each_metric(object, from_v2),
    generate: Some(generate::<k8s_core::legacy::HorizontalPodAutoscalerV2beta1>),
};

fn each_metric(object: &mut Value, change: fn(&mut Value, values: &str)) {
    for (list, values) in [("/spec/metrics", "target"), ("/status/currentMetrics", "current")] {
        let metrics = object.pointer_mut(list).and_then(Value::as_array_mut);
        for metric in metrics.into_iter().flatten() {
            for source in ["resource", "containerResource", "pods", "object", "external"] {
                if let Some(source) = metric.get_mut(source) {
                    change(source, values);
                }
            }
        }
    }
}

/// Value types: name in `target` or `current`, and suffix in v2beta1.
const VALUES: [(&str, &str); 3] =
    [("averageUtilization", "AverageUtilization"), ("averageValue", "AverageValue"), ("value", "Value")];

fn to_v2(source: &mut Value, values: &str) {
    let Some(map) = source.as_object_mut() else { return };
    // The `target` of an object metric was the object.
    if let Some(object) = map.remove("target") {
        map.insert("describedObject".into(), object);
    }
    let mut of = serde_json::Map::new();
    for (new, old) in VALUES {
        if let Some(value) = map.remove(&format!("{values}{old}")) {
            if values == "target" {
                let kind = if new == "averageUtilization" { "Utilization" } else { old };
                of.entry("type").or_insert(kind.into());
            }
            of.insert(new.into(), value);
        }
    }
    if let Some(value) = map.remove("averageValue") {
        of.insert("averageValue".into(), value);
    }
    let mut metric = serde_json::Map::new();
    for (new, old) in [("name", "metricName"), ("selector", "selector"), ("selector", "metricSelector")] {
        if let Some(value) = map.remove(old) {
            metric.insert(new.into(), value);
        }
    }
    if !metric.is_empty() {
        map.insert("metric".into(), metric.into());
    }
    map.insert(values.into(), of.into());
}

fn from_v2(source: &mut Value, values: &str) {
    let Some(map) = source.as_object_mut() else { return };
    let of = map.remove(values);
    for (new, old) in VALUES {
        if let Some(value) = of.as_ref().and_then(|of| of.get(new)) {
            map.insert(format!("{values}{old}"), value.clone());
        }
    }
    let is_object = map.contains_key("describedObject");
    if let Some(object) = map.remove("describedObject") {
        map.insert("target".into(), object);
    }
    if let Some(Value::Object(mut metric)) = map.remove("metric") {
        if let Some(name) = metric.remove("name") {
            map.insert("metricName".into(), name);
        }
        if let Some(selector) = metric.remove("selector") {
            let external = !is_object && map.contains_key(&format!("{values}Value"));
            map.insert(if external { "metricSelector" } else { "selector" }.into(), selector);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::round_trip, *};

    #[test]
    fn old_autoscalers_survive() {
        round_trip(
            &V1,
            json!({"metadata": {}, "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}}),
        );
        round_trip(
            &V2BETA1,
            json!({"spec": {"maxReplicas": 3, "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "targetAverageUtilization": 50}},
                {"type": "Pods", "pods": {"metricName": "packets", "targetAverageValue": "1k", "selector": {"matchLabels": {"a": "b"}}}},
                {"type": "Object", "object": {"metricName": "hits", "target": {"kind": "Service", "name": "s"}, "targetValue": "10"}},
                {"type": "External", "external": {"metricName": "q", "metricSelector": {}, "targetValue": "30"}},
            ]}}),
        );
    }
}
