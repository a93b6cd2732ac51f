//! LimitRanger: defaults and bounds of resources, from the LimitRanges of a namespace.
//!
//! Pods are defaulted and checked when they are created, and checked when they are resized; claims are
//! checked whenever they are written. An object that is being deleted is left alone.

mod defaults;
mod limits;

use async_trait::async_trait;
use k8s_core::status::ApiStatus;
use k8s_store::Store;
use serde_json::Value;

use crate::{
    admission::{Admission, Admit, Operation},
    resources::Resource,
    value::array_at,
};

pub(super) struct LimitRanger {
    pub(super) store: Store,
}

impl LimitRanger {
    /// Returns the items of all LimitRanges of a namespace, by LimitRange.
    fn ranges(&self, namespace: &str) -> Vec<Value> {
        let snapshot = self.store.snapshot("limitranges");
        if snapshot.is_empty() {
            return Vec::new();
        }
        let prefix = format!("{namespace}/");
        snapshot.range(&prefix, "").filter_map(|stored| serde_json::from_slice(&stored.json).ok()).collect()
    }
}

#[async_trait]
impl Admit for LimitRanger {
    fn handles(&self, operation: Operation, resource: &Resource, subresource: &str) -> bool {
        matches!(
            (operation, &*resource.storage, subresource),
            (Operation::Create, "pods" | "persistentvolumeclaims", "")
                | (Operation::Update, "persistentvolumeclaims", "")
                | (Operation::Update, "pods", "resize")
        )
    }

    async fn admit(&self, admission: &mut Admission<'_>) -> Result<(), ApiStatus> {
        if admission.operation == Operation::Create && &*admission.resource.storage == "pods" {
            for range in self.ranges(&admission.request.namespace) {
                defaults::set(array_at(&range, "/spec/limits"), admission.object);
            }
        }
        Ok(())
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        if admission.old.is_some_and(|old| old.pointer("/metadata/deletionTimestamp").is_some()) {
            return Ok(());
        }
        for range in self.ranges(&admission.request.namespace) {
            let limits = array_at(&range, "/spec/limits");
            let mut problems = match &*admission.resource.storage {
                "pods" => limits::of_pod(limits, admission.object),
                _ => limits::of_claim(limits, admission.object),
            };
            let mut seen = Vec::new();
            problems.retain(|problem| {
                !seen.contains(problem) && {
                    seen.push(problem.clone());
                    true
                }
            });
            match problems.as_slice() {
                [] => {}
                [one] => return Err(admission.forbidden(one)),
                many => return Err(admission.forbidden(&format!("[{}]", many.join(", ")))),
            }
        }
        Ok(())
    }
}
