//! Kubernetes' protobuf bodies to JSON values. kubectl's typed clients send these (they take JSON as answer, so nothing here encodes).
//!
//! Flow: four magic bytes, an `Unknown` envelope (apiVersion, kind, raw object), then the object's message, read by a table of the wire
//! format (`data/wire.txt`: per message `number:name:type`, the numbers of the published API definitions, names as in JSON).
//!
//! Guarantees: no input panics; depth is limited; fields that the table doesn't know are skipped, as protobuf asks.
//!
//! Zero values: senders write the zero of every plain field and leave out absent pointers, so a zero means "absent" except where a zero
//! differs from absence ([`ZERO_COUNTS`]).

use std::{collections::HashMap, sync::LazyLock};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value};

const MAGIC: &[u8] = b"k8s\0";
const DEEPEST: usize = 64;

/// Fields for which zero, false or an empty text is not the same as nothing.
const ZERO_COUNTS: &[&str] = &[
    "activeDeadlineSeconds",
    "allocateLoadBalancerNodePorts",
    "allowPrivilegeEscalation",
    "automountServiceAccountToken",
    "backoffLimit",
    "blockOwnerDeletion",
    "completions",
    "controller",
    "defaultMode",
    "enableServiceLinks",
    "expirationSeconds",
    "failedJobsHistoryLimit",
    "fsGroup",
    "gracePeriodSeconds",
    "hostUsers",
    "immutable",
    "minReplicas",
    "mode",
    "optional",
    "orphanDependents",
    "parallelism",
    "partition",
    "priority",
    "replicas",
    "revisionHistoryLimit",
    "runAsGroup",
    "runAsUser",
    "startingDeadlineSeconds",
    "storageClassName",
    "successfulJobsHistoryLimit",
    "suspend",
    "terminationGracePeriodSeconds",
    "tolerationSeconds",
    "ttlSecondsAfterFinished",
];

/// The type of a field.
#[derive(Clone, Debug)]
enum Type {
    Text,
    Bytes,
    Integer,
    Truth,
    Double,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    /// Bytes that are JSON: FieldsV1, RawExtension.
    Raw,
    /// A message that is a list of texts.
    Texts,
    Message(&'static str),
    List(Box<Type>),
    /// By text.
    Map(Box<Type>),
}

#[derive(Debug)]
struct Field {
    name: &'static str,
    kind: Type,
}

type Messages = HashMap<&'static str, HashMap<u64, Field>>;

static MESSAGES: LazyLock<Messages> = LazyLock::new(|| {
    let field = |text: &'static str| {
        let (number, rest) = text.split_once(':')?;
        let (name, kind) = rest.split_once(':')?;
        Some((number.parse().ok()?, Field { name, kind: Type::parse(kind) }))
    };
    include_str!("../data/wire.txt")
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, words.filter_map(field).collect()))
        })
        .collect()
});

impl Type {
    fn parse(text: &'static str) -> Type {
        match text {
            "s" => Type::Text,
            "y" => Type::Bytes,
            "i" => Type::Integer,
            "b" => Type::Truth,
            "d" => Type::Double,
            "T" => Type::Time,
            "U" => Type::MicroTime,
            "Q" => Type::Quantity,
            "I" => Type::IntOrString,
            "F" | "R" => Type::Raw,
            "X" => Type::Texts,
            _ => match (text.strip_prefix('['), text.strip_prefix('{')) {
                (Some(item), _) => Type::List(Box::new(Type::parse(item))),
                (_, Some(item)) => Type::Map(Box::new(Type::parse(item))),
                _ => Type::Message(text),
            },
        }
    }
}

/// A value on the wire.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Reads one field after the other.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or("unexpected end of protobuf data")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("protobuf number is too long".into())
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], String> {
        let n = usize::try_from(n).ok().filter(|n| *n <= self.0.len());
        let (taken, rest) = self.0.split_at(n.ok_or("unexpected end of protobuf data")?);
        self.0 = rest;
        Ok(taken)
    }

    fn fixed(&mut self, n: u64) -> Result<Wire<'a>, String> {
        let bytes = self.take(n)?;
        Ok(Wire::Number(bytes.iter().rev().fold(0, |sum, b| sum << 8 | u64::from(*b))))
    }

    fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Wire::Number(self.varint()?),
            1 => self.fixed(8)?,
            2 => {
                let length = self.varint()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => self.fixed(4)?,
            other => return Err(format!("unknown protobuf wire type {other}")),
        };
        Ok(Some((key >> 3, value)))
    }
}

impl<'a> Wire<'a> {
    fn bytes(self) -> Result<&'a [u8], String> {
        match self {
            Wire::Bytes(bytes) => Ok(bytes),
            Wire::Number(_) => Err("a protobuf number where bytes belong".into()),
        }
    }

    fn text(self) -> Result<&'a str, String> {
        std::str::from_utf8(self.bytes()?).map_err(|e| format!("protobuf text: {e}"))
    }

    fn number(self) -> Result<u64, String> {
        match self {
            Wire::Number(number) => Ok(number),
            Wire::Bytes(_) => Err("protobuf bytes where a number belongs".into()),
        }
    }

    fn integer(self) -> Result<i64, String> {
        // Signed numbers are two's complement on the wire.
        Ok(self.number()?.cast_signed())
    }
}

/// The fields of a small message, by number.
fn fields(bytes: &[u8]) -> Result<HashMap<u64, Wire<'_>>, String> {
    let mut reader = Reader(bytes);
    let mut out = HashMap::new();
    while let Some((number, value)) = reader.next()? {
        out.insert(number, value);
    }
    Ok(out)
}

fn time(bytes: &[u8], micros: bool) -> Result<Value, String> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let parts = fields(bytes)?;
    let part = |n: u64| parts.get(&n).map_or(Ok(0), |w| w.integer());
    let nanos = i32::try_from(part(2)?).map_err(|e| e.to_string())?;
    let at = Timestamp::new(part(1)?, if micros { nanos } else { 0 }).map_err(|e| e.to_string())?;
    Ok(if micros { format!("{at:.6}") } else { at.to_string() }.into())
}

fn value(kind: &Type, wire: Wire<'_>, depth: usize) -> Result<Value, String> {
    Ok(match kind {
        Type::Text => wire.text()?.into(),
        Type::Bytes => STANDARD.encode(wire.bytes()?).into(),
        Type::Integer => wire.integer()?.into(),
        Type::Truth => (wire.number()? != 0).into(),
        Type::Double => f64::from_bits(wire.number()?).into(),
        Type::Time => time(wire.bytes()?, false)?,
        Type::MicroTime => time(wire.bytes()?, true)?,
        Type::Quantity => match fields(wire.bytes()?)?.get(&1) {
            Some(text) => text.text()?.into(),
            None => "0".into(),
        },
        Type::IntOrString => {
            let parts = fields(wire.bytes()?)?;
            let is_text = parts.get(&1).map_or(Ok(0), |w| w.number())? == 1;
            if is_text {
                parts.get(&3).map_or(Ok(""), |w| w.text())?.into()
            } else {
                parts.get(&2).map_or(Ok(0), |w| w.integer())?.into()
            }
        }
        Type::Raw => match fields(wire.bytes()?)?.get(&1) {
            Some(raw) => crate::decode::json(raw.bytes()?)?.0,
            None => Value::Null,
        },
        Type::Texts => {
            let mut reader = Reader(wire.bytes()?);
            let mut texts = Vec::new();
            while let Some((_, text)) = reader.next()? {
                texts.push(Value::from(text.text()?));
            }
            texts.into()
        }
        Type::Message(name) => {
            let mut out = Map::new();
            message(name, wire.bytes()?, &mut out, depth + 1)?;
            out.into()
        }
        Type::List(_) | Type::Map(_) => Value::Null,
    })
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(_) | Value::Object(_) => false,
    }
}

fn message(name: &str, bytes: &[u8], out: &mut Map<String, Value>, depth: usize) -> Result<(), String> {
    if depth > DEEPEST {
        return Err("protobuf data is nested too deeply".into());
    }
    let known = MESSAGES.get(name).ok_or_else(|| format!("unknown protobuf message {name}"))?;
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        let Some(field) = known.get(&number) else { continue };
        match &field.kind {
            // Embedded in JSON: its fields are the object's own.
            Type::Message(inner) if field.name == "-" => message(inner, wire.bytes()?, out, depth + 1)?,
            Type::List(item) => {
                let value = value(item, wire, depth)?;
                let list = out.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
                if let Some(list) = list.as_array_mut() {
                    list.push(value);
                }
            }
            Type::Map(item) => {
                let parts = fields(wire.bytes()?)?;
                let key = parts.get(&1).map_or(Ok(""), |w| w.text())?;
                let value = value(item, parts.get(&2).copied().unwrap_or(Wire::Bytes(b"")), depth)?;
                let map = out.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                if let Some(map) = map.as_object_mut() {
                    map.insert(key.into(), value);
                }
            }
            kind => {
                let value = value(kind, wire, depth)?;
                // An integer or text that may be either is never left out: its zero is a value.
                let counts = matches!(kind, Type::IntOrString) || ZERO_COUNTS.contains(&field.name);
                if (counts && !value.is_null()) || !is_zero(&value) {
                    out.insert(field.name.into(), value);
                }
            }
        }
    }
    Ok(())
}

/// The message of an object.
fn message_of(api_version: &str, kind: &str) -> Option<&'static str> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let package = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or_default() };
    let named = format!("{package}.{version}.{kind}").to_lowercase();
    let shared = format!("meta.v1.{kind}").to_lowercase();
    let found = MESSAGES.get_key_value(named.as_str()).or_else(|| MESSAGES.get_key_value(shared.as_str()));
    found.map(|(name, _)| *name)
}

/// Decodes a body.
///
/// # Errors
/// What is wrong with it.
pub fn decode(body: &[u8]) -> Result<Value, String> {
    let body = body.strip_prefix(MAGIC).ok_or("the protobuf body does not begin with k8s\\0")?;
    let envelope = fields(body)?;
    let identity = envelope.get(&1).map_or(Ok(&b""[..]), |w| w.bytes())?;
    let identity = fields(identity)?;
    let text = |n: u64| identity.get(&n).map_or(Ok(""), |w| w.text());
    let (api_version, kind) = (text(1)?, text(2)?);
    let name = message_of(api_version, kind)
        .ok_or_else(|| format!("no protobuf form of {api_version} {kind} is known"))?;
    let mut out = Map::new();
    out.insert("apiVersion".into(), api_version.into());
    out.insert("kind".into(), kind.into());
    message(name, envelope.get(&2).map_or(Ok(&b""[..]), |w| w.bytes())?, &mut out, 0)?;
    Ok(out.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        out.extend_from_slice(bytes);
        out
    }

    fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let identity = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &identity), field(2, raw), field(3, b""), field(4, b"")].concat()
    }

    #[test]
    fn a_namespace_as_kubectl_sends_it() {
        let sent = b"k8s\x00\x0a\x0f\x0a\x02v1\x12\x09Namespace\x12\x1a\x0a\x12\x0a\x02n1\x12\x00\x1a\x00\x22\x00\x2a\x00\x32\x00\x38\x00\x42\x00\x12\x00\x1a\x02\x0a\x00\x1a\x00\x22\x00";
        let want = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n1"}, "spec": {}, "status": {}});
        assert_eq!(decode(sent).unwrap(), want);
    }

    #[test]
    fn embedded_messages_maps_and_special_types() {
        let source = field(2, &field(2, &field(1, b"tmp")).repeat(0)); // an emptyDir's fields, none
        let empty_dir = field(2, &field(2, &[]));
        let volume = [field(1, b"v"), empty_dir, source].concat();
        let limit = [field(1, b"cpu"), field(2, &field(1, b"100m"))].concat();
        let container = [field(1, b"c"), field(2, b""), field(8, &field(1, &limit))].concat();
        let spec = [field(1, &volume), field(2, &container), vec![4 << 3, 0]].concat();
        let label = [field(1, b"a"), field(2, b"")].concat();
        let metadata = [field(1, b"p"), field(8, &[8, 10]), field(11, &label)].concat();
        let got = decode(&body("v1", "Pod", &[field(1, &metadata), field(2, &spec)].concat())).unwrap();
        let want = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "creationTimestamp": "1970-01-01T00:00:10Z", "labels": {"a": ""}},
            "spec": {"volumes": [{"name": "v", "emptyDir": {}}], "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "c", "resources": {"limits": {"cpu": "100m"}}}]}});
        assert_eq!(got, want);
    }

    #[test]
    fn every_field_of_the_table_leads_somewhere() {
        fn check(kind: &Type) {
            match kind {
                Type::Message(name) => assert!(MESSAGES.contains_key(name), "{name}"),
                Type::List(item) | Type::Map(item) => check(item),
                _ => {}
            }
        }
        assert!(MESSAGES.len() > 400);
        MESSAGES.values().flat_map(|m| m.values()).for_each(|f| check(&f.kind));
    }

    #[test]
    fn cut_and_changed_bodies_are_errors_or_objects() {
        let good =
            body("v1", "Pod", &[field(1, &field(1, b"p")), field(2, &field(2, &field(1, b"c")))].concat());
        assert!(decode(&good).is_ok());
        for end in 0..good.len() {
            let _ = decode(&good[..end]);
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[end] = byte;
                let _ = decode(&bad);
            }
        }
        assert!(decode(b"").is_err());
        assert!(decode(&body("v9", "Nothing", b"")).is_err());
    }
}
