//! DenyServiceExternalIPs: no Service takes further external addresses.

use async_trait::async_trait;
use k8s_core::status::ApiStatus;

use crate::{
    admission::{Admission, Admit, Operation},
    resources::Resource,
    value::array_at,
};

pub(super) struct DenyServiceExternalIps;

#[async_trait]
impl Admit for DenyServiceExternalIps {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
            && part.is_empty()
            && resource.storage.as_ref() == "services"
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        let old = admission.old.map(|old| array_at(old, "/spec/externalIPs")).unwrap_or_default();
        if array_at(admission.object, "/spec/externalIPs").iter().all(|address| old.contains(address)) {
            return Ok(());
        }
        Err(admission.forbidden("Use of external IPs is denied by admission control"))
    }
}
