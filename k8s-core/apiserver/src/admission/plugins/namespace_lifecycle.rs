//! NamespaceLifecycle: refuses objects in absent or terminating namespaces, and the deletion of built-in
//! ones.

use async_trait::async_trait;
use k8s_core::{api::apimachinery::pkg::apis::meta::v1::StatusCause, status::ApiStatus};
use k8s_store::Store;

use crate::{
    admission::{Admission, Admit, Deletion, Operation},
    resources::Resource,
    value::str_at,
};

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) struct NamespaceLifecycle {
    pub(super) store: Store,
}

#[async_trait]
impl Admit for NamespaceLifecycle {
    fn handles(&self, operation: Operation, resource: &Resource, _: &str) -> bool {
        match operation {
            // An answer to an access review must not tell whether a namespace exists.
            Operation::Create => resource.namespaced && resource.group != "authorization.k8s.io",
            Operation::Delete => resource.storage.as_ref() == "namespaces",
            _ => false,
        }
    }

    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        let resource = admission.resource;
        let namespace = admission.request.namespace.as_str();
        let Some(stored) = self.store.get("namespaces", namespace) else {
            return Err(ApiStatus::not_found("", "namespaces", namespace));
        };
        if stored.fields.first().is_some_and(|phase| &**phase == "Terminating") {
            let cause = StatusCause {
                reason: Some("NamespaceTerminating".into()),
                message: Some(format!("namespace {namespace} is being terminated")),
                field: Some("metadata.namespace".into()),
            };
            let name = str_at(admission.object, "/metadata/name");
            let why = format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            );
            return Err(
                ApiStatus::forbidden(&resource.group, &resource.plural, name, &why).causes(vec![cause])
            );
        }
        Ok(())
    }

    async fn delete(&self, deletion: &Deletion<'_>) -> Result<(), ApiStatus> {
        let name = deletion.name;
        if IMMORTAL.contains(&name) {
            return Err(ApiStatus::forbidden("", "namespaces", name, "this namespace may not be deleted"));
        }
        Ok(())
    }
}
