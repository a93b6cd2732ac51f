//! Rust types of built-in kinds: their schemas, and decoding as in typed caches.

use std::cell::Cell;

use k8s_core::json;
use k8s_schema::Generate;
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Decodes an object as a typed cache does, and drops it.
pub type Decode = fn(&Value) -> Result<(), serde_json::Error>;

thread_local! {
    /// Decoder of the type that was last added to a generator.
    static DECODE: Cell<Option<Decode>> = const { Cell::new(None) };
}

/// Adds a type to a generator: the [`Generate`] of a row.
pub(crate) fn generate<T: JsonSchema + DeserializeOwned>(
    generator: &mut SchemaGenerator,
) -> schemars::Schema {
    DECODE.set(Some(|value| json::lenient::<T>(value).map(drop)));
    k8s_schema::generate::<T>(generator)
}

/// Returns the decoder of a row's [`Generate`], for tests over all types of the table.
#[must_use]
pub fn decoder(generate: Generate) -> Option<Decode> {
    let _ = generate(&mut SchemaSettings::draft2020_12().into_generator());
    DECODE.take()
}
