//! Writes a pod's status to the API server.
//!
//! The worker queues the newest status and continues. One task per pod writes: statuses superseded during a
//! write are skipped, and a failed write is retried until it succeeds or the pod is gone. If somebody else
//! overwrites the kubelet's part of the status, it is restored, at most once a second. A pod that somebody
//! else has set to a terminal phase is left alone.

#![expect(
    clippy::disallowed_methods,
    reason = "the pod aborts its writer; repairs are spaced in virtual time as well"
)]

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_core::{client::Client, meta::ObjectExt};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::Instant,
};
use tracing::{debug, warn};

use super::status;
use crate::types::*;

const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// Delay before writing a status of a starting pod, so that the next status can supersede it.
const OVERTAKE: Duration = Duration::from_millis(50);

/// Minimum time between two writes that restore an overwritten status.
const REPAIR: Duration = Duration::from_secs(1);

/// A status to write.
#[derive(Clone, Debug, Default)]
struct Wanted {
    number: u64,
    status: PodStatus,
    /// Time in which a newer status may supersede it.
    patience: Duration,
}

/// A pod's status writer. Dropping it stops it.
pub(crate) struct Writer {
    wanted: watch::Sender<Wanted>,
    written: watch::Receiver<u64>,
    newest: Arc<Mutex<Arc<Pod>>>,
    /// Notified when somebody else has overwritten the status.
    foreign: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Writer {
    pub(crate) fn start(client: Client, pod: Arc<Pod>) -> Self {
        let newest = Arc::new(Mutex::new(pod));
        let (wanted, requests) = watch::channel(Wanted::default());
        let (done, written) = watch::channel(0);
        let foreign = Arc::new(Notify::new());
        let task = tokio::spawn(run(client, newest.clone(), requests, done, foreign.clone()));
        Writer { wanted, written, newest, foreign, task }
    }

    /// Takes over the pod's newest state from the cache.
    pub(crate) fn observe(&self, pod: &Arc<Pod>) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if pod.revision() < newest.revision() {
            return;
        }
        let changed = pod.status != newest.status;
        *newest = pod.clone();
        drop(newest);
        if changed && self.is_overwritten(pod) {
            self.foreign.notify_one();
        }
    }

    /// Returns `true` if the pod's status differs from the one written last and no newer one is queued.
    fn is_overwritten(&self, pod: &Pod) -> bool {
        let Wanted { number, status: wanted, .. } = self.wanted.borrow().clone();
        if number == 0 || *self.written.borrow() != number {
            return false;
        }
        let phase = |status: Option<&PodStatus>| status.and_then(|s| s.phase.clone()).unwrap_or_default();
        let ended = |phase: String| phase == "Failed" || phase == "Succeeded";
        if ended(phase(pod.status.as_ref())) && !ended(phase(Some(&wanted))) {
            return false;
        }
        let mut merged = pod.clone();
        status::merge(&mut merged, &wanted);
        merged.status != pod.status
    }

    /// Queues a status for writing. A newer one supersedes it, if it comes within `patience`.
    pub(crate) fn write(&self, status: PodStatus, patience: Duration) {
        self.wanted.send_modify(|wanted| *wanted = Wanted { number: wanted.number + 1, status, patience });
    }

    /// Resolves when every queued status is written or can no longer be written.
    pub(crate) fn flushed(&self) -> impl Future<Output = ()> + Send + 'static {
        let number = self.wanted.borrow().number;
        let mut written = self.written.clone();
        async move {
            let _ = written.wait_for(|done| *done >= number).await;
        }
    }
}

async fn run(
    client: Client,
    newest: Arc<Mutex<Arc<Pod>>>,
    mut requests: watch::Receiver<Wanted>,
    done: watch::Sender<u64>,
    foreign: Arc<Notify>,
) {
    let mut delay = FIRST_DELAY;
    let mut said_starting = false;
    let mut repaired: Option<Instant> = None;
    while next(&mut requests, &foreign, &mut repaired).await {
        let patience = {
            let wanted = requests.borrow();
            if said_starting && is_starting(&wanted.status) { OVERTAKE } else { wanted.patience }
        };
        if !patience.is_zero() {
            requests.mark_unchanged();
            // Either a newer status arrives, or the time is up and this one is written.
            let _ = tokio::time::timeout(patience, requests.changed()).await;
        }
        loop {
            let Wanted { number, status: wanted, .. } = requests.borrow_and_update().clone();
            if write(&client, &newest, &wanted).await {
                said_starting = is_starting(&wanted);
                done.send_replace(number);
                delay = FIRST_DELAY;
                break;
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(LONGEST_DELAY);
        }
    }
}

/// Waits for the next status to write: a new one, or the last one again after somebody overwrote it. Returns
/// `false` if the writer is dropped.
async fn next(
    requests: &mut watch::Receiver<Wanted>,
    foreign: &Notify,
    repaired: &mut Option<Instant>,
) -> bool {
    let again = async {
        foreign.notified().await;
        if let Some(at) = *repaired {
            tokio::time::sleep_until(at + REPAIR).await;
        }
    };
    tokio::select! {
        biased;
        changed = requests.changed() => changed.is_ok(),
        () = again => {
            *repaired = Some(Instant::now());
            true
        }
    }
}

/// Returns `true` if the status only says that containers are being created.
fn is_starting(status: &PodStatus) -> bool {
    let creating = |container: &ContainerStatus| {
        let waiting = container.state.as_ref().and_then(|s| s.waiting.as_ref());
        waiting.is_some_and(|w| matches!(w.reason.as_deref(), Some("ContainerCreating" | "PodInitializing")))
    };
    let mut containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    status.phase.as_deref() == Some("Pending") && containers.all(creating)
}

/// Writes a status. Returns `false` if it must be retried.
async fn write(client: &Client, newest: &Mutex<Arc<Pod>>, wanted: &PodStatus) -> bool {
    let base = newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let api = client.namespaced::<Pod>(base.namespace());
    let mut pod = (*base).clone();
    for _ in 0..4 {
        let before = pod.status.clone();
        status::merge(&mut pod, wanted);
        if pod.status == before {
            return true;
        }
        match api.replace_status(base.name(), &pod).await {
            Ok(written) => {
                let mut slot = newest.lock().unwrap_or_else(PoisonError::into_inner);
                if written.revision() > slot.revision() {
                    *slot = Arc::new(written);
                }
                return true;
            }
            Err(e) if e.is_not_found() => return true,
            Err(e) if e.is_conflict() => match api.get_opt(base.name()).await {
                Ok(Some(fresh)) if fresh.uid() == base.uid() => pod = fresh,
                Ok(_) => return true,
                Err(e) => {
                    debug!(pod = %base.key(), error = %e, "status not written");
                    return false;
                }
            },
            Err(e) => {
                warn!(pod = %base.key(), error = %e, "status not written");
                return false;
            }
        }
    }
    false
}
