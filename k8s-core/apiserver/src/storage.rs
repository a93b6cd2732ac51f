//! Reads and writes of stored objects: the store's bytes as JSON values.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_core::status::ApiStatus;
use k8s_store::{Expect, StoreError, Stored};
use serde_json::Value;

use crate::{
    resources::{Resource, meta_of},
    state::State,
    value::{Unversioned, integer, list},
};

/// How often a write is tried when others write the same object meanwhile. The store tells of a conflict when the other write can be read, so of so many
/// writers that begin together each gets its turn.
pub(crate) const TRIES: usize = 64;

/// Now in whole seconds, RFC 3339.
pub(crate) fn timestamp(now: Timestamp) -> String {
    Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

/// Writes an object's stored form.
pub(crate) async fn put(
    state: &Arc<State>,
    resource: &Resource,
    key: &str,
    expect: Expect,
    object: &Value,
) -> Result<Arc<Stored>, StoreError> {
    let meta = meta_of(object, &resource.fields);
    let json = Unversioned::encode(object);
    state.store.put(&resource.storage, key, expect, meta, |revision| json.at(revision)).await
}

/// Reads the newest state of an object.
pub(crate) fn current(
    state: &Arc<State>,
    resource: &Resource,
    key: &str,
    name: &str,
) -> Result<(Arc<Stored>, Value), ApiStatus> {
    let stored = state
        .store
        .get(&resource.storage, key)
        .ok_or_else(|| ApiStatus::not_found(&resource.group, &resource.plural, name))?;
    let value = serde_json::from_slice(&stored.json).map_err(ApiStatus::internal)?;
    Ok((stored, value))
}

/// Whether nothing keeps an object any more that was asked to go.
pub(crate) fn is_finished(resource: &Resource, object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some()
        && list(object, "/metadata/finalizers").is_empty()
        && integer(object, "/metadata/deletionGracePeriodSeconds").unwrap_or(0) == 0
        && (&*resource.storage != "namespaces" || list(object, "/spec/finalizers").is_empty())
}

/// Takes an object out of the store; its last state is `object`.
pub(crate) async fn remove(
    state: &Arc<State>,
    resource: &Resource,
    key: &str,
    revision: u64,
    object: &Value,
) -> Result<Arc<Stored>, StoreError> {
    let json = Unversioned::encode(object);
    let gone = state.store.delete(&resource.storage, key, revision, |revision| json.at(revision)).await?;
    state.services.release(resource, object);
    if let Some(observer) = state.observer(resource) {
        observer.after_delete(state, resource, object).await;
    }
    Ok(gone)
}

/// Tells the observer of a written object about it.
pub(crate) async fn written(state: &Arc<State>, resource: &Resource, stored: &Arc<Stored>) {
    if let Some(observer) = state.observer(resource) {
        observer.after_write(state, resource, stored).await;
    }
}
