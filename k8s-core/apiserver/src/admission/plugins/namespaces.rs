//! NamespaceAutoProvision and NamespaceExists: what to do about a namespace that is not there.

use async_trait::async_trait;
use k8s_core::status::ApiStatus;
use k8s_store::{Expect, Store, StoreError};
use serde_json::json;

use crate::{
    admission::{Admission, Admit, Operation},
    resources::{Resource, meta_of},
    value::{Unversioned, timestamp},
};

/// Creates the namespace of an object that is created.
pub(super) struct AutoProvision {
    pub(super) store: Store,
    pub(super) clock: k8s_core::clock::Clock,
}

#[async_trait]
impl Admit for AutoProvision {
    fn handles(&self, operation: Operation, resource: &Resource, _: &str) -> bool {
        operation == Operation::Create && resource.namespaced
    }

    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        let name = admission.request.namespace.as_str();
        if admission.dry_run || self.store.get("namespaces", name).is_some() {
            return Ok(());
        }
        let Some(namespaces) = admission.call.registry.find("", "v1", "namespaces") else { return Ok(()) };
        let object = json!({
            "kind": "Namespace", "apiVersion": "v1",
            "metadata": {
                "name": name, "uid": k8s_core::random::uuid().to_string(),
                "creationTimestamp": timestamp(self.clock.now()),
                "labels": {"kubernetes.io/metadata.name": name},
            },
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
        });
        let meta = meta_of(&object, &namespaces.fields);
        let json = Unversioned::encode(&object);
        let made =
            self.store.put("namespaces", name, Expect::Absent, meta, |revision| json.at(revision)).await;
        match made {
            Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
            Err(e) => Err(ApiStatus::internal(e)),
        }
    }
}

/// Refuses requests about an absent namespace.
pub(super) struct Exists {
    pub(super) store: Store,
}

#[async_trait]
impl Admit for Exists {
    fn handles(&self, operation: Operation, resource: &Resource, _: &str) -> bool {
        resource.namespaced && matches!(operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        let name = admission.request.namespace.as_str();
        match self.store.get("namespaces", name) {
            Some(_) => Ok(()),
            None => Err(ApiStatus::not_found("", "namespaces", name)),
        }
    }
}
