//! Converts stored objects in memory after their CustomResourceDefinition has changed: to its current fields,
//! defaults and version.
//!
//! Upstream does this on every read. Here it is done once when the definition changes and at start, so reads
//! only copy bytes. The new form is written to disk on the object's next write.

use bytes::Bytes;
use k8s_store::{Meta, Store, Stored};
use serde_json::Value;

use crate::{
    resources::{Resource, meta_of},
    value::{Unversioned, text},
};

/// Returns true if objects may look different than with the previous definition.
pub(crate) fn differs(new: &Resource, old: Option<&Resource>) -> bool {
    old.is_none_or(|old| {
        new.open_api != old.open_api || new.storage_version != old.storage_version || new.fields != old.fields
    })
}

/// Converts all objects of a resource in its stored version.
pub(crate) fn all(store: &Store, resource: &Resource) {
    store.reshape(&resource.storage, |stored| one(resource, stored));
}

fn one(resource: &Resource, stored: &Stored) -> Option<(Bytes, Meta)> {
    let old: Value = serde_json::from_slice(&stored.json).ok()?;
    let mut new = old.clone();
    if text(&new, "/apiVersion") != resource.storage_version {
        // Converted by the webhook on read.
        if resource.webhook.is_some() {
            return None;
        }
        new["apiVersion"] = resource.storage_version.clone().into();
    }
    resource.schema.normalize(&mut new, true);
    resource.default(&mut new);
    let meta = meta_of(&new, &resource.fields);
    if new == old && meta.fields == stored.fields {
        return None;
    }
    Some((Unversioned::encode(&new).at(stored.revision), meta))
}
