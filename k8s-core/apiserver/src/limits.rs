//! Limits of resources that socket clients hold: requests, long-running requests, body bytes, time.
//!
//! Flow: the listener marks each request with its `LastAccount`. When its user is known it gets a
//! `Ticket`, or
//! 429. The ticket is held until the answer's last byte is taken; an upgraded connection holds it until
//!      it ends. Calls in the same process have no connection and no limits.
//!
//! The number of requests is bounded by priority and fairness (`fair`), in whose queues they wait.
//! Without it, a request waits up to a second for a place.
//!
//! Guarantee: one user holds at most half of each limit, so no user can block others. As upstream, members of
//! `system:masters` are never rejected for the number of requests, only for bytes.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use k8s_core::{
    client::{Body, BoxError},
    status::{ApiStatus, Reason},
};

use k8s_store::Store;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    fair::{Entry, Fairness, Rejected, Schema, Seat},
    request::RequestInfo,
    user::User,
};

/// Limits of socket clients. 0 means unlimited.
///
/// ```
/// use k8s_apiserver::limits::Limits;
/// let mut limits = Limits::default();
/// limits.requests = 50; // a small machine
/// assert!(limits.mutating > 0 && limits.request_timeout.as_secs() == 60);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Concurrent read-only requests (`--max-requests-inflight`). Half of it per user. With priority and
    /// fairness, its sum with `mutating` is the number of seats, which levels share.
    pub requests: usize,
    /// Concurrent mutating requests (`--max-mutating-requests-inflight`). Half of it per user.
    pub mutating: usize,
    /// Priority and fairness (`--enable-priority-and-fairness`) in place of the two limits before.
    /// Without any seats, it is off.
    pub fairness: bool,
    /// Concurrent watches, execs, attaches, port-forwards, followed logs and proxied requests. Half of it per
    /// user.
    pub long_running: usize,
    /// Total size of request bodies in bytes. Half of it per user.
    pub body_bytes: usize,
    /// Time from a request's headers to the start of its response (`--request-timeout`). Long-running
    /// requests are exempt.
    pub request_timeout: Duration,
    /// Time for a request's headers, and for the first request of a connection.
    pub header_timeout: Duration,
    /// Time that a connection may be idle.
    pub idle_timeout: Duration,
    /// Time for the TLS handshake.
    pub handshake_timeout: Duration,
    /// Time that a client may leave a response unread. Long-running requests are exempt.
    pub stalled_timeout: Duration,
    /// Open connections. Beyond this the connection that was idle longest is closed.
    pub connections: usize,
    /// Time for requests in flight when the listener stops. Watches end at once, other long-running requests
    /// when all others have.
    pub drain_timeout: Duration,
    /// After the listener is told to stop, answer new requests with 429 until those in flight have ended
    /// (`--shutdown-send-retry-after`), instead of accepting none.
    pub retry_after_on_shutdown: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            requests: 400,
            mutating: 200,
            fairness: true,
            long_running: 20_000,
            body_bytes: 24 << 20,
            request_timeout: Duration::from_secs(60),
            header_timeout: Duration::from_secs(32),
            idle_timeout: Duration::from_secs(90),
            handshake_timeout: Duration::from_secs(10),
            stalled_timeout: Duration::from_secs(60),
            connections: 16_384,
            drain_timeout: Duration::from_secs(60),
            retry_after_on_shutdown: false,
        }
    }
}

/// Classes of requests with separate limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Reading,
    Mutating,
    LongRunning,
}

impl Class {
    /// Classifies as upstream (`--long-running-request-regexp` and the read verbs).
    pub(crate) fn of(info: &RequestInfo) -> Self {
        let long = matches!(info.verb.as_str(), "watch" | "proxy")
            || matches!(info.subresource.as_str(), "attach" | "exec" | "proxy" | "log" | "portforward");
        match info.verb.as_str() {
            _ if long => Class::LongRunning,
            "get" | "list" | "head" | "options" => Class::Reading,
            _ => Class::Mutating,
        }
    }
}

/// Semaphores and counters of one holder.
#[derive(Debug)]
struct Held {
    /// Places of requests by class.
    requests: [Arc<Semaphore>; 3],
    /// Number of waiting requests.
    waiting: AtomicUsize,
    bytes: AtomicUsize,
    /// Places of CPU-heavy work.
    heavy: Arc<Semaphore>,
    /// Places of large converted response chunks that the client has not consumed.
    pieces: Arc<Semaphore>,
}

impl Held {
    fn new(requests: [usize; 3], heavy: usize, pieces: usize) -> Self {
        // 0 means unlimited.
        let places = |most| Arc::new(Semaphore::new(if most == 0 { Semaphore::MAX_PERMITS } else { most }));
        Held {
            requests: requests.map(places),
            waiting: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            heavy: Arc::new(Semaphore::new(heavy)),
            pieces: Arc::new(Semaphore::new(pieces)),
        }
    }
}

/// Concurrent large converted response chunks. Half of them per user.
const PIECES: usize = 16;

/// Returns the number of places for CPU-heavy work (decoding a large body): twice the number of processors.
fn heavy() -> usize {
    2 * std::thread::available_parallelism().map_or(1, usize::from)
}

/// A place from a user's share and one from the total.
#[derive(Debug)]
pub(crate) struct Place {
    _own: Option<OwnedSemaphorePermit>,
    _all: Option<OwnedSemaphorePermit>,
}

impl Place {
    async fn take(own: &Arc<Semaphore>, all: &Arc<Semaphore>) -> Self {
        // The semaphores are never closed.
        let own = own.clone().acquire_owned().await.ok();
        Place { _own: own, _all: all.clone().acquire_owned().await.ok() }
    }
}

/// Adds `n` unless the sum exceeds `most` (0: unlimited).
fn add(number: &AtomicUsize, n: usize, most: usize) -> bool {
    let more = |now: usize| now.checked_add(n).filter(|sum| most == 0 || *sum <= most);
    number.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
}

/// Returns the limit of each class, in order.
fn numbers(limits: &Limits) -> [usize; 3] {
    [limits.requests, limits.mutating, limits.long_running]
}

/// Returns one user's share of a limit.
fn share(most: usize) -> usize {
    most.div_ceil(2)
}

/// The limits, and the current holdings in total and by user.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) limits: Limits,
    /// Priority and fairness, unless it is off.
    pub(crate) fair: Option<Arc<Fairness>>,
    all: Held,
    users: Mutex<HashMap<Box<str>, Weak<Account>>>,
}

/// Holdings of one user.
#[derive(Debug)]
pub(crate) struct Account {
    user: Box<str>,
    held: Held,
}

/// Account of a connection's last user, since most connections have one user. In the extensions of requests
/// that came over a socket.
#[derive(Debug, Default)]
pub(crate) struct LastAccount {
    known: Mutex<Option<Arc<Account>>>,
    /// True if the connection has one request at a time.
    alone: AtomicBool,
}

impl LastAccount {
    /// Notes whether a request that begins is the only one of its connection.
    pub(crate) fn note(&self, alone: bool) {
        self.alone.store(alone, Ordering::Relaxed);
    }

    /// Returns a number for the connection, if it has one request at a time.
    fn source(&self) -> Option<usize> {
        self.alone.load(Ordering::Relaxed).then(|| std::ptr::from_ref(self).addr())
    }
}

/// The right of one request to be worked on.
#[derive(Debug)]
pub(crate) struct Ticket {
    gate: Arc<Gate>,
    account: Arc<Account>,
    class: Class,
    /// True for members of `system:masters`, who have no share.
    unshared: bool,
    _places: Option<Place>,
    /// Seat in the request's level.
    seat: Option<Seat>,
    bytes: AtomicUsize,
    /// Place for CPU-heavy work, while held.
    place: Mutex<Option<Place>>,
}

impl Gate {
    pub(crate) fn new(limits: Limits, metrics: &k8s_metrics::Registry) -> Self {
        let all = Held::new(numbers(&limits), heavy(), PIECES);
        let seats = limits.requests + limits.mutating;
        // As upstream, a quarter of a request's time.
        let wait = match limits.request_timeout {
            Duration::ZERO => LONGEST_QUEUE_WAIT,
            timeout => (timeout / 4).min(LONGEST_QUEUE_WAIT),
        };
        let fair = (limits.fairness && seats > 0).then(|| Fairness::new(seats, wait, metrics));
        Gate { limits, fair, all, users: Mutex::default() }
    }

    /// Returns the flow schema of a request; `None` if priority and fairness is off, or does not apply to it.
    pub(crate) fn classify(&self, store: &Store, user: &User, info: &RequestInfo) -> Option<Arc<Schema>> {
        let fair = self.fair.as_ref()?;
        let applies = info.verb == "watch" || Class::of(info) != Class::LongRunning;
        if applies { fair.classify(store, user, info) } else { None }
    }

    /// Returns the account of a user, and remembers it as the connection's last one.
    fn account(&self, last: &LastAccount, user: &str) -> Arc<Account> {
        let mut known = last.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = known.as_ref().filter(|account| *account.user == *user) {
            return account.clone();
        }
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let account = users.get(user).and_then(Weak::upgrade).unwrap_or_else(|| {
            if users.len() >= 1024 && users.len().is_power_of_two() {
                users.retain(|_, account| account.strong_count() > 0);
            }
            let account = Arc::new(Account {
                user: user.into(),
                held: Held::new(numbers(&self.limits).map(share), share(heavy()), share(PIECES)),
            });
            users.insert(user.into(), Arc::downgrade(&account));
            account
        });
        *known = Some(account.clone());
        account
    }

    /// Admits a request, at once or after others have ended. `schema` is its flow schema, if it has one, and
    /// `seats` its width there.
    ///
    /// # Errors
    /// 429 if there are too many.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        last: &LastAccount,
        user: &User,
        info: &RequestInfo,
        schema: Option<&Arc<Schema>>,
        seats: impl FnOnce(usize) -> usize,
    ) -> Result<Arc<Ticket>, ApiStatus> {
        let class = Class::of(info);
        let unshared = user.groups.iter().any(|group| group == "system:masters");
        let account = self.account(last, &user.name);
        let is_fair = self.fair.is_some() && class != Class::LongRunning;
        let places = match unshared || is_fair {
            true => None,
            false => Some(self.places(&account, class).await?),
        };
        let seat = match (&self.fair, schema) {
            (Some(fair), Some(schema)) => {
                let entered = match fair.enter(schema, user, info, last.source(), seats) {
                    Entry::Done(done) => done,
                    Entry::Waits(waiting) => waiting.await,
                };
                Some(entered.map_err(|Rejected(seconds)| busy(seconds))?)
            }
            _ => None,
        };
        Ok(Arc::new(Ticket {
            gate: self.clone(),
            account,
            class,
            unshared,
            _places: places,
            seat,
            bytes: AtomicUsize::new(0),
            place: Mutex::default(),
        }))
    }

    /// Takes a place from the user's share and one from the total. Waits up to [`LONGEST_WAIT`], so that a
    /// client with many concurrent requests is slowed down instead of rejected.
    async fn places(&self, account: &Account, class: Class) -> Result<Place, ApiStatus> {
        let (own, all) = (&account.held.requests[class as usize], &self.all.requests[class as usize]);
        if let Some(own) = own.clone().try_acquire_owned().ok()
            && let Some(all) = all.clone().try_acquire_owned().ok()
        {
            return Ok(Place { _own: Some(own), _all: Some(all) });
        }
        let waiting = &account.held.waiting;
        if class == Class::LongRunning || waiting.fetch_add(1, Ordering::AcqRel) >= MOST_WAITING {
            if class != Class::LongRunning {
                waiting.fetch_sub(1, Ordering::AcqRel);
            }
            return Err(busy(1));
        }
        let place = tokio::time::timeout(LONGEST_WAIT, Place::take(own, all)).await;
        waiting.fetch_sub(1, Ordering::AcqRel);
        place.map_err(|_| busy(1))
    }
}

/// Time that a request may wait for a place.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Most time that a request waits for a seat.
const LONGEST_QUEUE_WAIT: Duration = Duration::from_secs(60);
/// Maximum number of waiting requests per user.
const MOST_WAITING: usize = 1000;

/// Returns 429 with upstream's message, and the pause in seconds.
fn busy(seconds: u64) -> ApiStatus {
    let seconds = i32::try_from(seconds).unwrap_or(i32::MAX);
    ApiStatus::of(Reason::TooManyRequests, "Too many requests, please try again later.").retry_after(seconds)
}

impl Ticket {
    pub(crate) fn is_long_running(&self) -> bool {
        self.class == Class::LongRunning
    }

    /// Gives the seat back: the request goes on, but needs none any more.
    pub(crate) fn leave_seat(&self) {
        self.seat.iter().for_each(Seat::leave);
    }

    /// Notes that the request waits for its client.
    pub(crate) fn waits(&self) {
        self.seat.iter().for_each(Seat::waits);
    }

    /// Notes that the server works on the request.
    pub(crate) fn works(&self) {
        self.seat.iter().for_each(Seat::works);
    }

    /// Accounts for body bytes until the ticket is dropped.
    fn take_bytes(&self, n: usize) -> bool {
        let most = self.gate.limits.body_bytes;
        let own = if self.unshared { 0 } else { share(most) };
        if !add(&self.account.held.bytes, n, own) {
            return false;
        }
        if !add(&self.gate.all.bytes, n, most) {
            self.account.held.bytes.fetch_sub(n, Ordering::AcqRel);
            return false;
        }
        self.bytes.fetch_add(n, Ordering::AcqRel);
        true
    }

    /// Waits for a place for CPU-heavy work.
    pub(crate) async fn heavy(&self) -> Place {
        Place::take(&self.account.held.heavy, &self.gate.all.heavy).await
    }

    /// Waits for a place for a large converted response chunk.
    pub(crate) async fn piece(&self) -> Place {
        Place::take(&self.account.held.pieces, &self.gate.all.pieces).await
    }

    /// Wraps a body to account for its bytes.
    pub(crate) fn count(self: &Arc<Self>, body: Body) -> Body {
        let none = self.is_long_running() || http_body::Body::is_end_stream(&body);
        if none { body } else { Counted { body, ticket: self.clone() }.boxed_unsync() }
    }

    /// Holds a place until the response starts.
    pub(crate) fn keep(&self, place: Place) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
    }

    /// Awaits the processing of a request with the request timeout.
    ///
    /// # Errors
    /// 504 with upstream's message, or the processing's own error.
    pub(crate) async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, ApiStatus>>,
    ) -> Result<T, ApiStatus> {
        let timeout = self.gate.limits.request_timeout;
        if self.is_long_running() || timeout.is_zero() {
            return work.await;
        }
        let done = tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| {
            let message = "Timeout: request did not complete within the allotted timeout";
            Err(ApiStatus::of(Reason::Timeout, message))
        });
        self.place.lock().unwrap_or_else(PoisonError::into_inner).take();
        done
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        for held in [&self.account.held, &self.gate.all] {
            held.bytes.fetch_sub(bytes, Ordering::AcqRel);
        }
    }
}

/// The ticket of a watch, which gives its seat back when the initial events are sent. In the extensions
/// of its response.
#[derive(Clone, Debug, Default)]
pub(crate) struct InitialEvents(Arc<Mutex<Option<Arc<Ticket>>>>);

impl InitialEvents {
    /// Sets the ticket.
    pub(crate) fn of(&self, ticket: &Arc<Ticket>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(ticket.clone());
    }

    /// Gives the seat back.
    pub(crate) fn sent(&self) {
        if let Some(ticket) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            ticket.leave_seat();
        }
    }
}

/// Body error: no bytes are left.
#[derive(Debug, thiserror::Error)]
#[error("too many bytes of request bodies")]
pub(crate) struct Crowded;

impl From<&Crowded> for ApiStatus {
    fn from(_: &Crowded) -> Self {
        busy(1)
    }
}

struct Counted {
    body: Body,
    ticket: Arc<Ticket>,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                self.ticket.waits();
                return Poll::Pending;
            }
        };
        self.ticket.works();
        let length = match &frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        if self.ticket.take_bytes(length) {
            Poll::Ready(frame)
        } else {
            Poll::Ready(Some(Err(Crowded.into())))
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::request::Query;

    fn info(method: &str, path: &str) -> RequestInfo {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        RequestInfo::parse(&method.parse::<Method>().unwrap(), path, &Query::parse(query))
    }

    #[test]
    fn classes_are_upstreams() {
        let pod = "/api/v1/namespaces/n/pods/p";
        for (method, path, class) in [
            ("GET", pod.to_owned(), Class::Reading),
            ("GET", "/apis".to_owned(), Class::Reading),
            ("GET", "/api/v1/pods?watch=1".to_owned(), Class::LongRunning),
            ("POST", format!("{pod}/exec"), Class::LongRunning),
            ("GET", format!("{pod}/log"), Class::LongRunning),
            ("GET", format!("{pod}/proxy/x"), Class::LongRunning),
            ("PUT", format!("{pod}/status"), Class::Mutating),
            ("DELETE", "/api/v1/namespaces/n/pods".to_owned(), Class::Mutating),
        ] {
            assert_eq!(Class::of(&info(method, &path)), class, "{method} {path}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_has_half_and_masters_always_get_in() {
        let limits = Limits { requests: 4, body_bytes: 100, fairness: false, ..Limits::default() };
        let gate = Arc::new(Gate::new(limits, &k8s_metrics::Registry::default()));
        let read = info("GET", "/api/v1/pods");
        let connection = LastAccount::default();
        let (gate, connection, read) = (&gate, &connection, &read);
        let enter = |user: &User| {
            let user = user.clone();
            async move { gate.enter(connection, &user, read, None, |_| 1).await }
        };
        let (a, b, c) = (User::new("a", &[]), User::new("b", &[]), User::new("c", &[]));
        let held = [enter(&a).await.unwrap(), enter(&a).await.unwrap()];
        let refused = enter(&a).await.unwrap_err();
        assert_eq!((refused.code(), refused.reason()), (429, "TooManyRequests"));
        assert_eq!(refused.status().details.as_ref().unwrap().retry_after_seconds, Some(1));
        let others = [enter(&b).await.unwrap(), enter(&b).await.unwrap()];
        assert!(enter(&c).await.is_err(), "all are taken");
        let master = enter(&User::new("admin", &["system:masters"])).await.unwrap();
        assert!(held[0].take_bytes(50) && !held[1].take_bytes(1) && others[0].take_bytes(40));
        assert!(!others[1].take_bytes(11) && !master.take_bytes(11) && master.take_bytes(10));
        let waiting = enter(&c);
        let end = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            drop((held, master));
        };
        let (entered, ()) = futures::future::join(waiting, end).await;
        assert!(entered.unwrap().take_bytes(50), "who waits gets what is given back");
    }
}
