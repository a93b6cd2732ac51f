//! Declarations: types and size bounds of variables, derived from structural schemas.
//!
//! Follows upstream's `k8s.io/apiserver/pkg/cel/common/schemas.go` (`SchemaDeclType`). In addition, parts
//! that a schema leaves open (preserved unknown fields) are accessible here with dynamic type.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value as Json;

use crate::{
    names::escape,
    types::{
        Type,
        declared::{Decl, Field, ObjectType, REQUEST},
    },
};

/// Maximum nesting of a schema.
const MAX_DEPTH: usize = 128;

impl Decl {
    /// Declares the values of a structural schema.
    #[must_use]
    pub fn of_schema(schema: &Json) -> Self {
        of_schema(schema, false, 0)
    }

    /// Declares the objects of a resource's schema: of the metadata only name and generateName are
    /// accessible.
    #[must_use]
    pub fn of_resource(schema: &Json) -> Self {
        of_schema(schema, true, 0)
    }
}

/// Returns the number of values of a size that fit into a request.
fn fit(size: u64) -> u64 {
    (REQUEST - 2) / size.max(1)
}

fn of_schema(schema: &Json, resource: bool, depth: usize) -> Decl {
    let text = |key: &str| schema.get(key).and_then(Json::as_str).unwrap_or_default();
    let whole = |key: &str| schema.get(key).and_then(Json::as_u64);
    let flag = |key: &str| schema.get(key) == Some(&Json::Bool(true));
    let max_length = whole("maxLength");
    if depth > MAX_DEPTH {
        return Decl::any();
    }
    if flag("x-kubernetes-int-or-string") {
        return Decl::scalar(Type::Dyn, max_length.map_or(REQUEST - 2, |n| n.saturating_mul(4)), 1);
    }
    let inner = |schema: &Json| {
        let embedded = schema.get("x-kubernetes-embedded-resource") == Some(&Json::Bool(true));
        Arc::new(of_schema(schema, embedded, depth + 1))
    };
    match text("type") {
        "array" => {
            let element = schema.get("items").map_or_else(|| Arc::new(Decl::any()), inner);
            let max = whole("maxItems").unwrap_or_else(|| fit(element.min_size + 1));
            Decl { ty: Type::list(element.ty.clone()), max, min_size: 2, element: Some(element) }
        }
        "object" => {
            match schema.get("additionalProperties").filter(|a| a.is_object() || **a == Json::Bool(true)) {
                Some(values) if !resource => {
                    let element = inner(values);
                    let max = whole("maxProperties").unwrap_or_else(|| fit(element.min_size + 6));
                    Decl { ty: Type::map(element.ty.clone()), max, min_size: 2, element: Some(element) }
                }
                _ => object(schema, resource, inner),
            }
        }
        "string" => string(schema, text("format"), max_length),
        "boolean" => Decl::scalar(Type::Bool, 1, 4),
        "number" => Decl::scalar(Type::Double, 1, 1),
        "integer" => Decl::scalar(Type::Int, 1, 1),
        _ if resource => object(schema, resource, inner),
        _ => Decl::any(),
    }
}

fn object(schema: &Json, resource: bool, inner: impl Fn(&Json) -> Arc<Decl>) -> Decl {
    let required = |name: &str| {
        let all = schema.get("required").and_then(Json::as_array);
        all.is_some_and(|all| all.iter().any(|r| r.as_str() == Some(name)))
    };
    let mut fields = BTreeMap::new();
    let mut min_size = 2u64;
    for (property, schema) in schema.get("properties").and_then(Json::as_object).into_iter().flatten() {
        let decl = inner(schema);
        if required(property) && schema.get("default").is_none() {
            min_size = min_size.saturating_add(property.len() as u64 + decl.min_size + 4);
        }
        if let Some(name) = escape(property) {
            fields.insert(name, Field { property: property.clone(), decl });
        }
    }
    if resource {
        let text = Arc::new(Decl::scalar(Type::String, REQUEST - 2, 2));
        let metadata = ["name", "generateName"].map(|name| (name.to_owned(), text.clone()));
        let metadata = Arc::new(Decl::object(ObjectType::new("object.metadata", metadata)));
        for (name, decl) in [("apiVersion", text.clone()), ("kind", text), ("metadata", metadata)] {
            fields.insert(name.into(), Field { property: name.into(), decl });
        }
    }
    let open = schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Json::Bool(true));
    let object = ObjectType { name: "object".into(), fields, open };
    Decl { ty: Type::Object(Arc::new(object)), max: REQUEST, min_size, element: None }
}

fn string(schema: &Json, format: &str, max_length: Option<u64>) -> Decl {
    match format {
        "byte" => Decl::scalar(Type::Bytes, max_length.unwrap_or(REQUEST - 2), 2),
        // Bounds of their JSON texts.
        "duration" => Decl::scalar(Type::Duration, 32, 4),
        "date" => Decl::scalar(Type::Timestamp, 12, 12),
        "date-time" => Decl::scalar(Type::Timestamp, 36, 21),
        _ => {
            let values = schema.get("enum").and_then(Json::as_array);
            let longest =
                values.and_then(|v| v.iter().filter_map(Json::as_str).map(|v| v.len() as u64).max());
            let max = max_length.map(|n| n.saturating_mul(4)).or(longest).unwrap_or(REQUEST - 2);
            Decl::scalar(Type::String, max, 2)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_schemas_say() {
        for (schema, ty, max) in [
            (json!({"type": "string", "maxLength": 3}), "string", 12),
            (json!({"type": "string", "enum": ["a", "bcd"]}), "string", 3),
            (json!({"type": "string", "format": "date-time"}), "timestamp", 36),
            (json!({"type": "string", "format": "byte", "maxLength": 8}), "bytes", 8),
            (json!({"x-kubernetes-int-or-string": true, "maxLength": 4}), "dyn", 16),
            (json!({"type": "array", "items": {"type": "integer"}, "maxItems": 7}), "list(int)", 7),
            (json!({"type": "array", "items": {"type": "integer"}}), "list(int)", (REQUEST - 2) / 2),
            (
                json!({"type": "object", "additionalProperties": {"type": "number"}, "maxProperties": 9}),
                "map(string, double)",
                9,
            ),
            (json!({"x-kubernetes-preserve-unknown-fields": true}), "dyn", REQUEST),
        ] {
            let decl = Decl::of_schema(&schema);
            assert_eq!((decl.ty.to_string().as_str(), decl.max), (ty, max), "{schema}");
        }
    }

    #[test]
    fn required_fields_make_objects_larger() {
        let schema = json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}, "b": {"type": "string"}}});
        assert_eq!(Decl::of_schema(&schema).min_size, 2 + 1 + 2 + 4);
    }
}
