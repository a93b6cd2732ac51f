//! The OpenAPI v2 document in protobuf: gnostic's `openapi.v2.Document`, which kubectl requests.
//!
//! Field numbers are those of gnostic's `OpenAPIv2.proto`. Parts that the document of [`super`] never has are
//! omitted.

use serde_json::Value;

use crate::value::{array_at, object_at, str_at};

/// A message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.0.push(n.to_le_bytes()[0] | 0x80);
            n >>= 7;
        }
        self.0.push(n.to_le_bytes()[0]);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, field: u64, inner: &Message) {
        self.bytes(field, &inner.0);
    }

    fn text(&mut self, field: u64, text: &str) {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
    }

    fn truth(&mut self, field: u64, truth: bool) {
        if truth {
            self.varint(field << 3);
            self.varint(1);
        }
    }

    fn whole(&mut self, field: u64, value: Option<&Value>) {
        if let Some(n) = value.and_then(Value::as_u64) {
            self.varint(field << 3);
            self.varint(n);
        }
    }

    fn number(&mut self, field: u64, value: Option<&Value>) {
        if let Some(n) = value.and_then(Value::as_f64) {
            self.varint(field << 3 | 1);
            self.0.extend_from_slice(&n.to_le_bytes());
        }
    }

    /// Appends a message with name and value: a map entry.
    fn named(&mut self, field: u64, name: &str, value: &Message) {
        let mut entry = Message::default();
        entry.text(1, name);
        entry.message(2, value);
        self.message(field, &entry);
    }

    /// Appends the fields of an object that begin with `x-`.
    fn extensions(&mut self, field: u64, object: &Value) {
        for (name, value) in
            object_at(object, "").into_iter().flatten().filter(|(name, _)| name.starts_with("x-"))
        {
            self.named(field, name, &any(value));
        }
    }
}

/// Encodes any value as YAML (JSON is YAML).
fn any(value: &Value) -> Message {
    let mut message = Message::default();
    message.text(2, &format!("{value}\n"));
    message
}

/// Encodes an OpenAPI v2 document as `gnostic.openapi.v2.Document`.
pub(super) fn document(json: &Value) -> Vec<u8> {
    let mut document = Message::default();
    document.text(1, str_at(json, "/swagger"));
    let mut info = Message::default();
    info.text(1, str_at(json, "/info/title"));
    info.text(2, str_at(json, "/info/version"));
    document.message(2, &info);
    let mut paths = Message::default();
    for (path, item) in object_at(json, "/paths").into_iter().flatten() {
        paths.named(2, path, &path_item(item));
    }
    document.message(8, &paths);
    let mut definitions = Message::default();
    for (name, definition) in object_at(json, "/definitions").into_iter().flatten() {
        definitions.named(1, name, &schema(definition));
    }
    document.message(9, &definitions);
    document.0
}

fn path_item(item: &Value) -> Message {
    let mut message = Message::default();
    let methods =
        [("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("options", 6), ("head", 7), ("patch", 8)];
    for (method, field) in methods {
        if let Some(one) = item.get(method) {
            message.message(field, &operation(one));
        }
    }
    message
}

fn operation(operation: &Value) -> Message {
    let mut message = Message::default();
    message.text(5, str_at(operation, "/operationId"));
    for one in array_at(operation, "/parameters") {
        // Item, parameter, non-body, query.
        let mut query = Message::default();
        query.text(2, str_at(one, "/in"));
        query.text(3, str_at(one, "/description"));
        query.text(4, str_at(one, "/name"));
        query.text(6, str_at(one, "/type"));
        let mut nested = query;
        for field in [3, 2, 1] {
            let mut outer = Message::default();
            outer.message(field, &nested);
            nested = outer;
        }
        message.message(8, &nested);
    }
    let mut responses = Message::default();
    for (code, answer) in object_at(operation, "/responses").into_iter().flatten() {
        let mut response = Message::default();
        response.text(1, str_at(answer, "/description"));
        if let Some(of) = answer.get("schema") {
            let mut item = Message::default();
            item.message(1, &schema(of));
            response.message(2, &item);
        }
        let mut value = Message::default();
        value.message(1, &response);
        responses.named(1, code, &value);
    }
    message.message(9, &responses);
    message.extensions(13, operation);
    message
}

fn schema(schema_: &Value) -> Message {
    let mut message = Message::default();
    let reference = match array_at(schema_, "/allOf") {
        // A reference with a description beside it.
        [only] => str_at(only, "/$ref"),
        _ => str_at(schema_, "/$ref"),
    };
    message.text(1, reference);
    message.text(2, str_at(schema_, "/format"));
    message.text(3, str_at(schema_, "/title"));
    message.text(4, str_at(schema_, "/description"));
    if let Some(default) = schema_.get("default") {
        message.message(5, &any(default));
    }
    message.number(6, schema_.get("multipleOf"));
    message.number(7, schema_.get("maximum"));
    message.number(9, schema_.get("minimum"));
    message.whole(11, schema_.get("maxLength"));
    message.whole(12, schema_.get("minLength"));
    message.text(13, str_at(schema_, "/pattern"));
    message.whole(14, schema_.get("maxItems"));
    message.whole(15, schema_.get("minItems"));
    message.truth(16, schema_.get("uniqueItems") == Some(&Value::Bool(true)));
    message.whole(17, schema_.get("maxProperties"));
    message.whole(18, schema_.get("minProperties"));
    array_at(schema_, "/required").iter().filter_map(Value::as_str).for_each(|name| message.text(19, name));
    array_at(schema_, "/enum").iter().for_each(|value| message.message(20, &any(value)));
    if let Some(rest) = schema_.get("additionalProperties") {
        let mut item = Message::default();
        match rest {
            Value::Bool(allowed) => item.truth(2, *allowed),
            of => item.message(1, &schema(of)),
        }
        message.message(21, &item);
    }
    let kind = str_at(schema_, "/type");
    if !kind.is_empty() {
        let mut item = Message::default();
        item.text(1, kind);
        message.message(22, &item);
    }
    if let Some(element) = schema_.get("items") {
        let mut item = Message::default();
        item.message(1, &schema(element));
        message.message(23, &item);
    }
    if reference.is_empty() {
        array_at(schema_, "/allOf").iter().for_each(|one| message.message(24, &schema(one)));
    }
    if let Some(fields) = object_at(schema_, "/properties") {
        let mut properties = Message::default();
        for (name, field) in fields {
            properties.named(1, name, &schema(field));
        }
        message.message(25, &properties);
    }
    message.extensions(31, schema_);
    message
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_small_document() {
        let bytes = document(
            &json!({"swagger": "2.0", "info": {"title": "K"}, "definitions": {"A": {"type": "object"}}}),
        );
        let want: &[u8] = &[
            0x0a, 3, b'2', b'.', b'0', // swagger
            0x12, 3, 0x0a, 1, b'K', // info
            0x42, 0, // paths
            0x4a, 18, 0x0a, 16, // definitions, the first
            0x0a, 1, b'A', // its name
            0x12, 11, 0xb2, 1, 8, 0x0a, 6, b'o', b'b', b'j', b'e', b'c', b't', // its type
        ];
        assert_eq!(bytes, want);
    }
}
