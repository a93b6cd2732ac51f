//! Request bodies: reading, decoding, and fitting to the type of a resource.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::{Request, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use k8s_core::{
    client::{Body, BoxError},
    status::{ApiStatus, Reason},
};
use serde_json::Value;

use crate::{
    call::Call,
    decode::{self, MAX_BODY},
    limits::{Crowded, Ticket},
    resources::Resource,
    value::str_at,
};

/// Reads a whole body.
///
/// # Errors
/// 413 above the limit, 400 when the connection breaks.
pub(crate) async fn read_body(request: &mut Request<Body>) -> Result<Bytes, ApiStatus> {
    let too_large = || {
        ApiStatus::of(Reason::RequestEntityTooLarge, format!("Request entity too large: limit is {MAX_BODY}"))
    };
    if request.body().size_hint().lower() > MAX_BODY as u64 {
        return Err(too_large());
    }
    let body = std::mem::replace(request.body_mut(), k8s_core::client::empty_body());
    match collect(body).await {
        Ok(body) => {
            if let Some(ticket) = request.extensions().get::<Arc<Ticket>>()
                && decode::is_heavy(request.headers(), &body)
            {
                ticket.keep(ticket.heavy().await);
            }
            Ok(body)
        }
        Err(e) if e.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Err(e) if e.is::<Crowded>() => Err((&Crowded).into()),
        Err(e) => Err(ApiStatus::bad_request(format!("read the body: {e}"))),
    }
}

/// Boxed, because rustc cannot see that a future over the body's boxed error is `Send`.
fn collect(body: Body) -> BoxFuture<'static, Result<Bytes, BoxError>> {
    http_body_util::Limited::new(body, MAX_BODY).collect().map(|done| done.map(|b| b.to_bytes())).boxed()
}

/// The body's media type.
pub(crate) fn media_type(call: &Call) -> String {
    let value = call.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_owned()
}

/// What precedes the lines of YAML's problems.
pub(crate) const YAML_ERRORS: &str = "yaml: unmarshal errors:\n  ";

fn handled_as(resource: &Resource, version: &str, why: impl std::fmt::Display) -> ApiStatus {
    let kind = &resource.kind;
    ApiStatus::bad_request(format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"))
}

/// Decodes a body into a JSON value, with what is said about fields that are there twice.
pub(crate) fn decode_body(call: &Call, kind: &str, body: &[u8]) -> Result<(Value, Vec<String>), ApiStatus> {
    let content_type =
        call.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("application/json");
    let media = content_type.split(';').next().unwrap_or_default().trim();
    let unrecognized = |e: &dyn std::fmt::Display| {
        let shown: String = String::from_utf8_lossy(body).chars().take(200).collect();
        ApiStatus::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: {e} ({shown})"
        ))
    };
    let (value, duplicates) = match media {
        "application/json" | "" => decode::json(body)
            .map(|(v, twice)| (v, twice.lines(|path| format!("duplicate field \"{path}\""))))
            .map_err(|e| unrecognized(&e)),
        "application/yaml" => decode::yaml_with_duplicate(body)
            .map(|(v, twice)| (v, twice.into_iter().collect()))
            .map_err(|e| unrecognized(&e)),
        "application/vnd.kubernetes.protobuf" => {
            k8s_schema::proto::decode(body).map(|v| (v, Vec::new())).map_err(|e| {
                ApiStatus::bad_request(format!(
                    "the object provided is unrecognized (must be of type {kind}): {e}"
                ))
            })
        }
        _ => Err(ApiStatus::of(
            Reason::UnsupportedMediaType,
            "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )),
    }?;
    if !value.is_object() {
        return Err(unrecognized(&"the body is no object"));
    }
    Ok((value, duplicates))
}

/// Returns a problem as an error shows it: one of a line of YAML begins with its decoder's name.
fn shown(problem: &str) -> Cow<'_, str> {
    match problem.starts_with("line ") {
        true => format!("{YAML_ERRORS}{problem}").into(),
        false => problem.into(),
    }
}

/// Makes a decoded object fit the resource's type, as `fieldValidation` says. `duplicates` is what
/// [`decode_body`] found.
pub(crate) fn fit(
    call: &Call,
    resource: &Resource,
    object: &mut Value,
    duplicates: Vec<String>,
) -> Result<(), ApiStatus> {
    if !object.is_object() {
        return Err(ApiStatus::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): it is no object",
            resource.kind
        )));
    }
    let (version, kind) = (str_at(object, "/apiVersion").to_owned(), str_at(object, "/kind").to_owned());
    let served = resource.api_version();
    if !kind.is_empty() && kind != resource.kind {
        return Err(ApiStatus::bad_request(format!(
            "{kind} in version \"{}\" cannot be handled as a {}: converting ({}.{kind}) to ({}.{}): unknown conversion",
            resource.version,
            resource.kind,
            resource.version,
            if resource.group.is_empty() { "core" } else { &resource.group },
            resource.kind
        )));
    }
    if !version.is_empty() && version != served {
        let short = version.rsplit('/').next().unwrap_or(&version);
        return Err(handled_as(
            resource,
            short,
            format!("no kind \"{}\" is registered for version \"{version}\"", resource.kind),
        ));
    }
    object["apiVersion"] = served.into();
    object["kind"] = resource.kind.clone().into();
    let found = resource.request_schema().normalize(object, resource.custom);
    // Other fields of a custom object are validated by its definition, all at once.
    let own = |path: &str| {
        resource.rules.is_none() || ["metadata", "apiVersion", "kind"].iter().any(|p| path.starts_with(p))
    };
    if let Some(first) = found.mismatches.iter().find(|m| own(&m.path)) {
        let why = match first.want.split_once(": ") {
            Some(("base64" | "time" | "quantity", message)) => message.to_owned(),
            _ => {
                let path: String = first
                    .path
                    .split('.')
                    .map(|p| p.split('[').next().unwrap_or(p))
                    .collect::<Vec<_>>()
                    .join(".");
                format!(
                    "json: cannot unmarshal {} into Go struct field {}.{path} of type {}",
                    first.have, resource.kind, first.want
                )
            }
        };
        return Err(handled_as(resource, &resource.version, why));
    }
    let mut problems = found.unknown.lines(|path| format!("unknown field \"{path}\""));
    problems.extend(duplicates);
    if problems.is_empty() {
        return Ok(());
    }
    match call.query.get("fieldValidation") {
        "Strict" => Err(handled_as(
            resource,
            &resource.version,
            format!(
                "strict decoding error: {}",
                problems.iter().map(|p| shown(p)).collect::<Vec<_>>().join(", ")
            ),
        )),
        "Ignore" => Ok(()),
        _ => {
            problems.into_iter().for_each(|p| call.warn(p));
            Ok(())
        }
    }
}
