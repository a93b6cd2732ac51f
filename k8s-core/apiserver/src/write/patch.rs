//! PATCH: JSON patch, merge patch, strategic merge patch and server-side apply.

use std::sync::Arc;

use http::{Response, StatusCode};
use k8s_core::{
    api::apimachinery::pkg::apis::meta::v1::StatusCause,
    client::Body,
    status::{ApiStatus, Reason},
};
use k8s_schema::patch::{
    self, PatchError, last_applied,
    managed::{self, Manager},
};
use serde_json::{Value, json};

use super::{Change, insert, modify};
use crate::{
    body::{YAML_ERRORS, fit, media_type},
    call::{Call, dry_run},
    decode,
    errors::{modified, precondition},
    invalid::FieldErrors,
    read::object_response,
    resources::Resource,
    state::State,
    storage::{TRIES, timestamp},
    value::{array_at, set, str_at, take},
};

fn patch_failure(error: &PatchError) -> ApiStatus {
    match error {
        PatchError::Malformed(message) => ApiStatus::bad_request(message.clone()),
        PatchError::TooLarge(message) => {
            ApiStatus::of(Reason::RequestEntityTooLarge, format!("Request entity is too large: {message}"))
        }
        _ => ApiStatus::of(Reason::Invalid, "the server rejected our request due to an error in our request")
            .about("", "", ""),
    }
}

/// PATCH of an object or of its status.
pub(crate) async fn patch(
    state: &Arc<State>,
    call: &Call,
    resource: &Arc<Resource>,
    body: &[u8],
) -> Result<Response<Body>, ApiStatus> {
    let dry_run = dry_run(call, "PatchOptions")?;
    let media = media_type(call);
    if media == "application/apply-patch+yaml" {
        return apply(state, call, resource, body, dry_run).await;
    }
    let change = patch_function(resource, &media, body)?;
    let bytes = modify(state, call, resource, dry_run, &|old| {
        let mut object = old.clone();
        resource.from_storage(&mut object);
        change(&mut object)?;
        fit_patched(call, resource, &mut object)?;
        if str_at(&object, "/metadata/name") != call.info.name {
            let mut errors = FieldErrors::default();
            errors.invalid("metadata.name", str_at(&object, "/metadata/name"), "field is immutable");
            return Err(errors.into_status(&resource.group, &resource.kind, &call.info.name));
        }
        Ok(Change::Replace(object))
    })
    .await?;
    object_response(state, call, resource, StatusCode::OK, &bytes)
}

/// Makes a patched object fit its type, as [`fit`]. Upstream blames the patch.
///
/// # Errors
/// 422 with the field `patch`.
pub(crate) fn fit_patched(call: &Call, resource: &Resource, object: &mut Value) -> Result<(), ApiStatus> {
    fit(call, resource, object, Vec::new()).map_err(|error| {
        let why = error.message();
        // Without the words that are about the body of another request.
        let why = why
            .split_once(&format!(" cannot be handled as a {}: ", resource.kind))
            .map_or(why, |(_, why)| why);
        let mut errors = FieldErrors::default();
        // The object is in the message, and messages are in audit logs.
        if resource.plural == "secrets" {
            errors.invalid_unshown("patch", why);
        } else {
            errors.invalid("patch", object.to_string(), why);
        }
        errors.into_status("", "", "")
    })
}

/// Changes an object as a patch says.
pub(crate) type PatchFunction = Box<dyn Fn(&mut Value) -> Result<(), ApiStatus> + Send + Sync>;

/// The function that a patch body describes.
pub(crate) fn patch_function(
    resource: &Arc<Resource>,
    media: &str,
    body: &[u8],
) -> Result<PatchFunction, ApiStatus> {
    let decode = || {
        serde_json::from_slice::<Value>(body)
            .map_err(|e| ApiStatus::bad_request(format!("error decoding patch: {e}")))
    };
    match media {
        "application/json-patch+json" => {
            let change = decode()?;
            Ok(Box::new(move |object| patch::json(object, &change).map_err(|e| patch_failure(&e))))
        }
        "application/merge-patch+json" => {
            let change = decode()?;
            if !change.is_object() {
                return Err(ApiStatus::bad_request("a merge patch must be an object"));
            }
            Ok(Box::new(move |object| {
                patch::merge(object, &change);
                Ok(())
            }))
        }
        "application/strategic-merge-patch+json" if !resource.custom => {
            let change = decode()?;
            let resource = resource.clone();
            Ok(Box::new(move |object| {
                patch::strategic(object, &change, resource.request_schema()).map_err(|e| patch_failure(&e))
            }))
        }
        _ => {
            Err(ApiStatus::of(Reason::UnsupportedMediaType, "415: Unsupported Media Type").about("", "", ""))
        }
    }
}

/// Handles a server-side apply: creates or merges, and records field managers.
async fn apply(
    state: &Arc<State>,
    call: &Call,
    resource: &Arc<Resource>,
    body: &[u8],
    dry_run: bool,
) -> Result<Response<Body>, ApiStatus> {
    let named = call.query.get("fieldManager");
    if named.is_empty() {
        let mut errors = FieldErrors::default();
        errors.required("fieldManager", "is required for apply patch");
        return Err(errors.into_status("meta.k8s.io", "PatchOptions", ""));
    }
    let (mut config, twice) = applied(body)?;
    let (version, kind) = (str_at(&config, "/apiVersion"), str_at(&config, "/kind"));
    if kind.is_empty() || version.is_empty() {
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        return Err(ApiStatus::bad_request(format!("invalid object type: {group}/{version}, Kind={kind}")));
    }
    if !array_at(&config, "/metadata/managedFields").is_empty() {
        return Err(ApiStatus::bad_request("metadata.managedFields must be nil"));
    }
    take(&mut config, "/metadata", "managedFields");
    let (namespace, name) = (call.info.namespace.as_str(), call.info.name.as_str());
    let given = json!({"metadata": config["metadata"]});
    declared(call, resource, &config, twice)?;
    fit(call, resource, &mut config, Vec::new())?;
    set(&mut config, "/metadata/name", name.into());
    if resource.namespaced {
        set(&mut config, "/metadata/namespace", namespace.into());
    }
    let sent = config.clone();
    resource.to_storage(&mut config);
    if let Some(what) = managed::ambiguous(&config, &resource.schema) {
        return Err(untyped(resource, &given, &what));
    }
    let manager = Manager {
        name: named.to_owned(),
        api_version: resource.api_version(),
        subresource: call.info.subresource.clone(),
    };
    let force = call.query.truth("force");
    let key = resource.key(namespace, name);
    for _ in 0..TRIES {
        let now = timestamp(state.clock.now());
        if state.store.get(&resource.storage, &key).is_some() {
            let done = modify(state, call, resource, dry_run, &|old| {
                let wanted = str_at(&config, "/metadata/resourceVersion");
                // A configuration that says what it changes is no last word, forced or not: leases are taken
                // by it.
                if !["", "0", str_at(old, "/metadata/resourceVersion")].contains(&wanted) {
                    return Err(modified(resource, name));
                }
                let (wanted, uid) = (str_at(&config, "/metadata/uid"), str_at(old, "/metadata/uid"));
                if !wanted.is_empty() && wanted != uid {
                    return Err(precondition(resource, &key, name, wanted, uid));
                }
                last_applied::apply(old, &config, &sent, &resource.schema, &manager, force, &now)
                    .map(Change::Applied)
                    .map_err(conflicts)
            })
            .await;
            match done {
                Err(e) if e.code() == 404 => continue,
                other => return object_response(state, call, resource, StatusCode::OK, &other?),
            }
        }
        if !call.info.subresource.is_empty() {
            return Err(ApiStatus::not_found(&resource.group, &resource.plural, name));
        }
        state.authorization.may_create(&call.user, &call.info).await?;
        let made = managed::apply(&managed::nothing(), &config, &resource.schema, &manager, force, &now)
            .map_err(conflicts)?;
        match insert(state, call, resource, made, dry_run, &|_, _| {}).await {
            Err(e) if e.reason() == "AlreadyExists" => {}
            other => return object_response(state, call, resource, StatusCode::CREATED, &other?),
        }
    }
    Err(modified(resource, name))
}

/// Decodes the configuration of a server-side apply, with what is said about a key that is there twice.
pub(crate) fn applied(body: &[u8]) -> Result<(Value, Option<String>), ApiStatus> {
    decode::yaml_with_duplicate(body).map_err(|e| ApiStatus::bad_request(format!("error decoding YAML: {e}")))
}

/// Refuses a configuration with fields that its type does not have, whatever `fieldValidation` says, as
/// upstream: nobody could own them. A key that is there `twice` is refused, warned of or ignored as it says.
///
/// # Errors
/// The fields.
pub(crate) fn declared(
    call: &Call,
    resource: &Resource,
    config: &Value,
    twice: Option<String>,
) -> Result<(), ApiStatus> {
    typed(resource, config)?;
    let Some(twice) = twice else { return Ok(()) };
    match call.query.get("fieldValidation") {
        "Strict" => {
            let why =
                format!("error strict decoding YAML: error converting YAML to JSON: {YAML_ERRORS}{twice}");
            return Err(ApiStatus::bad_request(why));
        }
        "Ignore" => {}
        _ => call.warn(twice),
    }
    Ok(())
}

fn typed(resource: &Resource, config: &Value) -> Result<(), ApiStatus> {
    let found = managed::undeclared(config, resource.request_schema());
    let lines = found.lines(|path| format!("{path}: field not declared in schema"));
    match &lines[..] {
        [] => Ok(()),
        [one] => Err(untyped(resource, config, one)),
        all => Err(untyped(resource, config, &format!("errors:\n  {}", all.join("\n  ")))),
    }
}

/// The answer about a configuration that does not fit its type. Its code and reason are upstream's, although
/// it is the client's mistake.
fn untyped(resource: &Resource, config: &Value, what: &str) -> ApiStatus {
    let (namespace, name) = (str_at(config, "/metadata/namespace"), str_at(config, "/metadata/name"));
    let (group, version, kind) = (&resource.group, &resource.version, &resource.kind);
    let at = format!("{namespace}/{name}; {group}/{version}, Kind={kind}");
    ApiStatus::new(500, "", format!("failed to create typed patch object ({at}): {what}"))
}

/// The answer about fields that others own.
fn conflicts(conflicts: Vec<managed::Conflict>) -> ApiStatus {
    let owner = |c: &managed::Conflict| {
        let mut text = format!("conflict with \"{}\"", c.manager);
        if !c.subresource.is_empty() {
            text.push_str(&format!(" with subresource \"{}\"", c.subresource));
        }
        if c.operation == "Update" {
            text.push_str(&format!(" using {}", c.api_version));
        }
        text
    };
    let mut by_owner: Vec<(String, Vec<&str>)> = Vec::new();
    for conflict in &conflicts {
        let name = owner(conflict);
        match by_owner.iter_mut().find(|(o, _)| *o == name) {
            Some((_, paths)) => paths.push(&conflict.path),
            None => by_owner.push((name, vec![&conflict.path])),
        }
    }
    let parts: Vec<String> = by_owner
        .iter()
        .map(|(owner, paths)| match paths.as_slice() {
            [path] => format!("{owner}: {path}"),
            paths => format!("{owner}:\n- {}", paths.join("\n- ")),
        })
        .collect();
    let causes = conflicts
        .iter()
        .map(|c| StatusCause {
            reason: Some("FieldManagerConflict".into()),
            message: Some(owner(c)),
            field: Some(c.path.clone()),
        })
        .collect();
    let plural = if conflicts.len() == 1 { "conflict" } else { "conflicts" };
    ApiStatus::of(
        Reason::Conflict,
        format!("Apply failed with {} {plural}: {}", conflicts.len(), parts.join("\n")),
    )
    .causes(causes)
}
