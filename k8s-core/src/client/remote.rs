//! The transport over TCP and TLS.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header, uri};
use http_body_util::BodyExt;
use hyper_util::{
    client::legacy::{
        Client as HyperClient,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tokio::net::TcpStream;

use super::{
    Body, BoxError, Error, ExecPlugin, Proxy, Transport,
    credentials::{Credential, Credentials, Identity, UserFile},
    retry::Renewed,
};
use crate::clock::Clock;

/// Connection settings of an API server. Certificates and keys are PEM.
#[derive(Clone, Default)]
pub struct RemoteConfig {
    /// URL of the API server: `https://host:port[/path]`, or `http://`.
    pub server: String,
    /// CA certificates. `None`: no server is trusted (unless `insecure`).
    pub ca: Option<Vec<u8>>,
    /// Client certificate chain as PEM, leaf first.
    pub certificate: Option<Vec<u8>>,
    /// Key of the client certificate.
    pub key: Option<Vec<u8>>,
    /// Kubeconfig and name of the user with `certificate` and `key`, from which they are read again after a
    /// minute. `None`, or without a certificate: they stay as they are.
    pub user_file: Option<(std::path::PathBuf, String)>,
    /// Bearer token. `token_file` goes before it.
    pub token: Option<String>,
    /// File of a bearer token. It is read again after a minute, and goes before `token`.
    pub token_file: Option<std::path::PathBuf>,
    /// User name and password.
    pub basic: Option<(String, String)>,
    /// Credential plugin, if no token or password is set.
    pub exec: Option<ExecPlugin>,
    /// User that requests are made as.
    pub impersonation: Option<Impersonation>,
    /// HTTP proxy on the way to the server.
    pub proxy: Option<Proxy>,
    /// Name in the server's certificate. `None`: the host of `server`.
    pub server_name: Option<String>,
    /// Namespace of the context or service account, for [`super::Client::namespace`].
    pub namespace: Option<String>,
    /// Accept any server certificate.
    pub insecure: bool,
}

/// A user that requests are made as; the real user needs the permission to impersonate it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Impersonation {
    /// Name of the user.
    pub user: String,
    /// Uid of the user.
    pub uid: Option<String>,
    /// Groups of the user.
    pub groups: Vec<String>,
    /// Further attributes by name.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Impersonation {
    fn headers(&self) -> Result<HeaderMap, Error> {
        let mut headers = HeaderMap::new();
        let mut add = |name: &str, value: &str| {
            let bad = |e: &dyn std::fmt::Display| Error::Request(format!("impersonation: {name}: {e}"));
            let value = HeaderValue::from_str(value).map_err(|e| bad(&e))?;
            headers.append(HeaderName::try_from(name).map_err(|e| bad(&e))?, value);
            Ok::<_, Error>(())
        };
        add("impersonate-user", &self.user)?;
        if let Some(uid) = &self.uid {
            add("impersonate-uid", uid)?;
        }
        for group in &self.groups {
            add("impersonate-group", group)?;
        }
        for (key, values) in &self.extra {
            let key = percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC);
            for value in values {
                add(&format!("impersonate-extra-{key}"), value)?;
            }
        }
        Ok(headers)
    }
}

impl std::fmt::Debug for RemoteConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteConfig").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Pooled connections to an API server, with HTTP/2 if the server supports it.
#[derive(Clone)]
pub struct Remote(Arc<Shared>);

type Http = HyperClient<Connector, Body>;

struct Shared {
    config: RemoteConfig,
    base: Uri,
    impersonation: HeaderMap,
    credentials: Credentials,
    /// The settings' own certificate, where it may change.
    user_file: Option<UserFile>,
    /// Connections, and the certificate and key that they were opened with instead of the settings'.
    connections: Mutex<(Option<Identity>, Http)>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("base", &self.0.base).finish_non_exhaustive()
    }
}

impl Remote {
    /// Validates the settings; opens no connection and runs no plugin yet.
    ///
    /// # Errors
    /// [`Error::Request`] with the unusable part of the settings.
    pub fn new(config: &RemoteConfig) -> Result<Self, Error> {
        let base: Uri = config.server.parse().map_err(|e| Error::Request(format!("server address: {e}")))?;
        let impersonation = config.impersonation.as_ref().map(Impersonation::headers).transpose()?;
        Ok(Remote(Arc::new(Shared {
            base,
            impersonation: impersonation.unwrap_or_default(),
            credentials: Credentials::new(config, Clock::system())?,
            user_file: UserFile::new(config, Clock::system()),
            connections: Mutex::new((None, connections(config)?)),
            config: config.clone(),
        })))
    }
}

fn connections(config: &RemoteConfig) -> Result<Http, Error> {
    let connector = Connector {
        #[cfg(feature = "tls")]
        tls: Arc::new(config.tls()?),
        #[cfg(feature = "tls")]
        server_name: config.server_name.as_deref().map(Into::into),
        proxy: config.proxy.clone().map(Arc::new),
    };
    Ok(HyperClient::builder(TokioExecutor::new())
        .pool_idle_timeout(Duration::from_secs(60))
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(Duration::from_secs(30))
        .http2_keep_alive_timeout(Duration::from_secs(20))
        .http2_initial_stream_window_size(1 << 20)
        .http2_initial_connection_window_size(4 << 20)
        .build(connector))
}

impl Shared {
    /// Returns the connections for a credential. Those of an earlier client certificate are closed when their
    /// requests end.
    fn http(&self, credential: &Credential) -> Result<Http, Error> {
        let own = || self.user_file.as_ref().and_then(UserFile::changed);
        let identity = credential.identity.clone().or_else(own);
        let mut open = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if open.0 != identity {
            let mut config = self.config.clone();
            if let Some((certificate, key)) = identity.clone() {
                (config.certificate, config.key) = (Some(certificate), Some(key));
            }
            match connections(&config) {
                Ok(http) => *open = (identity, http),
                // A renewed certificate that is broken must not end a component that works.
                Err(error) if credential.identity.is_none() => {
                    tracing::warn!(%error, "the client certificate is not renewed");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(open.1.clone())
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
            let mut target = this.0.base.clone().into_parts();
            target.path_and_query = parts.uri.into_parts().path_and_query;
            parts.uri = Uri::from_parts(target)?;
            let credential = this.0.credentials.current().await?;
            if let Some(authorization) = &credential.authorization {
                parts.headers.insert(header::AUTHORIZATION, authorization.clone());
            }
            parts.headers.extend(this.0.impersonation.clone());
            let http = this.0.http(&credential)?;
            let mut response = http.request(Request::from_parts(parts, body)).await?;
            if response.status() == StatusCode::UNAUTHORIZED && this.0.credentials.refused(&credential).await
            {
                response.extensions_mut().insert(Renewed);
            }
            Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
        }
        .boxed()
    }

    fn host(&self) -> &str {
        self.0.base.authority().map_or("", http::uri::Authority::as_str)
    }
}

#[derive(Clone)]
struct Connector {
    #[cfg(feature = "tls")]
    tls: Arc<k8s_tls::ClientConfig>,
    #[cfg(feature = "tls")]
    server_name: Option<Arc<str>>,
    proxy: Option<Arc<Proxy>>,
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
        let (tls, server_name) = (self.tls.clone(), self.server_name.clone());
        let proxy = self.proxy.clone();
        Box::pin(async move {
            let secure = target.scheme() == Some(&uri::Scheme::HTTPS);
            let host = target.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let port = target.port_u16().unwrap_or(if secure { 443 } else { 80 });
            let tcp = match proxy {
                Some(proxy) => proxy.connect(&host, port).await?,
                None => TcpStream::connect((host.as_str(), port)).await?,
            };
            tcp.set_nodelay(true)?;
            if !secure {
                return Ok(Conn::Plain(TokioIo::new(tcp)));
            }
            #[cfg(feature = "tls")]
            {
                let name = server_name.as_deref().unwrap_or(&host);
                Ok(Conn::Tls(TokioIo::new(Box::new(k8s_tls::connect(tls, name, tcp).await?))))
            }
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
