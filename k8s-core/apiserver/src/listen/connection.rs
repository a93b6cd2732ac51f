//! State of one connection, and its timeouts.

#![expect(clippy::disallowed_methods, reason = "limits of a connection, in virtual time as well")]

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use k8s_core::client::{Body, BoxError, LongQuery};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Semaphore,
    time::Instant,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::long_request::{FirstLine, Seen};
use crate::{
    audit::Completion,
    limits::{LastAccount, Limits, Ticket},
    metrics::LongRunning,
    respond::Watching,
};

/// Maximum interval of checks of a quiet connection.
const LOOK: Duration = Duration::from_secs(15);

/// The holdings of an upgraded connection.
#[derive(Debug, Default)]
struct Upgraded {
    _ticket: Option<Arc<Ticket>>,
    /// Its audit events.
    _events: Option<Completion>,
    /// Its place in the metrics.
    _counted: Option<Arc<LongRunning>>,
}

/// A connection of a client.
#[derive(Debug)]
pub(super) struct Connection {
    born: Instant,
    http2: bool,
    /// Number of requests whose responses are not consumed, and of long-running ones among them.
    active: AtomicUsize,
    long: AtomicUsize,
    /// Number of requests so far.
    served: AtomicU64,
    /// Milliseconds since `born`: end of the last request; first byte since then (0: none); start of a
    /// blocked write (0: none).
    idle_since: AtomicU64,
    begun_at: AtomicU64,
    blocked_since: AtomicU64,
    /// Milliseconds since `born`: arrival of a request, or consumption of a response chunk.
    progress_at: AtomicU64,
    /// Closes the connection at once.
    pub(super) close: CancellationToken,
    /// The listener is told to stop: watches end.
    draining: CancellationToken,
    /// The user of the last request.
    pub(super) account: Arc<LastAccount>,
    upgraded: Mutex<Upgraded>,
    /// Query of the first request, if it is too long for a URI.
    query: Mutex<Option<LongQuery>>,
}

impl Connection {
    pub(super) fn new(http2: bool, draining: CancellationToken) -> Self {
        Connection {
            born: Instant::now(),
            http2,
            active: AtomicUsize::new(0),
            long: AtomicUsize::new(0),
            served: AtomicU64::new(0),
            idle_since: AtomicU64::new(0),
            begun_at: AtomicU64::new(0),
            blocked_since: AtomicU64::new(0),
            progress_at: AtomicU64::new(0),
            close: CancellationToken::new(),
            draining,
            account: Arc::default(),
            upgraded: Mutex::default(),
            query: Mutex::default(),
        }
    }

    /// Returns milliseconds since `born`; never 0.
    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// Returns true while a request is in flight that is not long-running, or while the first one is being
    /// received.
    pub(super) fn is_busy(&self) -> bool {
        self.active.load(Ordering::Acquire) > self.long.load(Ordering::Acquire)
            || (!self.http2 && self.begun_at.load(Ordering::Relaxed) > 0)
    }

    /// Returns true for a request that a listener which is about to end answers with 429: all but those about
    /// health and metrics.
    pub(super) fn refuses<B>(&self, limits: &Limits, request: &Request<B>) -> bool {
        const EXEMPT: [&str; 4] = ["/readyz", "/livez", "/healthz", "/metrics"];
        limits.retry_after_on_shutdown
            && self.draining.is_cancelled()
            && !EXEMPT.iter().any(|prefix| request.uri().path().starts_with(prefix))
    }

    /// Returns the time since which the connection is idle; `None` if it is not.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        (self.active.load(Ordering::Acquire) == 0)
            .then(|| self.born + Duration::from_millis(self.idle_since.load(Ordering::Acquire)))
    }

    fn read_some(&self) {
        if self.active.load(Ordering::Acquire) == 0 && self.begun_at.load(Ordering::Relaxed) == 0 {
            self.begun_at.store(self.now(), Ordering::Relaxed);
        }
    }

    fn wrote(&self, waits: bool) {
        match (waits, self.blocked_since.load(Ordering::Relaxed)) {
            (true, 0) => self.blocked_since.store(self.now(), Ordering::Relaxed),
            (false, since) if since > 0 => self.blocked_since.store(0, Ordering::Relaxed),
            _ => {}
        }
    }

    /// Returns the long query of the first request, once.
    pub(super) fn take_query(&self) -> Option<LongQuery> {
        self.query.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Counts a request as active until the guard is dropped; an active connection is not idle.
    pub(super) fn begin(self: &Arc<Self>) -> Active {
        self.account.note(self.active.fetch_add(1, Ordering::AcqRel) == 0);
        self.served.fetch_add(1, Ordering::Relaxed);
        self.begun_at.store(0, Ordering::Relaxed);
        self.progress_at.store(self.now(), Ordering::Relaxed);
        Active { connection: self.clone(), long: false }
    }

    /// Returns the reason to close the connection, or else the time until the next check.
    fn verdict(&self, limits: &Limits) -> Result<Duration, &'static str> {
        let now = self.now();
        let left =
            |since: u64, limit: Duration| limit.checked_sub(Duration::from_millis(now.saturating_sub(since)));
        let unread = "an answer was left unread";
        let active = self.active.load(Ordering::Acquire);
        if active > 0 {
            let long = self.long.load(Ordering::Acquire);
            let blocked = self.blocked_since.load(Ordering::Relaxed);
            if blocked > 0 && long == 0 {
                return left(blocked, limits.stalled_timeout).ok_or(unread);
            }
            // With HTTP/2 a client can leave one response unread while the connection is active. Before its
            // response starts, a request has its own timeout.
            if active > long && !limits.request_timeout.is_zero() {
                let progress = self.progress_at.load(Ordering::Relaxed);
                left(progress, limits.request_timeout + limits.stalled_timeout).ok_or(unread)?;
            }
            return Ok(LOOK);
        }
        let new = self.served.load(Ordering::Relaxed) == 0;
        let begun = self.begun_at.load(Ordering::Relaxed);
        // With HTTP/2 an idle connection still carries pings.
        let header = match begun {
            _ if new => left(0, limits.header_timeout),
            0 => Some(limits.idle_timeout),
            _ if self.http2 => Some(limits.idle_timeout),
            begun => left(begun, limits.header_timeout),
        };
        let header = header.ok_or("a request's headers took too long")?;
        let idle = left(self.idle_since.load(Ordering::Acquire), limits.idle_timeout).ok_or("idle")?;
        Ok(header.min(idle))
    }

    /// Ends when the client has exceeded a timeout, with the reason.
    pub(super) async fn overdue(&self, limits: &Limits) -> &'static str {
        loop {
            match self.verdict(limits) {
                Err(why) => return why,
                Ok(left) => tokio::time::sleep(left.min(LOOK).max(Duration::from_millis(10))).await,
            }
        }
    }
}

/// A request whose response is not consumed.
#[derive(Debug)]
pub(super) struct Active {
    connection: Arc<Connection>,
    long: bool,
}

impl Drop for Active {
    fn drop(&mut self) {
        let connection = &self.connection;
        if self.long {
            connection.long.fetch_sub(1, Ordering::AcqRel);
        }
        connection.idle_since.store(connection.now(), Ordering::Release);
        connection.begun_at.store(0, Ordering::Relaxed);
        connection.active.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Active {
    /// Returns a response that holds the request's resources until it is consumed.
    pub(super) fn answer(mut self, mut response: Response<Body>) -> Response<Body> {
        let ticket = response.extensions_mut().remove::<Arc<Ticket>>();
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            // The session continues after this response, until the connection ends.
            let mut upgraded = self.connection.upgraded.lock().unwrap_or_else(PoisonError::into_inner);
            let extensions = response.extensions_mut();
            *upgraded =
                Upgraded { _ticket: ticket, _events: extensions.remove(), _counted: extensions.remove() };
            return response;
        }
        if ticket.as_ref().is_some_and(|ticket| ticket.is_long_running()) {
            self.long = true;
            self.connection.long.fetch_add(1, Ordering::AcqRel);
        }
        ticket.iter().for_each(|ticket| ticket.waits());
        let is_watch = response.extensions_mut().remove::<Watching>().is_some();
        let ends = is_watch.then(|| Box::pin(self.connection.draining.clone().cancelled_owned()));
        response.map(|body| Holding { body, active: self, ends, ticket }.boxed_unsync())
    }
}

/// A body that holds a value until it is dropped.
struct Holding {
    body: Body,
    active: Active,
    /// Ends a watch after its last whole event, as its deadline does.
    ends: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    ticket: Option<Arc<Ticket>>,
}

impl http_body::Body for Holding {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.ticket.iter().for_each(|ticket| ticket.works());
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_pending()
            && let Some(ends) = &mut self.ends
            && ends.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(None);
        }
        if frame.is_ready() {
            self.ticket.iter().for_each(|ticket| ticket.waits());
            let connection = &self.active.connection;
            connection.progress_at.store(connection.now(), Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The connection's transport, observed.
#[derive(Debug)]
pub(super) struct Wire<S> {
    stream: S,
    first: FirstLine,
    connection: Arc<Connection>,
}

impl<S> Wire<S> {
    /// Observes a transport of HTTP/1, whose first request line may be long, or of HTTP/2.
    pub(super) fn new(stream: S, connection: Arc<Connection>, places: &Arc<Semaphore>) -> Self {
        let first = if connection.http2 { FirstLine::Over } else { FirstLine::new(places.clone()) };
        Wire { stream, first, connection }
    }
}

impl<S> Drop for Wire<S> {
    fn drop(&mut self) {
        std::mem::take(&mut *self.connection.upgraded.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        loop {
            buffer.put_slice(self.first.pass(buffer.remaining()));
            if buffer.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
            let read = &buffer.filled()[before..];
            if !read.is_empty() {
                self.connection.read_some();
            }
            if matches!(self.first, FirstLine::Over) {
                return Poll::Ready(Ok(()));
            }
            let seen = self.first.read(read);
            buffer.set_filled(before);
            if let Seen::Complete(query) = seen {
                *self.connection.query.lock().unwrap_or_else(PoisonError::into_inner) = query;
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.connection.wrote(result.is_pending());
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.connection.wrote(result.is_pending());
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.connection.wrote(result.is_pending());
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_say_nothing_are_overdue() {
        let limits = Limits::default();
        let took = |connection: Arc<Connection>| {
            let limits = &limits;
            async move {
                let begun = Instant::now();
                let why = connection.overdue(limits).await;
                (why, begun.elapsed().as_secs())
            }
        };
        let silent = Arc::new(Connection::new(false, CancellationToken::new()));
        assert_eq!(took(silent).await, ("a request's headers took too long", 32));
        for http2 in [false, true] {
            let idle = Arc::new(Connection::new(http2, CancellationToken::new()));
            drop(idle.begin());
            assert_eq!(took(idle).await, ("idle", 90));
            let partly = Arc::new(Connection::new(http2, CancellationToken::new()));
            drop(partly.begin());
            tokio::time::sleep(seconds(1)).await;
            partly.read_some();
            let want = if http2 { ("idle", 89) } else { ("a request's headers took too long", 32) };
            assert_eq!(took(partly).await, want);
            let unread = Arc::new(Connection::new(http2, CancellationToken::new()));
            let _active = unread.begin();
            tokio::time::sleep(seconds(100)).await;
            unread.wrote(true);
            let (why, after) = took(unread.clone()).await;
            assert_eq!((why, after), ("an answer was left unread", 60));
        }
        let stuck = Arc::new(Connection::new(true, CancellationToken::new()));
        let _active = stuck.begin();
        let (why, after) = took(stuck.clone()).await;
        assert!(why == "an answer was left unread" && (120..=135).contains(&after), "{why} {after}");
        let busy = Arc::new(Connection::new(false, CancellationToken::new()));
        let mut active = busy.begin();
        active.long = true;
        busy.long.fetch_add(1, Ordering::AcqRel);
        assert!(
            tokio::time::timeout(seconds(4000), busy.overdue(&limits)).await.is_err(),
            "a watch may be quiet"
        );
    }
}
