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
    /// Client certificate, verified by TLS; `None` without one.
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
///
/// ```
/// use async_trait::async_trait;
/// use k8s_apiserver::{ApiServer, User, stages::{Authenticate, Credentials}};
/// use k8s_core::{client::empty_body, status::ApiStatus};
/// use k8s_store::Store;
///
/// /// Users from the header of a proxy in front of the server.
/// struct ProxyHeader;
///
/// #[async_trait]
/// impl Authenticate for ProxyHeader {
///     async fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Option<User>, ApiStatus> {
///         let name = credentials.headers.get("x-forwarded-user").and_then(|value| value.to_str().ok());
///         Ok(name.map(|name| User::new(name, &["system:masters"])))
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let server = ApiServer::builder(Store::memory()).authenticate_with(ProxyHeader).build().await?;
/// let get = || http::Request::get("/api/v1/nodes");
/// let eve = get().header("x-forwarded-user", "eve").body(empty_body())?;
/// assert_eq!(server.handle(eve).await.status(), 200);
/// assert_eq!(server.handle(get().body(empty_body())?).await.status(), 401);
/// # Ok(()) }
/// ```
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
///
/// ```
/// use async_trait::async_trait;
/// use k8s_apiserver::{ApiServer, User, auth::rbac::Attributes, stages::{Authorize, Decision}};
/// use k8s_core::api::ConfigMap;
/// use k8s_store::Store;
///
/// /// Everyone may read; RBAC decides about the rest.
/// struct Readable;
///
/// #[async_trait]
/// impl Authorize for Readable {
///     async fn authorize(&self, _: &User, wanted: &Attributes<'_>) -> Decision {
///         match wanted.verb {
///             "get" | "list" | "watch" => Decision::Allow,
///             _ => Decision::NoOpinion,
///         }
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let server = ApiServer::builder(Store::memory()).authorize_with(Readable).build().await?;
/// let maps = server.client_as(User::new("guest", &[])).namespaced::<ConfigMap>("default");
/// assert!(maps.list(&Default::default()).await?.is_empty());
/// assert!(maps.create(&ConfigMap::default()).await.is_err_and(|error| error.is_forbidden()));
/// # Ok(()) }
/// ```
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

/// A request and its response code, for [`Audit`].
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
///
/// ```
/// use k8s_apiserver::{ApiServer, User, stages::{Audit, Audited}};
/// use k8s_core::api::Pod;
/// use k8s_store::Store;
/// use std::sync::{Arc, Mutex};
///
/// struct Lines(Arc<Mutex<Vec<String>>>);
///
/// impl Audit for Lines {
///     fn record(&self, entry: Audited<'_>) {
///         let user = entry.user.map_or("", |user| &user.name);
///         self.0.lock().unwrap().push(format!("{user} {} {}", entry.request.verb, entry.request.resource));
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let lines = Arc::new(Mutex::new(Vec::new()));
/// let server = ApiServer::builder(Store::memory()).audit(Lines(lines.clone())).build().await?;
/// server.client_as(User::admin()).namespaced::<Pod>("default").list(&Default::default()).await?;
/// assert!(lines.lock().unwrap().contains(&"system:admin list pods".to_owned()));
/// # Ok(()) }
/// ```
pub trait Audit: Send + Sync + 'static {
    /// Called once per request when its response status is known.
    fn record(&self, entry: Audited<'_>);
}
