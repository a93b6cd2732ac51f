//! Estimates the memory of an object.
//!
//! The type's own size is known. Its heap memory is estimated by serializing the object into a counter of
//! strings, lists and maps. The element size of a list is taken from the element's struct name for the most
//! frequent structs, and guessed for others.

use std::fmt::Display;

use k8s_openapi::{
    api::{
        core::v1::{
            Container, ContainerPort, ContainerStatus, EnvVar, NodeCondition, PodCondition, Toleration,
            Volume, VolumeMount,
        },
        discovery::v1::Endpoint,
    },
    apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference},
};
use serde::{
    Serialize,
    ser::{self, Serializer},
};

use crate::meta::Object;

/// Reference counters of an `Arc`.
const ARC: usize = 16;
const TEXT: usize = size_of::<String>();
/// A B-tree node has eleven places, of which about two thirds are used.
const NODE: usize = 11 * 2 * TEXT + 16;
const TAKEN: usize = 7;

/// Returns the memory of a shared object in bytes, heap included, with an error of some tens of percent.
// Not inlined, so that one copy per type serves all crates above (`shared`).
#[inline(never)]
pub(crate) fn weigh<K: Object>(object: &K) -> usize {
    let mut weight = Weight { heap: 0, in_list: false };
    // The counter never fails, and errors of the object's own `Serialize` do not matter here.
    let _ = object.serialize(&mut weight);
    // apiVersion and kind are serialized, but are constants of the type.
    let constants = allocated(K::API_VERSION.len()) + allocated(K::KIND.len());
    (ARC + size_of::<K>() + weight.heap).saturating_sub(constants)
}

/// Rounds up to the allocator's granularity.
fn allocated(bytes: usize) -> usize {
    bytes.next_multiple_of(16)
}

/// Returns the size of a struct by its name.
fn size_of_named(name: &str) -> usize {
    match name {
        "Container" => size_of::<Container>(),
        "ContainerPort" => size_of::<ContainerPort>(),
        "ContainerStatus" => size_of::<ContainerStatus>(),
        "Volume" => size_of::<Volume>(),
        "VolumeMount" => size_of::<VolumeMount>(),
        "EnvVar" => size_of::<EnvVar>(),
        "Toleration" => size_of::<Toleration>(),
        "PodCondition" => size_of::<PodCondition>(),
        "NodeCondition" => size_of::<NodeCondition>(),
        "Condition" => size_of::<Condition>(),
        "OwnerReference" => size_of::<OwnerReference>(),
        "Endpoint" => size_of::<Endpoint>(),
        _ => 128,
    }
}

struct Weight {
    heap: usize,
    /// The next value is a list element, whose own size is on the heap, too.
    in_list: bool,
}

impl Weight {
    /// Adds a value with its own size and further heap memory.
    fn add(&mut self, own: usize, elsewhere: usize) {
        if std::mem::take(&mut self.in_list) {
            self.heap += own;
        }
        self.heap += allocated(elsewhere);
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Broken(String);

impl ser::Error for Broken {
    fn custom<T: Display>(message: T) -> Self {
        Broken(message.to_string())
    }
}

macro_rules! scalars {
    ($($method:ident: $type:ty),*) => {
        $(fn $method(self, _: $type) -> Result<(), Broken> {
            self.add(size_of::<$type>(), 0);
            Ok(())
        })*
    };
}

impl Serializer for &mut Weight {
    type Ok = ();
    type Error = Broken;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    scalars!(
        serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64,
        serialize_f32: f32, serialize_f64: f64, serialize_char: char, serialize_unit_struct: &'static str
    );

    fn serialize_str(self, text: &str) -> Result<(), Broken> {
        self.add(TEXT, text.len());
        Ok(())
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Result<(), Broken> {
        self.add(TEXT, bytes.len());
        Ok(())
    }

    fn serialize_none(self) -> Result<(), Broken> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Broken> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Broken> {
        self.add(0, 0);
        Ok(())
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<(), Broken> {
        self.serialize_unit()
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Broken> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), Broken> {
        value.serialize(self)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self, Broken> {
        self.add(TEXT, 0);
        Ok(self)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self, Broken> {
        self.serialize_seq(None)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Broken> {
        self.serialize_seq(None)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Broken> {
        self.serialize_seq(None)
    }

    fn serialize_map(self, entries: Option<usize>) -> Result<Self, Broken> {
        self.add(TEXT, NODE * entries.unwrap_or(1).div_ceil(TAKEN));
        Ok(self)
    }

    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Self, Broken> {
        self.add(size_of_named(name), 0);
        Ok(self)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
        fields: usize,
    ) -> Result<Self, Broken> {
        self.serialize_struct(name, fields)
    }
}

macro_rules! elements {
    ($($part:ident::$method:ident($($name:ty)?), in_list: $in_list:literal;)*) => {
        $(impl ser::$part for &mut Weight {
            type Ok = ();
            type Error = Broken;

            fn $method<T: Serialize + ?Sized>(&mut self, $(_: $name,)? value: &T) -> Result<(), Broken> {
                self.in_list = $in_list;
                value.serialize(&mut **self)
            }

            fn end(self) -> Result<(), Broken> {
                self.in_list = false;
                Ok(())
            }
        })*
    };
}

elements! {
    SerializeSeq::serialize_element(), in_list: true;
    SerializeTuple::serialize_element(), in_list: true;
    SerializeTupleStruct::serialize_field(), in_list: true;
    SerializeTupleVariant::serialize_field(), in_list: true;
    SerializeStruct::serialize_field(&'static str), in_list: false;
    SerializeStructVariant::serialize_field(&'static str), in_list: false;
}

/// Map entries are stored in its nodes.
impl ser::SerializeMap for &mut Weight {
    type Ok = ();
    type Error = Broken;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Broken> {
        key.serialize(&mut **self)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Broken> {
        value.serialize(&mut **self)
    }

    fn end(self) -> Result<(), Broken> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, Pod};
    use serde_json::json;

    use super::*;

    fn weight<K: Object>(value: serde_json::Value) -> usize {
        weigh(&serde_json::from_value::<K>(value).unwrap())
    }

    #[test]
    fn texts_maps_and_lists_count() {
        let empty = weight::<ConfigMap>(json!({}));
        assert_eq!(empty, ARC + size_of::<ConfigMap>());
        let large = weight::<ConfigMap>(json!({"data": {"a": "x".repeat(1000)}}));
        assert_eq!(large - empty, NODE + allocated(1) + allocated(1000));
        let none = weight::<Pod>(json!({"spec": {"containers": []}}));
        let three =
            weight::<Pod>(json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}}));
        assert_eq!(three - none, 3 * (size_of::<Container>() + allocated(1)));
    }
}
