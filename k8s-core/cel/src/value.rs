//! Values. Those of variables are views of JSON: only accessed parts are converted.

pub(crate) mod access;
pub(crate) mod format;
pub(crate) mod semver;
pub(crate) mod time;
pub(crate) mod url;

use std::{cmp::Ordering, collections::BTreeMap, fmt, net::IpAddr, ops::Deref, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::Value as Json;

use access::{Access, Stage};
use format::Format;
use semver::Semver;
use url::Url;

use super::{
    error::EvalError,
    meter::Meter,
    types::Type,
    types::declared::{Decl, ObjectType},
};
use k8s_quantity::Quantity;

/// A borrowed or shared string.
#[derive(Clone)]
pub enum Text<'a> {
    /// A part of the input JSON, not copied.
    Borrowed(&'a str),
    /// Created by an expression.
    Shared(Arc<str>),
}

impl Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        match self {
            Text::Borrowed(text) => text,
            Text::Shared(text) => text,
        }
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// A list: of the input, or built by the expression.
#[derive(Clone, Debug)]
pub enum List<'a> {
    /// A view of a JSON array, with the declaration of its elements.
    Json(&'a [Json], Option<&'a Decl>),
    /// Created by an expression.
    Made(Arc<Vec<Value<'a>>>),
}

/// A key of a map created by an expression. Integers of equal amount are one key, whatever their type.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    Bool(bool),
    Int(i128),
    String(Arc<str>),
}

/// A map or an object.
#[derive(Clone, Debug)]
pub enum Map<'a> {
    /// A view of a JSON object as a map, with the declaration of its values.
    Json(&'a serde_json::Map<String, Json>, Option<&'a Decl>),
    /// A view of a JSON object with declared fields.
    Object(&'a serde_json::Map<String, Json>, &'a ObjectType),
    /// Created by an expression: original keys and values.
    Made(Arc<Entries<'a>>),
}

/// Entries of a map created by an expression, and the value of absent keys.
#[derive(Clone, Debug, Default)]
pub struct Entries<'a>(pub(super) BTreeMap<Key, (Value<'a>, Value<'a>)>, pub(super) Option<Box<Value<'a>>>);

/// A CEL value. It borrows from the input where it can.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    /// `null`, JSON's absent value.
    Null,
    /// `bool`: true or false.
    Bool(bool),
    /// `int`: 64 bits with sign; arithmetic that overflows is an error.
    Int(i64),
    /// `uint`: 64 bits without sign; arithmetic that overflows is an error.
    Uint(u64),
    /// `double`: a 64-bit floating-point number.
    Double(f64),
    /// `string`: Unicode text.
    String(Text<'a>),
    /// `bytes`: a sequence of octets.
    Bytes(Arc<[u8]>),
    /// `list`: values of any types.
    List(List<'a>),
    /// A map or an object.
    Map(Map<'a>),
    /// A point in time.
    Timestamp(Timestamp),
    /// A duration in nanoseconds.
    Duration(i64),
    /// A type, by name.
    Type(Text<'a>),
    /// An optional value, `optional.of(x)` or `optional.none()`.
    Optional(Option<Arc<Value<'a>>>),
    /// A resource quantity, `quantity("1Gi")`.
    Quantity(Quantity),
    /// A parsed URL, `url("https://...")`.
    Url(Arc<Url>),
    /// An IP address, `ip("10.0.0.1")`.
    Ip(IpAddr),
    /// A CIDR: address and prefix length.
    Cidr(IpNet),
    /// A semantic version, `semver("1.2.3")`.
    Semver(Arc<Semver>),
    /// A named string format, `format.named("dns1123Label")`.
    Format(&'static Format),
    /// A question about a user's rights, or its answer.
    Access(Arc<Access>),
}

impl<'a> From<String> for Value<'a> {
    fn from(text: String) -> Self {
        Value::String(Text::Shared(text.into()))
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Value::String(Text::Borrowed(text))
    }
}

impl<'a> From<Vec<Value<'a>>> for Value<'a> {
    fn from(items: Vec<Value<'a>>) -> Self {
        Value::List(List::Made(Arc::new(items)))
    }
}

impl<'a> From<Option<Value<'a>>> for Value<'a> {
    fn from(value: Option<Value<'a>>) -> Self {
        Value::Optional(value.map(Arc::new))
    }
}

impl<'a> Value<'a> {
    /// Creates a map with string keys. A lookup of an absent key returns `default`, if there is one.
    ///
    /// ```
    /// use k8s_cel::{Activation, Decl, Env, Meter, Value};
    /// let program = Env::new().variable("m", Decl::any()).compile("m.a == 1 && m.other == 0").unwrap();
    /// let map = Value::map([("a".to_owned(), Value::Int(1))], Some(Value::Int(0)));
    /// let result = program.evaluate(&Activation::new().value("m", map), &mut Meter::new(1000));
    /// assert!(matches!(result, Ok(Value::Bool(true))));
    /// ```
    #[must_use]
    pub fn map(entries: impl IntoIterator<Item = (String, Value<'a>)>, default: Option<Value<'a>>) -> Self {
        let entries = entries.into_iter().map(|(key, value)| {
            let key: Arc<str> = key.into();
            (Key::String(key.clone()), (Value::String(Text::Shared(key)), value))
        });
        Value::Map(Map::Made(Arc::new(Entries(entries.collect(), default.map(Box::new)))))
    }

    /// Parses a semantic version. `None`: it is malformed.
    ///
    /// ```
    /// use k8s_cel::Value;
    /// assert!(Value::semver("1.2.3").is_some() && Value::semver("v1").is_none());
    /// ```
    #[must_use]
    pub fn semver(text: &str) -> Option<Self> {
        Semver::parse(text).ok().map(|version| Value::Semver(Arc::new(version)))
    }

    /// Creates a value from JSON without declaration: integers as `int`, other numbers as `double`.
    #[must_use]
    pub fn json(json: &'a Json) -> Self {
        match json {
            Json::Null => Value::Null,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(n) => match n.as_i64() {
                Some(n) => Value::Int(n),
                None => Value::Double(n.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Value::String(Text::Borrowed(text)),
            Json::Array(items) => Value::List(List::Json(items, None)),
            Json::Object(map) => Value::Map(Map::Json(map, None)),
        }
    }

    /// Creates a value from JSON of a declared type.
    pub(super) fn declared(json: &'a Json, decl: Option<&'a Decl>) -> Result<Self, EvalError> {
        let Some(decl) = decl else { return Ok(Value::json(json)) };
        let value = match (&decl.ty, json) {
            (Type::Double, Json::Number(n)) => Value::Double(n.as_f64().unwrap_or(f64::NAN)),
            (Type::Int, Json::Number(n)) => match (n.as_i64(), n.as_f64()) {
                (Some(n), _) => Value::Int(n),
                #[allow(clippy::cast_possible_truncation)] // it has no fraction, and saturates
                (None, Some(n)) if n.fract() == 0.0 && n.abs() < 9.2e18 => Value::Int(n as i64),
                _ => return EvalError::failed("invalid data, expected an integer"),
            },
            (Type::Timestamp, Json::String(text)) => {
                match time::parse_timestamp(text).or_else(|| time::parse_date(text)) {
                    Some(time) => Value::Timestamp(time),
                    None => return EvalError::failed(format!("invalid date or date-time: {text:?}")),
                }
            }
            (Type::Duration, Json::String(text)) => match time::parse_duration(text) {
                Some(nanos) => Value::Duration(nanos),
                None => return EvalError::failed(format!("invalid duration: {text:?}")),
            },
            (Type::Bytes, Json::String(text)) => match STANDARD.decode(text) {
                Ok(bytes) => Value::Bytes(bytes.into()),
                Err(_) => return EvalError::failed("invalid base64"),
            },
            (Type::List(_), Json::Array(items)) => Value::List(List::Json(items, decl.element.as_deref())),
            (Type::Map(_), Json::Object(map)) => Value::Map(Map::Json(map, decl.element.as_deref())),
            (Type::Object(object), Json::Object(map)) => Value::Map(Map::Object(map, object)),
            (Type::Optional(_), json) => {
                Value::Optional(Some(Arc::new(Value::declared(json, decl.element.as_deref())?)))
            }
            _ => Value::json(json),
        };
        Ok(value)
    }

    /// Returns the name of the value's type.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Null => "null_type",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Uint(_) => "uint",
            Value::Double(_) => "double",
            Value::String(_) => "string",
            Value::Bytes(_) => "bytes",
            Value::List(_) => "list",
            Value::Map(Map::Object(..)) => "object",
            Value::Map(_) => "map",
            Value::Timestamp(_) => "google.protobuf.Timestamp",
            Value::Duration(_) => "google.protobuf.Duration",
            Value::Type(_) => "type",
            Value::Optional(_) => "optional_type",
            Value::Quantity(_) => "kubernetes.Quantity",
            Value::Url(_) => "kubernetes.URL",
            Value::Ip(_) => "net.IP",
            Value::Cidr(_) => "net.CIDR",
            Value::Semver(_) => "kubernetes.Semver",
            Value::Format(_) => "kubernetes.NamedFormat",
            Value::Access(access) => match access.stage {
                Stage::Authorizer => "kubernetes.authorization.Authorizer",
                Stage::Path => "kubernetes.authorization.PathCheck",
                Stage::Group => "kubernetes.authorization.GroupCheck",
                Stage::Resource => "kubernetes.authorization.ResourceCheck",
                Stage::Decision => "kubernetes.authorization.Decision",
            },
        }
    }

    /// Returns the string, if it is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// Converts to JSON. `None` if JSON has no form of it, or it is nested too deep.
    ///
    /// ```
    /// use k8s_cel::{Activation, Env, Meter};
    /// let program = Env::new().compile("{'names': ['a', 'b'].map(n, n + '!')}").unwrap();
    /// let value = program.evaluate(&Activation::new(), &mut Meter::new(1000)).unwrap();
    /// assert_eq!(value.to_json(), Some(serde_json::json!({"names": ["a!", "b!"]})));
    /// assert_eq!(value.type_name(), "map");
    /// ```
    #[must_use]
    pub fn to_json(&self) -> Option<Json> {
        self.to_json_at(0)
    }

    fn to_json_at(&self, depth: usize) -> Option<Json> {
        if depth > 100 {
            return None;
        }
        Some(match self {
            Value::Null => Json::Null,
            Value::Bool(b) => (*b).into(),
            Value::Int(n) => (*n).into(),
            Value::Uint(n) => (*n).into(),
            Value::Double(n) => serde_json::Number::from_f64(*n)?.into(),
            Value::String(text) => (**text).into(),
            Value::Bytes(bytes) => STANDARD.encode(bytes).into(),
            Value::Timestamp(time) => time.to_string().into(),
            Value::Duration(nanos) => time::duration_text(*nanos).into(),
            Value::List(List::Json(items, _)) => Json::Array(items.to_vec()),
            Value::List(List::Made(items)) => {
                items.iter().map(|item| item.to_json_at(depth + 1)).collect::<Option<Vec<_>>>()?.into()
            }
            Value::Map(Map::Json(map, _) | Map::Object(map, _)) => Json::Object((*map).clone()),
            Value::Map(Map::Made(entries)) => {
                let entries = entries
                    .0
                    .values()
                    .map(|(key, value)| Some((key.as_str()?.to_owned(), value.to_json_at(depth + 1)?)));
                Json::Object(entries.collect::<Option<_>>()?)
            }
            Value::Optional(Some(value)) => value.to_json_at(depth + 1)?,
            Value::Quantity(quantity) => quantity.to_string().into(),
            _ => return None,
        })
    }

    /// Returns the size as upstream counts it: characters, bytes or elements; 1 for other types.
    pub(super) fn size(&self) -> u64 {
        match self {
            Value::String(text) => text.len() as u64,
            Value::Bytes(bytes) => bytes.len() as u64,
            Value::List(list) => list.len() as u64,
            Value::Map(map) => map.len() as u64,
            _ => 1,
        }
    }

    /// Returns the map key, if the value can be one.
    pub(super) fn key(&self) -> Option<Key> {
        Some(match self {
            Value::Bool(b) => Key::Bool(*b),
            Value::Int(n) => Key::Int((*n).into()),
            Value::Uint(n) => Key::Int((*n).into()),
            #[allow(clippy::cast_possible_truncation)] // it has no fraction and is in range
            Value::Double(n) if n.fract() == 0.0 && n.abs() < 1e30 => Key::Int(*n as i128),
            Value::String(Text::Shared(text)) => Key::String(text.clone()),
            Value::String(Text::Borrowed(text)) => Key::String((*text).into()),
            _ => return None,
        })
    }

    /// Compares for equality as CEL: numbers by amount; other values of different types are not equal.
    pub(super) fn equals(&self, other: &Value<'a>, meter: &mut Meter) -> Result<bool, EvalError> {
        meter.work(1)?;
        Ok(match (self, other) {
            (Value::Null, Value::Null) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::String(a), Value::String(b)) => {
                meter.work(a.len().min(b.len()) as u64 / 8)?;
                **a == **b
            }
            (Value::Bytes(a), Value::Bytes(b)) => a == b,
            (Value::List(a), Value::List(b)) => {
                if a.len() != b.len() {
                    return Ok(false);
                }
                for i in 0..a.len() {
                    let (Some(a), Some(b)) = (a.get(i)?, b.get(i)?) else { return Ok(false) };
                    if !a.equals(&b, meter)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Value::Map(a), Value::Map(b)) => return a.equals(b, meter),
            (Value::Timestamp(a), Value::Timestamp(b)) => a == b,
            (Value::Duration(a), Value::Duration(b)) => a == b,
            (Value::Type(a), Value::Type(b)) => **a == **b,
            (Value::Optional(None), Value::Optional(None)) => true,
            (Value::Optional(Some(a)), Value::Optional(Some(b))) => return a.equals(b, meter),
            (Value::Quantity(a), Value::Quantity(b)) => a == b,
            (Value::Url(a), Value::Url(b)) => a == b,
            (Value::Ip(a), Value::Ip(b)) => a == b,
            (Value::Cidr(a), Value::Cidr(b)) => a == b,
            (Value::Semver(a), Value::Semver(b)) => a.order(b).is_eq(),
            (Value::Format(a), Value::Format(b)) => std::ptr::eq(*a, *b),
            (Value::Access(a), Value::Access(b)) => Arc::ptr_eq(a, b),
            (a, b) => compare_numbers(a, b) == Some(Some(Ordering::Equal)),
        })
    }

    /// Compares two values. `None`: not comparable; inner `None`: one is NaN.
    pub(super) fn order(&self, other: &Value<'_>) -> Option<Option<Ordering>> {
        match (self, other) {
            (Value::Bool(a), Value::Bool(b)) => Some(Some(a.cmp(b))),
            (Value::String(a), Value::String(b)) => Some(Some((**a).cmp(&**b))),
            (Value::Bytes(a), Value::Bytes(b)) => Some(Some(a.cmp(b))),
            (Value::Timestamp(a), Value::Timestamp(b)) => Some(Some(a.cmp(b))),
            (Value::Duration(a), Value::Duration(b)) => Some(Some(a.cmp(b))),
            (a, b) => compare_numbers(a, b),
        }
    }
}

/// Compares numbers of any types by amount. `None`: not numbers.
fn compare_numbers(a: &Value<'_>, b: &Value<'_>) -> Option<Option<Ordering>> {
    let whole = |value: &Value<'_>| match value {
        Value::Int(n) => Some(i128::from(*n)),
        Value::Uint(n) => Some(i128::from(*n)),
        _ => None,
    };
    match (a, b) {
        (Value::Double(a), Value::Double(b)) => Some(a.partial_cmp(b)),
        (Value::Double(a), b) => Some(compare_double(*a, whole(b)?)),
        (a, Value::Double(b)) => Some(compare_double(*b, whole(a)?).map(Ordering::reverse)),
        (a, b) => Some(Some(whole(a)?.cmp(&whole(b)?))),
    }
}

fn compare_double(a: f64, b: i128) -> Option<Ordering> {
    if a.is_nan() {
        return None;
    }
    // Larger than any integer value.
    if a.abs() > 1e30 {
        return Some(if a > 0.0 { Ordering::Greater } else { Ordering::Less });
    }
    #[allow(clippy::cast_possible_truncation)] // it is in range
    let floor = a.floor() as i128;
    Some(floor.cmp(&b).then(if a.fract() == 0.0 { Ordering::Equal } else { Ordering::Greater }))
}

impl<'a> List<'a> {
    /// Returns the number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            List::Json(items, _) => items.len(),
            List::Made(items) => items.len(),
        }
    }

    /// Returns true if the list is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns an element.
    ///
    /// # Errors
    /// The value does not match its declaration.
    pub fn get(&self, index: usize) -> Result<Option<Value<'a>>, EvalError> {
        match self {
            List::Json(items, decl) => items.get(index).map(|item| Value::declared(item, *decl)).transpose(),
            List::Made(items) => Ok(items.get(index).cloned()),
        }
    }

    /// Iterates over the elements.
    pub(super) fn iter(&self) -> impl Iterator<Item = Result<Value<'a>, EvalError>> {
        (0..self.len()).map(|i| Ok(self.get(i)?.unwrap_or(Value::Null)))
    }
}

impl<'a> Map<'a> {
    /// Returns the number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Map::Json(map, _) | Map::Object(map, _) => map.len(),
            Map::Made(entries) => entries.0.len(),
        }
    }

    /// Returns true if the map is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the value of a key.
    pub(super) fn get(&self, key: &Value<'_>) -> Result<Option<Value<'a>>, EvalError> {
        match self {
            Map::Json(map, decl) => match key.as_str().and_then(|key| map.get(key)) {
                Some(json) => Value::declared(json, *decl).map(Some),
                None => Ok(None),
            },
            Map::Object(..) => match key.as_str() {
                Some(name) => self.field(name, name),
                None => Ok(None),
            },
            Map::Made(entries) => {
                let found = key.key().and_then(|key| entries.0.get(&key));
                Ok(found.map(|(_, value)| value).or(entries.1.as_deref()).cloned())
            }
        }
    }

    /// Returns the value of a field, by its escaped name and property name.
    pub(super) fn field(&self, name: &str, property: &str) -> Result<Option<Value<'a>>, EvalError> {
        match self {
            Map::Object(map, object) => {
                let (property, decl) = match object.field(name) {
                    Some(field) => (field.property.as_str(), Some(&*field.decl)),
                    None if object.is_open() => (property, None),
                    None => return Ok(None),
                };
                map.get(property).map(|json| Value::declared(json, decl)).transpose()
            }
            Map::Json(map, decl) => map.get(name).map(|json| Value::declared(json, *decl)).transpose(),
            Map::Made(_) => self.get(&Value::String(Text::Shared(name.into()))),
        }
    }

    /// Iterates over the entries in order.
    pub(super) fn entries(&self) -> Box<dyn Iterator<Item = Result<(Value<'a>, Value<'a>), EvalError>> + '_> {
        match self {
            Map::Json(map, decl) => {
                let decl = *decl;
                let map: &'a serde_json::Map<String, Json> = map;
                Box::new(
                    map.iter()
                        .map(move |(key, json)| Ok((key.as_str().into(), Value::declared(json, decl)?))),
                )
            }
            Map::Object(map, object) => {
                let map: &'a serde_json::Map<String, Json> = map;
                let object: &'a ObjectType = object;
                Box::new(map.iter().map(move |(key, json)| {
                    let field = super::names::escape(key).and_then(|name| object.field(&name));
                    Ok((key.as_str().into(), Value::declared(json, field.map(|f| &*f.decl))?))
                }))
            }
            Map::Made(entries) => Box::new(entries.0.values().cloned().map(Ok)),
        }
    }

    fn equals(&self, other: &Map<'a>, meter: &mut Meter) -> Result<bool, EvalError> {
        if self.len() != other.len() {
            return Ok(false);
        }
        for entry in self.entries() {
            let (key, value) = entry?;
            meter.work(4)?;
            let found = match other {
                // All properties count, even those that cannot be escaped.
                Map::Object(map, object) => match key.as_str().and_then(|key| map.get_key_value(key)) {
                    Some((key, json)) => {
                        let field = super::names::escape(key).and_then(|name| object.field(&name));
                        Some(Value::declared(json, field.map(|f| &*f.decl))?)
                    }
                    None => None,
                },
                other => other.get(&key)?,
            };
            let Some(found) = found else { return Ok(false) };
            if !value.equals(&found, meter)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
