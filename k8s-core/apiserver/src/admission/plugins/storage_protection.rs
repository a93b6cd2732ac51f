//! StorageObjectInUseProtection: claims and volumes get the finalizer that keeps them while they are used.

use async_trait::async_trait;
use k8s_core::status::ApiStatus;

use crate::{
    admission::{Admission, Admit, Operation},
    resources::Resource,
    value::{array_at, set},
};

pub(super) struct StorageObjectInUseProtection;

/// Returns the finalizer of a kind, if it is protected.
fn finalizer(storage: &str) -> Option<&'static str> {
    match storage {
        "persistentvolumes" => Some("kubernetes.io/pv-protection"),
        "persistentvolumeclaims" => Some("kubernetes.io/pvc-protection"),
        _ => None,
    }
}

#[async_trait]
impl Admit for StorageObjectInUseProtection {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        operation == Operation::Create && part.is_empty() && finalizer(&resource.storage).is_some()
    }

    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        let Some(name) = finalizer(&admission.resource.storage) else { return Ok(()) };
        let mut all = array_at(admission.object, "/metadata/finalizers").to_vec();
        if !all.iter().any(|known| known == name) {
            all.push(name.into());
            set(admission.object, "/metadata/finalizers", all.into());
        }
        Ok(())
    }
}
