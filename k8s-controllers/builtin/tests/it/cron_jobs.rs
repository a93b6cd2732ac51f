//! CronJobs: the effect of each field, and the events.

use std::time::Duration;

use jiff::Timestamp;
use k8s_core::{
    api::api::batch::v1::{CronJob, Job},
    meta::{ObjectExt, owner_reference},
};

use crate::{
    cron_job, is_finished, job,
    lab::{Lab, metadata},
    runs,
};

async fn minutes(count: u64) {
    tokio::time::sleep(Duration::from_secs(count * 60)).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_policy_makes_of_a_job_that_still_runs() {
    // Jobs that never end, after a little over ten minutes.
    for (policy, standing, reason, message) in [
        ("Allow", 11, "SuccessfulCreate", "Created job tick-"),
        (
            "Forbid",
            1,
            "JobAlreadyActive",
            "Not starting job because prior execution is running and concurrency policy is Forbid",
        ),
        ("Replace", 1, "SuccessfulDelete", "Deleted job tick-"),
    ] {
        let lab = Lab::start(1, runs).await;
        let mut cron = cron_job("tick", "* * * * *");
        cron.spec.concurrency_policy = Some(policy.into());
        lab.create(&cron).await;
        minutes(10).await;
        tokio::time::sleep(Duration::from_secs(40)).await;
        let mut jobs: Vec<Job> = lab.list().await;
        jobs.retain(|j| !j.is_deleting());
        assert!(
            (standing - 1..=standing).contains(&jobs.len()) && !jobs.is_empty(),
            "{policy}: {}",
            jobs.len()
        );
        let status = lab.get::<CronJob>("tick").await.status.unwrap();
        assert_eq!(status.active.map(|a| a.len()), Some(jobs.len()), "{policy}");
        assert!(lab.heard("CronJob", reason, message).await, "{policy}: no event {reason}");
    }
}

#[tokio::test(start_paused = true)]
async fn times_that_were_missed() {
    for (name, deadline, away, want, reason) in [
        // Back within the deadline: the last missed time is made up for.
        ("late", Some(300), 150, 1, None),
        ("too late", Some(10), 150, 0, None),
        // Without a deadline one Job is created for all missed times; an event reports many.
        ("few", None, 20 * 60, 1, None),
        ("many", None, 200 * 60, 1, Some("TooManyMissedTimes")),
    ] {
        let lab = Lab::start(1, |_| "Succeeded").await;
        let mut cron = cron_job("tick", "* * * * *");
        cron.spec.suspend = Some(true);
        cron.spec.starting_deadline_seconds = deadline;
        lab.create(&cron).await;
        // Wait until half a minute past a full one.
        let now = lab.get::<CronJob>("tick").await.metadata.creation_timestamp.unwrap().0.as_second();
        let wait = 30 - now.rem_euclid(60) + if now.rem_euclid(60) > 30 { 60 } else { 0 } + away / 60 * 60;
        tokio::time::sleep(Duration::from_secs(u64::try_from(wait).unwrap())).await;
        lab.edit("tick", |c: &mut CronJob| c.spec.suspend = Some(false)).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(lab.list::<Job>().await.len(), want, "{name}");
        if let Some(reason) = reason {
            assert!(lab.heard("CronJob", reason, "too many missed start times").await, "{name}");
        }
        minutes(1).await;
        assert_eq!(lab.list::<Job>().await.len(), want + 1, "{name}: the next one is in time");
    }
}

#[tokio::test(start_paused = true)]
async fn local_times_and_what_jobs_are_made_of() {
    let lab = Lab::start(1, |_| "Succeeded").await;
    let mut cron = cron_job("tick", "30 9 * * *");
    cron.spec.time_zone = Some("Asia/Kolkata".into());
    let template = cron.spec.job_template.metadata.get_or_insert_default();
    template.labels = Some([("team".to_owned(), "a".to_owned())].into());
    lab.create(&cron).await;
    // It is 22:13 in London, and 9:30 in India is 4:00 there. Events are kept for an hour.
    minutes(6 * 60).await;
    let jobs: Vec<Job> = lab.list().await;
    assert_eq!(jobs.len(), 1);
    let at = jobs[0].annotation("batch.kubernetes.io/cronjob-scheduled-timestamp").unwrap();
    assert!(at.ends_with("T09:30:00+05:30"), "{at}");
    let due: Timestamp = at.parse().unwrap();
    assert_eq!(jobs[0].name(), format!("tick-{}", due.as_second() / 60));
    assert_eq!(jobs[0].label("team"), Some("a"));
    let status = lab.get::<CronJob>("tick").await.status.unwrap();
    assert_eq!(status.last_schedule_time.unwrap().0, due);
    assert_eq!(
        status.last_successful_time.unwrap().0,
        jobs[0].status.clone().unwrap().completion_time.unwrap().0
    );
    assert!(
        lab.heard("CronJob", "SawCompletedJob", &format!("{}, condition: Complete", jobs[0].name())).await
    );
}

#[tokio::test(start_paused = true)]
async fn jobs_that_come_and_go_without_the_controller() {
    let lab = Lab::start(1, runs).await;
    let cron: CronJob = lab.create(&cron_job("tick", "0 * * * *")).await;
    let mut manual = job("by-hand", Default::default());
    manual.metadata = metadata("by-hand");
    manual.metadata.owner_references = Some(vec![owner_reference(&cron)]);
    lab.create(&manual).await;
    minutes(61).await;
    let text = "Saw a job that the controller did not create or forgot: by-hand";
    assert!(lab.heard("CronJob", "UnexpectedJob", text).await);
    let active =
        async || lab.get::<CronJob>("tick").await.status.unwrap_or_default().active.unwrap_or_default();
    let ours = active().await;
    assert_eq!(ours.len(), 1, "the one made by hand is not counted");
    let name = ours[0].name.clone().unwrap();
    lab.delete::<Job>(&name, "Background").await;
    lab.until("noticed", async || active().await.is_empty()).await;
    lab.until("told", async || {
        lab.heard("CronJob", "MissingJob", &format!("Active job went missing: {name}")).await
    })
    .await;
    assert!(!is_finished(&lab.get("by-hand").await));
}

#[tokio::test(start_paused = true)]
async fn a_schedule_without_times_is_told() {
    let lab = Lab::start(1, |_| "Succeeded").await;
    lab.create(&cron_job("never", "59 23 31 2 *")).await;
    lab.until("told", async || {
        let message =
            "invalid schedule: 59 23 31 2 * : time difference between two schedules is less than 1 second";
        lab.heard("CronJob", "InvalidSchedule", message).await
    })
    .await;
    lab.is_quiet().await;
    lab.edit("never", |cron: &mut CronJob| cron.spec.schedule = "* * * * *".into()).await;
    lab.until("a better one", async || !lab.list::<Job>().await.is_empty()).await;
}
