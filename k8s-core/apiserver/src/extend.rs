//! What a stored definition sets in motion: a CustomResourceDefinition or ThirdPartyResource starts or stops being served.

mod names;
pub(crate) mod reshape;

use std::sync::Arc;

use k8s_store::{Expect, Stored};
use serde_json::Value;

use crate::{
    aggregate,
    resources::{Resource, custom, is_built_in},
    server::{ApiServer, meta_of},
    value::{Unversioned, list, set, text},
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
        aggregate::STORAGE => return aggregate::after_write(server, stored),
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
        if names::is_established(crd.get("status").unwrap_or(&Value::Null)) {
            // Still served, but for new objects.
            server.inner.define(&names::accepted(&crd, &crd["status"]));
        }
        clean_up(server, resource, &crd, stored.revision).await;
        return;
    }
    let now = timestamp(server.inner.clock.now());
    let conflicts = names::conflicts(server, &crd);
    let status = names::status(&crd, &conflicts, &now);
    if names::is_established(&status) {
        server.inner.define(&names::accepted(&crd, &status));
    }
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

/// Whether somebody has to read the objects of a resource when they go: [`after_delete`], or who gives back their addresses.
pub(crate) fn is_read_at_its_end(resource: &Resource) -> bool {
    let read = ["namespaces", "services", DEFINITIONS, aggregate::STORAGE, THIRD_PARTY];
    resource.custom || read.contains(&&*resource.storage)
}

/// Called with every object that was deleted, if [`is_read_at_its_end`].
pub(crate) async fn after_delete(server: &ApiServer, resource: &Resource, object: &Value) {
    match &*resource.storage {
        DEFINITIONS => {
            server.inner.undefine("CustomResourceDefinition", text(object, "/metadata/name"));
            Box::pin(reconsider(server, text(object, "/spec/group"))).await;
        }
        aggregate::STORAGE => aggregate::after_delete(server, object),
        THIRD_PARTY => {
            server.inner.undefine("ThirdPartyResource", text(object, "/metadata/name"));
            for made in custom::from_third_party(object).iter().take(1) {
                remove_all(server, &made.storage).await;
            }
        }
        storage if resource.custom => Box::pin(resume(server, storage)).await,
        _ => {}
    }
}

/// Removes what a ThirdPartyResource defined, as its deletion did in its time.
async fn remove_all(server: &ApiServer, storage: &str) {
    if is_built_in(storage) {
        return;
    }
    let store = &server.inner.store;
    for stored in store.snapshot(storage).range("", "") {
        let json = stored.json.clone();
        let _ = store.delete(storage, &stored.key, stored.revision, |_| json).await;
    }
}

/// Looks again at the definitions of a group that did not get their names: one that had them has gone.
async fn reconsider(server: &ApiServer, group: &str) {
    let registry = server.inner.registry.now();
    let Some(resource) = registry.find("apiextensions.k8s.io", "v1", "customresourcedefinitions") else {
        return;
    };
    for stored in server.inner.store.snapshot(DEFINITIONS).range("", "") {
        let Ok(crd) = serde_json::from_slice::<Value>(&stored.json) else { continue };
        let refused = list(&crd, "/status/conditions")
            .iter()
            .any(|c| text(c, "/type") == "NamesAccepted" && text(c, "/status") == "False");
        if refused && text(&crd, "/spec/group") == group {
            after_write(server, resource, stored).await;
        }
    }
}

/// Deletes the objects of a definition that is to go, then lets it go. Objects with finalizers are marked and waited for: the last of them to go comes
/// through [`after_delete`].
async fn clean_up(server: &ApiServer, resource: &Resource, crd: &Value, revision: u64) {
    let storage = storage_of(crd);
    let store = &server.inner.store;
    let now = timestamp(server.inner.clock.now());
    // A definition that never got its names has no objects: those of that name are somebody else's.
    let owns = names::is_established(crd.get("status").unwrap_or(&Value::Null)) && !is_built_in(&storage);
    let objects = || store.snapshot(&storage);
    for stored in owns.then(objects).iter().flat_map(|all| all.range("", "")) {
        let Ok(mut object) = serde_json::from_slice::<Value>(&stored.json) else { continue };
        if list(&object, "/metadata/finalizers").is_empty() {
            let json = Unversioned::encode(&object);
            let _ = store.delete(&storage, &stored.key, stored.revision, |revision| json.at(revision)).await;
        } else if object.pointer("/metadata/deletionTimestamp").is_none() {
            set(&mut object, "/metadata/deletionTimestamp", now.clone().into());
            set(&mut object, "/metadata/deletionGracePeriodSeconds", 0.into());
            let json = Unversioned::encode(&object);
            let meta = meta_of(&object, &[]);
            let expect = Expect::Revision(stored.revision);
            let _ = store.put(&storage, &stored.key, expect, meta, |revision| json.at(revision)).await;
        }
    }
    let waits = owns && !store.snapshot(&storage).is_empty();
    let mut new = crd.clone();
    names::terminating(&mut new, waits, &now);
    if !waits {
        let left: Vec<Value> =
            list(crd, "/metadata/finalizers").iter().filter(|f| *f != CLEANUP).cloned().collect();
        set(&mut new, "/metadata/finalizers", left.into());
    }
    let name = text(crd, "/metadata/name");
    if crate::delete::is_finished(resource, &new) {
        let _ = Box::pin(crate::delete::remove(server, resource, name, revision, &new)).await;
    } else if new != *crd {
        let _ = put(server, resource, name, Expect::Revision(revision), &new).await;
    }
}

/// The name under which a definition's objects are stored.
fn storage_of(crd: &Value) -> String {
    format!("{}.{}", text(crd, "/spec/names/plural"), text(crd, "/spec/group"))
}

/// Goes on with a definition that waits for its last objects to go, one of which has.
async fn resume(server: &ApiServer, storage: &str) {
    let Some(stored) = server.inner.store.get(DEFINITIONS, storage) else { return };
    let Ok(crd) = serde_json::from_slice::<Value>(&stored.json) else { return };
    let registry = server.inner.registry.now();
    let resource = registry.find("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    if let (Some(resource), true) = (resource, crd.pointer("/metadata/deletionTimestamp").is_some()) {
        clean_up(server, resource, &crd, stored.revision).await;
    }
}
