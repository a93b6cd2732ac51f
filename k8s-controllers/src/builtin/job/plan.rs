//! What to do about a Job. Pure but for the clock.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_core::{
    api::api::{
        batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods},
        core::v1::Pod,
    },
    clock::Clock,
    meta::ObjectExt,
};

use super::{index_of, indexes, is_tracked};
use crate::{
    EventType,
    builtin::{
        batch::BURST,
        conditions::{self, Condition},
        pods,
        replicas::count,
    },
};

/// What to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) status: JobStatus,
    /// Pods to make; with their completion indexes where the Job is Indexed.
    pub(super) create: Vec<Option<i32>>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Pods that are counted once the status is written: their finalizer can go.
    pub(super) counted: Vec<Arc<Pod>>,
    pub(super) events: Vec<(EventType, &'static str, String)>,
    /// When to look again.
    pub(super) after: Option<Duration>,
}

/// A new pod is made only some time after one failed.
const FIRST_BACKOFF: Duration = Duration::from_secs(10);
const LONGEST_BACKOFF: Duration = Duration::from_secs(600);

/// How a Job ends.
enum End {
    Succeeded,
    Failed { reason: &'static str, message: String },
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

struct View<'a> {
    spec: &'a JobSpec,
    indexed: bool,
    active: Vec<Arc<Pod>>,
    /// Ended pods with the finalizer, counted or not.
    ended: Vec<Arc<Pod>>,
    terminating: usize,
}

/// Whether a pod counts as failed. One that is being deleted does so at once, unless only failed pods are to be replaced.
fn is_failed(pod: &Pod, spec: &JobSpec) -> bool {
    let only_failed = spec.pod_replacement_policy.as_deref() == Some("Failed");
    pods::phase(pod) == "Failed" || (pod.is_deleting() && !only_failed && pods::phase(pod) != "Succeeded")
}

fn is_succeeded(pod: &Pod) -> bool {
    pods::phase(pod) == "Succeeded"
}

/// Whether the Job has come to its end.
pub(super) fn is_finished(status: &JobStatus) -> bool {
    let all = status.conditions.as_ref();
    conditions::is_true(all, "Complete") || conditions::is_true(all, "Failed")
}

pub(super) fn plan(job: &Job, all: &[Arc<Pod>], clock: &Clock) -> Plan {
    let default = JobSpec::default();
    let spec = job.spec.as_ref().unwrap_or(&default);
    let mut plan = Plan { status: job.status.clone().unwrap_or_default(), ..Plan::default() };
    if is_finished(&plan.status) {
        // Whatever still ends is not counted any more.
        plan.counted = all.to_vec();
        return plan;
    }
    let view = View {
        spec,
        indexed: spec.completion_mode.as_deref() == Some("Indexed"),
        active: all.iter().filter(|p| pods::is_active(p)).cloned().collect(),
        ended: all
            .iter()
            .filter(|p| is_tracked(p) && (is_succeeded(p) || is_failed(p, spec)))
            .cloned()
            .collect(),
        terminating: all.iter().filter(|p| p.is_deleting() && !pods::is_terminal(p)).count(),
    };
    plan.count(&view, all);
    plan.start_or_suspend(&view, clock);
    let succeeded = plan.succeeded(&view);
    let failed = plan.failed();
    match plan.end(&view, succeeded, failed, clock.now()) {
        Some(end) => plan.finish(&view, end, clock),
        None if spec.suspend == Some(true) => plan.delete = view.active.clone(),
        None => plan.size(&view, all, succeeded, clock.now()),
    }
    let deleted = number(plan.delete.len());
    let active = number(view.active.len()) - deleted;
    count(&mut plan.status.active, active.max(0));
    let leaving = |p: &&Arc<Pod>| plan.delete.iter().any(|d| d.uid() == p.uid());
    let ready = view.active.iter().filter(|p| pods::is_ready(p) && !leaving(p)).count();
    // These two are always written, zero too, as upstream does.
    plan.status.ready = Some(number(ready));
    plan.status.terminating = Some(number(view.terminating) + deleted);
    plan
}

impl Plan {
    /// Moves uids to the counters whose pods have lost the finalizer, and notes those that ended since.
    fn count(&mut self, view: &View<'_>, all: &[Arc<Pod>]) {
        let mut uncounted = self.status.uncounted_terminated_pods.clone().unwrap_or_default();
        let tracked: BTreeSet<&str> = all.iter().filter(|p| is_tracked(p)).map(|p| p.uid()).collect();
        let settle = |uids: &mut Option<Vec<String>>| {
            let list = uids.get_or_insert_default();
            let before = list.len();
            list.retain(|uid| tracked.contains(uid.as_str()));
            number(before - list.len())
        };
        let succeeded = settle(&mut uncounted.succeeded);
        let failed = settle(&mut uncounted.failed);
        if !view.indexed {
            *self.status.succeeded.get_or_insert(0) += succeeded;
        }
        *self.status.failed.get_or_insert(0) += failed;
        let mut completed = indexes::parse(self.status.completed_indexes.as_deref().unwrap_or_default());
        for pod in &view.ended {
            let uid = pod.uid();
            let note = |list: &mut Option<Vec<String>>| {
                let list = list.get_or_insert_default();
                if !list.iter().any(|u| u == uid) {
                    list.push(uid.to_owned());
                }
            };
            if is_succeeded(pod) {
                if view.indexed {
                    // An index counts once, however many of its pods succeed.
                    let limit = view.spec.completions.unwrap_or(0);
                    completed.extend(index_of(pod).filter(|i| *i < limit));
                } else {
                    note(&mut uncounted.succeeded);
                }
            } else {
                note(&mut uncounted.failed);
            }
            self.counted.push(pod.clone());
        }
        if view.indexed {
            self.status.succeeded = Some(number(completed.len()));
            self.status.completed_indexes = Some(indexes::format(&completed)).filter(|t| !t.is_empty());
        }
        self.status.succeeded = self.status.succeeded.filter(|n| *n != 0);
        self.status.failed = self.status.failed.filter(|n| *n != 0);
        let some = |list: Option<Vec<String>>| list.filter(|l| !l.is_empty());
        self.status.uncounted_terminated_pods = Some(UncountedTerminatedPods {
            succeeded: some(uncounted.succeeded),
            failed: some(uncounted.failed),
        });
    }

    fn uncounted(&self, pick: impl Fn(&UncountedTerminatedPods) -> &Option<Vec<String>>) -> i32 {
        let all = self.status.uncounted_terminated_pods.as_ref();
        number(all.and_then(|u| pick(u).as_ref()).map_or(0, Vec::len))
    }

    fn succeeded(&self, view: &View<'_>) -> i32 {
        let more = if view.indexed { 0 } else { self.uncounted(|u| &u.succeeded) };
        self.status.succeeded.unwrap_or(0) + more
    }

    fn failed(&self) -> i32 {
        self.status.failed.unwrap_or(0) + self.uncounted(|u| &u.failed)
    }

    fn set(&mut self, kind: &str, status: &str, reason: &str, message: &str, clock: &Clock) {
        let next = JobCondition::make(kind, status, reason, message, &clock.time());
        conditions::set(&mut self.status.conditions, next);
    }

    fn start_or_suspend(&mut self, view: &View<'_>, clock: &Clock) {
        let suspended =
            conditions::find(self.status.conditions.as_ref(), "Suspended").map(|c| c.status == "True");
        if view.spec.suspend == Some(true) {
            if suspended != Some(true) {
                self.set("Suspended", "True", "JobSuspended", "Job suspended", clock);
                self.events.push((EventType::Normal, "Suspended", "Job suspended".into()));
            }
            self.status.start_time = None;
            return;
        }
        if suspended == Some(true) {
            self.set("Suspended", "False", "JobResumed", "Job resumed", clock);
            self.events.push((EventType::Normal, "Resumed", "Job resumed".into()));
        }
        if self.status.start_time.is_none() {
            self.status.start_time = Some(clock.time());
        }
    }

    /// Whether it is over, and how.
    fn end(&mut self, view: &View<'_>, succeeded: i32, failed: i32, now: Timestamp) -> Option<End> {
        let conditions = self.status.conditions.as_ref();
        if conditions::is_true(conditions, "SuccessCriteriaMet") {
            return Some(End::Succeeded);
        }
        if let Some(c) = conditions::find(conditions, "FailureTarget").filter(|c| c.status == "True") {
            let reason =
                if c.reason() == "DeadlineExceeded" { "DeadlineExceeded" } else { "BackoffLimitExceeded" };
            return Some(End::Failed { reason, message: c.message().to_owned() });
        }
        let limit = view.spec.backoff_limit.unwrap_or(6);
        let on_failure =
            view.spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref()) == Some("OnFailure");
        let restarts: i32 = if on_failure { view.active.iter().map(|p| all_restarts(p)).sum() } else { 0 };
        let restarted_too_often = on_failure && restarts > 0 && restarts >= limit.max(1);
        if failed > limit || restarted_too_often {
            let message = "Job has reached the specified backoff limit".to_owned();
            return Some(End::Failed { reason: "BackoffLimitExceeded", message });
        }
        if let (Some(seconds), Some(start), false) =
            (view.spec.active_deadline_seconds, &self.status.start_time, view.spec.suspend == Some(true))
        {
            let limit = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            let passed = Duration::try_from(now.duration_since(start.0)).unwrap_or(Duration::ZERO);
            if passed >= limit {
                let message = "Job was active longer than specified deadline".to_owned();
                return Some(End::Failed { reason: "DeadlineExceeded", message });
            }
            self.look_after(limit - passed);
        }
        let complete = match view.spec.completions {
            Some(completions) => succeeded >= completions,
            // Any pod that succeeds says that the work is done; the others finish theirs.
            None => succeeded > 0 && view.active.is_empty(),
        };
        (complete && view.spec.suspend != Some(true)).then_some(End::Succeeded)
    }

    fn look_after(&mut self, delay: Duration) {
        self.after = self.after.into_iter().chain([delay]).min();
    }

    /// First the criterion, then, when nothing runs and all is counted, the end itself.
    fn finish(&mut self, view: &View<'_>, end: End, clock: &Clock) {
        self.delete = view.active.clone();
        let left = self.uncounted(|u| &u.succeeded) + self.uncounted(|u| &u.failed);
        let over = view.active.is_empty() && view.terminating == 0 && left == 0 && view.ended.is_empty();
        match end {
            End::Succeeded => {
                let message = "Reached expected number of succeeded pods";
                self.set("SuccessCriteriaMet", "True", "CompletionsReached", message, clock);
                if over {
                    self.set("Complete", "True", "CompletionsReached", message, clock);
                    self.status.completion_time = Some(clock.time());
                    self.events.push((EventType::Normal, "Completed", "Job completed".into()));
                }
            }
            End::Failed { reason, message } => {
                self.set("FailureTarget", "True", reason, &message, clock);
                if over {
                    self.set("Failed", "True", reason, &message, clock);
                    self.events.push((EventType::Warning, reason, message));
                }
            }
        }
    }

    /// Brings the number of active pods to what is wanted.
    fn size(&mut self, view: &View<'_>, all: &[Arc<Pod>], succeeded: i32, now: Timestamp) {
        let parallelism = view.spec.parallelism.unwrap_or(1).max(0);
        let active = number(view.active.len());
        let wanted = match view.spec.completions {
            Some(completions) => (completions - succeeded).clamp(0, parallelism),
            None if succeeded > 0 => active.min(parallelism),
            None => parallelism,
        };
        let completed = indexes::parse(self.status.completed_indexes.as_deref().unwrap_or_default());
        if view.indexed {
            // Of two pods with one index, or with one that is done, one is too many.
            let mut seen = BTreeSet::new();
            for pod in &view.active {
                let index = index_of(pod);
                let fits = index.is_some_and(|i| {
                    i < view.spec.completions.unwrap_or(0) && !completed.contains(&i) && seen.insert(i)
                });
                if !fits {
                    self.delete.push(pod.clone());
                }
            }
        }
        let standing = active - number(self.delete.len());
        if standing > wanted {
            let going = |p: &&Arc<Pod>| !self.delete.iter().any(|d| d.uid() == p.uid());
            let mut rest: Vec<Arc<Pod>> = view.active.iter().filter(going).cloned().collect();
            pods::sort_for_deletion(&mut rest, &[]);
            rest.truncate(usize::try_from(standing - wanted).unwrap_or(0));
            self.delete.extend(rest);
            return;
        }
        let mut missing = usize::try_from(wanted - standing).unwrap_or(0);
        if view.spec.pod_replacement_policy.as_deref() == Some("Failed") {
            missing = missing.saturating_sub(view.terminating);
        }
        if missing == 0 {
            return;
        }
        if let Some(delay) = backoff(all, view.spec, now).filter(|d| !d.is_zero()) {
            self.look_after(delay);
            return;
        }
        let missing = missing.min(BURST);
        if view.indexed {
            let taken: BTreeSet<i32> = view.active.iter().filter_map(|p| index_of(p)).collect();
            let free = (0..view.spec.completions.unwrap_or(0))
                .filter(|i| !taken.contains(i) && !completed.contains(i));
            self.create = free.take(missing).map(Some).collect();
        } else {
            self.create = vec![None; missing];
        }
    }
}

/// How often all containers of a pod were restarted.
fn all_restarts(pod: &Pod) -> i32 {
    let status = pod.status.as_ref();
    let containers = status.and_then(|s| s.container_statuses.as_ref());
    let init = status.and_then(|s| s.init_container_statuses.as_ref());
    containers.into_iter().chain(init).flatten().map(|c| c.restart_count).sum()
}

/// When a pod ended, as far as its status says.
fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
    let finished = statuses
        .into_iter()
        .flatten()
        .filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref())
        .map(|t| t.0)
        .max();
    let deleted = pod.metadata.deletion_timestamp.as_ref().map(|t| t.0);
    let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    finished.or(deleted).or(created)
}

/// How long to wait with new pods: it doubles with every failure since the last success.
fn backoff(all: &[Arc<Pod>], spec: &JobSpec, now: Timestamp) -> Option<Duration> {
    let last_success = all.iter().filter(|p| is_succeeded(p)).filter_map(|p| ended_at(p)).max();
    let failures = all.iter().filter(|p| is_failed(p, spec)).filter_map(|p| ended_at(p));
    let since: Vec<Timestamp> = failures.filter(|t| last_success.is_none_or(|s| *t > s)).collect();
    let last = *since.iter().max()?;
    let doublings = u32::try_from(since.len().saturating_sub(1)).unwrap_or(u32::MAX).min(10);
    let delay = FIRST_BACKOFF.saturating_mul(1 << doublings).min(LONGEST_BACKOFF);
    let passed = Duration::try_from(now.duration_since(last)).unwrap_or(Duration::ZERO);
    Some(delay.saturating_sub(passed))
}

#[cfg(test)]
mod tests;
