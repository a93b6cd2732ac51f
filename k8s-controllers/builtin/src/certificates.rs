//! Certificate requests: approval, signature and removal.
//!
//! [`approving`] approves requests of kubelets for their own client certificates; [`signing`] signs approved
//! requests for the four signers of `kubernetes.io/` that have an [`Authority`]; [`cleaning`] deletes
//! requests that are done or that nobody wants.
//!
//! Guarantees: a certificate has the subject and the alternative names of its request and none of its other
//! extensions, is no CA, and ends before its CA does. A request whose signature is not by its own key is not
//! signed.

mod approve;
mod authority;
mod clean;
mod der;
mod request;
mod sign;

pub use authority::{Authority, AuthorityError, Signing};

use futures::future::BoxFuture;
use k8s_controllers::{Controller, Environment};
use k8s_core::api::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};

use super::Options;

/// Signer of client certificates for the API server.
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Signer of the client certificates of kubelets.
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signer of the serving certificates of kubelets.
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// Signer without rules, for requests of old versions.
const LEGACY: &str = "kubernetes.io/legacy-unknown";

pub(super) fn approving(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    Controller::<CertificateSigningRequest>::new()
        .named("certificatesigningrequest-approving-controller")
        .run_in(environment, approve::Approving)
}

pub(super) fn signing(environment: Environment, options: Options) -> BoxFuture<'static, ()> {
    if options.signing.is_empty() {
        return Box::pin(async {});
    }
    Controller::<CertificateSigningRequest>::new()
        .named("certificatesigningrequest-signing-controller")
        .run_in(environment, sign::Signer(options.signing))
}

pub(super) fn cleaning(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    Controller::<CertificateSigningRequest>::new()
        .named("certificatesigningrequest-cleaner-controller")
        .run_in(environment, clean::Cleaning)
}

/// Returns the condition of a type.
fn condition<'a>(
    request: &'a CertificateSigningRequest,
    kind: &str,
) -> Option<&'a CertificateSigningRequestCondition> {
    request.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

fn is_issued(request: &CertificateSigningRequest) -> bool {
    let certificate = request.status.as_ref().and_then(|status| status.certificate.as_ref());
    certificate.is_some_and(|certificate| !certificate.0.is_empty())
}
