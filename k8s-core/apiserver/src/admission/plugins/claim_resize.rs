//! PersistentVolumeClaimResize: a claim grows only where its class allows it.

use async_trait::async_trait;
use k8s_core::{meta::Quantity, status::ApiStatus};
use k8s_store::Store;
use serde_json::Value;

use crate::{
    admission::{Admission, Admit, Operation},
    resources::Resource,
    value::{bool_at, object_at, str_at},
};

pub(super) struct PersistentVolumeClaimResize {
    pub(super) store: Store,
}

/// Returns the name of a claim's class: the old annotation, then the field.
fn class(claim: &Value) -> &str {
    let annotation = object_at(claim, "/metadata/annotations")
        .and_then(|all| all.get("volume.beta.kubernetes.io/storage-class")?.as_str());
    annotation.unwrap_or_else(|| str_at(claim, "/spec/storageClassName"))
}

#[async_trait]
impl Admit for PersistentVolumeClaimResize {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        operation == Operation::Update
            && part.is_empty()
            && resource.storage.as_ref() == "persistentvolumeclaims"
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        let Some(old) = admission.old else { return Ok(()) };
        let size = |claim: &Value| str_at(claim, "/spec/resources/requests/storage").parse::<Quantity>().ok();
        if size(admission.object) <= size(old) {
            return Ok(());
        }
        if str_at(old, "/status/phase") != "Bound" {
            return Err(admission.forbidden("Only bound persistent volume claims can be expanded"));
        }
        let (new, before) = (class(admission.object), class(old));
        let allows = || {
            let stored = self.store.get("storageclasses.storage.k8s.io", new)?;
            serde_json::from_slice::<Value>(&stored.json).ok()
        };
        if !new.is_empty() && new == before && allows().is_some_and(|c| bool_at(&c, "/allowVolumeExpansion"))
        {
            return Ok(());
        }
        Err(admission.forbidden(
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
        ))
    }
}
