//! Deletion: preconditions, grace, finalizers, propagation.

use std::{sync::Arc, time::Duration};

use http::{Response, StatusCode};
use k8s_core::{client::Body, json, status::ApiStatus};
use k8s_store::{Expect, StoreError, Stored};
use serde_json::{Value, json};

use crate::{
    admission::Deletion,
    body::decode_body,
    call::{Call, dry_run, dry_run_of},
    errors::{precondition, store_failure},
    read::{Selection, object_response},
    resources::Resource,
    respond,
    state::State,
    storage::{put, remove, timestamp},
    value::{Unversioned, array_at, child, int_at, str_at},
};

/// Number of concurrent deletions of a collection: enough for the store to write them in groups.
const AT_A_TIME: usize = 256;

/// `DeleteOptions`, from body and query.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Validates only, without deleting.
    pub(crate) dry_run: bool,
    grace: Option<i64>,
    propagation: String,
    /// Precondition; empty: none.
    pub(crate) uid: String,
    /// Precondition; empty: none.
    pub(crate) revision: String,
    /// As they were sent, for admission.
    sent: Value,
}

/// Returns the options of a DELETE, from its body and query.
fn options(call: &Call, body: &[u8]) -> Result<Options, ApiStatus> {
    let value = if body.is_empty() { json!({}) } else { decode_body(call, "DeleteOptions", body)?.0 };
    parse(call, &value)
}

/// Returns the options of a deletion, from a `DeleteOptions` object and the request's query.
///
/// # Errors
/// 422 for an unknown propagation policy or dry run.
pub(crate) fn parse(call: &Call, value: &Value) -> Result<Options, ApiStatus> {
    let dry_run = dry_run(call, "DeleteOptions")? | dry_run_of(array_at(value, "/dryRun"), "DeleteOptions")?;
    let grace = call.query.number("gracePeriodSeconds").or_else(|| int_at(value, "/gracePeriodSeconds"));
    let mut propagation = match call.query.get("propagationPolicy") {
        "" => str_at(value, "/propagationPolicy").to_owned(),
        given => given.to_owned(),
    };
    if let (true, Some(orphan)) =
        (propagation.is_empty(), value.get("orphanDependents").and_then(Value::as_bool))
    {
        propagation = if orphan { "Orphan" } else { "Background" }.into();
    }
    if !["", "Orphan", "Background", "Foreground"].contains(&propagation.as_str()) {
        let mut errors = crate::invalid::FieldErrors::default();
        errors.not_supported("propagationPolicy", propagation, &["Background", "Foreground", "Orphan"]);
        return Err(errors.into_status("meta.k8s.io", "DeleteOptions", ""));
    }
    Ok(Options {
        dry_run,
        grace: grace.map(|g| g.max(0)),
        propagation,
        uid: str_at(value, "/preconditions/uid").into(),
        revision: str_at(value, "/preconditions/resourceVersion").into(),
        sent: value.clone(),
    })
}

/// The outcome of a deletion.
enum Outcome {
    Gone(Arc<Stored>),
    Waiting(Arc<Stored>),
}

async fn delete_named(
    state: &Arc<State>,
    call: &Call,
    resource: &Arc<Resource>,
    key: &str,
    options: &Options,
) -> Result<Outcome, ApiStatus> {
    let dry_run = options.dry_run;
    let (namespace, name) = key.rsplit_once('/').unwrap_or(("", key));
    // As upstream: tried until it succeeds, for as long as the request lasts. Each try that fails is one that
    // another writer's succeeded.
    loop {
        let stored = state
            .store
            .get(&resource.storage, key)
            .ok_or_else(|| ApiStatus::not_found(&resource.group, &resource.plural, name))?;
        if !options.uid.is_empty() && options.uid != *stored.uid {
            return Err(precondition(resource, key, name, &options.uid, &stored.uid));
        }
        if !options.revision.is_empty() && options.revision != stored.revision.to_string() {
            let why = format!(
                "Precondition failed: ResourceVersion in precondition: {}, ResourceVersion in object meta: {}",
                options.revision, stored.revision
            );
            return Err(ApiStatus::conflict(&resource.group, &resource.plural, name, &why));
        }
        let deletion = Deletion {
            user: &call.user,
            resource,
            namespace,
            name,
            dry_run,
            call,
            stored: &stored,
            options: &options.sent,
        };
        state.admission.delete(&deletion).await?;
        if let Some(last) = goes_at_once(state, resource, &stored, options) {
            if dry_run {
                return Ok(Outcome::Gone(stored));
            }
            let store = &state.store;
            match store.delete(&resource.storage, key, stored.revision, |revision| last.at(revision)).await {
                Ok(gone) => return Ok(Outcome::Gone(gone)),
                Err(StoreError::Conflict { .. }) => continue,
                Err(e) => return Err(store_failure(resource, name, &e)),
            }
        }
        let old: Value = serde_json::from_slice(&stored.json).map_err(ApiStatus::internal)?;
        let mut new = old.clone();
        let grace = grace(resource, &old, options);
        finalize(&mut new, options);
        let keeps = !array_at(&new, "/metadata/finalizers").is_empty() || (resource.strategy.is_held)(&new);
        let result = if grace == 0 && !keeps {
            if dry_run {
                return Ok(Outcome::Gone(stored));
            }
            if let Some(left) = new.pointer_mut("/metadata/deletionGracePeriodSeconds") {
                *left = 0.into();
            }
            remove(state, resource, key, stored.revision, &new).await.map(Outcome::Gone)
        } else {
            mark(state, resource, &mut new, grace);
            if new == old || dry_run {
                return Ok(Outcome::Waiting(stored));
            }
            put(state, resource, key, Expect::Revision(stored.revision), &new).await.map(Outcome::Waiting)
        };
        match result {
            Ok(Outcome::Waiting(stored)) => {
                crate::storage::written(state, resource, &stored).await;
                return Ok(Outcome::Waiting(stored));
            }
            Ok(gone) => return Ok(gone),
            Err(StoreError::Conflict { .. }) => {}
            Err(e) => return Err(store_failure(resource, name, &e)),
        }
    }
}

/// Fast path: returns the object if it can be deleted without being decoded (no finalizers, grace period or
/// observer).
///
/// Most objects are deleted this way: deleting a namespace or the pods of a Deployment decodes none of them.
fn goes_at_once(
    state: &State,
    resource: &Resource,
    stored: &Stored,
    options: &Options,
) -> Option<Unversioned> {
    let is_plain = matches!(options.propagation.as_str(), "" | "Background");
    if !is_plain || is_read_at_its_end(state, resource) {
        return None;
    }
    let is = |name: &str, value: &str| {
        resource.field_names.iter().zip(&stored.fields).any(|(n, v)| *n == name && **v == *value)
    };
    if !(resource.strategy.is_deleted_unread)(&is) {
        return None;
    }
    let metadata = crate::value::metadata_of(&stored.json)?;
    let has = |field: &str| json::find(metadata, &[field]).is_some();
    if has("finalizers") || has("deletionGracePeriodSeconds") {
        return None;
    }
    Unversioned::of(&stored.json)
}

/// Returns true if objects of a resource are decoded when they are deleted, for an observer.
fn is_read_at_its_end(state: &State, resource: &Resource) -> bool {
    state.observer(resource).is_some()
}

/// The grace period of a deletion, seconds. 0: the object goes at once.
fn grace(resource: &Resource, old: &Value, options: &Options) -> i64 {
    let Some(own) = (resource.strategy.grace)(old) else { return 0 };
    let wanted = options.grace.unwrap_or(own);
    // A second delete may shorten the grace period, never lengthen it.
    match int_at(old, "/metadata/deletionGracePeriodSeconds") {
        Some(running) if old.pointer("/metadata/deletionTimestamp").is_some() => {
            if options.grace.is_some() {
                wanted.min(running)
            } else {
                running
            }
        }
        _ => wanted,
    }
}

fn finalize(object: &mut Value, options: &Options) {
    let mut finalizers: Vec<Value> = array_at(object, "/metadata/finalizers").to_vec();
    let before = finalizers.len();
    let set = |list: &mut Vec<Value>, name: &str, wanted: bool| {
        list.retain(|f| f != name);
        if wanted {
            list.push(name.into());
        }
    };
    match options.propagation.as_str() {
        "Orphan" => {
            set(&mut finalizers, "orphan", true);
            set(&mut finalizers, "foregroundDeletion", false);
        }
        "Foreground" => {
            set(&mut finalizers, "foregroundDeletion", true);
            set(&mut finalizers, "orphan", false);
        }
        "Background" => {
            set(&mut finalizers, "orphan", false);
            set(&mut finalizers, "foregroundDeletion", false);
        }
        _ => {}
    }
    if (finalizers.len() != before || !finalizers.is_empty())
        && let Some(metadata) = child(object, "metadata").and_then(Value::as_object_mut)
    {
        if finalizers.is_empty() {
            metadata.remove("finalizers");
        } else {
            metadata.insert("finalizers".into(), finalizers.into());
        }
    }
}

/// Marks an object as being deleted.
fn mark(state: &Arc<State>, resource: &Resource, object: &mut Value, grace: i64) {
    let now = state.clock.now();
    let running = object.pointer("/metadata/deletionTimestamp").is_some();
    let shorter = int_at(object, "/metadata/deletionGracePeriodSeconds").is_none_or(|have| grace < have);
    if !running || shorter {
        let until = now.checked_add(Duration::from_secs(grace.unsigned_abs())).unwrap_or(now);
        if let Some(metadata) = child(object, "metadata") {
            metadata["deletionTimestamp"] = timestamp(until).into();
            metadata["deletionGracePeriodSeconds"] = grace.into();
            if let Some(generation) = int_at(metadata, "/generation").filter(|_| !running) {
                metadata["generation"] = (generation + 1).into();
            }
        }
    }
    (resource.strategy.mark_deleted)(object);
}

/// DELETE of an object.
pub(crate) async fn one(
    state: &Arc<State>,
    call: &Call,
    resource: &Arc<Resource>,
    body: &[u8],
) -> Result<Response<Body>, ApiStatus> {
    let options = options(call, body)?;
    with(state, call, resource, &options).await
}

/// Deletes the object in a request's path.
pub(crate) async fn with(
    state: &Arc<State>,
    call: &Call,
    resource: &Arc<Resource>,
    options: &Options,
) -> Result<Response<Body>, ApiStatus> {
    let key = resource.key(&call.info.namespace, &call.info.name);
    match delete_named(state, call, resource, &key, options).await? {
        Outcome::Waiting(stored) => object_response(state, call, resource, StatusCode::OK, &stored.json),
        Outcome::Gone(stored) if resource.strategy.returns_deleted => {
            object_response(state, call, resource, StatusCode::OK, &stored.json)
        }
        Outcome::Gone(stored) => {
            let mut details = json!({"name": stored.name(), "kind": resource.plural, "uid": &*stored.uid});
            if !resource.group.is_empty() {
                details["group"] = resource.group.clone().into();
            }
            Ok(respond::json_value(
                StatusCode::OK,
                &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}),
            ))
        }
    }
}

/// DELETE of a collection: all selected objects as of the request.
pub(crate) async fn collection(
    state: &Arc<State>,
    call: &Call,
    resource: &Arc<Resource>,
    body: &[u8],
) -> Result<Response<Body>, ApiStatus> {
    let options = options(call, body)?;
    let selection = Selection::from_call(call, resource)?;
    let selected = selection
        .select(&state.store, &resource.storage, None)
        .map_err(|e| store_failure(resource, "", &e))?;
    let chosen: Vec<Arc<Stored>> = selected.after("").cloned().collect();
    // All are tried, whatever becomes of one. So many at a time: each may hold its object for a webhook.
    let mut results = Vec::with_capacity(chosen.len());
    for part in chosen.chunks(AT_A_TIME) {
        let deletions = part.iter().map(|stored| async {
            match delete_named(state, call, resource, &stored.key, &options).await {
                Err(e) if e.code() != 404 => Err(e),
                _ => Ok(()),
            }
        });
        results.extend(futures::future::join_all(deletions).await);
    }
    results.into_iter().collect::<Result<(), ApiStatus>>()?;
    let items: Vec<Value> = chosen
        .iter()
        .filter_map(|s| serde_json::from_slice::<Value>(&s.json).ok())
        .map(|mut object| {
            resource.from_storage(&mut object);
            if let Some(map) = object.as_object_mut().filter(|_| !resource.custom) {
                map.remove("kind");
                map.remove("apiVersion");
            }
            object
        })
        .collect();
    let list = json!({
        "kind": resource.list_kind, "apiVersion": resource.api_version(),
        "metadata": {"resourceVersion": state.store.revision().to_string()}, "items": items,
    });
    Ok(respond::json_value(StatusCode::OK, &list))
}
