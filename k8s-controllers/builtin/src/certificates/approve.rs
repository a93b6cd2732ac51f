//! Approves requests for client certificates of kubelets, if the requester may have them.

use std::sync::Arc;

use k8s_controllers::{Action, Context, Error, Reconcile};
use k8s_core::{
    api::api::{
        authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
        certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition},
    },
    meta::ObjectExt,
};

use super::{KUBELET_CLIENT, condition, is_issued, request};

pub(super) struct Approving;

/// Rights to certificates, as virtual subresources, with the messages of their approvals.
const SELF: (&str, &str) =
    ("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview.");
const ANY: (&str, &str) =
    ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.");

impl Reconcile for Approving {
    type Kind = CertificateSigningRequest;

    async fn reconcile(&self, cx: &Context, csr: Arc<CertificateSigningRequest>) -> Result<Action, Error> {
        let is_open =
            !is_issued(&csr) && ["Approved", "Denied"].iter().all(|kind| condition(&csr, kind).is_none());
        if !is_open || csr.spec.signer_name != KUBELET_CLIENT {
            return Ok(Action::await_change());
        }
        let Ok(request) = request::parse(&csr.spec.request.0) else { return Ok(Action::await_change()) };
        if request.check_kubelet_client(&csr.spec).is_err() {
            return Ok(Action::await_change());
        }
        let own = csr.spec.username.as_deref() == Some(&*request.common_name);
        for (right, message) in if own { vec![SELF, ANY] } else { vec![ANY] } {
            if !may(cx, &csr, right).await? {
                continue;
            }
            let mut next = (*csr).clone();
            let conditions = next.status.get_or_insert_default().conditions.get_or_insert_default();
            conditions.push(CertificateSigningRequestCondition {
                type_: "Approved".into(),
                status: "True".into(),
                reason: Some("AutoApproved".into()),
                message: Some(message.into()),
                ..CertificateSigningRequestCondition::default()
            });
            let api = cx.api::<CertificateSigningRequest>("");
            api.replace_subresource(csr.name(), "approval", &next).await?;
            break;
        }
        Ok(Action::await_change())
    }
}

/// Returns true if the requester may create a certificate of this kind.
async fn may(cx: &Context, csr: &CertificateSigningRequest, right: &str) -> Result<bool, Error> {
    let spec = &csr.spec;
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: spec.username.clone(),
            uid: spec.uid.clone(),
            groups: spec.groups.clone(),
            extra: spec.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                group: Some("certificates.k8s.io".into()),
                resource: Some("certificatesigningrequests".into()),
                subresource: Some(right.into()),
                verb: Some("create".into()),
                version: Some("*".into()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let answer = cx.api::<SubjectAccessReview>("").create(&review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}
