//! Connections of HTTP/1.1 that rest: while a client is silent, only its socket is kept.
//!
//! Hyper has buffers of some 20 KB for each connection. After [`QUIET`] without a byte, they are dropped, and
//! made anew when the client sends something.
//!
//! Guarantee: a connection rests only between two requests, with all bytes of the last answer sent and all of
//! the last request read. Otherwise a body would be taken for a request.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::{
    MOST_HEADERS, Shared,
    body::Sending,
    forward::{Peer, answer},
};

/// Time without a byte after which a connection rests.
const QUIET: Duration = Duration::from_secs(2);

/// The traffic of a connection.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Requests in progress.
    requests: AtomicUsize,
    /// Requests so far.
    begun: AtomicU64,
    reads: AtomicU64,
    /// A write waits for the client.
    is_blocked: AtomicBool,
    /// The body of the last request was not read whole.
    is_unread: AtomicBool,
}

/// A request in progress, until it is dropped.
#[derive(Debug)]
pub(crate) struct Busy {
    activity: Arc<Activity>,
    has_body: bool,
    /// The body, once it is passed on.
    pub(crate) sending: Option<Arc<Sending>>,
}

impl Busy {
    pub(crate) fn new(activity: Arc<Activity>, has_body: bool) -> Self {
        activity.requests.fetch_add(1, Ordering::AcqRel);
        activity.begun.fetch_add(1, Ordering::AcqRel);
        Busy { activity, has_body, sending: None }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let was_read = self.sending.as_ref().is_some_and(|sending| sending.is_done.load(Ordering::Acquire));
        self.activity.is_unread.store(self.has_body && !was_read, Ordering::Release);
        self.activity.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Activity {
    /// Returns the number of requests so far if none is in progress.
    pub(super) fn idle(&self) -> Option<u64> {
        let idle = self.requests.load(Ordering::Acquire) == 0;
        idle.then(|| self.begun.load(Ordering::Acquire))
    }

    /// Returns the number of reads if the connection is between two requests.
    fn quiet(&self) -> Option<u64> {
        let rests = self.requests.load(Ordering::Acquire) == 0
            && !self.is_blocked.load(Ordering::Acquire)
            && !self.is_unread.load(Ordering::Acquire);
        rests.then(|| self.reads.load(Ordering::Acquire))
    }
}

/// A stream that tells its traffic, and first gives bytes that were read before.
struct Watched<T> {
    stream: T,
    before: Bytes,
    activity: Arc<Activity>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.before.is_empty() {
            let length = self.before.len().min(buf.remaining());
            buf.put_slice(self.before.get(..length).unwrap_or_default());
            self.before.advance(length);
            return Poll::Ready(Ok(()));
        }
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            self.activity.reads.fetch_add(1, Ordering::AcqRel);
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> Watched<T> {
    fn told<R>(&self, written: Poll<R>) -> Poll<R> {
        self.activity.is_blocked.store(written.is_pending(), Ordering::Release);
        written
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.told(written)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.told(flushed)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.told(written)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A stream over a socket.
pub(crate) trait OverSocket: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Returns the socket.
    fn socket(&self) -> &TcpStream;
}

impl OverSocket for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl OverSocket for Box<TlsStream<TcpStream>> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// Serves a connection until its end.
pub(super) async fn serve<T: OverSocket>(
    shared: &Arc<Shared>,
    mut stream: T,
    peer: Peer,
    stop: &CancellationToken,
) -> io::Result<()> {
    let mut before = Bytes::new();
    loop {
        // Boxed: a connection that rests has no room for it.
        match Box::pin(active(shared, stream, before, peer.clone(), stop)).await? {
            None => return Ok(()),
            Some((rests, read)) => (stream, before) = (rests, read),
        }
        if before.is_empty() {
            let left = shared.config.idle.saturating_sub(QUIET);
            let _resting = Resting::new(shared);
            tokio::select! {
                readable = timeout(left, stream.socket().readable()) => match readable {
                    Ok(readable) => readable?,
                    Err(_) => return Ok(()),
                },
                () = stop.cancelled() => return Ok(()),
            }
        }
    }
}

/// Counts a connection that rests, until it is dropped.
struct Resting<'a>(&'a Shared);

impl<'a> Resting<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.metrics.resting.inc();
        Resting(shared)
    }
}

impl Drop for Resting<'_> {
    fn drop(&mut self) {
        self.0.metrics.resting.dec();
    }
}

/// Serves a connection until its end or its rest; returns the stream of one that rests.
async fn active<T: OverSocket>(
    shared: &Arc<Shared>,
    stream: T,
    before: Bytes,
    mut peer: Peer,
    stop: &CancellationToken,
) -> io::Result<Option<(T, Bytes)>> {
    let activity = Arc::new(Activity::default());
    peer.activity = Some(activity.clone());
    // A request that has begun before the rest must go on before the next one.
    let may_rest = before.is_empty();
    let watched = Watched { stream, before, activity: activity.clone() };
    let shared_again = shared.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        // Boxed: a connection without a request has no room for it.
        let answer = Box::pin(answer(shared_again.clone(), peer.clone(), request));
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(shared.config.idle).max_buf_size(MOST_HEADERS);
    let mut connection = Box::new(builder.serve_connection(TokioIo::new(watched), service).with_upgrades());
    let mut seen = None;
    loop {
        tokio::select! {
            ended = &mut *connection => {
                return ended.map(|()| None).map_err(io::Error::other);
            }
            () = stop.cancelled() => {
                Pin::new(&mut *connection).graceful_shutdown();
                return connection.await.map(|()| None).map_err(io::Error::other);
            }
            () = tokio::time::sleep(QUIET) => {
                let now = activity.quiet();
                let is_quiet = now.is_some() && now == seen;
                seen = now;
                if is_quiet && (may_rest || activity.begun.load(Ordering::Acquire) > 0) {
                    let Some(parts) = connection.into_parts() else { return Ok(None) };
                    let watched = parts.io.into_inner();
                    // A copy: even an empty part would keep the whole buffer.
                    return Ok(Some((watched.stream, Bytes::copy_from_slice(&parts.read_buf))));
                }
            }
        }
    }
}
