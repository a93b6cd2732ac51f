//! Generic ephemeral volumes: creates the claim of each such volume of a pod, owned by the pod.
//!
//! Invariants:
//! 1. The claim is named `POD-VOLUME` and controlled by the pod, so that it is garbage collected with it.
//! 2. A claim of that name that the pod does not control is left alone, and the pod gets an event.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use k8s_core::{
    api::api::core::v1::{PersistentVolumeClaim, Pod, Volume},
    api::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    meta::{ObjectExt, ObjectKey, owner_reference},
};

use crate::{Options, batch::is_namespace_terminating};
use k8s_controllers::{Action, Context, Controller, Environment, Error, EventType, Reconcile, predicates};

/// Runs the controller.
pub(crate) fn start(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    let deleted = predicates::changed(|claim: &PersistentVolumeClaim| claim.metadata.uid.clone());
    Controller::<Pod>::new()
        .named("ephemeral_volume")
        .when(predicates::changed(|pod: &Pod| pod.is_deleting()).and(predicates::only(has_ephemeral)))
        .watches_when::<PersistentVolumeClaim>(deleted, |_, claim| {
            let owner = claim.controller_ref().filter(|owner| owner.kind == "Pod");
            owner.map(|owner| ObjectKey::new(claim.namespace(), &owner.name)).into_iter().collect()
        })
        .run_in(environment, Ephemeral)
        .boxed()
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).filter(|v| v.ephemeral.is_some())
}

fn has_ephemeral(pod: &Pod) -> bool {
    volumes(pod).next().is_some()
}

/// Returns the claim of an ephemeral volume; `None` without a template.
fn build(pod: &Pod, volume: &Volume) -> Option<PersistentVolumeClaim> {
    let template = volume.ephemeral.as_ref()?.volume_claim_template.clone()?;
    let metadata = template.metadata.unwrap_or_default();
    Some(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", pod.name(), volume.name)),
            namespace: Some(pod.namespace().to_owned()),
            labels: metadata.labels,
            annotations: metadata.annotations,
            owner_references: Some(vec![owner_reference(pod)]),
            ..ObjectMeta::default()
        },
        spec: Some(template.spec),
        status: None,
    })
}

struct Ephemeral;

impl Reconcile for Ephemeral {
    type Kind = Pod;

    async fn reconcile(&self, cx: &Context, pod: Arc<Pod>) -> Result<Action, Error> {
        if pod.is_deleting() {
            return Ok(Action::await_change());
        }
        for volume in volumes(&pod) {
            let Some(claim) = build(&pod, volume) else { continue };
            let live = cx.cached::<PersistentVolumeClaim>(claim.name());
            let failure = match live {
                Some(live) if live.controller_ref().is_some_and(|owner| owner.uid == pod.uid()) => continue,
                Some(live) => Error::Other(
                    format!("PVC {} was not created for pod {} (pod is not owner)", live.key(), pod.key())
                        .into(),
                ),
                None => match cx.create(&claim).await {
                    Ok(_) => continue,
                    Err(e) if is_namespace_terminating(&e) => continue,
                    // The cache did not have it yet.
                    Err(Error::Api(e)) if e.is_already_exists() => return Err(e.into()),
                    Err(e) => Error::Other(format!("create PVC {}: {e}", claim.name()).into()),
                },
            };
            let message = format!("ephemeral volume {}: {failure}", volume.name);
            cx.event(&*pod, EventType::Warning, "FailedBinding", message);
            return Err(failure);
        }
        Ok(Action::await_change())
    }
}
