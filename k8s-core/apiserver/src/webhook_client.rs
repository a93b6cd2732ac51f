//! Client of servers that extend this one: aggregated API servers and webhooks, by URL or Service.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::{body::Incoming, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use k8s_core::client::{Body, body_from_bytes};
use k8s_store::Store;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::{
    tls::{ClientKeys, Stream as Connected, Tls, Trust},
    value::{int_at, str_at},
};

/// Timeout of establishing a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Maximum of open connections to one server between exchanges.
const MOST_IDLE: usize = 8;

/// Reason for which a server cannot be called.
#[derive(Debug)]
pub(crate) enum Unreachable {
    /// It does not exist: a CamelCase reason and a message.
    Nowhere(&'static str, String),
    /// The connection, TLS or HTTP failed; the text has the cause.
    Failed(String),
}

impl std::fmt::Display for Unreachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unreachable::Nowhere(_, why) | Unreachable::Failed(why) => f.write_str(why),
        }
    }
}

/// Address of a server.
#[derive(Clone, Debug)]
enum Place {
    Url { host: String, port: u16 },
    Service { namespace: String, name: String, port: i64 },
}

/// A server to call.
#[derive(Clone)]
pub(crate) struct Callee {
    place: Place,
    /// URL path of a webhook.
    path: String,
    tls: Tls,
    /// Open connections between exchanges, shared by the clones.
    idle: Arc<Mutex<Vec<SendRequest<Body>>>>,
}

impl std::fmt::Debug for Callee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Callee").field("place", &self.place).field("path", &self.path).finish_non_exhaustive()
    }
}

/// Returns TLS settings for an identity and a CA bundle (base64 of PEM, as JSON represents bytes). Empty: the
/// system's CAs.
fn tls(bundle: &str, insecure: bool, identity: Option<&ClientKeys>) -> Result<Tls, String> {
    let trust = match bundle {
        _ if insecure => Trust::Anyone,
        "" => Trust::System,
        bundle => Trust::Pem(STANDARD.decode(bundle).map_err(|e| format!("caBundle: {e}"))?),
    };
    Tls::new(&trust, identity)
}

/// Returns TLS settings that accept any certificate, for servers that nobody vouches for.
pub(crate) fn unverified() -> Result<Tls, String> {
    Tls::new(&Trust::Anyone, None)
}

/// Returns a path without doubled slashes, `.`, `..` and a slash at its end, as upstream's client sends it: Go's
/// servers answer others with a redirection.
fn clean(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/').filter(|part| !matches!(*part, "" | ".")) {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    format!("/{}", parts.join("/"))
}

impl Callee {
    /// Resolves a Service (`{namespace, name, port, path}`) with its TLS verification.
    pub(crate) fn service(
        service: &Value,
        bundle: &str,
        insecure: bool,
        identity: Option<&ClientKeys>,
    ) -> Result<Self, String> {
        let place = Place::Service {
            namespace: str_at(service, "/namespace").into(),
            name: str_at(service, "/name").into(),
            port: int_at(service, "/port").unwrap_or(443),
        };
        let (path, tls) = (clean(str_at(service, "/path")), tls(bundle, insecure, identity)?);
        Ok(Callee { place, path, tls, idle: Arc::default() })
    }

    /// Resolves a webhook's client configuration: `{url | service, caBundle}`.
    pub(crate) fn webhook(config: &Value) -> Result<Self, String> {
        let bundle = str_at(config, "/caBundle");
        if config.get("service").is_some() {
            return Callee::service(&config["service"], bundle, false, None);
        }
        let url: http::Uri = str_at(config, "/url").parse().map_err(|e| format!("url: {e}"))?;
        let host = url.host().ok_or("url: no host")?.trim_matches(['[', ']']).to_owned();
        let place = Place::Url { host, port: url.port_u16().unwrap_or(443) };
        // A webhook's URL has no query.
        let path = clean(url.path());
        Ok(Callee { place, path, tls: tls(bundle, false, None)?, idle: Arc::default() })
    }

    /// Returns the path of a webhook; default `/`.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Returns the URL of a path, for messages.
    pub(crate) fn url(&self, path: &str) -> String {
        match &self.place {
            Place::Url { host, port: 443 } => format!("https://{host}{path}"),
            Place::Url { host, port } => format!("https://{host}:{port}{path}"),
            Place::Service { namespace, name, port } => {
                format!("https://{name}.{namespace}.svc:{port}{path}")
            }
        }
    }

    /// Opens a connection. Returns it with the host's name.
    async fn open(&self, store: &Store) -> Result<(String, Connected), Unreachable> {
        let failed = |e: &dyn std::fmt::Display| Unreachable::Failed(e.to_string());
        let (name, tcp) = match &self.place {
            Place::Url { host, port } => (host.clone(), connect((host.as_str(), *port)).await?),
            Place::Service { namespace, name, port } => {
                let tcp = match locate(store, namespace, name, *port)? {
                    Location::Address(address) => connect(address).await?,
                    Location::Name(host, port) => connect((host.as_str(), port)).await?,
                };
                (format!("{name}.{namespace}.svc"), tcp)
            }
        };
        let tls = tokio::time::timeout(CONNECT, self.tls.connect(&name, tcp)).await;
        let tls = tls.map_err(|_| failed(&"TLS handshake timeout"))?.map_err(|e| failed(&e))?;
        Ok((name, tls))
    }

    /// Sends a request over a new connection; supports upgrades.
    pub(crate) async fn call(
        &self,
        store: &Store,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Unreachable> {
        let (name, tls) = self.open(store).await?;
        if let Ok(host) = HeaderValue::from_str(&name) {
            request.headers_mut().insert(header::HOST, host);
        }
        let answer = crate::proxy::exchange(TokioIo::new(tls), request).await;
        answer.map_err(|e| Unreachable::Failed(e.to_string()))
    }

    /// Posts a JSON body and reads the answer, of at most `most` bytes. Connections are used again.
    ///
    /// # Errors
    /// The reason for which there is no answer.
    pub(crate) async fn post(
        &self,
        store: &Store,
        path: &str,
        body: &[u8],
        most: usize,
    ) -> Result<(StatusCode, Bytes), String> {
        let request = |host: &str| {
            Request::post(path)
                .header(header::HOST, host)
                .header(header::CONTENT_TYPE, "application/json")
                .header(header::ACCEPT, "application/json")
                .body(body_from_bytes(body.to_vec()))
                .map_err(|e| e.to_string())
        };
        let host = match &self.place {
            Place::Url { host, .. } => host.clone(),
            Place::Service { namespace, name, .. } => format!("{name}.{namespace}.svc"),
        };
        while let Some(mut sender) = self.take_idle() {
            // A server may close a connection at any time: then the next one is tried.
            if sender.ready().await.is_err() {
                continue;
            }
            match sender.send_request(request(&host)?).await {
                Ok(response) => return self.finish(sender, response, most).await,
                Err(e) if e.is_canceled() || e.is_incomplete_message() || e.is_closed() => {}
                Err(e) => return Err(e.to_string()),
            }
        }
        let (host, tls) = self.open(store).await.map_err(|e| e.to_string())?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(|e| e.to_string())?;
        #[expect(clippy::disallowed_methods, reason = "the task ends with its connection")]
        tokio::spawn(connection);
        let response = sender.send_request(request(&host)?).await.map_err(|e| cause(&e))?;
        self.finish(sender, response, most).await
    }

    fn take_idle(&self) -> Option<SendRequest<Body>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Reads an answer, and keeps the connection.
    async fn finish(
        &self,
        sender: SendRequest<Body>,
        response: Response<Incoming>,
        most: usize,
    ) -> Result<(StatusCode, Bytes), String> {
        let status = response.status();
        let body = whole(response.into_body().map_err(Into::into).boxed_unsync(), most).await?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|sender| !sender.is_closed());
        if idle.len() < MOST_IDLE {
            idle.push(sender);
        }
        Ok((status, body))
    }
}

/// An error with its cause, which hyper's message leaves out.
fn cause(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Reads a body of at most `most` bytes. Boxed, because rustc cannot prove that a future over the body's
/// boxed error is `Send`.
pub(crate) fn whole(body: Body, most: usize) -> BoxFuture<'static, Result<Bytes, String>> {
    let all = http_body_util::Limited::new(body, most).collect();
    all.map(|done| done.map(|b| b.to_bytes()).map_err(|e| e.to_string())).boxed()
}

async fn connect(to: impl tokio::net::ToSocketAddrs) -> Result<TcpStream, Unreachable> {
    match tokio::time::timeout(CONNECT, TcpStream::connect(to)).await {
        Ok(Ok(tcp)) => {
            // An optimization: the connection works without it.
            let _ = tcp.set_nodelay(true);
            Ok(tcp)
        }
        Ok(Err(e)) => Err(Unreachable::Failed(e.to_string())),
        Err(_) => Err(Unreachable::Failed("connect: i/o timeout".into())),
    }
}

enum Location {
    Address(SocketAddr),
    Name(String, u16),
}

/// Returns the location of a Service's port.
fn locate(store: &Store, namespace: &str, name: &str, port: i64) -> Result<Location, Unreachable> {
    let stored = store.get("services", &format!("{namespace}/{name}"));
    let service: Option<Value> = stored.and_then(|s| serde_json::from_slice(&s.json).ok());
    let Some(service) = service else {
        let why = format!("service/{name} in \"{namespace}\" is not present");
        return Err(Unreachable::Nowhere("ServiceNotFound", why));
    };
    if str_at(&service, "/spec/type") == "ExternalName" {
        let port = u16::try_from(port).unwrap_or(443);
        return Ok(Location::Name(str_at(&service, "/spec/externalName").into(), port));
    }
    let ports = crate::value::array_at(&service, "/spec/ports");
    let Some(chosen) = ports.iter().find(|p| int_at(p, "/port") == Some(port)) else {
        let why = format!("service/{name} in \"{namespace}\" is not listening on port {port}");
        return Err(Unreachable::Nowhere("ServicePortError", why));
    };
    let wanted = str_at(chosen, "/name");
    crate::proxy::endpoint(store, namespace, name, wanted).map(Location::Address).ok_or_else(|| {
        let why = format!(
            "endpoints for service/{name} in \"{namespace}\" have no addresses with port name \"{wanted}\""
        );
        Unreachable::Nowhere("MissingEndpoints", why)
    })
}

#[cfg(test)]
mod path_tests {
    use super::*;

    #[test]
    fn paths_are_sent_as_gos_client_sends_them() {
        for (given, sent) in [
            ("", "/"),
            ("/", "/"),
            ("//validate-x", "/validate-x"),
            ("/a//b/", "/a/b"),
            ("/a/./../b", "/b"),
            ("/../..", "/"),
        ] {
            assert_eq!(clean(given), sent, "{given:?}");
        }
        let config = serde_json::json!({"url": "https://127.0.0.1:9443//validate"});
        assert_eq!(Callee::webhook(&config).unwrap().path(), "/validate");
    }
}
