//! Deletes requests: issued, denied and failed ones after an hour, pending and unsigned ones after a day, and
//! those whose certificate has expired. Upstream looks every hour; this controller wakes when one is due.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_controllers::{Action, Context, Error, Reconcile};
use k8s_core::{
    api::api::certificates::v1::CertificateSigningRequest, client::DeleteOptions, meta::ObjectExt,
};
use x509_parser::pem::parse_x509_pem;

use super::{condition, is_issued};

pub(super) struct Cleaning;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

impl Reconcile for Cleaning {
    type Kind = CertificateSigningRequest;

    async fn reconcile(&self, cx: &Context, csr: Arc<CertificateSigningRequest>) -> Result<Action, Error> {
        let Some(due) = due(&csr).filter(|_| !csr.is_deleting()) else { return Ok(Action::await_change()) };
        let left = cx.clock().until(due);
        if !left.is_zero() {
            return Ok(Action::requeue_after(left));
        }
        cx.delete(&*csr, DeleteOptions::default()).await?;
        Ok(Action::await_change())
    }
}

/// Returns the time when a request is deleted.
fn due(csr: &CertificateSigningRequest) -> Option<Timestamp> {
    let after = |since: Option<Timestamp>, wait| since.and_then(|since| since.checked_add(wait).ok());
    let since = |kind| condition(csr, kind).and_then(|c| c.last_update_time.as_ref()).map(|time| time.0);
    let pending = csr.status.as_ref().is_none_or(|s| s.conditions.as_ref().is_none_or(Vec::is_empty));
    let created = csr.metadata.creation_timestamp.as_ref().map(|time| time.0);
    [
        after(since("Approved"), if is_issued(csr) { HOUR } else { DAY }),
        after(since("Denied"), HOUR),
        after(since("Failed"), HOUR),
        after(created.filter(|_| pending), DAY),
        expiry(csr).filter(|_| condition(csr, "Approved").is_some()),
    ]
    .into_iter()
    .flatten()
    .min()
}

/// Returns the end of the certificate that was issued.
fn expiry(csr: &CertificateSigningRequest) -> Option<Timestamp> {
    let pem = &csr.status.as_ref()?.certificate.as_ref()?.0;
    let (_, block) = parse_x509_pem(pem).ok()?;
    let certificate = block.parse_x509().ok()?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}
