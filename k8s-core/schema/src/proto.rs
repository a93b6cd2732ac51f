//! Protobuf encoding of built-in types: decoded to JSON values, and encoded from them ([`encode`]).
//!
//! client-go sends its built-in types in this encoding: four magic bytes, then a `runtime.Unknown` message
//! with the type and the object. `messages.txt` lists field numbers, names and types of the wire format.
//! Decoded values are processed like JSON.
//!
//! Ours, because generated message types would be a second copy of every API type, and a conversion of each;
//! a table of field numbers reads and writes the same values as JSON does.
//!
//! Guarantees: decoding and encoding are total. Unknown fields are skipped; malformed input is an error.
//! Encoded values decode to the same value, except for JSON values that protobuf cannot express (empty lists,
//! empty strings).

mod encode;

pub use encode::{Definition, ListHead, encode, watch_frame};

use std::{
    collections::{BTreeMap, HashMap},
    sync::LazyLock,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::MAX_DEPTH;

/// Magic bytes of every body.
const MAGIC: &[u8] = b"k8s\0";

/// Errors of decoding a body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtoError {
    /// The body lacks the magic bytes.
    #[error("the body does not begin with the protobuf magic number")]
    Magic,
    /// The body is truncated or malformed.
    #[error("proto: {0}")]
    Malformed(&'static str),
    /// The type has no protobuf definition.
    #[error("proto: no kind {kind:?} in version {api_version:?} is known in protobuf")]
    UnknownType {
        /// `apiVersion` in the body.
        api_version: String,
        /// Kind in the body.
        kind: String,
    },
}

const TRUNCATED: ProtoError = ProtoError::Malformed("unexpected end of the body");

/// Fields that Go's encoder always writes and that JSON omits if they are zero or false. (All other fields
/// are written only if they are set.)
const PLAIN: [&str; 29] = [
    "generation",
    "observedGeneration",
    "minReadySeconds",
    "hostPort",
    "nodePort",
    "healthCheckNodePort",
    "initialDelaySeconds",
    "timeoutSeconds",
    "periodSeconds",
    "successThreshold",
    "failureThreshold",
    "readyReplicas",
    "availableReplicas",
    "updatedReplicas",
    "unavailableReplicas",
    "fullyLabeledReplicas",
    "active",
    "succeeded",
    "failed",
    "hostNetwork",
    "hostPID",
    "hostIPC",
    "stdin",
    "stdinOnce",
    "tty",
    "readOnly",
    "paused",
    "publishNotReadyAddresses",
    "unschedulable",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    One,
    List,
    Map,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Text,
    Integer,
    Truth,
    Bytes,
    Number,
    Message(&'static str),
}

#[derive(Clone, Copy, Debug)]
struct Field {
    /// Empty: the fields of this message are inlined in its parent.
    name: &'static str,
    shape: Shape,
    of: Type,
    /// Go's encoder writes zero and false, which JSON omits.
    plain: bool,
}

/// Fields by number, in encoding order.
type Message = BTreeMap<u64, Field>;

static MESSAGES: LazyLock<HashMap<&'static str, Message>> = LazyLock::new(|| {
    let mut all: HashMap<&str, Message> = HashMap::new();
    let mut definition = "";
    for line in include_str!("proto/messages.txt").lines().filter(|l| !l.starts_with(['#', '*'])) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            definition = name;
            all.entry(name).or_default();
        } else if let Some((number, field)) = parse_field(line) {
            all.entry(definition).or_default().insert(number, field);
        }
    }
    all
});

fn parse_field(line: &'static str) -> Option<(u64, Field)> {
    let mut words = line.split(' ');
    let number = words.next()?.parse().ok()?;
    let name = words.next()?;
    let code = words.next()?;
    let (shape, code) = match code.split_at(1) {
        ("*", rest) => (Shape::List, rest),
        ("%", rest) => (Shape::Map, rest),
        _ => (Shape::One, code),
    };
    let of = match code {
        "s" => Type::Text,
        "i" | "I" => Type::Integer,
        "b" | "B" => Type::Truth,
        "y" => Type::Bytes,
        "d" => Type::Number,
        _ => Type::Message(words.next()?),
    };
    let name = if name == "^" { "" } else { name };
    let plain = matches!(code, "I" | "B") || (matches!(code, "i" | "b") && PLAIN.contains(&name));
    Some((number, Field { name, shape, of, plain }))
}

/// Decodes a body into its object, with `apiVersion` and `kind`.
///
/// # Errors
/// [`ProtoError`]: the body is malformed or of an unknown type.
pub fn decode(body: &[u8]) -> Result<Value, ProtoError> {
    let mut unknown = Reader(body.strip_prefix(MAGIC).ok_or(ProtoError::Magic)?);
    let (mut api_version, mut kind, mut raw): (String, String, &[u8]) = (String::new(), String::new(), &[]);
    while let Some((number, wire)) = unknown.key()? {
        match (number, unknown.value(wire)?) {
            (1, Raw::Bytes(meta)) => {
                let mut meta = Reader(meta);
                while let Some((number, wire)) = meta.key()? {
                    match (number, meta.value(wire)?) {
                        (1, Raw::Bytes(b)) => api_version = text(b)?,
                        (2, Raw::Bytes(b)) => kind = text(b)?,
                        _ => {}
                    }
                }
            }
            (2, Raw::Bytes(b)) => raw = b,
            _ => {}
        }
    }
    let definition = definition_of(&api_version, &kind)
        .ok_or_else(|| ProtoError::UnknownType { api_version: api_version.clone(), kind: kind.clone() })?;
    let mut object = Map::new();
    message(raw, definition, &mut object, 0)?;
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    Ok(object.into())
}

/// Go package of CustomResourceDefinitions.
const EXTENSIONS: &str = "apiextensions-apiserver.pkg.apis.apiextensions.v1.";

/// Returns the message name of a kind. `DeleteOptions` has the version of the deleted resource.
fn definition_of(api_version: &str, kind: &str) -> Option<&'static str> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let group = match group.split('.').next().unwrap_or_default() {
        "" => "core",
        first => first,
    };
    let candidates = [
        format!("api.{group}.{version}.{kind}"),
        format!("apimachinery.pkg.apis.meta.v1.{kind}"),
        format!("kube-aggregator.pkg.apis.apiregistration.{version}.{kind}"),
        format!("{EXTENSIONS}{kind}"),
        // Old versions have the same encoding as v1.
        format!("api.{group}.v1.{kind}"),
        format!("api.apps.v1.{kind}"),
    ];
    candidates.iter().find_map(|c| MESSAGES.get_key_value(c.as_str()).map(|(name, _)| *name))
}

/// An undecoded field value.
enum Raw<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, ProtoError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.0.split_first().ok_or(TRUNCATED)?;
            self.0 = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ProtoError::Malformed("integer overflow"))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ProtoError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(TRUNCATED)?;
        self.0 = rest;
        Ok(taken)
    }

    /// Reads field number and wire type of the next field; `None` at the end.
    fn key(&mut self) -> Result<Option<(u64, u64)>, ProtoError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        Ok(Some((key >> 3, key & 7)))
    }

    fn value(&mut self, wire: u64) -> Result<Raw<'a>, ProtoError> {
        let fixed = |b: &[u8]| b.iter().rev().fold(0u64, |all, byte| all << 8 | u64::from(*byte));
        match wire {
            0 => Ok(Raw::Varint(self.varint()?)),
            1 => Ok(Raw::Fixed64(fixed(self.take(8)?))),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| TRUNCATED)?;
                Ok(Raw::Bytes(self.take(length)?))
            }
            5 => Ok(Raw::Fixed32(u32::try_from(fixed(self.take(4)?)).unwrap_or(0))),
            _ => Err(ProtoError::Malformed("unknown wire type")),
        }
    }
}

fn text(bytes: &[u8]) -> Result<String, ProtoError> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| ProtoError::Malformed("text is not UTF-8"))
}

/// Decodes a message's fields into a map.
fn message(
    bytes: &[u8],
    definition: &str,
    into: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtoError> {
    if depth > MAX_DEPTH {
        return Err(ProtoError::Malformed("nested too deep"));
    }
    let Some(fields) = MESSAGES.get(definition) else { return Ok(()) };
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.key()? {
        let raw = reader.value(wire)?;
        let Some(field) = fields.get(&number) else { continue };
        if let (Type::Message(inner), "", Raw::Bytes(bytes)) = (field.of, field.name, &raw) {
            message(bytes, inner, into, depth + 1)?;
            continue;
        }
        match field.shape {
            Shape::One => {
                let value = scalar(&raw, field.of, depth)?;
                // Go's encoder writes empty strings that JSON omits. A raw JSON field may have any value.
                let is_json =
                    matches!(field.of, Type::Message(of) if of.strip_prefix(EXTENSIONS) == Some("JSON"));
                let zero = value == 0 || value == false;
                let absent = !is_json && (value.is_null() || value == "" || (zero && field.plain));
                if !absent {
                    into.insert(field.name.into(), value);
                }
            }
            Shape::List => {
                let list = into.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
                if let (Some(list), Type::Integer, Raw::Bytes(packed)) = (list.as_array_mut(), field.of, &raw)
                {
                    let mut packed = Reader(packed);
                    while !packed.0.is_empty() {
                        list.push(packed.varint()?.cast_signed().into());
                    }
                } else if let Some(list) = into.get_mut(field.name).and_then(Value::as_array_mut) {
                    list.push(scalar(&raw, field.of, depth)?);
                }
            }
            Shape::Map => {
                let Raw::Bytes(entry) = raw else {
                    return Err(ProtoError::Malformed("a map entry is a message"));
                };
                let (key, value) = map_entry(entry, field.of, depth)?;
                let map = into.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                if let Some(map) = map.as_object_mut() {
                    map.insert(key, value);
                }
            }
        }
    }
    Ok(())
}

fn map_entry(entry: &[u8], of: Type, depth: usize) -> Result<(String, Value), ProtoError> {
    let mut reader = Reader(entry);
    let (mut key, mut value) = (String::new(), None);
    while let Some((number, wire)) = reader.key()? {
        match (number, reader.value(wire)?) {
            (1, Raw::Bytes(bytes)) => key = text(bytes)?,
            (2, raw) => value = Some(scalar(&raw, of, depth)?),
            _ => {}
        }
    }
    let absent =
        if of == Type::Text || of == Type::Bytes { Value::String(String::new()) } else { Value::Null };
    Ok((key, value.unwrap_or(absent)))
}

fn scalar(raw: &Raw<'_>, of: Type, depth: usize) -> Result<Value, ProtoError> {
    Ok(match (of, raw) {
        (Type::Text, Raw::Bytes(bytes)) => text(bytes)?.into(),
        (Type::Bytes, Raw::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        (Type::Integer, Raw::Varint(n)) => n.cast_signed().into(),
        (Type::Truth, Raw::Varint(n)) => (*n != 0).into(),
        (Type::Number, Raw::Fixed64(bits)) => number(f64::from_bits(*bits)),
        (Type::Number, Raw::Fixed32(bits)) => number(f64::from(f32::from_bits(*bits))),
        (Type::Message(definition), Raw::Bytes(bytes)) => object(bytes, definition, depth)?,
        _ => return Err(ProtoError::Malformed("a field has another type than its number says")),
    })
}

/// Formats a number as Go does in JSON: integers without a fraction.
fn number(n: f64) -> Value {
    /// Above this, doubles do not represent all integers.
    const EXACT: f64 = 9.0e15;
    #[expect(clippy::cast_possible_truncation, reason = "it is whole and small enough")]
    if n.fract() == 0.0 && n.abs() < EXACT { (n as i64).into() } else { n.into() }
}

/// Decodes a message to JSON; some types have a special JSON form.
fn object(bytes: &[u8], definition: &str, depth: usize) -> Result<Value, ProtoError> {
    let numbered = || -> Result<HashMap<u64, Raw<'_>>, ProtoError> {
        let mut reader = Reader(bytes);
        let mut all = HashMap::new();
        while let Some((number, wire)) = reader.key()? {
            all.insert(number, reader.value(wire)?);
        }
        Ok(all)
    };
    let integer = |raw: Option<&Raw<'_>>| match raw {
        Some(Raw::Varint(n)) => n.cast_signed(),
        _ => 0,
    };
    let string = |raw: Option<&Raw<'_>>| match raw {
        Some(Raw::Bytes(bytes)) => text(bytes),
        _ => Ok(String::new()),
    };
    match definition {
        "apimachinery.pkg.api.resource.Quantity" => Ok(string(numbered()?.get(&1))?.into()),
        "apimachinery.pkg.util.intstr.IntOrString" => {
            let parts = numbered()?;
            Ok(if integer(parts.get(&1)) == 1 {
                string(parts.get(&3))?.into()
            } else {
                integer(parts.get(&2)).into()
            })
        }
        "apimachinery.pkg.apis.meta.v1.Time" | "apimachinery.pkg.apis.meta.v1.MicroTime" => {
            let parts = numbered()?;
            let (seconds, nanos) = (integer(parts.get(&1)), integer(parts.get(&2)));
            if parts.is_empty() {
                return Ok(Value::Null);
            }
            let nanos = i32::try_from(nanos).unwrap_or(0);
            let time =
                Timestamp::new(seconds, nanos).map_err(|_| ProtoError::Malformed("time out of range"))?;
            // As Go formats them in JSON: whole seconds, or always microseconds.
            let micro = definition.ends_with("MicroTime");
            Ok(if micro { format!("{time:.6}") } else { format!("{time:.0}") }.into())
        }
        "apimachinery.pkg.apis.meta.v1.FieldsV1" | "apimachinery.pkg.runtime.RawExtension" => {
            match numbered()?.get(&1) {
                Some(Raw::Bytes(json)) => serde_json::from_slice(json)
                    .map_err(|_| ProtoError::Malformed("an embedded value is no JSON")),
                _ => Ok(Value::Null),
            }
        }
        _ if definition.starts_with(EXTENSIONS) => {
            let mut holder = Map::new();
            message(bytes, definition, &mut holder, depth + 1)?;
            extension(definition, holder)
        }
        _ if definition.ends_with(".ExtraValue") => {
            let mut holder = Map::new();
            message(bytes, definition, &mut holder, depth + 1)?;
            Ok(holder.remove("items").unwrap_or_default())
        }
        _ => {
            let mut map = Map::new();
            message(bytes, definition, &mut map, depth + 1)?;
            Ok(map.into())
        }
    }
}

/// Decodes messages of a CustomResourceDefinition that wrap one of two types to their content.
fn extension(definition: &str, mut holder: Map<String, Value>) -> Result<Value, ProtoError> {
    let mut take = |field: &str| holder.remove(field);
    Ok(match definition.strip_prefix(EXTENSIONS) {
        Some("JSON") => match take("raw") {
            Some(Value::String(raw)) => STANDARD
                .decode(raw)
                .ok()
                .and_then(|json| serde_json::from_slice(&json).ok())
                .ok_or(ProtoError::Malformed("an embedded value is no JSON"))?,
            _ => Value::Null,
        },
        Some("JSONSchemaPropsOrBool") => {
            take("schema").unwrap_or_else(|| take("allows").unwrap_or(Value::Bool(false)))
        }
        Some("JSONSchemaPropsOrArray") => take("jSONSchemas").or_else(|| take("schema")).unwrap_or_default(),
        Some("JSONSchemaPropsOrStringArray") => {
            take("property").or_else(|| take("schema")).unwrap_or_default()
        }
        _ => holder.into(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![u8::try_from(number << 3 | 2).unwrap(), u8::try_from(bytes.len()).unwrap()];
        out.extend_from_slice(bytes);
        out
    }

    fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
    }

    #[test]
    fn a_pod() {
        // metadata{name, labels{a:b}} spec{volumes{name, ^{emptyDir}}, containers{name, image, resources{limits{cpu: 1}}, ports{containerPort}}}
        let labels = [field(1, b"a"), field(2, b"b")].concat();
        let metadata = [field(1, b"p"), field(11, &labels)].concat();
        let source = field(2, &field(2, b""));
        let volume = [field(1, b"v"), source].concat();
        let limit = [field(1, b"cpu"), field(2, &field(1, b"1"))].concat();
        let port = vec![3 << 3, 80];
        let container =
            [field(1, b"c"), field(2, b"x"), field(6, &port), field(8, &field(1, &limit))].concat();
        let spec = [field(1, &volume), field(2, &container)].concat();
        let pod = decode(&body("v1", "Pod", &[field(1, &metadata), field(2, &spec)].concat())).unwrap();
        assert_eq!(
            pod,
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {
                "volumes": [{"name": "v", "emptyDir": {}}],
                "containers": [{"name": "c", "image": "x", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "1"}}}]}})
        );
    }

    #[test]
    fn the_table_is_whole() {
        for (definition, fields) in MESSAGES.iter() {
            for field in fields.values() {
                if let Type::Message(inner) = field.of {
                    let special = inner.starts_with("apimachinery.pkg.api.resource")
                        || inner.starts_with("apimachinery.pkg.util")
                        || inner.starts_with("apimachinery.pkg.runtime")
                        || ["Time", "MicroTime", "FieldsV1"]
                            .iter()
                            .any(|n| inner.ends_with(&format!("v1.{n}")));
                    assert!(special || MESSAGES.contains_key(inner), "{definition}: {inner}");
                }
            }
        }
        assert!(matches!(decode(b"{}"), Err(ProtoError::Magic)));
        assert!(matches!(decode(&body("v1", "Nonsense", b"")), Err(ProtoError::UnknownType { .. })));
    }

    proptest! {
        #[test]
        fn never_panics(raw in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&body("v1", "Pod", &raw));
            let _ = decode(&[MAGIC, &raw].concat());
        }
    }
}
