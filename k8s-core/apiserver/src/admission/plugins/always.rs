//! AlwaysAdmit and AlwaysDeny, for tests of clients.

use async_trait::async_trait;
use k8s_core::status::ApiStatus;

use crate::admission::{Admission, Admit, Connection, Deletion};

/// Lets every request through.
pub(super) struct AlwaysAdmit;

#[async_trait]
impl Admit for AlwaysAdmit {}

/// Refuses every request.
pub(super) struct AlwaysDeny;

const WHY: &str = "admission control is denying all modifications";

#[async_trait]
impl Admit for AlwaysDeny {
    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        Err(admission.forbidden(WHY))
    }

    async fn delete(&self, deletion: &Deletion<'_>) -> Result<(), ApiStatus> {
        let resource = deletion.resource;
        Err(ApiStatus::forbidden(&resource.group, &resource.plural, deletion.name, WHY))
    }

    async fn connect(&self, connection: &Connection<'_>) -> Result<(), ApiStatus> {
        let resource = connection.resource;
        Err(ApiStatus::forbidden(&resource.group, &resource.plural, &connection.request.name, WHY))
    }
}
