//! Definitions: CustomResourceDefinitions and ThirdPartyResources in the store start and stop being served.

mod names;
pub(crate) mod reshape;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use k8s_store::{Expect, Stored};
use serde_json::Value;

use crate::{
    blocking::run_blocking_if,
    resources::{Resource, custom, is_built_in, meta_of},
    state::{Observer, State},
    storage::{put, timestamp},
    value::{Unversioned, array_at, set, str_at},
};

const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";
const THIRD_PARTY: &str = "thirdpartyresources.extensions";
/// Finalizer of a definition with objects.
const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Time between the mark of a definition's deletion and its end, as an upstream controller takes. A client
/// that deletes a definition and then waits for its end sees the end.
const END: Duration = Duration::from_millis(50);

/// Serves the resources of all stored definitions, and ends those that were being deleted.
pub(crate) fn load_definitions(state: &Arc<State>) {
    for kind in ["customresourcedefinitions.apiextensions.k8s.io", "thirdpartyresources.extensions"] {
        for stored in state.store.snapshot(kind).range("", "") {
            if let Ok(object) = serde_json::from_slice::<Value>(&stored.json) {
                define(state, &object);
                if object.pointer("/metadata/deletionTimestamp").is_some() {
                    end_soon(state, &stored.key);
                }
            }
        }
    }
}

/// Serves the resources of a stored definition.
fn define(state: &State, definition: &Value) {
    let (kind, name) = (str_at(definition, "/kind"), str_at(definition, "/metadata/name"));
    let made: Vec<Arc<Resource>> = match kind {
        "CustomResourceDefinition" => custom::from_definition(definition),
        _ => custom::from_third_party(definition),
    };
    let before = state.registry.now();
    let stored = made.iter().find(|r| r.is_storage_version()).cloned();
    state.registry.define(&format!("{kind}/{name}"), made);
    if let Some(now) = stored {
        let was = before.find(&now.group, &now.version, &now.plural);
        if reshape::differs(&now, was.map(|r| &**r)) {
            run_blocking_if(true, || reshape::all(&state.store, &now));
        }
    }
    state.open_api.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
    state.redefined.notify_one();
}

/// Stops serving the resources of a definition.
fn undefine(state: &State, kind: &str, name: &str) {
    state.registry.define(&format!("{kind}/{name}"), Vec::new());
    state.open_api.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
    state.redefined.notify_one();
}

/// The observer of definitions and of custom objects.
pub(crate) struct Definitions;

#[async_trait]
impl Observer for Definitions {
    fn observes(&self, resource: &Resource) -> bool {
        resource.custom || [DEFINITIONS, THIRD_PARTY].contains(&&*resource.storage)
    }

    async fn after_write(&self, state: &Arc<State>, resource: &Resource, stored: &Arc<Stored>) {
        after_write(state, resource, stored).await;
    }

    async fn after_delete(&self, state: &Arc<State>, resource: &Resource, object: &Value) {
        after_delete(state, resource, object).await;
    }
}

/// Acts on a written definition.
async fn after_write(state: &Arc<State>, resource: &Resource, stored: &Arc<Stored>) {
    match &*resource.storage {
        DEFINITIONS => {}
        THIRD_PARTY => {
            if let Ok(object) = serde_json::from_slice(&stored.json) {
                define(state, &object);
            }
            return;
        }
        _ => return,
    }
    let Ok(crd) = serde_json::from_slice::<Value>(&stored.json) else { return };
    if crd.pointer("/metadata/deletionTimestamp").is_some() {
        if names::is_established(crd.get("status").unwrap_or(&Value::Null)) {
            // Still served, except for creates.
            define(state, &names::accepted(&crd, &crd["status"]));
        }
        end_soon(state, &stored.key);
        return;
    }
    let now = timestamp(state.clock.now());
    let conflicts = names::conflicts(state, &crd);
    let status = names::status(&crd, &conflicts, &now);
    if names::is_established(&status) {
        define(state, &names::accepted(&crd, &status));
    }
    let mut new = crd.clone();
    let finalizers = array_at(&crd, "/metadata/finalizers");
    if crd.get("status") == Some(&status) && !finalizers.is_empty() {
        return;
    }
    new["status"] = status;
    if !finalizers.iter().any(|f| f == CLEANUP) {
        let mut all = finalizers.to_vec();
        all.push(CLEANUP.into());
        set(&mut new, "/metadata/finalizers", all.into());
    }
    // A concurrent writer comes through here as well.
    let _ = put(state, resource, &stored.key, Expect::Revision(stored.revision), &new).await;
}

/// Acts on a deleted definition, and on a deleted custom object whose definition may wait for it.
async fn after_delete(state: &Arc<State>, resource: &Resource, object: &Value) {
    match &*resource.storage {
        DEFINITIONS => {
            undefine(state, "CustomResourceDefinition", str_at(object, "/metadata/name"));
            Box::pin(reconsider(state, str_at(object, "/spec/group"))).await;
        }
        THIRD_PARTY => {
            undefine(state, "ThirdPartyResource", str_at(object, "/metadata/name"));
            for made in custom::from_third_party(object).iter().take(1) {
                remove_all(state, &made.storage).await;
            }
        }
        storage if resource.custom => Box::pin(resume(state, storage)).await,
        _ => {}
    }
}

/// Deletes the objects of a ThirdPartyResource, as Kubernetes 1.7 did.
async fn remove_all(state: &Arc<State>, storage: &str) {
    if is_built_in(storage) {
        return;
    }
    let store = &state.store;
    for stored in store.snapshot(storage).range("", "") {
        let json = stored.json.clone();
        let _ = store.delete(storage, &stored.key, stored.revision, |_| json).await;
    }
}

/// Reconsiders refused definitions of a group after names became free.
async fn reconsider(state: &Arc<State>, group: &str) {
    let registry = state.registry.now();
    let Some(resource) = registry.find("apiextensions.k8s.io", "v1", "customresourcedefinitions") else {
        return;
    };
    for stored in state.store.snapshot(DEFINITIONS).range("", "") {
        let Ok(crd) = serde_json::from_slice::<Value>(&stored.json) else { continue };
        let refused = array_at(&crd, "/status/conditions")
            .iter()
            .any(|c| str_at(c, "/type") == "NamesAccepted" && str_at(c, "/status") == "False");
        if refused && str_at(&crd, "/spec/group") == group {
            after_write(state, resource, stored).await;
        }
    }
}

/// Deletes the objects of a definition that is being deleted, then the definition. Objects with finalizers
/// are marked; the deletion of the last one resumes here.
async fn clean_up(state: &Arc<State>, resource: &Resource, crd: &Value, revision: u64) {
    let storage = storage_of(crd);
    let store = &state.store;
    let now = timestamp(state.clock.now());
    // A definition whose names were never accepted has no objects: those belong to another definition.
    let owns = names::is_established(crd.get("status").unwrap_or(&Value::Null)) && !is_built_in(&storage);
    let objects = || store.snapshot(&storage);
    for stored in owns.then(objects).iter().flat_map(|all| all.range("", "")) {
        let Ok(mut object) = serde_json::from_slice::<Value>(&stored.json) else { continue };
        if array_at(&object, "/metadata/finalizers").is_empty() {
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
            array_at(crd, "/metadata/finalizers").iter().filter(|f| *f != CLEANUP).cloned().collect();
        set(&mut new, "/metadata/finalizers", left.into());
    }
    let name = str_at(crd, "/metadata/name");
    if crate::storage::is_finished(resource, &new) {
        let _ = Box::pin(crate::storage::remove(state, resource, name, revision, &new)).await;
    } else if new != *crd {
        let _ = put(state, resource, name, Expect::Revision(revision), &new).await;
    }
}

/// The name under which a definition's objects are stored.
fn storage_of(crd: &Value) -> String {
    format!("{}.{}", str_at(crd, "/spec/names/plural"), str_at(crd, "/spec/group"))
}

/// Ends a definition that is being deleted, a little later.
#[expect(clippy::disallowed_methods, reason = "the task ends by itself, or with the server")]
fn end_soon(state: &Arc<State>, name: &str) {
    let (state, name) = (Arc::downgrade(state), name.to_owned());
    tokio::spawn(async move {
        tokio::time::sleep(END).await;
        if let Some(state) = state.upgrade() {
            resume(&state, &name).await;
        }
    });
}

/// Continues the deletion of a definition after one of its last objects was deleted.
async fn resume(state: &Arc<State>, storage: &str) {
    let Some(stored) = state.store.get(DEFINITIONS, storage) else { return };
    let Ok(crd) = serde_json::from_slice::<Value>(&stored.json) else { return };
    let registry = state.registry.now();
    let resource = registry.find("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    if let (Some(resource), true) = (resource, crd.pointer("/metadata/deletionTimestamp").is_some()) {
        clean_up(state, resource, &crd, stored.revision).await;
    }
}
