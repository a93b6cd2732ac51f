//! Liveness, readiness and startup probes.
//!
//! Flow: [`Probes::follow`] runs one task per running container and active probe. The task runs the check,
//! counts results ([`Counter`], pure), and reports to the worker on a failure or a changed verdict. Liveness
//! and readiness probes start after the startup probe has succeeded.

pub(crate) mod check;
pub(crate) mod handler;

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use k8s_runtime::ContainerId;
use tokio::task::JoinHandle;

use crate::{
    context::Context,
    pod::{
        life::{Life, Phase, World},
        worker::{Msg, Post},
    },
    types::*,
};

/// Kind of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    /// Name at the start of event messages.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

/// Result of a probe that the worker must know.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) container: String,
    pub(crate) id: ContainerId,
    pub(crate) kind: Kind,
    /// Message of this attempt's failure.
    pub(crate) failure: Option<String>,
    /// `true` or `false` once the success or failure threshold is reached.
    pub(crate) verdict: Option<bool>,
}

/// Counts consecutive results against the thresholds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counter {
    success_threshold: i32,
    failure_threshold: i32,
    last: Option<bool>,
    row: i32,
}

impl Counter {
    fn new(probe: &Probe) -> Self {
        Counter {
            success_threshold: probe.success_threshold.unwrap_or(1).max(1),
            failure_threshold: probe.failure_threshold.unwrap_or(3).max(1),
            last: None,
            row: 0,
        }
    }

    /// Counts a result and returns the verdict, if a threshold is reached.
    fn take(&mut self, success: bool) -> Option<bool> {
        if self.last == Some(success) {
            self.row = self.row.saturating_add(1);
        } else {
            self.last = Some(success);
            self.row = 1;
        }
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        (self.row >= threshold).then_some(success)
    }
}

/// The running probes of a pod. Dropping it stops them.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    tasks: HashMap<(ContainerId, Kind), JoinHandle<()>>,
}

impl Drop for Probes {
    fn drop(&mut self) {
        for task in self.tasks.values() {
            task.abort();
        }
    }
}

/// Returns the probes that are active in the container's state.
fn due(life: &Life) -> Vec<(Kind, &Probe)> {
    if !life.is_running() || !life.hook_done || life.op.is_some() {
        return Vec::new();
    }
    let spec = &life.spec;
    if !life.started {
        return spec.startup_probe.iter().map(|p| (Kind::Startup, p)).collect();
    }
    let liveness = spec.liveness_probe.iter().map(|p| (Kind::Liveness, p));
    liveness.chain(spec.readiness_probe.iter().map(|p| (Kind::Readiness, p))).collect()
}

impl Probes {
    /// Starts and stops probe tasks by the state of the pod. While the pod terminates, only readiness probes
    /// run.
    pub(crate) fn follow(&mut self, cx: &Arc<Context>, world: &World, pod_ips: &[IpAddr], post: &Post) {
        let ending = world.ending.is_some();
        let mut wanted = Vec::new();
        for life in &world.containers {
            let Some(record) = &life.current else { continue };
            let (Some(id), Phase::Running { started_at }) = (&record.id, &record.phase) else { continue };
            for (kind, probe) in due(life) {
                if !ending || kind == Kind::Readiness {
                    wanted.push(((id.clone(), kind), life, probe, *started_at));
                }
            }
        }
        self.tasks.retain(|key, task| {
            let keep = wanted.iter().any(|(k, ..)| k == key);
            if !keep {
                task.abort();
            }
            keep
        });
        for (key, life, probe, started_at) in wanted {
            if self.tasks.contains_key(&key) {
                continue;
            }
            let prober = Prober {
                cx: cx.clone(),
                container: life.spec.clone(),
                id: key.0.clone(),
                kind: key.1,
                probe: probe.clone(),
                pod_ips: pod_ips.to_vec(),
                started_at,
                post: post.clone(),
            };
            self.tasks.insert(key, tokio::spawn(prober.run()));
        }
    }
}

struct Prober {
    cx: Arc<Context>,
    container: Arc<Container>,
    id: ContainerId,
    kind: Kind,
    probe: Probe,
    pod_ips: Vec<IpAddr>,
    started_at: Timestamp,
    post: Post,
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default))
}

impl Prober {
    async fn run(self) {
        let period = seconds(self.probe.period_seconds, 10);
        let timeout = seconds(self.probe.timeout_seconds, 1);
        let initial = Duration::from_secs(
            self.probe.initial_delay_seconds.and_then(|v| u64::try_from(v).ok()).unwrap_or(0),
        );
        self.cx.clock.sleep(initial.saturating_sub(self.cx.clock.since(self.started_at))).await;
        let mut counter = Counter::new(&self.probe);
        let mut said = None;
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let result = self.check(timeout).await;
            let verdict = counter.take(result.is_ok());
            let failure = result.err();
            // A failed liveness probe is reported every time: the container may have been restarted since the
            // last report.
            let news = verdict.is_some() && verdict != said || verdict == Some(false);
            if news || failure.is_some() {
                said = verdict.or(said);
                let report = Report {
                    container: self.container.name.clone(),
                    id: self.id.clone(),
                    kind: self.kind,
                    failure,
                    verdict,
                };
                self.post.send(Msg::Probe(report));
            }
        }
    }

    async fn check(&self, timeout: Duration) -> Result<(), String> {
        let target = handler::Target {
            cx: &self.cx,
            id: &self.id,
            container: &self.container,
            pod_ips: &self.pod_ips,
        };
        target.probe(&self.probe, timeout).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Probe::default() };
        let mut counter = Counter::new(&probe);
        let results = [true, true, true, false, false, true, false, false, false, false];
        let have: Vec<_> = results.into_iter().map(|r| counter.take(r)).collect();
        let want = [None, Some(true), Some(true), None, None, None, None, None, Some(false), Some(false)];
        assert_eq!(have, want);
    }
}
