//! The transport over TCP and TLS.

#[cfg(feature = "tls")]
use std::sync::Arc;
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use http::{Request, Response, Uri, header, uri};
use http_body_util::BodyExt;
use hyper_util::{
    client::legacy::{
        Client as HyperClient,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tokio::net::TcpStream;

use super::{Body, BoxError, Error, Transport};

/// Connection settings of an API server. Certificates and keys are PEM.
#[derive(Clone, Default)]
pub struct RemoteConfig {
    /// `https://host:port` or `http://host:port`.
    pub server: String,
    /// CA certificates. `None`: no server is trusted (unless `insecure`).
    pub ca: Option<Vec<u8>>,
    /// Client certificate chain.
    pub certificate: Option<Vec<u8>>,
    /// Key of the client certificate.
    pub key: Option<Vec<u8>>,
    /// Bearer token.
    pub token: Option<String>,
    /// Accept any server certificate.
    pub insecure: bool,
}

impl std::fmt::Debug for RemoteConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteConfig").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Pooled connections to an API server, with HTTP/2 if the server supports it.
#[derive(Clone)]
pub struct Remote {
    http: HyperClient<Connector, Body>,
    base: Uri,
    authorization: Option<header::HeaderValue>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Remote {
    /// Validates the settings; opens no connection yet.
    ///
    /// # Errors
    /// [`Error::Request`] with the unusable part of the settings.
    pub fn new(config: &RemoteConfig) -> Result<Self, Error> {
        let bad = |what: &str, e: &dyn std::fmt::Display| Error::Request(format!("{what}: {e}"));
        let base: Uri = config.server.parse().map_err(|e| bad("server address", &e))?;
        let mut authorization = None;
        if let Some(token) = &config.token {
            let mut value =
                header::HeaderValue::from_str(&format!("Bearer {token}")).map_err(|e| bad("token", &e))?;
            value.set_sensitive(true);
            authorization = Some(value);
        }
        let connector = Connector {
            #[cfg(feature = "tls")]
            tls: Arc::new(config.tls()?),
        };
        let http = HyperClient::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(60))
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .http2_keep_alive_interval(Duration::from_secs(30))
            .http2_keep_alive_timeout(Duration::from_secs(20))
            .http2_initial_stream_window_size(1 << 20)
            .http2_initial_connection_window_size(4 << 20)
            .build(connector);
        Ok(Remote { http, base, authorization })
    }
}

#[cfg(feature = "tls")]
impl RemoteConfig {
    /// Builds the client side of TLS: HTTP/2 and HTTP/1.1.
    ///
    /// # Errors
    /// [`Error::Request`] when a certificate or key is not usable PEM; it names the part.
    pub fn tls(&self) -> Result<k8s_tls::ClientConfig, Error> {
        let trust = match &self.ca {
            _ if self.insecure => k8s_tls::Trust::Anyone,
            ca => k8s_tls::Trust::Pem(ca.as_deref().unwrap_or_default()),
        };
        let identity = self.certificate.clone().zip(self.key.clone());
        let identity = identity.map(|(certificate, key)| k8s_tls::Identity { certificate, key });
        k8s_tls::client(&trust, identity.as_ref(), &[b"h2", b"http/1.1"])
            .map_err(|e| Error::Request(e.to_string()))
    }
}

impl Transport for Remote {
    fn call(&self, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
        let this = self.clone();
        async move {
            let (mut parts, body) = request.into_parts();
            let mut target = this.base.clone().into_parts();
            target.path_and_query = parts.uri.into_parts().path_and_query;
            parts.uri = Uri::from_parts(target)?;
            if let Some(authorization) = &this.authorization {
                parts.headers.insert(header::AUTHORIZATION, authorization.clone());
            }
            let response = this.http.request(Request::from_parts(parts, body)).await?;
            Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
        }
        .boxed()
    }
}

#[derive(Clone)]
struct Connector {
    #[cfg(feature = "tls")]
    tls: Arc<k8s_tls::ClientConfig>,
}

impl tower_service::Service<Uri> for Connector {
    type Response = Conn;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Conn, std::io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        #[cfg(feature = "tls")]
        let tls = self.tls.clone();
        Box::pin(async move {
            let secure = target.scheme() == Some(&uri::Scheme::HTTPS);
            let host = target.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let port = target.port_u16().unwrap_or(if secure { 443 } else { 80 });
            let tcp = TcpStream::connect((host.as_str(), port)).await?;
            tcp.set_nodelay(true)?;
            if !secure {
                return Ok(Conn::Plain(TokioIo::new(tcp)));
            }
            #[cfg(feature = "tls")]
            return Ok(Conn::Tls(TokioIo::new(Box::new(k8s_tls::connect(tls, &host, tcp).await?))));
            #[cfg(not(feature = "tls"))]
            Err(std::io::Error::new(
                std::io::ErrorKind::Unsupported,
                "https needs k8s-core's feature \"tls\", which this program is built without",
            ))
        })
    }
}

/// A plain or TLS connection.
enum Conn {
    Plain(TokioIo<TcpStream>),
    #[cfg(feature = "tls")]
    Tls(TokioIo<Box<k8s_tls::TlsStream<TcpStream>>>),
}

impl Connection for Conn {
    fn connected(&self) -> Connected {
        match self {
            Conn::Plain(_) => Connected::new(),
            #[cfg(feature = "tls")]
            Conn::Tls(io) => {
                let h2 = io.inner().get_ref().1.alpn_protocol() == Some(b"h2");
                if h2 { Connected::new().negotiated_h2() } else { Connected::new() }
            }
        }
    }
}

macro_rules! each {
    ($self:ident, $io:ident => $call:expr) => {
        match $self.get_mut() {
            Conn::Plain($io) => $call,
            #[cfg(feature = "tls")]
            Conn::Tls($io) => $call,
        }
    };
}

impl hyper::rt::Read for Conn {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        each!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl hyper::rt::Write for Conn {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write(cx, buf))
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        each!(self, io => Pin::new(io).poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        each!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}
