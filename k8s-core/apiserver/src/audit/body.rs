//! Bodies of requests and responses that are recorded.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::{Frame, SizeHint};
use k8s_core::client::{Body, BoxError};
use serde_json::Value;

use super::{LONGEST_BODY, Stage, Trail};
use crate::decode;

/// Returns the value of a body in JSON, YAML, protobuf or a form of patch; `None` for others.
pub(super) fn decoded(headers: &HeaderMap, body: &[u8]) -> Option<Value> {
    if body.is_empty() {
        return None;
    }
    let media = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    match media.unwrap_or("application/json").split(';').next().unwrap_or_default().trim() {
        "application/vnd.kubernetes.protobuf" => k8s_schema::proto::decode(body).ok(),
        "application/yaml" | "application/apply-patch+yaml" => decode::yaml(body).ok(),
        media if media == "application/json" || media.ends_with("+json") => {
            decode::json(body).ok().map(|(value, _)| value)
        }
        _ => None,
    }
}

/// Returns a Status without its kind and version, as in `responseStatus`.
pub(super) fn bare_status(status: &Value) -> Value {
    let mut status = status.clone();
    if let Some(fields) = status.as_object_mut() {
        fields.remove("kind");
        fields.remove("apiVersion");
    }
    status
}

/// Removes the managed fields of an object, of a list's items and of a table's rows.
pub(super) fn without_managed_fields(object: &mut Value) {
    let remove = |object: &mut Value| {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    };
    remove(object);
    for item in object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        remove(item);
    }
    for row in object.get_mut("rows").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(object) = row.get_mut("object") {
            remove(object);
        }
    }
}

/// A request body whose parts the trail keeps.
pub(super) struct Kept {
    body: Body,
    trail: Trail,
}

impl Kept {
    pub(super) fn new(body: Body, trail: Trail) -> Self {
        Kept { body, trail }
    }
}

impl http_body::Body for Kept {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(part) = frame.data_ref()
        {
            self.trail.keep(part.clone());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response body whose end is recorded.
pub(super) struct Finishing {
    body: Body,
    /// `None` when the end is recorded.
    trail: Option<Trail>,
    /// The response's headers, if its body is to be recorded.
    headers: Option<HeaderMap>,
    kept: Vec<u8>,
}

impl Finishing {
    pub(super) fn new(body: Body, trail: Trail, headers: Option<HeaderMap>) -> Self {
        Finishing { body, trail: Some(trail), headers, kept: Vec::new() }
    }

    fn finish(&mut self) {
        let Some(trail) = self.trail.take() else { return };
        if let Some(headers) = self.headers.take() {
            trail.note_response(&headers, &std::mem::take(&mut self.kept));
        }
        let _ = trail.record(Stage::ResponseComplete);
    }
}

impl Drop for Finishing {
    fn drop(&mut self) {
        self.finish();
    }
}

impl http_body::Body for Finishing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) if self.headers.is_some() => {
                let part = frame.data_ref().map(Bytes::as_ref).unwrap_or_default();
                if self.kept.len() + part.len() > LONGEST_BODY {
                    self.headers = None;
                    self.kept = Vec::new();
                    if let Some(trail) = &self.trail {
                        trail.truncated();
                    }
                } else {
                    self.kept.extend_from_slice(part);
                }
            }
            Poll::Ready(None) => self.finish(),
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
