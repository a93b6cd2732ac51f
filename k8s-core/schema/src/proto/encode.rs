//! Encodes JSON values as protobuf.
//!
//! Values that do not match their field's type, and unknown fields, are omitted: stored objects were
//! validated before, and a response must not fail half-way.

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{EXTENSIONS, Field, MAGIC, MESSAGES, Shape, Type};

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;

/// Message definition of a built-in type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Definition(&'static str);

impl Definition {
    /// Returns the definition of a kind. `None` for custom resources, and for old versions with other fields.
    #[must_use]
    pub fn of(api_version: &str, kind: &str) -> Option<Definition> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let name = match (group, version) {
            ("", "v1") if matches!(kind, "Status" | "DeleteOptions") => meta(kind),
            ("meta.k8s.io", "v1") if kind == "PartialObjectMetadata" => meta(kind),
            ("apiregistration.k8s.io", _) => {
                format!("kube-aggregator.pkg.apis.apiregistration.{version}.{kind}")
            }
            ("apiextensions.k8s.io", "v1") => format!("{EXTENSIONS}{kind}"),
            _ => format!("api.{}.{version}.{kind}", package(group)?),
        };
        MESSAGES.get_key_value(name.as_str()).map(|(name, _)| Definition(name))
    }

    /// Appends an object as a list element, without `apiVersion` and `kind`.
    pub fn list_element(self, object: &Value, out: &mut Vec<u8>) {
        nested(2, out, |out| fields(self.0, object.as_object(), out));
    }
}

fn meta(kind: &str) -> String {
    format!("apimachinery.pkg.apis.meta.v1.{kind}")
}

/// Returns the Go package of a built-in group.
fn package(group: &str) -> Option<&str> {
    Some(match group {
        "" => "core",
        "apps" | "autoscaling" | "batch" | "extensions" | "policy" => group,
        "rbac.authorization.k8s.io" => "rbac",
        "flowcontrol.apiserver.k8s.io" => "flowcontrol",
        "internal.apiserver.k8s.io" => "apiserverinternal",
        _ => group.strip_suffix(".k8s.io").filter(|name| {
            ["admissionregistration", "authentication", "authorization", "certificates", "coordination"]
                .contains(name)
                || ["discovery", "events", "networking", "node", "resource", "scheduling", "storage"]
                    .contains(name)
                || *name == "storagemigration"
        })?,
    })
}

/// Encodes an object as a body with its type. `None` if the type has no protobuf encoding.
///
/// ```
/// use k8s_schema::proto::{decode, encode};
/// use serde_json::json;
/// let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
/// let bytes = encode(&map).expect("ConfigMaps have an encoding");
/// assert!(bytes.starts_with(b"k8s\0"));
/// assert_eq!(decode(&bytes)?["data"], json!({"k": "v"}));
/// assert!(encode(&json!({"apiVersion": "example.com/v1", "kind": "Shop"})).is_none());
/// # Ok::<(), k8s_schema::proto::ProtoError>(())
/// ```
#[must_use]
pub fn encode(object: &Value) -> Option<Vec<u8>> {
    let name = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (name("apiVersion"), name("kind"));
    let definition = Definition::of(api_version, kind)?;
    let mut out = envelope(api_version, kind);
    nested(2, &mut out, |out| fields(definition.0, object.as_object(), out));
    Some(out)
}

/// Encodes a watch event: its length, then `metav1.WatchEvent` around the object's body. `None` as
/// [`encode`].
#[must_use]
pub fn watch_frame(kind: &str, object: &Value) -> Option<Vec<u8>> {
    let body = encode(object)?;
    let mut out = vec![0; 4];
    bytes(1, kind.as_bytes(), &mut out);
    nested(2, &mut out, |out| bytes(1, &body, out));
    let length = u32::try_from(out.len() - 4).ok()?;
    if let Some(place) = out.get_mut(..4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
    Some(out)
}

/// Head of an encoded list.
///
/// The total length precedes the first element, so a writer of elements must know it in advance.
#[derive(Clone, Debug)]
pub struct ListHead {
    envelope: Vec<u8>,
    metadata: Vec<u8>,
}

impl ListHead {
    /// Creates the head of a list of `api_version` and `kind` with its `ListMeta`.
    #[must_use]
    pub fn new(api_version: &str, kind: &str, metadata: &Value) -> Self {
        let mut all = Vec::new();
        nested(1, &mut all, |out| fields(&meta("ListMeta"), metadata.as_object(), out));
        ListHead { envelope: envelope(api_version, kind), metadata: all }
    }

    /// Returns the encoded head; the elements that follow ([`Definition::list_element`]) have `length` bytes
    /// in total.
    #[must_use]
    pub fn bytes(mut self, length: usize) -> Vec<u8> {
        key(2, BYTES, &mut self.envelope);
        varint((self.metadata.len() + length) as u64, &mut self.envelope);
        self.envelope.extend_from_slice(&self.metadata);
        self.envelope
    }
}

/// Returns magic bytes and `TypeMeta` of `runtime.Unknown`.
fn envelope(api_version: &str, kind: &str) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    nested(1, &mut out, |out| {
        bytes(1, api_version.as_bytes(), out);
        bytes(2, kind.as_bytes(), out);
    });
    out
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

fn key(number: u64, wire: u64, out: &mut Vec<u8>) {
    varint(number << 3 | wire, out);
}

fn integer(number: u64, value: i64, out: &mut Vec<u8>) {
    key(number, VARINT, out);
    varint(value.cast_unsigned(), out);
}

fn bytes(number: u64, value: &[u8], out: &mut Vec<u8>) {
    key(number, BYTES, out);
    varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

/// Appends a length-delimited field whose content `write` appends.
fn nested(number: u64, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    key(number, BYTES, out);
    let start = out.len();
    write(out);
    let mut length = Vec::with_capacity(4);
    varint((out.len() - start) as u64, &mut length);
    out.splice(start..start, length);
}

/// Appends a message's fields.
fn fields(definition: &str, object: Option<&Map<String, Value>>, out: &mut Vec<u8>) {
    let (Some(object), Some(message)) = (object, MESSAGES.get(definition)) else { return };
    for (number, field) in message {
        match (field.name, field.of) {
            ("", Type::Message(inner)) => {
                let start = out.len();
                nested(*number, out, |out| fields(inner, Some(object), out));
                // An empty message: key and length only.
                if out.last() == Some(&0) && out.len() - start <= 3 {
                    out.truncate(start);
                }
            }
            (name, _) => {
                if let Some(value) = object.get(name).filter(|v| !v.is_null()) {
                    one(*number, field, value, out);
                }
            }
        }
    }
}

fn one(number: u64, field: &Field, value: &Value, out: &mut Vec<u8>) {
    match (field.shape, value) {
        (Shape::One, value) => scalar(number, field.of, value, out),
        (Shape::List, Value::Array(items)) => items.iter().for_each(|v| scalar(number, field.of, v, out)),
        (Shape::Map, Value::Object(entries)) => {
            for (name, value) in entries {
                nested(number, out, |out| {
                    bytes(1, name.as_bytes(), out);
                    scalar(2, field.of, value, out);
                });
            }
        }
        _ => {}
    }
}

fn scalar(number: u64, of: Type, value: &Value, out: &mut Vec<u8>) {
    match (of, value) {
        (Type::Text, Value::String(text)) => bytes(number, text.as_bytes(), out),
        (Type::Bytes, Value::String(text)) => {
            if let Ok(raw) = STANDARD.decode(text) {
                bytes(number, &raw, out);
            }
        }
        (Type::Integer, Value::Number(n)) => {
            #[expect(clippy::cast_possible_truncation, reason = "whole numbers may be written as 1e3")]
            let n = n.as_i64().or_else(|| n.as_f64().map(|f| f as i64));
            integer(number, n.unwrap_or_default(), out);
        }
        (Type::Truth, Value::Bool(truth)) => integer(number, i64::from(*truth), out),
        (Type::Number, Value::Number(n)) => {
            key(number, FIXED64, out);
            out.extend_from_slice(&n.as_f64().unwrap_or_default().to_le_bytes());
        }
        (Type::Message(definition), value) => nested(number, out, |out| message(definition, value, out)),
        _ => {}
    }
}

/// Appends a message's content; some types have a special JSON form.
fn message(definition: &str, value: &Value, out: &mut Vec<u8>) {
    match (definition, value) {
        ("apimachinery.pkg.api.resource.Quantity", Value::String(text)) => bytes(1, text.as_bytes(), out),
        ("apimachinery.pkg.api.resource.Quantity", Value::Number(n)) => {
            bytes(1, n.to_string().as_bytes(), out);
        }
        ("apimachinery.pkg.util.intstr.IntOrString", Value::String(text)) => {
            integer(1, 1, out);
            bytes(3, text.as_bytes(), out);
        }
        ("apimachinery.pkg.util.intstr.IntOrString", value) => {
            integer(1, 0, out);
            integer(2, value.as_i64().unwrap_or_default(), out);
        }
        (
            "apimachinery.pkg.apis.meta.v1.Time" | "apimachinery.pkg.apis.meta.v1.MicroTime",
            Value::String(text),
        ) => {
            if let Ok(time) = text.parse::<Timestamp>() {
                // Nanoseconds are positive, also before 1970.
                let nanos = i64::from(time.subsec_nanosecond());
                let (seconds, nanos) = if nanos < 0 {
                    (time.as_second() - 1, nanos + 1_000_000_000)
                } else {
                    (time.as_second(), nanos)
                };
                integer(1, seconds, out);
                integer(2, nanos, out);
            }
        }
        ("apimachinery.pkg.apis.meta.v1.FieldsV1" | "apimachinery.pkg.runtime.RawExtension", value) => {
            bytes(1, value.to_string().as_bytes(), out);
        }
        (definition, Value::Array(_)) if definition.ends_with(".ExtraValue") => {
            if let Some(field) = MESSAGES.get(definition).and_then(|m| m.get(&1)) {
                one(1, field, value, out);
            }
        }
        (definition, value) => match (definition.strip_prefix(EXTENSIONS), value) {
            (Some("JSON"), value) => bytes(1, value.to_string().as_bytes(), out),
            (Some("JSONSchemaPropsOrBool"), Value::Bool(allows)) => integer(1, i64::from(*allows), out),
            (Some("JSONSchemaPropsOrBool"), schema) => {
                integer(1, 1, out);
                scalar(2, Type::Message(SCHEMA), schema, out);
            }
            (Some("JSONSchemaPropsOrArray"), Value::Array(all)) => {
                all.iter().for_each(|schema| scalar(2, Type::Message(SCHEMA), schema, out));
            }
            (Some("JSONSchemaPropsOrStringArray"), Value::Array(all)) => {
                all.iter().for_each(|name| scalar(2, Type::Text, name, out));
            }
            (Some("JSONSchemaPropsOrArray" | "JSONSchemaPropsOrStringArray"), schema) => {
                scalar(1, Type::Message(SCHEMA), schema, out);
            }
            _ => fields(definition, value.as_object(), out),
        },
    }
}

/// Message of a schema in a CustomResourceDefinition.
const SCHEMA: &str = "apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, test_runner::TestRng};
    use serde_json::json;

    use super::*;
    use crate::proto::decode;

    /// Generates a value of a type with random fields, without zero values that an encoding omits.
    fn value(of: Type, depth: usize, rng: &mut TestRng) -> Value {
        let n = rng.next_u32() % 1000 + 1;
        match of {
            Type::Text => format!("t{n}").into(),
            Type::Integer => {
                (if n.is_multiple_of(5) { -i64::from(n) } else { i64::from(n) << (n % 40) }).into()
            }
            Type::Truth => true.into(),
            Type::Bytes => STANDARD.encode(n.to_be_bytes()).into(),
            Type::Number => (f64::from(n) / 8.0 + 0.0625).into(),
            Type::Message(definition) => match definition.rsplit('.').next().unwrap() {
                "Quantity" => format!("{n}Mi").into(),
                "IntOrString" if n.is_multiple_of(2) => format!("{n}%").into(),
                "IntOrString" => n.into(),
                "Time" => format!("{:.0}", Timestamp::from_second(i64::from(n) * 7_654_321).unwrap()).into(),
                "MicroTime" => {
                    format!("{:.6}", Timestamp::from_microsecond((i64::from(n) - 500) * 1_234_567).unwrap())
                        .into()
                }
                "FieldsV1" | "RawExtension" => json!({"f:metadata": {"f:name": {}}, "n": n}),
                "ExtraValue" => json!([format!("e{n}")]),
                "JSON" => json!({"n": [n, null, "x"]}),
                "JSONSchemaPropsOrBool" if n.is_multiple_of(2) => n.is_multiple_of(4).into(),
                "JSONSchemaPropsOrArray" if n.is_multiple_of(2) => {
                    json!([object(SCHEMA, depth + 1, rng), object(SCHEMA, depth + 1, rng)])
                }
                "JSONSchemaPropsOrStringArray" if n.is_multiple_of(2) => json!([format!("p{n}")]),
                "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrStringArray" => {
                    object(SCHEMA, depth + 1, rng).into()
                }
                _ => object(definition, depth + 1, rng).into(),
            },
        }
    }

    fn object(definition: &str, depth: usize, rng: &mut TestRng) -> Map<String, Value> {
        let mut all = Map::new();
        for field in MESSAGES.get(definition).into_iter().flat_map(|m| m.values()) {
            // Wide types are deep, so deeper levels get fewer fields.
            if depth > 0 && !(rng.next_u32() as usize).is_multiple_of(depth * 2) || depth > 12 {
                continue;
            }
            match (field.name, field.of, field.shape) {
                ("", Type::Message(inner), _) => all.extend(object(inner, depth + 1, rng)),
                (name, of, Shape::One) => drop(all.insert(name.into(), value(of, depth, rng))),
                (name, of, Shape::List) => {
                    all.insert(name.into(), json!([value(of, depth, rng), value(of, depth, rng)]));
                }
                (name, of, Shape::Map) => {
                    all.insert(name.into(), json!({"k": value(of, depth, rng), "l": value(of, depth, rng)}));
                }
            }
        }
        all
    }

    /// Types that are sent as bodies: those with metadata.
    fn kinds() -> Vec<(String, String)> {
        let groups = [
            "",
            "apps",
            "autoscaling",
            "batch",
            "policy",
            "rbac.authorization.k8s.io",
            "flowcontrol.apiserver.k8s.io",
            "apiregistration.k8s.io",
            "apiextensions.k8s.io",
            "admissionregistration.k8s.io",
            "authentication.k8s.io",
            "authorization.k8s.io",
            "certificates.k8s.io",
            "coordination.k8s.io",
            "discovery.k8s.io",
            "events.k8s.io",
            "networking.k8s.io",
            "node.k8s.io",
            "resource.k8s.io",
            "scheduling.k8s.io",
            "storage.k8s.io",
        ];
        let mut all = Vec::new();
        for name in MESSAGES.keys() {
            let mut parts = name.rsplit('.');
            let (kind, version) = (parts.next().unwrap(), parts.next().unwrap());
            for group in groups {
                let api_version =
                    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
                let whole = MESSAGES[name].values().any(|f| f.name == "metadata");
                if whole && Definition::of(&api_version, kind) == Some(Definition(name)) {
                    all.push((api_version, kind.to_owned()));
                }
            }
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn what_was_encoded_decodes_to_the_same_for_every_kind(rng in any::<u64>().prop_perturb(|_, rng| rng)) {
            let mut rng = rng;
            let kinds = kinds();
            prop_assert!(kinds.len() > 60, "{}", kinds.len());
            for (api_version, kind) in kinds {
                let definition = Definition::of(&api_version, &kind).unwrap();
                let mut object = object(definition.0, 0, &mut rng);
                object.insert("apiVersion".into(), api_version.into());
                object.insert("kind".into(), kind.into());
                let object = Value::from(object);
                let decoded = decode(&encode(&object).unwrap()).unwrap();
                prop_assert_eq!(decoded, object);
            }
        }
    }

    #[test]
    fn as_upstream_writes_it() {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "creationTimestamp": null}, "data": {"k": "v"}});
        let body =
            b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x0d\x0a\x03\x0a\x01a\x12\x06\x0a\x01k\x12\x01v";
        assert_eq!(encode(&object).unwrap(), body);
        let frame = watch_frame("ADDED", &object).unwrap();
        assert_eq!(frame[..4], u32::try_from(frame.len() - 4).unwrap().to_be_bytes());
        assert_eq!(frame[4..11], *b"\x0a\x05ADDED");
        assert!(frame.ends_with(body));
        // Values of the wrong type are omitted.
        let odd =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": 7, "data": ["x"], "immutable": "x"});
        assert_eq!(
            decode(&encode(&odd).unwrap()).unwrap(),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}})
        );
    }

    #[test]
    fn types_that_only_look_like_built_in_ones_have_no_form() {
        for (api_version, kind) in [
            ("apps.example.com/v1", "Deployment"),
            ("example.com/v1", "Status"),
            ("apps.k8s.io/v1", "Deployment"),
            ("v1", "Nonsense"),
        ] {
            assert_eq!(Definition::of(api_version, kind), None, "{api_version} {kind}");
        }
    }
}
