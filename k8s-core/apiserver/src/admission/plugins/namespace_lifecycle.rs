//! NamespaceLifecycle: objects are created in namespaces that exist and stay; the cluster's own namespaces stay.

use async_trait::async_trait;
use k8s_core::{api::apimachinery::pkg::apis::meta::v1::StatusCause, status::ApiStatus};
use k8s_store::Store;

use crate::{
    admission::{Admission, Admit, Deletion, Operation},
    value::text,
};

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) struct NamespaceLifecycle {
    pub(super) store: Store,
}

#[async_trait]
impl Admit for NamespaceLifecycle {
    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        let resource = admission.resource;
        if !resource.namespaced || admission.operation != Operation::Create {
            return Ok(());
        }
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
            let name = text(admission.object, "/metadata/name");
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
        let (resource, name) = (deletion.resource, deletion.name);
        if resource.group.is_empty() && resource.plural == "namespaces" && IMMORTAL.contains(&name) {
            return Err(ApiStatus::forbidden("", "namespaces", name, "this namespace may not be deleted"));
        }
        Ok(())
    }
}
