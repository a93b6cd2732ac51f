//! The proxy: listeners, connections of clients, and the table that they read.
//!
//! Flow: [`Proxy::serve`] accepts connections; each request reads the newest table (`forward`), and goes to
//! an endpoint over a connection of the `pool`. Bodies pass through in parts (`body`).
//!
//! Guarantees:
//! 1. [`Proxy::replace`] acts on the next request, and disturbs none that is under way.
//! 2. An endpoint that does not answer holds its own requests only.
//! 3. Each connection has bounded buffers, and a client that sends nothing is closed.
//! 4. A request that comes back to the proxy that sent it gets 508.

mod ask;
mod body;
mod forward;
mod limit;
mod pool;
mod preface;
mod record;
mod rest;
#[cfg(test)]
mod tests;
mod tunnel;

use std::{
    convert::Infallible,
    io,
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use http::{HeaderValue, Request};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use ipnet::IpNet;
use k8s_core::random;
use k8s_metrics::Registry;
use nix::sys::socket::{setsockopt, sockopt::TcpUserTimeout};
use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    forward::{Peer, answer},
    limit::Limiter,
    pool::Pool,
    record::Metrics,
    rest::Activity,
};
use crate::{
    certificates::{Certificate, provider},
    table::Table,
};

/// Bytes of a request's headers at most.
const MOST_HEADERS: usize = 32 * 1024;
/// Requests at once over one connection of HTTP/2.
const MOST_STREAMS: u32 = 128;
/// Time for a handshake, and for the line of the PROXY protocol.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time after which a client that takes nothing any more is closed.
const STUCK: u32 = 60_000;
/// Time between two looks for idle connections to endpoints.
const SWEEP: Duration = Duration::from_secs(15);
/// Time in which a client of HTTP/2 answers that an idle connection ends.
const FAREWELL: Duration = Duration::from_secs(5);
/// Time in which requests in flight end after the stop.
const DRAIN: Duration = Duration::from_secs(10);

/// Settings of a proxy.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Believes `X-Forwarded-*` headers of clients: for a proxy behind another one. Default: false, they are
    /// replaced.
    pub trust_forwarded: bool,
    /// Expects the PROXY protocol (version 1 or 2) at the beginning of connections. Default: false.
    pub proxy_protocol: bool,
    /// Connections of clients at once. Default: 16,384.
    pub connections: usize,
    /// Time in which a client sends the headers of its next request. A connection of HTTP/2 without one ends
    /// after once to twice that time. Default: 75 s.
    pub idle: Duration,
    /// Addresses that are not asked by `auth-url`: the ranges of pods and of Services, those of the node.
    /// Those of this machine are not asked in any case. Default: none.
    pub refused: Vec<IpNet>,
    /// Certificate for names without one of their own. Default: none, such handshakes fail.
    pub certificate: Option<Arc<Certificate>>,
    /// Registry of the metrics.
    pub metrics: Registry,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        ProxyConfig {
            trust_forwarded: false,
            proxy_protocol: false,
            connections: 16_384,
            idle: Duration::from_secs(75),
            refused: Vec::new(),
            certificate: None,
            metrics: Registry::default(),
        }
    }
}

/// A proxy that can not be made.
#[derive(Debug, thiserror::Error)]
#[error("TLS of the ingress proxy: {0}")]
pub struct ProxyError(String);

/// The table and certificate of now.
#[derive(Debug)]
struct Current {
    table: RwLock<Arc<Table>>,
    certificate: RwLock<Option<Arc<Certificate>>>,
}

impl ResolvesServerCert for Current {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner).clone();
        let name = hello.server_name().map(str::to_ascii_lowercase);
        let own = name.and_then(|name| table.certificate(&name).map(|found| found.key.clone()));
        own.or_else(|| {
            let default = self.certificate.read().unwrap_or_else(PoisonError::into_inner);
            default.as_ref().map(|default| default.key.clone())
        })
    }
}

/// State that the connections share.
struct Shared {
    config: ProxyConfig,
    current: Arc<Current>,
    pool: Arc<Pool>,
    limiter: Limiter,
    metrics: Arc<Metrics>,
    acceptor: TlsAcceptor,
    permits: Arc<Semaphore>,
    /// Value of the header that tells this proxy its own requests.
    mark: HeaderValue,
    /// Cancelled by the first table.
    filled: CancellationToken,
}

impl Shared {
    fn table(&self) -> Arc<Table> {
        self.current.table.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn trusts(&self, _: IpAddr) -> bool {
        self.config.trust_forwarded
    }
}

/// A proxy. Clones are the same one.
#[derive(Clone)]
pub struct Proxy(Arc<Shared>);

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("config", &self.0.config).finish_non_exhaustive()
    }
}

impl Proxy {
    /// Creates a proxy with an empty table: all requests get 404.
    ///
    /// # Errors
    /// TLS is not to be had.
    pub fn new(config: ProxyConfig) -> Result<Self, ProxyError> {
        let failed = |e: &dyn std::fmt::Display| ProxyError(e.to_string());
        let current = Arc::new(Current {
            table: RwLock::default(),
            certificate: RwLock::new(config.certificate.clone()),
        });
        let builder = ServerConfig::builder_with_provider(Arc::new(provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(|e| failed(&e))?;
        let mut tls = builder.with_no_client_auth().with_cert_resolver(current.clone());
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        tls.ticketer = rustls::crypto::ring::Ticketer::new().map_err(|e| failed(&e))?;
        Ok(Proxy(Arc::new(Shared {
            permits: Arc::new(Semaphore::new(config.connections.min(Semaphore::MAX_PERMITS))),
            metrics: Arc::new(Metrics::new(&config.metrics)),
            config,
            current,
            pool: Arc::new(Pool::new().map_err(|e| failed(&e))?),
            limiter: Limiter::default(),
            mark: HeaderValue::try_from(random::uuid().to_string()).map_err(|e| failed(&e))?,
            filled: CancellationToken::new(),
            acceptor: TlsAcceptor::from(Arc::new(tls)),
        })))
    }

    /// Routes by another table from the next request on.
    pub fn replace(&self, table: Table) {
        self.0.metrics.reloads.inc();
        let before = {
            let mut current = self.0.current.table.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *current, Arc::new(table))
        };
        // Freed after the lock.
        drop(before);
        self.0.filled.cancel();
    }

    /// Waits for the first table.
    pub async fn filled(&self) {
        self.0.filled.cancelled().await;
    }

    /// Returns the table of now.
    #[must_use]
    pub fn table(&self) -> Arc<Table> {
        self.0.table()
    }

    /// Replaces the certificate for names without one of their own.
    pub fn replace_certificate(&self, certificate: Certificate) {
        let mut current = self.0.current.certificate.write().unwrap_or_else(PoisonError::into_inner);
        *current = Some(Arc::new(certificate));
    }

    /// Returns the number of idle connections to endpoints.
    #[must_use]
    pub fn idle_upstream(&self) -> usize {
        self.0.pool.idle()
    }

    /// Serves both listeners until `stop`. Requests in flight then have ten seconds.
    pub async fn serve(&self, http: TcpListener, https: TcpListener, stop: CancellationToken) {
        let tracker = TaskTracker::new();
        let sweeping = async {
            loop {
                tokio::time::sleep(SWEEP).await;
                self.0.pool.sweep();
            }
        };
        tokio::select! {
            () = self.accept(&http, false, &tracker, &stop) => {}
            () = self.accept(&https, true, &tracker, &stop) => {}
            () = sweeping => {}
            () = stop.cancelled() => {}
        }
        drop((http, https));
        tracker.close();
        if timeout(DRAIN, tracker.wait()).await.is_err() {
            tracing::debug!(connections = tracker.len(), "connections are cut");
        }
    }

    async fn accept(
        &self,
        listener: &TcpListener,
        tls: bool,
        tracker: &TaskTracker,
        stop: &CancellationToken,
    ) {
        loop {
            let Ok(permit) = self.0.permits.clone().acquire_owned().await else { return };
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "no connection accepted");
                    // As without free descriptors: others may end soon.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (shared, stop) = (self.0.clone(), stop.clone());
            tracker.spawn(async move {
                shared.metrics.connections.inc();
                let connection =
                    Box::pin(connection(&shared, stream, address.ip().to_canonical(), tls, &stop));
                if let Err(error) = connection.await {
                    tracing::debug!(client = %address, %error, "a connection ended");
                }
                shared.metrics.connections.dec();
                drop(permit);
            });
        }
    }
}

/// Serves the connection of a client.
async fn connection(
    shared: &Arc<Shared>,
    mut stream: TcpStream,
    mut address: IpAddr,
    tls: bool,
    stop: &CancellationToken,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // A hint only: without it, a client that takes nothing holds its connection for longer.
    let _ = setsockopt(&stream, TcpUserTimeout, &STUCK);
    if shared.config.proxy_protocol {
        let read = timeout(HANDSHAKE, Box::pin(preface::read(&mut stream))).await.map_err(late)??;
        address = read.unwrap_or(address).to_canonical();
    }
    // Boxed, each: a connection has room for one of them only, and a plain one for no TLS.
    if tls {
        Box::pin(over_tls(shared, stream, address, stop)).await
    } else {
        Box::pin(rest::serve(shared, stream, Peer { address, tls: None, activity: None }, stop)).await
    }
}

fn late(_: tokio::time::error::Elapsed) -> io::Error {
    io::ErrorKind::TimedOut.into()
}

/// Performs the handshake with a client, and serves its connection.
async fn over_tls(
    shared: &Arc<Shared>,
    stream: TcpStream,
    address: IpAddr,
    stop: &CancellationToken,
) -> io::Result<()> {
    let accepted = timeout(HANDSHAKE, Box::pin(shared.acceptor.accept(stream))).await.map_err(late).flatten();
    let stream = Box::new(accepted.inspect_err(|_| shared.metrics.handshake_failures.inc())?);
    let session = stream.get_ref().1;
    let name = session.server_name().map(|name| Arc::from(name.to_ascii_lowercase()));
    let is_http2 = session.alpn_protocol() == Some(b"h2");
    let peer = Peer { address, tls: Some(name), activity: None };
    if is_http2 {
        Box::pin(http2(shared, stream, peer, stop)).await
    } else {
        Box::pin(rest::serve(shared, stream, peer, stop)).await
    }
}

async fn http2<T>(shared: &Arc<Shared>, stream: T, mut peer: Peer, stop: &CancellationToken) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Arc::new(Activity::default());
    peer.activity = Some(activity.clone());
    let shared_again = shared.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = Box::pin(answer(shared_again.clone(), peer.clone(), request));
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(u32::try_from(MOST_HEADERS).unwrap_or(u32::MAX))
        .max_send_buf_size(64 * 1024)
        // A client that does not answer is gone.
        .keep_alive_interval(shared.config.idle)
        .keep_alive_timeout(Duration::from_secs(20));
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // Before its first request it is idle.
    let mut seen = Some(0);
    loop {
        tokio::select! {
            ended = connection.as_mut() => return ended.map_err(io::Error::other),
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                return connection.await.map_err(io::Error::other);
            }
            () = tokio::time::sleep(shared.config.idle) => {
                let now = activity.idle();
                if now.is_some() && now == seen {
                    break;
                }
                seen = now;
            }
        }
    }
    connection.as_mut().graceful_shutdown();
    loop {
        match timeout(FAREWELL, connection.as_mut()).await {
            Ok(ended) => return ended.map_err(io::Error::other),
            // The client does not answer. Requests that came meanwhile are served.
            Err(_) if activity.idle().is_some() => return Ok(()),
            Err(_) => {}
        }
    }
}
