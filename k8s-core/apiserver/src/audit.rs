//! Audit: events about requests, as a policy asks for them.
//!
//! Flow: after authentication the policy's first matching rule gives the level ([`Policy`]). A trail
//! collects a request's facts and hands an [`Event`] to each [`Sink`] at every stage that is not omitted.
//! Guarantees: without a policy requests cost nothing more. A body is kept only at a level that asks for it;
//! credentials in headers are never recorded.
//!
//! Not here: bodies of proxied and streamed connections, and of aggregated servers.

mod body;
mod event;
mod log;
mod policy;
mod truncate;
mod webhook;

use std::{
    any::Any,
    collections::BTreeMap,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use k8s_core::{
    client::{Body, body_from_bytes},
    clock::Clock,
    status::{ApiStatus, Reason},
};
use k8s_metrics::{Counter, Family, Registry};
use serde_json::{Value, json};

pub use self::{
    event::{Event, EventUser, ObjectRef},
    log::{Format, Log, LogSettings, Mode},
    policy::{Level, Policy, PolicyError, Stage},
    truncate::Truncation,
    webhook::{AuditWebhookSettings, Throttle, Webhook},
};
use crate::{
    limits::Class,
    request::{PeerAddress, PeerCertificate, RequestInfo},
    user::User,
};

/// Longest recorded `User-Agent`, bytes.
const LONGEST_AGENT: usize = 1024;
/// Annotation of an event whose objects are left off for their size.
const TRUNCATED: (&str, &str) = ("audit.k8s.io/truncated", "true");
/// Longest response body that is kept, bytes. A longer one is left off, and the event says so.
const LONGEST_BODY: usize = 10 << 20;

/// An audit backend.
///
/// ```
/// use std::{io, sync::{Arc, Mutex}};
/// use k8s_apiserver::{ApiServer, User, audit::{Event, Policy, Sink}};
/// use k8s_core::api::Pod;
/// use k8s_store::Store;
///
/// struct Lines(Arc<Mutex<Vec<String>>>);
///
/// impl Sink for Lines {
///     fn name(&self) -> &'static str { "lines" }
///     fn record(&self, event: &Event) -> io::Result<()> {
///         self.0.lock().unwrap().push(format!("{} {} {}", event.user.username, event.verb, event.stage));
///         Ok(())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let policy = "{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Metadata, verbs: [list]}]}";
/// let lines = Arc::new(Mutex::new(Vec::new()));
/// let server = ApiServer::builder(Store::memory()).audit_policy(Policy::parse(policy)?);
/// let server = server.audit_sink(Lines(lines.clone())).build().await?;
/// lines.lock().unwrap().clear();
/// server.client_as(User::admin()).namespaced::<Pod>("default").list(&Default::default()).await?;
/// let want = ["system:admin list RequestReceived", "system:admin list ResponseComplete"];
/// assert_eq!(*lines.lock().unwrap(), want);
/// # Ok(()) }
/// ```
pub trait Sink: Send + Sync + 'static {
    /// Returns the name of the backend in metrics.
    fn name(&self) -> &'static str;

    /// Records an event. It is called on the request's task and must not wait for long.
    ///
    /// # Errors
    /// The event could not be recorded, and a request that is not handled yet is refused with 500.
    fn record(&self, event: &Event) -> io::Result<()>;

    /// Takes the counter of events that are lost (`apiserver_audit_error_total`). Default: nothing.
    fn count_errors(&self, counter: Counter) {
        drop(counter);
    }
}

/// The policy and the backends of a server.
pub(crate) struct Auditor {
    policy: Policy,
    sinks: Vec<Arc<dyn Sink>>,
    clock: Clock,
    events: Counter,
    rejected: Counter,
    levels: Family<1, Counter>,
}

impl Auditor {
    /// Creates an auditor, with upstream's metrics.
    pub(crate) fn new(policy: Policy, sinks: Vec<Arc<dyn Sink>>, clock: Clock, metrics: &Registry) -> Self {
        let errors: Family<1, Counter> = metrics.register(
            "apiserver_audit_error_total",
            "Counter of audit events that failed to be audited properly. Plugin identifies the plugin affected by the error.",
            Family::new(["plugin"]),
        );
        for sink in &sinks {
            sink.count_errors(errors.get_or_create(&[sink.name()]));
        }
        Auditor {
            policy,
            sinks,
            clock,
            events: metrics.register(
                "apiserver_audit_event_total",
                "Counter of audit events generated and sent to the audit backend.",
                Counter::default(),
            ),
            rejected: metrics.register(
                "apiserver_audit_requests_rejected_total",
                "Counter of apiserver requests rejected due to an error in audit logging backend.",
                Counter::default(),
            ),
            levels: metrics.register(
                "apiserver_audit_level_total",
                "Counter of policy levels for audit events (1 per request).",
                Family::new(["level"]),
            ),
        }
    }

    /// Returns the trail of a request whose user is known; `None` if the policy does not ask for it.
    /// `user` is `None` if authentication failed.
    pub(crate) fn trail<B>(
        self: &Arc<Self>,
        request: &Request<B>,
        id: &str,
        user: Option<&User>,
        info: &RequestInfo,
    ) -> Option<Trail> {
        let treatment = self.policy.treatment(user, info);
        self.levels.get_or_create(&[treatment.level.name()]).inc();
        if treatment.level == Level::None {
            return None;
        }
        let headers = request.headers();
        let now = self.clock.micro_time();
        let uri = request.uri();
        let event = Event {
            kind: "Event",
            api_version: policy::VERSION,
            level: treatment.level.name(),
            audit_id: id.to_owned(),
            stage: Stage::RequestReceived.name(),
            request_uri: uri.path_and_query().map_or_else(|| uri.path(), |whole| whole.as_str()).to_owned(),
            verb: info.verb.clone(),
            user: user.map(EventUser::from).unwrap_or_default(),
            impersonated_user: None,
            source_ips: source_ips(headers, request.extensions().get::<PeerAddress>().map(|peer| peer.0)),
            user_agent: user_agent(headers),
            object_ref: info.is_resource.then(|| ObjectRef::from(info)),
            response_status: None,
            request_object: None,
            response_object: None,
            request_received_timestamp: now.clone(),
            stage_timestamp: now,
            annotations: BTreeMap::new(),
        };
        Some(Trail(Arc::new(Inner {
            auditor: self.clone(),
            level: treatment.level,
            omit_stages: treatment.omit_stages,
            omit_managed_fields: treatment.omit_managed_fields,
            long: matches!(Class::of(info), Class::LongRunning),
            event: Mutex::new(event),
            body: Mutex::default(),
        })))
    }
}

/// The events of one request. A clone is the same.
#[derive(Clone)]
pub(crate) struct Trail(Arc<Inner>);

struct Inner {
    auditor: Arc<Auditor>,
    level: Level,
    omit_stages: Vec<Stage>,
    omit_managed_fields: bool,
    /// True for watches, logs, connections.
    long: bool,
    event: Mutex<Event>,
    /// Body of the request.
    body: Mutex<Vec<Bytes>>,
}

/// Records the end of a request when it is dropped.
#[derive(Clone)]
pub(crate) struct Completion(#[expect(dead_code, reason = "dropped with the connection")] Arc<OnDrop>);

struct OnDrop(Trail);

impl Drop for OnDrop {
    fn drop(&mut self) {
        let _ = self.0.record(Stage::ResponseComplete);
    }
}

impl std::fmt::Debug for Completion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Completion")
    }
}

impl Trail {
    fn event(&self) -> MutexGuard<'_, Event> {
        self.0.event.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a stage, if the policy does not omit it.
    fn record(&self, stage: Stage) -> io::Result<()> {
        if self.0.omit_stages.contains(&stage) {
            return Ok(());
        }
        let auditor = &self.0.auditor;
        let mut event = self.event();
        event.stage = stage.name();
        if stage != Stage::RequestReceived {
            event.stage_timestamp = auditor.clock.micro_time();
        }
        auditor.events.inc();
        let mut all = Ok(());
        for sink in &auditor.sinks {
            if let Err(error) = sink.record(&event) {
                all = Err(error);
            }
        }
        all
    }

    /// Records that the request was received.
    ///
    /// # Errors
    /// 500 if a backend must have the event and cannot record it.
    pub(crate) fn received(&self) -> Result<(), ApiStatus> {
        self.record(Stage::RequestReceived).map_err(|_| {
            self.0.auditor.rejected.inc();
            let why = "Internal error occurred: failed to store audit event";
            ApiStatus::of(Reason::InternalError, why)
        })
    }

    /// Records that authentication failed.
    pub(crate) fn unauthenticated<B>(&self, request: &Request<B>) {
        let message = attempted(request);
        self.event().response_status =
            Some(json!({"metadata": {}, "message": message, "code": StatusCode::UNAUTHORIZED.as_u16()}));
        let _ = self.record(Stage::ResponseStarted);
    }

    /// Notes the user that the request impersonates.
    pub(crate) fn impersonates(&self, user: &User) {
        self.event().impersonated_user = Some(user.into());
    }

    /// Adds annotations. The first value of a key stays.
    pub(crate) fn annotate(&self, all: impl IntoIterator<Item = (String, String)>) {
        let mut event = self.event();
        for (key, value) in all {
            event.annotations.entry(key).or_insert(value);
        }
    }

    /// Returns the request with a body that is kept as it is read, if the events need it.
    pub(crate) fn observe(&self, request: Request<Body>, info: &RequestInfo) -> Request<Body> {
        let writes =
            matches!(info.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection");
        let objects = matches!(info.verb.as_str(), "create" | "update");
        let needed = if self.0.level >= Level::Request { writes } else { objects };
        if !needed || self.0.long || !info.is_resource {
            return request;
        }
        request.map(|body| body::Kept::new(body, self.clone()).boxed_unsync())
    }

    /// Keeps a part of the request's body.
    fn keep(&self, part: Bytes) {
        self.0.body.lock().unwrap_or_else(PoisonError::into_inner).push(part);
    }

    /// Notes the request's object.
    fn note_request(&self, headers: &HeaderMap) {
        let body = std::mem::take(&mut *self.0.body.lock().unwrap_or_else(PoisonError::into_inner)).concat();
        let Some(mut object) = body::decoded(headers, &body) else { return };
        let mut event = self.event();
        let creates = matches!(event.verb.as_str(), "create" | "update");
        if let Some(to) = event.object_ref.as_mut().filter(|_| creates) {
            let fields = [
                (&mut to.namespace, "namespace"),
                (&mut to.name, "name"),
                (&mut to.uid, "uid"),
                (&mut to.resource_version, "resourceVersion"),
            ];
            for (field, name) in fields {
                if field.is_empty() {
                    object["metadata"][name].as_str().unwrap_or_default().clone_into(field);
                }
            }
        }
        if self.0.level >= Level::Request {
            if self.0.omit_managed_fields {
                body::without_managed_fields(&mut object);
            }
            event.request_object = Some(object);
        }
    }

    /// Notes the response's object.
    fn note_response(&self, headers: &HeaderMap, body: &[u8]) {
        let Some(mut object) = body::decoded(headers, body) else { return };
        let mut event = self.event();
        if object["kind"] == "Status" && object["apiVersion"] == "v1" {
            event.response_status = Some(body::bare_status(&object));
        }
        if self.0.level >= Level::RequestResponse {
            if self.0.omit_managed_fields {
                body::without_managed_fields(&mut object);
            }
            event.response_object = Some(object);
        }
    }

    /// Notes that the response's object is left off for its size.
    fn truncated(&self) {
        self.annotate([(TRUNCATED.0.to_owned(), TRUNCATED.1.to_owned())]);
    }

    /// Records that the handler panicked.
    pub(crate) fn panicked(&self, headers: &HeaderMap, panic: &(dyn Any + Send)) {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic");
        self.note_request(headers);
        self.event().response_status = Some(json!({
            "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
            "message": format!("APIServer panic'd: {text}"),
        }));
        let _ = self.record(Stage::Panic);
    }

    /// Records that the request was refused with a status.
    pub(crate) fn refused(&self, headers: &HeaderMap, status: &Value) {
        self.note_request(headers);
        let mut event = self.event();
        event.response_status = Some(body::bare_status(status));
        if self.0.level >= Level::RequestResponse && event.object_ref.is_some() {
            event.response_object = Some(status.clone());
        }
        drop(event);
        self.finish();
    }

    fn finish(&self) {
        if self.0.long {
            let _ = self.record(Stage::ResponseStarted);
        }
        let _ = self.record(Stage::ResponseComplete);
    }

    /// Records a response; `foreign` is true for one that is passed on from elsewhere. The end of a response
    /// that is streamed is recorded when its body is consumed or dropped.
    pub(crate) async fn answered(
        &self,
        headers: &HeaderMap,
        response: Response<Body>,
        foreign: bool,
    ) -> Response<Body> {
        self.note_request(headers);
        let code = response.status().as_u16();
        let (is_resource, deletes) = {
            let mut event = self.event();
            event.response_status = Some(json!({"metadata": {}, "code": code}));
            (event.object_ref.is_some(), event.verb.starts_with("delete"))
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let _ = self.record(Stage::ResponseStarted);
            let mut response = response;
            response.extensions_mut().insert(Completion(Arc::new(OnDrop(self.clone()))));
            return response;
        }
        let wanted =
            is_resource && !foreign && !self.0.long && (self.0.level >= Level::RequestResponse || deletes);
        let exact = response.body().size_hint().exact();
        if exact.is_none() || self.0.long {
            if self.0.long {
                let _ = self.record(Stage::ResponseStarted);
            }
            let (parts, body) = response.into_parts();
            let kept = (wanted && self.0.level >= Level::RequestResponse).then(|| parts.headers.clone());
            let body = body::Finishing::new(body, self.clone(), kept);
            return Response::from_parts(parts, body.boxed_unsync());
        }
        let long = exact.is_some_and(|length| length > LONGEST_BODY as u64);
        if !wanted || long {
            if wanted && self.0.level >= Level::RequestResponse {
                self.truncated();
            }
            self.finish();
            return response;
        }
        let (parts, body) = response.into_parts();
        let response = match body.collect().await.map(http_body_util::Collected::to_bytes) {
            Ok(bytes) => {
                self.note_response(&parts.headers, &bytes);
                Response::from_parts(parts, body_from_bytes(bytes))
            }
            // The client sees the same: a body that breaks off at its start.
            Err(error) => {
                let broken = futures::stream::once(async move { Err(error) });
                Response::from_parts(parts, http_body_util::StreamBody::new(broken).boxed_unsync())
            }
        };
        self.finish();
        response
    }
}

/// Returns upstream's message about the credentials of a request that could not be authenticated.
fn attempted<B>(request: &Request<B>) -> String {
    let scheme = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let scheme = scheme.and_then(|value| value.trim().split_once(' ')).map(|(s, _)| s.to_ascii_lowercase());
    let mut tried: Vec<&str> = Vec::new();
    tried.extend(["basic", "bearer"].into_iter().find(|known| scheme.as_deref() == Some(known)));
    tried.extend(request.extensions().get::<PeerCertificate>().map(|_| "x509"));
    match tried.as_slice() {
        [] => "Authentication failed, no credentials provided".to_owned(),
        tried => format!("Authentication failed, attempted: {}", tried.join(", ")),
    }
}

/// Returns the addresses of `X-Forwarded-For` and `X-Real-Ip`, and the peer's last.
fn source_ips(headers: &HeaderMap, peer: Option<IpAddr>) -> Vec<String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let parsed = |part: &str| part.trim().parse::<IpAddr>().ok().map(|address| address.to_canonical());
    let mut all: Vec<IpAddr> = text("x-forwarded-for").split(',').filter_map(parsed).collect();
    all.extend(parsed(text("x-real-ip")).filter(|real| !all.contains(real)));
    all.extend(peer.map(|peer| peer.to_canonical()).filter(|peer| all.last() != Some(peer)));
    all.iter().map(IpAddr::to_string).collect()
}

fn user_agent(headers: &HeaderMap) -> String {
    let agent = headers.get(header::USER_AGENT).map(HeaderValue::as_bytes).unwrap_or_default();
    match agent.get(..LONGEST_AGENT).filter(|_| agent.len() > LONGEST_AGENT) {
        Some(start) => format!("{}...TRUNCATED", String::from_utf8_lossy(start)),
        None => String::from_utf8_lossy(agent).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_addresses_are_those_of_proxies_and_the_peer() {
        for (forwarded, real, peer, want) in [
            ("", "", "10.0.0.1", vec!["10.0.0.1"]),
            ("1.1.1.1, x, 2.2.2.2", "3.3.3.3", "10.0.0.1", vec!["1.1.1.1", "2.2.2.2", "3.3.3.3", "10.0.0.1"]),
            ("1.1.1.1", "1.1.1.1", "1.1.1.1", vec!["1.1.1.1"]),
            ("", "", "::ffff:10.0.0.1", vec!["10.0.0.1"]),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-for", forwarded.parse().unwrap());
            headers.insert("x-real-ip", real.parse().unwrap());
            assert_eq!(source_ips(&headers, peer.parse().ok()), want);
        }
    }

    #[test]
    fn long_agents_are_cut() {
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, "a".repeat(2000).parse().unwrap());
        assert_eq!(user_agent(&headers), format!("{}...TRUNCATED", "a".repeat(1024)));
    }
}
