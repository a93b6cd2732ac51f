//! Keeps the API server's copy of a pod's status current.
//!
//! The worker hands over the newest status and goes on. One task per pod writes it: states that are overtaken while a write is under way
//! are skipped, failures are tried again until they succeed or the pod is gone.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_core::{client::Client, meta::ObjectExt};
use tokio::{sync::watch, task::JoinHandle};
use tracing::{debug, warn};

use super::status;
use crate::types::*;

const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// A step on the way to running waits this long for the next one to overtake it.
const OVERTAKE: Duration = Duration::from_millis(50);

/// A pod's status writer. Dropping it stops it.
pub(crate) struct Writer {
    wanted: watch::Sender<(u64, PodStatus)>,
    written: watch::Receiver<u64>,
    newest: Arc<Mutex<Arc<Pod>>>,
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
        let (wanted, requests) = watch::channel((0, PodStatus::default()));
        let (done, written) = watch::channel(0);
        let task = tokio::spawn(run(client, newest.clone(), requests, done));
        Writer { wanted, written, newest, task }
    }

    /// The pod as the cache has it now.
    pub(crate) fn observe(&self, pod: &Arc<Pod>) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if pod.revision() >= newest.revision() {
            *newest = pod.clone();
        }
    }

    /// This status is to be written.
    pub(crate) fn write(&self, status: PodStatus) {
        self.wanted.send_modify(|(number, slot)| {
            *number += 1;
            *slot = status;
        });
    }

    /// Resolves when everything handed over so far is written, or can no longer be.
    pub(crate) fn flushed(&self) -> impl Future<Output = ()> + Send + 'static {
        let number = self.wanted.borrow().0;
        let mut written = self.written.clone();
        async move {
            let _ = written.wait_for(|done| *done >= number).await;
        }
    }
}

async fn run(
    client: Client,
    newest: Arc<Mutex<Arc<Pod>>>,
    mut requests: watch::Receiver<(u64, PodStatus)>,
    done: watch::Sender<u64>,
) {
    let mut delay = FIRST_DELAY;
    let mut said_starting = false;
    while requests.changed().await.is_ok() {
        if said_starting && is_starting(&requests.borrow().1) {
            requests.mark_unchanged();
            // Both outcomes are fine: a newer status, or this one after all.
            let _ = tokio::time::timeout(OVERTAKE, requests.changed()).await;
        }
        loop {
            let (number, wanted) = requests.borrow_and_update().clone();
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

/// Whether a status says no more than that the pod is on its way.
fn is_starting(status: &PodStatus) -> bool {
    let creating = |container: &ContainerStatus| {
        let waiting = container.state.as_ref().and_then(|s| s.waiting.as_ref());
        waiting.is_some_and(|w| matches!(w.reason.as_deref(), Some("ContainerCreating" | "PodInitializing")))
    };
    let mut containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    status.phase.as_deref() == Some("Pending") && containers.all(creating)
}

/// Writes a status. `false`: try again later.
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
