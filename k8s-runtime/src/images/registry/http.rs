//! An HTTP client for registries: GET with redirects, TLS with the system's CAs, and timeouts on every wait.

#![expect(clippy::disallowed_methods, reason = "the task ends with its response")]

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{self, HeaderValue},
};
use hyper_util::rt::TokioIo;
use k8s_tls::{ClientConfig, Trust};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

use super::config::Tls;

const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(30);
/// Timeout for the next part of a body.
pub(super) const SILENCE: Duration = Duration::from_secs(60);
const REDIRECTS: usize = 8;

/// A response whose body has not been read.
pub(super) type Answer = Response<Incoming>;

fn other(text: impl std::fmt::Display) -> io::Error {
    io::Error::other(text.to_string())
}

/// The settings of a client.
#[derive(Clone, Copy)]
pub(super) struct Http<'a> {
    /// Value of the `User-Agent` header.
    pub(super) user_agent: &'a str,
    /// TLS settings by `host[:port]`.
    pub(super) tls: &'a (dyn Fn(&str) -> Tls + Sync),
}

/// Sends a GET request and follows redirects. `authorization` is sent to the first host only.
pub(super) async fn get(
    http: Http<'_>,
    url: &str,
    authorization: Option<&str>,
    accept: &str,
) -> io::Result<Answer> {
    let mut uri: Uri = url.parse().map_err(|e| other(format!("invalid URL {url:?}: {e}")))?;
    let first = uri.authority().cloned();
    for _ in 0..REDIRECTS {
        let authorization = authorization.filter(|_| uri.authority() == first.as_ref());
        let answer = once(http, &uri, authorization, accept).await?;
        if !matches!(
            answer.status(),
            StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT
        ) {
            return Ok(answer);
        }
        let target = answer.headers().get(header::LOCATION).and_then(|l| l.to_str().ok()).unwrap_or_default();
        uri = resolve(&uri, target)?;
    }
    Err(other("too many redirects"))
}

fn resolve(base: &Uri, target: &str) -> io::Result<Uri> {
    let text = if target.starts_with('/') && !target.starts_with("//") {
        let authority = base.authority().map(ToString::to_string).unwrap_or_default();
        format!("{}://{authority}{target}", base.scheme_str().unwrap_or("https"))
    } else {
        target.to_owned()
    };
    let uri: Uri = text.parse().map_err(|e| other(format!("redirect to {target:?}: {e}")))?;
    // Refuse a redirect from https to http.
    if base.scheme_str() == Some("https") && uri.scheme_str() != Some("https") {
        return Err(other(format!("redirect from https to {target:?} refused")));
    }
    Ok(uri)
}

async fn once(http: Http<'_>, uri: &Uri, authorization: Option<&str>, accept: &str) -> io::Result<Answer> {
    let host = uri.host().ok_or_else(|| other(format!("no host in {uri}")))?;
    let secure = uri.scheme_str() != Some("http");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let late =
        |what: &'static str| move |_| io::Error::new(io::ErrorKind::TimedOut, format!("{what}: timed out"));
    let stream = timeout(CONNECT, TcpStream::connect((address, port))).await.map_err(late("connect"))??;
    stream.set_nodelay(true)?;
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut request = Request::get(path)
        .header(header::HOST, &authority)
        .header(header::USER_AGENT, http.user_agent)
        .header(header::ACCEPT, accept);
    if let Some(authorization) = authorization {
        let mut value = HeaderValue::from_str(authorization).map_err(other)?;
        value.set_sensitive(true);
        request = request.header(header::AUTHORIZATION, value);
    }
    let request = request.body(Empty::new()).map_err(other)?;
    let exchange = async {
        if !secure {
            return exchange(stream, request).await;
        }
        let config = client_config(&(http.tls)(&authority))?;
        let stream = k8s_tls::connect(config, address, stream).await?;
        exchange(stream, request).await
    };
    timeout(ANSWER, exchange).await.map_err(late("wait for an answer"))?
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Empty<Bytes>>,
) -> io::Result<Answer> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(other)?;
    // Ends with the response's body.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "registry connection");
        }
    });
    sender.send_request(request).await.map_err(other)
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn body(answer: Answer, limit: usize) -> io::Result<Vec<u8>> {
    let mut body = answer.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) =
        timeout(SILENCE, body.frame()).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    {
        if let Ok(data) = frame.map_err(other)?.into_data() {
            bytes.extend_from_slice(&data);
        }
        if bytes.len() > limit {
            return Err(other(format!("answer is longer than {limit} bytes")));
        }
    }
    Ok(bytes)
}

fn client_config(tls: &Tls) -> io::Result<Arc<ClientConfig>> {
    let mut bundle = Vec::new();
    if !tls.insecure_skip_verify {
        for file in k8s_tls::system_bundle().iter().chain(&tls.ca_file) {
            let pem = std::fs::read(file);
            bundle.extend(pem.map_err(|e| other(format!("read certificates of {}: {e}", file.display())))?);
            bundle.push(b'\n');
        }
    }
    let trust = if tls.insecure_skip_verify { Trust::Anyone } else { Trust::Bundle(&bundle) };
    k8s_tls::client(&trust, None, &[]).map(Arc::new).map_err(other)
}
