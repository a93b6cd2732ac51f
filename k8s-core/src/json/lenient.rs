//! Decodes JSON with Go's rules: absent or `null` members are the type's zero value.
//!
//! k8s-openapi's types and derived ones require some members that Go defaults to zero (a condition's
//! `lastTransitionTime`), and reject `null` where Go accepts it. The type's members and their kinds are
//! learned while it is deserialized, so this works for every type.

use serde::{
    de::{
        DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor,
        value::StrDeserializer,
    },
    forward_to_deserialize_any,
};
use serde_json::{Error, Map, Value};

/// Go's zero time.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// Decodes a value. Absent members are first handled by the type; if that fails they are zero values.
///
/// # Errors
/// The value does not deserialize even so.
///
/// # Examples
/// ```
/// use k8s_core::{api::apimachinery::pkg::apis::meta::v1::Condition, json::lenient};
/// let value = serde_json::json!({"type": "Ready", "status": "True", "message": null});
/// assert!(serde_json::from_value::<Condition>(value.clone()).is_err());
/// assert_eq!(lenient::<Condition>(&value).unwrap().last_transition_time.0.to_string(), "0001-01-01T00:00:00Z");
/// ```
pub fn lenient<T: DeserializeOwned>(value: &Value) -> Result<T, Error> {
    let decode = |fill| T::deserialize(Lenient { value, fill, nested: false });
    // First without zero values: optional members may have defaults of their own.
    decode(false).or_else(|_| decode(true))
}

/// A value being deserialized.
#[derive(Clone, Copy)]
struct Lenient<'a> {
    value: &'a Value,
    /// Supply absent members of structs as `null`.
    fill: bool,
    /// Inside another value.
    nested: bool,
}

const NULL: &Value = &Value::Null;

impl<'a> Lenient<'a> {
    fn of(self, value: &'a Value) -> Self {
        Lenient { value, nested: true, ..self }
    }

    // What needs no visitor is apart from what is compiled for every type.

    fn no_members(self) -> Members<'a> {
        Members { members: Vec::new().into_iter(), next: NULL, like: self }
    }

    fn members(self, map: &'a Map<String, Value>) -> Members<'a> {
        let members: Vec<_> = map.iter().map(|(name, value)| (name.as_str(), value)).collect();
        Members { members: members.into_iter(), next: NULL, like: self }
    }

    /// Returns the members of a struct. `None`: the value is not an object.
    fn struct_members(self, fields: &'static [&'static str]) -> Option<Members<'a>> {
        let mut members: Vec<(&str, &Value)> = match self.value {
            _ if self.is_zero() => Vec::new(),
            Value::Object(map) => map.iter().map(|(name, value)| (name.as_str(), value)).collect(),
            _ => return None,
        };
        if self.nested && fields.contains(&"metadata") {
            // Go ignores apiVersion and kind of a nested object (a claim template).
            members.retain(|(name, _)| !is_kind(name));
        }
        if self.fill {
            // apiVersion and kind have no zero value.
            let absent = |name: &&&'static str| !is_kind(name) && self.value.get(**name).is_none();
            members.extend(fields.iter().filter(absent).map(|name| (*name, NULL)));
        }
        Some(Members { members: members.into_iter(), next: NULL, like: self })
    }

    /// Returns true for a `null` that is a zero value. The outermost value is an object, which `null` is not.
    fn is_zero(self) -> bool {
        self.nested && self.value.is_null()
    }

    /// Returns an integer, also from a number such as `3.0`.
    fn whole(self) -> Option<i64> {
        match self.value {
            _ if self.is_zero() => Some(0),
            // Within the range of exact integers in a double.
            Value::Number(n) if n.is_f64() => {
                n.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9.0e15).map(|f| f as i64)
            }
            _ => None,
        }
    }
}

fn is_kind(name: &str) -> bool {
    matches!(name, "apiVersion" | "kind")
}

macro_rules! whole_numbers {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.whole() {
                Some(number) => visitor.visit_i64(number),
                None => self.deserialize_any(visitor),
            }
        })*
    };
}

macro_rules! or_zero {
    ($($method:ident: $zero:expr;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            if self.is_zero() { $zero(visitor, self) } else { self.deserialize_any(visitor) }
        })*
    };
}

impl<'de> Deserializer<'de> for Lenient<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Array(items) => visitor.visit_seq(Items { items: items.iter(), like: self }),
            Value::Object(map) => visitor.visit_map(self.members(map)),
            // Not by `Value`'s own deserializer, which would decode every type once more when it is compiled.
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(value) => value.deserialize_any(visitor),
            Value::String(value) => visitor.visit_borrowed_str(value),
        }
    }

    whole_numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
    }

    or_zero! {
        deserialize_bool: |v: V, _| v.visit_bool(false);
        deserialize_f32: |v: V, _| v.visit_f64(0.0);
        deserialize_f64: |v: V, _| v.visit_f64(0.0);
        deserialize_str: |v: V, _| v.visit_borrowed_str("");
        deserialize_string: |v: V, _| v.visit_borrowed_str("");
        deserialize_seq: |v: V, like| v.visit_seq(Items { items: [].iter(), like });
        deserialize_map: |v: V, like: Self| v.visit_map(like.no_members());
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.value.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        if self.is_zero() && matches!(name, "Time" | "MicroTime") {
            let zero: StrDeserializer<'_, Error> = ZERO_TIME.into_deserializer();
            return visitor.visit_newtype_struct(zero);
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.struct_members(fields) {
            Some(members) => visitor.visit_map(members),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.value.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

struct Items<'a> {
    items: std::slice::Iter<'a, Value>,
    like: Lenient<'a>,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.items.next().map(|value| seed.deserialize(self.like.of(value))).transpose()
    }
}

struct Members<'a> {
    members: std::vec::IntoIter<(&'a str, &'a Value)>,
    /// Value of the last returned name.
    next: &'a Value,
    like: Lenient<'a>,
}

impl<'de> MapAccess<'de> for Members<'de> {
    type Error = Error;

    fn next_key_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some((name, value)) = self.members.next() else { return Ok(None) };
        self.next = value;
        let name: StrDeserializer<'_, Error> = name.into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(self.like.of(self.next))
    }
}

/// Decodes text strictly; if that fails, with Go's rules.
///
/// # Errors
/// The error of the strict attempt.
pub fn from_slice<T: DeserializeOwned>(json: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(json).or_else(|strict| {
        let value: Value = serde_json::from_slice(json)?;
        lenient(&value).map_err(|_| strict)
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, Pod, Service},
    };
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Own {
        name: String,
        #[serde(default = "seven")]
        size: u32,
        ready: bool,
    }

    fn seven() -> u32 {
        7
    }

    #[test]
    fn absent_and_null_members_are_zero() {
        let service = json!({"status": {"conditions": [{"type": "A", "status": "True"}]}});
        let service: Service = lenient(&service).unwrap();
        let condition = &service.status.unwrap().conditions.unwrap()[0];
        assert_eq!((condition.type_.as_str(), condition.reason.as_str()), ("A", ""));
        let map: ConfigMap = lenient(&json!({"data": {"a": null, "b": "c"}})).unwrap();
        assert_eq!(map.data.unwrap()["a"], "");
        let pod = json!({"spec": {"containers": [null, {"name": "c", "args": [null], "ports": [{"containerPort": 80.0}]}]}});
        let containers = lenient::<Pod>(&pod).unwrap().spec.unwrap().containers;
        assert_eq!(containers[0].name, "");
        assert_eq!(containers[1].ports.as_ref().unwrap()[0].container_port, 80);
        let claims = json!({"spec": {"volumeClaimTemplates": [{"apiVersion": "", "kind": "Claim", "metadata": {"name": "c"}}]}});
        let claims = lenient::<StatefulSet>(&claims).unwrap().spec.unwrap().volume_claim_templates.unwrap();
        assert_eq!(claims[0].metadata.name.as_deref(), Some("c"));
        assert!(lenient::<Pod>(&json!({"kind": "Service"})).is_err(), "another kind is another matter");
    }

    #[test]
    fn a_types_own_defaults_come_first() {
        let own = |value| lenient::<Own>(&value).unwrap();
        assert_eq!(
            own(json!({"name": null, "ready": true})),
            Own { name: String::new(), size: 7, ready: true }
        );
        assert_eq!(own(json!({"size": 1})), Own { name: String::new(), size: 1, ready: false });
    }

    #[test]
    fn what_is_something_else_stays_an_error() {
        for bad in [json!({"metadata": 1}), json!({"spec": {"containers": "x"}}), json!([])] {
            assert!(lenient::<Pod>(&bad).is_err(), "{bad}");
        }
        assert!(from_slice::<Pod>(b"{").is_err());
    }
}
