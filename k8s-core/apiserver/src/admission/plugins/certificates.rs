//! CertificateApproval, CertificateSigning, CertificateSubjectRestriction, ClusterTrustBundleAttest: rights
//! for the signers of certificates.
//!
//! [`PodSigning`] is no plugin: upstream has that check in the storage of PodCertificateRequests, so that it
//! cannot be turned off.
//!
//! A right for a signer is a verb (`approve`, `sign`, `attest`) on `signers` of certificates.k8s.io with the
//! signer's name, or with its domain and `/*`.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_core::status::ApiStatus;
use serde_json::Value;

use super::role_escalation::changes_only_collection;
use crate::{
    admission::{Admission, Admit, Operation},
    auth::Authorization,
    invalid::FieldErrors,
    request::Attributes,
    resources::{
        Resource,
        strategy::{certificates, pod_certificates},
    },
    stages::Decision,
    user::User,
    value::str_at,
};

const REQUESTS: &str = "certificatesigningrequests.certificates.k8s.io";
const POD_REQUESTS: &str = "podcertificaterequests.certificates.k8s.io";
const BUNDLES: &str = "clustertrustbundles.certificates.k8s.io";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

/// Returns true if a user has a right for a signer.
async fn may(authorization: &Authorization, user: &User, verb: &str, signer: &str) -> bool {
    let domain = signer.split_once('/').map_or(signer, |(domain, _)| domain);
    for name in [signer, &format!("{domain}/*")] {
        let (group, resource, version) = ("certificates.k8s.io", "signers", "*");
        let wanted = Attributes { verb, group, resource, version, name, ..Attributes::default() };
        if authorization.decide(user, &wanted).await.decision == Decision::Allow {
            return true;
        }
    }
    false
}

/// The signer of the request before the update: an update must not choose another one.
fn signer_before<'a>(admission: &'a Admission<'_>) -> &'a str {
    admission.old.map_or("", |old| str_at(old, "/spec/signerName"))
}

/// Approval and denial need `approve` for the signer.
pub(super) struct Approval(pub(super) Arc<Authorization>);

#[async_trait]
impl Admit for Approval {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        operation == Operation::Update && *resource.storage == *REQUESTS && part == "approval"
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        let signer = signer_before(admission);
        if may(&self.0, admission.user, "approve", signer).await {
            return Ok(());
        }
        let why = format!("user not permitted to approve requests with signerName {signer:?}");
        Err(admission.forbidden(&why))
    }
}

/// A certificate or a condition needs `sign` for the signer.
pub(super) struct Signing(pub(super) Arc<Authorization>);

#[async_trait]
impl Admit for Signing {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        operation == Operation::Update && *resource.storage == *REQUESTS && part == "status"
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        let same = |pointer: &str| {
            let empty = |value: &&Value| !value.is_null() && **value != Value::Array(Vec::new());
            let of = |object: &'_ Value| object.pointer(pointer).filter(empty).cloned();
            of(admission.object) == admission.old.and_then(of)
        };
        let signer = signer_before(admission);
        if (same("/status/certificate") && same("/status/conditions"))
            || may(&self.0, admission.user, "sign", signer).await
        {
            return Ok(());
        }
        let why = format!("user not permitted to sign requests with signerName {signer:?}");
        Err(admission.forbidden(&why))
    }
}

/// The status of a PodCertificateRequest needs `sign` for the signer.
pub(super) struct PodSigning(pub(super) Arc<Authorization>);

impl PodSigning {
    /// # Errors
    /// 422 for a user who may not sign.
    pub(super) async fn check(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        let resource = admission.resource;
        if *resource.storage != *POD_REQUESTS || admission.request.subresource != "status" {
            return Ok(());
        }
        let signer = signer_before(admission);
        let before = admission.old.map(pod_certificates::status);
        if before == Some(pod_certificates::status(admission.object))
            || may(&self.0, admission.user, "sign", signer).await
        {
            return Ok(());
        }
        let user = &admission.user.name;
        let mut errors = FieldErrors::default();
        let why = format!("User {user:?} is not permitted to \"sign\" for signer {signer:?}");
        errors.forbidden("spec.signerName", &why);
        Err(errors.into_status(&resource.group, &resource.kind, admission.name()))
    }
}

/// No request may ask for the group `system:masters`.
pub(super) struct SubjectRestriction;

#[async_trait]
impl Admit for SubjectRestriction {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        operation == Operation::Create && *resource.storage == *REQUESTS && part.is_empty()
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        if str_at(admission.object, "/spec/signerName") != CLIENT_SIGNER {
            return Ok(());
        }
        let subject = certificates::subject(str_at(admission.object, "/spec/request"))
            .map_err(|why| admission.forbidden(&format!("failed to parse CSR: {why}")))?;
        if subject.organizations.iter().any(|group| group == "system:masters") {
            let why = format!("use of {CLIENT_SIGNER} signer with system:masters group is not allowed");
            return Err(admission.forbidden(&why));
        }
        Ok(())
    }
}

/// A ClusterTrustBundle of a signer needs `attest` for it.
pub(super) struct Attest(pub(super) Arc<Authorization>);

#[async_trait]
impl Admit for Attest {
    fn handles(&self, operation: Operation, resource: &Resource, part: &str) -> bool {
        let writes = matches!(operation, Operation::Create | Operation::Update);
        writes && *resource.storage == *BUNDLES && part.is_empty()
    }

    async fn validate(&self, admission: &Admission<'_>) -> Result<(), ApiStatus> {
        let signer = str_at(admission.object, "/spec/signerName");
        if signer.is_empty()
            || admission.old.is_some_and(|old| changes_only_collection(admission.object, old))
            || may(&self.0, admission.user, "attest", signer).await
        {
            return Ok(());
        }
        Err(admission.forbidden(&format!("user not permitted to attest for signerName {signer:?}")))
    }
}
