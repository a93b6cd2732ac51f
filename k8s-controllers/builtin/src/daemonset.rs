//! DaemonSet: one pod on every eligible node.
//!
//! Flow: [`plan`] compares nodes and pods. Pods are created with a node affinity for their node and placed by
//! the scheduler ([`pod`]). Each template is kept as a ControllerRevision ([`history`]), whose hash labels its
//! pods. A rolling update deletes outdated pods on at most `maxUnavailable` nodes, or creates new ones beside
//! at most `maxSurge` old ones.
//!
//! Invariants:
//! 1. Without `maxSurge` a node has at most one pod that is not being deleted, and its successor is created
//!    when it is gone. With `maxSurge` it has at most two: one of the current template, one of another.
//! 2. A rolling update deletes an available pod only while fewer than `maxUnavailable` nodes are without one.
//! 3. With `maxSurge` a rolling update deletes an available pod of a node only when the new one is available,
//!    and at most `maxSurge` nodes with an available pod have two.
//! 4. A pod whose node no longer fits is deleted; one whose node only gained a taint `NoSchedule` stays.
//! 5. Failed pods of a node are deleted one by one with a growing delay ([`backoff`]).

mod backoff;
mod plan;
mod pod;

use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_core::{
    api::api::{
        apps::v1::{ControllerRevision, DaemonSet},
        core::v1::{Node, Pod},
    },
    meta::{LabelSelector, ObjectExt},
};

use self::{
    backoff::{Backoffs, Place},
    plan::{Observed, Plan},
    pod::HASH,
};
use super::{
    Options,
    batch::{catch_up, is_in_doubt, slow_start},
    claim,
    history::{self, History},
    pods,
};
use k8s_controllers::{Action, Context, Controller, Environment, Error, EventType, Reconcile, predicates};

pub(super) fn start(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    let fit = predicates::labels_changed()
        .or(predicates::changed(|node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.clone())));
    Controller::<DaemonSet>::new()
        .named("daemonset-controller")
        .owns::<Pod>()
        .owns::<ControllerRevision>()
        .watches::<Pod>(|caches, pod| claim::adopters(caches, pod, selector))
        .watches::<ControllerRevision>(|caches, revision| claim::adopters(caches, revision, selector))
        .watches_when::<Node>(fit, |caches, _| {
            caches.of::<DaemonSet>().list().iter().map(|d| d.key()).collect()
        })
        .run_in(environment, DaemonSets::default())
}

/// Returns the selector; `None` if it is malformed.
fn selector(set: &DaemonSet) -> Option<LabelSelector> {
    LabelSelector::from_api(&set.spec.as_ref()?.selector).ok()
}

#[derive(Default)]
struct DaemonSets {
    failed: Backoffs,
}

impl Reconcile for DaemonSets {
    type Kind = DaemonSet;

    async fn reconcile(&self, cx: &Context, set: Arc<DaemonSet>) -> Result<Action, Error> {
        let spec = set.spec.clone().unwrap_or_default();
        let selector = LabelSelector::from_api(&spec.selector)
            .map_err(|e| Error::invalid(format!("selector of {}", cx.key()), e))?;
        if selector.is_everything() {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            cx.event(&*set, EventType::Warning, "SelectingAll", message);
            return Ok(Action::await_change());
        }
        if set.is_deleting() {
            return Ok(Action::await_change());
        }
        let all: Vec<Arc<Pod>> = claim::claim(cx, &*set, &selector).await?;
        let collisions = set.status.as_ref().and_then(|status| status.collision_count);
        let history = history::ensure(cx, &*set, &selector, &spec.template, collisions, HASH).await?;
        let hash = hash_of(&history.update);
        let equal = history.all.iter().filter(|one| history::template(one).as_ref() == Some(&spec.template));
        let hashes: Vec<String> = equal.map(|one| hash_of(one)).collect();
        let now = cx.clock().now();
        let place = |node: &str| -> Place {
            (set.uid().to_owned(), set.metadata.generation.unwrap_or(0), node.to_owned())
        };
        let plan = Observed {
            set: &set,
            hashes: &hashes,
            nodes: &cx.caches().of::<Node>().list(),
            pods: &all,
            wait: &|node| self.failed.wait(&place(node), now),
            now,
        }
        .plan();
        for (pod, node) in &plan.ended {
            say_ended(cx, &set, pod, node);
            if pods::phase(pod) == "Failed" {
                self.failed.deleted(place(node), now);
            }
        }
        let Plan { create, mut delete, ended, status, after } = plan;
        let create = create.iter().map(|node| pod::build(&set, &hash, node)).collect();
        let (_, failure) = slow_start(cx, &set, create, pods::create_one).await;
        if failure.as_ref().is_some_and(is_in_doubt) {
            catch_up::<Pod>(cx, &selector);
        }
        delete.extend(ended.into_iter().map(|(pod, _)| pod));
        let (_, undeleted) = slow_start(cx, &set, delete, pods::delete_one).await;
        cx.status(&*set, |next| {
            next.status = Some(status);
            next.status.get_or_insert_default().collision_count = history.collisions;
        })
        .await?;
        if let Some(e) = failure.or(undeleted) {
            return Err(e);
        }
        clean_up(cx, &history, spec.revision_history_limit.unwrap_or(10), &hashes, &all).await?;
        Ok(Action::maybe_after(after))
    }
}

/// Returns the hash that pods of a revision are labelled with.
fn hash_of(revision: &ControllerRevision) -> String {
    revision.label(HASH).unwrap_or(revision.name()).to_owned()
}

/// Deletes the oldest revisions that no pod is of.
async fn clean_up(
    cx: &Context,
    history: &History,
    limit: i32,
    current: &[String],
    all: &[Arc<Pod>],
) -> Result<(), Error> {
    history::clean_up(cx, &history.all, limit, |revision| {
        let hash = hash_of(revision);
        current.contains(&hash) || all.iter().any(|pod| pod.label(HASH) == Some(&hash))
    })
    .await
}

/// Sends the event of a pod that has ended.
fn say_ended(cx: &Context, set: &DaemonSet, pod: &Pod, node: &str) {
    let (kind, reason, message) = match pods::phase(pod) {
        "Failed" => (
            EventType::Warning,
            "FailedDaemonPod",
            format!("Found failed daemon pod {} on node {node}, will try to kill it", pod.key()),
        ),
        _ => (
            EventType::Normal,
            "SucceededDaemonPod",
            format!("Found succeeded daemon pod {} on node {node}, will try to delete it", pod.key()),
        ),
    };
    cx.event(set, kind, reason, message);
}
