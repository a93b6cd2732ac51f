//! The layer between a program and the API server: records requests and injects faults.

#![expect(clippy::disallowed_methods, reason = "the lab is the owner of virtual time")]

use std::{
    pin::Pin,
    sync::{Arc, PoisonError, atomic::Ordering},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use k8s_apiserver::request::{Query, RequestInfo};
use k8s_core::{
    client::{Body, BoxError, Client, body_from_bytes},
    status::{ApiStatus, Reason},
};
use k8s_store::Store;
use serde::Deserialize;

use crate::{
    actor::{Kind, Process},
    faults::{Fault, Opportunity, Strike},
    hub::{Hub, Written},
    trace::What,
    watch,
};

/// The API server as one program sees it: a `tower::Service`, for our client and `kube::Client`.
#[derive(Clone, Debug)]
pub struct Service {
    upstream: Client,
    /// Store of the in-process server: tells whether a write changed anything. `None`: an existing cluster.
    store: Option<Store>,
    hub: Arc<Hub>,
    process: Arc<Process>,
    life: u64,
    /// Impersonated user. `None`: cluster administrator.
    user: Option<HeaderValue>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Version {
    resource_version: String,
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Any {
    metadata: Version,
}

fn version_of(json: &[u8]) -> Option<(u64, String)> {
    let any: Any = serde_json::from_slice(json).ok()?;
    Some((any.metadata.resource_version.parse().ok()?, any.metadata.name))
}

impl Service {
    pub(crate) fn new(upstream: Client, store: Option<Store>, hub: Arc<Hub>, process: Arc<Process>) -> Self {
        let life = process.life.load(Ordering::Relaxed);
        let user = process.user.as_deref().and_then(|user| HeaderValue::from_str(user).ok());
        Service { upstream, store, hub, process, life, user }
    }

    /// Returns the service with another user and its permissions.
    pub(crate) fn acting_as(&self, user: &str) -> Self {
        Service { user: HeaderValue::from_str(user).ok(), ..self.clone() }
    }

    /// Returns a client for the service.
    pub(crate) fn client(&self) -> Client {
        Client::new(self.clone())
    }

    fn is_dead(&self) -> bool {
        self.process.life.load(Ordering::Relaxed) != self.life
    }

    async fn exchange(self, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        if self.is_dead() {
            return std::future::pending().await;
        }
        let uri = request.uri().clone();
        let query = Query::parse(uri.query().unwrap_or_default());
        let info = RequestInfo::parse(request.method(), uri.path(), &query);
        if self.process.kind() == Kind::Tested {
            let wait = self.process.take_turn();
            if !wait.is_zero() && self.store.is_some() {
                tokio::time::sleep(wait).await;
            }
            self.process.recorded.lock().unwrap_or_else(PoisonError::into_inner).note(&info);
        }
        let at = opportunity(request.method(), &info);
        let is_write = matches!(at, Opportunity::Create | Opportunity::Write);
        if is_write {
            self.process.started();
            if self.process.kind() == Kind::Test && !changes_nothing(&info) {
                // Whatever client the test writes with: controllers have something to do now.
                self.hub.arm();
            }
        }
        let place = self.place(&info, uri.path());
        let strike = self.hub.strike(&self.process, &info.verb, place.clone(), at);
        let before = match strike {
            Some(strike) => self.before(strike, &info).await,
            None => None,
        };
        let path = uri.path_and_query().map_or("", |p| p.as_str()).to_owned();
        if let Some(answer) = before {
            let code = answer.as_ref().map_or(0, |a| a.status().as_u16());
            self.finish(&info, path, code, false, String::new());
            return answer;
        }
        let whole = self.hub.state().trace.is_whole();
        let (request, sent) = if is_write && (whole || self.process.kind() == Kind::Tested) {
            read(request).await?
        } else {
            (request, None)
        };
        let revision = self.store.as_ref().map(Store::revision);
        let mut request = request;
        if let Some(user) = &self.user {
            request.headers_mut().insert("impersonate-user", user.clone());
        }
        let answer = self.upstream.send(request).await;
        if self.is_dead() {
            return std::future::pending().await;
        }
        let changed = match (&self.store, revision) {
            (Some(store), Some(before)) => store.revision() > before,
            _ => is_write,
        };
        let code = answer.as_ref().map_or(0, |a| a.status().as_u16());
        let body = sent.as_deref().filter(|_| whole).map(|b| String::from_utf8_lossy(b).into_owned());
        let shown = path.clone();
        self.finish(&info, path, code, changed && code < 300, body.unwrap_or_default());
        if let Some(strike) = strike {
            match strike.kind {
                Fault::TimeoutAfter => {
                    tokio::time::sleep(strike.delay()).await;
                    return Err(lost());
                }
                Fault::Crash => {
                    self.process.crash();
                    return std::future::pending().await;
                }
                _ => {}
            }
        }
        let answer = answer?;
        let answer = if self.process.kind() == Kind::Tested {
            if strike.is_none() {
                self.hub.answered(&self.process, &info.verb, place);
            }
            if answer.status().is_success() && matches!(info.verb.as_str(), "list" | "watch") {
                self.process.started();
            }
            self.look_for_refusal(&info, answer).await?
        } else {
            answer
        };
        let strikes = self.process.suffers() && !self.hub.plan.faults.is_none();
        if at == Opportunity::Watch && answer.status().is_success() && (strikes || whole) {
            let (parts, body) = answer.into_parts();
            let events = watch::events(body, self.hub.clone(), self.process.clone(), shown);
            return Ok(Response::from_parts(parts, events));
        }
        if let (Some(sent), Kind::Tested) = (sent, self.process.kind()) {
            return self.check(&info, &sent, answer).await;
        }
        Ok(answer)
    }

    /// Returns the path of a request as a place has it: `*` for the random part of a generated name.
    fn place(&self, info: &RequestInfo, path: &str) -> String {
        let generated = || {
            if info.name.is_empty() || !self.hub.plan.injects() {
                return None;
            }
            let resource = match info.group.as_str() {
                "" => info.resource.clone(),
                group => format!("{}.{group}", info.resource),
            };
            let key = match info.namespace.as_str() {
                "" => info.name.clone(),
                namespace => format!("{namespace}/{}", info.name),
            };
            let stored = self.store.as_ref()?.get(&resource, &key)?;
            let prefix = k8s_core::json::plain(&stored.json, &["metadata", "generateName"])?.to_owned();
            let at = path.rfind(&format!("/{}", info.name))? + 1;
            let rest = path.get(at + info.name.len()..)?;
            (!prefix.is_empty()).then(|| format!("{}{prefix}*{rest}", &path[..at]))
        };
        generated().unwrap_or_else(|| path.to_owned())
    }

    /// Notes a request that the program's role does not allow.
    async fn look_for_refusal(
        &self,
        info: &RequestInfo,
        answer: Response<Body>,
    ) -> Result<Response<Body>, BoxError> {
        if self.process.user.is_none() || answer.status() != StatusCode::FORBIDDEN {
            return Ok(answer);
        }
        let (parts, body) = answer.into_parts();
        let bytes = body.collect().await?.to_bytes();
        // Admission answers 403, too.
        let by_role = memchr::memmem::find(&bytes, format!(" cannot {} ", info.verb).as_bytes()).is_some();
        let mut state = self.hub.state();
        if by_role && state.forbidden.is_none() {
            state.forbidden = Some(crate::role::missing(self.process.name(), info));
        }
        drop(state);
        Ok(Response::from_parts(parts, body_from_bytes(bytes)))
    }

    /// Applies a fault before the request is sent; returns the response that replaces it.
    async fn before(&self, strike: Strike, info: &RequestInfo) -> Option<Result<Response<Body>, BoxError>> {
        let status = match strike.kind {
            Fault::Conflict => {
                let why = "the object has been modified; please apply your changes to the latest version and try again";
                ApiStatus::conflict(&info.group, &info.resource, &info.name, why)
            }
            Fault::ServerError if strike.other_way() => ApiStatus::internal("injected"),
            Fault::ServerError => ApiStatus::of(
                Reason::ServiceUnavailable,
                "the server is currently unable to handle the request",
            ),
            Fault::TooManyRequests => {
                ApiStatus::of(Reason::TooManyRequests, "too many requests, please try again later")
                    .retry_after(1)
            }
            Fault::Gone => ApiStatus::expired("too old resource version"),
            Fault::TimeoutBefore => {
                tokio::time::sleep(strike.delay()).await;
                return Some(Err(lost()));
            }
            Fault::Crash if strike.other_way() => {
                self.process.crash();
                return std::future::pending().await;
            }
            _ => return None,
        };
        Some(Ok(failure(&status)))
    }

    fn finish(&self, info: &RequestInfo, path: String, code: u16, changed: bool, body: String) {
        let is_write =
            matches!(info.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection");
        // Lease renewals never end.
        let counts = is_write && info.resource != "leases" && !changes_nothing(info);
        if counts {
            let mut state = self.hub.state();
            state.last_write = tokio::time::Instant::now();
            if changed && self.process.suffers() {
                let (who, verb) = (self.process.name().clone(), info.verb.clone());
                state.written.push(Written { who, verb, path: path.clone(), code });
            }
        }
        self.hub.note(&self.process, What::Request { verb: info.verb.clone(), path, code, body });
    }

    /// Detects a write that was based on an older revision than the writer's own last write.
    async fn check(
        &self,
        info: &RequestInfo,
        sent: &Bytes,
        answer: Response<Body>,
    ) -> Result<Response<Body>, BoxError> {
        let (parts, body) = answer.into_parts();
        let bytes = body.collect().await?.to_bytes();
        let version = version_of(&bytes);
        let key = |name: &str| format!("{}/{}/{}/{name}", info.group, info.resource, info.namespace);
        let stale = {
            let mut own = self.process.own.lock().unwrap_or_else(PoisonError::into_inner);
            if parts.status.is_success() {
                if let Some((revision, name)) = version.filter(|_| info.verb != "delete") {
                    own.insert(key(if info.name.is_empty() { &name } else { &info.name }), revision);
                } else if info.verb == "delete" {
                    own.remove(&key(&info.name));
                }
                None
            } else if parts.status == StatusCode::CONFLICT {
                let (asked, name) = version_of(sent).map_or((None, String::new()), |(r, n)| (Some(r), n));
                let name = if info.name.is_empty() { name } else { info.name.clone() };
                let mine = own.get(&key(&name)).copied();
                match (asked, mine) {
                    (Some(asked), Some(mine)) if asked < mine => Some(format!(
                        "{}: {} {name} at revision {asked}, after it had written revision {mine}",
                        self.process.name(),
                        info.verb
                    )),
                    (None, Some(mine)) if info.verb == "create" => Some(format!(
                        "{}: create {name}, after it had written it at revision {mine}",
                        self.process.name()
                    )),
                    _ => None,
                }
            } else {
                None
            }
        };
        self.hub.state().stale.extend(stale);
        Ok(Response::from_parts(parts, body_from_bytes(bytes)))
    }
}

/// Returns true for reviews and token requests.
fn changes_nothing(info: &RequestInfo) -> bool {
    info.resource.ends_with("reviews") || info.subresource == "token"
}

fn opportunity(method: &Method, info: &RequestInfo) -> Opportunity {
    match (method, info.verb.as_str()) {
        (_, "watch") => Opportunity::Watch,
        (&Method::GET | &Method::HEAD, _) => Opportunity::Read,
        (&Method::POST, _) => Opportunity::Create,
        _ => Opportunity::Write,
    }
}

async fn read(request: Request<Body>) -> Result<(Request<Body>, Option<Bytes>), BoxError> {
    let (parts, body) = request.into_parts();
    let bytes = body.collect().await?.to_bytes();
    Ok((Request::from_parts(parts, body_from_bytes(bytes.clone())), Some(bytes)))
}

fn lost() -> BoxError {
    "connection reset by peer (injected)".into()
}

pub(crate) fn failure(status: &ApiStatus) -> Response<Body> {
    let body = serde_json::to_vec(status.status()).unwrap_or_default();
    let mut response = Response::new(body_from_bytes(body));
    *response.status_mut() = StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if status.code() == 429 {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

impl<B> tower_service::Service<Request<B>> for Service
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        Box::pin(self.clone().exchange(request.map(|b| b.map_err(Into::into).boxed_unsync())))
    }
}
