//! The server: what it is made of, and the pipeline that every request goes through.
//!
//! authenticate, impersonate, flow control, authorize (each may be added to: [`crate::stages`]), then a path handler (health, discovery, OpenAPI) or a resource handler; resource writes go through
//! decode, mutate, default and validate, validate, store ([`crate::write`]).

mod builder;

pub use builder::{Builder, Pace};

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, atomic::AtomicBool},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::{Request, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use k8s_core::{
    client::{Body, BoxError, Client},
    clock::Clock,
    meta::FieldSelector,
    status::ApiStatus,
};
use k8s_store::{Meta, Store};
use serde_json::Value;

use crate::{
    accept::{self, Encoding},
    admission::Admit,
    aggregate::{Aggregator, Remote},
    allocate::ServiceAllocator,
    auth::{
        Authenticator, AuthorizationMode,
        impersonate::Impersonated,
        rbac::{Attributes, Rbac},
        tokens::TokenIssuer,
    },
    decode::{self, MAX_BODY},
    extend::reshape,
    limits::{Crowded, Gate, Ticket},
    listen::Connection,
    outbound::ClientIdentity,
    proxy::NodeConnector,
    request::{Query, RequestInfo},
    resources::{Registry, Resource, SharedRegistry, selectable},
    respond,
    stages::{Audit, Audited, Authenticate, Authorize, Credentials, Decision, FlowControl},
    user::User,
    value::text,
    write::unhurried,
};

pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) registry: SharedRegistry,
    pub(crate) clock: Clock,
    pub(crate) authenticator: Authenticator,
    pub(crate) authorization: AuthorizationMode,
    pub(crate) rbac: Rbac,
    pub(crate) issuer: TokenIssuer,
    pub(crate) services: ServiceAllocator,
    pub(crate) admission: Vec<Arc<dyn Admit>>,
    authenticators: Vec<Arc<dyn Authenticate>>,
    authorizers: Vec<Arc<dyn Authorize>>,
    flow: Vec<Arc<dyn FlowControl>>,
    audit: Vec<Arc<dyn Audit>>,
    pub(crate) nodes: Option<Arc<dyn NodeConnector>>,
    pub(crate) aggregator: Aggregator,
    /// Told when what is served changes.
    pub(crate) redefined: Arc<tokio::sync::Notify>,
    pub(crate) front_proxy: Option<ClientIdentity>,
    pub(crate) pace: Pace,
    /// Answers warn of what is stored and not acted on.
    pub(crate) warns_unenforced: bool,
    pub(crate) gate: Arc<Gate>,
    pub(crate) open_api: Mutex<HashMap<String, Bytes>>,
    pub(crate) ready: AtomicBool,
}

/// An API server. Cheap to clone; a clone is the same server. It is a `tower::Service` from requests to responses.
#[derive(Clone)]
pub struct ApiServer {
    pub(crate) inner: Arc<Inner>,
    /// Who a request is from that carries no credentials, for callers in the same process.
    user: Option<Arc<User>>,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer").field("store", &self.inner.store).finish_non_exhaustive()
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

pub(crate) fn meta_of(object: &Value, fields: &[String]) -> Meta {
    let labels = crate::value::map(object, "/metadata/labels").into_iter().flatten();
    Meta {
        uid: text(object, "/metadata/uid").into(),
        labels: labels.map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or_default().into())).collect(),
        fields: selectable(fields, object),
    }
}

/// One request on its way through the pipeline.
pub(crate) struct Call {
    pub(crate) info: RequestInfo,
    pub(crate) query: Query,
    pub(crate) user: User,
    pub(crate) headers: http::HeaderMap,
    pub(crate) registry: Arc<Registry>,
    pub(crate) warnings: Mutex<Vec<String>>,
}

impl Call {
    pub(crate) fn warn(&self, warning: String) {
        self.warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(warning);
    }

    /// Warns, unless the same was said already.
    pub(crate) fn warn_once(&self, warning: String) {
        let mut all = self.warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !all.contains(&warning) {
            all.push(warning);
        }
    }

    /// The same request, to be changed; its warnings are its own.
    pub(crate) fn inner(&self) -> Call {
        Call {
            info: self.info.clone(),
            query: self.query.clone(),
            user: self.user.clone(),
            headers: self.headers.clone(),
            registry: self.registry.clone(),
            warnings: Mutex::default(),
        }
    }

    /// Takes the warnings.
    pub(crate) fn warned(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// The field manager of a write: what the request says, else the client's name.
    pub(crate) fn manager(&self) -> String {
        let named = self.query.get("fieldManager");
        if !named.is_empty() {
            return named.to_owned();
        }
        let agent = self.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("unknown");
        agent.split('/').next().unwrap_or(agent).chars().take(128).collect()
    }
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
        ApiServer { inner: self.inner.clone(), user: Some(Arc::new(user)) }
    }

    /// A client in the same process, as `user`, without sockets.
    #[must_use]
    pub fn client_as(&self, user: User) -> Client {
        Client::new(self.service_as(user))
    }

    /// The server, where it is still there.
    pub(crate) fn of(inner: &std::sync::Weak<Inner>) -> Option<Self> {
        Some(ApiServer { inner: inner.upgrade()?, user: None })
    }

    /// The store underneath.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.inner.store
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
        if self.inner.audit.is_empty() {
            return self.admitted(request, info, query, &mut None).await;
        }
        let (mut user, asked) = (None, info.clone());
        let answer = self.admitted(request, info, query, &mut user).await;
        let code = match &answer {
            Ok((response, _)) => response.status(),
            Err(status) => StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        };
        for audit in &self.inner.audit {
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
        let inner = &self.inner;
        match (extensions.get::<User>(), &self.user) {
            (Some(user), _) => return Ok(user.clone()),
            (None, Some(user)) if !headers.contains_key(header::AUTHORIZATION) => {
                return Ok((**user).clone());
            }
            _ => {}
        }
        let credentials = Credentials { headers, certificate: extensions.get() };
        for authenticator in &inner.authenticators {
            if let Some(user) = authenticator.authenticate(&credentials).await? {
                return Ok(user);
            }
        }
        inner.authenticator.authenticate(
            &credentials,
            &inner.issuer,
            inner.clock.now().as_second(),
            &|resource, key, uid| inner.is_alive(resource, key, uid),
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
        let inner = &self.inner;
        let mut user = self.authenticate(request.headers(), request.extensions()).await?;
        if let Some(other) = Impersonated::from_headers(request.headers())? {
            for need in other.needs() {
                inner.authorize(&user, &need).await?;
            }
            user = other.user;
        }
        if !inner.audit.is_empty() {
            *asked_by = Some(user.clone());
        }
        if let Some(response) = crate::health::public(self, &info, &query) {
            return Ok((response, Vec::new()));
        }
        let Some(connection) = request.extensions().get::<Arc<Connection>>().cloned() else {
            return self.granted(request, info, query, user).await;
        };
        let ticket = inner.gate.enter(&connection, &user, &info).await?;
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
        let inner = &self.inner;
        let mut tickets = Vec::new();
        for flow in &inner.flow {
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
        inner.authorize(&user, &wanted).await?;
        if let Some(remote) = inner.elsewhere(&info) {
            return Ok((remote.forward(self, &user, &mut request).await, Vec::new()));
        }
        let call = Call {
            info,
            query,
            user,
            headers: request.headers().clone(),
            registry: inner.registry.now(),
            warnings: Mutex::default(),
        };
        let response = if call.info.is_resource {
            self.resource(&call, &mut request).await?
        } else {
            crate::discovery::path(self, &call)?
        };
        let warnings = call.warned();
        Ok((response, warnings))
    }

    async fn resource(&self, call: &Call, request: &mut Request<Body>) -> Result<Response<Body>, ApiStatus> {
        let info = &call.info;
        if let Some(response) = crate::reviews::handle(self, call, request).await? {
            return Ok(response);
        }
        let Some(resource) = call.registry.find(&info.group, &info.version, &info.resource).cloned() else {
            let served =
                call.registry.groups().iter().any(|(g, v)| *g == info.group && v.contains(&info.version));
            return if served { Err(ApiStatus::no_resource()) } else { Ok(not_found_page()) };
        };
        if let Some(webhook) = &resource.webhook {
            return crate::conversion::handle(self, call, &resource, webhook, request).await;
        }
        self.dispatch(call, &resource, request).await
    }

    /// Answers a request for a resource that is served.
    pub(crate) async fn dispatch(
        &self,
        call: &Call,
        resource: &Arc<Resource>,
        request: &mut Request<Body>,
    ) -> Result<Response<Body>, ApiStatus> {
        let info = &call.info;
        if resource.namespaced
            && info.namespace.is_empty()
            && !matches!(info.verb.as_str(), "list" | "watch" | "deletecollection")
        {
            return if info.verb == "create" && info.name.is_empty() {
                Err(ApiStatus::method_not_allowed())
            } else {
                Err(ApiStatus::no_resource())
            };
        }
        if !info.subresource.is_empty() {
            let known = resource.subresource(&info.subresource);
            if known.is_none() {
                return Err(ApiStatus::no_resource());
            }
            return crate::special::handle(self, call, resource, request).await;
        }
        match info.verb.as_str() {
            "get" => crate::read::get(self, call, resource),
            "list" => crate::read::list(self, call, resource),
            "watch" => crate::read::watch(self, call, resource),
            "create" if info.name.is_empty() => {
                let body = read_body(request).await?;
                crate::write::create(self, call, resource, &body).await
            }
            "update" if !info.name.is_empty() => {
                let body = read_body(request).await?;
                crate::write::update(self, call, resource, &body).await
            }
            "patch" if !info.name.is_empty() => {
                let body = read_body(request).await?;
                crate::write::patch(self, call, resource, &body).await
            }
            "delete" => {
                let body = read_body(request).await?;
                crate::delete::one(self, call, resource, &body).await
            }
            "deletecollection" => {
                let body = read_body(request).await?;
                crate::delete::collection(self, call, resource, &body).await
            }
            _ => Err(ApiStatus::method_not_allowed()),
        }
    }
}

/// The plain answer for paths that nobody serves.
pub(crate) fn not_found_page() -> Response<Body> {
    respond::text(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// Reads a whole body.
///
/// # Errors
/// 413 above the limit, 400 when the connection breaks.
pub(crate) async fn read_body(request: &mut Request<Body>) -> Result<Bytes, ApiStatus> {
    let too_large = || {
        ApiStatus::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {MAX_BODY}"))
    };
    if request.body().size_hint().lower() > MAX_BODY as u64 {
        return Err(too_large());
    }
    let body = std::mem::replace(request.body_mut(), k8s_core::client::empty_body());
    match collect(body).await {
        Ok(body) => {
            if let Some(ticket) = request.extensions().get::<Arc<Ticket>>()
                && decode::is_heavy(request.headers(), &body)
            {
                ticket.keep(ticket.heavy().await);
            }
            Ok(body)
        }
        Err(e) if e.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Err(e) if e.is::<Crowded>() => Err((&Crowded).into()),
        Err(e) => Err(ApiStatus::bad_request(format!("read the body: {e}"))),
    }
}

/// Boxed, because rustc cannot see that a future over the body's boxed error is `Send`.
fn collect(body: Body) -> BoxFuture<'static, Result<Bytes, BoxError>> {
    http_body_util::Limited::new(body, MAX_BODY).collect().map(|done| done.map(|b| b.to_bytes())).boxed()
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

/// How long a token still holds after what it depends on was deleted and waits to go, seconds (as upstream's leeway for clocks).
const DELETION_LEEWAY: i64 = 60;

impl Inner {
    /// Whether an object that a token depends on is still this one, and not one that has long been deleted.
    pub(crate) fn is_alive(&self, resource: &str, key: &str, uid: &str) -> bool {
        let Some(stored) = self.store.get(resource, key).filter(|s| *s.uid == *uid) else { return false };
        let place = k8s_core::json::find(&stored.json, &["metadata", "deletionTimestamp"]);
        let Some(place) = place else { return true };
        let since = serde_json::from_slice::<jiff::Timestamp>(&stored.json[place]);
        since.is_ok_and(|since| since.as_second() >= self.clock.now().as_second() - DELETION_LEEWAY)
    }

    /// Who else answers for a path, if somebody does.
    fn elsewhere(&self, info: &RequestInfo) -> Option<Arc<Remote>> {
        if let Some(rest) = info.path.strip_prefix("/openapi/v3/apis/") {
            let (group, version) = rest.split_once('/')?;
            return self.aggregator.find(group, version);
        }
        if info.group.is_empty() { None } else { self.aggregator.find(&info.group, &info.version) }
    }

    /// Checks that `user` may do it.
    pub(crate) async fn authorize(&self, user: &User, a: &Attributes<'_>) -> Result<(), ApiStatus> {
        let mut reason = String::new();
        for authorizer in &self.authorizers {
            match authorizer.authorize(user, a).await {
                Decision::Allow => return Ok(()),
                Decision::Deny(why) => {
                    reason = why;
                    break;
                }
                Decision::NoOpinion => {}
            }
        }
        let allowed =
            || self.authorization == AuthorizationMode::AlwaysAllow || self.rbac.allows(&self.store, user, a);
        if reason.is_empty() && allowed() {
            return Ok(());
        }
        let reason = if reason.is_empty() { reason } else { format!(": {reason}") };
        let why = if a.path.is_empty() {
            let resource = if a.subresource.is_empty() {
                a.resource.to_owned()
            } else {
                format!("{}/{}", a.resource, a.subresource)
            };
            let scope = if a.namespace.is_empty() {
                "at the cluster scope".to_owned()
            } else {
                format!("in the namespace \"{}\"", a.namespace)
            };
            format!(
                "User \"{}\" cannot {} resource \"{resource}\" in API group \"{}\" {scope}{reason}",
                user.name, a.verb, a.group
            )
        } else {
            let why =
                format!("forbidden: User \"{}\" cannot {} path \"{}\"{reason}", user.name, a.verb, a.path);
            return Err(ApiStatus::new(403, "Forbidden", why).about("", "", ""));
        };
        Err(ApiStatus::forbidden(a.group, a.resource, a.name, &why))
    }

    /// Serves what the definitions in the store define.
    fn load_definitions(&self) {
        for kind in ["customresourcedefinitions.apiextensions.k8s.io", "thirdpartyresources.extensions"] {
            for stored in self.store.snapshot(kind).range("", "") {
                if let Ok(object) = serde_json::from_slice(&stored.json) {
                    self.define(&object);
                }
            }
        }
    }

    /// Serves what a definition (as stored) defines.
    pub(crate) fn define(&self, definition: &Value) {
        let (kind, name) = (text(definition, "/kind"), text(definition, "/metadata/name"));
        let made: Vec<Arc<Resource>> = match kind {
            "CustomResourceDefinition" => crate::resources::custom::from_definition(definition),
            _ => crate::resources::custom::from_third_party(definition),
        };
        let before = self.registry.now();
        let stored = made.iter().find(|r| r.is_storage_version()).cloned();
        self.registry.define(&format!("{kind}/{name}"), made);
        if let Some(now) = stored {
            let was = before.find(&now.group, &now.version, &now.plural);
            if reshape::differs(&now, was.map(|r| &**r)) {
                unhurried(true, || reshape::all(&self.store, &now));
            }
        }
        self.open_api.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        self.redefined.notify_one();
    }

    /// Stops to serve what a definition defined.
    pub(crate) fn undefine(&self, kind: &str, name: &str) {
        self.registry.define(&format!("{kind}/{name}"), Vec::new());
        self.open_api.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        self.redefined.notify_one();
    }
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
