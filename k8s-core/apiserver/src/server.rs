//! The request pipeline.
//!
//! Flow: authenticate, impersonate, flow control, authorize ([`crate::stages`] adds to each), then discovery,
//! OpenAPI and metrics, or the handler of a resource. A write is decoded, converted, defaulted, admitted,
//! validated and stored ([`crate::write`]).

mod builder;
mod dispatch;
mod error;
mod times;
mod upkeep;

pub use builder::Builder;
pub use error::BuildError;

use std::{
    convert::Infallible,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use k8s_core::{
    client::{Body, BoxError, Client, LongQuery},
    status::{ApiStatus, Reason},
};
use k8s_store::Store;
use tokio::time::Instant;
use tracing::{Instrument, field::Empty};

use crate::{
    accept::{self, Encoding},
    audit::Trail,
    auth::{
        AuthenticationConfiguration, AuthorizationMode, impersonate::Wanted, metrics::Authenticated,
        rbac::Attributes,
    },
    call::Call,
    fair::Schema,
    limits::{InitialEvents, LastAccount},
    request::{Query, RequestInfo, Selectors},
    respond,
    stages::{Audited, Credentials},
    state::State,
    tls::ClientIdentity,
    user::User,
};
use times::{SLOW, Stage, Times};

/// An API server: a `tower::Service` from requests to responses. Cheap to clone; a clone is the same server.
#[derive(Clone)]
pub struct ApiServer {
    pub(crate) state: Arc<State>,
    /// User of requests without credentials, for callers in the same process.
    user: Option<Arc<User>>,
}

/// Facts about a request for audit.
#[derive(Default)]
struct Seen {
    /// Id of the request.
    id: String,
    /// Effective user.
    user: Option<User>,
    /// The request's events; `None` if no policy asks for them.
    trail: Option<Trail>,
    /// Flow schema of the request, with priority and fairness.
    schema: Option<Arc<Schema>>,
    /// Warnings of a request that was refused.
    warnings: Vec<String>,
    /// There were too many requests, or this one took too long.
    terminated: bool,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer").field("store", &self.state.store).finish_non_exhaustive()
    }
}

impl ApiServer {
    /// Starts to compose a server over a store.
    #[must_use]
    pub fn builder(store: Store) -> Builder {
        Builder::new(store)
    }

    /// Returns the server for callers in the same process: requests without credentials are from `user`.
    #[must_use]
    pub fn service_as(&self, user: User) -> ApiServer {
        ApiServer { state: self.state.clone(), user: Some(Arc::new(user)) }
    }

    /// Returns a client in the same process, as `user`, without sockets.
    ///
    /// ```
    /// use k8s_apiserver::{ApiServer, User};
    /// use k8s_core::api::ConfigMap;
    /// use k8s_store::Store;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let server = ApiServer::builder(Store::memory()).build().await?;
    /// let guest = server.client_as(User::new("guest", &[]));
    /// let refused = guest.namespaced::<ConfigMap>("default").get("a").await;
    /// assert!(refused.is_err_and(|error| error.is_forbidden()));
    /// let admin = server.client_as(User::admin());
    /// assert!(admin.namespaced::<ConfigMap>("default").get_opt("a").await?.is_none());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn client_as(&self, user: User) -> Client {
        Client::new(self.service_as(user))
    }

    /// Returns the store; reads and writes through it bypass the pipeline.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.state.store
    }

    /// Returns the registry of the server's metrics.
    #[must_use]
    pub fn metrics(&self) -> &k8s_metrics::Registry {
        self.state.metrics.registry()
    }

    /// Replaces the client certificate that is presented to aggregated API servers. Connections opened from
    /// now on use it. Without [`Builder::front_proxy`] there is none, and this has no effect.
    ///
    /// # Errors
    /// The unusable part; the former certificate stays in use.
    pub fn renew_front_proxy(&self, identity: &ClientIdentity) -> Result<(), BuildError> {
        let renewed = self.state.front_proxy.as_ref().map_or(Ok(()), |keys| keys.replace(identity));
        renewed.map_err(|reason| BuildError::FrontProxy { reason })
    }

    /// Replaces the authorizers of [`Builder::authorization`]. Requests that are being decided finish with
    /// the former ones.
    ///
    /// ```
    /// use k8s_apiserver::{ApiServer, User, auth::AuthorizationMode};
    /// use k8s_core::api::ConfigMap;
    /// use k8s_store::Store;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let server = ApiServer::builder(Store::memory()).build().await?;
    /// let maps = server.client_as(User::new("jane", &[])).namespaced::<ConfigMap>("default");
    /// assert!(maps.list(&Default::default()).await.is_err());
    /// server.replace_authorization(&[AuthorizationMode::AlwaysAllow]);
    /// assert!(maps.list(&Default::default()).await.is_ok());
    /// # Ok(()) }
    /// ```
    pub fn replace_authorization(&self, modes: &[AuthorizationMode]) {
        self.state.authorization.replace(modes);
    }

    /// Replaces the issuers of JSON Web Tokens of all configurations that the authenticator was built with.
    ///
    /// # Errors
    /// The part about anonymous requests is another one than at the start; the former issuers stay.
    pub fn replace_authentication(
        &self,
        configurations: Vec<AuthenticationConfiguration>,
    ) -> Result<(), String> {
        self.state.authenticator.replace(configurations)
    }

    /// Makes `/readyz` fail from now on, so that load balancers send no more clients. The server serves as
    /// before; the listener's token ends it.
    pub fn begin_shutdown(&self) {
        self.state.stopping.store(true, std::sync::atomic::Ordering::Release);
    }

    /// Answers one request.
    ///
    /// ```
    /// use k8s_apiserver::{ApiServer, User};
    /// use k8s_core::client::empty_body;
    /// use k8s_store::Store;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let server = ApiServer::builder(Store::memory()).build().await?.service_as(User::admin());
    /// let request = http::Request::get("/api/v1/namespaces/default/pods").body(empty_body())?;
    /// assert_eq!(server.handle(request).await.status(), 200);
    /// # Ok(()) }
    /// ```
    pub fn handle<B>(&self, request: Request<B>) -> BoxFuture<'static, Response<Body>>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        // The generic part ends here, so that the pipeline is compiled once.
        self.clone().respond(request.map(|b| b.map_err(Into::into).boxed_unsync()))
    }

    fn respond(self, request: Request<Body>) -> BoxFuture<'static, Response<Body>> {
        async move {
            let id = respond::audit_id(request.headers());
            let name = id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default();
            // The path has no query, in which there may be a command line.
            let span = tracing::warn_span!(
                "request",
                id = name,
                verb = request.method().as_str(),
                path = request.uri().path(),
                user = Empty
            );
            let (mut response, warnings) = self.answer(request, id.as_ref()).instrument(span).await;
            respond::warn(&mut response, &warnings);
            respond::identify(&mut response, id);
            response
        }
        .boxed()
    }

    async fn answer(
        &self,
        request: Request<Body>,
        id: Option<&HeaderValue>,
    ) -> (Response<Body>, Vec<String>) {
        let query = Query::parse(LongQuery::of(&request));
        let info = RequestInfo::parse(request.method(), request.uri().path(), &query);
        if request.extensions().get::<LongQuery>().is_some() && !info.may_be_long() {
            return (respond::failure(&too_long()), Vec::new());
        }
        // Proxied responses and watches are passed through unencoded. A watch is served in a format that it
        // accepts, or refused.
        let encoding = match info.subresource.as_str() {
            "proxy" => Encoding::Json,
            // A watch is encoded by its presenter.
            _ if info.verb == "watch" => Encoding::Json,
            _ => accept::encoding(request.headers()),
        };
        let gzip = crate::compress::is_wanted(request.headers(), &info);
        let is_watch = info.verb == "watch";
        let mut measured = self.state.metrics.begin(&self.state.registry, &info, &query);
        let (mut seen, mut times) = (Seen::default(), Times::begin());
        let answered = self.audited(request, info, query, id, &mut seen, &mut times).await;
        let (mut response, warnings) = match answered {
            Ok(done) => done,
            Err(status) => (respond::failure(&status), std::mem::take(&mut seen.warnings)),
        };
        if let Some(schema) = &seen.schema {
            respond::classify(&mut response, schema);
        }
        let code = response.status();
        measured.answered(code, times.waited(), seen.terminated);
        let has_duration = measured.has_duration();
        let log_if_slow = |times: &Times| {
            if has_duration && times.elapsed() >= SLOW {
                tracing::warn!(code = code.as_u16(), stages = times.text(), "slow request");
            }
        };
        if is_watch && code.is_success() {
            response.extensions_mut().insert(respond::Watching);
        }
        if let Some(guard) = measured.long_running() {
            response = guard.until_the_end_of(response);
        }
        if response.extensions().get::<respond::Foreign>().is_some() {
            log_if_slow(&times);
            return (response, warnings);
        }
        response = respond::encoded(response, encoding).await;
        if gzip {
            response = crate::compress::gzip(response).await;
        }
        log_if_slow(&times);
        (measured.sized(response), warnings)
    }

    async fn audited(
        &self,
        request: Request<Body>,
        info: RequestInfo,
        query: Query,
        id: Option<&HeaderValue>,
        seen: &mut Seen,
        times: &mut Times,
    ) -> Result<(Response<Body>, Vec<String>), ApiStatus> {
        if self.state.audit.is_empty() && self.state.auditor.is_none() {
            return self.admitted(request, info, query, seen, times).await;
        }
        let (headers, asked) = (request.headers().clone(), info.clone());
        seen.id = id.map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned()).unwrap_or_default();
        let admitted =
            AssertUnwindSafe(self.admitted(request, info, query, seen, times)).catch_unwind().await;
        let mut answer = match (admitted, &seen.trail) {
            (Ok(answer), _) => answer,
            (Err(panic), trail) => {
                trail.iter().for_each(|trail| trail.panicked(&headers, &*panic));
                std::panic::resume_unwind(panic);
            }
        };
        if let Some(trail) = &seen.trail {
            answer = match answer {
                Ok((response, warnings)) => {
                    let foreign = response.extensions().get::<respond::Foreign>().is_some();
                    Ok((trail.answered(&headers, response, foreign).await, warnings))
                }
                Err(status) => {
                    trail.refused(&headers, &respond::status_value(&status));
                    Err(status)
                }
            };
        }
        let code = match &answer {
            Ok((response, _)) => response.status(),
            Err(status) => StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        };
        for audit in &self.state.audit {
            audit.record(Audited { user: seen.user.as_ref(), request: &asked, code });
        }
        answer
    }

    /// Returns the user of a request: an extension, the in-process user, or credentials.
    async fn authenticate(
        &self,
        headers: &http::HeaderMap,
        extensions: &http::Extensions,
        path: &str,
    ) -> Result<User, ApiStatus> {
        let state = &self.state;
        match (extensions.get::<User>(), &self.user) {
            (Some(user), _) => return Ok(user.clone()),
            (None, Some(user)) if !headers.contains_key(header::AUTHORIZATION) => {
                return Ok((**user).clone());
            }
            _ => {}
        }
        let credentials = Credentials { headers, certificate: extensions.get() };
        for authenticator in &state.authenticators.first {
            if let Some(user) = authenticator.authenticate(&credentials).await? {
                return Ok(user);
            }
        }
        if let Some(user) = state.authenticator.identify(&credentials, &state.evidence()).await {
            return Ok(user);
        }
        for authenticator in &state.authenticators.then {
            if let Some(user) = authenticator.authenticate(&credentials).await? {
                return Ok(user);
            }
        }
        state.authenticator.anonymous(&credentials, path)
    }

    /// The pipeline from authentication on. `seen` is set as soon as its parts are known.
    #[expect(clippy::disallowed_methods, reason = "the duration of a stage, in virtual time as well")]
    async fn admitted(
        &self,
        request: Request<Body>,
        info: RequestInfo,
        query: Query,
        seen: &mut Seen,
        times: &mut Times,
    ) -> Result<(Response<Body>, Vec<String>), ApiStatus> {
        let state = &self.state;
        let begun = Instant::now();
        let found = self.authenticate(request.headers(), request.extensions(), &info.path).await;
        let outcome = match &found {
            Ok(user) => Authenticated::Success(user),
            Err(_) if request.headers().contains_key(header::AUTHORIZATION) => Authenticated::Error,
            Err(_) => Authenticated::Failure,
        };
        state.metrics.authentication.take(outcome, begun.elapsed());
        times.end(Stage::Authenticated);
        if let Some(auditor) = &state.auditor {
            let trail = auditor.trail(&request, &seen.id, found.as_ref().ok(), &info);
            match (trail, &found) {
                (Some(trail), Err(_)) => trail.unauthenticated(&request),
                (Some(trail), Ok(_)) => {
                    trail.received()?;
                    seen.trail = Some(trail);
                }
                (None, _) => {}
            }
        }
        let mut user = found?;
        if let Some(other) = Wanted::from_headers(request.headers())? {
            let selectors = Selectors::of(&info, &query);
            let wanted = attributes(&info, &selectors);
            user = other.authorized(&user, &wanted, &state.authorization).await?;
            seen.trail.iter().for_each(|trail| trail.impersonates(&user));
        }
        tracing::Span::current().record("user", user.name.as_str());
        if !state.audit.is_empty() {
            seen.user = Some(user.clone());
        }
        if let Some(response) = crate::health::public(state, &info, &query) {
            return Ok((response, Vec::new()));
        }
        let Some(last) = request.extensions().get::<Arc<LastAccount>>().cloned() else {
            return self.granted(request, info, query, user, seen, times).await;
        };
        seen.schema = state.gate.classify(&state.store, &user, &info);
        let seats = |most| crate::fair::seats::of(&info, &query, most, || stored(state, &info));
        let entered = state.gate.enter(&last, &user, &info, seen.schema.as_ref(), seats).await;
        times.wait_since(Stage::Authenticated);
        let ticket = entered.inspect_err(|_| seen.terminated = true)?;
        let mut request = request.map(|body| ticket.count(body));
        request.extensions_mut().insert(ticket.clone());
        let answered = ticket.within(self.granted(request, info, query, user, seen, times)).await;
        let (mut response, warnings) =
            answered.inspect_err(|error| seen.terminated |= error.code() == 504)?;
        match response.extensions().get::<InitialEvents>() {
            Some(initial) => initial.of(&ticket),
            None if ticket.is_long_running() => ticket.leave_seat(),
            None => {}
        }
        response.extensions_mut().insert(ticket);
        Ok((response, warnings))
    }

    /// The pipeline from flow control on.
    async fn granted(
        &self,
        mut request: Request<Body>,
        info: RequestInfo,
        query: Query,
        user: User,
        seen: &mut Seen,
        times: &mut Times,
    ) -> Result<(Response<Body>, Vec<String>), ApiStatus> {
        let state = &self.state;
        let trail = seen.trail.as_ref();
        let mut tickets = Vec::new();
        for flow in &state.flow {
            tickets.push(flow.admit(&user, &info).await?);
        }
        times.end(Stage::Admitted);
        let selectors = Selectors::of(&info, &query);
        let wanted = attributes(&info, &selectors);
        let outcome = state.authorization.decide_request(&user, &wanted).await;
        trail.iter().for_each(|trail| trail.annotate(outcome.annotations()));
        times.end(Stage::Authorized);
        outcome.granted(&user, &wanted)?;
        if let Some(remote) = state.elsewhere(&info) {
            let own = || (state.own)(state);
            return Ok((remote.forward(&state.store, own, &user, &mut request).await, Vec::new()));
        }
        let call = Call {
            info,
            query,
            user,
            headers: request.headers().clone(),
            registry: state.registry.now(),
            warnings: Mutex::default(),
            annotations: Mutex::default(),
            asked: None,
            charges: Mutex::default(),
            waited: Arc::default(),
        };
        if let Some(trail) = trail {
            request = trail.observe(request, &call.info);
        }
        let response = if call.info.is_resource {
            dispatch::resource(state, &call, &mut request).await
        } else {
            crate::discovery::path(state, &call)
        };
        times.end(Stage::Handled);
        times.wait(call.waited());
        trail.iter().for_each(|trail| trail.annotate(call.annotated()));
        let warnings = call.warned();
        match response {
            Ok(response) => Ok((response, warnings)),
            Err(status) => {
                seen.warnings = warnings;
                Err(status)
            }
        }
    }
}

/// The refusal of a query that only the command line of `exec` may have.
fn too_long() -> ApiStatus {
    ApiStatus::of(Reason::RequestEntityTooLarge, "the URI is longer than 65534 bytes")
}

/// Returns the number of stored objects of a request's resource; `None` if they are elsewhere.
fn stored(state: &State, info: &RequestInfo) -> Option<usize> {
    let registry = state.registry.now();
    let resource = registry.find(&info.group, &info.version, &info.resource)?;
    Some(state.store.snapshot(&resource.storage).len())
}

/// Returns the attributes of a request.
fn attributes<'a>(info: &'a RequestInfo, selectors: &'a Selectors) -> Attributes<'a> {
    if !info.is_resource {
        return Attributes { verb: &info.verb, path: &info.path, ..Attributes::default() };
    }
    Attributes {
        verb: &info.verb,
        group: &info.group,
        resource: &info.resource,
        subresource: &info.subresource,
        namespace: &info.namespace,
        name: selectors.only_name(info).unwrap_or(&info.name),
        path: "",
        version: &info.version,
        fields: selectors.fields.as_ref(),
        labels: selectors.labels.as_ref(),
    }
}

impl<B> tower_service::Service<Request<B>> for ApiServer
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        Box::pin(self.handle(request).map(Ok))
    }
}
