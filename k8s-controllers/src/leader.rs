//! Leader election on a Lease: of several processes, one does the work.
//!
//! Flow: a candidate tries every `retry_period` to take or renew the lease. A lease counts as free when nobody was seen to renew it for
//! `lease_duration` (by the candidate's own clock: clocks of different machines are never compared). A leader that cannot renew for
//! `renew_deadline` stops leading, which is sooner than anyone else may begin.
//!
//! Guarantee: never two leaders, as long as `renew_deadline < lease_duration` and time passes at the same speed everywhere.

use std::time::Duration;

use k8s_core::{
    api::{
        api::coordination::v1::{Lease, LeaseSpec},
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    },
    client::{Api, Client, Error},
    clock::Clock,
    meta::ObjectExt,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

/// How long things take in an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long others wait after the last renewal they saw.
    pub lease_duration: Duration,
    /// How long a leader tries to renew before it gives up.
    pub renew_deadline: Duration,
    /// Between tries.
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

/// The lease was lost; whoever led must stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("lease {lease} was lost by {identity}")]
pub struct Lost {
    /// `namespace/name`.
    pub lease: String,
    /// Who lost it.
    pub identity: String,
}

/// A candidate.
#[derive(Clone, Debug)]
pub struct Candidate {
    leases: Api<Lease>,
    namespace: String,
    name: String,
    identity: String,
    clock: Clock,
    timing: Timing,
}

/// What was seen of the lease, and when it last changed.
struct Observed {
    lease: Lease,
    since: Instant,
}

impl Candidate {
    /// A candidate for the lease `namespace/name`. Identities must differ between processes.
    #[must_use]
    pub fn new(client: &Client, clock: Clock, namespace: &str, name: &str, identity: &str) -> Self {
        Candidate {
            leases: client.namespaced(namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            clock,
            timing: Timing::default(),
        }
    }

    /// With other times.
    #[must_use]
    pub fn timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    /// Waits for leadership, then runs `lead` until it ends or leadership is lost. `lead` is given a token that is cancelled when it must
    /// stop: on loss, or when `shutdown` is. At the end the lease is given up, so that the next candidate need not wait.
    ///
    /// # Errors
    /// [`Lost`] when the lease could not be renewed in time.
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
                () = tokio::time::sleep(self.jittered()) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
        }
        info!(lease = self.name, identity = self.identity, "leading");
        let stop = shutdown.child_token();
        let work = lead(stop.clone());
        tokio::pin!(work);
        let result = tokio::select! {
            () = &mut work => Ok(()),
            lost = self.hold(&mut observed) => {
                stop.cancel();
                work.await;
                Err(lost)
            }
        };
        if result.is_ok() {
            self.release(observed).await;
        }
        result
    }

    /// Spread a little, so that candidates do not all try at one moment.
    fn jittered(&self) -> Duration {
        self.timing.retry_period.mul_f64(rand::random_range(1.0..1.2))
    }

    /// Renews until that fails for too long.
    async fn hold(&self, observed: &mut Option<Observed>) -> Lost {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(self.timing.retry_period).await;
            let left = (renewed + self.timing.renew_deadline).saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, self.try_acquire(observed)).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                // Someone else has it: nothing to wait for.
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

    /// Takes or renews the lease; `false`: someone else holds it.
    async fn try_acquire(&self, observed: &mut Option<Observed>) -> Result<bool, Error> {
        let Some(live) = self.leases.get_opt(&self.name).await? else {
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
                Err(e) if e.is_already_exists() => Ok(false),
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

    /// Gives the lease up; if that fails it runs out by itself.
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
