//! Serving on a TCP listener: over TLS, or as plain HTTP for tests on one machine.

mod connection;
mod long_request;

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
};
#[cfg(feature = "tls")]
use k8s_tls::{ClientAuth, ServerConfig, ServerTls, TlsAcceptor, TlsError};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    limits::Limits,
    request::{PeerAddress, PeerCertificate},
    respond,
    server::ApiServer,
};
use connection::{Connection, Wire};

/// Requests at once over one connection of HTTP/2.
const MOST_STREAMS: u32 = 250;
/// Bytes of a request's headers, as in Go.
const MOST_HEADERS: u32 = 1 << 20;

/// Certificates and keys of the server, as PEM.
#[cfg(feature = "tls")]
#[derive(Clone)]
pub struct TlsFiles {
    /// Certificate chain of the server.
    pub certificate: Vec<u8>,
    /// Private key of the server.
    pub key: Vec<u8>,
    /// CA of client certificates. `None`: none are accepted.
    pub client_ca: Option<Vec<u8>>,
}

#[cfg(feature = "tls")]
impl std::fmt::Debug for TlsFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsFiles")
    }
}

/// The server side of TLS: HTTP/2 and HTTP/1.1, client certificates asked for and not required.
///
/// # Errors
/// The part that is not valid.
#[cfg(feature = "tls")]
pub fn tls_config(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let identity = k8s_tls::Identity { certificate: files.certificate.clone(), key: files.key.clone() };
    let clients = files.client_ca.as_deref().map_or(ClientAuth::Off, ClientAuth::Optional);
    k8s_tls::server(&identity, &clients, &[b"h2", b"http/1.1"])
}

/// Time between two looks for requests in flight, while a listener ends.
const LOOK: Duration = Duration::from_millis(20);
/// Time in which connections without requests in flight end.
const CLOSING: Duration = Duration::from_millis(300);

/// Connections that are open.
#[derive(Default)]
struct Open(Mutex<HashMap<u64, Arc<Connection>>>);

impl Open {
    fn all(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no request is in flight but long-running ones.
    async fn drained(&self) {
        while self.all().values().any(|connection| connection.is_busy()) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Closes the connection that was idle longest, if the limit is reached. Returns true if there is room
    /// for one more.
    fn make_room(&self, most: usize) -> bool {
        let mut all = self.all();
        if all.len() < most {
            return true;
        }
        let idle = all.iter().filter_map(|(number, c)| Some((c.idle_since()?, *number))).min();
        let Some(connection) = idle.and_then(|(_, number)| all.remove(&number)) else { return false };
        connection.close.cancel();
        true
    }
}

/// Protocol between TCP and HTTP.
#[derive(Clone)]
enum Transport {
    Plain,
    #[cfg(feature = "tls")]
    Tls(ServerTls),
}

/// Serves connections over TLS until `stop`, within the server's [`Limits`]. `tls` is an `Arc<ServerConfig>`,
/// or a [`ServerTls`] whose certificates are replaced while it serves. After `stop` no connection is
/// accepted, watches end, requests in flight are answered, and clients are told to use other connections
/// (GOAWAY, `connection: close`).
///
/// # Errors
/// If the listener fails.
#[cfg(feature = "tls")]
pub fn serve(
    server: ApiServer,
    listener: TcpListener,
    tls: impl Into<ServerTls>,
    stop: CancellationToken,
) -> BoxFuture<'static, io::Result<()>> {
    // Boxed: callers' crates need not compile it again.
    Box::pin(accept(server, listener, Transport::Tls(tls.into()), stop))
}

/// As `serve`, but with plain HTTP/1.1. Clients have no certificates; tokens can be read on the way, so the
/// listener should be on a loopback address.
///
/// # Errors
/// If the listener fails.
///
/// # Examples
/// ```
/// use k8s_apiserver::{ApiServer, listen};
/// use k8s_store::Store;
/// use tokio::{io::{AsyncReadExt, AsyncWriteExt}, net::{TcpListener, TcpStream}};
/// use tokio_util::sync::CancellationToken;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let server = ApiServer::builder(Store::memory()).build().await?;
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let address = listener.local_addr()?;
/// let stop = CancellationToken::new();
/// let serving = tokio::spawn(listen::serve_plain(server, listener, stop.clone()));
///
/// let mut client = TcpStream::connect(address).await?;
/// client.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await?;
/// let mut answer = String::new();
/// client.read_to_string(&mut answer).await?;
/// assert!(answer.starts_with("HTTP/1.1 401 Unauthorized"));
///
/// stop.cancel();
/// serving.await??;
/// # Ok(()) }
/// ```
pub fn serve_plain(
    server: ApiServer,
    listener: TcpListener,
    stop: CancellationToken,
) -> BoxFuture<'static, io::Result<()>> {
    Box::pin(accept(server, listener, Transport::Plain, stop))
}

#[expect(clippy::disallowed_methods, reason = "shutdown waits for the watcher of each connection")]
async fn accept(
    server: ApiServer,
    listener: TcpListener,
    transport: Transport,
    stop: CancellationToken,
) -> io::Result<()> {
    let graceful = GracefulShutdown::new();
    let limits = server.state.gate.limits.clone();
    let draining = CancellationToken::new();
    // The last moment for requests in flight, after `stop`.
    let mut end: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(std::future::pending());
    let open = Arc::new(Open::default());
    let places = Arc::new(Semaphore::new(long_request::PLACES));
    let mut number = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled(), if !draining.is_cancelled() => {
                draining.cancel();
                if !limits.retry_after_on_shutdown {
                    break;
                }
                let (open, limit) = (open.clone(), limits.drain_timeout);
                end = Box::pin(async move { drop(tokio::time::timeout(limit, open.drained()).await) });
                continue;
            }
            () = &mut end => break,
        };
        let (tcp, from) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                // Neither a lack of descriptors nor a client that left ends the server.
                debug!(error = %e, "accept");
                open.make_room(0);
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        if !open.make_room(limits.connections) {
            debug!("too many connections");
            continue;
        }
        let _ = tcp.set_nodelay(true);
        number += 1;
        let serving = Serving {
            server: server.clone(),
            open: open.clone(),
            places: places.clone(),
            number,
            address: from.ip(),
            draining: draining.clone(),
        };
        tokio::spawn(serving.run(transport.clone(), tcp, graceful.watcher()));
    }
    drop(listener);
    let mut closing = Box::pin(graceful.shutdown());
    let drained = tokio::time::timeout(limits.drain_timeout, open.drained());
    tokio::select! {
        () = &mut closing => return Ok(()),
        drained = drained => if drained.is_err() {
            tracing::warn!(limit = ?limits.drain_timeout, "requests are still in flight; their connections end");
        },
    }
    // Long-running requests other than watches do not end on their own.
    let _ = tokio::time::timeout(CLOSING, closing).await;
    Ok(())
}

/// The task of one connection.
struct Serving {
    server: ApiServer,
    open: Arc<Open>,
    places: Arc<Semaphore>,
    number: u64,
    address: std::net::IpAddr,
    /// Cancelled when the listener is told to stop.
    draining: CancellationToken,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.open.all().remove(&self.number);
    }
}

impl Serving {
    async fn run(self, transport: Transport, tcp: TcpStream, watcher: Watcher) {
        // A handshake counts as an idle connection.
        let shaking = Arc::new(Connection::new(false, self.draining.clone()));
        self.open.all().insert(self.number, shaking.clone());
        match transport {
            Transport::Plain => self.serve(tcp, None, false, watcher).await,
            #[cfg(feature = "tls")]
            Transport::Tls(tls) => {
                let local = tcp.local_addr().ok().map(|address| address.ip());
                self.shake(TlsAcceptor::from(tls.at(local)), tcp, &shaking, watcher).await;
            }
        }
    }

    #[cfg(feature = "tls")]
    async fn shake(self, acceptor: TlsAcceptor, tcp: TcpStream, shaking: &Connection, watcher: Watcher) {
        let limits = &self.server.state.gate.limits;
        let handshake = tokio::time::timeout(limits.handshake_timeout, acceptor.accept(tcp));
        let stream = tokio::select! {
            done = handshake => match done {
                Ok(Ok(stream)) => stream,
                Ok(Err(e)) => {
                    self.server.state.metrics.handshake_errors.inc();
                    return debug!(error = %e, "tls handshake");
                }
                Err(_) => {
                    self.server.state.metrics.handshake_errors.inc();
                    return debug!("tls handshake took too long");
                }
            },
            () = shaking.close.cancelled() => return debug!("tls handshake made room for others"),
        };
        let session = stream.get_ref().1;
        let peer = session.peer_certificates().and_then(|chain| chain.first());
        let peer = peer.map(|c| PeerCertificate(c.as_ref().to_vec()));
        let http2 = session.alpn_protocol() == Some(b"h2");
        self.serve(stream, peer, http2, watcher).await;
    }

    async fn serve(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Option<PeerCertificate>,
        http2: bool,
        watcher: Watcher,
    ) {
        let limits = &self.server.state.gate.limits;
        let connection = Arc::new(Connection::new(http2, self.draining.clone()));
        if self.open.all().insert(self.number, connection.clone()).is_none() {
            return debug!("connection made room for others");
        }
        let (server, of, address) = (self.server.clone(), connection.clone(), self.address);
        let service = service_fn(move |mut request: Request<Incoming>| {
            let active = of.begin();
            let extensions = request.extensions_mut();
            extensions.insert(of.account.clone());
            extensions.insert(PeerAddress(address));
            if let Some(query) = of.take_query() {
                extensions.insert(query);
            }
            if let Some(peer) = &peer {
                extensions.insert(peer.clone());
            }
            let refused = of.refuses(limits_of(&server), &request);
            let answer = if refused { None } else { Some(server.handle(request)) };
            async move {
                Ok::<_, Infallible>(match answer {
                    Some(answer) => active.answer(answer.await),
                    None => active.answer(respond::shutting_down(http2)),
                })
            }
        });
        let io = TokioIo::new(Wire::new(stream, connection.clone(), &self.places));
        let ends = async {
            tokio::select! {
                why = connection.overdue(limits) => debug!(why, "connection ended"),
                () = connection.close.cancelled() => debug!("connection made room for others"),
            }
        };
        let builder = protocol(http2);
        let serving = builder.serve_connection_with_upgrades(io, service).into_owned();
        tokio::select! {
            ended = watcher.watch(serving) => if let Err(e) = ended { debug!(error = %e, "connection") },
            () = ends => {}
        }
    }
}

fn limits_of(server: &ApiServer) -> &Limits {
    &server.state.gate.limits
}

/// Returns a server for the protocol that was negotiated in the TLS handshake, so that it need not be
/// detected.
fn protocol(http2: bool) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Header and idle timeouts are measured by the connection.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MOST_STREAMS)
        .initial_stream_window_size(256 << 10)
        .initial_connection_window_size(1 << 20)
        .max_header_list_size(MOST_HEADERS)
        .keep_alive_interval(Some(Duration::from_secs(30)));
    if http2 { builder.http2_only() } else { builder.http1_only() }
}
