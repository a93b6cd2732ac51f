//! Deployment: rolls out ReplicaSets from one template to the next.
//!
//! Flow: [`replica_sets`] separates a Deployment's ReplicaSets into the one of the current template and older
//! ones; [`plan`] computes the size of each; [`status`] computes the status. This module applies them.
//!
//! Guarantee: the sum of all sizes never exceeds `replicas + maxSurge`, and a rollout never reduces available
//! pods below `replicas - maxUnavailable`.

mod plan;
mod replica_sets;
mod rollback;
mod status;

use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_core::{
    api::api::{
        apps::v1::{Deployment, DeploymentCondition, ReplicaSet},
        core::v1::Pod,
    },
    client::DeleteOptions,
    meta::{LabelSelector, ObjectExt, ObjectKey},
};

pub(super) use self::plan::scaled;
use self::{
    plan::{Bounds, Size},
    replica_sets::Sets,
};
use super::{
    Options, claim,
    conditions::{self, Condition},
    pods,
};
use k8s_controllers::{Action, Caches, Context, Controller, Environment, Error, EventType, Reconcile};

pub(super) fn start(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    Controller::<Deployment>::new()
        .named("deployment-controller")
        .workers(8)
        .owns::<ReplicaSet>()
        .watches::<ReplicaSet>(selecting)
        .watches::<Pod>(of_pod)
        .run_in(environment, Deployments)
}

/// Returns the Deployments that may adopt an orphaned ReplicaSet.
fn selecting(caches: &Caches, set: &ReplicaSet) -> Vec<ObjectKey> {
    if set.controller_ref().is_some() {
        return Vec::new();
    }
    let all = caches.of::<Deployment>().in_namespace(set.namespace());
    let selects = |d: &Arc<Deployment>| {
        selector(d).is_ok_and(|s| !s.is_everything() && s.matches(set.metadata.labels.as_ref()))
    };
    all.iter().filter(|d| selects(d)).map(|d| d.key()).collect()
}

/// Returns `Recreate` Deployments that wait for their old pods to end.
fn of_pod(caches: &Caches, pod: &Pod) -> Vec<ObjectKey> {
    let Some(owner) = pod.controller_ref().filter(|o| o.kind == "ReplicaSet") else { return Vec::new() };
    let Some(set) = caches.of::<ReplicaSet>().get(pod.namespace(), &owner.name) else { return Vec::new() };
    let Some(owner) = set.controller_ref().filter(|o| o.kind == "Deployment") else { return Vec::new() };
    let Some(deployment) = caches.of::<Deployment>().get(pod.namespace(), &owner.name) else {
        return Vec::new();
    };
    if is_recreate(&deployment) { vec![deployment.key()] } else { Vec::new() }
}

fn selector(deployment: &Deployment) -> Result<LabelSelector, Error> {
    let spec = deployment.spec.clone().unwrap_or_default();
    LabelSelector::from_api(&spec.selector)
        .map_err(|e| Error::invalid(format!("selector of {}", deployment.key()), e))
}

fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate")
}

fn is_paused(deployment: &Deployment) -> bool {
    deployment.spec.as_ref().and_then(|s| s.paused).unwrap_or(false)
}

struct Deployments;

impl Reconcile for Deployments {
    type Kind = Deployment;

    async fn reconcile(&self, cx: &Context, deployment: Arc<Deployment>) -> Result<Action, Error> {
        let selector = selector(&deployment)?;
        if selector.is_everything() {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            cx.event(&*deployment, EventType::Warning, "SelectingAll", message);
            let mut seen = (*deployment).clone();
            seen.status.get_or_insert_default().observed_generation = seen.metadata.generation;
            if seen != *deployment {
                cx.replace_status(&seen).await?;
            }
            return Ok(Action::await_change());
        }
        let claimed: Vec<Arc<ReplicaSet>> = claim::claim(cx, &*deployment, &selector).await?;
        let mut work = Work { cx, sets: Sets::sort(&deployment, claimed), deployment: (*deployment).clone() };
        if deployment.is_deleting() {
            return work.report().await;
        }
        work.note_pause();
        if is_paused(&deployment) {
            work.sync_revision().await?;
            work.scale().await?;
            return work.report().await;
        }
        if let Some(revision) = rollback::requested(&deployment) {
            return rollback::perform(cx, &deployment, &work.sets, revision).await;
        }
        if work.is_scaling() {
            work.sync_revision().await?;
            work.scale().await?;
            return work.report().await;
        }
        if is_recreate(&deployment) {
            work.recreate().await?
        } else {
            work.roll().await?
        }
        work.report().await
    }
}

/// One reconcile of a Deployment.
struct Work<'a> {
    cx: &'a Context,
    /// The cached object, with conditions added during the reconcile; written once at the end.
    deployment: Deployment,
    sets: Sets,
}

impl Work<'_> {
    fn bounds(&self) -> Bounds {
        Bounds::of(&self.deployment)
    }

    fn condition(&mut self, status: &str, reason: &str, message: &str) {
        let next = DeploymentCondition::make("Progressing", status, reason, message, &self.cx.clock().time());
        status::set(&mut self.deployment, next);
    }

    /// Sets the Progressing condition on pause and resume. The progress deadline does not run while paused.
    fn note_pause(&mut self) {
        if status::progress_deadline(&self.deployment).is_none() {
            return;
        }
        let known = self.deployment.status.as_ref().and_then(|s| s.conditions.as_ref());
        let reason = conditions::find(known, "Progressing").map_or("", Condition::reason);
        if reason == status::TIMED_OUT {
            return;
        }
        let was_paused = reason == "DeploymentPaused";
        match (is_paused(&self.deployment), was_paused) {
            (true, false) => self.condition("Unknown", "DeploymentPaused", "Deployment is paused"),
            (false, true) => self.condition("Unknown", "DeploymentResumed", "Deployment is resumed"),
            _ => {}
        }
    }

    /// Returns true if `replicas` changed since the ReplicaSets were sized.
    fn is_scaling(&self) -> bool {
        let replicas = self.bounds().replicas;
        let differs = |set: &Arc<ReplicaSet>| replica_sets::desired_annotation(set) != Some(replicas);
        self.sets.all().filter(|s| replica_sets::size(s) > 0).any(differs)
    }

    /// Sets the revision annotation of the current ReplicaSet and of the Deployment to the newest number.
    async fn sync_revision(&mut self) -> Result<(), Error> {
        let Some(set) = self.sets.new.clone() else { return Ok(()) };
        let revision = self.sets.next_revision();
        if let Some(next) = replica_sets::annotated(&self.deployment, &set, revision) {
            self.sets.new = Some(Arc::new(self.cx.replace(&next).await?));
        }
        self.annotate_deployment().await?;
        let known = self.deployment.status.as_ref().and_then(|s| s.conditions.as_ref());
        if status::progress_deadline(&self.deployment).is_some()
            && conditions::find(known, "Progressing").is_none()
        {
            let message = format!("Found new replica set \"{}\"", set.name());
            self.condition("True", "FoundNewReplicaSet", &message);
        }
        Ok(())
    }

    async fn annotate_deployment(&mut self) -> Result<(), Error> {
        let Some(set) = &self.sets.new else { return Ok(()) };
        let revision = set.annotation(replica_sets::REVISION).unwrap_or_default().to_owned();
        if self.deployment.annotation(replica_sets::REVISION) == Some(&revision) || revision.is_empty() {
            return Ok(());
        }
        let mut next = self.deployment.clone();
        next.metadata.annotations.get_or_insert_default().insert(replica_sets::REVISION.into(), revision);
        let live = self.cx.replace(&next).await?;
        self.deployment.metadata = live.metadata;
        Ok(())
    }

    /// Ensures that the current template has a ReplicaSet.
    async fn ensure_new(&mut self) -> Result<(), Error> {
        if self.sets.new.is_some() {
            return self.sync_revision().await;
        }
        let bounds = self.bounds();
        let size = self.sets.view().pods().map_or(0, |total| plan::size_of_new(&bounds, 0, total));
        let desired = replica_sets::build(&self.deployment, size, &bounds, self.sets.next_revision());
        let made = match self.cx.create(&desired).await {
            Ok(made) => made,
            Err(Error::Api(e)) if e.is_already_exists() => return self.name_is_taken(&desired).await,
            Err(e) => {
                let message = format!("Failed to create new replica set \"{}\": {e}", desired.name());
                if !super::batch::is_namespace_terminating(&e) {
                    self.cx.event(&self.deployment, EventType::Warning, "ReplicaSetCreateError", &*message);
                }
                if status::progress_deadline(&self.deployment).is_some() {
                    self.condition("False", "ReplicaSetCreateError", &message);
                    // Report the failure now; the retry comes with the back-off.
                    self.report().await?;
                }
                return Err(e);
            }
        };
        if size > 0 {
            let message = format!("Scaled up replica set {} from 0 to {size}", made.name());
            self.cx.event(&self.deployment, EventType::Normal, "ScalingReplicaSet", message);
        }
        if status::progress_deadline(&self.deployment).is_some() {
            let message = format!("Created new replica set \"{}\"", made.name());
            self.condition("True", "NewReplicaSetCreated", &message);
        }
        self.sets.new = Some(Arc::new(made));
        self.annotate_deployment().await
    }

    /// The name is taken: by our own ReplicaSet that the cache does not have yet, or by one whose hash
    /// collides.
    async fn name_is_taken(&mut self, desired: &ReplicaSet) -> Result<(), Error> {
        let live: ReplicaSet = self.cx.api(desired.namespace()).get(desired.name()).await?;
        let ours = live.controller_ref().is_some_and(|o| o.uid == self.deployment.uid());
        if ours && replica_sets::same_template(&self.deployment, &live) {
            self.sets.new = Some(Arc::new(live));
            return self.sync_revision().await;
        }
        let mut next = self.deployment.clone();
        let count = next.status.get_or_insert_default().collision_count.get_or_insert(0);
        *count += 1;
        self.cx.replace_status(&next).await?;
        Err(Error::invalid(format!("replica set {}", desired.key()), "its name is taken: trying another"))
    }

    async fn resize(&mut self, sizes: Vec<Size>) -> Result<bool, Error> {
        let bounds = self.bounds();
        let mut scaled = false;
        for Size { uid, size } in sizes {
            let Some(set) = self.sets.find(&uid) else { continue };
            let before = replica_sets::size(&set);
            let Some(next) = replica_sets::resized(&set, size, &bounds) else { continue };
            let live = self.cx.replace(&next).await?;
            self.sets.update(live);
            if before != size {
                scaled = true;
                let direction = if before < size { "up" } else { "down" };
                let message =
                    format!("Scaled {direction} replica set {} from {before} to {size}", set.name());
                self.cx.event(&self.deployment, EventType::Normal, "ScalingReplicaSet", message);
            }
        }
        Ok(scaled)
    }

    async fn scale(&mut self) -> Result<(), Error> {
        let sizes = plan::scale(&self.bounds(), &self.sets.view(), is_recreate(&self.deployment));
        self.resize(sizes).await?;
        if is_paused(&self.deployment) && rollback::requested(&self.deployment).is_none() {
            self.clean_up().await?;
        }
        Ok(())
    }

    async fn roll(&mut self) -> Result<(), Error> {
        self.ensure_new().await?;
        let bounds = self.bounds();
        if self.resize(plan::grow_new(&bounds, &self.sets.view())).await? {
            return Ok(());
        }
        if self.resize(plan::shrink_old(&bounds, &self.sets.view())).await? {
            return Ok(());
        }
        if status::is_complete(&self.deployment, &status::found(&self.deployment, &self.sets)) {
            self.clean_up().await?;
        }
        Ok(())
    }

    async fn recreate(&mut self) -> Result<(), Error> {
        let down =
            self.sets.old.iter().map(|s| Size { uid: s.uid().to_owned(), size: 0 }).collect::<Vec<_>>();
        if self.resize(down).await? || self.old_pods_run() {
            return Ok(());
        }
        self.ensure_new().await?;
        let replicas = self.bounds().replicas;
        let up = self.sets.new.iter().map(|s| Size { uid: s.uid().to_owned(), size: replicas }).collect();
        self.resize(up).await?;
        if status::is_complete(&self.deployment, &status::found(&self.deployment, &self.sets)) {
            self.clean_up().await?;
        }
        Ok(())
    }

    fn old_pods_run(&self) -> bool {
        // A scaled-down ReplicaSet may still create pods until its controller observes the new size.
        if self.sets.view().old.iter().any(|set| set.pods != Some(0)) {
            return true;
        }
        let pods = |set: &Arc<ReplicaSet>| self.cx.owned::<Pod>(&**set);
        self.sets.old.iter().flat_map(pods).any(|pod| !pods::is_terminal(&pod))
    }

    /// Deletes the oldest ReplicaSets beyond `revisionHistoryLimit`.
    async fn clean_up(&self) -> Result<(), Error> {
        let limit = self.deployment.spec.as_ref().and_then(|s| s.revision_history_limit);
        let Some(limit) = limit.and_then(|l| usize::try_from(l).ok()) else { return Ok(()) };
        for set in self.sets.beyond_history(limit) {
            self.cx.delete(&*set, DeleteOptions::background()).await?;
        }
        Ok(())
    }

    /// Writes the status if it changed.
    async fn report(&mut self) -> Result<Action, Error> {
        let now = self.cx.clock().now();
        let cached = self.cx.cached::<Deployment>(self.deployment.name());
        let found = status::found(&self.deployment, &self.sets);
        let next = status::next(&self.deployment, found, &self.sets, now, &self.cx.clock().time());
        let changed = cached.is_none_or(|c| c.status.as_ref() != Some(&next));
        let action = Action::maybe_after(status::deadline_in(&self.deployment, &next, now));
        self.deployment.status = Some(next);
        if changed {
            self.cx.replace_status(&self.deployment).await?;
        }
        Ok(action)
    }
}
