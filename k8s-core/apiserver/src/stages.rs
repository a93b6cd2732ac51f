//! Pipeline stages that a distribution can extend: authentication, authorization, flow control, audit.
//!
//! Admission, which sees objects, is in [`crate::admission`]. Each list is empty by default, without cost.

use std::any::Any;

use async_trait::async_trait;
use http::{HeaderMap, StatusCode};
use k8s_core::status::ApiStatus;

use crate::{
    request::{Attributes, PeerCertificate, RequestInfo},
    user::User,
};

/// Credentials of a request.
#[derive(Clone, Copy, Debug)]
pub struct Credentials<'a> {
    /// HTTP headers of the request.
    pub headers: &'a HeaderMap,
    /// Verified client certificate.
    pub certificate: Option<&'a PeerCertificate>,
}

impl<'a> Credentials<'a> {
    /// Returns the bearer token, if there is one.
    #[must_use]
    pub fn bearer_token(&self) -> Option<&'a str> {
        let value = self.headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    }
}

/// An authenticator beside the server's own: an identity provider's tokens, a trusted proxy's headers.
#[async_trait]
pub trait Authenticate: Send + Sync + 'static {
    /// Returns the user; `None` if there are no credentials of this kind.
    ///
    /// # Errors
    /// The credentials are of this kind and invalid; the client gets this status.
    async fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Option<User>, ApiStatus>;
}

/// Decision of an authorizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Allowed; no further authorizer is asked.
    Allow,
    /// Denied with a reason; no further authorizer is asked.
    Deny(String),
    /// Undecided: the next authorizer is asked. Denied if all are undecided.
    NoOpinion,
}

/// An authorizer that is asked before RBAC (a node's own objects, a policy engine).
#[async_trait]
pub trait Authorize: Send + Sync + 'static {
    /// Decides about a request's attributes.
    async fn authorize(&self, user: &User, wanted: &Attributes<'_>) -> Decision;
}

/// Resources held by a request; dropped with the response.
pub type Ticket = Box<dyn Any + Send>;

/// A limit of concurrent requests (priority and fairness, a rate limit), applied before authorization.
#[async_trait]
pub trait FlowControl: Send + Sync + 'static {
    /// Admits a request, now or later.
    ///
    /// # Errors
    /// 429 if it would wait too long.
    async fn admit(&self, user: &User, request: &RequestInfo) -> Result<Ticket, ApiStatus>;
}

/// An audited request.
#[derive(Clone, Copy, Debug)]
pub struct Audited<'a> {
    /// Effective user, after impersonation; `None` if authentication failed.
    pub user: Option<&'a User>,
    /// Attributes of the request.
    pub request: &'a RequestInfo,
    /// HTTP status of the response. A watch or an upgrade is recorded when it begins.
    pub code: StatusCode,
}

/// An audit sink.
pub trait Audit: Send + Sync + 'static {
    /// Called once per request when its response status is known.
    fn record(&self, entry: Audited<'_>);
}
