//! Schemas of the Rust types of built-in kinds.

use schemars::{JsonSchema, SchemaGenerator};
use serde::de::DeserializeOwned;

/// Adds a type to a generator: the [`Generate`](k8s_schema::Generate) of a row.
pub(crate) fn generate<T: JsonSchema + DeserializeOwned>(
    generator: &mut SchemaGenerator,
) -> schemars::Schema {
    #[cfg(test)]
    tests::DECODE.set(Some(|value| k8s_core::json::lenient::<T>(value).map(drop)));
    k8s_schema::generate::<T>(generator)
}

#[cfg(test)]
mod tests;
