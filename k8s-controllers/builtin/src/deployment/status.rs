//! Status and conditions of a Deployment. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_core::{
    api::{
        api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus},
        apimachinery::pkg::apis::meta::v1::Time,
    },
    meta::ObjectExt,
};

use super::{plan::Bounds, replica_sets::Sets};
use crate::{
    conditions::{self, Condition},
    replicas::{count, failure},
};

pub(super) const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const COMPLETE: &str = "NewReplicaSetAvailable";

/// Returns `progressDeadlineSeconds`; `None` means no deadline.
pub(super) fn progress_deadline(deployment: &Deployment) -> Option<Duration> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds.filter(|s| *s != i32::MAX)?;
    u64::try_from(seconds).ok().map(Duration::from_secs)
}

/// Sets a condition as upstream does for Deployments: one with the same status and reason is left unchanged.
pub(super) fn set(deployment: &mut Deployment, next: DeploymentCondition) {
    set_in(&mut deployment.status.get_or_insert_default().conditions, next);
}

fn set_in(all: &mut Option<Vec<DeploymentCondition>>, next: DeploymentCondition) {
    let same = conditions::find(all.as_ref(), next.kind())
        .is_some_and(|live| live.status == next.status && live.reason == next.reason);
    if !same {
        conditions::set(all, next);
    }
}

/// Computes the counters of the status; conditions are unchanged.
pub(super) fn found(deployment: &Deployment, sets: &Sets) -> DeploymentStatus {
    let before = deployment.status.clone().unwrap_or_default();
    let mut status = before.clone();
    let (mut replicas, mut ready, mut available) = (0, 0, 0);
    // Unknown if a ReplicaSet does not report it.
    let terminating: Option<i32> =
        sets.all().map(|set| set.status.as_ref().and_then(|s| s.terminating_replicas)).sum();
    for live in sets.all().filter_map(|s| s.status.as_ref()) {
        replicas += live.replicas;
        ready += live.ready_replicas.unwrap_or(0);
        available += live.available_replicas.unwrap_or(0);
    }
    let updated = sets.new.as_ref().and_then(|s| s.status.as_ref()).map_or(0, |s| s.replicas);
    count(&mut status.replicas, replicas);
    count(&mut status.updated_replicas, updated);
    count(&mut status.ready_replicas, ready);
    count(&mut status.available_replicas, available);
    count(&mut status.unavailable_replicas, (sets.total() - available).max(0));
    status.terminating_replicas = terminating;
    status.observed_generation = deployment.metadata.generation;
    status
}

/// Returns true if the rollout is complete.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let replicas = Some(Bounds::of(deployment).replicas);
    let number = |field: Option<i32>| Some(field.unwrap_or(0));
    number(status.updated_replicas) == replicas
        && number(status.replicas) == replicas
        && number(status.available_replicas) == replicas
        && status.observed_generation >= deployment.metadata.generation
}

/// Returns true if any counter improved since the last status.
fn is_progressing(before: &DeploymentStatus, now: &DeploymentStatus) -> bool {
    let old = |s: &DeploymentStatus| s.replicas.unwrap_or(0) - s.updated_replicas.unwrap_or(0);
    now.updated_replicas.unwrap_or(0) > before.updated_replicas.unwrap_or(0)
        || old(now) < old(before)
        || now.ready_replicas.unwrap_or(0) > before.ready_replicas.unwrap_or(0)
        || now.available_replicas.unwrap_or(0) > before.available_replicas.unwrap_or(0)
}

/// Computes the status to write.
pub(super) fn next(
    deployment: &Deployment,
    mut status: DeploymentStatus,
    sets: &Sets,
    now: Timestamp,
    time: &Time,
) -> DeploymentStatus {
    let before = deployment.status.clone().unwrap_or_default();
    let make = |kind: &str, value: &str, reason: &str, message: &str| {
        DeploymentCondition::make(kind, value, reason, message, time)
    };
    let enough = status.available_replicas.unwrap_or(0) >= Bounds::of(deployment).fewest_available();
    set_in(
        &mut status.conditions,
        if enough {
            make("Available", "True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
        } else {
            let message = "Deployment does not have minimum availability.";
            make("Available", "False", "MinimumReplicasUnavailable", message)
        },
    );
    if !super::is_paused(deployment) && !deployment.is_deleting() {
        let subject = match &sets.new {
            Some(set) => format!("ReplicaSet \"{}\"", set.name()),
            None => format!("Deployment \"{}\"", deployment.name()),
        };
        progress(deployment, &before, &mut status, &subject, now, time);
    }
    let failed = sets
        .new
        .iter()
        .chain(&sets.old)
        .find_map(|s| failure(s.status.as_ref().and_then(|s| s.conditions.as_ref())).cloned());
    match failed {
        Some(f) => set_in(&mut status.conditions, make("ReplicaFailure", "True", f.reason(), f.message())),
        None => conditions::remove(&mut status.conditions, "ReplicaFailure"),
    }
    status
}

fn progress(
    deployment: &Deployment,
    before: &DeploymentStatus,
    status: &mut DeploymentStatus,
    subject: &str,
    now: Timestamp,
    time: &Time,
) {
    let Some(deadline) = progress_deadline(deployment) else {
        conditions::remove(&mut status.conditions, "Progressing");
        return;
    };
    let make = |value: &str, reason: &str, what: &str| {
        DeploymentCondition::make("Progressing", value, reason, &format!("{subject} {what}."), time)
    };
    let current = conditions::find(status.conditions.as_ref(), "Progressing").cloned();
    let was_complete = current.as_ref().is_some_and(|c| c.reason() == COMPLETE)
        && status.replicas.unwrap_or(0) == status.updated_replicas.unwrap_or(0);
    if was_complete {
        return;
    }
    if is_complete(deployment, status) {
        set_in(&mut status.conditions, make("True", COMPLETE, "has successfully progressed"));
    } else if is_progressing(before, status) {
        // Every step of progress restarts the deadline, so `lastUpdateTime` changes even if the condition is
        // otherwise equal.
        let mut next = make("True", "ReplicaSetUpdated", "is progressing");
        if let Some(current) = current.as_ref().filter(|c| c.status == "True") {
            next.transitioned_as(current);
        }
        conditions::remove(&mut status.conditions, "Progressing");
        status.conditions.get_or_insert_default().push(next);
    } else if current.as_ref().is_some_and(|c| is_timed_out(c, deadline, now)) {
        set_in(&mut status.conditions, make("False", TIMED_OUT, "has timed out progressing"));
    }
}

fn is_timed_out(current: &DeploymentCondition, deadline: Duration, now: Timestamp) -> bool {
    match current.reason() {
        COMPLETE | "DeploymentPaused" => false,
        TIMED_OUT => true,
        _ => time_left(current, deadline, now).is_zero(),
    }
}

fn time_left(current: &DeploymentCondition, deadline: Duration, now: Timestamp) -> Duration {
    let since = current.last_update_time.as_ref().map_or(now, |t| t.0);
    let passed = Duration::try_from(now.duration_since(since)).unwrap_or(Duration::ZERO);
    deadline.saturating_sub(passed)
}

/// Returns the time until the progress deadline must be checked.
pub(super) fn deadline_in(
    deployment: &Deployment,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let deadline = progress_deadline(deployment)?;
    let current = conditions::find(status.conditions.as_ref(), "Progressing")?;
    if matches!(current.reason(), COMPLETE | TIMED_OUT | "DeploymentPaused") || super::is_paused(deployment) {
        return None;
    }
    // One second more, because API times have a resolution of a second.
    Some(time_left(current, deadline, now) + Duration::from_secs(1))
}
