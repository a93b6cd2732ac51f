//! Computes the changes of a Job and its pods. Pure except for the clock.
//!
//! [`view`] classifies the pods, [`count`] moves finished ones to the counters, [`end`] decides whether the
//! Job is finished, [`size`] adjusts the number of active pods.

mod count;
mod end;
mod size;
mod view;

use std::{sync::Arc, time::Duration};

use k8s_core::{
    api::api::{
        batch::v1::{Job, JobCondition, JobSpec, JobStatus},
        core::v1::Pod,
    },
    clock::Clock,
    meta::ObjectExt,
};

use self::view::View;
use super::build::New;
use crate::{
    conditions::{self, Condition},
    pods,
    replicas::count as write_count,
};
use k8s_controllers::EventType;

/// Changes to make.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) status: JobStatus,
    /// Pods to create.
    pub(super) create: Vec<New>,
    /// Pods to delete because the Job ends. They count as failed.
    pub(super) delete: Vec<Arc<Pod>>,
    /// Surplus pods to delete. Their finalizer is removed first, so that they are not counted.
    pub(super) shed: Vec<Arc<Pod>>,
    /// Pods that the new status counts; they lose their finalizer after it is written.
    pub(super) counted: Vec<Arc<Pod>>,
    pub(super) events: Vec<(EventType, String, String)>,
    /// Delay of the next reconcile.
    pub(super) after: Option<Duration>,
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Returns true if the Job is complete or failed.
pub(super) fn is_finished(status: &JobStatus) -> bool {
    let all = status.conditions.as_ref();
    conditions::is_true(all, "Complete") || conditions::is_true(all, "Failed")
}

pub(super) fn plan(job: &Job, all: &[Arc<Pod>], clock: &Clock) -> Plan {
    let default = JobSpec::default();
    let spec = job.spec.as_ref().unwrap_or(&default);
    let mut plan = Plan { status: job.status.clone().unwrap_or_default(), ..Plan::default() };
    if is_finished(&plan.status) {
        // Pods that finish later are not counted.
        plan.counted = all.to_vec();
        return plan;
    }
    let view = View::of(spec, &plan.status, all);
    plan.start(spec, clock);
    let totals = plan.count(&view);
    match plan.end(&view, &totals, clock.now()) {
        Some(end) => plan.finish(&view, end, &totals, clock),
        None => {
            plan.note_suspension(spec, clock);
            plan.size(&view, &totals, clock.now());
        }
    }
    let leaving = plan.delete.len() + plan.shed.len();
    let stays = |p: &&Arc<Pod>| !plan.delete.iter().chain(&plan.shed).any(|d| d.uid() == p.uid());
    let ready = view.active.iter().filter(|p| pods::is_ready(p)).filter(stays).count();
    write_count(&mut plan.status.active, number(view.active.len().saturating_sub(leaving)));
    // As upstream, these two are written even if they are zero.
    plan.status.ready = Some(number(ready));
    plan.status.terminating = Some(number(view.terminating.len() + leaving));
    plan
}

impl Plan {
    fn set(&mut self, kind: &str, status: &str, reason: &str, message: &str, clock: &Clock) {
        let next = JobCondition::make(kind, status, reason, message, &clock.time());
        conditions::set(&mut self.status.conditions, next);
    }

    fn is_suspended(&self) -> Option<bool> {
        conditions::find(self.status.conditions.as_ref(), "Suspended").map(|c| c.status == "True")
    }

    /// The start time is set when the Job is first not suspended, and again when it is resumed.
    fn start(&mut self, spec: &JobSpec, clock: &Clock) {
        let resumed = self.is_suspended() == Some(true);
        if spec.suspend != Some(true) && (resumed || self.status.start_time.is_none()) {
            self.status.start_time = Some(clock.time());
        }
    }

    fn note_suspension(&mut self, spec: &JobSpec, clock: &Clock) {
        let before = self.is_suspended();
        if spec.suspend == Some(true) {
            if before != Some(true) {
                self.set("Suspended", "True", "JobSuspended", "Job suspended", clock);
                self.events.push((EventType::Normal, "Suspended".into(), "Job suspended".into()));
            }
            self.status.start_time = None;
        } else if before == Some(true) {
            self.set("Suspended", "False", "JobResumed", "Job resumed", clock);
            self.events.push((EventType::Normal, "Resumed".into(), "Job resumed".into()));
        }
    }

    fn look_after(&mut self, delay: Duration) {
        self.after = self.after.into_iter().chain([delay]).min();
    }
}

#[cfg(test)]
mod tests;
