//! Connections to endpoints: idle ones are used again.
//!
//! Guarantee: a connection goes back only after request and response have passed whole, so that no answer is
//! taken for that of another request.

#![expect(clippy::disallowed_methods, reason = "tasks end with their connection; idle time is real time")]

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use k8s_tls::Trust;
use rustls::ClientConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::body::{RequestBody, Sending};
use crate::settings::Protocol;

/// Time after which an idle connection is closed.
const IDLE: Duration = Duration::from_secs(60);
/// Idle connections to one endpoint.
const MOST_IDLE: usize = 64;
/// Bytes of the headers of an answer, and of a part of its body.
const BUFFER: usize = 64 * 1024;

/// An endpoint and the protocol that is spoken with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) endpoint: SocketAddr,
    pub(crate) protocol: Protocol,
}

type Http1 = http1::SendRequest<RequestBody>;
type Http2 = http2::SendRequest<RequestBody>;

#[derive(Default)]
struct Connections {
    idle: HashMap<Key, Vec<(Http1, Instant)>>,
    shared: HashMap<Key, Http2>,
}

/// The connections to all endpoints.
pub(crate) struct Pool {
    connections: Mutex<Connections>,
    /// For HTTP/1.1 and for HTTP/2.
    tls: [Arc<ClientConfig>; 2],
}

/// A connection that can send a request.
pub(crate) enum Connection {
    Http1 { sender: Http1, is_reused: bool },
    Http2(Http2),
}

/// A connection that is in use. Dropped, it is closed.
pub(crate) struct Lease {
    pool: Arc<Pool>,
    key: Key,
    sender: Http1,
    /// The request's body, if it has one.
    sending: Option<Arc<Sending>>,
}

impl Lease {
    /// Makes the connection idle, if the whole request was sent.
    pub(crate) fn give_back(self) {
        if self.sender.is_closed() || self.sending.is_some_and(|s| !s.is_done.load(Ordering::Acquire)) {
            return;
        }
        let mut connections = self.pool.lock();
        let idle = connections.idle.entry(self.key).or_default();
        if idle.len() < MOST_IDLE {
            idle.push((self.sender, Instant::now()));
        }
    }
}

/// A request that was not answered.
pub(crate) struct Unsent {
    pub(crate) error: hyper::Error,
    /// The request, if nothing of it was sent.
    pub(crate) request: Option<Request<RequestBody>>,
}

impl Pool {
    /// Creates a pool without connections.
    ///
    /// # Errors
    /// TLS is not to be had.
    pub(crate) fn new() -> Result<Self, k8s_tls::TlsError> {
        let config = |alpn: &[u8]| k8s_tls::client(&Trust::Anyone, None, &[alpn]).map(Arc::new);
        Ok(Pool { connections: Mutex::default(), tls: [config(b"http/1.1")?, config(b"h2")?] })
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes connections that were idle for long.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        let mut connections = self.lock();
        connections.idle.retain(|_, idle| {
            idle.retain(|(sender, since)| !sender.is_closed() && now.duration_since(*since) < IDLE);
            !idle.is_empty()
        });
        connections.shared.retain(|_, sender| !sender.is_closed());
    }

    /// Returns the number of idle connections.
    pub(crate) fn idle(&self) -> usize {
        self.lock().idle.values().map(Vec::len).sum()
    }

    fn reused(&self, key: Key) -> Option<Connection> {
        let mut connections = self.lock();
        if key.protocol.is_http2() {
            let sender = connections.shared.get(&key).filter(|sender| !sender.is_closed())?;
            return Some(Connection::Http2(sender.clone()));
        }
        let idle = connections.idle.get_mut(&key)?;
        while let Some((sender, since)) = idle.pop() {
            if !sender.is_closed() && since.elapsed() < IDLE {
                return Some(Connection::Http1 { sender, is_reused: true });
            }
        }
        connections.idle.remove(&key);
        None
    }

    /// Returns an idle connection, or opens one. `fresh` opens one in any case.
    ///
    /// # Errors
    /// The connection does not open in `within`.
    pub(crate) async fn connect(&self, key: Key, within: Duration, fresh: bool) -> io::Result<Connection> {
        if let Some(found) = (!fresh).then(|| self.reused(key)).flatten() {
            if let Connection::Http1 { mut sender, is_reused } = found {
                // Its task may not have seen yet that the answer before has ended.
                if sender.is_ready()
                    || matches!(timeout(Duration::from_secs(1), sender.ready()).await, Ok(Ok(())))
                {
                    return Ok(Connection::Http1 { sender, is_reused });
                }
            } else {
                return Ok(found);
            }
        }
        let opening = async {
            let tcp = TcpStream::connect(key.endpoint).await?;
            tcp.set_nodelay(true)?;
            if key.protocol.is_tls() {
                let config = self.tls[usize::from(key.protocol.is_http2())].clone();
                let name = key.endpoint.ip().to_string();
                self.handshake(key, k8s_tls::connect(config, &name, tcp).await?).await
            } else {
                self.handshake(key, tcp).await
            }
        };
        let late = || {
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no connection to {} in {within:?}", key.endpoint),
            )
        };
        timeout(within, opening).await.unwrap_or_else(|_| Err(late()))
    }

    async fn handshake<T>(&self, key: Key, stream: T) -> io::Result<Connection>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(stream);
        if key.protocol.is_http2() {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.timer(TokioTimer::new()).max_header_list_size(64 * 1024);
            let (sender, connection) = builder.handshake(io).await.map_err(io::Error::other)?;
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection to a backend ended");
                }
            });
            self.lock().shared.insert(key, sender.clone());
            return Ok(Connection::Http2(sender));
        }
        let mut builder = http1::Builder::new();
        builder.max_buf_size(BUFFER);
        let (sender, connection) = builder.handshake(io).await.map_err(io::Error::other)?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to a backend ended");
            }
        });
        Ok(Connection::Http1 { sender, is_reused: false })
    }
}

impl Connection {
    pub(crate) fn is_reused(&self) -> bool {
        matches!(self, Connection::Http1 { is_reused: true, .. })
    }

    /// Sends a request and waits for the beginning of the answer.
    ///
    /// # Errors
    /// No answer, with the request if it can be sent by another connection.
    pub(crate) async fn send(
        self,
        pool: &Arc<Pool>,
        key: Key,
        request: Request<RequestBody>,
        sending: Option<Arc<Sending>>,
    ) -> Result<(Response<Incoming>, Option<Lease>), Box<Unsent>> {
        let unsent = |mut e: hyper::client::conn::TrySendError<Request<RequestBody>>| {
            let request = e.take_message();
            Box::new(Unsent { error: e.into_error(), request })
        };
        match self {
            Connection::Http1 { mut sender, .. } => {
                let response = sender.try_send_request(request).await.map_err(unsent)?;
                Ok((response, Some(Lease { pool: pool.clone(), key, sender, sending })))
            }
            Connection::Http2(mut sender) => {
                Ok((sender.try_send_request(request).await.map_err(unsent)?, None))
            }
        }
    }
}
