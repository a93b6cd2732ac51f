//! Converts JSON schemas of Rust types to structural schemas, which have no references and no `null` type.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

/// Maximum nesting of a schema: that of values in the API server's schema engine (`k8s_schema::MAX_DEPTH`).
const MAX_DEPTH: usize = 128;

/// Returns the structural schema of an object type. `metadata` is left to the server. A recursive type is cut
/// off at the recursion, and anything is accepted there.
#[must_use]
pub fn structural_schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|s| {
        s.inline_subschemas = true;
        s.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    simplify(&mut schema, 0);
    if let Some(map) = schema.as_object_mut() {
        map.remove("title");
        map.insert("type".into(), "object".into());
        for field in ["apiVersion", "kind"] {
            if let Some(fields) = map.get_mut("properties").and_then(Value::as_object_mut) {
                fields.remove(field);
            }
        }
        if let Some(fields) = map.get_mut("properties").and_then(Value::as_object_mut)
            && fields.contains_key("metadata")
        {
            fields.insert("metadata".into(), json!({"type": "object"}));
        }
        if let Some(required) = map.get_mut("required").and_then(Value::as_array_mut) {
            required.retain(|name| !["apiVersion", "kind", "metadata"].iter().any(|own| name == own));
        }
    }
    schema
}

fn simplify(schema: &mut Value, depth: usize) {
    if schema == &Value::Bool(true) || depth > MAX_DEPTH {
        *schema = json!({"x-kubernetes-preserve-unknown-fields": true});
    }
    let Some(map) = schema.as_object_mut() else { return };
    if map.remove("$ref").is_some() {
        map.insert("type".into(), "object".into());
        map.insert("x-kubernetes-preserve-unknown-fields".into(), true.into());
    }
    for unknown in
        ["$defs", "components", "examples", "example", "readOnly", "writeOnly", "deprecated", "title"]
    {
        map.remove(unknown);
    }
    if let Some(value) = map.remove("const") {
        map.insert("enum".into(), json!([value]));
    }
    nullable_type(map);
    for key in ["anyOf", "oneOf"] {
        alternatives(map, key);
    }
    // Go has no unsigned formats; `minimum` excludes negative numbers.
    if map
        .get("format")
        .and_then(Value::as_str)
        .is_some_and(|f| f.starts_with("uint") || f.starts_with("int"))
    {
        let narrow = map.get("format").is_some_and(|f| f == "int32");
        map.insert("format".into(), if narrow { "int32" } else { "int64" }.into());
    }
    for key in ["properties", "patternProperties"] {
        for (_, field) in map.get_mut(key).and_then(Value::as_object_mut).into_iter().flatten() {
            simplify(field, depth + 1);
        }
    }
    for key in ["items", "additionalProperties", "not"] {
        if let Some(inner) =
            map.get_mut(key).filter(|inner| inner.is_object() || *inner == &Value::Bool(true))
        {
            simplify(inner, depth + 1);
        }
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for inner in map.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
            simplify(inner, depth + 1);
        }
    }
    // Structural schemas do not forbid unknown fields, but prune them.
    if map.get("additionalProperties") == Some(&Value::Bool(false)) {
        map.remove("additionalProperties");
    }
}

/// Converts `["string", "null"]` to a nullable string.
fn nullable_type(map: &mut Map<String, Value>) {
    let Some(Value::Array(types)) = map.get("type") else { return };
    let kind = types.iter().find(|t| *t != "null").cloned();
    if types.iter().any(|t| t == "null") {
        map.insert("nullable".into(), true.into());
    }
    match kind {
        Some(kind) => map.insert("type".into(), kind),
        None => map.remove("type"),
    };
}

/// Converts `null` or another type to a nullable one, and several string constants to an enum.
fn alternatives(map: &mut Map<String, Value>, key: &str) {
    let Some(Value::Array(mut all)) = map.remove(key) else { return };
    let before = all.len();
    let is_null = |s: &Value| {
        s.get("type").is_some_and(|t| t == "null") || s.get("enum").is_some_and(|e| e == &json!([null]))
    };
    all.retain(|s| !is_null(s));
    if all.len() < before {
        map.insert("nullable".into(), true.into());
    }
    let texts = |s: &Value| -> Option<Vec<Value>> {
        let values = match (s.get("const"), s.get("enum")) {
            (Some(value), _) => vec![value.clone()],
            (None, Some(Value::Array(values))) => values.clone(),
            _ => return None,
        };
        values.iter().all(Value::is_string).then_some(values)
    };
    if let Some(values) = all.iter().map(texts).collect::<Option<Vec<_>>>().filter(|v| !v.is_empty()) {
        map.insert("type".into(), "string".into());
        map.insert("enum".into(), values.concat().into());
    } else if all.len() == 1 {
        if let Some(Value::Object(only)) = all.pop() {
            for (name, value) in only {
                map.entry(name).or_insert(value);
            }
            nullable_type(map);
        }
    } else if !all.is_empty() {
        map.insert(key.into(), all.into());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Serialize};

    use super::*;
    use k8s_schema::Schema;

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "camelCase")]
    enum Engine {
        /// A variant.
        Postgres,
        /// Another variant.
        Mysql,
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Backup {
        hour: u8,
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Thing {
        spec: Spec,
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "camelCase")]
    struct Spec {
        engine: Engine,
        spare: Option<Engine>,
        backup: Option<Backup>,
        size_gb: Option<u32>,
        labels: BTreeMap<String, String>,
        inner: Vec<Spec>,
    }

    #[test]
    fn types_become_structural() {
        let schema = structural_schema::<Thing>();
        let spec = &schema["properties"]["spec"]["properties"];
        assert_eq!(
            (&spec["engine"]["type"], &spec["engine"]["enum"]),
            (&json!("string"), &json!(["postgres", "mysql"]))
        );
        assert_eq!((&spec["spare"]["nullable"], &spec["spare"]["type"]), (&json!(true), &json!("string")));
        assert_eq!((&spec["backup"]["nullable"], &spec["backup"]["type"]), (&json!(true), &json!("object")));
        assert_eq!((&spec["sizeGb"]["type"], &spec["sizeGb"]["minimum"]), (&json!("integer"), &json!(0)));
        assert_eq!(spec["labels"]["additionalProperties"]["type"], "string");
        assert!(!schema.to_string().contains("$ref"));
        assert!(Schema::custom(&schema).is_ok());
    }
}
