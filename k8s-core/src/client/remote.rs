//! The transport over TCP and TLS.

use std::{
    pin::Pin,
    sync::Arc,
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
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Body, BoxError, Error, Transport};

/// What is needed to reach an API server. Certificates and keys are PEM.
#[derive(Clone, Default)]
pub struct RemoteConfig {
    /// `https://host:port` or `http://host:port`.
    pub server: String,
    /// CA certificates; `None`: none is trusted (unless `insecure`).
    pub ca: Option<Vec<u8>>,
    /// Client certificate.
    pub certificate: Option<Vec<u8>>,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Bearer token.
    pub token: Option<String>,
    /// Trust any server.
    pub insecure: bool,
}

impl std::fmt::Debug for RemoteConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteConfig").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Connections to an API server: kept open, HTTP/2 where the server has it.
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
    /// Prepares connections; none is opened yet.
    ///
    /// # Errors
    /// [`Error::Request`] when the configuration is not usable; it names the part.
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
        let connector = Connector { tls: Arc::new(tls_config(config)?) };
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

impl RemoteConfig {
    /// The client side of TLS: whom it trusts and who it is.
    ///
    /// # Errors
    /// [`Error::Request`] when a certificate or key is none; it names the part.
    pub fn tls(&self) -> Result<rustls::ClientConfig, Error> {
        tls_config(self)
    }
}

fn tls_config(config: &RemoteConfig) -> Result<rustls::ClientConfig, Error> {
    let bad = |what: &str, e: &dyn std::fmt::Display| Error::Request(format!("{what}: {e}"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("tls", &e))?;
    let builder = if config.insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(TrustAnyone(provider)))
    } else {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(config.ca.as_deref().unwrap_or_default()) {
            let certificate = certificate.map_err(|e| bad("CA certificate", &e))?;
            roots.add(certificate).map_err(|e| bad("CA certificate", &e))?;
        }
        builder.with_root_certificates(roots)
    };
    let mut tls = match (&config.certificate, &config.key) {
        (Some(certificate), Some(key)) => {
            let chain = CertificateDer::pem_slice_iter(certificate)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| bad("client certificate", &e))?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| bad("client key", &e))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| bad("client certificate", &e))?
        }
        _ => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
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
    tls: Arc<rustls::ClientConfig>,
}

impl tower::Service<Uri> for Connector {
    type Response = Conn;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Conn, std::io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Uri) -> Self::Future {
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
            let name = ServerName::try_from(host).map_err(std::io::Error::other)?;
            let stream = TlsConnector::from(tls).connect(name, tcp).await?;
            Ok(Conn::Tls(TokioIo::new(Box::new(stream))))
        })
    }
}

/// One connection.
enum Conn {
    Plain(TokioIo<TcpStream>),
    Tls(TokioIo<Box<TlsStream<TcpStream>>>),
}

impl Connection for Conn {
    fn connected(&self) -> Connected {
        match self {
            Conn::Plain(_) => Connected::new(),
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

/// `insecure-skip-tls-verify`: signatures are still checked, names and issuers are not.
#[derive(Debug)]
struct TrustAnyone(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for TrustAnyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
