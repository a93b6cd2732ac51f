//! CronJob: makes a Job whenever its schedule says so.
//!
//! Flow: [`schedule`] finds the last time that should have had a Job and the next one; the concurrency policy decides what to do about Jobs that
//! still run; the controller wakes itself for the next time. Nothing is polled.

mod schedule;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use jiff::{Timestamp, tz::TimeZone};
use k8s_core::{
    api::{
        api::{
            batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job, JobStatus},
            core::v1::ObjectReference,
        },
        apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    },
    client::DeleteOptions,
    meta::{ObjectExt, owner_reference},
};

use self::schedule::Schedule;
use super::{Options, batch::is_namespace_terminating, conditions};
use crate::{Action, Context, Controller, Environment, Error, EventType, Reconcile};

const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

pub(super) fn start(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    Controller::<CronJob>::new().named("cronjob-controller").owns::<Job>().start(environment, CronJobs)
}

struct CronJobs;

fn end_of(job: &Job) -> Option<(&'static str, Timestamp)> {
    let status = job.status.as_ref()?;
    let find = |kind| {
        let condition = conditions::find(status.conditions.as_ref(), kind).filter(|c| c.status == "True")?;
        Some((kind, condition.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0)))
    };
    find("Complete").or_else(|| find("Failed"))
}

fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".into()),
        kind: Some("Job".into()),
        namespace: Some(job.namespace().to_owned()),
        name: Some(job.name().to_owned()),
        uid: Some(job.uid().to_owned()),
        ..ObjectReference::default()
    }
}

impl Reconcile for CronJobs {
    type Kind = CronJob;

    async fn reconcile(&self, cx: &Context, cron: Arc<CronJob>) -> Result<Action, Error> {
        if cron.is_deleting() {
            return Ok(Action::await_change());
        }
        let spec = cron.spec.clone();
        let mut jobs: Vec<Arc<Job>> = cx.owned(&*cron);
        jobs.sort_by_key(|j| (j.metadata.creation_timestamp.as_ref().map(|t| t.0), j.name().to_owned()));
        self.clean_up(cx, &spec, &jobs).await?;
        let mut status = self.look(cx, &cron, &jobs);
        let action = self.schedule(cx, &cron, &spec, &jobs, &mut status).await;
        let mut next = (*cron).clone();
        next.status = Some(status);
        if next.status.clone().unwrap_or_default() != cron.status.clone().unwrap_or_default() {
            cx.replace_status(&next).await?;
        }
        action
    }
}

impl CronJobs {
    /// Which Jobs run, and which have ended since.
    fn look(&self, cx: &Context, cron: &CronJob, jobs: &[Arc<Job>]) -> CronJobStatus {
        let mut status = cron.status.clone().unwrap_or_default();
        let mut active = status.active.take().unwrap_or_default();
        for job in jobs {
            let known = active.iter().position(|r| r.uid.as_deref() == Some(job.uid()));
            match (end_of(job), known) {
                (None, None) => active.push(reference(job)),
                (Some((kind, at)), Some(known)) => {
                    active.remove(known);
                    let message = format!("Saw completed job: {}, condition: {kind}", job.name());
                    cx.event(cron, EventType::Normal, "SawCompletedJob", message);
                    if kind == "Complete" && status.last_successful_time.as_ref().is_none_or(|t| t.0 < at) {
                        status.last_successful_time = Some(Time(at));
                    }
                }
                _ => {}
            }
        }
        // Those that somebody deleted.
        active.retain(|r| jobs.iter().any(|j| Some(j.uid()) == r.uid.as_deref()));
        status.active = Some(active).filter(|a| !a.is_empty());
        status
    }

    async fn clean_up(&self, cx: &Context, spec: &CronJobSpec, jobs: &[Arc<Job>]) -> Result<(), Error> {
        let limits = [
            ("Complete", spec.successful_jobs_history_limit.unwrap_or(3)),
            ("Failed", spec.failed_jobs_history_limit.unwrap_or(1)),
        ];
        for (kind, limit) in limits {
            let ended: Vec<&Arc<Job>> = jobs
                .iter()
                .filter(|j| end_of(j).is_some_and(|(k, _)| k == kind) && !j.is_deleting())
                .collect();
            let surplus = ended.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
            for job in ended.into_iter().take(surplus) {
                cx.delete(&**job, DeleteOptions::background()).await?;
            }
        }
        Ok(())
    }

    async fn schedule(
        &self,
        cx: &Context,
        cron: &CronJob,
        spec: &CronJobSpec,
        jobs: &[Arc<Job>],
        status: &mut CronJobStatus,
    ) -> Result<Action, Error> {
        if spec.suspend == Some(true) {
            return Ok(Action::await_change());
        }
        let warn = |reason: &str, message: String| cx.event(cron, EventType::Warning, reason, message);
        let zone = match spec.time_zone.as_deref() {
            None => TimeZone::UTC,
            Some(name) => match TimeZone::get(name) {
                Ok(zone) => zone,
                Err(e) => {
                    warn("UnknownTimeZone", format!("invalid timeZone: {name:?}: {e}"));
                    return Ok(Action::await_change());
                }
            },
        };
        let plan: Schedule = match spec.schedule.parse() {
            Ok(plan) => plan,
            Err(e) => {
                warn("UnparseableSchedule", format!("unparseable schedule: {:?} : {e}", spec.schedule));
                return Ok(Action::await_change());
            }
        };
        let now = cx.clock().now();
        let created = cron.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
        let mut earliest = status.last_schedule_time.as_ref().map_or(created, |t| t.0);
        let deadline =
            spec.starting_deadline_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
        if let Some(deadline) = deadline
            && let Ok(limit) = now.checked_sub(deadline)
        {
            earliest = earliest.max(limit);
        }
        let next = plan.after(now, &zone);
        let wake = Action::maybe_after(next.map(|t| cx.clock().until(t) + Duration::from_millis(10)));
        let (missed, last) = plan.last_between(earliest, now, &zone);
        let Some(due) = last else { return Ok(wake) };
        if missed > 100 {
            warn("TooManyMissedTimes", "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew".into());
        }
        if deadline.is_some_and(|d| cx.clock().since(due) > d) {
            warn("MissSchedule", format!("Missed scheduled time to start a job: {due}"));
            return Ok(wake);
        }
        let running = jobs.iter().filter(|j| end_of(j).is_none()).collect::<Vec<_>>();
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !running.is_empty() => {
                let message =
                    "Not starting job because prior execution is running and concurrency policy is Forbid";
                cx.event(cron, EventType::Normal, "JobAlreadyActive", message);
                return Ok(wake);
            }
            Some("Replace") => {
                for job in &running {
                    cx.delete(&***job, DeleteOptions::background()).await?;
                    cx.event(
                        cron,
                        EventType::Normal,
                        "SuccessfulDelete",
                        format!("Deleted job {}", job.name()),
                    );
                }
                status.active = None;
            }
            _ => {}
        }
        match cx.create(&build(cron, spec, due, &zone)).await {
            Ok(job) => {
                cx.event(cron, EventType::Normal, "SuccessfulCreate", format!("Created job {}", job.name()));
                status.active.get_or_insert_default().push(reference(&job));
            }
            // Made before, and the status was not written.
            Err(Error::Api(e)) if e.is_already_exists() => {}
            Err(e) if is_namespace_terminating(&e) => return Ok(Action::await_change()),
            Err(e) => {
                warn("FailedCreate", format!("Error creating job: {e}"));
                return Err(e);
            }
        }
        status.last_schedule_time = Some(Time(due));
        Ok(wake)
    }
}

fn build(cron: &CronJob, spec: &CronJobSpec, due: Timestamp, zone: &TimeZone) -> Job {
    let template = spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations: BTreeMap<String, String> = template.annotations.unwrap_or_default();
    let local = due.to_zoned(zone.clone());
    annotations.insert(
        SCHEDULED_AT.into(),
        local.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string().replace("+00:00", "Z"),
    );
    Job {
        metadata: ObjectMeta {
            // The minute is in the name, so that one scheduled time never has two Jobs.
            name: Some(format!("{}-{}", cron.name(), due.as_second() / 60)),
            namespace: Some(cron.namespace().to_owned()),
            labels: template.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owner_reference(cron)]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None::<JobStatus>,
    }
}
