//! Renewal of the cluster's own certificates while a program runs.
//!
//! Flow: whoever uses a certificate adds a step that signs it again and puts it in place of the former.
//! [`Renewals::run`] takes all steps when a third of the certificates' time is left.
//!
//! Guarantees: a step that fails is told in the log and taken again an hour later; the former certificate
//! stays in use. After a jump of the clock, certificates are valid again within a minute.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{
    error::ClusterError,
    pki::{LEAF, Pki, Validity},
};

/// Time between two looks at the clock.
const LOOK: Duration = Duration::from_secs(60);
/// Time after which a failed renewal is tried again.
const RETRY: Duration = Duration::from_secs(3600);

type Step = Box<dyn Fn() -> Result<(), ClusterError> + Send + Sync>;

/// The steps that renew a program's certificates. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Renewals(Arc<Mutex<Vec<(String, Step)>>>);

impl std::fmt::Debug for Renewals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Renewals")
    }
}

impl Renewals {
    /// Adds a step. `what` names it in the log.
    pub(crate) fn add(
        &self,
        what: impl Into<String>,
        step: impl Fn() -> Result<(), ClusterError> + Send + Sync + 'static,
    ) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((what.into(), Box::new(step)));
    }

    /// Takes all steps. Returns true if all succeeded.
    pub(crate) fn renew(&self) -> bool {
        let steps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = true;
        for (what, step) in steps.iter() {
            match step() {
                Ok(()) => tracing::info!(what, "certificate renewed"),
                Err(error) => {
                    tracing::error!(what, %error, "certificate not renewed; the next attempt is in an hour");
                    all = false;
                }
            }
        }
        all
    }

    /// Renews the certificates, which were signed just now, in time, until `stop`.
    pub(crate) async fn run(self, pki: Arc<Pki>, signed: Validity, stop: CancellationToken) {
        let mut signed = signed;
        let mut wait = LOOK;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = pki.clock().sleep(wait) => {}
            }
            wait = LOOK;
            if !signed.is_due(pki.clock().now(), LEAF) {
                continue;
            }
            let next = pki.validity();
            if self.renew() {
                signed = next;
            }
            // A CA that ends soon limits what it signs, and is told by its own warning.
            if signed.is_due(pki.clock().now(), LEAF) {
                wait = RETRY;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use k8s_core::clock::Clock;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn certificates_are_renewed_in_their_last_third_and_again_after_a_failure() {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::starting_at("2026-11-28T00:00:00Z".parse().unwrap());
        let pki = Arc::new(Pki::open_at("a", directory.path(), clock.clone()).unwrap());
        let renewals = Renewals::default();
        let (taken, fails) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, broken) = (taken.clone(), fails.clone());
        renewals.add("a test", move || {
            count.fetch_add(1, Ordering::SeqCst);
            if broken.load(Ordering::SeqCst) { Err(ClusterError::NoAddress) } else { Ok(()) }
        });
        let stop = CancellationToken::new();
        let running = tokio::spawn(renewals.run(pki.clone(), pki.validity(), stop.clone()));
        let day = Duration::from_secs(24 * 3600);
        let after = async |time: Duration| {
            clock.sleep(time).await;
            taken.load(Ordering::SeqCst)
        };
        assert_eq!(after(243 * day).await, 0);
        assert_eq!(after(day).await, 1);
        assert_eq!(after(200 * day).await, 1, "the renewed ones last as long");
        fails.store(true, Ordering::SeqCst);
        let before = after(45 * day).await;
        assert!(before > 2, "{before}");
        assert_eq!(after(24 * RETRY).await - before, 24, "once an hour");
        fails.store(false, Ordering::SeqCst);
        let mended = after(RETRY + LOOK).await;
        assert_eq!(after(100 * day).await, mended);
        stop.cancel();
        running.await.unwrap();
    }
}
