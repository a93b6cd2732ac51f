//! The forms in which clients may ask for objects: whole, metadata only, or as a Table.

use http::HeaderMap;
use jiff::Timestamp;
use k8s_core::status::ApiStatus;
use serde_json::{Value, json};

use crate::resources::{Resource, columns};

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Whole objects.
    Whole,
    /// `PartialObjectMetadata`.
    Metadata,
    /// `Table`.
    Table,
}

impl Form {
    /// The best form that the `Accept` header names.
    ///
    /// # Errors
    /// 406 when it names none that can be given.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Result<Form, ApiStatus> {
        let mut any = false;
        for accept in headers.get_all(http::header::ACCEPT).iter().filter_map(|v| v.to_str().ok()) {
            for choice in accept.split(',').map(str::trim).filter(|c| !c.is_empty()) {
                any = true;
                let mut parts = choice.split(';').map(str::trim);
                let media = parts.next().unwrap_or_default();
                let kind = parts.find_map(|p| p.strip_prefix("as="));
                match (media, kind) {
                    ("application/json", Some("Table")) => return Ok(Form::Table),
                    ("application/json", Some("PartialObjectMetadata" | "PartialObjectMetadataList")) => {
                        return Ok(Form::Metadata);
                    }
                    ("application/json" | "application/*" | "*/*", None) => return Ok(Form::Whole),
                    _ => {}
                }
            }
        }
        if !any {
            return Ok(Form::Whole);
        }
        Err(ApiStatus::new(
            406,
            "NotAcceptable",
            "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )
        .about("", "", ""))
    }
}

/// An object's `PartialObjectMetadata`.
#[must_use]
pub(crate) fn metadata_only(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_default(),
    })
}

/// One row: cells, which are made of the stored form for built-in types, and, as `include` says (`None`, `Metadata`, `Object`), the served object.
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

/// A Table of rows. Later events of a watch leave the column definitions out.
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
