//! Stored objects of a custom resource whose definition has changed: shown with the fields, defaults and version that the definition has now.
//!
//! Upstream does this whenever an object is read. Here it is done once, in memory, when the definition changes and when the server starts; so reads stay
//! copies of bytes. An object is written in its new shape when somebody writes it.

use bytes::Bytes;
use k8s_store::{Meta, Store, Stored};
use serde_json::Value;

use crate::{
    resources::Resource,
    server::meta_of,
    value::{Unversioned, text},
};

/// Whether objects may have to be shown in another way than under an earlier definition.
pub(crate) fn differs(new: &Resource, old: Option<&Resource>) -> bool {
    old.is_none_or(|old| {
        new.open_api != old.open_api || new.storage_version != old.storage_version || new.fields != old.fields
    })
}

/// Shows the objects of a resource, in its stored version, as it describes them.
pub(crate) fn all(store: &Store, resource: &Resource) {
    store.reshape(&resource.storage, |stored| one(resource, stored));
}

fn one(resource: &Resource, stored: &Stored) -> Option<(Bytes, Meta)> {
    let old: Value = serde_json::from_slice(&stored.json).ok()?;
    let mut new = old.clone();
    if text(&new, "/apiVersion") != resource.storage_version {
        // A webhook converts it when it is read.
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
