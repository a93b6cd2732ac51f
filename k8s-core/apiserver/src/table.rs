//! The forms in which clients may ask for objects: whole, metadata only, or as a Table.

use http::HeaderMap;
use jiff::Timestamp;
use k8s_core::status::ApiStatus;
use serde_json::{Value, json};

use crate::resources::{Resource, columns};

/// The media type of Kubernetes protobuf.
pub(crate) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

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

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// JSON.
    Json,
    /// Kubernetes protobuf: `application/vnd.kubernetes.protobuf`.
    Protobuf,
}

impl Form {
    /// The best form that the `Accept` header names, in JSON.
    ///
    /// # Errors
    /// 406 when it names none that can be given.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Result<Form, ApiStatus> {
        // Small answers are turned into protobuf where they leave the server.
        Form::negotiate(headers, true).map(|(form, _)| form)
    }

    /// The best form and encoding that the `Accept` header names; `protobuf`: whether there is such a form.
    ///
    /// # Errors
    /// 406 when it names none that can be given.
    pub(crate) fn negotiate(headers: &HeaderMap, protobuf: bool) -> Result<(Form, Encoding), ApiStatus> {
        let mut any = false;
        for accept in headers.get_all(http::header::ACCEPT).iter().filter_map(|v| v.to_str().ok()) {
            for choice in accept.split(',').map(str::trim).filter(|c| !c.is_empty()) {
                any = true;
                let mut parts = choice.split(';').map(str::trim);
                let encoding = match parts.next().unwrap_or_default() {
                    PROTOBUF => Encoding::Protobuf,
                    "application/json" | "application/*" | "*/*" => Encoding::Json,
                    _ => continue,
                };
                let form = match parts.find_map(|p| p.strip_prefix("as=")) {
                    None => Form::Whole,
                    Some("PartialObjectMetadata" | "PartialObjectMetadataList") => Form::Metadata,
                    Some("Table") => Form::Table,
                    Some(_) => continue,
                };
                let given = match (encoding, form) {
                    (Encoding::Json, _) => true,
                    // Rows of a Table have no type.
                    (Encoding::Protobuf, Form::Table) => false,
                    // Metadata is of the same type everywhere.
                    (Encoding::Protobuf, Form::Metadata) => true,
                    (Encoding::Protobuf, Form::Whole) => protobuf,
                };
                if given {
                    return Ok((form, encoding));
                }
            }
        }
        if !any {
            return Ok((Form::Whole, Encoding::Json));
        }
        let more = if protobuf { ", application/vnd.kubernetes.protobuf" } else { "" };
        let message = format!(
            "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml{more}"
        );
        Err(ApiStatus::new(406, "NotAcceptable", message).about("", "", ""))
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
