//! The Rust types behind built-in kinds: their schemas, and how typed caches decode them.

use std::cell::Cell;

use k8s_core::json;
use k8s_schema::Generate;
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Decodes an object as a typed cache does, and drops it.
pub type Decode = fn(&Value) -> Result<(), serde_json::Error>;

thread_local! {
    /// The decoder of the type that was added to a generator last.
    static DECODE: Cell<Option<Decode>> = const { Cell::new(None) };
}

/// Adds a type to a generator: the [`Generate`] of a row.
pub(crate) fn generate<T: JsonSchema + DeserializeOwned>(
    generator: &mut SchemaGenerator,
) -> schemars::Schema {
    DECODE.set(Some(|value| json::lenient::<T>(value).map(drop)));
    k8s_schema::generate::<T>(generator)
}

/// Returns the decoder of the type behind a row's [`Generate`]: for tests that feed every type of the table.
#[must_use]
pub fn decoder(generate: Generate) -> Option<Decode> {
    let _ = generate(&mut SchemaSettings::draft2020_12().into_generator());
    DECODE.take()
}
