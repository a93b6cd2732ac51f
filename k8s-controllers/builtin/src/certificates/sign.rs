//! Signs approved requests, and marks those as failed that break their signer's rules.

use std::sync::Arc;

use k8s_controllers::{Action, Context, Error, Reconcile};
use k8s_core::api::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition},
};

use super::{Signing, condition, is_issued, request};

pub(super) struct Signer(pub(super) Signing);

impl Reconcile for Signer {
    type Kind = CertificateSigningRequest;

    async fn reconcile(&self, cx: &Context, csr: Arc<CertificateSigningRequest>) -> Result<Action, Error> {
        let is_due = condition(&csr, "Approved").is_some()
            && ["Denied", "Failed"].iter().all(|kind| condition(&csr, kind).is_none())
            && !is_issued(&csr);
        let Some(authority) = self.0.of(&csr.spec.signer_name).filter(|_| is_due) else {
            return Ok(Action::await_change());
        };
        let mut next = (*csr).clone();
        let status = next.status.get_or_insert_default();
        let usages = csr.spec.usages.clone().unwrap_or_default();
        let signed = request::parse(&csr.spec.request.0).and_then(|request| {
            request.check(&csr.spec)?;
            Ok(request)
        });
        match signed {
            Ok(request) => {
                let lifetime = self.0.lifetime(csr.spec.expiration_seconds);
                let certificate = authority.sign(&request, &usages, lifetime, cx.clock().now());
                // Another CA may sign it later: no condition, but another attempt.
                let certificate = certificate.map_err(|why| Error::Other(format!("sign: {why}").into()))?;
                status.certificate = Some(ByteString(certificate.into_bytes()));
            }
            Err(why) => status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
                type_: "Failed".into(),
                status: "True".into(),
                reason: Some("SignerValidationFailure".into()),
                message: Some(why),
                last_update_time: Some(cx.clock().time()),
                ..CertificateSigningRequestCondition::default()
            }),
        }
        cx.replace_status(&next).await?;
        Ok(Action::await_change())
    }
}
