//! Create, update and patch: decode, convert, default, admit, validate, store.

mod metadata;
mod patch;
mod put_rules;

use metadata::{VIEWS, carry_over, check_finalizers, check_metadata};
pub(crate) use patch::{PatchFunction, patch, patch_function};

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use k8s_core::{client::Body, status::ApiStatus};
use k8s_schema::patch::managed::{self, Manager};
use k8s_store::{Expect, StoreError};
use serde_json::Value;

use crate::{
    admission::{Admission, Operation},
    blocking::run_blocking_if,
    body::{decode_body, fit},
    call::{Call, dry_run},
    errors::{modified, precondition, store_failure},
    invalid::FieldErrors,
    read::object_response,
    resources::{
        Resource,
        strategy::{View, immutable},
    },
    state::State,
    storage::{TRIES, current, is_finished, put, remove, timestamp},
    value::{child, encode, integer, same_spec, set, take, text},
};

/// Turns a fitting object into its stored form, with defaults.
fn store_form(resource: &Resource, object: &mut Value) {
    resource.to_storage(object);
    resource.default(object);
}

/// Adds a random suffix as `generateName` asks.
fn generated(prefix: &str) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut name: String = prefix.chars().take(58).collect();
    name.extend((0..5).map(|_| char::from(LETTERS[k8s_core::random::range(0..LETTERS.len())])));
    name
}

/// POST of a collection.
pub(crate) async fn create(
    state: &Arc<State>,
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
    let stored = insert(state, call, resource, object, dry_run, &recorder(call, resource)).await?;
    object_response(state, call, resource, StatusCode::CREATED, &stored)
}

/// A write as admission plugins see it.
fn admission<'a>(
    call: &'a Call,
    resource: &'a Resource,
    object: &'a mut Value,
    old: Option<&'a Value>,
) -> Admission<'a> {
    let operation = Operation::of(old);
    Admission { operation, user: &call.user, resource, request: &call.info, object, old }
}

/// Notes that the fields of a new object are its creator's.
fn recorder<'a>(call: &'a Call, resource: &'a Resource) -> impl Fn(&Arc<State>, &mut Value) + Sync + 'a {
    let manager =
        Manager { name: call.manager(), api_version: resource.api_version(), subresource: String::new() };
    move |state, object| {
        let now = timestamp(state.clock.now());
        take(object, "/metadata", "managedFields");
        managed::record_update(&managed::nothing(), object, &resource.schema, &manager, &now);
    }
}

/// The common part of create and apply-that-creates. Returns the stored bytes.
async fn insert(
    state: &Arc<State>,
    call: &Call,
    resource: &Arc<Resource>,
    mut object: Value,
    dry_run: bool,
    record: &(dyn Fn(&Arc<State>, &mut Value) + Sync),
) -> Result<Bytes, ApiStatus> {
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
    metadata["uid"] = k8s_core::random::uuid().to_string().into();
    metadata["creationTimestamp"] = timestamp(state.clock.now()).into();
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
    if resource.terminating {
        let why = "create not allowed while custom resource definition is terminating";
        return Err(ApiStatus::new(405, "MethodNotAllowed", why).about(
            &resource.group,
            &resource.plural,
            "",
        ));
    }
    (resource.strategy.created_by)(&call.user, &mut object);
    state.admission.admit(&mut admission(call, resource, &mut object, None)).await?;
    (resource.strategy.create)(&mut object);
    let mut errors = FieldErrors::default();
    check_metadata(resource, &object, &mut errors);
    if resource.is_storage_version() {
        (resource.strategy.validate_current)(&object, None, &mut errors);
    }
    (resource.strategy.validate)(&object, &mut errors);
    if let Some(rules) = &resource.rules {
        run_blocking_if(rules.is_heavy(&object, None), || rules.check(&object, None, &mut errors));
    }
    if let Some(typed) = &resource.typed {
        typed.validate(&object, None, false, &mut errors);
    }
    if !errors.is_empty() {
        return Err(errors.into_status(&resource.group, &resource.kind, text(&object, "/metadata/name")));
    }
    state.admission.validate(&admission(call, resource, &mut object, None)).await?;
    crate::unenforced::warn(state, call, resource, &object, None);
    let mut reserved = state.services.reserve(resource, &mut object, None)?;
    record(state, &mut object);
    for _ in 0..8 {
        let name = text(&object, "/metadata/name").to_owned();
        let key = resource.key(namespace, &name);
        if dry_run {
            if state.store.get(&resource.storage, &key).is_some() {
                return Err(ApiStatus::already_exists(&resource.group, &resource.plural, &name));
            }
            return Ok(encode(&object).into());
        }
        match put(state, resource, &key, Expect::Absent, &object).await {
            Ok(stored) => {
                reserved.keep();
                crate::storage::written(state, resource, &stored).await;
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

/// PUT of an object.
pub(crate) async fn update(
    state: &Arc<State>,
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
    let absent = || {
        let key = resource.key(&call.info.namespace, &call.info.name);
        state.store.get(&resource.storage, &key).is_none()
    };
    if call.info.subresource.is_empty() && put_rules::creates(resource) && absent() {
        state.authorization.may_create(&call.user, &call.info).await?;
        set(&mut object, "/metadata/resourceVersion", "".into());
        let stored = insert(state, call, resource, object, dry_run, &recorder(call, resource)).await?;
        return object_response(state, call, resource, StatusCode::CREATED, &stored);
    }
    let bytes = modify(state, call, resource, dry_run, &|_| {
        if put_rules::is_conditional(resource) && wanted_version(&object).is_empty() {
            let mut errors = FieldErrors::default();
            errors.invalid("metadata.resourceVersion", 0, "must be specified for an update");
            return Err(errors.into_status(&resource.group, &resource.kind, &call.info.name));
        }
        Ok(Change::Replace(object.clone()))
    })
    .await?;
    object_response(state, call, resource, StatusCode::OK, &bytes)
}

/// The version that a write is to replace; empty for any. `0` is any, too.
fn wanted_version(object: &Value) -> &str {
    Some(text(object, "/metadata/resourceVersion")).filter(|v| *v != "0").unwrap_or_default()
}

/// What a write makes of the served form of an object.
pub(crate) enum Change {
    /// The served form of the whole object; fields of the server's own are carried over.
    Replace(Value),
    /// The stored form with managedFields already worked out (server-side apply).
    Applied(Value),
}

/// Raises `metadata.generation` where the specification changed.
fn count_generation(resource: &Resource, new: &mut Value, old: &Value) {
    if resource.strategy.generation && !same_spec(new, old) {
        let generation = integer(old, "/metadata/generation").unwrap_or(0) + 1;
        set(new, "/metadata/generation", generation.into());
    }
}

/// Reads, changes, checks and writes an object, again and again until nobody else wrote meanwhile. Returns the stored bytes.
pub(crate) async fn modify(
    state: &Arc<State>,
    call: &Call,
    resource: &Arc<Resource>,
    dry_run: bool,
    change: &(dyn Fn(&Value) -> Result<Change, ApiStatus> + Sync),
) -> Result<Bytes, ApiStatus> {
    let (namespace, name) = (call.info.namespace.as_str(), call.info.name.as_str());
    let key = resource.key(namespace, name);
    for _ in 0..TRIES {
        let (stored, old) = current(state, resource, &key, name)?;
        let (mut new, applied) = match change(&old)? {
            Change::Replace(mut new) => {
                let wanted = wanted_version(&new).to_owned();
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
        let mut errors = FieldErrors::default();
        let now = timestamp(state.clock.now());
        carry_over(resource, &mut new, &old, part);
        if !part.is_empty() {
            (resource.strategy.view)(&View { part, old: &old, now: &now }, &mut new, &mut errors);
        }
        if part == "status" {
            resource.schema.complete(&mut new);
        }
        if VIEWS.contains(&part) {
            resource.default(&mut new);
            count_generation(resource, &mut new, &old);
        }
        if part == "resize" && !same_spec(&new, &old) {
            let mut errors = FieldErrors::default();
            errors.forbidden(
                "spec",
                "in-place resize of pods is not supported by this cluster: create the pod anew",
            );
            return Err(errors.into_status(&resource.group, &resource.kind, name));
        }
        if part.is_empty() || part == "scale" {
            resource.default(&mut new);
            (resource.strategy.update)(&mut new, &old);
            state.admission.admit(&mut admission(call, resource, &mut new, Some(&old))).await?;
            count_generation(resource, &mut new, &old);
        }
        check_metadata(resource, &new, &mut errors);
        check_finalizers(&new, &old, &mut errors);
        if part == "status" {
            (resource.strategy.validate_status)(&new, &old, &mut errors);
        } else {
            if resource.is_storage_version() {
                (resource.strategy.validate_current)(&new, Some(&old), &mut errors);
            }
            if !VIEWS.contains(&part) {
                (resource.strategy.validate_update)(&new, &old, &mut errors);
            }
            (resource.strategy.validate)(&new, &mut errors);
            resource.strategy.fixed.iter().for_each(|field| immutable(&new, &old, field, &mut errors));
        }
        if let Some(rules) = &resource.rules {
            run_blocking_if(rules.is_heavy(&new, Some(&old)), || rules.check(&new, Some(&old), &mut errors));
        }
        if let Some(typed) = &resource.typed {
            typed.validate(&new, Some(&old), part == "status", &mut errors);
        }
        if !errors.is_empty() {
            return Err(errors.into_status(&resource.group, &resource.kind, name));
        }
        state.admission.validate(&admission(call, resource, &mut new, Some(&old))).await?;
        if matches!(part, "" | "ephemeralcontainers") {
            crate::unenforced::warn(state, call, resource, &new, Some(&old));
        }
        let mut reserved = state.services.reserve(resource, &mut new, Some(&old))?;
        if !applied {
            if part == "resize" {
                take(&mut new, "/metadata", "managedFields");
            }
            let manager = Manager {
                name: call.manager(),
                api_version: resource.api_version(),
                subresource: if part == "resize" { String::new() } else { part.to_owned() },
            };
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
        let finished = is_finished(resource, &new) && !is_finished(resource, &old);
        let result = if finished {
            remove(state, resource, &key, stored.revision, &new).await
        } else {
            put(state, resource, &key, Expect::Revision(stored.revision), &new).await
        };
        match result {
            Ok(written) => {
                reserved.keep();
                if !finished {
                    crate::storage::written(state, resource, &written).await;
                }
                return Ok(written.json.clone());
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(e) => return Err(store_failure(resource, name, &e)),
        }
    }
    Err(modified(resource, name))
}
