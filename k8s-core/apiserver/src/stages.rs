//! The stages of the pipeline that a distribution may add to: who asks, may they, how many at once, what is written down.
//!
//! Admission, the stage that sees objects, is in [`crate::admission`]. Each list is empty by default and costs nothing then.

use std::any::Any;

use async_trait::async_trait;
use http::{HeaderMap, StatusCode};
use k8s_core::status::ApiStatus;

use crate::{
    request::{Attributes, PeerCertificate, RequestInfo},
    user::User,
};

/// What a request shows of who sends it.
#[derive(Clone, Copy, Debug)]
pub struct Credentials<'a> {
    /// The request's headers.
    pub headers: &'a HeaderMap,
    /// The certificate that the client proved to own.
    pub certificate: Option<&'a PeerCertificate>,
}

impl<'a> Credentials<'a> {
    /// The bearer token, if there is one.
    #[must_use]
    pub fn bearer_token(&self) -> Option<&'a str> {
        let value = self.headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    }
}

/// A way to find out who a request is from, asked before the server's own tokens (an identity provider, a proxy's headers).
#[async_trait]
pub trait Authenticate: Send + Sync + 'static {
    /// The user; `None` when these are not credentials of this kind.
    ///
    /// # Errors
    /// When they are of this kind and wrong; the client gets this as it is.
    async fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Option<User>, ApiStatus>;
}

/// What an authorizer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes; nobody else is asked.
    Allow,
    /// No, and why; nobody else is asked.
    Deny(String),
    /// Somebody else may know. When nobody does, the answer is no.
    NoOpinion,
}

/// A way to decide what users may do, asked before RBAC (a node's own objects, a policy engine).
#[async_trait]
pub trait Authorize: Send + Sync + 'static {
    /// Whether `user` may do it.
    async fn authorize(&self, user: &User, wanted: &Attributes<'_>) -> Decision;
}

/// What a request holds while it is worked on; dropped with the answer.
pub type Ticket = Box<dyn Any + Send>;

/// A limit on how much is worked on at once (priority and fairness, a rate limit), asked before authorization.
#[async_trait]
pub trait FlowControl: Send + Sync + 'static {
    /// Lets a request go on, now or later.
    ///
    /// # Errors
    /// 429 when it would have to wait too long.
    async fn admit(&self, user: &User, request: &RequestInfo) -> Result<Ticket, ApiStatus>;
}

/// A request that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Audited<'a> {
    /// Who asked, after impersonation; `None` when nobody could be made out.
    pub user: Option<&'a User>,
    /// For what.
    pub request: &'a RequestInfo,
    /// The answer's code. A watch or an upgrade is answered when it begins.
    pub code: StatusCode,
}

/// Who writes down what was asked.
pub trait Audit: Send + Sync + 'static {
    /// Called once for each request, when its answer is known.
    fn record(&self, entry: Audited<'_>);
}
