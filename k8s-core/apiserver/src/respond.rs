//! Responses: JSON, text, Status, encodings, warnings.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use k8s_core::{
    client::{Body, body_from_bytes},
    status::{ApiStatus, Reason},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    accept::{Encoding, PROTOBUF, YAML},
    call::Call,
    fair::Schema,
    limits::Ticket,
};

/// Larger responses are written in YAML as they are read.
const LARGE: u64 = 64 << 10;

/// The media type of JSON.
const JSON: &str = "application/json";

/// The header with a request's id, which a client may choose.
const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
/// The headers with the uids of a request's flow schema and priority level.
const FLOW: [HeaderName; 2] = [
    HeaderName::from_static("x-kubernetes-pf-flowschema-uid"),
    HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid"),
];
/// Longest id that a client may choose, bytes.
const LONGEST_ID: usize = 64;

/// Marks a response of another server, which is passed on unchanged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Foreign;

/// Marks the response of a watch, which ends when its listener does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watching;

/// Returns the answer of a listener that is about to end.
pub(crate) fn shutting_down(http2: bool) -> Response<Body> {
    let mut response =
        text(StatusCode::TOO_MANY_REQUESTS, "The apiserver is shutting down, please try again later.\n");
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    if !http2 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Returns a response with encoded JSON as its body.
#[must_use]
pub(crate) fn json_bytes(code: StatusCode, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(body_from_bytes(bytes));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}

/// Returns a response with a value as its JSON body.
#[must_use]
pub(crate) fn json_value(code: StatusCode, value: &Value) -> Response<Body> {
    json_bytes(code, crate::value::encode(value))
}

/// Returns a JSON document that anyone may cache for an hour.
#[must_use]
pub(crate) fn public_for_an_hour(document: &Value, media: &'static str) -> Response<Body> {
    let mut response = json_value(StatusCode::OK, document);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    let caching = HeaderValue::from_static("public, max-age=3600");
    response.headers_mut().insert(header::CACHE_CONTROL, caching);
    // Clients get JSON whatever they accept.
    response.extensions_mut().insert(Foreign);
    response
}

/// Returns a cacheable document with an ETag; a client that has it already gets 304 without a body.
#[must_use]
pub(crate) fn tagged(call: &Call, bytes: Bytes, media: &'static str) -> Response<Body> {
    let tag = format!("\"{}\"", etag(&bytes));
    let known = call.headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|v| v.to_str().ok());
    let known = known.flat_map(|v| v.split(',')).any(|v| v.trim().trim_start_matches("W/") == tag);
    let mut response = match known {
        true => text(StatusCode::NOT_MODIFIED, ""),
        false => json_bytes(StatusCode::OK, bytes),
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    if let Ok(value) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}

/// The tag of a document: a hash of it.
#[must_use]
pub(crate) fn etag(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02X}")).collect()
}

/// Sets headers that every response has: no caching, and the request's audit id.
pub(crate) fn identify(response: &mut Response<Body>, id: Option<HeaderValue>) {
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
    if let Some(id) = id {
        headers.insert(AUDIT_ID, id);
    }
}

/// Sets the headers with the uids of a request's flow schema and priority level.
pub(crate) fn classify(response: &mut Response<Body>, schema: &Schema) {
    for (name, uid) in FLOW.into_iter().zip(&schema.uids) {
        response.headers_mut().insert(name, uid.clone());
    }
}

/// Returns the id of a request: the one that its client chose, or a new one.
pub(crate) fn audit_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked_as = headers.get(AUDIT_ID).filter(|id| !id.is_empty() && id.len() <= LONGEST_ID);
    let new = || HeaderValue::from_str(&k8s_core::random::uuid().hyphenated().to_string()).ok();
    asked_as.cloned().or_else(new)
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

/// 404 as plain text, for paths that are not served.
pub(crate) fn not_found_page() -> Response<Body> {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// A Status as JSON, with the empty parts that upstream writes.
#[must_use]
pub(crate) fn status_value(status: &ApiStatus) -> Value {
    let mut value = serde_json::to_value(status.status()).unwrap_or_default();
    value["kind"] = "Status".into();
    value["apiVersion"] = "v1".into();
    if !value["metadata"].is_object() {
        value["metadata"] = json!({});
    }
    value
}

/// Returns a response with a `Status` and its code, and with `Retry-After` if its details have one.
#[must_use]
pub(crate) fn failure(status: &ApiStatus) -> Response<Body> {
    let code = StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json_value(code, &status_value(status));
    if let Some(seconds) = status.status().details.as_ref().and_then(|d| d.retry_after_seconds) {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// A JSON answer in the encoding that the client takes; answers that are no JSON stay what they are.
pub(crate) async fn encoded(response: Response<Body>, encoding: Encoding) -> Response<Body> {
    let content_type = response.headers().get(header::CONTENT_TYPE).cloned();
    let json =
        content_type.as_ref().is_some_and(|v| v.to_str().is_ok_and(|v| v.split(';').next() == Some(JSON)));
    match encoding {
        _ if !json => response,
        Encoding::Json => response,
        // A list has no known length and is written as it is read.
        Encoding::Yaml if response.body().size_hint().exact().is_none_or(|length| length > LARGE) => {
            let ticket = response.extensions().get::<Arc<Ticket>>().cloned();
            let mut response = response.map(|body| crate::yaml::list(body, ticket));
            response.headers_mut().remove(header::CONTENT_LENGTH);
            let told = content_type.as_ref().and_then(|v| v.to_str().ok()).unwrap_or_default();
            response.headers_mut().insert(header::CONTENT_TYPE, retyped(YAML, told));
            response
        }
        Encoding::Yaml => rewritten(response, YAML, |object| serde_saphyr::to_string(object).ok()).await,
        // Lists and watches are in protobuf already, where they can be. A body of unknown length cannot be
        // rewritten.
        Encoding::Protobuf if response.body().size_hint().exact().is_none() => response,
        Encoding::Protobuf => rewritten(response, PROTOBUF, k8s_schema::proto::encode).await,
    }
}

/// A JSON answer with another body; what has no other form stays what it is.
async fn rewritten<B: Into<Bytes>>(
    response: Response<Body>,
    media: &'static str,
    encode: impl Fn(&Value) -> Option<B>,
) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    let Ok(bytes) = body.collect().await.map(http_body_util::Collected::to_bytes) else {
        return failure(&ApiStatus::of(
            Reason::InternalError,
            "Internal error occurred: the answer broke off",
        ));
    };
    let encoded = serde_json::from_slice(&bytes).ok().and_then(|object: Value| encode(&object));
    let Some(encoded) = encoded else { return Response::from_parts(parts, body_from_bytes(bytes)) };
    let told = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let media = retyped(media, told);
    parts.headers.insert(header::CONTENT_TYPE, media);
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, body_from_bytes(encoded))
}

/// Returns a media type with the parameters of another, such as discovery's `as=`.
fn retyped(media: &'static str, told: &str) -> HeaderValue {
    let told = told.split_once(';').map_or(String::new(), |(_, rest)| format!(";{rest}"));
    HeaderValue::from_str(&format!("{media}{told}")).unwrap_or(HeaderValue::from_static(JSON))
}

/// Limits of upstream, characters: all warnings of a response, and each of them when they are cut.
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
