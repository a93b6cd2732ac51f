//! Create, update and patch: decode, convert, default, admit, validate, store.

mod metadata;
mod patch;

use metadata::{Born, VIEWS, carry_over, check_finalizers, check_metadata, generated, start_metadata};
pub(crate) use patch::{PatchFunction, applied, declared, fit_patched, patch, patch_function};

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use k8s_core::{
    client::Body,
    status::{ApiStatus, Reason},
};
use k8s_schema::patch::managed::{self, Manager};
use k8s_store::{Expect, StoreError};
use serde_json::Value;

use crate::{
    admission::Admission,
    allocate::Reservation,
    blocking::run_blocking_if,
    body::{decode_body, fit},
    call::{Call, dry_run},
    errors::{modified, other_namespace, precondition, store_failure},
    invalid::FieldErrors,
    read::object_response,
    resources::{
        Resource,
        strategy::{View, immutable},
    },
    state::State,
    storage::{TRIES, current, is_finished, put, remove, timestamp},
    value::{encode, int_at, same_spec, set, str_at, take},
};

/// Converts a decoded object to its stored form, with defaults.
fn store_form(resource: &Resource, object: &mut Value) {
    resource.to_storage(object);
    resource.default(object);
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
    if !str_at(&object, "/metadata/resourceVersion").is_empty() {
        return Err(ApiStatus::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let stored = insert(state, call, resource, object, dry_run, &recorder(call, resource)).await?;
    object_response(state, call, resource, StatusCode::CREATED, &stored)
}

/// Validates an object of a resource that a definition or a Rust type describes.
fn check_definition(
    resource: &Resource,
    object: &Value,
    old: Option<&Value>,
    is_status: bool,
    errors: &mut FieldErrors,
) {
    if let Some(rules) = &resource.rules {
        run_blocking_if(rules.is_heavy(object, old), || rules.check(object, old, errors));
    }
    if let Some(typed) = &resource.typed {
        typed.validate(object, old, is_status, errors);
    }
}

/// Reserves the addresses and ports that an object asks for, for kinds that have them.
async fn reserve(
    state: &Arc<State>,
    resource: &Resource,
    object: &mut Value,
    old: Option<&Value>,
    dry_run: bool,
) -> Result<Option<Reservation>, ApiStatus> {
    if !resource.strategy.allocates {
        return Ok(None);
    }
    crate::allocate::reserve(state, object, old, dry_run).await.map(Some)
}

/// Ends a reservation: what was taken is kept if there was a write.
async fn settle(reserved: Option<Reservation>, written: bool) {
    match reserved {
        Some(reserved) if written => reserved.keep().await,
        Some(reserved) => reserved.abandon().await,
        None => {}
    }
}

/// Returns a function that records the creator as manager of all fields.
fn recorder<'a>(call: &'a Call, resource: &'a Resource) -> impl Fn(&Arc<State>, &mut Value) + Sync + 'a {
    let manager =
        Manager { name: call.manager(), api_version: resource.api_version(), subresource: String::new() };
    move |state, object| {
        let now = timestamp(state.clock.now());
        take(object, "/metadata", "managedFields");
        managed::record_update(&managed::nothing(), object, &resource.schema, &manager, &now);
    }
}

/// Sets the fields of a new object that only the server sets, and the defaults, in the stored form.
fn start(resource: &Resource, object: &mut Value) {
    if resource.has_status
        && !resource.strategy.created_with_status
        && let Some(map) = object.as_object_mut()
    {
        map.remove("status");
    }
    store_form(resource, object);
    if resource.strategy.generation {
        set(object, "/metadata/generation", 1.into());
    }
}

/// Validates and stores a new object: for create, and for PUT and apply that create. Returns the stored
/// bytes.
async fn insert(
    state: &Arc<State>,
    call: &Call,
    resource: &Arc<Resource>,
    mut object: Value,
    dry_run: bool,
    record: &(dyn Fn(&Arc<State>, &mut Value) + Sync),
) -> Result<Bytes, ApiStatus> {
    let namespace = call.info.namespace.as_str();
    let prefix = start_metadata(resource, &mut object, namespace, &timestamp(state.clock.now()))?;
    start(resource, &mut object);
    if resource.terminating {
        let why = "create not allowed while custom resource definition is terminating";
        return Err(ApiStatus::of(Reason::MethodNotAllowed, why).about(
            &resource.group,
            &resource.plural,
            "",
        ));
    }
    (resource.strategy.created_by)(&call.user, &mut object);
    let born = Born::of(&object);
    let mut admission = Admission::new(call, resource, &mut object, None, dry_run);
    state.admission.admit(&mut admission).await?;
    if admission.reset {
        born.restore(&mut object);
        start(resource, &mut object);
        (resource.strategy.created_by)(&call.user, &mut object);
    }
    (resource.strategy.create)(&mut object);
    let mut errors = FieldErrors::default();
    check_metadata(resource, &object, &mut errors);
    if resource.is_storage_version() {
        (resource.strategy.validate_current)(&object, None, &mut errors);
    }
    (resource.strategy.validate)(&object, &mut errors);
    check_definition(resource, &object, None, false, &mut errors);
    if !errors.is_empty() {
        return Err(errors.into_status(&resource.group, &resource.kind, str_at(&object, "/metadata/name")));
    }
    state.admission.validate(&Admission::new(call, resource, &mut object, None, dry_run)).await?;
    crate::unenforced::warn(state, call, resource, &object, None);
    let stored = store_new(state, call, resource, object, dry_run, &prefix, record).await;
    if stored.is_err() {
        state.admission.abandon(call).await;
    }
    stored
}

/// Stores a new object, with the addresses that it needs. With a prefix, another name is generated while there
/// is one of the name.
async fn store_new(
    state: &Arc<State>,
    call: &Call,
    resource: &Arc<Resource>,
    mut object: Value,
    dry_run: bool,
    prefix: &str,
    record: &(dyn Fn(&Arc<State>, &mut Value) + Sync),
) -> Result<Bytes, ApiStatus> {
    // Addresses are taken under the object's name: under another one others are.
    let first = (resource.strategy.allocates && !prefix.is_empty()).then(|| object.clone());
    for _ in 0..8 {
        let reserved = reserve(state, resource, &mut object, None, dry_run).await?;
        record(state, &mut object);
        let stored = store_once(state, call, resource, &object, dry_run).await;
        settle(reserved, stored.is_ok() && !dry_run).await;
        match stored {
            Err(e) if !prefix.is_empty() && e.reason() == "AlreadyExists" => {
                if let Some(first) = &first {
                    object.clone_from(first);
                }
                set(&mut object, "/metadata/name", generated(prefix).into());
            }
            done => return done,
        }
    }
    Err(ApiStatus::already_exists(&resource.group, &resource.plural, str_at(&object, "/metadata/name")))
}

/// Stores an object that is complete. Returns the stored bytes.
async fn store_once(
    state: &Arc<State>,
    call: &Call,
    resource: &Arc<Resource>,
    object: &Value,
    dry_run: bool,
) -> Result<Bytes, ApiStatus> {
    let name = str_at(object, "/metadata/name");
    let key = resource.key(&call.info.namespace, name);
    let exists = || ApiStatus::already_exists(&resource.group, &resource.plural, name);
    if dry_run {
        let is_free = state.store.get(&resource.storage, &key).is_none();
        return if is_free { Ok(encode(object).into()) } else { Err(exists()) };
    }
    match put(state, resource, &key, Expect::Absent, object).await {
        Ok(stored) => {
            crate::storage::written(state, resource, &stored).await;
            Ok(stored.json.clone())
        }
        Err(StoreError::Conflict { .. }) => Err(exists()),
        Err(e) => Err(store_failure(resource, name, &e)),
    }
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
    let name = str_at(&object, "/metadata/name");
    if name.is_empty() {
        set(&mut object, "/metadata/name", call.info.name.clone().into());
    } else if name != call.info.name {
        return Err(ApiStatus::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.info.name
        )));
    }
    let given = str_at(&object, "/metadata/namespace");
    if !given.is_empty() && given != call.info.namespace {
        return Err(other_namespace());
    }
    let absent = || {
        let key = resource.key(&call.info.namespace, &call.info.name);
        state.store.get(&resource.storage, &key).is_none()
    };
    if call.info.subresource.is_empty() && resource.strategy.allow_create_on_update && absent() {
        state.authorization.may_create(&call.user, &call.info).await?;
        set(&mut object, "/metadata/resourceVersion", "".into());
        let stored = insert(state, call, resource, object, dry_run, &recorder(call, resource)).await?;
        return object_response(state, call, resource, StatusCode::CREATED, &stored);
    }
    let bytes = modify(state, call, resource, dry_run, &|_| {
        if !resource.strategy.allow_unconditional_update && wanted_version(&object).is_empty() {
            let mut errors = FieldErrors::default();
            errors.invalid("metadata.resourceVersion", 0, "must be specified for an update");
            return Err(errors.into_status(&resource.group, &resource.kind, &call.info.name));
        }
        Ok(Change::Replace(object.clone()))
    })
    .await?;
    object_response(state, call, resource, StatusCode::OK, &bytes)
}

/// Returns the resourceVersion that a write replaces. Empty: any, which `0` means as well.
fn wanted_version(object: &Value) -> &str {
    Some(str_at(object, "/metadata/resourceVersion")).filter(|v| *v != "0").unwrap_or_default()
}

/// The outcome of a write's change function.
pub(crate) enum Change {
    /// The whole object in its served form. Fields that the server owns are carried over.
    Replace(Value),
    /// The stored form, with managedFields already computed (server-side apply).
    Applied(Value),
}

/// Increments `metadata.generation` if the specification changed.
fn count_generation(resource: &Resource, new: &mut Value, old: &Value) {
    if resource.strategy.generation && !same_spec(new, old) {
        let generation = int_at(old, "/metadata/generation").unwrap_or(0) + 1;
        set(new, "/metadata/generation", generation.into());
    }
}

/// Reads, changes, validates and writes an object, with retries after conflicts. Returns the stored bytes.
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
                let uid = str_at(&new, "/metadata/uid").to_owned();
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
        if part.is_empty() {
            resource.default(&mut new);
            (resource.strategy.update)(&mut new, &old);
        }
        if part == "scale" {
            resource.default(&mut new);
            (resource.strategy.update)(&mut new, &old);
            crate::scale::admit(state, call, resource, &mut new, &old, dry_run).await?;
        } else {
            let mut admission = Admission::new(call, resource, &mut new, Some(&old), dry_run);
            state.admission.admit(&mut admission).await?;
            if admission.reset {
                carry_over(resource, &mut new, &old, part);
                if part.is_empty() {
                    resource.default(&mut new);
                    (resource.strategy.update)(&mut new, &old);
                }
            }
        }
        if !part.is_empty() {
            (resource.strategy.view)(&View { part, old: &old, now: &now }, &mut new, &mut errors);
        }
        if part == "status" {
            resource.schema.complete(&mut new);
        }
        if VIEWS.contains(&part) {
            resource.default(&mut new);
        }
        if VIEWS.contains(&part) || matches!(part, "" | "scale") {
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
        check_definition(resource, &new, Some(&old), part == "status", &mut errors);
        if !errors.is_empty() {
            return Err(errors.into_status(&resource.group, &resource.kind, name));
        }
        if part == "scale" {
            crate::scale::validate(state, call, resource, &new, &old, dry_run).await?;
        } else {
            let admission = Admission::new(call, resource, &mut new, Some(&old), dry_run);
            state.admission.validate(&admission).await?;
        }
        if matches!(part, "" | "ephemeralcontainers") {
            crate::unenforced::warn(state, call, resource, &new, Some(&old));
        }
        let reserved = match reserve(state, resource, &mut new, Some(&old), dry_run).await {
            Ok(reserved) => reserved,
            Err(e) => {
                state.admission.abandon(call).await;
                return Err(e);
            }
        };
        if !applied {
            let manager = Manager {
                name: call.manager(),
                api_version: resource.api_version(),
                subresource: part.to_owned(),
            };
            managed::record_update(&old, &mut new, &resource.schema, &manager, &now);
        }
        set(&mut new, "/metadata/resourceVersion", stored.revision.to_string().into());
        if new == old {
            settle(reserved, false).await;
            return Ok(stored.json.clone());
        }
        if dry_run {
            return Ok(encode(&new).into());
        }
        // An object that waits for deletion goes with its last finalizer.
        let finished = is_finished(resource, &new) && !is_finished(resource, &old);
        let result = if finished {
            remove(state, resource, &key, stored.revision, &new).await
        } else {
            put(state, resource, &key, Expect::Revision(stored.revision), &new).await
        };
        settle(reserved, result.is_ok()).await;
        if result.is_err() {
            state.admission.abandon(call).await;
        }
        match result {
            Ok(written) => {
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
