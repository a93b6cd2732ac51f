//! Untyped requests: paths, bodies, errors, watch frames.

use std::{borrow::Cow, fmt, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures::{FutureExt, TryFutureExt, future::BoxFuture, stream::BoxStream};
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Api, Environment, Error, Observe, Remote, RemoteConfig, observe::Observed, retry::Repeats};
use crate::{json, meta::Object, status::ApiStatus};

/// Media type of requests and responses.
const JSON: &str = "application/json";

/// Any error of a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Body of a request or response.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Creates a body from bytes.
#[must_use]
pub fn body_from_bytes(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Creates an empty body.
#[must_use]
pub fn empty_body() -> Body {
    body_from_bytes(Bytes::new())
}

/// Sends requests to an API server.
///
/// Implemented for every cloneable `tower::Service` over [`Body`], so an in-process API server is a
/// transport.
pub trait Transport: Send + Sync + 'static {
    /// Sends a request and returns the response.
    fn call(&self, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>>;

    /// Returns `host:port` of the server, for metrics. Default: empty, for a server in the same process.
    fn host(&self) -> &str {
        ""
    }
}

impl<S> Transport for S
where
    S: tower_service::Service<Request<Body>, Response = Response<Body>> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
{
    fn call(&self, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
        let mut service = self.clone();
        let mut request = Some(request);
        // Without `async`: rustc cannot see that a block that keeps the boxed body is `Send`.
        std::future::poll_fn(move |cx| {
            std::task::ready!(service.poll_ready(cx))?;
            let request = request.take().expect("a future is not polled again after it was ready");
            // By its full path: `Transport::call` has the same name and would call itself.
            std::task::Poll::Ready(Ok(tower_service::Service::call(&mut service, request)))
        })
        .and_then(|answer| answer)
        .map_err(Into::into)
        .boxed()
    }
}

/// Identifies a served resource, for types known at run time only.
///
/// ```
/// use k8s_core::{api::Deployment, client::Resource};
/// let deployments = Resource::of::<Deployment>();
/// assert_eq!(deployments.api_version(), "apps/v1");
/// let path = deployments.path("default", "web", "scale");
/// assert_eq!(path, "/apis/apps/v1/namespaces/default/deployments/web/scale");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: String,
    /// Version of the API.
    pub version: String,
    /// Kind of the objects.
    pub kind: String,
    /// Plural name in URLs.
    pub plural: String,
    /// True if objects are namespaced.
    pub namespaced: bool,
}

impl Resource {
    /// Returns the resource of a type.
    #[must_use]
    pub fn of<K: Object>() -> Self {
        Resource {
            group: K::GROUP.to_owned(),
            version: K::VERSION.to_owned(),
            kind: K::KIND.to_owned(),
            plural: K::PLURAL.to_owned(),
            namespaced: std::any::TypeId::of::<K::Scope>()
                == std::any::TypeId::of::<k8s_openapi::NamespaceResourceScope>(),
        }
    }

    /// Returns `apiVersion` as in objects.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Returns the URL path of the collection (`name` empty) or of an object.
    #[must_use]
    pub fn path(&self, namespace: &str, name: &str, subresource: &str) -> String {
        let mut path = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        if !namespace.is_empty() && self.namespaced {
            path.push_str("/namespaces/");
            path.push_str(namespace);
        }
        for part in [self.plural.as_str(), name, subresource] {
            if !part.is_empty() {
                path.push('/');
                path.push_str(part);
            }
        }
        path
    }
}

/// An object whose type is known at run time only.
///
/// ```
/// use k8s_core::client::DynObject;
/// let shop: DynObject = serde_json::from_value(serde_json::json!({
///     "apiVersion": "example.com/v1", "kind": "Shop", "spec": {"shelves": 3},
/// }))?;
/// assert_eq!((shop.kind.as_str(), shop.data["spec"]["shelves"].as_i64()), ("Shop", Some(3)));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DynObject {
    /// Group and version, such as `apps/v1`; empty in items of some lists.
    #[serde(default)]
    pub api_version: String,
    /// Kind, such as `Deployment`; empty in items of some lists.
    #[serde(default)]
    pub kind: String,
    /// Object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// All other fields.
    #[serde(flatten)]
    pub data: serde_json::Map<String, serde_json::Value>,
}

/// A handle on an API server. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    user_agent: Arc<str>,
    namespace: Arc<str>,
    retries: u32,
    /// Does not decode `managedFields`.
    skips_managed_fields: bool,
    observer: Option<Arc<dyn Observe>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("user_agent", &self.user_agent).finish_non_exhaustive()
    }
}

impl Client {
    /// Creates a client over a transport: an in-process API server or a [`super::Remote`].
    #[must_use]
    pub fn new(transport: impl Transport) -> Self {
        Client {
            transport: Arc::new(transport),
            user_agent: "k8s-core".into(),
            namespace: "default".into(),
            retries: 0,
            skips_managed_fields: false,
            observer: None,
        }
    }

    /// Connects to the cluster that kubectl would use here, or whose pod this process is: see
    /// [`Environment::remote`]. It opens no connection yet.
    ///
    /// ```
    /// use k8s_core::{api::Pod, client::{Client, Error, ListParams}};
    ///
    /// async fn crashes() -> Result<usize, Error> {
    ///     let client = Client::try_default()?;
    ///     let pods = client.namespaced::<Pod>(client.namespace()).list(&ListParams::default()).await?;
    ///     let failed = |pod: &&Pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Failed");
    ///     Ok(pods.iter().filter(failed).count())
    /// }
    /// ```
    ///
    /// # Errors
    /// [`Error::Config`], which names the field and the file.
    pub fn try_default() -> Result<Self, Error> {
        Client::remote(&Environment::process().remote()?)
    }

    /// Creates a client over the network, with 5 repetitions after 429 ([`Client::retrying`]).
    ///
    /// # Errors
    /// As [`Remote::new`].
    pub fn remote(config: &RemoteConfig) -> Result<Self, Error> {
        let mut client = Client::new(Remote::new(config)?).retrying(5);
        if let Some(namespace) = &config.namespace {
            client.namespace = namespace.as_str().into();
        }
        Ok(client)
    }

    /// Returns a client that repeats a call up to `times` times after 429 with a `Retry-After` of at most 30
    /// seconds, which it waits for. Default: 0, and 5 for [`Client::remote`].
    ///
    /// ```
    /// use k8s_core::{api::Pod, client::{Client, Error}};
    /// # async fn example(client: Client) -> Result<(), Error> {
    /// // A busy server answers 429 with the seconds to wait; this client waits up to three times.
    /// let patient = client.retrying(3);
    /// patient.namespaced::<Pod>("default").get("web").await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn retrying(&self, times: u32) -> Self {
        Client { retries: times, ..self.clone() }
    }

    /// Returns the namespace of the kubeconfig's context or of the service account; else `default`.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Returns a client with another name. The name is the field manager of its writes.
    ///
    /// ```
    /// use k8s_core::{api::Deployment, client::{Client, Error}};
    /// # async fn example(client: Client) -> Result<(), Error> {
    /// let operator = client.named("shop-operator");
    /// assert_eq!(operator.name(), "shop-operator");
    /// // `shop-operator` owns the fields that it applies.
    /// let scale = serde_json::json!({
    ///     "apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 3},
    /// });
    /// operator.namespaced::<Deployment>("default").apply("web", &scale).await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn named(&self, user_agent: &str) -> Self {
        Client { user_agent: user_agent.into(), ..self.clone() }
    }

    /// Returns a client that does not decode `managedFields`: they are half of a small object, and
    /// controllers do not need them. (A write without them leaves them unchanged.)
    #[must_use]
    pub fn without_managed_fields(&self) -> Self {
        Client { skips_managed_fields: true, ..self.clone() }
    }

    /// Returns a client whose requests the observer sees, instead of an earlier observer.
    #[must_use]
    pub fn observed(&self, observer: impl Observe) -> Self {
        Client { observer: Some(Arc::new(observer)), ..self.clone() }
    }

    /// Returns true if the client has an observer.
    #[must_use]
    pub fn is_observed(&self) -> bool {
        self.observer.is_some()
    }

    /// Returns an object's JSON without the fields that this client does not decode.
    fn read<'a>(&self, json: &'a [u8]) -> Cow<'a, [u8]> {
        if self.skips_managed_fields {
            json::without(json, &["metadata", "managedFields"])
        } else {
            Cow::Borrowed(json)
        }
    }

    /// As [`Client::read`], for an object in a field.
    pub(super) fn read_below<'a>(&self, json: &'a [u8], field: &str) -> Cow<'a, [u8]> {
        if self.skips_managed_fields {
            json::without(json, &[field, "metadata", "managedFields"])
        } else {
            Cow::Borrowed(json)
        }
    }

    /// Returns the client's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.user_agent
    }

    /// Returns `host:port` of the server; empty for a server in the same process.
    #[must_use]
    pub fn host(&self) -> &str {
        self.transport.host()
    }

    /// Returns a client for `K` in all namespaces, or cluster-scoped.
    #[must_use]
    pub fn all<K: Object>(&self) -> Api<K> {
        Api::new(self.clone(), Resource::of::<K>(), "")
    }

    /// Returns a client for `K` in one namespace.
    #[must_use]
    pub fn namespaced<K: Object>(&self, namespace: &str) -> Api<K> {
        Api::new(self.clone(), Resource::of::<K>(), namespace)
    }

    /// Returns a client for a resource known at run time only. `namespace` is empty for all namespaces or
    /// cluster scope.
    ///
    /// ```
    /// use k8s_core::client::{Client, Error, ListParams, Resource};
    /// # async fn example(client: Client) -> Result<(), Error> {
    /// let gateways = Resource {
    ///     group: "gateway.networking.k8s.io".into(),
    ///     version: "v1".into(),
    ///     kind: "Gateway".into(),
    ///     plural: "gateways".into(),
    ///     namespaced: true,
    /// };
    /// for gateway in client.dynamic(&gateways, "default").list(&ListParams::default()).await? {
    ///     println!("{:?} {}", gateway.metadata.name, gateway.data["spec"]);
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn dynamic(&self, resource: &Resource, namespace: &str) -> Api<DynObject> {
        Api::new(self.clone(), resource.clone(), namespace)
    }

    /// Sends a request and returns the response with its body unread. Any status code is `Ok`.
    ///
    /// # Errors
    /// [`Error::Transport`] if the server is not reached.
    pub fn send(&self, mut request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, Error>> {
        if let Ok(value) = header::HeaderValue::from_str(&self.user_agent) {
            request.headers_mut().entry(header::USER_AGENT).or_insert(value);
        }
        let context = format!("{} {}", request.method(), request.uri().path());
        let observed = self.observer.as_ref().map(|to| Observed::begin(to, &self.transport, &request));
        let end = move |result: Result<Response<Body>, BoxError>| {
            if let Some(observed) = observed {
                observed.end(result.as_ref().ok().map(Response::status));
            }
            result.map_err(|source| Error::Transport { context, source })
        };
        self.transport.call(request).map(end).boxed()
    }

    /// Sends a request that can be built again, until the response is final.
    async fn send_repeating(
        &self,
        request: impl Fn() -> Result<Request<Body>, Error>,
    ) -> Result<Response<Body>, Error> {
        let mut repeats = Repeats { busy: self.retries, renewed: false };
        loop {
            let response = self.send(request()?).await?;
            let Some(wait) = repeats.after(&response) else { return Ok(response) };
            drop(response);
            tokio::time::sleep(wait).await;
        }
    }

    /// Sends a request and returns the body of a successful response.
    ///
    /// # Errors
    /// [`Error::Api`] for any status code of 400 and above.
    pub fn bytes<'a>(
        &'a self,
        method: Method,
        path_and_query: &'a str,
        content_type: &'a str,
        body: impl Into<Bytes>,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        self.exchange(method, path_and_query, [JSON, content_type], body.into())
    }

    /// Sends a GET request for one of these media types, preferred first, and returns the body of a
    /// successful response. Its type is the first one that the server knows.
    ///
    /// ```
    /// use k8s_core::client::{Client, Error};
    /// # async fn example(client: Client) -> Result<(), Error> {
    /// let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    /// let rows = client.get_as("/api/v1/namespaces", table).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Api`] for any status code of 400 and above.
    pub fn get_as<'a>(
        &'a self,
        path_and_query: &'a str,
        media_types: &'a str,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        self.exchange(Method::GET, path_and_query, [media_types, ""], Bytes::new())
    }

    fn exchange<'a>(
        &'a self,
        method: Method,
        path_and_query: &'a str,
        accept_and_content_type: [&'a str; 2],
        body: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        // Boxed: callers' crates need not compile it again.
        Box::pin(self.exchange_once(method, path_and_query, accept_and_content_type, body))
    }

    async fn exchange_once(
        &self,
        method: Method,
        path_and_query: &str,
        [accept, content_type]: [&str; 2],
        body: Bytes,
    ) -> Result<Bytes, Error> {
        let context = || format!("{method} {path_and_query}");
        let request = || {
            Request::builder()
                .method(method.clone())
                .uri(path_and_query)
                .header(header::ACCEPT, accept)
                .header(header::CONTENT_TYPE, content_type)
                .body(body_from_bytes(body.clone()))
                .map_err(|e| Error::Request(format!("{}: {e}", context())))
        };
        let response = self.send_repeating(request).await?;
        let code = response.status();
        let bytes = response
            .into_body()
            .collect()
            .await
            .map_err(|source| Error::Transport { context: context(), source })?
            .to_bytes();
        if code.is_success() { Ok(bytes) } else { Err(status_of(code.as_u16(), &bytes).into()) }
    }

    /// Sends a request with a JSON body (or none) and decodes a successful response: strictly, or else with
    /// Go's rules ([`json::lenient`]).
    ///
    /// # Errors
    /// As [`Client::bytes`], and [`Error::Decode`].
    pub async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path_and_query: &str,
        content_type: &str,
        body: impl Into<Bytes>,
    ) -> Result<T, Error> {
        let bytes = self.bytes(method, path_and_query, content_type, body).await?;
        json::from_slice(&self.read(&bytes))
            .map_err(|source| Error::Decode { what: path_and_query.to_owned(), source })
    }

    /// Opens a stream of JSON lines (a watch, or `log?follow`); each item is a line without its line feed.
    ///
    /// # Errors
    /// [`Error::Api`] if the server refuses; later failures are returned as items.
    pub fn lines<'a>(
        &'a self,
        path_and_query: &'a str,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<Bytes, Error>>, Error>> {
        // Boxed: callers' crates need not compile it again.
        Box::pin(self.open_lines(path_and_query))
    }

    async fn open_lines(
        &self,
        path_and_query: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, Error>>, Error> {
        let context = format!("GET {path_and_query}");
        let request = || {
            Request::builder()
                .uri(path_and_query)
                .header(header::ACCEPT, JSON)
                .body(empty_body())
                .map_err(|e| Error::Request(format!("{context}: {e}")))
        };
        let response = self.send_repeating(request).await?;
        let code = response.status();
        let body = response.into_body();
        if !code.is_success() {
            let bytes =
                body.collect().await.map_err(|source| Error::Transport { context, source })?.to_bytes();
            return Err(status_of(code.as_u16(), &bytes).into());
        }
        let state = Lines { body, buffer: BytesMut::new(), scanned: 0, ended: false, context };
        Ok(Box::pin(futures::stream::unfold(state, |mut lines| async move {
            lines.next().await.map(|item| (item, lines))
        })))
    }
}

/// Splits a body at line feeds.
struct Lines {
    body: Body,
    buffer: BytesMut,
    scanned: usize,
    ended: bool,
    context: String,
}

impl Lines {
    async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        loop {
            if let Some(at) = self.buffer[self.scanned..].iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(self.scanned + at + 1).freeze();
                self.scanned = 0;
                return Some(Ok(line.slice(..line.len() - 1)));
            }
            self.scanned = self.buffer.len();
            if self.ended {
                let rest = self.buffer.split().freeze();
                self.scanned = 0;
                return (!rest.is_empty()).then_some(Ok(rest));
            }
            match self.body.frame().await {
                None => self.ended = true,
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(source)) => {
                    self.ended = true;
                    self.buffer.clear();
                    self.scanned = 0;
                    return Some(Err(Error::Transport { context: self.context.clone(), source }));
                }
            }
        }
    }
}

/// Returns the status of an error response; a body that is no status yields a generic one for the code.
fn status_of(code: u16, body: &[u8]) -> ApiStatus {
    match serde_json::from_slice::<Status>(body) {
        Ok(status) if status.code.is_some() || status.reason.is_some() => ApiStatus::from_status(status),
        _ => ApiStatus::new(code, "", String::from_utf8_lossy(body).trim().to_owned()),
    }
}
