//! The server: what it is made of, and the pipeline that every request goes through.
//!
//! authenticate, impersonate, flow control, authorize (each may be added to: [`crate::stages`]), then a path handler (health, discovery, OpenAPI) or a resource handler; resource writes go through
//! decode, mutate, default and validate, validate, store ([`crate::write`]).

mod builder;
mod dispatch;

pub use builder::Builder;

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use k8s_core::{
    client::{Body, BoxError, Client},
    meta::FieldSelector,
    status::ApiStatus,
};
use k8s_store::{Meta, Store};
use serde_json::Value;

use crate::{
    accept::{self, Encoding},
    auth::{impersonate::Impersonated, rbac::Attributes},
    call::Call,
    limits::LastAccount,
    request::{Query, RequestInfo},
    resources::{Registry, meta_of},
    respond,
    stages::{Audited, Credentials},
    state::State,
    user::User,
};

/// An API server. Cheap to clone; a clone is the same server. It is a `tower::Service` from requests to responses.
#[derive(Clone)]
pub struct ApiServer {
    pub(crate) state: Arc<State>,
    /// Who a request is from that carries no credentials, for callers in the same process.
    user: Option<Arc<User>>,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer").field("store", &self.state.store).finish_non_exhaustive()
    }
}

/// What the store wants to know of a stored object; for [`Store::open`].
#[must_use]
pub fn describe(resource: &str, json: &[u8]) -> Meta {
    static BUILT_IN: std::sync::LazyLock<Registry> = std::sync::LazyLock::new(|| Registry::new(&[]));
    let object: Value = serde_json::from_slice(json).unwrap_or_default();
    let fields = BUILT_IN.all().find(|r| *r.storage == *resource).map(|r| r.fields.clone());
    meta_of(&object, fields.as_deref().unwrap_or(&[]))
}

impl ApiServer {
    /// Starts to compose a server over a store.
    #[must_use]
    pub fn builder(store: Store) -> Builder {
        Builder::new(store)
    }

    /// The same server for callers in the same process: requests without credentials are from `user`.
    #[must_use]
    pub fn service_as(&self, user: User) -> ApiServer {
        ApiServer { state: self.state.clone(), user: Some(Arc::new(user)) }
    }

    /// A client in the same process, as `user`, without sockets.
    #[must_use]
    pub fn client_as(&self, user: User) -> Client {
        Client::new(self.service_as(user))
    }

    /// The store underneath.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.state.store
    }

    /// Answers one request.
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
            let id = request.headers().get(respond::AUDIT_ID).cloned();
            let (mut response, warnings) = self.answer(request).await;
            respond::warn(&mut response, &warnings);
            respond::identify(&mut response, id.as_ref());
            response
        }
        .boxed()
    }

    async fn answer(&self, request: Request<Body>) -> (Response<Body>, Vec<String>) {
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let info = RequestInfo::parse(request.method(), request.uri().path(), &query);
        // What others answer is passed on as it is.
        // What a proxied server says is its own.
        let encoding = match info.subresource.as_str() {
            "proxy" => Encoding::Json,
            // A watch is given in what it is asked for, or not at all.
            _ if info.verb == "watch" => Encoding::Json,
            _ => accept::encoding(request.headers()),
        };
        let gzip = crate::compress::is_wanted(request.headers(), &info);
        let (mut response, warnings) = match self.audited(request, info, query).await {
            Ok(done) => done,
            Err(status) => (respond::failure(&status), Vec::new()),
        };
        if response.extensions().get::<respond::Foreign>().is_some() {
            return (response, warnings);
        }
        response = respond::encoded(response, encoding).await;
        if gzip {
            response = crate::compress::gzip(response).await;
        }
        (response, warnings)
    }

    async fn audited(
        &self,
        request: Request<Body>,
        info: RequestInfo,
        query: Query,
    ) -> Result<(Response<Body>, Vec<String>), ApiStatus> {
        if self.state.audit.is_empty() {
            return self.admitted(request, info, query, &mut None).await;
        }
        let (mut user, asked) = (None, info.clone());
        let answer = self.admitted(request, info, query, &mut user).await;
        let code = match &answer {
            Ok((response, _)) => response.status(),
            Err(status) => StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        };
        for audit in &self.state.audit {
            audit.record(Audited { user: user.as_ref(), request: &asked, code });
        }
        answer
    }

    /// Who a request is from.
    async fn authenticate(
        &self,
        headers: &http::HeaderMap,
        extensions: &http::Extensions,
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
        for authenticator in &state.authenticators {
            if let Some(user) = authenticator.authenticate(&credentials).await? {
                return Ok(user);
            }
        }
        state.authenticator.authenticate(
            &credentials,
            &state.issuer,
            state.clock.now().as_second(),
            &|resource, key, uid| state.is_alive(resource, key, uid),
        )
    }

    /// The pipeline from authentication on. `asked_by` is set as soon as the user is known.
    async fn admitted(
        &self,
        request: Request<Body>,
        info: RequestInfo,
        query: Query,
        asked_by: &mut Option<User>,
    ) -> Result<(Response<Body>, Vec<String>), ApiStatus> {
        let state = &self.state;
        let mut user = self.authenticate(request.headers(), request.extensions()).await?;
        if let Some(other) = Impersonated::from_headers(request.headers())? {
            for need in other.needs() {
                state.authorization.authorize(&user, &need).await?;
            }
            user = other.user;
        }
        if !state.audit.is_empty() {
            *asked_by = Some(user.clone());
        }
        if let Some(response) = crate::health::public(state, &info, &query) {
            return Ok((response, Vec::new()));
        }
        let Some(last) = request.extensions().get::<Arc<LastAccount>>().cloned() else {
            return self.granted(request, info, query, user).await;
        };
        let ticket = state.gate.enter(&last, &user, &info).await?;
        let mut request = request.map(|body| ticket.count(body));
        request.extensions_mut().insert(ticket.clone());
        let (mut response, warnings) = ticket.within(self.granted(request, info, query, user)).await?;
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
    ) -> Result<(Response<Body>, Vec<String>), ApiStatus> {
        let state = &self.state;
        let mut tickets = Vec::new();
        for flow in &state.flow {
            tickets.push(flow.admit(&user, &info).await?);
        }
        let one = one_of_a_list(&info, &query);
        let wanted = if info.is_resource {
            Attributes {
                verb: &info.verb,
                group: &info.group,
                resource: &info.resource,
                subresource: &info.subresource,
                namespace: &info.namespace,
                name: one.as_deref().unwrap_or(&info.name),
                path: "",
            }
        } else {
            Attributes { verb: &info.verb, path: &info.path, ..Attributes::default() }
        };
        state.authorization.authorize(&user, &wanted).await?;
        if let Some(remote) = state.elsewhere(&info) {
            return Ok((remote.forward(&state.store, &user, &mut request).await, Vec::new()));
        }
        let call = Call {
            info,
            query,
            user,
            headers: request.headers().clone(),
            registry: state.registry.now(),
            warnings: Mutex::default(),
        };
        let response = if call.info.is_resource {
            dispatch::resource(state, &call, &mut request).await?
        } else {
            crate::discovery::path(state, &call)?
        };
        let warnings = call.warned();
        Ok((response, warnings))
    }
}

/// The name of the one object that a list or watch selects by `metadata.name`: who may read only that one may list and watch it too.
fn one_of_a_list(info: &RequestInfo, query: &Query) -> Option<String> {
    if !info.is_resource || !info.name.is_empty() || !matches!(info.verb.as_str(), "list" | "watch") {
        return None;
    }
    let selector: FieldSelector = query.get("fieldSelector").parse().ok()?;
    let name = selector.required("metadata.name")?;
    let is_segment = !name.is_empty() && ![".", ".."].contains(&name) && !name.contains(['/', '%']);
    is_segment.then(|| name.to_owned())
}

impl<B> tower::Service<Request<B>> for ApiServer
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
