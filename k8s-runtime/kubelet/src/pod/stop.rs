//! Stops a container: preStop, the stop signal, and SIGKILL at the end of the grace period.

use std::{net::IpAddr, sync::Arc, time::Duration};

use k8s_core::meta::ObjectExt;
use k8s_runtime::RuntimeError;
use tokio::sync::watch;
use tracing::warn;

use super::{life::Record, records, world::StopContainer};
use crate::{context::Context, probe::handler, types::*};

/// Minimum time between the stop signal and SIGKILL.
const SHORTEST: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_secs(1);

/// The stop of one container.
pub(crate) struct Job {
    pub(crate) cx: Arc<Context>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) what: StopContainer,
    pub(crate) pod_ips: Vec<IpAddr>,
    /// Time of SIGKILL. It may move to an earlier time.
    pub(crate) kill_at: watch::Receiver<Timestamp>,
}

impl Job {
    /// Runs the stop and returns the container's final record. `None`: the runtime does not know the
    /// container.
    pub(crate) async fn run(mut self) -> Option<Record> {
        let name = self.what.container.name.clone();
        self.cx.events.normal(&self.pod, Some(&name), "Killing", &self.what.why);
        self.pre_stop(&name).await;
        loop {
            match self.stop().await {
                Ok(()) | Err(RuntimeError::NotFound { .. }) => break,
                Err(e) => {
                    warn!(pod = %self.pod.key(), container = name, error = %e, "container not stopped, trying again");
                    self.cx.clock.sleep(RETRY).await;
                }
            }
        }
        let status = self.cx.runtime.status(&self.what.id).await.ok()?;
        Some(records::from_runtime(&self.cx, &status))
    }

    fn remaining(&self) -> Duration {
        self.cx.clock.until(*self.kill_at.borrow())
    }

    async fn pre_stop(&mut self, name: &str) {
        let hook = self.what.container.lifecycle.as_ref().and_then(|l| l.pre_stop.clone());
        let Some(hook) = hook else { return };
        let cx = self.cx.clone();
        let container = self.what.container.clone();
        let id = self.what.id.clone();
        let pod_ips = self.pod_ips.clone();
        let target = handler::Target { cx: &cx, id: &id, container: &container, pod_ips: &pod_ips };
        let mut call = std::pin::pin!(target.run(&hook));
        loop {
            let result = tokio::select! {
                result = &mut call => result,
                () = cx.clock.sleep(self.remaining()) => {
                    Err("it did not end within the grace period".to_owned())
                }
                // The grace period was shortened.
                Ok(()) = self.kill_at.changed() => continue,
            };
            if let Err(why) = result {
                self.cx.events.warning(
                    &self.pod,
                    Some(name),
                    "FailedPreStopHook",
                    format!("PreStopHook failed: {why}"),
                );
            }
            return;
        }
    }

    async fn stop(&mut self) -> Result<(), RuntimeError> {
        let runtime = self.cx.runtime.clone();
        let id = self.what.id.clone();
        let grace = self.remaining().max(SHORTEST);
        let mut first = std::pin::pin!(runtime.stop(&id, grace));
        tokio::select! {
            result = &mut first => return result,
            Ok(()) = self.kill_at.changed() => {}
        }
        // Shortened: stop again with the new grace period, and take the result of the call that returns
        // first.
        loop {
            let grace = self.remaining().max(SHORTEST);
            tokio::select! {
                result = &mut first => return result,
                result = runtime.stop(&id, grace) => return result,
                Ok(()) = self.kill_at.changed() => {}
            }
        }
    }
}
