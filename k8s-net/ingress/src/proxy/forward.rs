//! A request's way: from the table to an endpoint and back.

#![expect(clippy::disallowed_methods, reason = "timeouts of connections are in real time")]

use std::{
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request::Parts,
    uri::PathAndQuery,
};
use http_body::Body as _;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use k8s_core::random;
use tokio::time::Instant;

use super::{
    Shared,
    ask::{ask, is_plain},
    body::{BodyError, RequestBody, ResponseBody, Sending},
    pool::{Connection, Key, Lease},
    record::Record,
    rest::{Activity, Busy},
    tunnel,
};
use crate::{
    backend::Backend,
    headers::{self, Client},
    paths::normalize,
    rewrite::{TooLong, rewritten},
    settings::{Affinity, Settings},
    table::{Route, Table},
};

/// Attempts at most, as in ingress-nginx.
const MOST_ATTEMPTS: usize = 3;

/// The client's side of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    /// The name that the handshake asked for; `None` without TLS.
    pub(crate) tls: Option<Option<Arc<str>>>,
    /// Traffic of its connection.
    pub(crate) activity: Option<Arc<Activity>>,
}

/// Returns an answer with its status as text.
pub(crate) fn plain(status: StatusCode) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::text(&format!("{status}\n")));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Returns an answer that leads elsewhere.
pub(crate) fn redirect(status: StatusCode, target: &str) -> Response<ResponseBody> {
    let mut response = plain(status);
    match HeaderValue::try_from(target) {
        Ok(target) => drop(response.headers_mut().insert(header::LOCATION, target)),
        Err(_) => return plain(StatusCode::BAD_REQUEST),
    }
    response
}

/// Answers a request.
pub(crate) async fn answer(
    shared: Arc<Shared>,
    peer: Peer,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let mut record = Record::new(shared.metrics.clone(), peer.address, &request);
    record.busy = peer.activity.clone().map(|activity| Busy::new(activity, !request.body().is_end_stream()));
    match serve(&shared, &peer, request, &mut record).await {
        Ok(Served::Answer(response, lease, patience)) => {
            record.status = response.status().as_u16();
            response.map(|body| ResponseBody::passing(body, patience, lease, record))
        }
        Ok(Served::Upgrade(response, client, backend, silence)) => {
            record.status = response.status().as_u16();
            tunnel::join(client, backend, silence, record);
            response
        }
        Err(mut response) => {
            record.status = response.status().as_u16();
            if let ResponseBody::Text(_, place) = response.body_mut() {
                *place = Some(record);
            }
            *response
        }
    }
}

enum Served {
    Answer(Response<Incoming>, Option<Lease>, Duration),
    Upgrade(Response<ResponseBody>, OnUpgrade, OnUpgrade, Duration),
}

type Refusal = Box<Response<ResponseBody>>;

fn refuse<T>(status: StatusCode) -> Result<T, Refusal> {
    Err(Box::new(plain(status)))
}

async fn serve(
    shared: &Arc<Shared>,
    peer: &Peer,
    mut request: Request<Incoming>,
    record: &mut Record,
) -> Result<Served, Refusal> {
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        return refuse(StatusCode::METHOD_NOT_ALLOWED);
    }
    if headers::is_loop(request.headers(), &shared.mark) {
        return refuse(StatusCode::LOOP_DETECTED);
    }
    let Some(host) = headers::host_of(request.uri(), request.headers()) else {
        return refuse(StatusCode::BAD_REQUEST);
    };
    let table = shared.table();
    let route = {
        let name = headers::name_of(host.to_str().unwrap_or_default());
        let Some(path) = normalize(request.uri().path()) else { return refuse(StatusCode::BAD_REQUEST) };
        if is_misdirected(&table, peer, &name) {
            return refuse(StatusCode::MISDIRECTED_REQUEST);
        }
        let Some(route) = table.route(&name, &path) else { return refuse(StatusCode::NOT_FOUND) };
        record.route = Some(route.clone());
        let settings = &route.settings;
        let has_certificate = || table.certificate(&name).is_some();
        let secure = settings.force_ssl_redirect || (settings.ssl_redirect && has_certificate());
        if peer.tls.is_none() && secure && !claims_tls(shared, &request) {
            let target = request.uri().path_and_query().map(PathAndQuery::as_str).unwrap_or("/");
            return Err(Box::new(redirect(
                StatusCode::PERMANENT_REDIRECT,
                &format!("https://{name}{target}"),
            )));
        }
        // The old path is never sent instead: it may lead to what the new one hides.
        match rewritten(route, &path, request.uri().query()) {
            Ok(None) => {}
            Ok(Some(path)) => {
                // The new path is percent-encoded already.
                let mut parts = request.uri().clone().into_parts();
                parts.path_and_query = Some(path);
                let Ok(uri) = Uri::from_parts(parts) else { return refuse(StatusCode::BAD_REQUEST) };
                request.extensions_mut().insert(Rewritten(uri));
            }
            Err(TooLong) => return refuse(StatusCode::URI_TOO_LONG),
        }
        route.clone()
    };
    drop(table);
    let settings = &route.settings;
    let Ok(slot) = shared.limiter.enter(&route.ingress, peer.address, &settings.limits, Instant::now())
    else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE);
    };
    record.slot = slot;
    if settings
        .allowed
        .as_ref()
        .is_some_and(|ranges| !ranges.iter().any(|range| range.contains(&peer.address)))
    {
        return refuse(StatusCode::FORBIDDEN);
    }
    let length = request.body().size_hint().exact();
    if settings.body_size.is_some_and(|most| length.is_some_and(|length| length > most)) {
        return refuse(StatusCode::PAYLOAD_TOO_LARGE);
    }
    let upgraded = (request.version() == Version::HTTP_11).then(|| hyper::upgrade::on(&mut request));
    let (mut parts, body) = request.into_parts();
    let upgrade = headers::strip(&mut parts.headers);
    let client =
        Client { address: peer.address, is_tls: peer.tls.is_some(), trusted: shared.trusts(peer.address) };
    for name in [header::CONTENT_LENGTH, header::EXPECT] {
        parts.headers.remove(name);
    }
    headers::join_cookies(&mut parts.headers);
    headers::forward(&mut parts.headers, &client, &host, || random::uuid().simple().to_string());
    headers::mark(&mut parts.headers, &shared.mark);
    if let Some(auth) = &settings.auth {
        let target = parts.uri.path_and_query().map(PathAndQuery::as_str).unwrap_or("/");
        let scheme = if client.is_tls { "https" } else { "http" };
        let url = format!("{scheme}://{}{target}", host.to_str().unwrap_or_default());
        let passed =
            ask(&shared.pool, &shared.config.refused, auth, &parts.headers, &parts.method, &url).await?;
        // The client's own are not believed.
        for name in auth.response_headers.iter().filter(|name| is_plain(name)) {
            parts.headers.remove(name);
        }
        for (name, value) in passed {
            parts.headers.append(name, value);
        }
    }
    if let Some(protocol) = upgrade.as_ref().filter(|_| upgraded.is_some()) {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, protocol.clone());
    }
    if let Some(Rewritten(uri)) = parts.extensions.remove() {
        parts.uri = uri;
    }
    let draw = |below: u32| random::range(0..below.max(1));
    let canary = route.canaries.iter().find(|(rule, _)| rule.takes(&parts.headers, draw));
    let backend = canary.map_or(&route.backend, |(_, backend)| backend);
    let wanted = Wanted { route: &route, backend, host: &host };
    let sent = send(shared, &wanted, parts, body, record).await?;
    Ok(finish(sent, settings, upgraded, &client))
}

/// The path that a backend gets.
#[derive(Clone)]
struct Rewritten(Uri);

/// Returns true if a proxy in front, which is trusted, says that its client has TLS.
fn claims_tls(shared: &Shared, request: &Request<Incoming>) -> bool {
    shared.config.trust_forwarded && request.headers().get("x-forwarded-proto").is_some_and(|p| p == "https")
}

/// Returns true if a connection was made for a name with another certificate than that of the host.
fn is_misdirected(table: &Table, peer: &Peer, host: &str) -> bool {
    let Some(Some(name)) = &peer.tls else { return false };
    if **name == *host {
        return false;
    }
    match (table.certificate(name), table.certificate(host)) {
        (Some(of_name), Some(of_host)) => !Arc::ptr_eq(of_name, of_host),
        (None, None) => false,
        _ => true,
    }
}

/// A request's destination.
struct Wanted<'a> {
    route: &'a Route,
    backend: &'a Backend,
    host: &'a HeaderValue,
}

/// An answer with its connection, and the cookie that leads to its endpoint.
struct Sent {
    response: Response<Incoming>,
    lease: Option<Lease>,
    cookie: Option<String>,
}

/// Sends a request to an endpoint. One that cannot be connected to is passed over; a request that may be
/// repeated is sent again if the connection breaks.
async fn send(
    shared: &Arc<Shared>,
    wanted: &Wanted<'_>,
    parts: Parts,
    body: Incoming,
    record: &mut Record,
) -> Result<Sent, Refusal> {
    let settings = &wanted.route.settings;
    let (mut body, sending) = if body.is_end_stream() {
        (Some(RequestBody::empty()), None)
    } else {
        let (body, sending) = RequestBody::passing(body, settings.body_size, settings.send_timeout);
        if let Some(busy) = &mut record.busy {
            busy.sending = Some(sending.clone());
        }
        (Some(body), Some(sending))
    };
    let repeatable =
        sending.is_none() && parts.method.is_idempotent() && !parts.headers.contains_key(header::UPGRADE);
    let bound = settings.affinity.as_ref().and_then(|affinity| bound(wanted.backend, affinity, &parts));
    let mut tried: Vec<SocketAddr> = Vec::new();
    let mut status = StatusCode::BAD_GATEWAY;
    let mut fresh = false;
    while tried.len() < MOST_ATTEMPTS {
        let chosen = bound.filter(|bound| !tried.contains(bound)).or_else(|| wanted.backend.choose(&tried));
        let Some(endpoint) = chosen else { return refuse(StatusCode::SERVICE_UNAVAILABLE) };
        if !tried.is_empty() {
            record.retried();
        }
        record.endpoint = Some(endpoint);
        let key = Key { endpoint, protocol: settings.protocol };
        let connection = match shared.pool.connect(key, settings.connect_timeout, fresh).await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::debug!(%endpoint, %error, "an endpoint does not answer");
                tried.push(endpoint);
                status = match error.kind() {
                    io::ErrorKind::TimedOut => StatusCode::GATEWAY_TIMEOUT,
                    _ => StatusCode::BAD_GATEWAY,
                };
                continue;
            }
        };
        let Some(body_now) = body.take() else { break };
        let reused = connection.is_reused();
        let request = request(&parts, wanted.host, key, body_now);
        match exchange(shared, connection, key, request, sending.clone(), settings).await {
            Ok((response, lease)) => {
                let cookie =
                    settings.affinity.as_ref().filter(|_| bound != Some(endpoint)).map(|_| mark(endpoint));
                return Ok(Sent { response, lease, cookie });
            }
            Err(Failed::TooLarge) => return refuse(StatusCode::PAYLOAD_TOO_LARGE),
            Err(Failed::ClientSilent) => return refuse(StatusCode::REQUEST_TIMEOUT),
            Err(Failed::Silent) => {
                status = StatusCode::GATEWAY_TIMEOUT;
                body = repeatable.then(RequestBody::empty);
                tried.push(endpoint);
            }
            Err(Failed::Broken(unsent)) => {
                status = StatusCode::BAD_GATEWAY;
                body = unsent.or_else(|| repeatable.then(RequestBody::empty));
                // An idle connection that the endpoint closed says nothing about the endpoint.
                if reused && !fresh {
                    fresh = true;
                } else {
                    tried.push(endpoint);
                }
            }
        }
        if body.is_none() {
            break;
        }
    }
    refuse(status)
}

/// Returns the endpoint that a client's cookie names.
fn bound(backend: &Backend, affinity: &Affinity, parts: &Parts) -> Option<SocketAddr> {
    let cookie = headers::cookie(&parts.headers, &affinity.name)?;
    backend.endpoints.iter().copied().find(|endpoint| mark(*endpoint) == cookie)
}

/// Returns the cookie's value for an endpoint.
fn mark(endpoint: SocketAddr) -> String {
    let hash = |salt: u64| BuildHasherDefault::<DefaultHasher>::new().hash_one((salt, endpoint));
    format!("{:016x}{:016x}", hash(1), hash(2))
}

/// Makes the request for an endpoint.
fn request(parts: &Parts, host: &HeaderValue, key: Key, body: RequestBody) -> Request<RequestBody> {
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.headers_mut() = parts.headers.clone();
    let path = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let scheme = if key.protocol.is_tls() { "https" } else { "http" };
    *request.uri_mut() = match key.protocol.is_http2() {
        true => {
            request.headers_mut().remove(header::HOST);
            // gRPC servers want it; it says nothing about this connection.
            request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
            let uri = Uri::builder().scheme(scheme).authority(host.as_bytes()).path_and_query(path.clone());
            uri.build().unwrap_or_else(|_| path.into())
        }
        false => {
            request.headers_mut().insert(header::HOST, host.clone());
            path.into()
        }
    };
    *request.version_mut() = if key.protocol.is_http2() { Version::HTTP_2 } else { Version::HTTP_11 };
    request
}

enum Failed {
    /// The body is larger than allowed.
    TooLarge,
    /// The client does not go on with the body.
    ClientSilent,
    /// The endpoint does not answer in time.
    Silent,
    /// The connection broke; with the body, if nothing was sent.
    Broken(Option<RequestBody>),
}

/// Sends a request and waits for the beginning of the answer. The time counts from the last part of the
/// request.
async fn exchange(
    shared: &Arc<Shared>,
    connection: Connection,
    key: Key,
    request: Request<RequestBody>,
    sending: Option<Arc<Sending>>,
    settings: &Settings,
) -> Result<(Response<Incoming>, Option<Lease>), Failed> {
    let sent = connection.send(&shared.pool, key, request, sending.clone());
    tokio::pin!(sent);
    let mut frames = 0;
    loop {
        tokio::select! {
            biased;
            answer = &mut sent => return answer.map_err(|unsent| {
                tracing::debug!(endpoint = %key.endpoint, error = %unsent.error, "no answer");
                if sending.as_ref().is_some_and(|s| s.is_too_large.load(Ordering::Relaxed)) {
                    return Failed::TooLarge;
                }
                let cause = std::error::Error::source(&unsent.error).and_then(|e| e.downcast_ref::<BodyError>());
                match cause {
                    Some(BodyError::Silent) => Failed::ClientSilent,
                    _ => Failed::Broken(unsent.request.map(Request::into_body)),
                }
            }),
            () = tokio::time::sleep(settings.read_timeout) => {
                let now = sending.as_ref().map_or(0, |s| s.frames.load(Ordering::Relaxed));
                if std::mem::replace(&mut frames, now) == now {
                    return Err(Failed::Silent);
                }
            }
        }
    }
}

/// Makes the client's answer of an endpoint's.
fn finish(sent: Sent, settings: &Settings, upgraded: Option<OnUpgrade>, client: &Client) -> Served {
    let Sent { mut response, lease, cookie } = sent;
    if response.headers().contains_key(header::TRANSFER_ENCODING) {
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = upgraded
    {
        let backend = hyper::upgrade::on(&mut response);
        let response = response.map(|_| ResponseBody::text(""));
        return Served::Upgrade(response, client, backend, settings.read_timeout);
    }
    headers::strip(response.headers_mut());
    *response.version_mut() = Version::HTTP_11;
    if let (Some(cookie), Some(affinity)) = (cookie, &settings.affinity) {
        let secure = if client.is_tls || affinity.secure { "; Secure" } else { "" };
        let text = format!("{}={cookie}{}{secure}", affinity.name, affinity.attributes);
        if let Ok(value) = HeaderValue::try_from(text) {
            response.headers_mut().append(header::SET_COOKIE, value);
        }
    }
    Served::Answer(response, lease, settings.read_timeout)
}
