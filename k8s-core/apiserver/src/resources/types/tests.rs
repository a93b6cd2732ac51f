//! Objects that match a built-in type's schema can be decoded by caches, even without members that Go
//! defaults to zero.

use std::cell::Cell;

use k8s_schema::{Generate, Kind, NodeId, Schema};
use proptest::{
    prelude::*,
    test_runner::{RngAlgorithm, TestRng},
};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::resources::Registry;

/// Decodes an object as a typed cache does, and drops it.
type Decode = fn(&Value) -> Result<(), serde_json::Error>;

thread_local! {
    /// Decoder of the type that was last added to a generator. Only tests have it: compiled for every type,
    /// decoders are much code.
    pub(super) static DECODE: Cell<Option<Decode>> = const { Cell::new(None) };
}

/// Returns the decoder of a row's type.
fn decoder(generate: Generate) -> Option<Decode> {
    let _ = generate(&mut SchemaSettings::draft2020_12().into_generator());
    DECODE.take()
}

/// Number of random objects per type.
const DRAWS: usize = 24;
/// Maximum depth of an object.
const DEPTH: usize = 9;

struct Draw<'a> {
    schema: &'a Schema,
    rng: TestRng,
}

impl Draw<'_> {
    fn below(&mut self, n: usize) -> usize {
        self.rng.next_u32() as usize % n
    }

    fn one<'v, T>(&mut self, of: &'v [T]) -> &'v T {
        &of[self.below(of.len())]
    }

    fn value(&mut self, id: NodeId, depth: usize) -> Value {
        let node = self.schema.node(id);
        match (&node.kind, &*node.name) {
            (Kind::Object { fields, rest, .. }, _) => {
                let mut map = Map::new();
                // Fewer members at greater depth keep objects small.
                let odds = if depth < 4 { 2 } else { 3 };
                for (name, field) in fields {
                    if depth < DEPTH && self.below(odds) == 0 {
                        let null = self.below(12) == 0;
                        let value = if null { Value::Null } else { self.value(field.node, depth + 1) };
                        map.insert(name.to_string(), value);
                    }
                }
                if let Some(rest) = rest.filter(|_| depth < DEPTH) {
                    for name in ["a", "b"].iter().take(self.below(3)) {
                        map.insert((*name).to_owned(), self.value(rest, depth + 1));
                    }
                }
                map.into()
            }
            (Kind::List { item, .. }, _) => {
                let length = if depth < DEPTH { self.below(3) } else { 0 };
                (0..length).map(|_| self.value(*item, depth + 1)).collect()
            }
            (Kind::String { format }, _) => match &**format {
                "byte" => json!(self.one(&["", "aGk="])),
                "date-time" => json!(self.one(&[
                    "2026-01-01T00:00:00Z",
                    "0001-01-01T00:00:00Z",
                    "2026-01-01T00:00:00.123456+02:00"
                ])),
                _ => json!(self.one(&["", "a", "10.0.0.1", "True"])),
            },
            (Kind::Integer { .. }, _) => {
                self.one(&[json!(0), json!(-1), json!(80), json!(3.0), json!(i32::MAX)]).clone()
            }
            (Kind::Number, _) => self.one(&[json!(0), json!(0.5)]).clone(),
            (Kind::Boolean, _) => json!(self.below(2) == 0),
            (Kind::IntOrString, _) => self.one(&[json!(1), json!("25%"), json!("")]).clone(),
            (Kind::Quantity, _) => self.one(&[json!(1), json!(0.5), json!("1Mi")]).clone(),
            (Kind::Any, "JSONSchemaPropsOrBool") => self.one(&[json!(true), json!({})]).clone(),
            (Kind::Any, "JSONSchemaPropsOrArray") => self.one(&[json!({}), json!([{}])]).clone(),
            (Kind::Any, "JSONSchemaPropsOrStringArray") => self.one(&[json!({}), json!(["a"])]).clone(),
            // Schema of an optional struct of a type that is defined here.
            (Kind::Any, "") => self.one(&[json!(null), json!({})]).clone(),
            (Kind::Any, _) => self.one(&[json!(null), json!(1), json!({"a": [null]}), json!("x")]).clone(),
        }
    }
}

#[test]
fn every_type_decodes_whatever_fits_its_schema() {
    let mut types = 0;
    let mut refused = 0;
    for resource in Registry::whole().all() {
        let (Some(generate), schema) = (resource.generate, resource.request_schema()) else { continue };
        let decode = decoder(generate).expect("every row names its type by types::generate");
        types += 1;
        let mut draw = Draw { schema, rng: TestRng::deterministic_rng(RngAlgorithm::ChaCha) };
        for _ in 0..DRAWS {
            let mut object = draw.value(schema.root_id(), 0);
            let Some(map) = object.as_object_mut() else { panic!("{} is no object", resource.kind) };
            map.remove("apiVersion");
            map.remove("kind");
            // As the server does with request bodies.
            if !schema.normalize(&mut object, false).mismatches.is_empty() {
                refused += 1;
                continue;
            }
            schema.default(&mut object);
            if let Err(e) = decode(&object) {
                panic!("{} {}: {e}\n{object:#}", resource.api_version(), resource.kind);
            }
        }
    }
    assert!(types > 60, "{types}");
    assert!(
        refused < types * DRAWS / 10,
        "{refused} of {} draws are not what the schema says",
        types * DRAWS
    );
}
