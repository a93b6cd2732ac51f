//! ResourceClaims of pods: makes them from templates, reserves them, and takes them back.
//!
//! Flow: [`Pods`] makes the claims of a pod's templates, writes their names into the pod's status, and
//! reserves allocated claims for a pod that got its node without the scheduler. [`Claims`] removes
//! reservations of pods that are done, and what is then no longer needed: the allocation, the finalizer, a
//! generated claim.
//!
//! Invariants:
//! 1. A pod has at most one generated claim for each entry of `spec.resourceClaims`. The pod controls it, and
//!    its annotation `resource.kubernetes.io/pod-claim-name` names the entry.
//! 2. A claim that the pod does not control is never used for a template.
//! 3. A reservation is removed only if its pod is gone by the API server's word, replaced, terminal, or
//!    deleted without ever having had a node.
//! 4. A claim loses its allocation with its last reservation, and not before. One that was allocated, but
//!    never reserved, keeps it until it is deleted.
//! 5. The finalizer stays as long as the claim is allocated.
//!
//! Not here: allocation (the scheduler), claims of PodGroups, which 1.36 has off by default.

mod plan;

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use k8s_controllers::{Action, Context, Controller, Environment, Error, EventType, Reconcile, predicates};
use k8s_core::{
    api::api::{
        core::v1::{Pod, PodResourceClaim},
        resource::v1::{ResourceClaim, ResourceClaimTemplate},
    },
    client::Patch,
    meta::{ObjectExt, ObjectKey},
};
use serde_json::json;

use self::plan::{FINALIZER, Named, entries};
use crate::{Options, batch::is_namespace_terminating};

/// Runs the controller.
pub(crate) fn start(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    let pods = Controller::<Pod>::new()
        .named("resource_claim")
        .when(predicates::only(|pod: &Pod| entries(pod).next().is_some()))
        .watches::<ResourceClaim>(|caches, claim| {
            let pods = caches.of::<Pod>().in_namespace(claim.namespace());
            let users = pods.iter().filter(|pod| plan::claim_names(pod).contains(&claim.name()));
            let mut keys: Vec<ObjectKey> = users.map(|pod| pod.key()).collect();
            keys.extend(plan::owner(claim).map(|owner| ObjectKey::new(claim.namespace(), &owner.name)));
            keys
        })
        .watches::<ResourceClaimTemplate>(|caches, template| {
            let pods = caches.of::<Pod>().in_namespace(template.namespace());
            let uses = |pod: &&Arc<Pod>| {
                entries(pod).any(|e| e.resource_claim_template_name.as_deref() == Some(template.name()))
            };
            pods.iter().filter(uses).map(|pod| pod.key()).collect()
        })
        .run_in(environment.clone(), Pods);
    let finished = predicates::changed(|pod: &Pod| {
        (pod.metadata.uid.clone(), plan::is_done(pod), plan::claim_names(pod).len())
    });
    let claims = Controller::<ResourceClaim>::new()
        .named("resource_claim_release")
        .watches_when::<Pod>(finished, |_, pod| {
            plan::claim_names(pod).into_iter().map(|name| ObjectKey::new(pod.namespace(), name)).collect()
        })
        .run_in(environment, Claims);
    futures::future::join(pods, claims).map(drop).boxed()
}

struct Pods;

impl Reconcile for Pods {
    type Kind = Pod;

    async fn reconcile(&self, cx: &Context, pod: Arc<Pod>) -> Result<Action, Error> {
        // A claim of a pod that is done was deleted because the pod is: it must not be made anew.
        if pod.is_deleting() || plan::is_done(&pod) {
            return Ok(Action::await_change());
        }
        let mut names: Vec<(String, String)> = Vec::new();
        let mut changed = false;
        for entry in entries(&pod) {
            match ensure(cx, &pod, entry).await {
                Ok(None) => {}
                Ok(Some((name, new))) => {
                    changed |= new;
                    names.push((entry.name.clone(), name));
                }
                Err(error) if is_namespace_terminating(&error) => return Ok(Action::await_change()),
                Err(error) => {
                    let message = format!("PodResourceClaim {}: {error}", entry.name);
                    cx.event(&*pod, EventType::Warning, "FailedResourceClaimCreation", message);
                    return Err(error);
                }
            }
        }
        if changed {
            let statuses: Vec<_> = names
                .iter()
                .map(|(entry, claim)| json!({"name": entry, "resourceClaimName": claim}))
                .collect();
            // With the uid: a new pod of this name has claims of its own.
            let patch =
                json!({"metadata": {"uid": pod.uid()}, "status": {"resourceClaimStatuses": statuses}});
            let api = cx.api::<Pod>(pod.namespace());
            match api.patch_status(pod.name(), &Patch::Strategic(patch)).await {
                Ok(_) => {}
                Err(error) if error.is_not_found() => return Ok(Action::await_change()),
                Err(error) => return Err(error.into()),
            }
        }
        if plan::node(&pod).is_none() {
            // The scheduler reserves.
            return Ok(Action::await_change());
        }
        for entry in entries(&pod) {
            let Named::Claim(name, generated) = plan::named(&pod, entry) else { continue };
            let Some(claim) = cx.cached::<ResourceClaim>(name) else { continue };
            if generated && !plan::is_for(&pod, &claim) {
                continue;
            }
            if let Some(reserved) = plan::reserve(&pod, &claim) {
                cx.replace_status(&reserved).await?;
            }
        }
        Ok(Action::await_change())
    }
}

/// Makes the claim of one entry unless the pod has it. Returns its name, and whether the pod's status lacks
/// it.
/// `None`: the entry has no template, or needs no claim.
async fn ensure(
    cx: &Context,
    pod: &Arc<Pod>,
    entry: &PodResourceClaim,
) -> Result<Option<(String, bool)>, Error> {
    let Some(template) = &entry.resource_claim_template_name else { return Ok(None) };
    match plan::named(pod, entry) {
        Named::NotNeeded => return Ok(None),
        Named::Claim(name, _) if cx.cached::<ResourceClaim>(name).is_some_and(|c| plan::is_for(pod, &c)) => {
            return Ok(Some((name.to_owned(), false)));
        }
        Named::Claim(..) | Named::NotYet => {}
    }
    // The controller may have ended after the creation, before the pod's status was written.
    let mut made = cx.owned::<ResourceClaim>(&**pod);
    made.retain(|claim| claim.annotation(plan::ENTRY) == Some(&entry.name) && !claim.is_deleting());
    if let Some(claim) = made.iter().min_by_key(|claim| claim.name()) {
        return Ok(Some((claim.name().to_owned(), true)));
    }
    let Some(template) = cx.cached::<ResourceClaimTemplate>(template) else {
        let missing = format!("resourceclaimtemplate.resource.k8s.io {template:?} not found");
        return Err(Error::Other(format!("resource claim template {template:?}: {missing}").into()));
    };
    let claim = match cx.create(&plan::build(pod, entry, &template)).await {
        Ok(claim) => claim,
        Err(error) if is_namespace_terminating(&error) => return Err(error),
        Err(error) => return Err(Error::Other(format!("create ResourceClaim : {error}").into())),
    };
    Ok(Some((claim.name().to_owned(), true)))
}

struct Claims;

impl Reconcile for Claims {
    type Kind = ResourceClaim;

    async fn reconcile(&self, cx: &Context, claim: Arc<ResourceClaim>) -> Result<Action, Error> {
        let mut gone: Vec<String> = Vec::new();
        for consumer in plan::consumers(&claim) {
            let pod = match cx.cached::<Pod>(&consumer.name) {
                Some(pod) => Some(pod),
                // The cache may not have the pod yet; a wrong answer would take the device from it.
                None => cx.api::<Pod>(claim.namespace()).get_opt(&consumer.name).await?.map(Arc::new),
            };
            if pod.is_none_or(|pod| pod.uid() != consumer.uid || plan::is_done(&pod)) {
                gone.push(consumer.uid.clone());
            }
        }
        let mut live = ResourceClaim::clone(&claim);
        if let Some(released) = plan::release(&claim, &gone) {
            live = cx.replace_status(&released).await?;
        }
        if plan::finalizer_ends(&claim, &live) {
            cx.remove_finalizer(&Arc::new(live.clone()), FINALIZER).await?;
        }
        if !plan::is_reserved(&live)
            && !live.is_deleting()
            && let Some(owner) = plan::owner(&live)
            // The garbage collector deletes claims of pods that are gone.
            && let Some(pod) = cx.cached::<Pod>(&owner.name)
            && (pod.uid() != owner.uid || plan::is_done(&pod))
        {
            cx.delete(&live, Default::default()).await?;
        }
        Ok(Action::await_change())
    }
}
