//! Published schemas of custom resources.
//!
//! Guarantees, as upstream's, for kubectl's validation and `kubectl explain`:
//! 1. Each has `apiVersion`, `kind` and `metadata`, with their descriptions; so has each embedded object.
//! 2. OpenAPI v2 says nothing about an object that keeps unknown fields: a client that reads it would refuse
//!    them.

use serde_json::{Map, Value, json};

const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const EMBEDDED_API_VERSION: &str = "apiVersion defines the versioned schema of this representation of an object. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const EMBEDDED_KIND: &str = "kind is a string value representing the type of this object. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const METADATA: &str = "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
const EMBEDDED: &str = "x-kubernetes-embedded-resource";
/// Deepest schema that is walked.
const DEEPEST: usize = 100;

/// Returns the schema of a definition as documents show it. `metadata` is the reference to `ObjectMeta`.
pub(super) fn published(schema: &Value, metadata: &str, v3: bool) -> Value {
    let mut out = schema.clone();
    if !v3 {
        if is(&out, PRESERVE) {
            return json!({"type": "object"});
        }
        reduce(&mut out, 0);
    }
    complete(&mut out, metadata, [API_VERSION, KIND]);
    embed(&mut out, metadata, v3, 0);
    out
}

fn is(schema: &Value, flag: &str) -> bool {
    schema.get(flag) == Some(&Value::Bool(true))
}

/// Adds the fields that each object has.
fn complete(schema: &mut Value, metadata: &str, descriptions: [&str; 2]) {
    if !schema.get("properties").is_some_and(Value::is_object) {
        schema["properties"] = json!({});
    }
    let [api_version, kind] = descriptions;
    schema["properties"]["apiVersion"] = json!({"type": "string", "description": api_version});
    schema["properties"]["kind"] = json!({"type": "string", "description": kind});
    schema["properties"]["metadata"] = json!({"$ref": metadata, "description": METADATA});
}

/// Completes embedded objects.
fn embed(schema: &mut Value, metadata: &str, v3: bool, depth: usize) {
    if depth > DEEPEST || !schema.is_object() {
        return;
    }
    for_each_part(schema, |part| embed(part, metadata, v3, depth + 1));
    if !is(schema, EMBEDDED) || (!v3 && is(schema, PRESERVE)) {
        return;
    }
    complete(schema, metadata, [EMBEDDED_API_VERSION, EMBEDDED_KIND]);
    let mut required = schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    for name in ["kind", "apiVersion"] {
        if !required.iter().any(|known| known == name) {
            required.push(name.into());
        }
    }
    schema["required"] = required.into();
}

/// Runs a function for the schemas of properties, of elements and of additional properties.
fn for_each_part(schema: &mut Value, mut then: impl FnMut(&mut Value)) {
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(&mut then);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(part) = schema.get_mut(name).filter(|part| part.is_object()) {
            then(part);
        }
    }
}

/// Takes away what OpenAPI v2 lacks, and what kubectl misunderstands in it.
fn reduce(schema: &mut Value, depth: usize) {
    let (nullable, preserve) = (is(schema, "nullable"), is(schema, PRESERVE));
    let Some(map) = schema.as_object_mut().filter(|_| depth <= DEEPEST) else { return };
    for name in ["allOf", "oneOf", "anyOf", "not", "nullable"] {
        map.remove(name);
    }
    if nullable || preserve {
        map.remove("items");
        map.remove("properties");
    }
    let of = |map: &Map<String, Value>, kind: &str| map.get("type").is_some_and(|t| t == kind);
    let bare = !map.contains_key("items") && of(map, "array");
    if nullable || bare || (preserve && of(map, "object")) {
        map.remove("type");
    }
    // What may be null need not be there.
    let optional: Vec<String> = map
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(_, part)| is(part, "nullable"))
        .map(|(name, _)| name.clone())
        .collect();
    let all = map.get("additionalProperties").is_some_and(|part| is(part, "nullable"));
    if let Some(required) = map.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| !all && !optional.iter().any(|one| name == one));
        if required.is_empty() {
            map.remove("required");
        }
    }
    for_each_part(schema, |part| reduce(part, depth + 1));
}

#[cfg(test)]
mod tests {
    use super::*;

    const META: &str = "#/definitions/ObjectMeta";

    #[test]
    fn every_object_has_its_own_fields_described() {
        let schema = json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {"a": {"type": "string"}}},
            "template": {"type": "object", EMBEDDED: true},
        }});
        for v3 in [false, true] {
            let made = published(&schema, META, v3);
            assert_eq!(made["properties"]["apiVersion"]["description"], API_VERSION);
            assert_eq!(made["properties"]["metadata"], json!({"$ref": META, "description": METADATA}));
            assert_eq!(made["properties"]["spec"], schema["properties"]["spec"]);
            let template = &made["properties"]["template"];
            assert_eq!(template["properties"]["kind"]["description"], EMBEDDED_KIND);
            assert_eq!(template["required"], json!(["kind", "apiVersion"]));
        }
    }

    #[test]
    fn the_second_version_says_nothing_about_what_keeps_unknown_fields() {
        let root = json!({"type": "object", PRESERVE: true, "properties": {"spec": {"type": "object"}}});
        assert_eq!(published(&root, META, false), json!({"type": "object"}));
        assert_eq!(published(&root, META, true)["properties"]["spec"], json!({"type": "object"}));
        let part = |schema: Value| {
            let root = json!({"type": "object", "required": ["a", "b"], "properties": {"a": schema, "b": {"type": "string"}}});
            published(&root, META, false)
        };
        let kept = json!({"type": "object", PRESERVE: true, EMBEDDED: true, "properties": {"x": {}}});
        assert_eq!(part(kept)["properties"]["a"], json!({PRESERVE: true, EMBEDDED: true}));
        let nullable = part(json!({"type": "array", "nullable": true, "items": {"type": "string"}}));
        assert_eq!((&nullable["properties"]["a"], &nullable["required"]), (&json!({}), &json!(["b"])));
        let choice = json!({"type": "integer", "anyOf": [{"minimum": 1}]});
        assert_eq!(part(choice)["properties"]["a"], json!({"type": "integer"}));
    }
}
