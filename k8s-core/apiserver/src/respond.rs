//! Answers.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use k8s_core::{
    client::{Body, body_from_bytes},
    status::ApiStatus,
};
use serde_json::{Value, json};

use crate::table::{Encoding, Form, PROTOBUF};

/// Marks an answer of another server, which is passed on as it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Foreign;

/// A JSON answer.
#[must_use]
pub(crate) fn json_bytes(code: StatusCode, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(body_from_bytes(bytes));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A JSON answer.
#[must_use]
pub(crate) fn json_value(code: StatusCode, value: &Value) -> Response<Body> {
    json_bytes(code, crate::value::encode(value))
}

/// A plain text answer.
#[must_use]
pub(crate) fn text(code: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(body_from_bytes(text));
    *response.status_mut() = code;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// A Status as JSON, with the empty parts that upstream writes.
#[must_use]
pub(crate) fn status_value(status: &ApiStatus) -> Value {
    let mut value = serde_json::to_value(status.status()).unwrap_or_default();
    value["kind"] = "Status".into();
    value["apiVersion"] = "v1".into();
    value["metadata"] = json!({});
    value
}

/// A failed answer.
#[must_use]
pub(crate) fn failure(status: &ApiStatus) -> Response<Body> {
    let code = StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json_value(code, &status_value(status));
    if let Some(seconds) = status.status().details.as_ref().and_then(|d| d.retry_after_seconds) {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// Whether a client would rather have protobuf than JSON.
#[must_use]
pub(crate) fn takes_protobuf(headers: &http::HeaderMap) -> bool {
    matches!(Form::negotiate(headers, true), Ok((_, Encoding::Protobuf)))
}

/// A JSON answer as protobuf, where it holds an object that has such a form; other answers stay what they are.
///
/// Lists and watches of stored objects are not answered by way of JSON, and come through here untouched.
pub(crate) async fn in_protobuf(response: Response<Body>) -> Response<Body> {
    let json = response.headers().get(header::CONTENT_TYPE).is_some_and(|v| v == "application/json");
    // What has no known length is written piece by piece.
    if !json || response.body().size_hint().exact().is_none() {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Ok(bytes) = body.collect().await.map(http_body_util::Collected::to_bytes) else {
        return failure(&ApiStatus::new(
            500,
            "InternalError",
            "Internal error occurred: the answer broke off",
        ));
    };
    let encoded =
        serde_json::from_slice(&bytes).ok().and_then(|object: Value| k8s_core::proto::encode(&object));
    let Some(encoded) = encoded else { return Response::from_parts(parts, body_from_bytes(bytes)) };
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROTOBUF));
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, body_from_bytes(encoded))
}

/// How much all warnings of an answer may have, and then each of them, characters (upstream's limits).
const ALL_WARNINGS: usize = 4096;
const ONE_WARNING: usize = 256;

/// Adds `Warning` headers. When they are many, each is cut, and what does not fit is left out.
pub(crate) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    let total: usize = warnings.iter().map(|w| w.chars().count()).sum();
    let mut room = ALL_WARNINGS;
    for warning in warnings {
        let most = if total > ALL_WARNINGS { ONE_WARNING } else { usize::MAX };
        let shown: String = warning.chars().take(most).collect();
        let Some(left) = room.checked_sub(shown.chars().count()) else { return };
        room = left;
        let quoted = shown.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}
