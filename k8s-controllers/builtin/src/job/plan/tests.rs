//! A Job and its pods, which succeed, fail and disappear, without any other controller.

use jiff::Timestamp;
use k8s_core::api::{
    api::core::v1::PodStatus,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use proptest::prelude::*;

use super::{
    super::{build, indexes, is_tracked},
    *,
};

fn job(completions: Option<i32>, parallelism: i32, limit: i32, indexed: bool) -> Job {
    Job {
        metadata: ObjectMeta {
            name: Some("j".into()),
            namespace: Some("n".into()),
            uid: Some("u".into()),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            completions,
            parallelism: Some(parallelism),
            backoff_limit: Some(limit),
            completion_mode: indexed.then(|| "Indexed".to_owned()),
            ..JobSpec::default()
        }),
        status: None,
    }
}

/// Applies a plan as the controller does; returns true if there was a change.
fn act(job: &mut Job, pods: &mut Vec<Arc<Pod>>, clock: &Clock, next: &mut u32) -> bool {
    let plan = plan(job, pods, clock);
    let changed = job.status.as_ref() != Some(&plan.status)
        || !plan.create.is_empty()
        || !plan.delete.is_empty()
        || !plan.shed.is_empty();
    job.status = Some(plan.status);
    for pod in &plan.counted {
        if let Some(p) = pods.iter_mut().find(|p| p.uid() == pod.uid()) {
            Arc::make_mut(p).metadata.finalizers = None;
        }
    }
    for pod in &plan.delete {
        if let Some(p) = pods.iter_mut().find(|p| p.uid() == pod.uid()) {
            Arc::make_mut(p).metadata.deletion_timestamp = Some(clock.time());
        }
    }
    for pod in &plan.shed {
        if let Some(p) = pods.iter_mut().find(|p| p.uid() == pod.uid()) {
            let metadata = &mut Arc::make_mut(p).metadata;
            metadata.finalizers = None;
            metadata.deletion_timestamp = Some(clock.time());
        }
    }
    for new in plan.create {
        *next += 1;
        let mut pod = build::pod(job, &new);
        pod.metadata.uid = Some(next.to_string());
        pod.metadata.name = Some(next.to_string());
        pods.push(Arc::new(pod));
    }
    changed
}

fn end(pods: &mut [Arc<Pod>], at: usize, phase: &str, time: &Time) {
    let active: Vec<usize> = (0..pods.len()).filter(|i| pods::is_active(&pods[*i])).collect();
    let Some(at) = active.get(at % active.len().max(1)) else { return };
    let pod = Arc::make_mut(&mut pods[*at]);
    pod.status = Some(PodStatus { phase: Some(phase.into()), ..PodStatus::default() });
    pod.metadata.creation_timestamp = Some(time.clone());
}

proptest! {
    /// Pods finish in any order with any outcome: each is counted once, parallelism is never exceeded, and
    /// the Job gets the right outcome.
    #[test]
    fn counts_every_pod_once(
        completions in 1..6i32,
        parallelism in 1..5i32,
        limit in 0..5i32,
        indexed in any::<bool>(),
        fates in proptest::collection::vec((0..5usize, 0..4u8), 60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let clock = Clock::starting_at(Timestamp::UNIX_EPOCH);
            let mut job = job(Some(completions), parallelism, limit, indexed);
            let (mut pods, mut next) = (Vec::new(), 0);
            let (mut good, mut bad) = (0, 0);
            for (at, fate) in fates {
                for _ in 0..6 {
                    act(&mut job, &mut pods, &clock, &mut next);
                    // Deleted pods without the finalizer disappear.
                    pods.retain(|p| !p.is_deleting() || is_tracked(p));
                    let active = pods.iter().filter(|p| pods::is_active(p)).count();
                    assert!(number(active) <= parallelism, "{active} active of {parallelism}");
                }
                tokio::time::advance(Duration::from_secs(700)).await;
                if pods.iter().any(|p| pods::is_active(p)) {
                    let well = fate != 0;
                    end(&mut pods, at, if well { "Succeeded" } else { "Failed" }, &clock.time());
                    if well { good += 1 } else { bad += 1 }
                }
            }
            for _ in 0..6 {
                act(&mut job, &mut pods, &clock, &mut next);
                pods.retain(|p| !p.is_deleting() || is_tracked(p));
            }
            let status = job.status.clone().unwrap_or_default();
            assert!(is_finished(&status), "{status:?} after {good} good and {bad} bad of {completions}, limit {limit}");
            let complete = conditions::is_true(status.conditions.as_ref(), "Complete");
            assert_eq!(complete, bad <= limit && good >= completions, "{status:?}");
            if complete {
                assert_eq!(status.succeeded, Some(completions));
                assert_eq!(status.failed.unwrap_or(0), bad);
                if indexed { assert_eq!(indexes::parse_below(status.completed_indexes.as_deref().unwrap_or_default(), completions).len(), usize::try_from(completions).unwrap()); }
            }
            assert!(!act(&mut job, &mut pods, &clock, &mut next), "it does not spin");
        });
    }
}
