//! DefaultStorageClass: the class of a PersistentVolumeClaim that names none.

use async_trait::async_trait;
use k8s_core::status::ApiStatus;
use k8s_store::Store;
use serde_json::Value;

use crate::{
    admission::{Admission, Admit, Operation},
    resources::Resource,
    value::{child, object_at, str_at},
};

pub(super) struct DefaultStorageClass {
    pub(super) store: Store,
}

#[async_trait]
impl Admit for DefaultStorageClass {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        operation == Operation::Create
            && part.is_empty()
            && resource.storage.as_ref() == "persistentvolumeclaims"
    }

    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        storage_class(&self.store, admission.object);
        Ok(())
    }
}

fn storage_class(store: &Store, claim: &mut Value) {
    let named = claim.pointer("/spec/storageClassName").is_some()
        || object_at(claim, "/metadata/annotations")
            .is_some_and(|a| a.contains_key("volume.beta.kubernetes.io/storage-class"));
    if named {
        return;
    }
    let snapshot = store.snapshot("storageclasses.storage.k8s.io");
    let default =
        snapshot.range("", "").filter_map(|s| serde_json::from_slice::<Value>(&s.json).ok()).find(|c| {
            object_at(c, "/metadata/annotations").is_some_and(|a| {
                [
                    "storageclass.kubernetes.io/is-default-class",
                    "storageclass.beta.kubernetes.io/is-default-class",
                ]
                .iter()
                .any(|k| a.get(*k).is_some_and(|v| v == "true"))
            })
        });
    if let (Some(class), Some(spec)) = (default, child(claim, "spec")) {
        spec["storageClassName"] = str_at(&class, "/metadata/name").into();
    }
}
