//! Job: pods that run to their end.
//!
//! Flow: [`plan`] looks at a Job and its pods and says what status to write, which pods to make and delete, and which ended pods are counted
//! so that their finalizer can go; this module acts, the status first.
//!
//! Guarantee: every ended pod is counted exactly once. A pod keeps the finalizer `batch.kubernetes.io/job-tracking` until its uid is in
//! `status.uncountedTerminatedPods`; the uid leaves that list, and the counter rises, only when the pod no longer has the finalizer.

mod indexes;
mod plan;
mod ttl;

use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_core::{
    api::api::{
        batch::v1::Job,
        core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod},
    },
    client::DeleteOptions,
    meta::{LabelSelector, ObjectExt},
};
use serde_json::json;

use self::plan::Plan;
use super::{
    Options,
    batch::{is_namespace_terminating, slow_start},
    claim, pods,
};
use crate::{Action, Context, Controller, Environment, Error, EventType, Reconcile};

/// Keeps an ended pod until it is counted.
const TRACKING: &str = "batch.kubernetes.io/job-tracking";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";

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
        let all: Vec<Arc<Pod>> = match selector {
            Some(Ok(selector)) if !selector.is_everything() => claim::claim(cx, &*job, &selector).await?,
            Some(Err(e)) => return Err(Error::invalid(format!("selector of {}", cx.key()), e)),
            _ => cx.owned(&*job),
        };
        if job.is_deleting() {
            release(cx, &all).await?;
            return Ok(Action::await_change());
        }
        let Plan { status, create, delete, counted, events, after } = plan::plan(&job, &all, cx.clock());
        let mut next = (*job).clone();
        next.status = Some(status);
        if next.status != job.status {
            cx.replace_status(&next).await?;
        }
        for (kind, reason, message) in events {
            cx.event(&*job, kind, reason, message);
        }
        release(cx, &counted).await?;
        for pod in delete {
            cx.delete(&*pod, DeleteOptions::default()).await?;
            cx.event(&*job, EventType::Normal, "SuccessfulDelete", format!("Deleted pod: {}", pod.name()));
        }
        let (_, failure) = slow_start(create, |index| create_pod(cx, &job, index)).await;
        match failure {
            Some(e) => Err(e),
            None => Ok(Action::maybe_after(after)),
        }
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

async fn create_pod(cx: &Context, job: &Job, index: Option<i32>) -> Result<(), Error> {
    let pod = build(job, index);
    match cx.create(&pod).await {
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

fn build(job: &Job, index: Option<i32>) -> Pod {
    let template = job.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let mut pod = pods::from_template(job, &template);
    let metadata = &mut pod.metadata;
    metadata.finalizers.get_or_insert_default().push(TRACKING.into());
    let labels = metadata.labels.get_or_insert_default();
    // The API server puts these into the template of most Jobs; those of `manualSelector` get them here.
    for (prefix, key, value) in [
        ("batch.kubernetes.io/", "job-name", job.name()),
        ("batch.kubernetes.io/", "controller-uid", job.uid()),
    ] {
        labels.entry(format!("{prefix}{key}")).or_insert_with(|| value.to_owned());
    }
    let Some(index) = index else { return pod };
    labels.insert(INDEX.into(), index.to_string());
    metadata.annotations.get_or_insert_default().insert(INDEX.into(), index.to_string());
    metadata.generate_name = Some(format!("{}-{index}-", job.name()));
    let spec = pod.spec.get_or_insert_default();
    if spec.hostname.is_none() {
        spec.hostname = Some(format!("{}-{index}", job.name()));
    }
    let source = EnvVarSource {
        field_ref: Some(ObjectFieldSelector {
            api_version: None,
            field_path: format!("metadata.annotations['{INDEX}']"),
        }),
        ..EnvVarSource::default()
    };
    let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
    for container in containers {
        let env = container.env.get_or_insert_default();
        if !env.iter().any(|e| e.name == "JOB_COMPLETION_INDEX") {
            env.push(EnvVar {
                name: "JOB_COMPLETION_INDEX".into(),
                value_from: Some(source.clone()),
                ..EnvVar::default()
            });
        }
    }
    pod
}

/// The completion index of a pod of an Indexed Job.
fn index_of(pod: &Pod) -> Option<i32> {
    pod.annotation(INDEX)?.parse().ok().filter(|i| *i >= 0)
}
