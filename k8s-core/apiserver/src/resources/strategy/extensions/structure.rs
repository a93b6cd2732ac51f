//! Validation of structural schemas, and of the other parts of a definition's versions.

use k8s_schema::MAX_DEPTH;
use serde_json::{Value, json};

use crate::{
    invalid::{FieldErrors, names},
    value::{list, map, text, truth},
};

/// Types of printer columns.
const COLUMN_TYPES: [&str; 5] = ["integer", "number", "string", "boolean", "date"];
/// Maximum number of selectable fields per version.
const SELECTABLE: usize = 8;

/// Validates names, parts of versions and schemas.
pub(super) fn check(crd: &Value, errors: &mut FieldErrors) {
    for field in ["shortNames", "categories"] {
        for (i, name) in list(crd, &format!("/spec/names/{field}")).iter().enumerate() {
            let name = name.as_str().unwrap_or_default();
            if !names::is_label_1035(name) {
                errors.invalid(format!("spec.names.{field}[{i}]"), name, names::LABEL_1035_MESSAGE);
            }
        }
    }
    let (kind, list_kind) = (text(crd, "/spec/names/kind"), text(crd, "/spec/names/listKind"));
    if !kind.is_empty() && kind == list_kind {
        errors.invalid("spec.names.listKind", list_kind, "kind and listKind may not be the same");
    }
    if text(crd, "/spec/conversion/strategy") == "Webhook" && map(crd, "/spec/conversion/webhook").is_none() {
        errors.required("spec.conversion.webhook.clientConfig", "required when strategy is set to Webhook");
    }
    for (i, version) in list(crd, "/spec/versions").iter().enumerate() {
        let at = format!("spec.versions[{i}]");
        parts(version, &at, errors);
    }
    if !truth(crd, "/spec/preserveUnknownFields") {
        errors.append(violations(crd));
    } else if roots(crd).any(|(_, root)| has_defaults(root, 0)) {
        let why = "must be false in order to use defaults in the schema";
        errors.invalid("spec.preserveUnknownFields", true, why);
    }
}

/// Iterates over the schemas of a definition with the index of their version.
fn roots(crd: &Value) -> impl Iterator<Item = (usize, &Value)> {
    let versions = list(crd, "/spec/versions").iter().enumerate();
    versions.filter_map(|(i, version)| Some((i, version.pointer("/schema/openAPIV3Schema")?)))
}

/// Returns violations of structural schemas. They are permitted in v1beta1 definitions that preserve unknown
/// fields, and reported in the condition `NonStructuralSchema`.
pub(super) fn violations(crd: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    if truth(crd, "/spec/preserveUnknownFields") {
        errors.invalid("spec.preserveUnknownFields", true, "must be false");
    }
    for (i, root) in roots(crd) {
        schema(root, &format!("spec.versions[{i}].schema.openAPIV3Schema"), Place::Root, &mut errors, 0);
    }
    errors
}

fn has_defaults(schema: &Value, depth: usize) -> bool {
    let inner = |key: &str| schema.get(key).is_some_and(|inner| has_defaults(inner, depth + 1));
    depth <= MAX_DEPTH
        && (schema.get("default").is_some()
            || map(schema, "/properties")
                .into_iter()
                .flatten()
                .any(|(_, field)| has_defaults(field, depth + 1))
            || inner("items")
            || inner("additionalProperties"))
}

fn parts(version: &Value, at: &str, errors: &mut FieldErrors) {
    for (j, column) in list(version, "/additionalPrinterColumns").iter().enumerate() {
        let at = format!("{at}.additionalPrinterColumns[{j}]");
        if text(column, "/name").is_empty() {
            errors.required(format!("{at}.name"), "");
        }
        if !COLUMN_TYPES.contains(&text(column, "/type")) {
            errors.invalid(
                format!("{at}.type"),
                text(column, "/type"),
                format!("must be one of {}", COLUMN_TYPES.join(",")),
            );
        }
    }
    let fields = list(version, "/selectableFields");
    if fields.len() > SELECTABLE {
        errors.too_many(format!("{at}.selectableFields"), fields.len() as u64, SELECTABLE as u64);
    }
    for (field, part, needed) in [
        ("specReplicasPath", ".spec.", true),
        ("statusReplicasPath", ".status.", true),
        ("labelSelectorPath", ".s", false),
    ] {
        let Some(scale) = version.pointer("/subresources/scale") else { break };
        let path = text(scale, &format!("/{field}"));
        let at = format!("{at}.subresources.scale.{field}");
        match (path.is_empty(), needed) {
            (true, true) => errors.required(at, ""),
            (true, false) => {}
            (false, _) if !path.starts_with(part) => {
                errors.invalid(at, path, format!("should be a json path under {part}"));
            }
            _ => {}
        }
    }
}

/// Position of a schema.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// Schema of the object.
    Root,
    /// Schema of a field.
    Field,
    /// Schema of list elements.
    Element,
    /// Inside of `allOf` and similar: may only restrict the outer schema.
    Junctor,
}

fn schema(schema_: &Value, at: &str, place: Place, errors: &mut FieldErrors, depth: usize) {
    if depth > MAX_DEPTH {
        return;
    }
    let kind = text(schema_, "/type");
    let flag = |name: &str| truth(schema_, &format!("/{name}"));
    let (anything, either) =
        (flag("x-kubernetes-preserve-unknown-fields"), flag("x-kubernetes-int-or-string"));
    for unknown in ["$ref", "definitions", "dependencies", "id", "patternProperties", "additionalItems"] {
        if schema_.get(unknown).is_some() {
            errors.forbidden(format!("{at}.{unknown}"), &format!("{unknown} is not supported"));
        }
    }
    if flag("uniqueItems") {
        errors.forbidden(
            format!("{at}.uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        );
    }
    match place {
        Place::Root | Place::Field | Place::Element => {
            if place == Place::Root && !kind.is_empty() && kind != "object" {
                errors.invalid(format!("{at}.type"), kind, "must be object at the root");
            }
            if kind.is_empty() && !anything && !either {
                let why = match place {
                    Place::Root => "must not be empty at the root",
                    Place::Element => "must not be empty for specified array items",
                    _ => "must not be empty for specified object fields",
                };
                errors.required(format!("{at}.type"), why);
            }
            if either && !kind.is_empty() {
                errors.forbidden(format!("{at}.type"), "must be empty if x-kubernetes-int-or-string is true");
            }
            if schema_.get("x-kubernetes-preserve-unknown-fields").is_some_and(|v| v == false) {
                errors.invalid(
                    format!("{at}.x-kubernetes-preserve-unknown-fields"),
                    false,
                    "must be true or undefined",
                );
            }
            if anything && !kind.is_empty() && !["object", "array"].contains(&kind) {
                errors.invalid(
                    format!("{at}.type"),
                    kind,
                    "must be object if x-kubernetes-preserve-unknown-fields is true",
                );
            }
            if flag("x-kubernetes-embedded-resource") && kind != "object" {
                errors.invalid(
                    format!("{at}.type"),
                    kind,
                    "must be object if x-kubernetes-embedded-resource is true",
                );
            }
        }
        Place::Junctor => {
            for only_outside in
                ["type", "default", "additionalProperties", "nullable", "description", "title"]
            {
                // `anyOf` may name either type of int-or-string.
                if schema_.get(only_outside).is_some() && only_outside != "type" {
                    errors.forbidden(format!("{at}.{only_outside}"), "must be undefined to be structural");
                }
            }
        }
    }
    if map(schema_, "/properties").is_some()
        && schema_.get("additionalProperties").is_some_and(|a| a != false)
    {
        errors.forbidden(
            format!("{at}.additionalProperties"),
            "additionalProperties and properties are mutual exclusive",
        );
    }
    if text(schema_, "/x-kubernetes-list-type") == "map" {
        keys(schema_, at, errors);
    }
    if kind == "array" && schema_.get("items").is_none() {
        errors.required(format!("{at}.items"), "must be specified");
    }
    let inside = |place_: Place| if place == Place::Junctor { place } else { place_ };
    for (name, field) in map(schema_, "/properties").into_iter().flatten() {
        schema(field, &format!("{at}.properties[{name}]"), inside(Place::Field), errors, depth + 1);
    }
    for (key, place) in [("items", Place::Element), ("additionalProperties", Place::Field)] {
        if let Some(inner) = schema_.get(key).filter(|inner| inner.is_object()) {
            schema(inner, &format!("{at}.{key}"), inside(place), errors, depth + 1);
        }
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for (i, inner) in list(schema_, &format!("/{key}")).iter().enumerate() {
            schema(inner, &format!("{at}.{key}[{i}]"), Place::Junctor, errors, depth + 1);
        }
    }
    if let Some(inner) = schema_.get("not") {
        schema(inner, &format!("{at}.not"), Place::Junctor, errors, depth + 1);
    }
}

/// Requires that the keys of a keyed list are required or have defaults.
fn keys(schema_: &Value, at: &str, errors: &mut FieldErrors) {
    let keys = list(schema_, "/x-kubernetes-list-map-keys");
    if keys.is_empty() {
        errors.required(
            format!("{at}.x-kubernetes-list-map-keys"),
            "must not be empty if x-kubernetes-list-type is map",
        );
    }
    for key in keys.iter().filter_map(Value::as_str) {
        let required = list(schema_, "/items/required").contains(&json!(key));
        let field = map(schema_, "/items/properties").and_then(|fields| fields.get(key));
        if !required && field.and_then(|f| f.get("default")).is_none() {
            errors.required(
                format!("{at}.items.properties[{key}].default"),
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(root: Value) -> String {
        let mut errors = FieldErrors::default();
        schema(&root, "s", Place::Field, &mut errors, 0);
        errors.lines().join("; ")
    }

    #[test]
    fn what_is_not_structural_is_told() {
        for (root, want) in [
            (json!({"type": "object", "properties": {"a": {"type": "string"}}}), ""),
            (
                json!({"type": "object", "properties": {"a": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}}}),
                "",
            ),
            (
                json!({"type": "object", "properties": {"a": {}}}),
                "s.properties[a].type: Required value: must not be empty for specified object fields",
            ),
            (
                json!({"type": "object", "definitions": {}}),
                "s.definitions: Forbidden: definitions is not supported",
            ),
            (
                json!({"type": "array", "items": {"type": "string"}, "uniqueItems": true}),
                "s.uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            ),
            (
                json!({"type": "object", "properties": {}, "additionalProperties": {"type": "string"}}),
                "s.additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
            ),
            (
                json!({"type": "array", "x-kubernetes-list-type": "map", "items": {"type": "object"}}),
                "s.x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map",
            ),
            (
                json!({"type": "object", "anyOf": [{"default": 1}]}),
                "s.anyOf[0].default: Forbidden: must be undefined to be structural",
            ),
            (json!({"type": "array"}), "s.items: Required value: must be specified"),
        ] {
            assert_eq!(problems(root.clone()), want, "{root}");
        }
    }
}
