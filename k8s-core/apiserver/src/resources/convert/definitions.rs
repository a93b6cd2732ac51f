//! CustomResourceDefinition of apiextensions.k8s.io/v1beta1: one schema for all versions, and unknown fields
//! are preserved by default.

use crate::resources::types::generate;
use serde_json::{Map, Value, json};

use super::Conversion;

/// Conversion between `apiextensions.k8s.io/v1beta1` and `v1` definitions.
pub(in crate::resources) static V1BETA1: Conversion = Conversion {
    to_storage: to_v1,
    from_storage: from_v1,
    generate: Some(generate::<k8s_core::legacy::CustomResourceDefinition>),
};

/// Fields that v1 has in each version instead of once: old name, new name.
const SHARED: [(&str, &str); 3] = [
    ("validation", "schema"),
    ("subresources", "subresources"),
    ("additionalPrinterColumns", "additionalPrinterColumns"),
];
fn rename_paths(columns: &mut Value, from: &str, to: &str) {
    for column in columns.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        if let Some(path) = column.remove(from) {
            column.insert(to.into(), path);
        }
    }
}

fn to_v1(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let name = spec.remove("version");
    if spec.get("versions").is_none_or(|v| v.as_array().is_none_or(Vec::is_empty))
        && let Some(name) = name
    {
        spec.insert("versions".into(), json!([{"name": name, "served": true, "storage": true}]));
    }
    let shared: Vec<(&str, Value)> =
        SHARED.into_iter().filter_map(|(old, new)| Some((new, spec.remove(old)?))).collect();
    spec.entry("preserveUnknownFields").or_insert(true.into());
    let versions = spec.get_mut("versions").and_then(Value::as_array_mut);
    for version in versions.into_iter().flatten().filter_map(Value::as_object_mut) {
        for (name, value) in &shared {
            version.entry(*name).or_insert_with(|| value.clone());
        }
        if let Some(columns) = version.get_mut("additionalPrinterColumns") {
            rename_paths(columns, "JSONPath", "jsonPath");
        }
    }
    let Some(conversion) = spec.get_mut("conversion").and_then(Value::as_object_mut) else { return };
    let mut webhook = Map::new();
    for (old, new) in
        [("webhookClientConfig", "clientConfig"), ("conversionReviewVersions", "conversionReviewVersions")]
    {
        if let Some(value) = conversion.remove(old) {
            webhook.insert(new.into(), value);
        }
    }
    if webhook.contains_key("clientConfig") {
        webhook.entry("conversionReviewVersions").or_insert(json!(["v1beta1"]));
        conversion.insert("webhook".into(), webhook.into());
    }
}

fn from_v1(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let versions = spec.get_mut("versions").and_then(Value::as_array_mut);
    for version in versions.into_iter().flatten() {
        if let Some(columns) = version.get_mut("additionalPrinterColumns") {
            rename_paths(columns, "jsonPath", "JSONPath");
        }
    }
    // If all versions have the same value, it is moved to the top level: the two places exclude each other.
    for (old, new) in SHARED {
        let versions = spec.get_mut("versions").and_then(Value::as_array_mut);
        let Some(versions) = versions else { break };
        let Some(first) = versions.first().and_then(|v| v.get(new)).cloned() else { continue };
        if versions.iter().all(|version| version.get(new) == Some(&first)) {
            versions.iter_mut().filter_map(Value::as_object_mut).for_each(|version| {
                version.remove(new);
            });
            spec.insert(old.into(), first);
        }
    }
    let first = spec.get("versions").and_then(|v| v.get(0)).and_then(|v| v.get("name")).cloned();
    if let Some(first) = first {
        spec.insert("version".into(), first);
    }
    spec.entry("preserveUnknownFields").or_insert(false.into());
    let Some(conversion) = spec.get_mut("conversion").and_then(Value::as_object_mut) else { return };
    if let Some(Value::Object(mut webhook)) = conversion.remove("webhook") {
        for (old, new) in [
            ("webhookClientConfig", "clientConfig"),
            ("conversionReviewVersions", "conversionReviewVersions"),
        ] {
            if let Some(value) = webhook.remove(new) {
                conversion.insert(old.into(), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::round_trip, *};

    #[test]
    fn old_definitions_survive() {
        let schema =
            json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object"}}}});
        round_trip(
            &V1BETA1,
            json!({"spec": {"group": "g.example.com", "version": "v1", "preserveUnknownFields": false, "validation": schema,
                "versions": [{"name": "v1", "served": true, "storage": true}, {"name": "v2", "served": true, "storage": false}],
                "additionalPrinterColumns": [{"name": "A", "type": "string", "JSONPath": ".spec.a"}],
                "conversion": {"strategy": "Webhook", "webhookClientConfig": {"url": "https://x"}, "conversionReviewVersions": ["v1"]}}}),
        );
        let mut oldest = json!({"spec": {"group": "g.example.com", "version": "v1"}});
        to_v1(&mut oldest);
        let versions = json!([{"name": "v1", "served": true, "storage": true}]);
        assert_eq!(
            oldest["spec"],
            json!({"group": "g.example.com", "preserveUnknownFields": true, "versions": versions})
        );
    }
}
