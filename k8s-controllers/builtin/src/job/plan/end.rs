//! Decides whether a Job is finished.

use std::time::Duration;

use jiff::Timestamp;
use k8s_core::{
    api::api::{batch::v1::JobCondition, core::v1::Pod},
    clock::Clock,
};

use super::{
    super::policy::{self, Verdict},
    Plan,
    count::Totals,
    number,
    view::{View, is_failed},
};
use crate::{
    conditions::{self, Condition},
    pods,
};
use k8s_controllers::EventType;

/// The outcome of a Job. First the criterion is set (SuccessCriteriaMet, FailureTarget); when no pod is left
/// and all are counted, the final condition.
pub(super) struct End {
    well: bool,
    reason: String,
    message: String,
}

impl End {
    fn failed(reason: &str, message: impl Into<String>) -> Self {
        End { well: false, reason: reason.into(), message: message.into() }
    }

    fn succeeded(reason: &str, message: impl Into<String>) -> Self {
        End { well: true, reason: reason.into(), message: message.into() }
    }

    fn of(condition: &JobCondition) -> Self {
        let well = condition.type_ == "SuccessCriteriaMet";
        End { well, reason: condition.reason().into(), message: condition.message().into() }
    }
}

/// Returns the sum of the container restarts of a pod.
fn restarts(pod: &Pod) -> i32 {
    let status = pod.status.as_ref();
    let containers = status.and_then(|s| s.container_statuses.as_ref());
    let init = status.and_then(|s| s.init_container_statuses.as_ref());
    containers.into_iter().chain(init).flatten().map(|c| c.restart_count).sum()
}

/// Returns true if in-place restarts (`restartPolicy: OnFailure`) reached the back-off limit.
fn restarted_too_often(view: &View<'_>, limit: i32) -> bool {
    let pod = view.spec.template.spec.as_ref();
    if pod.and_then(|s| s.restart_policy.as_deref()) != Some("OnFailure") {
        return false;
    }
    let running = view.all.iter().filter(|p| matches!(pods::phase(p), "Running" | "Pending"));
    let restarts: i32 = running.map(|p| restarts(p)).fold(0, i32::saturating_add);
    if limit == 0 { restarts > 0 } else { restarts >= limit }
}

impl Plan {
    /// Returns the outcome if the Job has one. The first reason is kept.
    pub(super) fn end(&mut self, view: &View<'_>, totals: &Totals, now: Timestamp) -> Option<End> {
        let spec = view.spec;
        let known = |kind| {
            conditions::find(self.status.conditions.as_ref(), kind)
                .filter(|c| c.status == "True")
                .map(End::of)
        };
        if let Some(end) = known("FailureTarget") {
            return Some(end);
        }
        let fatal =
            view.all.iter().filter(|p| is_failed(p, spec)).find_map(|p| match policy::verdict(spec, p) {
                Verdict::FailJob(why) => Some(why),
                Verdict::Count | Verdict::Ignore | Verdict::FailIndex => None,
            });
        if let Some(why) = fatal {
            return Some(End::failed("PodFailurePolicy", why));
        }
        if let Some(end) = known("SuccessCriteriaMet") {
            return Some(end);
        }
        let limit = spec.backoff_limit.unwrap_or(6);
        if totals.failed > limit || restarted_too_often(view, limit) {
            return Some(End::failed("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
        }
        if let Some(left) = self.time_left(view, now) {
            if left.is_zero() {
                let message = "Job was active longer than specified deadline";
                return Some(End::failed("DeadlineExceeded", message));
            }
            self.look_after(left);
        }
        if let Some(end) = by_index(view) {
            return Some(end);
        }
        let complete = view.active.is_empty()
            && match spec.completions {
                Some(completions) => totals.succeeded >= completions,
                // A work queue Job: one success means that the work is done, and the other pods finish.
                None => totals.succeeded > 0,
            };
        complete.then(|| End::succeeded("CompletionsReached", "Reached expected number of succeeded pods"))
    }

    fn time_left(&self, view: &View<'_>, now: Timestamp) -> Option<Duration> {
        let seconds = view.spec.active_deadline_seconds.filter(|_| view.spec.suspend != Some(true))?;
        let start = self.status.start_time.as_ref()?;
        let passed = Duration::try_from(now.duration_since(start.0)).unwrap_or(Duration::ZERO);
        Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).saturating_sub(passed))
    }

    /// Sets the criterion; when no pod is left and all are counted, the final condition.
    pub(super) fn finish(&mut self, view: &View<'_>, end: End, totals: &Totals, clock: &Clock) {
        self.delete = view.active.clone();
        let over = self.noted() == 0
            && view.active.is_empty()
            && view.terminating.is_empty()
            && view.ended.is_empty();
        let End { well, reason, message } = end;
        let (criterion, condition) =
            if well { ("SuccessCriteriaMet", "Complete") } else { ("FailureTarget", "Failed") };
        self.set(criterion, "True", &reason, &message, clock);
        if !over {
            return;
        }
        self.set(condition, "True", &reason, &message, clock);
        if !well {
            self.events.push((EventType::Warning, reason, message));
            return;
        }
        self.status.completion_time = Some(clock.time());
        if view.spec.completions.is_some_and(|wanted| totals.succeeded > wanted) {
            let message = "Too many succeeded pods running after completion count reached";
            self.events.push((EventType::Warning, "TooManySucceededPods".into(), message.into()));
        }
        self.events.push((EventType::Normal, "Completed".into(), "Job completed".into()));
    }
}

/// Returns the outcome of an Indexed Job by its failed and succeeded indexes.
fn by_index(view: &View<'_>) -> Option<End> {
    if !view.indexed {
        return None;
    }
    let (spec, failed) = (view.spec, number(view.failed.len()));
    if failed > 0 {
        if spec.max_failed_indexes.is_some_and(|most| failed > most) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(End::failed("MaxFailedIndexesExceeded", message));
        }
        if failed + number(view.succeeded.len()) >= view.completions {
            return Some(End::failed("FailedIndexes", "Job has failed indexes"));
        }
    }
    policy::success(spec, &view.succeeded).map(|why| End::succeeded("SuccessPolicy", why))
}
