//! Job: runs pods to completion.
//!
//! Flow: [`plan`] computes from a Job and its pods the status, the pods to create and delete, and the
//! finished pods that are counted and lose their finalizer. This module applies it, the status first.
//!
//! Guarantee: every finished pod is counted exactly once. A pod keeps the finalizer
//! `batch.kubernetes.io/job-tracking` until its uid is in `status.uncountedTerminatedPods`. The uid is moved
//! from that list to the counter only after the pod has lost the finalizer.

mod backoff;
mod build;
mod indexes;
mod plan;
mod policy;
mod ttl;

use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_core::{
    api::api::{batch::v1::Job, core::v1::Pod},
    meta::{LabelSelector, ObjectExt, ObjectKey},
};
use serde_json::json;

use self::plan::Plan;
use super::{
    Options,
    batch::{catch_up, is_in_doubt, slow_start},
    claim, pods,
};
use k8s_controllers::{Action, Context, Controller, Environment, Error, Reconcile};

/// Finalizer of pods that are not counted yet.
const TRACKING: &str = "batch.kubernetes.io/job-tracking";

/// Index of pods with [`TRACKING`] by the key of the controlling Job, to find pods of deleted Jobs.
const BY_JOB: &str = "job";

pub(super) fn start(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    environment.caches.of::<Pod>().add_index(BY_JOB, |pod| {
        let job = pod.controller_ref().filter(|o| o.kind == "Job" && is_tracked(pod));
        job.map(|o| ObjectKey::new(pod.namespace(), &o.name).to_string()).into_iter().collect()
    });
    Controller::<Job>::new().named("job-controller").workers(8).owns::<Pod>().run_in(environment, Jobs)
}

pub(super) fn ttl(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    Controller::<Job>::new().named("ttl-after-finished-controller").run_in(environment, ttl::TtlAfterFinished)
}

struct Jobs;

impl Reconcile for Jobs {
    type Kind = Job;

    async fn reconcile(&self, cx: &Context, job: Arc<Job>) -> Result<Action, Error> {
        let managed_by = job.spec.as_ref().and_then(|s| s.managed_by.as_deref());
        if managed_by.is_some_and(|m| m != "kubernetes.io/job-controller") {
            return Ok(Action::await_change());
        }
        // Pods of an earlier Job of this name, which is gone and cannot release them.
        release(cx, &tracked_by(cx, |uid| uid != job.uid())).await?;
        let selector = job.spec.as_ref().and_then(|s| s.selector.as_ref()).map(LabelSelector::from_api);
        let all: Vec<Arc<Pod>> = match &selector {
            Some(Ok(selector)) if !selector.is_everything() => {
                claim::claim_with(cx, &*job, selector, Some(TRACKING), |_| true).await?
            }
            Some(Err(e)) => return Err(Error::invalid(format!("selector of {}", cx.key()), e)),
            _ => cx.owned(&*job),
        };
        if job.is_deleting() {
            release(cx, &all).await?;
            return Ok(Action::await_change());
        }
        let Plan { status, create, delete, shed, counted, events, after } =
            plan::plan(&job, &all, cx.clock());
        let mut next = (*job).clone();
        next.status = Some(status);
        if next.status != job.status {
            cx.replace_status(&next).await?;
        }
        for (kind, reason, message) in events {
            cx.event(&*job, kind, &reason, message);
        }
        release(cx, &counted).await?;
        // A surplus pod must not count as failed after its deletion, so it loses the finalizer first.
        release(cx, &shed).await?;
        let leaving = shed.into_iter().chain(delete).collect();
        let (_, failure) = slow_start(cx, &job, leaving, pods::delete_one).await;
        let failure = match failure {
            None => {
                let pods = create.iter().map(|new| build::pod(&job, new)).collect();
                slow_start(cx, &job, pods, pods::create_one).await.1
            }
            failure => failure,
        };
        let Some(failure) = failure else { return Ok(Action::maybe_after(after)) };
        if is_in_doubt(&failure)
            && let Some(Ok(selector)) = selector
        {
            catch_up::<Pod>(cx, &selector);
        }
        Err(failure)
    }

    async fn gone(&self, cx: &Context) -> Result<Action, Error> {
        // The Job is gone, so its pods would keep the finalizer for ever.
        release(cx, &tracked_by(cx, |_| true)).await?;
        Ok(Action::await_change())
    }
}

fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == TRACKING)
}

/// Returns pods with the finalizer whose Job has or had the reconciled name, filtered by the Job's uid.
fn tracked_by(cx: &Context, uid: impl Fn(&str) -> bool) -> Vec<Arc<Pod>> {
    let mut all = cx.caches().of::<Pod>().by_index(BY_JOB, &cx.key().to_string());
    all.retain(|pod| pod.controller_ref().is_some_and(|o| uid(&o.uid)));
    all
}

/// Removes the finalizer from pods.
async fn release(cx: &Context, pods: &[Arc<Pod>]) -> Result<(), Error> {
    let tracked = pods.iter().filter(|p| is_tracked(p)).cloned().collect();
    // The placeholder owner is unused: the Job may be gone.
    let (_, failure) = slow_start(cx, &Arc::new(()), tracked, release_one).await;
    failure.map_or(Ok(()), Err)
}

async fn release_one(cx: Arc<Context>, _: Arc<()>, pod: Arc<Pod>) -> Result<(), Error> {
    let rest: Vec<&String> = pod.metadata.finalizers.iter().flatten().filter(|f| *f != TRACKING).collect();
    let patch = json!({"metadata": {
        "uid": pod.uid(),
        "resourceVersion": pod.metadata.resource_version,
        "finalizers": rest,
    }});
    match cx.merge(&*pod, &patch).await {
        Err(Error::Api(e)) if e.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}
