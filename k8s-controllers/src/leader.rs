//! Leader election on a Lease: one of several processes works.
//!
//! Flow: a candidate tries every `retry_period` to acquire or renew the lease. A lease counts as expired when
//! no renewal was observed for `lease_duration` by the candidate's own clock; clocks of different machines
//! are never compared. A leader that cannot renew for `renew_deadline` stops leading, which is before any
//! other can start.
//!
//! It needs three calls of an API ([`Leases`]). Our client has them, and three lines each provide them for
//! any other client, such as `kube::Client`.
//!
//! Guarantee: never two leaders, if `renew_deadline < lease_duration` and all clocks run at the same speed.
//! Work that ignores its stop signal is dropped before another leader can start, and a client behind the
//! [`Fence`] refuses writes from then on.

#![expect(
    clippy::disallowed_methods,
    reason = "leases are judged by local intervals, never by the time in them; virtual time as well"
)]

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use http::{Method, Request, Response};

use k8s_core::{
    api::{
        api::coordination::v1::{Lease, LeaseSpec},
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    },
    client::{Api, Body, BoxError, Client, Transport},
    clock::Clock,
    meta::ObjectExt,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

/// Durations of an election.
///
/// ```
/// use std::time::Duration;
/// use k8s_controllers::leader::Timing;
/// let timing = Timing { retry_period: Duration::from_secs(1), ..Timing::default() };
/// assert!(timing.renew_deadline < timing.lease_duration);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Time after the last observed renewal at which the lease expires for others.
    pub lease_duration: Duration,
    /// Time for which a leader retries to renew before it stops leading.
    pub renew_deadline: Duration,
    /// Interval of attempts.
    pub retry_period: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// The lease was lost; the leader must stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("lease {lease} was lost by {identity}")]
pub struct Lost {
    /// Lease, as `namespace/name`.
    pub lease: String,
    /// Identity of the former leader.
    pub identity: String,
}

/// Error of a lease call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// Lost a race: the lease exists already, or was changed meanwhile.
    #[error("lost a race for the lease: {0}")]
    Race(BoxError),
    /// Any other failure. Retried.
    #[error(transparent)]
    Other(BoxError),
}

/// The lease operations of one namespace that an election needs.
pub trait Leases: Send + Sync + 'static {
    /// Reads a lease; `None` if it does not exist.
    fn get(&self, name: &str) -> impl Future<Output = Result<Option<Lease>, LeaseError>> + Send;
    /// Creates a lease.
    fn create(&self, lease: &Lease) -> impl Future<Output = Result<Lease, LeaseError>> + Send;
    /// Replaces a lease, with its resourceVersion as optimistic lock.
    fn replace(&self, name: &str, lease: &Lease) -> impl Future<Output = Result<Lease, LeaseError>> + Send;
}

impl From<k8s_core::client::Error> for LeaseError {
    fn from(error: k8s_core::client::Error) -> Self {
        if error.is_conflict() || error.is_already_exists() {
            LeaseError::Race(error.into())
        } else {
            LeaseError::Other(error.into())
        }
    }
}

impl Leases for Api<Lease> {
    async fn get(&self, name: &str) -> Result<Option<Lease>, LeaseError> {
        Ok(self.get_opt(name).await?)
    }
    async fn create(&self, lease: &Lease) -> Result<Lease, LeaseError> {
        Ok(Api::create(self, lease).await?)
    }
    async fn replace(&self, name: &str, lease: &Lease) -> Result<Lease, LeaseError> {
        Ok(Api::replace(self, name, lease).await?)
    }
}

/// Tracks the time until which leadership is certain. Clones share their state.
#[derive(Clone, Debug, Default)]
pub struct Fence(Arc<Mutex<Option<Instant>>>);

impl Fence {
    fn until(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, until: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// Returns true while no other process can lead.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.until().is_some_and(|until| Instant::now() < until)
    }

    /// Returns a client that writes only while no other process can lead.
    #[must_use]
    pub fn client(&self, client: &Client) -> Client {
        Client::new(Fenced { client: client.clone(), fence: self.clone() }).named(client.name())
    }
}

struct Fenced {
    client: Client,
    fence: Fence,
}

impl fmt::Debug for Fenced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fenced").field("fence", &self.fence).finish_non_exhaustive()
    }
}

impl Transport for Fenced {
    fn call(&self, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
        if !reads && !self.fence.holds() {
            return async { Err("not sent: the lease that permits it is lost".into()) }.boxed();
        }
        let client = self.client.clone();
        async move { Ok(client.send(request).await?) }.boxed()
    }

    fn host(&self) -> &str {
        self.client.host()
    }
}

/// A candidate of an election.
///
/// ```
/// use k8s_controllers::leader::{Candidate, Lost};
/// use k8s_core::{client::Client, clock::Clock};
/// use tokio_util::sync::CancellationToken;
///
/// async fn lead(client: Client, shutdown: CancellationToken) -> Result<(), Lost> {
///     let candidate = Candidate::new(&client, Clock::system(), "kube-system", "shop-operator", "machine-1");
///     // Writes through it fail once leadership is no longer certain.
///     let fenced = candidate.fence().client(&client);
///     candidate.run(shutdown, |stop| async move {
///         println!("leading as {}", fenced.name());
///         stop.cancelled().await;
///     }).await
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Candidate<L = Api<Lease>> {
    leases: L,
    namespace: String,
    name: String,
    identity: String,
    clock: Clock,
    timing: Timing,
    fence: Fence,
}

/// The last observed lease, and the time of its last change.
struct Observed {
    lease: Lease,
    since: Instant,
}

impl Candidate<Api<Lease>> {
    /// Creates a candidate for the lease `namespace/name`. Each process needs its own identity.
    #[must_use]
    pub fn new(client: &Client, clock: Clock, namespace: &str, name: &str, identity: &str) -> Self {
        Candidate::over(client.namespaced(namespace), clock, namespace, name, identity)
    }
}

impl<L: Leases> Candidate<L> {
    /// As [`Candidate::new`], over any client's leases of that namespace.
    #[must_use]
    pub fn over(leases: L, clock: Clock, namespace: &str, name: &str, identity: &str) -> Self {
        Candidate {
            leases,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            clock,
            timing: Timing::default(),
            fence: Fence::default(),
        }
    }

    /// Returns the fence of this candidate's leadership.
    #[must_use]
    pub fn fence(&self) -> Fence {
        self.fence.clone()
    }

    /// Sets the durations.
    #[must_use]
    pub fn timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    /// Waits for leadership, then runs `lead` until it ends or leadership is lost. The token given to `lead`
    /// is cancelled when it must stop: on loss, or with `shutdown`. Work that has not stopped before another
    /// process can lead is dropped. At the end the lease is released, so that the next candidate need not
    /// wait.
    ///
    /// # Errors
    /// [`Lost`] if the lease could not be renewed in time.
    pub async fn run<F: Future<Output = ()>>(
        self,
        shutdown: CancellationToken,
        lead: impl FnOnce(CancellationToken) -> F,
    ) -> Result<(), Lost> {
        let mut observed = None;
        loop {
            match self.try_acquire(&mut observed).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(e) => debug!(lease = self.name, error = %e, "lease not acquired"),
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(self.jittered()) => {}
            }
        }
        info!(lease = self.name, identity = self.identity, "leading");
        let stop = shutdown.child_token();
        let work = lead(stop.clone());
        tokio::pin!(work);
        let result = tokio::select! {
            biased;
            () = &mut work => Ok(()),
            lost = self.hold(&mut observed) => {
                stop.cancel();
                let until = self.fence.until().unwrap_or_else(Instant::now);
                if tokio::time::timeout_at(until, &mut work).await.is_err() {
                    tracing::warn!(lease = self.name, identity = self.identity, "the work did not stop in time and is dropped");
                }
                Err(lost)
            }
        };
        self.fence.set(None);
        if result.is_ok() {
            self.release(observed).await;
        }
        result
    }

    /// Returns the retry period with jitter, so that candidates do not try at the same moment.
    fn jittered(&self) -> Duration {
        self.timing.retry_period.mul_f64(k8s_core::random::range(1.0..1.2))
    }

    /// Renews the lease until that fails for `renew_deadline`.
    async fn hold(&self, observed: &mut Option<Observed>) -> Lost {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(self.timing.retry_period).await;
            let left = (renewed + self.timing.renew_deadline).saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, self.try_acquire(observed)).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                // Another process holds it: waiting is useless.
                Ok(Ok(false)) => return self.lost(),
                Ok(Err(e)) => debug!(lease = self.name, error = %e, "lease not renewed"),
                Err(_) => {}
            }
            if renewed.elapsed() >= self.timing.renew_deadline {
                return self.lost();
            }
        }
    }

    fn lost(&self) -> Lost {
        Lost { lease: format!("{}/{}", self.namespace, self.name), identity: self.identity.clone() }
    }

    /// Acquires or renews the lease; returns `false` if another process holds it.
    async fn try_acquire(&self, observed: &mut Option<Observed>) -> Result<bool, LeaseError> {
        // Taken before the request: no other process can have observed it earlier.
        let tried = Instant::now();
        let mine = self.try_write(observed).await?;
        if mine {
            self.fence.set(Some(tried + self.timing.lease_duration));
        }
        Ok(mine)
    }

    async fn try_write(&self, observed: &mut Option<Observed>) -> Result<bool, LeaseError> {
        let Some(live) = self.leases.get(&self.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    namespace: Some(self.namespace.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(None)),
            };
            return match self.leases.create(&lease).await {
                Ok(lease) => {
                    *observed = Some(Observed { lease, since: Instant::now() });
                    Ok(true)
                }
                Err(LeaseError::Race(_)) => Ok(false),
                Err(e) => Err(e),
            };
        };
        let changed = observed.as_ref().is_none_or(|o| o.lease.revision() != live.revision());
        if changed {
            *observed = Some(Observed { lease: live.clone(), since: Instant::now() });
        }
        let since = observed.as_ref().map_or_else(Instant::now, |o| o.since);
        let spec = live.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if !holder.is_empty() && holder != self.identity {
            let announced = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
            let duration = announced.map_or(self.timing.lease_duration, Duration::from_secs);
            if since.elapsed() < duration {
                return Ok(false);
            }
        }
        let next = Lease { spec: Some(self.spec(Some(&spec))), ..live };
        match self.leases.replace(&self.name, &next).await {
            Ok(lease) => {
                *observed = Some(Observed { lease, since: Instant::now() });
                Ok(true)
            }
            Err(e) => Err(e),
        }
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = self.clock.micro_time();
        let mine = before.is_some_and(|b| b.holder_identity.as_deref() == Some(self.identity.as_str()));
        let transitions = before.and_then(|b| b.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(
                i32::try_from(self.timing.lease_duration.as_secs()).unwrap_or(i32::MAX),
            ),
            acquire_time: before.filter(|_| mine).and_then(|b| b.acquire_time.clone()).or(Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if mine || before.is_none() { transitions } else { transitions + 1 }),
            ..LeaseSpec::default()
        }
    }

    /// Releases the lease; if that fails it expires.
    async fn release(&self, observed: Option<Observed>) {
        let Some(Observed { mut lease, .. }) = observed else { return };
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
        }
        if let Err(e) = self.leases.replace(&self.name, &lease).await {
            debug!(lease = self.name, error = %e, "lease not released");
        }
    }
}
