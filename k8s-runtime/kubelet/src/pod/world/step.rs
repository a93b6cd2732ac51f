//! Executes the steps of [`plan::decide`]: marks them in the world and returns their effects.

use std::time::Duration;

use super::{
    super::{
        plan::{self, Act},
        sandbox::Extent,
        status,
    },
    on::{SHORTEST_GRACE, after},
    *,
};
use crate::duration;

impl World {
    /// Decides repeatedly until no more steps are due.
    pub(super) fn step(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        loop {
            let acts = plan::decide(now, self);
            let again = acts.iter().any(|act| matches!(act, Act::End(_)));
            for act in acts {
                self.carry_out(now, act, effects);
            }
            if !again {
                break;
            }
        }
        if let Volumes::Ready { refresh: Refresh::Due(Some(at)), .. } = self.volumes
            && self.ending.is_none()
        {
            if at <= now {
                self.set_up_volumes(effects);
            } else {
                effects.push(Effect::WakeAt(at));
            }
        }
    }

    fn carry_out(&mut self, now: Timestamp, act: Act, effects: &mut Vec<Effect>) {
        match act {
            Act::WakeAt(at) => effects.push(Effect::WakeAt(at)),
            Act::End(cause) => self.begin_end(now, cause, effects),
            Act::BackOff(name, until) => {
                self.back_off(&name, until, effects);
                effects.push(Effect::WakeAt(until));
            }
            Act::MountVolumes => self.set_up_volumes(effects),
            Act::MakeSandbox => effects.extend(self.make_sandbox()),
            Act::Start(name) => effects.extend(self.start(now, &name)),
            Act::Stop(name, why) => effects.extend(self.stop(now, &name, why)),
            Act::Replace(name, why) => effects.extend(self.replace(now, &name, why)),
            Act::Resize => effects.push(self.begin_resize()),
            Act::TakeDown => effects.extend(self.take_down()),
            Act::Finish => {
                if let Some(ending) = self.ending.as_mut() {
                    ending.stage = Stage::Finishing;
                }
                effects.push(Effect::Delete { gone: self.gone });
            }
        }
    }

    fn begin_end(&mut self, now: Timestamp, cause: Cause, effects: &mut Vec<Effect>) {
        let limit = self.disrupted.as_ref().filter(|_| cause == Cause::Disrupted).and_then(|why| why.grace);
        let grace = limit.map_or(self.grace_time(), |limit| limit.max(SHORTEST_GRACE).min(self.grace_time()));
        let mut kill_at = after(now, grace);
        if let (Cause::Refused, Some(refusal)) = (cause, &self.refusal) {
            effects.push(PodEvent::warning(None, refusal.reason.clone(), &refusal.message));
        }
        if cause == Cause::Deadline {
            let message = "Pod was active on the node longer than the specified deadline";
            effects.push(PodEvent::normal("DeadlineExceeded", message));
        }
        if let Some(before) = self.ending {
            kill_at = kill_at.min(before.kill_at.max(now));
        }
        effects.push(Effect::End { kill_at });
        self.ending = Some(Ending { cause, stage: Stage::Stopping, kill_at });
    }

    fn back_off(&mut self, name: &str, until: Timestamp, effects: &mut Vec<Effect>) {
        let full = status::full_name(&self.pod);
        let Some(life) = self.life_mut(name) else { return };
        let delay = duration::go(life.backoff.delay());
        let message = format!("back-off {delay} restarting failed container={name} pod={full}");
        life.hold = Some(Hold { until, reason: "CrashLoopBackOff".into(), message, on_source: false });
        let message = format!("Back-off restarting failed container {name} in pod {full}");
        effects.push(PodEvent::warning(Some(name), "BackOff", message));
    }

    pub(super) fn set_up_volumes(&mut self, effects: &mut Vec<Effect>) {
        match &mut self.volumes {
            Volumes::Ready { refresh, .. } => *refresh = Refresh::Busy { stale: false },
            Volumes::Failed { failures, .. } | Volumes::Busy { failures, .. } => {
                self.volumes = Volumes::Busy { failures: *failures, stale: false };
            }
            Volumes::Absent => self.volumes = Volumes::Busy { failures: 0, stale: false },
        }
        effects.push(Effect::SetUpVolumes);
    }

    fn make_sandbox(&mut self) -> Option<Effect> {
        let (attempt, failures) = match &self.sandbox {
            Sandbox::Absent { attempt } => (*attempt, 0),
            Sandbox::Failed { attempt, failures, .. } => (*attempt, *failures),
            Sandbox::Dead(dead) => (dead.spec.attempt + 1, 0),
            Sandbox::Ready(_) | Sandbox::Busy { .. } => return None,
        };
        let old = self.sandbox.status().cloned();
        self.sandbox = Sandbox::Busy { attempt, failures, old: old.clone() };
        self.network_ready = false;
        Some(Effect::MakeSandbox { attempt, old })
    }

    fn start(&mut self, now: Timestamp, name: &str) -> Option<Effect> {
        let sandbox = self.sandbox.status()?.id.clone();
        let life = self.life_mut(name)?;
        if let Some(exit) = life.exit() {
            let finished_at = exit.finished_at;
            let tried_and_held = life.hold.as_ref().is_some_and(|h| h.reason != "CrashLoopBackOff");
            if !tried_and_held {
                life.backoff.advance(finished_at, now);
            }
        }
        life.op = Some(Op::Starting);
        let created = life.current.as_ref().filter(|r| r.phase == Phase::Created);
        Some(Effect::Start(Box::new(StartContainer {
            container: life.spec.clone(),
            attempt: life.next_attempt(),
            sandbox,
            leftover: created.and_then(|r| r.id.clone()),
            stale: life.last.clone().filter(|_| life.exit().is_some()),
        })))
    }

    fn stop(&mut self, now: Timestamp, name: &str, why: String) -> Option<Effect> {
        let kill_at = self.ending.is_none().then(|| after(now, self.kill_grace(name)));
        let life = self.life_mut(name)?;
        let id = life.current.as_ref()?.id.clone()?;
        life.op = Some(Op::Stopping);
        Some(Effect::Stop(Box::new(StopContainer { container: life.spec.clone(), id, why, kill_at })))
    }

    /// Stops a container in order to start it again.
    fn replace(&mut self, now: Timestamp, name: &str, why: String) -> Option<Effect> {
        self.life_mut(name)?.replaced = true;
        self.stop(now, name, why)
    }

    /// Grace period for a container whose probe failed: the probe's own, else the pod's.
    fn kill_grace(&self, name: &str) -> Duration {
        let probe = self.life(name).and_then(|life| {
            let probe = if life.started { &life.spec.liveness_probe } else { &life.spec.startup_probe };
            probe.as_ref()?.termination_grace_period_seconds
        });
        probe.map_or_else(|| self.grace_time(), |s| Duration::from_secs(u64::try_from(s).unwrap_or(0)))
    }

    fn take_down(&mut self) -> Option<Effect> {
        let evicted = self.is_evicted();
        let ending = self.ending.as_mut()?;
        let removes = evicted || ending.cause == Cause::Deleted;
        let extent = if removes { Extent::Remove } else { Extent::Stop };
        ending.stage = match ending.stage {
            Stage::Retry { failures, .. } => Stage::TakingDown { failures },
            _ => Stage::TakingDown { failures: 0 },
        };
        let sandboxes = self.sandbox.status().into_iter().chain(&self.old_sandboxes).cloned().collect();
        Some(Effect::TakeDown { sandboxes, extent })
    }
}
