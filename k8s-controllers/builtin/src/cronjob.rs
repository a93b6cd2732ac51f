//! CronJob: creates Jobs on a schedule.
//!
//! Flow: [`schedule`] computes the last due time and the next one; the concurrency policy decides about Jobs
//! that still run; the controller requeues itself for the next time. There is no polling.

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
use k8s_controllers::{Action, Context, Controller, Environment, Error, EventType, Reconcile};

const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

pub(super) fn start(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    Controller::<CronJob>::new().named("cronjob-controller").owns::<Job>().run_in(environment, CronJobs)
}

struct CronJobs;

/// Returns a Job's final condition and its time; `None` while it runs.
fn end_of(job: &Job) -> Option<(&'static str, Timestamp)> {
    let status = job.status.as_ref()?;
    let find = |kind| {
        let condition = conditions::find(status.conditions.as_ref(), kind).filter(|c| c.status == "True")?;
        Some((kind, condition.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0)))
    };
    find("Complete").or_else(|| find("Failed"))
}

/// Returns the time at which a Job succeeded.
fn success_of(job: &Job) -> Option<Timestamp> {
    let (_, noted) = end_of(job).filter(|(kind, _)| *kind == "Complete")?;
    Some(job.status.as_ref()?.completion_time.as_ref().map_or(noted, |t| t.0))
}

fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".into()),
        kind: Some("Job".into()),
        namespace: Some(job.namespace().to_owned()),
        name: Some(job.name().to_owned()),
        uid: Some(job.uid().to_owned()),
        resource_version: job.metadata.resource_version.clone(),
        ..ObjectReference::default()
    }
}

/// Why a schedule whose fields are right has no time: the 31st of February.
const NEVER: &str = "time difference between two schedules is less than 1 second";

impl Reconcile for CronJobs {
    type Kind = CronJob;

    async fn reconcile(&self, cx: &Context, cron: Arc<CronJob>) -> Result<Action, Error> {
        let mut jobs: Vec<Arc<Job>> = cx.owned(&*cron);
        jobs.sort_by_key(|j| (j.metadata.creation_timestamp.as_ref().map(|t| t.0), j.name().to_owned()));
        let mut work =
            Work { cx, cron: &cron, spec: &cron.spec, status: cron.status.clone().unwrap_or_default() };
        work.clean_up(&jobs).await?;
        work.look(&jobs);
        let action = if cron.is_deleting() || cron.spec.suspend == Some(true) {
            Ok(Action::await_change())
        } else {
            work.schedule(&jobs).await
        };
        if work.status != cron.status.clone().unwrap_or_default() {
            let next = CronJob { status: Some(work.status), ..(*cron).clone() };
            cx.replace_status(&next).await?;
        }
        action
    }
}

/// One reconcile of a CronJob.
struct Work<'a> {
    cx: &'a Context,
    cron: &'a CronJob,
    spec: &'a CronJobSpec,
    /// Starts as the cached status; written once at the end.
    status: CronJobStatus,
}

impl Work<'_> {
    fn tell(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        self.cx.event(self.cron, kind, reason, message);
    }

    fn warn(&self, reason: &str, message: impl Into<String>) {
        self.tell(EventType::Warning, reason, message);
    }

    /// Updates the list of active Jobs: adds those that a crash left unrecorded, removes finished and deleted
    /// ones, and warns about unknown ones.
    fn look(&mut self, jobs: &[Arc<Job>]) {
        let mut active = self.status.active.take().unwrap_or_default();
        for job in jobs {
            let known = active.iter().position(|r| r.uid.as_deref() == Some(job.uid()));
            match (end_of(job), known) {
                (None, None) => match scheduled_for(self.cron, job) {
                    // The controller created it and ended before it wrote the status.
                    Some(due) => {
                        active.push(reference(job));
                        if self.status.last_schedule_time.as_ref().is_none_or(|t| t.0 < due) {
                            self.status.last_schedule_time = Some(Time(due));
                        }
                    }
                    None => {
                        let message =
                            format!("Saw a job that the controller did not create or forgot: {}", job.name());
                        self.warn("UnexpectedJob", message);
                    }
                },
                (Some((kind, _)), Some(known)) => {
                    active.remove(known);
                    let message = format!("Saw completed job: {}, condition: {kind}", job.name());
                    self.tell(EventType::Normal, "SawCompletedJob", message);
                }
                _ => {}
            }
            if let Some(at) = success_of(job)
                && self.status.last_successful_time.as_ref().is_none_or(|t| t.0 < at)
            {
                self.status.last_successful_time = Some(Time(at));
            }
        }
        active.retain(|known| {
            let there = jobs.iter().any(|j| Some(j.uid()) == known.uid.as_deref());
            if !there {
                let name = known.name.as_deref().unwrap_or_default();
                self.tell(EventType::Normal, "MissingJob", format!("Active job went missing: {name}"));
            }
            there
        });
        self.status.active = Some(active).filter(|a| !a.is_empty());
    }

    async fn delete(&self, job: &Job) -> Result<(), Error> {
        if let Err(e) = self.cx.delete(job, DeleteOptions::background()).await {
            self.warn("FailedDelete", format!("Deleted job: {e}"));
            return Err(e);
        }
        self.tell(EventType::Normal, "SuccessfulDelete", format!("Deleted job {}", job.name()));
        Ok(())
    }

    async fn clean_up(&self, jobs: &[Arc<Job>]) -> Result<(), Error> {
        let limits = [
            ("Complete", self.spec.successful_jobs_history_limit.unwrap_or(3)),
            ("Failed", self.spec.failed_jobs_history_limit.unwrap_or(1)),
        ];
        for (kind, limit) in limits {
            let ended: Vec<&Arc<Job>> = jobs
                .iter()
                .filter(|j| end_of(j).is_some_and(|(k, _)| k == kind) && !j.is_deleting())
                .collect();
            let surplus = ended.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
            for job in ended.into_iter().take(surplus) {
                self.delete(job).await?;
            }
        }
        Ok(())
    }

    /// Parses schedule and time zone; reports errors as events and returns `None`.
    fn plan(&self) -> Option<(Schedule, TimeZone)> {
        let text = &self.spec.schedule;
        let named = self.spec.time_zone.as_deref();
        let (inline, rest) = schedule::zone_prefix(text);
        if inline.is_some() {
            self.warn(
                "UnsupportedSchedule",
                format!("CRON_TZ or TZ used in schedule {text:?} is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"),
            );
        }
        let zone = match named.or(inline).filter(|n| !n.is_empty()) {
            None => TimeZone::UTC,
            Some(name) => match TimeZone::get(name) {
                Ok(zone) => zone,
                Err(e) if named.is_some() => {
                    self.warn("UnknownTimeZone", format!("invalid timeZone: {name:?}: {e}"));
                    return None;
                }
                Err(e) => {
                    self.warn("UnparseableSchedule", format!("unparseable schedule: {text:?} : {e}"));
                    return None;
                }
            },
        };
        match rest.parse() {
            Ok(plan) => Some((plan, zone)),
            Err(e) => {
                self.warn("UnparseableSchedule", format!("unparseable schedule: {text:?} : {e}"));
                None
            }
        }
    }

    async fn schedule(&mut self, jobs: &[Arc<Job>]) -> Result<Action, Error> {
        let Some((plan, zone)) = self.plan() else { return Ok(Action::await_change()) };
        let now = self.cx.clock().now();
        let created = self.cron.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
        let mut earliest = self.status.last_schedule_time.as_ref().map_or(created, |t| t.0);
        let deadline = self.spec.starting_deadline_seconds.and_then(|s| u64::try_from(s).ok());
        let deadline = deadline.map(Duration::from_secs);
        if let Some(limit) = deadline.and_then(|d| now.checked_sub(d).ok()) {
            earliest = earliest.max(limit);
        }
        if plan.after(earliest, &zone).is_none() {
            let schedule = &self.spec.schedule;
            let message = format!("invalid schedule: {schedule} : {NEVER}");
            self.warn("InvalidSchedule", message);
            return Ok(Action::await_change());
        }
        let next = plan.after(now, &zone);
        let wake = Action::maybe_after(next.map(|t| self.cx.clock().until(t) + Duration::from_millis(10)));
        let (missed, last) = plan.last_between(earliest, now, &zone);
        if missed > 100 {
            self.warn("TooManyMissedTimes", "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew");
        }
        // A time whose Job was created is not due again, even if the deadline changes.
        let had = self.status.last_schedule_time.as_ref().map(|t| t.0);
        let Some(due) = last.filter(|due| had.is_none_or(|had| had < *due)) else { return Ok(wake) };
        if deadline.is_some_and(|d| self.cx.clock().since(due) > d) {
            let due = due.strftime("%a, %d %b %Y %H:%M:%S +0000");
            self.warn("MissSchedule", format!("Missed scheduled time to start a job: {due}"));
            return Ok(wake);
        }
        let running: Vec<&Arc<Job>> = jobs.iter().filter(|j| self.is_active(j)).collect();
        match self.spec.concurrency_policy.as_deref() {
            Some("Forbid") if !running.is_empty() => {
                let message =
                    "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.tell(EventType::Normal, "JobAlreadyActive", message);
                return Ok(wake);
            }
            Some("Replace") => {
                for job in running {
                    self.delete(job).await?;
                }
                self.status.active = None;
            }
            _ => {}
        }
        self.start(due, &zone).await?;
        Ok(wake)
    }

    fn is_active(&self, job: &Job) -> bool {
        self.status.active.iter().flatten().any(|r| r.uid.as_deref() == Some(job.uid()))
    }

    /// Creates the Job of a scheduled time.
    async fn start(&mut self, due: Timestamp, zone: &TimeZone) -> Result<(), Error> {
        let desired = build(self.cron, self.spec, due, zone);
        let job = match self.cx.create(&desired).await {
            Ok(job) => {
                let message = format!("Created job {}", job.name());
                self.tell(EventType::Normal, "SuccessfulCreate", message);
                job
            }
            Err(Error::Api(e)) if e.is_already_exists() => {
                let Some(job) = self.cx.api::<Job>(self.cron.namespace()).get_opt(desired.name()).await?
                else {
                    return Err(e.into());
                };
                // Created earlier, but the status was not written. Another owner's Job of this name counts as
                // the time's Job.
                if job.controller_ref().is_none_or(|o| o.uid != self.cron.uid()) || self.is_active(&job) {
                    self.status.last_schedule_time = Some(Time(due));
                    return Ok(());
                }
                job
            }
            Err(e) if is_namespace_terminating(&e) => return Ok(()),
            Err(e) => {
                self.warn("FailedCreate", format!("Error creating job: {e}"));
                return Err(e);
            }
        };
        if end_of(&job).is_none() {
            self.status.active.get_or_insert_default().push(reference(&job));
        }
        self.status.last_schedule_time = Some(Time(due));
        Ok(())
    }
}

/// Returns the Job's name for a scheduled time. It contains the minute, so a time never has two Jobs.
fn name_of(cron: &CronJob, due: Timestamp) -> String {
    format!("{}-{}", cron.name(), due.as_second().div_euclid(60))
}

/// Returns the scheduled time of a Job that this controller created; `None` for manually created ones.
fn scheduled_for(cron: &CronJob, job: &Job) -> Option<Timestamp> {
    let due: Timestamp = job.annotation(SCHEDULED_AT)?.parse().ok()?;
    (job.name() == name_of(cron, due)).then_some(due)
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
            name: Some(name_of(cron, due)),
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
