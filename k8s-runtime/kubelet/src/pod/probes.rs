//! The probe tasks of a pod: one per running container and active probe.

#![expect(clippy::disallowed_methods, reason = "the prober aborts the task with its pod")]

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use k8s_runtime::ContainerId;
use tokio::task::JoinHandle;

use super::{
    life::{Life, Phase},
    worker::Mailbox,
    world::{Message, World},
};
use crate::{
    context::Context,
    probe::{Counter, Kind, Report, handler},
    types::*,
};

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
    pub(crate) fn follow(&mut self, cx: &Arc<Context>, world: &World, mailbox: &Mailbox) {
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
                pod_ips: world.pod_ips.clone(),
                started_at,
                mailbox: mailbox.clone(),
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
    mailbox: Mailbox,
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
                self.mailbox.send(Message::Probe(report));
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
