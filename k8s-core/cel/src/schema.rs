//! Declarations: types and size bounds of variables, derived from structural schemas.
//!
//! Follows upstream's `k8s.io/apiserver/pkg/cel/common/schemas.go` (`SchemaDeclType`). In addition, parts
//! that a schema leaves open (preserved unknown fields) are accessible here with dynamic type.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value as Json;

use super::{names::escape, types::Type};

/// Maximum size of a request in bytes: the default bound.
const REQUEST: u64 = 3 * 1024 * 1024;
/// Maximum nesting of a schema.
const MAX_DEPTH: usize = 128;

/// A declared type with its size bounds.
#[derive(Clone, Debug)]
pub struct Decl {
    pub(super) ty: Type,
    /// Maximum number of list elements, map entries, or bytes of a text.
    pub(super) max: u64,
    /// Minimum size in JSON, in bytes.
    pub(super) min_size: u64,
    /// Declaration of list elements, map values, or an optional's value.
    pub(super) element: Option<Arc<Decl>>,
}

/// A field of an object.
#[derive(Clone, Debug)]
pub struct Field {
    pub(super) property: String,
    pub(super) decl: Arc<Decl>,
}

/// An object type: fields by their escaped names.
#[derive(Debug)]
pub struct ObjectType {
    name: String,
    fields: BTreeMap<String, Field>,
    /// Unknown fields are preserved, with dynamic type.
    open: bool,
}

impl ObjectType {
    /// Creates an object type from properties. Properties that cannot be escaped are omitted.
    pub fn new(name: impl Into<String>, fields: impl IntoIterator<Item = (String, Arc<Decl>)>) -> Self {
        let fields = fields.into_iter().filter_map(|(property, decl)| {
            let name = escape(&property)?;
            Some((name, Field { property, decl }))
        });
        ObjectType { name: name.into(), fields: fields.collect(), open: false }
    }

    /// Returns the type's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns true if unknown fields are preserved.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Returns a field by its escaped name.
    pub(super) fn field(&self, name: &str) -> Option<&Field> {
        self.fields.get(name)
    }

    /// Returns true if two types are the same: identical or with equal declarations.
    pub(super) fn is(&self, other: &ObjectType) -> bool {
        std::ptr::eq(self, other)
            || self.open
            || other.open
            || (self.fields.len() == other.fields.len()
                && self
                    .fields
                    .iter()
                    .zip(&other.fields)
                    .all(|(a, b)| a.0 == b.0 && a.1.decl.ty.accepts(&b.1.decl.ty)))
    }
}

impl Decl {
    /// Declares a type without bounds except the request size.
    #[must_use]
    pub fn new(ty: Type) -> Self {
        let element = match &ty {
            Type::List(of) | Type::Optional(of) => Some(Arc::new(Decl::new(Type::clone(of)))),
            Type::Map(entry) => Some(Arc::new(Decl::new(entry.1.clone()))),
            _ => None,
        };
        Decl { ty, max: REQUEST, min_size: 1, element }
    }

    /// Declares a value of dynamic type.
    #[must_use]
    pub fn any() -> Self {
        Decl::new(Type::Dyn)
    }

    /// Declares an object.
    #[must_use]
    pub fn object(object: ObjectType) -> Self {
        Decl { ty: Type::Object(Arc::new(object)), max: REQUEST, min_size: 2, element: None }
    }

    /// Declares an optional of this type.
    #[must_use]
    pub fn optional(self) -> Self {
        Decl { ty: Type::optional(self.ty.clone()), max: 1, min_size: 0, element: Some(Arc::new(self)) }
    }

    /// Returns the declared type.
    #[must_use]
    pub fn ty(&self) -> &Type {
        &self.ty
    }

    /// Returns the maximum number of elements of a list or entries of a map.
    #[must_use]
    pub fn max_elements(&self) -> u64 {
        self.max
    }

    /// Returns the minimum size of a value in JSON, in bytes.
    #[must_use]
    pub fn min_serialized_size(&self) -> u64 {
        self.min_size
    }

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

    fn scalar(ty: Type, max: u64, min_size: u64) -> Self {
        Decl { ty, max, min_size, element: None }
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
