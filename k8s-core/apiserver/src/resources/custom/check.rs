//! Schema validation of custom resources: types, limits, formats, and combinations of schemas.
//!
//! Messages are those of upstream's validator. A [`Check`] is compiled once per version of a definition.
//! Validation is total and linear in the value (once more per alternative of `anyOf` and similar).

mod format;
mod pattern;

use std::collections::{BTreeMap, HashSet};

use k8s_schema::MAX_DEPTH;
use pattern::{Pattern, Room};
use serde_json::Value;

use crate::{invalid::FieldErrors, value::array_at};

/// A definition's schema with its compiled CEL rules.
#[derive(Debug, Default)]
pub(super) struct Check {
    kind: String,
    nullable: bool,
    int_or_string: bool,
    embedded: bool,
    format: String,
    pattern: Option<Pattern>,
    values: Vec<Value>,
    minimum: Option<(f64, bool)>,
    maximum: Option<(f64, bool)>,
    multiple_of: Option<f64>,
    length: (Option<u64>, Option<u64>),
    items: (Option<u64>, Option<u64>),
    properties: (Option<u64>, Option<u64>),
    required: Vec<String>,
    unique: bool,
    /// `x-kubernetes-list-type`: elements are unique by value (an empty list) or by these keys.
    list_keys: Option<Vec<String>>,
    fields: BTreeMap<String, Check>,
    rest: Option<Box<Check>>,
    element: Option<Box<Check>>,
    all_of: Vec<Check>,
    any_of: Vec<Check>,
    one_of: Vec<Check>,
    not: Option<Box<Check>>,
}

impl Check {
    /// Compiles a schema; errors of patterns are reported at their paths.
    pub(super) fn new(schema: &Value, path: &str, errors: &mut FieldErrors) -> Self {
        Self::compile(schema, path, errors, &mut Room::default(), 0)
    }

    fn compile(schema: &Value, path: &str, errors: &mut FieldErrors, room: &mut Room, depth: usize) -> Self {
        if depth > MAX_DEPTH {
            return Check::default();
        }
        let text = |key: &str| schema.get(key).and_then(Value::as_str).unwrap_or_default();
        let flag = |key: &str| schema.get(key) == Some(&Value::Bool(true));
        let whole = |key: &str| schema.get(key).and_then(Value::as_u64);
        let number = |key: &str| schema.get(key).and_then(Value::as_f64);
        let texts = |key: &str| -> Vec<String> {
            array_at(schema, &format!("/{key}")).iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let pattern = schema.get("pattern").and_then(Value::as_str).and_then(|pattern| {
            Pattern::new(pattern, room)
                .map_err(|e| {
                    errors.invalid(
                        format!("{path}.pattern"),
                        pattern,
                        format!("must be a valid regular expression, but isn't: {e}"),
                    );
                })
                .ok()
        });
        let many = |key: &str, errors: &mut FieldErrors, room: &mut Room| -> Vec<Check> {
            let all = array_at(schema, &format!("/{key}")).iter().enumerate();
            all.map(|(i, s)| Self::compile(s, &format!("{path}.{key}[{i}]"), errors, room, depth + 1))
                .collect()
        };
        let (all_of, any_of, one_of) =
            (many("allOf", errors, room), many("anyOf", errors, room), many("oneOf", errors, room));
        let one = |key: &str, errors: &mut FieldErrors, room: &mut Room| {
            let schema = schema.get(key).filter(|s| s.is_object())?;
            Some(Box::new(Self::compile(schema, &format!("{path}.{key}"), errors, room, depth + 1)))
        };
        let (not, rest, element) =
            (one("not", errors, room), one("additionalProperties", errors, room), one("items", errors, room));
        let fields = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
        let fields = fields
            .map(|(name, schema)| {
                let path = format!("{path}.properties[{name}]");
                (name.clone(), Self::compile(schema, &path, errors, room, depth + 1))
            })
            .collect();
        Check {
            kind: text("type").to_owned(),
            nullable: flag("nullable"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            embedded: flag("x-kubernetes-embedded-resource"),
            format: text("format").to_owned(),
            pattern,
            values: array_at(schema, "/enum").to_vec(),
            minimum: number("minimum").map(|n| (n, flag("exclusiveMinimum"))),
            maximum: number("maximum").map(|n| (n, flag("exclusiveMaximum"))),
            multiple_of: number("multipleOf").filter(|n| *n > 0.0),
            length: (whole("minLength"), whole("maxLength")),
            items: (whole("minItems"), whole("maxItems")),
            properties: (whole("minProperties"), whole("maxProperties")),
            required: texts("required"),
            unique: flag("uniqueItems"),
            list_keys: match text("x-kubernetes-list-type") {
                "map" => Some(texts("x-kubernetes-list-map-keys")),
                "set" => Some(Vec::new()),
                _ => None,
            },
            fields,
            rest,
            element,
            all_of,
            any_of,
            one_of,
            not,
        }
    }

    /// Validates an object, without metadata, which the server validates.
    pub(super) fn object(&self, object: &Value, errors: &mut FieldErrors) {
        self.value(object, "", errors, 0);
    }

    /// Validates the schema's defaults against their schemas.
    pub(super) fn defaults(&self, schema: &Value, path: &str, errors: &mut FieldErrors, depth: usize) {
        if depth > MAX_DEPTH {
            return;
        }
        if let Some(default) = schema.get("default") {
            let at = format!("{path}.default");
            if has_unknown(schema, default, depth) {
                errors.invalid(&at, default.clone(), "must not have unknown fields");
            }
            self.value(default, &at, errors, depth);
        }
        for (name, field) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            if let Some(check) = self.fields.get(name) {
                check.defaults(field, &format!("{path}.properties[{name}]"), errors, depth + 1);
            }
        }
        for (key, check) in [("items", &self.element), ("additionalProperties", &self.rest)] {
            if let (Some(check), Some(inner)) = (check, schema.get(key)) {
                check.defaults(inner, &format!("{path}.{key}"), errors, depth + 1);
            }
        }
    }

    fn value(&self, value: &Value, path: &str, errors: &mut FieldErrors, depth: usize) {
        if depth > MAX_DEPTH || (value.is_null() && self.nullable) {
            return;
        }
        if !self.fits(value) {
            let want = if self.int_or_string { "integer,string" } else { &self.kind };
            let have = type_name(value);
            errors.invalid(path, have, format!("{path} in body must be of type {want}: {have:?}"));
            return;
        }
        let place = if path.is_empty() { "<nil>" } else { path };
        if !self.values.is_empty() && !self.values.contains(value) {
            let supported: Vec<String> =
                self.values.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
            errors.not_supported(place, value.clone(), &supported);
        }
        match value {
            Value::Number(_) => self.number(value, path, errors),
            Value::String(text) => self.text(text, path, errors),
            Value::Array(items) => self.list(items, value, path, errors, depth),
            Value::Object(map) => self.map(map, value, path, errors, depth),
            Value::Null | Value::Bool(_) => {}
        }
        self.combinations(value, path, errors, depth);
    }

    fn fits(&self, value: &Value) -> bool {
        if self.int_or_string {
            return value.is_string() || value.is_i64() || value.is_u64();
        }
        match self.kind.as_str() {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "number" => value.is_number(),
            "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0),
            _ => true,
        }
    }

    fn number(&self, value: &Value, path: &str, errors: &mut FieldErrors) {
        let Some(n) = value.as_f64() else { return };
        let mut breach = |what: &str, limit: f64| {
            errors.invalid(path, value.clone(), format!("{path} in body should be {what} {limit}"));
        };
        match self.minimum {
            Some((least, true)) if n <= least => breach("greater than", least),
            Some((least, false)) if n < least => breach("greater than or equal to", least),
            _ => {}
        }
        match self.maximum {
            Some((most, true)) if n >= most => breach("less than", most),
            Some((most, false)) if n > most => breach("less than or equal to", most),
            _ => {}
        }
        if let Some(step) = self.multiple_of.filter(|step| (n / step).fract() != 0.0) {
            breach("a multiple of", step);
        }
        let fits = match self.format.as_str() {
            "int32" => value.as_i64().is_none_or(|n| i32::try_from(n).is_ok()),
            _ => true,
        };
        if !fits {
            let format = &self.format;
            errors.invalid(path, value.clone(), format!("{path} in body must be of type {format}: {value}"));
        }
    }

    fn text(&self, text: &str, path: &str, errors: &mut FieldErrors) {
        let length = text.chars().count() as u64;
        if let Some(most) = self.length.1.filter(|most| length > *most) {
            errors.too_long(path, usize::try_from(most).unwrap_or(usize::MAX));
        }
        if let Some(least) = self.length.0.filter(|least| length < *least) {
            errors.invalid(path, text, format!("{path} in body should be at least {least} chars long"));
        }
        if let Some(pattern) = self.pattern.as_ref().filter(|p| !p.is_match(text)) {
            errors.invalid(path, text, format!("{path} in body should match '{pattern}'"));
        }
        if !format::matches(&self.format, text) {
            let format = &self.format;
            errors.invalid(path, text, format!("{path} in body must be of type {format}: {text:?}"));
        }
    }

    fn list(&self, items: &[Value], value: &Value, path: &str, errors: &mut FieldErrors, depth: usize) {
        let length = items.len() as u64;
        if let Some(most) = self.items.1.filter(|most| length > *most) {
            errors.too_many(path, length, most);
        }
        if let Some(least) = self.items.0.filter(|least| length < *least) {
            errors.invalid(path, value.clone(), format!("{path} in body should have at least {least} items"));
        }
        if let Some(check) = &self.element {
            for (i, item) in items.iter().enumerate() {
                check.value(item, &format!("{path}[{i}]"), errors, depth + 1);
            }
        }
        let keys = match &self.list_keys {
            Some(keys) => keys.as_slice(),
            None if self.unique => &[],
            None => return,
        };
        let mut seen = HashSet::new();
        for (i, item) in items.iter().enumerate() {
            let id = if keys.is_empty() {
                item.clone()
            } else {
                keys.iter().filter_map(|k| Some((k.clone(), item.get(k)?.clone()))).collect()
            };
            if !seen.insert(id.clone()) {
                errors.duplicate(format!("{path}[{i}]"), id);
            }
        }
    }

    fn map(
        &self,
        map: &serde_json::Map<String, Value>,
        value: &Value,
        path: &str,
        errors: &mut FieldErrors,
        depth: usize,
    ) {
        let below = |name: &str| {
            let name = k8s_schema::paths::part(name);
            if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
        };
        let length = map.len() as u64;
        if let Some(most) = self.properties.1.filter(|most| length > *most) {
            errors.too_many(path, length, most);
        }
        if let Some(least) = self.properties.0.filter(|least| length < *least) {
            errors.invalid(
                path,
                value.clone(),
                format!("{path} in body should have at least {least} properties"),
            );
        }
        for name in self.required.iter().filter(|name| !map.contains_key(*name)) {
            errors.required(below(name), "");
        }
        if self.embedded && depth > 0 {
            for name in ["apiVersion", "kind"] {
                if map.get(name).and_then(Value::as_str).unwrap_or_default().is_empty() {
                    errors.required(below(name), "must not be empty");
                }
            }
        }
        for (name, child) in map {
            // The server validates metadata.
            if (depth == 0 || self.embedded) && name == "metadata" {
                continue;
            }
            if let Some(check) = self.fields.get(name) {
                check.value(child, &below(name), errors, depth + 1);
            } else if let Some(check) = &self.rest {
                check.value(child, &below(name), errors, depth + 1);
            }
        }
    }

    fn combinations(&self, value: &Value, path: &str, errors: &mut FieldErrors, depth: usize) {
        let holds = |check: &&Check| {
            let mut found = FieldErrors::default();
            check.value(value, path, &mut found, depth + 1);
            found.is_empty()
        };
        for check in &self.all_of {
            check.value(value, path, errors, depth + 1);
        }
        let mut breach = |what: String| {
            let place = if path.is_empty() { "<nil>" } else { path };
            errors.invalid(place, value.clone(), format!("{place} in body {what}"));
        };
        if !self.any_of.is_empty() && !self.any_of.iter().any(|check| holds(&check)) {
            breach("must validate at least one schema (anyOf)".into());
        }
        if !self.one_of.is_empty() {
            let valid = self.one_of.iter().filter(holds).count();
            let found =
                if valid == 0 { "none valid".to_owned() } else { format!("{valid} valid alternatives") };
            if valid != 1 {
                breach(format!("must validate one and only one schema (oneOf). Found {found}"));
            }
        }
        if self.not.as_deref().is_some_and(|check| holds(&check)) {
            breach("must not validate the schema (not)".into());
        }
    }
}

pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Returns true if a value has fields that its schema would prune.
fn has_unknown(schema: &Value, value: &Value, depth: usize) -> bool {
    let flag = |name: &str| schema.get(name).is_some_and(|v| v == true);
    let kept = |name: &str| {
        let embedded = flag("x-kubernetes-embedded-resource");
        flag("x-kubernetes-preserve-unknown-fields")
            || (embedded && ["apiVersion", "kind", "metadata"].contains(&name))
    };
    match value {
        _ if depth > MAX_DEPTH || *schema == true => false,
        Value::Object(map) => map.iter().any(|(name, value)| {
            let field = schema.get("properties").and_then(|fields| fields.get(name));
            match field.or_else(|| schema.get("additionalProperties").filter(|rest| **rest != false)) {
                Some(field) => has_unknown(field, value, depth + 1),
                None => !kept(name),
            }
        }),
        Value::Array(items) => {
            schema.get("items").is_some_and(|schema| items.iter().any(|v| has_unknown(schema, v, depth + 1)))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Returns paths and messages of the causes for a value of `spec`.
    fn breaches(schema: Value, value: Value) -> Vec<String> {
        let schema = json!({"type": "object", "properties": {"spec": schema}});
        let mut errors = FieldErrors::default();
        let check = Check::new(&schema, "schema", &mut errors);
        assert!(errors.is_empty());
        check.object(&json!({"metadata": {"name": 1}, "spec": value}), &mut errors);
        errors.lines()
    }

    #[test]
    fn what_each_keyword_says() {
        // Schema, value, expected cause; empty if none.
        let table = [
            (
                json!({"type": "integer", "maximum": 10}),
                json!(11),
                "spec: Invalid value: 11: spec in body should be less than or equal to 10",
            ),
            (
                json!({"type": "integer", "minimum": 1, "exclusiveMinimum": true}),
                json!(1),
                "spec: Invalid value: 1: spec in body should be greater than 1",
            ),
            (
                json!({"type": "number", "multipleOf": 0.5}),
                json!(0.7),
                "spec: Invalid value: 0.7: spec in body should be a multiple of 0.5",
            ),
            (
                json!({"type": "integer"}),
                json!("x"),
                "spec: Invalid value: \"string\": spec in body must be of type integer: \"string\"",
            ),
            (
                json!({"type": "string"}),
                json!(3),
                "spec: Invalid value: \"integer\": spec in body must be of type string: \"integer\"",
            ),
            (json!({"type": "string", "nullable": true}), json!(null), ""),
            (
                json!({"type": "string", "enum": ["a", "b"]}),
                json!("c"),
                "spec: Unsupported value: \"c\": supported values: \"a\", \"b\"",
            ),
            (
                json!({"type": "string", "pattern": "^a+$"}),
                json!("b"),
                "spec: Invalid value: \"b\": spec in body should match '^a+$'",
            ),
            (
                json!({"type": "string", "minLength": 2}),
                json!("b"),
                "spec: Invalid value: \"b\": spec in body should be at least 2 chars long",
            ),
            (
                json!({"type": "string", "maxLength": 2}),
                json!("bbb"),
                "spec: Too long: may not be more than 2 bytes",
            ),
            (
                json!({"type": "string", "format": "date-time"}),
                json!("today"),
                "spec: Invalid value: \"today\": spec in body must be of type date-time: \"today\"",
            ),
            (
                json!({"type": "array", "items": {"type": "string"}, "maxItems": 1}),
                json!(["a", "b"]),
                "spec: Too many: 2: must have at most 1 item",
            ),
            (
                json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"}),
                json!(["a", "a"]),
                "spec[1]: Duplicate value: \"a\"",
            ),
            (
                json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"]}),
                json!([{"n": 1}, {"n": 2}, {"n": 1}]),
                "spec[2]: Duplicate value: {\"n\":1}",
            ),
            (json!({"type": "object", "required": ["a"]}), json!({}), "spec.a: Required value"),
            (
                json!({"type": "object", "minProperties": 1}),
                json!({}),
                "spec: Invalid value: {}: spec in body should have at least 1 properties",
            ),
            (
                json!({"type": "object", "additionalProperties": {"type": "integer"}}),
                json!({"k": "v"}),
                "spec.k: Invalid value: \"string\": spec.k in body must be of type integer: \"string\"",
            ),
            (json!({"x-kubernetes-int-or-string": true}), json!(1), ""),
            (
                json!({"x-kubernetes-int-or-string": true}),
                json!(true),
                "spec: Invalid value: \"boolean\": spec in body must be of type integer,string: \"boolean\"",
            ),
            (
                json!({"type": "integer", "anyOf": [{"minimum": 5}, {"maximum": 1}]}),
                json!(3),
                "spec: Invalid value: 3: spec in body must validate at least one schema (anyOf)",
            ),
            (
                json!({"type": "integer", "oneOf": [{"minimum": 1}, {"maximum": 5}]}),
                json!(3),
                "spec: Invalid value: 3: spec in body must validate one and only one schema (oneOf). Found 2 valid alternatives",
            ),
            (
                json!({"type": "integer", "not": {"minimum": 1}}),
                json!(3),
                "spec: Invalid value: 3: spec in body must not validate the schema (not)",
            ),
            (
                json!({"type": "integer", "allOf": [{"minimum": 5}]}),
                json!(3),
                "spec: Invalid value: 3: spec in body should be greater than or equal to 5",
            ),
            (
                json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}),
                json!({"kind": "Pod"}),
                "spec.apiVersion: Required value: must not be empty",
            ),
        ];
        for (schema, value, want) in table {
            let found = breaches(schema.clone(), value);
            assert_eq!(found.join("; "), want, "{schema}");
        }
    }

    #[test]
    fn defaults_have_no_fields_that_would_be_taken_out() {
        let refused = "x.default: Invalid value: {\"a\":1,\"b\":2}: must not have unknown fields";
        let a = json!({"a": {"type": "integer"}});
        for (schema, want) in [
            (json!({"type": "object", "properties": a}), refused),
            (json!({"type": "object", "properties": a, "x-kubernetes-preserve-unknown-fields": true}), ""),
            (json!({"type": "object", "additionalProperties": {"type": "integer"}}), ""),
            (json!({"type": "object", "additionalProperties": true}), ""),
        ] {
            let mut schema = schema;
            schema["default"] = json!({"a": 1, "b": 2});
            let mut errors = FieldErrors::default();
            let check = Check::new(&schema, "x", &mut errors);
            check.defaults(&schema, "x", &mut errors, 0);
            assert_eq!(errors.lines().join("; "), want, "{schema}");
        }
    }

    #[test]
    fn bad_patterns_are_found_when_the_definition_is_made() {
        let mut errors = FieldErrors::default();
        Check::new(&json!({"properties": {"a": {"type": "string", "pattern": "("}}}), "x", &mut errors);
        assert!(errors.lines()[0].starts_with("x.properties[a].pattern: Invalid value: \"(\""));
        let mut errors = FieldErrors::default();
        Check::new(&json!({"pattern": "(((a{99}){99}){99}){99}"}), "x", &mut errors);
        assert!(!errors.is_empty(), "a pattern that would take all memory is refused");
    }
}
