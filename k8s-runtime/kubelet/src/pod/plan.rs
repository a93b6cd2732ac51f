//! Decides the next steps for a pod. Pure: no clock, no I/O.
//!
//! Flow: [`decide`] reads the world and returns [`Act`]s; `world/step.rs` executes them. Restarts and their
//! back-off are in `decide_one` (the delays are in [`crate::backoff`]). A failed probe is handled in
//! `world/on.rs`, which sets `kill`; here it becomes a stop.

use super::{life::*, resize, world::*};
use crate::types::*;

/// A step. [`World::on`] marks it in the world, so that it starts only once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Set up the volumes.
    MountVolumes,
    /// Create and connect a sandbox; first remove the dead one, if there is one.
    MakeSandbox,
    /// Create and start a container.
    Start(String),
    /// Stop a container; the second field is the reason.
    Stop(String, String),
    /// Stop a container, and start it again with its new specification.
    Replace(String, String),
    /// Change the sizes of the pod and its containers.
    Resize,
    /// Disconnect the network, stop the sandbox and unmount the volumes; remove all of it for a deleted pod.
    TakeDown,
    /// Delete the Pod object.
    Finish,
    /// Terminate the pod.
    End(Cause),
    /// A container waits in `CrashLoopBackOff` until this time.
    BackOff(String, Timestamp),
    /// Decide again at this time.
    WakeAt(Timestamp),
}

/// Returns the next steps for a pod.
pub(crate) fn decide(now: Timestamp, world: &World) -> Vec<Act> {
    let mut acts = Vec::new();
    match &world.ending {
        Some(ending) => decide_ending(now, world, ending, &mut acts),
        None => decide_running(now, world, &mut acts),
    }
    acts
}

fn decide_running(now: Timestamp, world: &World, acts: &mut Vec<Act>) {
    if let Some(cause) = end_cause(now, world, acts) {
        acts.push(Act::End(cause));
        return;
    }
    match &world.volumes {
        Volumes::Absent => return acts.push(Act::MountVolumes),
        Volumes::Failed { retry_at, .. } if now >= *retry_at => return acts.push(Act::MountVolumes),
        Volumes::Failed { retry_at, .. } => return acts.push(Act::WakeAt(*retry_at)),
        Volumes::Busy { .. } => return,
        Volumes::Ready { .. } => {}
    }
    match &world.sandbox {
        Sandbox::Absent { .. } => acts.push(Act::MakeSandbox),
        // First record the exits of the dead sandbox's containers.
        Sandbox::Dead(_) if !world.containers.iter().any(Life::is_alive) => acts.push(Act::MakeSandbox),
        Sandbox::Failed { retry_at, .. } if now >= *retry_at => acts.push(Act::MakeSandbox),
        Sandbox::Failed { retry_at, .. } => acts.push(Act::WakeAt(*retry_at)),
        Sandbox::Ready(_) if world.services_known => {
            let may_start = resize::decide(now, world, acts);
            let begin = acts.len();
            decide_containers(now, world, acts);
            if !may_start {
                let later = acts.split_off(begin);
                acts.extend(later.into_iter().filter(|act| !matches!(act, Act::Start(_))));
            }
        }
        Sandbox::Ready(_) | Sandbox::Dead(_) | Sandbox::Busy { .. } => {}
    }
}

/// Returns the cause for terminating the pod now, if there is one.
fn end_cause(now: Timestamp, world: &World, acts: &mut Vec<Act>) -> Option<Cause> {
    if world.gone || world.pod.metadata.deletion_timestamp.is_some() {
        return Some(Cause::Deleted);
    }
    let phase = world.pod.status.as_ref().and_then(|s| s.phase.as_deref());
    if matches!(phase, Some("Failed" | "Succeeded")) {
        return Some(Cause::Declared);
    }
    if world.refusal.is_some() {
        return Some(Cause::Refused);
    }
    if is_complete(world) {
        return Some(Cause::Completed);
    }
    if world.disrupted.is_some() {
        return Some(Cause::Disrupted);
    }
    let seconds = world.spec().active_deadline_seconds?;
    let deadline = world.start_time.saturating_add(jiff::SignedDuration::from_secs(seconds)).ok()?;
    if now >= deadline {
        return Some(Cause::Deadline);
    }
    acts.push(Act::WakeAt(deadline));
    None
}

/// Returns `true` if all main containers are done, or an init container has failed for good.
fn is_complete(world: &World) -> bool {
    let ended = |life: &Life| {
        life.op.is_none()
            && !life.replaced
            && life.exit().is_some_and(|exit| !life.policy.restarts(exit.code))
    };
    let mains = || world.containers.iter().filter(|l| l.role == Role::Main);
    let init_failed = !world.initialized
        && world
            .containers
            .iter()
            .filter(|l| l.role == Role::Init)
            .any(|l| ended(l) && l.exit().is_some_and(|e| e.code != 0));
    init_failed || (mains().next().is_some() && mains().all(ended))
}

fn decide_containers(now: Timestamp, world: &World, acts: &mut Vec<Act>) {
    let mut initialized = true;
    for life in &world.containers {
        match life.role {
            Role::Init if world.initialized => {}
            Role::Init => {
                let done = life.op.is_none()
                    && life
                        .current
                        .as_ref()
                        .is_some_and(|r| r.in_sandbox && r.exit().is_some_and(|e| e.code == 0));
                if !done {
                    decide_one(now, life, true, acts);
                    initialized = false;
                }
            }
            Role::Sidecar => {
                decide_one(now, life, false, acts);
                initialized &= world.initialized || (life.is_running() && life.started);
            }
            Role::Main | Role::Ephemeral => decide_one(now, life, false, acts),
        }
        if !initialized {
            return;
        }
    }
}

/// Decides for a container that should run. `rerun`: run it again, although it succeeded in an earlier
/// sandbox.
fn decide_one(now: Timestamp, life: &Life, rerun: bool, acts: &mut Vec<Act>) {
    if life.op.is_some() {
        return;
    }
    if let Some(hold) = &life.hold
        && now < hold.until
    {
        acts.push(Act::WakeAt(hold.until));
        return;
    }
    let start = Act::Start(life.name.clone());
    match life.current.as_ref().map(|r| (&r.phase, r.in_sandbox)) {
        None | Some((Phase::Created, _)) => acts.push(start),
        Some((Phase::Running { .. }, _)) => {
            if let Some(why) = &life.kill {
                acts.push(Act::Stop(life.name.clone(), why.clone()));
            }
        }
        Some((Phase::Exited(_), false)) if rerun => acts.push(start),
        // It was stopped for a new specification.
        Some((Phase::Exited(_), _)) if life.replaced => acts.push(start),
        Some((Phase::Exited(exit), _)) if life.policy.restarts(exit.code) => {
            match life.backoff.blocked_until(exit.finished_at, now) {
                None => acts.push(start),
                Some(until) => acts.push(Act::BackOff(life.name.clone(), until)),
            }
        }
        Some((Phase::Exited(_), _)) => {}
    }
}

fn decide_ending(now: Timestamp, world: &World, ending: &Ending, acts: &mut Vec<Act>) {
    match ending.stage {
        Stage::Stopping => {
            let why = |life: &Life| Act::Stop(life.name.clone(), format!("Stopping container {}", life.name));
            let stop = |life: &&Life| life.op.is_none() && life.is_running();
            let sidecar = |life: &&Life| life.role == Role::Sidecar;
            let others_alive =
                world.containers.iter().any(|l| l.role != Role::Sidecar && l.is_alive_for_end());
            acts.extend(world.containers.iter().filter(|l| !sidecar(l)).filter(stop).map(why));
            // Sidecars are stopped after all other containers, in reverse order.
            if !others_alive
                && let Some(next) = world.containers.iter().rev().find(|l| sidecar(l) && l.is_alive_for_end())
            {
                acts.extend(Some(next).filter(stop).map(why));
            }
            let busy = world.volumes.is_busy()
                || world.resize.work == resize::Work::Busy
                || matches!(world.sandbox, Sandbox::Busy { .. });
            if !busy && !world.containers.iter().any(Life::is_alive_for_end) {
                acts.push(Act::TakeDown);
            }
        }
        Stage::Retry { at, .. } if now >= at => acts.push(Act::TakeDown),
        Stage::Retry { at, .. } => acts.push(Act::WakeAt(at)),
        Stage::Down if ending.cause == Cause::Deleted => acts.push(Act::Finish),
        // The pod had terminated before its deletion.
        Stage::Down if world.gone || world.pod.metadata.deletion_timestamp.is_some() => {
            acts.push(Act::End(Cause::Deleted));
        }
        Stage::Down | Stage::TakingDown { .. } | Stage::Finishing | Stage::Finished => {}
    }
}

impl Life {
    /// Returns `true` if the container has a process or is being started. A created container without a
    /// process does not count.
    fn is_alive_for_end(&self) -> bool {
        self.op.is_some() || self.is_running()
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
