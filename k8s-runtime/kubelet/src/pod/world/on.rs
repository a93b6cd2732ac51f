//! The transitions: the changes that each message makes.

use std::time::Duration;

use super::*;
use crate::probe::{self, Kind};

/// Delay before retrying a failed refresh of volumes.
const REFRESH_RETRY: Duration = Duration::from_secs(10);
const LONGEST_MOUNT_DELAY: Duration = Duration::from_secs(122);
/// Least grace period of a pod.
pub(super) const SHORTEST_GRACE: Duration = Duration::from_secs(1);
const SANDBOX_GONE: &str = "The pod's sandbox is gone";

pub(super) fn after(now: Timestamp, delay: Duration) -> Timestamp {
    now.saturating_add(delay).unwrap_or(now)
}

impl World {
    /// Applies messages and returns effects in order. All messages are applied before the next steps are
    /// decided, since they may belong together, such as the end of a container and of its sandbox.
    pub(crate) fn on(&mut self, now: Timestamp, messages: impl IntoIterator<Item = Message>) -> Vec<Effect> {
        let mut effects = Vec::new();
        for message in messages {
            self.take(now, message, &mut effects);
        }
        self.follow_resize(now, &mut effects);
        self.step(now, &mut effects);
        effects
    }

    /// Returns `true` if nothing is left to do for the pod.
    pub(crate) fn is_finished(&self) -> bool {
        self.gone && self.ending.is_some_and(|e| e.stage == Stage::Finished)
    }

    fn take(&mut self, now: Timestamp, message: Message, effects: &mut Vec<Effect>) {
        match message {
            Message::Adopt { seen, refusal } => self.adopt(now, seen, refusal, effects),
            Message::Tick => {}
            Message::Disrupt(why) => self.on_disruption(now, why, effects),
            Message::Pod(pod) => self.on_pod(now, pod, effects),
            Message::Gone(pod) => {
                self.desired = pod;
                self.pod = self.allocation.apply(&self.desired);
                self.gone = true;
                self.shorten(now, effects);
            }
            Message::Container(Observed { name, record }) => {
                let Some(life) = self.life(&name) else { return };
                let known = life.current.as_ref().is_some_and(|r| r.id == record.id);
                // While a container is being started, its state comes with the result of the start, except
                // for an exit.
                if known || (life.op == Some(Op::Starting) && record.exit().is_some()) {
                    self.observe(&name, record);
                }
            }
            Message::SandboxGone { id, containers } => self.on_sandbox_gone(now, &id, containers, effects),
            Message::Listed(seen) => self.on_listed(now, seen),
            Message::Services => self.services_known = true,
            Message::Volumes(result) => self.on_volumes(now, result, effects),
            Message::Sandbox(Ok((sandbox, ips))) => self.on_sandbox(sandbox, ips),
            Message::Sandbox(Err(why)) => {
                let message = format!("Failed to create pod sandbox: {why}");
                self.on_sandbox_failed(now, "FailedCreatePodSandBox", message, effects);
            }
            Message::Unprepared(why) => {
                let message = format!("Failed to prepare dynamic resources: {why}");
                self.on_sandbox_failed(now, "FailedPrepareDynamicResources", message, effects);
            }
            Message::Running { name, record } => self.observe(&name, record),
            Message::Started { name, outcome } => self.on_started(&name, outcome),
            Message::Stopped { name, record } => self.on_stopped(now, &name, record),
            Message::Probe(report) => self.on_probe(&report, effects),
            Message::Source => {
                let on_source = |hold: &mut Hold| hold.on_source;
                self.containers.iter_mut().for_each(|life| drop(life.hold.take_if(on_source)));
                self.refresh_volumes(effects);
            }
            Message::Resize(verdict) => self.on_verdict(now, verdict, effects),
            Message::Resized(resized) => self.on_resized(now, resized, effects),
            Message::TakenDown(result) => self.on_taken_down(now, result, effects),
            Message::Deleted(result) => {
                if let Some(ending) = &mut self.ending {
                    ending.stage = if result.is_ok() { Stage::Finished } else { Stage::Down };
                }
            }
        }
    }

    fn on_pod(&mut self, now: Timestamp, pod: Arc<Pod>, effects: &mut Vec<Effect>) {
        let (old, new) = (&self.pod.metadata, &pod.metadata);
        let meta_changed = old.labels != new.labels || old.annotations != new.annotations;
        let asks_anew = !Allocation::of(&self.desired).same(&Allocation::of(&pod));
        self.desired = pod;
        self.pod = self.allocation.apply(&self.desired);
        self.take_spec();
        self.shorten(now, effects);
        if asks_anew {
            self.propose_resize(effects);
        }
        if meta_changed {
            // Downward API volumes contain labels and annotations.
            self.refresh_volumes(effects);
        }
    }

    /// Ends the pod. If it ends already, its grace period may become shorter.
    fn on_disruption(&mut self, now: Timestamp, why: Disruption, effects: &mut Vec<Effect>) {
        let grace = why.grace;
        self.disrupted.get_or_insert(why);
        let (Some(ending), Some(grace)) = (self.ending.as_mut(), grace) else { return };
        let until = after(now, grace.max(SHORTEST_GRACE));
        if ending.stage == Stage::Stopping && until < ending.kill_at {
            ending.kill_at = until;
            effects.push(Effect::End { kill_at: until });
        }
    }

    /// Shortens a running termination if its grace period became shorter.
    fn shorten(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let until = after(now, self.grace_time());
        let Some(ending) = self.ending.as_mut().filter(|e| e.cause == Cause::Deleted) else { return };
        if until < ending.kill_at {
            ending.kill_at = until;
            effects.push(Effect::End { kill_at: until });
        }
    }

    /// Applies the states of a sandbox's containers: the newest and the previous instance of each name.
    pub(super) fn observe_all(&mut self, containers: Vec<Observed>) {
        for Observed { name, record } in containers {
            self.observe(&name, record);
        }
    }

    /// Applies the state of a container. A change from exited to running, or to an earlier attempt, is
    /// ignored.
    fn observe(&mut self, name: &str, record: Record) {
        let Some(life) = self.life_mut(name) else { return };
        match &mut life.current {
            Some(current) if current.id == record.id => {
                if current.exit().is_none() {
                    *current = record;
                }
            }
            Some(current) if current.attempt > record.attempt => {
                if record.exit().is_some() && life.last.as_ref().is_none_or(|l| l.attempt < record.attempt) {
                    life.last = Some(record);
                }
            }
            _ => life.renew(record),
        }
    }

    fn on_sandbox_gone(
        &mut self,
        now: Timestamp,
        id: &SandboxId,
        containers: Vec<Observed>,
        effects: &mut Vec<Effect>,
    ) {
        let sandbox = match &self.sandbox {
            Sandbox::Ready(sandbox) if sandbox.id == *id => sandbox.clone(),
            _ => return,
        };
        if self.ending.is_none() {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            effects.push(PodEvent::normal("SandboxChanged", message));
        }
        self.sandbox = Sandbox::Dead(sandbox);
        self.observe_all(containers);
        self.lose_containers(now, SANDBOX_GONE);
    }

    /// Records an exit for the containers that cannot run any more and whose exit is unknown.
    fn lose_containers(&mut self, now: Timestamp, why: &str) {
        for life in &mut self.containers {
            let Some(record) = life.current.as_mut().filter(|r| r.exit().is_none() && life.op.is_none())
            else {
                continue;
            };
            let started_at = match record.phase {
                Phase::Running { started_at } => Some(started_at),
                Phase::Created | Phase::Exited(_) => None,
            };
            record.phase = Phase::Exited(Exit {
                code: 137,
                reason: "ContainerStatusUnknown".into(),
                message: why.to_owned(),
                started_at,
                finished_at: now,
            });
        }
    }

    fn on_listed(&mut self, now: Timestamp, seen: Vec<Seen>) {
        let Sandbox::Ready(have) = self.sandbox.clone() else { return };
        match seen.into_iter().find(|s| s.sandbox.id == have.id) {
            Some(Seen { sandbox, containers }) => {
                self.observe_all(containers);
                if !sandbox.ready {
                    self.sandbox = Sandbox::Dead(have);
                    self.lose_containers(now, SANDBOX_GONE);
                }
            }
            None => {
                self.sandbox = Sandbox::Absent { attempt: have.spec.attempt + 1 };
                self.lose_containers(now, SANDBOX_GONE);
                self.leave_sandbox();
            }
        }
    }

    /// Marks the containers as belonging to an earlier sandbox.
    fn leave_sandbox(&mut self) {
        for record in self.containers.iter_mut().filter_map(|l| l.current.as_mut()) {
            record.in_sandbox = false;
        }
        self.initialized = false;
    }

    fn on_volumes(&mut self, now: Timestamp, result: Result<Mounted, String>, effects: &mut Vec<Effect>) {
        let result = result.map_err(|why| effects.push(PodEvent::warning(None, "FailedMount", why)));
        let (stale, volumes) = match (&self.volumes, result) {
            (
                Volumes::Busy { stale, .. } | Volumes::Ready { refresh: Refresh::Busy { stale }, .. },
                Ok(new),
            ) => {
                let refresh = Refresh::Due(new.refresh_at);
                (*stale, Volumes::Ready { mounted: Arc::new(new), refresh })
            }
            (Volumes::Busy { failures, stale }, Err(())) => {
                let delay = Duration::from_millis(500 << failures.min(&8)).min(LONGEST_MOUNT_DELAY);
                (*stale, Volumes::Failed { retry_at: after(now, delay), failures: failures + 1 })
            }
            // A failed refresh does not stop the running containers.
            (Volumes::Ready { mounted, refresh: Refresh::Busy { stale } }, Err(())) => {
                let refresh = Refresh::Due(Some(after(now, REFRESH_RETRY)));
                (*stale, Volumes::Ready { mounted: mounted.clone(), refresh })
            }
            // No set-up was requested.
            (Volumes::Absent | Volumes::Failed { .. } | Volumes::Ready { .. }, _) => return,
        };
        self.volumes = volumes;
        if stale {
            self.refresh_volumes(effects);
        }
    }

    /// Refreshes the volumes if they have been set up before.
    pub(super) fn refresh_volumes(&mut self, effects: &mut Vec<Effect>) {
        if self.ending.is_some() {
            return;
        }
        match &mut self.volumes {
            Volumes::Absent => {}
            Volumes::Busy { stale, .. } | Volumes::Ready { refresh: Refresh::Busy { stale }, .. } => {
                *stale = true
            }
            Volumes::Failed { .. } | Volumes::Ready { refresh: Refresh::Due(_), .. } => {
                self.set_up_volumes(effects)
            }
        }
    }

    fn on_sandbox(&mut self, sandbox: Arc<SandboxStatus>, ips: Vec<IpAddr>) {
        if self.sandbox.status().is_none_or(|s| s.id != sandbox.id) {
            self.leave_sandbox();
        }
        self.sandbox = Sandbox::Ready(sandbox);
        self.network_ready = true;
        self.pod_ips = ips;
    }

    fn on_sandbox_failed(
        &mut self,
        now: Timestamp,
        reason: &'static str,
        message: String,
        effects: &mut Vec<Effect>,
    ) {
        effects.push(PodEvent::warning(None, reason, message));
        let Sandbox::Busy { attempt, failures, old } = &self.sandbox else { return };
        let delay = Duration::from_secs(1 << failures.min(&5));
        self.sandbox = Sandbox::Failed {
            retry_at: after(now, delay),
            failures: failures + 1,
            attempt: attempt + 1,
            old: old.clone(),
        };
    }

    fn on_started(&mut self, name: &str, outcome: StartOutcome) {
        let Some(life) = self.life_mut(name) else { return };
        life.op = None;
        match outcome {
            StartOutcome::Held(hold) => life.hold = Some(hold),
            StartOutcome::Cancelled => {}
            StartOutcome::Started(record) | StartOutcome::Failed(record) => {
                self.observe(name, record);
                let Some(life) = self.life_mut(name) else { return };
                life.hook_done = true;
                life.started = life.spec.startup_probe.is_none();
                life.ready = life.spec.readiness_probe.is_none();
                if life.role == Role::Main {
                    self.initialized = true;
                }
            }
        }
    }

    fn on_stopped(&mut self, now: Timestamp, name: &str, record: Option<Record>) {
        match record {
            Some(record) => self.observe(name, record),
            None => {
                if let Some(life) = self.life_mut(name) {
                    life.op = None;
                }
                self.lose_containers(now, "The container is not known to the runtime");
            }
        }
        if let Some(life) = self.life_mut(name) {
            life.op = None;
            life.kill = None;
        }
    }

    fn on_probe(&mut self, report: &probe::Report, effects: &mut Vec<Effect>) {
        let name = &report.container;
        let Some(life) = self.life_mut(name) else { return };
        if !life.is_running() || life.current.as_ref().and_then(|r| r.id.as_ref()) != Some(&report.id) {
            return;
        }
        let kind = report.kind.title();
        if let Some(failure) = &report.failure {
            let message = format!("{kind} probe failed: {failure}");
            effects.push(PodEvent::warning(Some(name), "Unhealthy", message));
        }
        match (report.kind, report.verdict) {
            (_, None) | (Kind::Liveness, Some(true)) => {}
            (Kind::Readiness, Some(ready)) => life.ready = ready,
            (Kind::Startup, Some(true)) => life.started = true,
            (Kind::Startup | Kind::Liveness, Some(false)) => {
                let kind = kind.to_lowercase();
                life.kill = Some(format!("Container {name} failed {kind} probe, will be restarted"));
            }
        }
    }

    fn on_taken_down(&mut self, now: Timestamp, result: Result<(), String>, effects: &mut Vec<Effect>) {
        let evicted = self.is_evicted();
        let Some(ending) = &mut self.ending else { return };
        let failures = match ending.stage {
            Stage::TakingDown { failures } => failures,
            _ => 0,
        };
        match result {
            Ok(()) => {
                ending.stage = Stage::Down;
                if let Some(sandbox) = self.sandbox.status() {
                    self.sandbox = match evicted {
                        // Its containers are removed, too.
                        true => Sandbox::Absent { attempt: sandbox.spec.attempt + 1 },
                        false => Sandbox::Dead(sandbox.clone()),
                    };
                }
                if evicted {
                    self.old_sandboxes.clear();
                }
                self.volumes = Volumes::Absent;
            }
            Err(why) => {
                let delay = Duration::from_secs(1 << failures.min(5));
                ending.stage = Stage::Retry { at: after(now, delay), failures: failures + 1 };
                let message = format!("error killing pod: {why}");
                effects.push(PodEvent::warning(None, "FailedKillPod", message));
            }
        }
    }
}
