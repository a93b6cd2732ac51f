//! Create, update and patch: decode, convert, default, admit, validate, store.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode, header};
use jiff::Timestamp;
use k8s_core::{
    api::apimachinery::pkg::apis::meta::v1::StatusCause,
    client::Body,
    patch::{
        self, PatchError,
        managed::{self, Manager},
    },
    status::ApiStatus,
    store::{Expect, StoreError, Stored},
};
use serde_json::{Map, Value, json};

use crate::{
    admission::{self, Operation},
    decode,
    invalid::FieldErrors,
    read::Presenter,
    resources::{Resource, strategy::check_labels},
    respond,
    server::{ApiServer, Call, meta_of},
    value::{child, encode, integer, list, same_spec, set, take, text},
};

/// How often a write is tried again when somebody else wrote meanwhile.
const TRIES: usize = 16;

/// Now in whole seconds, RFC 3339.
pub(crate) fn timestamp(now: Timestamp) -> String {
    Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

/// Answers with a stored object in the form and version that was asked for.
pub(crate) fn object_response(
    server: &ApiServer,
    call: &Call,
    resource: &Arc<Resource>,
    code: StatusCode,
    json: &Bytes,
) -> Result<Response<Body>, ApiStatus> {
    let presenter = Presenter::from_call(server, call, resource)?;
    Ok(respond::json_bytes(code, presenter.object(json)))
}

/// The store's failure as an answer.
pub(crate) fn store_failure(resource: &Resource, name: &str, error: &StoreError) -> ApiStatus {
    match error {
        StoreError::Conflict { .. } => modified(resource, name),
        StoreError::Expired(_) => ApiStatus::expired(error.to_string()),
        other => ApiStatus::new(500, "InternalError", format!("Internal error occurred: {other}")),
    }
}

fn modified(resource: &Resource, name: &str) -> ApiStatus {
    ApiStatus::conflict(
        &resource.group,
        &resource.plural,
        name,
        "the object has been modified; please apply your changes to the latest version and try again",
    )
}

fn handled_as(resource: &Resource, version: &str, why: impl std::fmt::Display) -> ApiStatus {
    let kind = &resource.kind;
    ApiStatus::bad_request(format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"))
}

/// Whether the request only pretends.
///
/// # Errors
/// 422 for another value than `All`.
pub(crate) fn dry_run(call: &Call, options: &str) -> Result<bool, ApiStatus> {
    match call.query.get("dryRun") {
        "" => Ok(false),
        "All" => Ok(true),
        other => {
            let mut errors = FieldErrors::default();
            errors.not_supported("dryRun", json!([other]), &["All"]);
            Err(errors.into_status("meta.k8s.io", options, ""))
        }
    }
}

/// Decodes a body into a JSON value and the paths of duplicate fields.
pub(crate) fn decode_body(call: &Call, kind: &str, body: &[u8]) -> Result<(Value, Vec<String>), ApiStatus> {
    let content_type =
        call.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("application/json");
    let media = content_type.split(';').next().unwrap_or_default().trim();
    let unrecognized = |e: String| {
        let shown: String = String::from_utf8_lossy(body).chars().take(200).collect();
        ApiStatus::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: {e} ({shown})"
        ))
    };
    let (value, duplicates) = match media {
        "application/json" | "" => decode::json(body).map_err(unrecognized),
        "application/yaml" => decode::yaml(body).map(|v| (v, Vec::new())).map_err(unrecognized),
        "application/vnd.kubernetes.protobuf" => {
            k8s_core::proto::decode(body).map(|v| (v, Vec::new())).map_err(|e| {
                ApiStatus::bad_request(format!(
                    "the object provided is unrecognized (must be of type {kind}): {e}"
                ))
            })
        }
        _ => Err(ApiStatus::new(
            415,
            "UnsupportedMediaType",
            "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )),
    }?;
    if !value.is_object() {
        return Err(unrecognized("the body is no object".into()));
    }
    Ok((value, duplicates))
}

/// Makes a decoded object fit the resource's type, as `fieldValidation` says.
fn fit(
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
    let (version, kind) = (text(object, "/apiVersion").to_owned(), text(object, "/kind").to_owned());
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
    if let Some(first) = found.mismatches.first() {
        let why = match first.want.split_once(": ") {
            Some(("base64", message)) => message.to_owned(),
            Some(("time", message)) => message.to_owned(),
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
    if let Some(bad) = bad_quantity(object, 0) {
        return Err(handled_as(resource, &resource.version, bad));
    }
    if !found.breaches.is_empty() {
        let mut errors = FieldErrors::default();
        for (path, message) in found.breaches {
            if message == "Required value" {
                errors.required(path, "");
            } else {
                let detail = message
                    .strip_prefix("Invalid value: ")
                    .and_then(|m| m.split_once(": "))
                    .map_or(message.as_str(), |(_, d)| d);
                let value =
                    object.pointer(&format!("/{}", path.replace('.', "/"))).cloned().unwrap_or_default();
                errors.invalid(path, value, detail);
            }
        }
        return Err(errors.into_status(&resource.group, &resource.kind, text(object, "/metadata/name")));
    }
    let problems: Vec<String> = found
        .unknown
        .iter()
        .map(|p| format!("unknown field \"{p}\""))
        .chain(duplicates.iter().map(|p| format!("duplicate field \"{p}\"")))
        .collect();
    if problems.is_empty() {
        return Ok(());
    }
    match call.query.get("fieldValidation") {
        "Strict" => Err(handled_as(
            resource,
            &resource.version,
            format!("strict decoding error: {}", problems.join(", ")),
        )),
        "Ignore" => Ok(()),
        _ => {
            problems.into_iter().for_each(|p| call.warn(p));
            Ok(())
        }
    }
}

/// The message about a malformed quantity in the places where quantities are, if there is one.
fn bad_quantity(value: &Value, depth: usize) -> Option<String> {
    let map = value.as_object();
    if depth > 40 {
        return None;
    }
    for (key, child) in map.into_iter().flatten() {
        if ["limits", "requests", "capacity", "allocatable", "hard", "used"].contains(&key.as_str())
            && let Some(amounts) = child.as_object()
        {
            for amount in amounts.values().filter_map(Value::as_str) {
                if let Err(e) = amount.parse::<k8s_core::meta::Quantity>() {
                    return Some(e.to_string());
                }
            }
        }
        if let Some(found) = bad_quantity(child, depth + 1) {
            return Some(found);
        }
    }
    value.as_array()?.iter().find_map(|item| bad_quantity(item, depth + 1))
}

/// Turns a fitting object into its stored form, with defaults.
fn store_form(resource: &Resource, object: &mut Value) {
    resource.to_storage(object);
    resource.schema.default(object);
    (resource.strategy.default)(object);
}

/// The rules that hold for every object's metadata.
fn check_metadata(resource: &Resource, object: &Value, errors: &mut FieldErrors) {
    let name = text(object, "/metadata/name");
    if name.is_empty() {
        errors.required("metadata.name", "name or generateName is required");
    } else {
        resource.strategy.name.check("metadata.name", name, errors);
    }
    check_labels(object, "/metadata/labels", "metadata.labels", errors);
    for key in crate::value::map(object, "/metadata/annotations").into_iter().flatten().map(|(k, _)| k) {
        if !crate::invalid::names::is_qualified(&key.to_lowercase()) {
            errors.invalid("metadata.annotations", key.as_str(), "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')");
        }
    }
    let controllers =
        list(object, "/metadata/ownerReferences").iter().filter(|o| o["controller"] == true).count();
    if controllers > 1 {
        errors.invalid(
            "metadata.ownerReferences",
            list(object, "/metadata/ownerReferences").to_vec(),
            "Only one reference can have Controller set to true",
        );
    }
    for (i, owner) in list(object, "/metadata/ownerReferences").iter().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, &format!("/{field}")).is_empty() {
                errors.invalid(format!("metadata.ownerReferences[{i}].{field}"), "", "must not be empty");
            }
        }
    }
}

/// An object that is being deleted gets no new finalizers.
fn check_finalizers(new: &Value, old: &Value, errors: &mut FieldErrors) {
    if old.pointer("/metadata/deletionTimestamp").is_none() {
        return;
    }
    let had = list(old, "/metadata/finalizers");
    let added: Vec<&str> = list(new, "/metadata/finalizers")
        .iter()
        .filter(|f| !had.contains(f))
        .filter_map(Value::as_str)
        .collect();
    if !added.is_empty() {
        let detail = format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
            added.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ")
        );
        errors.forbidden("metadata.finalizers", &detail);
    }
}

/// Runs admission for a create, or an update of `old`.
fn admitted(
    server: &ApiServer,
    call: &Call,
    resource: &Resource,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<(), ApiStatus> {
    let operation = if old.is_some() { Operation::Update } else { Operation::Create };
    admission::run(server, call, resource, object, old, operation)
}

/// Adds a random suffix as `generateName` asks.
fn generated(prefix: &str) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut name: String = prefix.chars().take(58).collect();
    name.extend((0..5).map(|_| char::from(LETTERS[rand::random_range(0..LETTERS.len())])));
    name
}

/// POST of a collection.
pub(crate) async fn create(
    server: &ApiServer,
    call: &Call,
    resource: &Arc<Resource>,
    body: &[u8],
) -> Result<Response<Body>, ApiStatus> {
    let dry_run = dry_run(call, "CreateOptions")?;
    let (mut object, duplicates) = decode_body(call, &resource.kind, body)?;
    fit(call, resource, &mut object, duplicates)?;
    if !text(&object, "/metadata/resourceVersion").is_empty() {
        return Err(ApiStatus::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let manager =
        Manager { name: call.manager(), api_version: resource.api_version(), subresource: String::new() };
    let record = |server: &ApiServer, object: &mut Value| {
        let now = timestamp(server.inner.clock.now());
        take(object, "/metadata", "managedFields");
        managed::record_update(&managed::nothing(), object, &resource.schema, &manager, &now);
    };
    let stored = insert(server, call, resource, object, dry_run, &record).await?;
    object_response(server, call, resource, StatusCode::CREATED, &stored)
}

/// The common part of create and apply-that-creates. Returns the stored bytes.
async fn insert(
    server: &ApiServer,
    call: &Call,
    resource: &Arc<Resource>,
    mut object: Value,
    dry_run: bool,
    record: &(dyn Fn(&ApiServer, &mut Value) + Sync),
) -> Result<Bytes, ApiStatus> {
    let inner = &server.inner;
    let namespace = call.info.namespace.as_str();
    let Some(metadata) = child(&mut object, "metadata") else {
        return Err(ApiStatus::bad_request("metadata must be an object"));
    };
    if resource.namespaced {
        let given = text(metadata, "/namespace");
        if !given.is_empty() && given != namespace {
            return Err(ApiStatus::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        metadata["namespace"] = namespace.into();
    } else if let Some(map) = metadata.as_object_mut() {
        map.remove("namespace");
    }
    for field in ["selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        if let Some(map) = metadata.as_object_mut() {
            map.remove(field);
        }
    }
    let prefix = if text(metadata, "/name").is_empty() {
        text(metadata, "/generateName").to_owned()
    } else {
        String::new()
    };
    metadata["uid"] = uuid::Uuid::new_v4().to_string().into();
    metadata["creationTimestamp"] = timestamp(inner.clock.now()).into();
    if !prefix.is_empty() {
        metadata["name"] = generated(&prefix).into();
    }
    // A node agent may register a node with its status at once.
    if resource.has_status
        && &*resource.storage != "nodes"
        && let Some(map) = object.as_object_mut()
    {
        map.remove("status");
    }
    store_form(resource, &mut object);
    if resource.strategy.generation {
        set(&mut object, "/metadata/generation", 1.into());
    }
    admission::namespace(server, resource, namespace, text(&object, "/metadata/name"))?;
    admitted(server, call, resource, &mut object, None)?;
    (resource.strategy.create)(&mut object);
    let mut errors = FieldErrors::default();
    check_metadata(resource, &object, &mut errors);
    (resource.strategy.validate)(&object, &mut errors);
    if !errors.is_empty() {
        return Err(errors.into_status(&resource.group, &resource.kind, text(&object, "/metadata/name")));
    }
    let mut reserved = inner.services.reserve(resource, &mut object, None)?;
    record(server, &mut object);
    for _ in 0..8 {
        let name = text(&object, "/metadata/name").to_owned();
        let key = resource.key(namespace, &name);
        if dry_run {
            if inner.store.get(&resource.storage, &key).is_some() {
                return Err(ApiStatus::already_exists(&resource.group, &resource.plural, &name));
            }
            return Ok(encode(&object).into());
        }
        match put(server, resource, &key, Expect::Absent, &object).await {
            Ok(stored) => {
                reserved.keep();
                crate::extend::after_write(server, resource, &stored).await;
                return Ok(stored.json.clone());
            }
            Err(StoreError::Conflict { .. }) if !prefix.is_empty() => {
                set(&mut object, "/metadata/name", generated(&prefix).into());
            }
            Err(StoreError::Conflict { .. }) => {
                return Err(ApiStatus::already_exists(&resource.group, &resource.plural, &name));
            }
            Err(e) => return Err(store_failure(resource, &name, &e)),
        }
    }
    Err(ApiStatus::already_exists(&resource.group, &resource.plural, text(&object, "/metadata/name")))
}

/// Writes an object's stored form.
pub(crate) async fn put(
    server: &ApiServer,
    resource: &Resource,
    key: &str,
    expect: Expect,
    object: &Value,
) -> Result<Arc<Stored>, StoreError> {
    let meta = meta_of(object, &resource.fields);
    server
        .inner
        .store
        .put(&resource.storage, key, expect, meta, |revision| {
            let mut object = object.clone();
            set(&mut object, "/metadata/resourceVersion", revision.to_string().into());
            encode(&object).into()
        })
        .await
}

/// Reads the newest state of an object.
pub(crate) fn current(
    server: &ApiServer,
    resource: &Resource,
    key: &str,
    name: &str,
) -> Result<(Arc<Stored>, Value), ApiStatus> {
    let stored = server
        .inner
        .store
        .get(&resource.storage, key)
        .ok_or_else(|| ApiStatus::not_found(&resource.group, &resource.plural, name))?;
    let value = serde_json::from_slice(&stored.json).map_err(ApiStatus::internal)?;
    Ok((stored, value))
}

/// PUT of an object.
pub(crate) async fn update(
    server: &ApiServer,
    call: &Call,
    resource: &Arc<Resource>,
    body: &[u8],
) -> Result<Response<Body>, ApiStatus> {
    let dry_run = dry_run(call, "UpdateOptions")?;
    let (mut object, duplicates) = decode_body(call, &resource.kind, body)?;
    fit(call, resource, &mut object, duplicates)?;
    let name = text(&object, "/metadata/name");
    if name.is_empty() {
        set(&mut object, "/metadata/name", call.info.name.clone().into());
    } else if name != call.info.name {
        return Err(ApiStatus::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.info.name
        )));
    }
    let given = text(&object, "/metadata/namespace");
    if !given.is_empty() && given != call.info.namespace {
        return Err(ApiStatus::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let bytes = modify(server, call, resource, dry_run, &|_| Ok(Change::Replace(object.clone()))).await?;
    object_response(server, call, resource, StatusCode::OK, &bytes)
}

/// What a write makes of the served form of an object.
pub(crate) enum Change {
    /// The served form of the whole object; fields of the server's own are carried over.
    Replace(Value),
    /// The stored form with managedFields already worked out (server-side apply).
    Applied(Value),
}

/// Reads, changes, checks and writes an object, again and again until nobody else wrote meanwhile. Returns the stored bytes.
pub(crate) async fn modify(
    server: &ApiServer,
    call: &Call,
    resource: &Arc<Resource>,
    dry_run: bool,
    change: &(dyn Fn(&Value) -> Result<Change, ApiStatus> + Sync),
) -> Result<Bytes, ApiStatus> {
    let (namespace, name) = (call.info.namespace.as_str(), call.info.name.as_str());
    let key = resource.key(namespace, name);
    for _ in 0..TRIES {
        let (stored, old) = current(server, resource, &key, name)?;
        let (mut new, applied) = match change(&old)? {
            Change::Replace(mut new) => {
                let wanted = text(&new, "/metadata/resourceVersion").to_owned();
                if !wanted.is_empty() && wanted != stored.revision.to_string() {
                    return Err(modified(resource, name));
                }
                let uid = text(&new, "/metadata/uid").to_owned();
                if !uid.is_empty() && uid != *stored.uid {
                    return Err(precondition(resource, &key, name, &uid, &stored.uid));
                }
                resource.to_storage(&mut new);
                (new, false)
            }
            Change::Applied(new) => (new, true),
        };
        let part = call.info.subresource.as_str();
        carry_over(resource, &mut new, &old, part);
        if part.is_empty() || part == "scale" {
            resource.schema.default(&mut new);
            (resource.strategy.default)(&mut new);
            (resource.strategy.update)(&mut new, &old);
            admitted(server, call, resource, &mut new, Some(&old))?;
            if resource.strategy.generation && !same_spec(&new, &old) {
                let generation = integer(&old, "/metadata/generation").unwrap_or(0) + 1;
                set(&mut new, "/metadata/generation", generation.into());
            }
        }
        let mut errors = FieldErrors::default();
        check_metadata(resource, &new, &mut errors);
        check_finalizers(&new, &old, &mut errors);
        if part == "status" {
            (resource.strategy.validate_status)(&new, &old, &mut errors);
        } else {
            (resource.strategy.validate_update)(&new, &old, &mut errors);
            (resource.strategy.validate)(&new, &mut errors);
        }
        if !errors.is_empty() {
            return Err(errors.into_status(&resource.group, &resource.kind, name));
        }
        let mut reserved = server.inner.services.reserve(resource, &mut new, Some(&old))?;
        if !applied {
            let manager = Manager {
                name: call.manager(),
                api_version: resource.api_version(),
                subresource: if part == "resize" { String::new() } else { part.to_owned() },
            };
            let now = timestamp(server.inner.clock.now());
            managed::record_update(&old, &mut new, &resource.schema, &manager, &now);
        }
        set(&mut new, "/metadata/resourceVersion", stored.revision.to_string().into());
        if new == old {
            return Ok(stored.json.clone());
        }
        if dry_run {
            return Ok(encode(&new).into());
        }
        // With its last finalizer gone, an object that waits for deletion goes as well.
        let finished =
            crate::delete::is_finished(resource, &new) && !crate::delete::is_finished(resource, &old);
        let result = if finished {
            crate::delete::remove(server, resource, &key, stored.revision, &new).await
        } else {
            put(server, resource, &key, Expect::Revision(stored.revision), &new).await
        };
        match result {
            Ok(written) => {
                reserved.keep();
                if !finished {
                    crate::extend::after_write(server, resource, &written).await;
                }
                return Ok(written.json.clone());
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(e) => return Err(store_failure(resource, name, &e)),
        }
    }
    Err(modified(resource, name))
}

/// 409 for a uid that is another object's.
pub(crate) fn precondition(resource: &Resource, key: &str, name: &str, want: &str, have: &str) -> ApiStatus {
    let why = format!(
        "StorageError: invalid object, Code: 4, Key: /registry/{}/{key}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {want}, UID in object meta: {have}",
        resource.plural
    );
    ApiStatus::conflict(&resource.group, &resource.plural, name, &why)
}

/// Puts back what a write may not touch.
fn carry_over(resource: &Resource, new: &mut Value, old: &Value, part: &str) {
    let old_metadata = old.get("metadata").cloned().unwrap_or_default();
    let Some(map) = new.as_object_mut() else { return };
    if part == "status" {
        // A status write changes the status, and of the metadata only what a status writer may annotate.
        let metadata = map.remove("metadata").unwrap_or_default();
        let status = map.remove("status");
        *map = old.as_object().cloned().unwrap_or_default();
        match status {
            Some(status) => map.insert("status".into(), status),
            None => map.remove("status"),
        };
        let annotates = ["pods", "nodes", "persistentvolumes", "persistentvolumeclaims", "services"];
        if annotates.contains(&resource.plural.as_str())
            && let (Some(kept), Some(asked)) =
                (map.get_mut("metadata").and_then(Value::as_object_mut), metadata.as_object())
        {
            for field in ["labels", "annotations", "finalizers"] {
                match asked.get(field) {
                    Some(value) => kept.insert(field.into(), value.clone()),
                    None => kept.remove(field),
                };
            }
        }
        if let (Some(kept), Some(fields)) =
            (map.get_mut("metadata").and_then(Value::as_object_mut), metadata.get("managedFields"))
        {
            kept.insert("managedFields".into(), fields.clone());
        }
        return;
    }
    if resource.has_status && part != "ephemeralcontainers" {
        match old.get("status") {
            Some(status) => map.insert("status".into(), status.clone()),
            None => map.remove("status"),
        };
    }
    let metadata = map.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    let Some(metadata) = metadata.as_object_mut() else { return };
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
        "generateName",
    ] {
        match old_metadata.get(field) {
            Some(value) => metadata.insert(field.into(), value.clone()),
            None => metadata.remove(field),
        };
    }
}

fn patch_failure(error: &PatchError) -> ApiStatus {
    match error {
        PatchError::Malformed(message) => ApiStatus::bad_request(message.clone()),
        _ => ApiStatus::new(422, "Invalid", "the server rejected our request due to an error in our request")
            .about("", "", ""),
    }
}

/// PATCH of an object or of its status.
pub(crate) async fn patch(
    server: &ApiServer,
    call: &Call,
    resource: &Arc<Resource>,
    body: &[u8],
) -> Result<Response<Body>, ApiStatus> {
    let dry_run = dry_run(call, "PatchOptions")?;
    let media = media_type(call);
    if media == "application/apply-patch+yaml" {
        return apply(server, call, resource, body, dry_run).await;
    }
    let change = patch_function(resource, &media, body)?;
    let bytes = modify(server, call, resource, dry_run, &|old| {
        let mut object = old.clone();
        resource.from_storage(&mut object);
        change(&mut object)?;
        fit(call, resource, &mut object, Vec::new())?;
        if text(&object, "/metadata/name") != call.info.name {
            let mut errors = FieldErrors::default();
            errors.invalid("metadata.name", text(&object, "/metadata/name"), "field is immutable");
            return Err(errors.into_status(&resource.group, &resource.kind, &call.info.name));
        }
        Ok(Change::Replace(object))
    })
    .await?;
    object_response(server, call, resource, StatusCode::OK, &bytes)
}

/// The body's media type.
pub(crate) fn media_type(call: &Call) -> String {
    let value = call.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_owned()
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
            Err(ApiStatus::new(415, "UnsupportedMediaType", "415: Unsupported Media Type").about("", "", ""))
        }
    }
}

/// Server-side apply.
async fn apply(
    server: &ApiServer,
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
    let mut config =
        decode::yaml(body).map_err(|e| ApiStatus::bad_request(format!("error decoding YAML: {e}")))?;
    let (version, kind) = (text(&config, "/apiVersion"), text(&config, "/kind"));
    if kind.is_empty() || version.is_empty() {
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        return Err(ApiStatus::bad_request(format!("invalid object type: {group}/{version}, Kind={kind}")));
    }
    if !list(&config, "/metadata/managedFields").is_empty() {
        return Err(ApiStatus::bad_request("metadata.managedFields must be nil"));
    }
    fit(call, resource, &mut config, Vec::new())?;
    let (namespace, name) = (call.info.namespace.as_str(), call.info.name.as_str());
    set(&mut config, "/metadata/name", name.into());
    if resource.namespaced {
        set(&mut config, "/metadata/namespace", namespace.into());
    }
    resource.to_storage(&mut config);
    let manager = Manager {
        name: named.to_owned(),
        api_version: resource.api_version(),
        subresource: call.info.subresource.clone(),
    };
    let force = call.query.truth("force");
    let key = resource.key(namespace, name);
    for _ in 0..TRIES {
        let now = timestamp(server.inner.clock.now());
        if server.inner.store.get(&resource.storage, &key).is_some() {
            let done = modify(server, call, resource, dry_run, &|old| {
                managed::apply(old, &config, &resource.schema, &manager, force, &now)
                    .map(Change::Applied)
                    .map_err(conflicts)
            })
            .await;
            match done {
                Err(e) if e.code() == 404 => continue,
                other => return object_response(server, call, resource, StatusCode::OK, &other?),
            }
        }
        if !call.info.subresource.is_empty() {
            return Err(ApiStatus::not_found(&resource.group, &resource.plural, name));
        }
        let made = managed::apply(&managed::nothing(), &config, &resource.schema, &manager, force, &now)
            .map_err(conflicts)?;
        match insert(server, call, resource, made, dry_run, &|_, _| {}).await {
            Err(e) if e.reason() == "AlreadyExists" => {}
            other => return object_response(server, call, resource, StatusCode::CREATED, &other?),
        }
    }
    Err(modified(resource, name))
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
    ApiStatus::new(
        409,
        "Conflict",
        format!("Apply failed with {} {plural}: {}", conflicts.len(), parts.join("\n")),
    )
    .causes(causes)
}
