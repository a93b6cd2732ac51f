//! Objects as `PartialObjectMetadata`, and as rows of a `Table`.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::resources::{Resource, columns};

/// Returns an object's `meta.k8s.io/v1` PartialObjectMetadata.
#[must_use]
pub(crate) fn metadata_only(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_default(),
    })
}

/// Returns a Table row: cells, computed from the stored form for built-in types, and the served object
/// according to `include` (`None`, `Metadata`, `Object`).
#[must_use]
pub(crate) fn row(
    resource: &Resource,
    stored: &Value,
    served: &Value,
    include: &str,
    now: Timestamp,
) -> Value {
    let shown = if resource.custom { served } else { stored };
    let mut row = json!({"cells": columns::cells(&resource.columns, shown, now)});
    match include {
        "None" => {}
        "Object" => row["object"] = served.clone(),
        _ => row["object"] = metadata_only(served),
    }
    row
}

/// Returns a Table of rows. Later events of a watch omit the column definitions.
#[must_use]
pub(crate) fn table(resource: &Resource, rows: Vec<Value>, metadata: Value, with_columns: bool) -> Value {
    let definitions = if with_columns { columns::definitions(&resource.columns) } else { Value::Null };
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": definitions,
        "rows": rows,
    })
}
