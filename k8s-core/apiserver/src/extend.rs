//! What a stored definition sets in motion: a CustomResourceDefinition or ThirdPartyResource starts or stops being served.

use std::sync::Arc;

use k8s_core::store::{Expect, Stored};
use serde_json::Value;

use crate::{
    resources::{Resource, custom},
    server::ApiServer,
    value::{list, set, text},
    write::{put, timestamp},
};

const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";
const THIRD_PARTY: &str = "thirdpartyresources.extensions";
/// Keeps a definition until its objects are gone.
pub(crate) const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Called with every object that was written.
pub(crate) async fn after_write(server: &ApiServer, resource: &Resource, stored: &Arc<Stored>) {
    match &*resource.storage {
        DEFINITIONS => {}
        THIRD_PARTY => {
            if let Ok(object) = serde_json::from_slice(&stored.json) {
                server.inner.define(&object);
            }
            return;
        }
        _ => return,
    }
    let Ok(crd) = serde_json::from_slice::<Value>(&stored.json) else { return };
    if crd.pointer("/metadata/deletionTimestamp").is_some() {
        clean_up(server, resource, &crd, stored.revision).await;
        return;
    }
    server.inner.define(&crd);
    let now = timestamp(server.inner.clock.now());
    let status = custom::accepted_status(&crd, &now);
    let mut new = crd.clone();
    let finalizers = list(&crd, "/metadata/finalizers");
    if crd.get("status") == Some(&status) && !finalizers.is_empty() {
        return;
    }
    new["status"] = status;
    if !finalizers.iter().any(|f| f == CLEANUP) {
        let mut all = finalizers.to_vec();
        all.push(CLEANUP.into());
        set(&mut new, "/metadata/finalizers", all.into());
    }
    // Somebody who wrote meanwhile comes through here as well.
    let _ = put(server, resource, &stored.key, Expect::Revision(stored.revision), &new).await;
}

/// Called with every object that was deleted.
pub(crate) fn after_delete(server: &ApiServer, resource: &Resource, object: &Value) {
    if [DEFINITIONS, THIRD_PARTY].contains(&&*resource.storage) {
        server.inner.undefine(text(object, "/kind"), text(object, "/metadata/name"));
    }
}

/// Deletes the objects of a definition that is to go, then lets it go.
async fn clean_up(server: &ApiServer, resource: &Resource, crd: &Value, revision: u64) {
    let storage = format!("{}.{}", text(crd, "/spec/names/plural"), text(crd, "/spec/group"));
    let store = &server.inner.store;
    for stored in store.snapshot(&storage).range("", "") {
        let json = stored.json.clone();
        let _ = store.delete(&storage, &stored.key, stored.revision, |_| json).await;
    }
    let mut new = crd.clone();
    let left: Vec<Value> =
        list(crd, "/metadata/finalizers").iter().filter(|f| *f != CLEANUP).cloned().collect();
    let done = left.is_empty();
    set(&mut new, "/metadata/finalizers", left.into());
    let name = text(crd, "/metadata/name");
    if done {
        let _ = Box::pin(crate::delete::remove(server, resource, name, revision, &new)).await;
    } else {
        let _ = put(server, resource, name, Expect::Revision(revision), &new).await;
    }
}
