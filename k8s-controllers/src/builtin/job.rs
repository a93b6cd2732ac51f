//! Job: pods that run to their end.
//!
//! Flow: [`plan`] looks at a Job and its pods and says what status to write, which pods to make and delete, and which ended pods are counted
//! so that their finalizer can go; this module acts, the status first.
//!
//! Guarantee: every ended pod is counted exactly once. A pod keeps the finalizer `batch.kubernetes.io/job-tracking` until its uid is in
//! `status.uncountedTerminatedPods`; the uid leaves that list, and the counter rises, only when the pod no longer has the finalizer.

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
    client::DeleteOptions,
    meta::{LabelSelector, ObjectExt},
};
use serde_json::json;

use self::{build::New, plan::Plan};
use super::{
    Options,
    batch::{catch_up, is_in_doubt, is_namespace_terminating, slow_start},
    claim,
};
use crate::{Action, Context, Controller, Environment, Error, EventType, Reconcile};

/// Keeps an ended pod until it is counted.
const TRACKING: &str = "batch.kubernetes.io/job-tracking";

pub(super) fn start(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    Controller::<Job>::new().named("job-controller").workers(8).owns::<Pod>().start(environment, Jobs)
}

pub(super) fn ttl(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    Controller::<Job>::new().named("ttl-after-finished-controller").start(environment, ttl::TtlAfterFinished)
}

struct Jobs;

impl Reconcile for Jobs {
    type Kind = Job;

    async fn reconcile(&self, cx: &Context, job: Arc<Job>) -> Result<Action, Error> {
        let managed_by = job.spec.as_ref().and_then(|s| s.managed_by.as_deref());
        if managed_by.is_some_and(|m| m != "kubernetes.io/job-controller") {
            return Ok(Action::await_change());
        }
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
        // A pod that is not wanted any more must not count as failed when it has gone.
        release(cx, &shed).await?;
        let leaving = shed.into_iter().chain(delete).collect();
        let (_, failure) = slow_start(leaving, |pod: Arc<Pod>| delete_pod(cx, &job, pod)).await;
        let failure = match failure {
            None => slow_start(create, |new| create_pod(cx, &job, new)).await.1,
            failure => failure,
        };
        let Some(failure) = failure else { return Ok(Action::maybe_after(after)) };
        if is_in_doubt(&failure)
            && let Some(Ok(selector)) = selector
        {
            catch_up::<Pod>(cx, &selector).await;
        }
        Err(failure)
    }

    async fn gone(&self, cx: &Context) -> Result<Action, Error> {
        // Nobody counts any more; the pods must not stay for ever.
        let mut left = cx.caches().of::<Pod>().in_namespace(&cx.key().namespace);
        left.retain(|pod| pod.controller_ref().is_some_and(|o| o.kind == "Job" && o.name == cx.key().name));
        release(cx, &left).await?;
        Ok(Action::await_change())
    }
}

fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == TRACKING)
}

/// Takes the finalizer off.
async fn release(cx: &Context, pods: &[Arc<Pod>]) -> Result<(), Error> {
    let tracked = pods.iter().filter(|p| is_tracked(p)).cloned().collect();
    let (_, failure) = slow_start(tracked, |pod: Arc<Pod>| async move {
        let rest: Vec<&String> =
            pod.metadata.finalizers.iter().flatten().filter(|f| *f != TRACKING).collect();
        let patch = json!({"metadata": {
            "uid": pod.uid(),
            "resourceVersion": pod.metadata.resource_version,
            "finalizers": rest,
        }});
        match cx.merge(&*pod, &patch).await {
            Err(Error::Api(e)) if e.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    })
    .await;
    failure.map_or(Ok(()), Err)
}

async fn create_pod(cx: &Context, job: &Job, new: New) -> Result<(), Error> {
    match cx.create(&build::pod(job, &new)).await {
        Ok(pod) => {
            cx.event(job, EventType::Normal, "SuccessfulCreate", format!("Created pod: {}", pod.name()));
            Ok(())
        }
        Err(e) if is_namespace_terminating(&e) => Ok(()),
        Err(e) => {
            cx.event(job, EventType::Warning, "FailedCreate", format!("Error creating: {e}"));
            Err(e)
        }
    }
}

async fn delete_pod(cx: &Context, job: &Job, pod: Arc<Pod>) -> Result<(), Error> {
    match cx.delete(&*pod, DeleteOptions::default()).await {
        Ok(()) => {
            cx.event(job, EventType::Normal, "SuccessfulDelete", format!("Deleted pod: {}", pod.name()));
            Ok(())
        }
        Err(e) => {
            cx.event(job, EventType::Warning, "FailedDelete", format!("Error deleting: {e}"));
            Err(e)
        }
    }
}
