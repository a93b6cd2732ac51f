//! Reads and writes of stored objects as JSON values.

use std::sync::Arc;

use k8s_core::status::ApiStatus;
use k8s_store::{Expect, StoreError, Stored};
use serde_json::Value;

pub(crate) use crate::value::timestamp;
use crate::{
    resources::{Resource, meta_of},
    state::State,
    value::{Unversioned, array_at, int_at},
};

/// Maximum of optimistic-lock retries. The store reports a conflict only after the winning write is visible,
/// so N concurrent writers need at most N tries.
pub(crate) const TRIES: usize = 64;

/// Writes the stored form of an object.
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

/// Returns true if an object is marked as deleted and no finalizer or grace period keeps it.
pub(crate) fn is_finished(resource: &Resource, object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some()
        && array_at(object, "/metadata/finalizers").is_empty()
        && int_at(object, "/metadata/deletionGracePeriodSeconds").unwrap_or(0) == 0
        && !(resource.strategy.is_held)(object)
}

/// Deletes an object, whose last state is `object`.
pub(crate) async fn remove(
    state: &Arc<State>,
    resource: &Resource,
    key: &str,
    revision: u64,
    object: &Value,
) -> Result<Arc<Stored>, StoreError> {
    let json = Unversioned::encode(object);
    let gone = state.store.delete(&resource.storage, key, revision, |revision| json.at(revision)).await?;
    if let Some(observer) = state.observer(resource) {
        observer.after_delete(state, resource, object).await;
    }
    Ok(gone)
}

/// Notifies the observer of the resource about a written object.
pub(crate) async fn written(state: &Arc<State>, resource: &Resource, stored: &Arc<Stored>) {
    if let Some(observer) = state.observer(resource) {
        observer.after_write(state, resource, stored).await;
    }
}
