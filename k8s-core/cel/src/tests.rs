//! Tests of whole expressions, and of robustness.

mod laws;
mod meaning;

use serde_json::{Value as Json, json};

use super::{Activation, Decl, Env, Meter, Value};

/// A schema with every kind of type.
fn schema() -> Json {
    json!({"type": "object", "properties": {
        "name": {"type": "string", "maxLength": 64}, "n": {"type": "integer"}, "d": {"type": "number"}, "b": {"type": "boolean"},
        "list": {"type": "array", "items": {"type": "integer"}, "maxItems": 100},
        "names": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 20},
        "map": {"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 10},
        "items": {"type": "array", "maxItems": 64, "items": {"type": "object", "properties": {"name": {"type": "string"}, "port": {"type": "integer"}}}},
        "when": {"type": "string", "format": "date-time"}, "how": {"type": "string", "format": "duration"}, "raw": {"type": "string", "format": "byte"},
        "any": {"x-kubernetes-int-or-string": true}, "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        "namespace": {"type": "string"}, "a-b": {"type": "string"}, "a/b": {"type": "string"}, "a.b": {"type": "string"}, "a__b": {"type": "string"},
        "maybe": {"type": "string", "nullable": true}, "absent": {"type": "object", "properties": {"x": {"type": "integer"}}},
    }})
}

fn object() -> Json {
    json!({
        "name": "web-1", "n": 7, "d": 2, "b": true, "list": [3, 1, 2], "names": ["a", "bb", "ccc"], "map": {"k": "v", "k2": "w"},
        "items": [{"name": "a1", "port": 80}, {"name": "a2", "port": 443}],
        "when": "2026-01-02T03:04:05Z", "how": "90s", "raw": "aGk=", "any": "50%", "open": {"x": {"y": [1]}},
        "namespace": "ns", "a-b": "dash", "a/b": "slash", "a.b": "dot", "a__b": "under", "maybe": null,
    })
}

/// Returns the result formatted with CEL's `%s`, or the error.
fn told(text: &str) -> String {
    let schema = schema();
    let env = Env::new().variable("self", Decl::of_schema(&schema)).variable("x", Decl::any());
    let (object, x) = (object(), json!({"i": 1, "d": 1.5, "s": "t", "l": [1, "a", null], "o": {"p": true}}));
    let program = match env.compile(text) {
        Ok(program) => program,
        Err(errors) => return errors.0.iter().map(|e| e.message.clone()).collect::<Vec<_>>().join("; "),
    };
    let activation = Activation::new().json("self", &object).json("x", &x);
    match program.evaluate(&activation, &mut Meter::new(1_000_000)) {
        Ok(value) => show(&value),
        Err(error) => format!("error: {error}"),
    }
}

fn show(value: &Value<'_>) -> String {
    match value {
        Value::String(text) => format!("{:?}", &**text),
        Value::Uint(n) => format!("{n}u"),
        Value::Bytes(bytes) => format!("b{:?}", String::from_utf8_lossy(bytes)),
        Value::Optional(None) => "none".into(),
        Value::Optional(Some(value)) => format!("some({})", show(value)),
        Value::List(list) => {
            let items: Vec<String> = list.iter().map(|item| show(&item.unwrap())).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Map(map) => {
            let entries =
                map.entries().map(|entry| entry.map(|(k, v)| format!("{}: {}", show(&k), show(&v))).unwrap());
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        Value::Double(n) => format!("{n:?}"),
        Value::Type(name) => name.to_string(),
        value => super::library::text_of(value).unwrap_or_else(|| value.type_name().to_owned()),
    }
}
