//! ReplicaSet and ReplicationController: maintain a number of pods of a template.
//!
//! One implementation for both kinds (see [`kind::Replicated`]); [`plan`] decides, [`Replicas`] acts.

mod kind;
mod plan;

use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_core::{
    api::api::{
        apps::v1::ReplicaSet,
        core::v1::{Pod, ReplicationController},
    },
    meta::{Object, ObjectExt},
};

pub(super) use kind::{ReplicaStatus, Replicated, count};

use super::{
    Options,
    batch::{catch_up, is_in_doubt, slow_start},
    claim, conditions, pods,
};
use k8s_controllers::{Action, Context, Controller, Environment, Error, Reconcile};

pub(super) fn replica_sets(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    start::<ReplicaSet>(environment, "replicaset-controller")
}

pub(super) fn replication_controllers(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    start::<ReplicationController>(environment, "replication-controller")
}

fn start<K: Replicated>(environment: Environment, name: &str) -> BoxFuture<'static, ()> {
    Controller::<K>::new()
        .named(name)
        .workers(8)
        .owns::<Pod>()
        .watches::<Pod>(|caches, pod| claim::adopters(caches, pod, |owner: &K| owner.selector().ok()))
        .run_in(environment, Replicas(std::marker::PhantomData::<fn() -> K>))
}

/// Reconciler of ReplicaSets and ReplicationControllers.
struct Replicas<K>(std::marker::PhantomData<fn() -> K>);

impl<K: Replicated> Reconcile for Replicas<K> {
    type Kind = K;

    async fn reconcile(&self, cx: &Context, owner: Arc<K>) -> Result<Action, Error> {
        let selector = match owner.selector() {
            Ok(selector) if !selector.is_everything() => selector,
            Ok(_) => return Ok(Action::await_change()),
            Err(e) => return Err(Error::invalid(format!("selector of {}", cx.key()), e)),
        };
        // Terminated pods are neither adopted nor released.
        let all: Vec<Arc<Pod>> =
            claim::claim_with(cx, &*owner, &selector, None, |pod| !pods::is_terminal(pod)).await?;
        let (active, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|p| pods::is_active(p));
        let terminating = rest.iter().filter(|p| p.is_deleting() && !pods::is_terminal(p)).count();

        let step = if owner.is_deleting() {
            plan::Step::Nothing
        } else {
            plan::step(owner.replicas(), active.len())
        };
        let failure = match step {
            plan::Step::Nothing => None,
            plan::Step::Create(count) => create(cx, &owner, count).await.map(|e| ("FailedCreate", e)),
            plan::Step::Delete(count) => {
                delete(cx, &owner, active.clone(), count).await.map(|e| ("FailedDelete", e))
            }
        };

        if failure.as_ref().is_some_and(|(_, e)| is_in_doubt(e)) {
            catch_up::<Pod>(cx, &selector);
        }
        let now = cx.clock().now();
        let mut status = plan::status(&*owner, &active, terminating, now);
        status.failure = failure.as_ref().map(|(reason, e)| ((*reason).to_owned(), e.to_string()));
        let mut next = (*owner).clone();
        next.set_status(&status, &cx.clock().time());
        if next != *owner {
            cx.replace_status(&next).await?;
        }
        match failure {
            Some((_, e)) => Err(e),
            None => Ok(Action::maybe_after(plan::next_available(&*owner, &active, now))),
        }
    }
}

async fn create<K: Replicated>(cx: &Context, owner: &Arc<K>, count: usize) -> Option<Error> {
    let pod = pods::from_template(&**owner, &owner.template());
    slow_start(cx, owner, vec![pod; count], pods::create_one).await.1
}

async fn delete<K: Replicated>(
    cx: &Context,
    owner: &Arc<K>,
    mut active: Vec<Arc<Pod>>,
    count: usize,
) -> Option<Error> {
    if count < active.len() {
        let related = related_pods(cx, &**owner);
        pods::sort_for_deletion(&mut active, &related, cx.clock().now());
    }
    active.truncate(count);
    slow_start(cx, owner, active, pods::delete_one).await.1
}

/// Returns the pods of the owner and of its siblings (other ReplicaSets of the Deployment), for ranking by
/// shared nodes.
fn related_pods<K: Object>(cx: &Context, owner: &K) -> Vec<Arc<Pod>> {
    let Some(parent) = owner.controller_ref() else { return cx.owned(owner) };
    let siblings = cx.caches().owned_by::<K>(&parent.uid);
    siblings.iter().flat_map(|sibling| cx.owned::<Pod>(&**sibling)).collect()
}

/// Returns the ReplicaFailure condition, if true.
pub(super) fn failure<C: conditions::Condition>(all: Option<&Vec<C>>) -> Option<&C> {
    conditions::find(all, "ReplicaFailure").filter(|c| c.status() == "True")
}
