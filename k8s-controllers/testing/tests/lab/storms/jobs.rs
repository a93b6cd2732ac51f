//! Jobs and CronJobs.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use k8s_builtin::{conditions, pods};
use k8s_core::{
    api::api::{
        batch::v1::{CronJob, Job},
        core::v1::Pod,
    },
    meta::ObjectExt,
    random,
};
use k8s_testing::{
    Script,
    controllers::{cron_job, garbage_collector, job},
};
use serde_json::{Value, json};

use super::{slow, storm, template};

/// A template of pods that run to completion.
fn work() -> Value {
    let mut template = template("work", "work");
    template["spec"]["restartPolicy"] = json!("Never");
    template
}

/// Outcome of a pod by a hash of its name: about four of five succeed.
fn succeeds(pod: &Pod) -> bool {
    let sum = pod.name().bytes().fold(7u32, |sum, b| sum.wrapping_mul(31).wrapping_add(b.into()));
    !sum.is_multiple_of(5)
}

fn is(job: &Job, condition: &str) -> bool {
    conditions::is_true(job.status.as_ref().and_then(|s| s.conditions.as_ref()), condition)
}

fn is_finished(job: &Job) -> bool {
    is(job, "Complete") || is(job, "Failed")
}

#[test]
fn jobs_count_every_pod_once_and_run_no_more_than_asked() {
    let script = |pod: &Pod| slow(Script::exits(Duration::from_secs(1), i32::from(!succeeds(pod))));
    storm(15).controllers([job()]).pods(script).run(async |lab| {
        let (completions, parallelism) = (random::range(2..8_i32), random::range(1..5_i32));
        let (indexed, by_index) = (lab.seed() % 2 == 1, lab.seed() % 4 == 3);
        let mut spec = json!({"completions": completions, "parallelism": parallelism, "template": work()});
        if indexed {
            spec["completionMode"] = json!("Indexed");
        }
        if by_index {
            spec["backoffLimitPerIndex"] = json!(1);
        } else {
            spec["backoffLimit"] = json!(random::range(0..4));
        }
        // Outcome of each finished pod.
        let ends: Arc<Mutex<HashMap<String, bool>>> = Arc::default();
        let seen = ends.clone();
        lab.always(move |all: &[&Pod]| {
            let mut ends = seen.lock().unwrap();
            for pod in all.iter().filter(|p| pods::is_terminal(p)) {
                ends.insert(pod.uid().to_owned(), pods::phase(pod) == "Succeeded");
            }
            let running = i32::try_from(all.iter().filter(|p| pods::is_active(p)).count()).unwrap();
            assert!(running <= parallelism, "{running} run, {parallelism} may");
            let good = i32::try_from(ends.values().filter(|well| **well).count()).unwrap();
            assert!(good + running <= completions || indexed, "{good} of {completions} done, {running} run");
        })
        .await;
        lab.create_from::<Job>(json!({"metadata": {"name": "work"}, "spec": spec})).await;
        lab.sleep(Duration::from_secs(200)).await;
        lab.assert_idempotent().await;

        let job = lab.until("work", is_finished).await;
        let all: Vec<Pod> = lab.list().await;
        assert!(all.iter().all(|p| p.metadata.finalizers.iter().flatten().next().is_none()));
        let status = job.status.clone().unwrap();
        let ends = ends.lock().unwrap().clone();
        let count = |how: bool| i32::try_from(ends.values().filter(|well| **well == how).count()).unwrap();
        if indexed {
            assert!(status.succeeded.unwrap_or(0) <= count(true));
        } else {
            assert_eq!(status.succeeded.unwrap_or(0), count(true), "{status:?}");
        }
        if is(&job, "Complete") {
            assert_eq!(status.succeeded, Some(completions));
            assert_eq!(status.failed.unwrap_or(0), count(false), "{status:?}");
        } else {
            // Pods that were running when the Job failed count as failed, although their status may not say
            // so.
            assert!(status.failed.unwrap_or(0) >= count(false), "{status:?}");
        }
    });
}

#[test]
fn cron_jobs_keep_to_their_policy_and_history() {
    let script = |_: &Pod| slow(Script::exits(Duration::from_secs(1), 0));
    storm(8).controllers([cron_job(), job(), garbage_collector()]).pods(script).run(async |lab| {
        let policy = ["Forbid", "Allow", "Replace"][usize::try_from(lab.seed() % 3).unwrap()];
        lab.always(move |jobs: &[&Job]| {
            let running = jobs.iter().filter(|j| !j.is_deleting() && !is_finished(j)).count();
            assert!(running <= 1 || policy == "Allow", "{running} run with {policy}");
        })
        .await;
        lab.create_from::<CronJob>(json!({"metadata": {"name": "tick"}, "spec": {
            "schedule": "* * * * *", "concurrencyPolicy": policy,
            "jobTemplate": {"spec": {"completions": 1, "template": work()}},
        }}))
        .await;
        lab.sleep(Duration::from_secs(600)).await;
        lab.edit("tick", |c: &mut CronJob| c.spec.suspend = Some(true)).await;
        lab.assert_idempotent().await;
        let jobs: Vec<Job> = lab.list().await;
        assert!(jobs.len() <= 3 && jobs.iter().all(is_finished), "{} Jobs are left", jobs.len());
        let status = lab.get::<CronJob>("tick").await.status.unwrap();
        assert!(status.active.is_none(), "{status:?}");
        assert!(status.last_schedule_time.is_some() && status.last_successful_time.is_some());
    });
}
