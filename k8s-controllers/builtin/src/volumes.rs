//! PersistentVolume binder: binds claims to volumes.
//!
//! Flow: [`matching`] finds the smallest free volume that satisfies a claim. The volume is bound first (its
//! `claimRef` with the claim's uid), then the claim. After a crash in between the binding is completed,
//! because the volume's `claimRef` decides.
//!
//! Not here: provisioning volumes (provisioners do that), and attaching them.

mod matching;
pub(super) mod protection;

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use k8s_core::{
    api::api::{
        core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus},
        storage::v1::StorageClass,
    },
    meta::{ObjectExt, ObjectKey},
};

use super::Options;
use k8s_controllers::{Action, Caches, Context, Controller, Environment, Error, EventType, Reconcile};

const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

pub(super) fn start(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    let claims = Controller::<PersistentVolumeClaim>::new()
        .named("persistentvolume-controller")
        // One worker: two claims must not bind the same volume.
        .workers(1)
        .watches::<PersistentVolume>(claims_for)
        .watches::<StorageClass>(|caches, _| waiting(caches))
        .run_in(environment.clone(), Claims);
    let volumes = Controller::<PersistentVolume>::new()
        .named("persistentvolume-controller-volumes")
        .watches::<PersistentVolumeClaim>(|_, claim| {
            let name = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
            if name.is_empty() { Vec::new() } else { vec![ObjectKey::new("", name)] }
        })
        .run_in(environment, Volumes);
    futures::future::join(claims, volumes).map(drop).boxed()
}

/// Returns the volume's claim, or all unbound claims.
fn claims_for(caches: &Caches, volume: &PersistentVolume) -> Vec<ObjectKey> {
    match matching::claim_of(volume) {
        Some((namespace, name, _)) => vec![ObjectKey::new(namespace, name)],
        None => waiting(caches),
    }
}

fn waiting(caches: &Caches) -> Vec<ObjectKey> {
    let all = caches.of::<PersistentVolumeClaim>().list();
    all.iter().filter(|c| volume_name(c).is_empty()).map(|c| c.key()).collect()
}

fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default()
}

struct Claims;

impl Reconcile for Claims {
    type Kind = PersistentVolumeClaim;

    async fn reconcile(&self, cx: &Context, claim: Arc<PersistentVolumeClaim>) -> Result<Action, Error> {
        if claim.is_deleting() {
            return Ok(Action::await_change());
        }
        let volumes = cx.caches().of::<PersistentVolume>();
        let wanted = volume_name(&claim);
        let volume = if wanted.is_empty() { self.find(cx, &claim) } else { volumes.get("", wanted) };
        let Some(volume) = volume else {
            let was_bound = claim.annotation(BIND_COMPLETED).is_some();
            let phase = if was_bound { "Lost" } else { "Pending" };
            if was_bound && claim.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Lost") {
                let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
                cx.event(&*claim, EventType::Warning, "ClaimLost", message);
            }
            set_phase(cx, &claim, phase, None).await?;
            return Ok(Action::await_change());
        };
        let theirs = matching::claim_of(&volume);
        if theirs.is_some_and(|(ns, name, uid)| {
            ns != claim.namespace() || name != claim.name() || uid.is_some_and(|u| u != claim.uid())
        }) {
            // The claim names a volume that is bound to another claim: it stays pending.
            set_phase(cx, &claim, "Pending", None).await?;
            return Ok(Action::await_change());
        }
        let volume = mark_volume(cx, &volume, &claim).await?;
        let claim = mark_claim(cx, &claim, &volume).await?;
        set_phase(cx, &claim, "Bound", Some(&volume)).await?;
        Ok(Action::await_change())
    }
}

impl Claims {
    /// Finds a volume for a claim without `volumeName`; otherwise sends an event with the reason.
    fn find(&self, cx: &Context, claim: &PersistentVolumeClaim) -> Option<Arc<PersistentVolume>> {
        let name = matching::class_of_claim(claim);
        let class = cx.caches().of::<StorageClass>().get("", name);
        let waits =
            class.as_ref().is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
        let node = claim.annotation(SELECTED_NODE);
        if waits && node.is_none() {
            let message = "waiting for first consumer to be created before binding";
            cx.event(claim, EventType::Normal, "WaitForFirstConsumer", message);
            return None;
        }
        let node = node.and_then(|n| cx.caches().of().get("", n));
        let all = cx.caches().of::<PersistentVolume>().list();
        let found = matching::best(claim, &all, node.as_deref());
        if found.is_none() {
            let (kind, reason, message) = match class {
                Some(class) if class.provisioner == "kubernetes.io/no-provisioner" => {
                    let message =
                        "no persistent volumes available for this claim and its storage class makes none";
                    (EventType::Normal, "FailedBinding", message.to_owned())
                }
                Some(class) => {
                    let message = format!(
                        "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.",
                        class.provisioner
                    );
                    (EventType::Normal, "ExternalProvisioning", message)
                }
                None if name.is_empty() => {
                    let message =
                        "no persistent volumes available for this claim and no storage class is set";
                    (EventType::Normal, "FailedBinding", message.to_owned())
                }
                None => {
                    let message = format!("storageclass.storage.k8s.io \"{name}\" not found");
                    (EventType::Warning, "ProvisioningFailed", message)
                }
            };
            cx.event(claim, kind, reason, message);
        }
        found
    }
}

async fn mark_volume(
    cx: &Context,
    volume: &PersistentVolume,
    claim: &PersistentVolumeClaim,
) -> Result<PersistentVolume, Error> {
    if matching::claim_of(volume).is_some_and(|(_, _, uid)| uid == Some(claim.uid())) {
        return Ok(volume.clone());
    }
    let prebound = matching::claim_of(volume).is_some();
    let mut next = volume.clone();
    if !prebound {
        next.metadata.annotations.get_or_insert_default().insert(BOUND_BY_CONTROLLER.into(), "yes".into());
    }
    next.spec.get_or_insert_default().claim_ref = Some(ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("PersistentVolumeClaim".into()),
        namespace: claim.metadata.namespace.clone(),
        name: claim.metadata.name.clone(),
        uid: claim.metadata.uid.clone(),
        resource_version: claim.metadata.resource_version.clone(),
        ..ObjectReference::default()
    });
    cx.replace(&next).await
}

async fn mark_claim(
    cx: &Context,
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> Result<PersistentVolumeClaim, Error> {
    let named = volume_name(claim) == volume.name();
    if named && claim.annotation(BIND_COMPLETED).is_some() {
        return Ok(claim.clone());
    }
    let mut next = claim.clone();
    let annotations = next.metadata.annotations.get_or_insert_default();
    annotations.insert(BIND_COMPLETED.into(), "yes".into());
    if !named {
        annotations.insert(BOUND_BY_CONTROLLER.into(), "yes".into());
    }
    next.spec.get_or_insert_default().volume_name = Some(volume.name().to_owned());
    cx.replace(&next).await
}

async fn set_phase(
    cx: &Context,
    claim: &PersistentVolumeClaim,
    phase: &str,
    volume: Option<&PersistentVolume>,
) -> Result<(), Error> {
    let spec = volume.and_then(|v| v.spec.as_ref());
    cx.status(claim, |next| {
        let status: &mut PersistentVolumeClaimStatus = next.status.get_or_insert_default();
        status.phase = Some(phase.to_owned());
        status.capacity = spec.and_then(|s| s.capacity.clone());
        status.access_modes = spec.and_then(|s| s.access_modes.clone());
    })
    .await
}

struct Volumes;

impl Reconcile for Volumes {
    type Kind = PersistentVolume;

    async fn reconcile(&self, cx: &Context, volume: Arc<PersistentVolume>) -> Result<Action, Error> {
        let phase = match matching::claim_of(&volume) {
            None | Some((_, _, None)) => "Available",
            Some((namespace, name, Some(uid))) => {
                let claim = cx.caches().of::<PersistentVolumeClaim>().get(namespace, name);
                if claim.is_some_and(|c| c.uid() == uid) { "Bound" } else { self.released(&volume) }
            }
        };
        cx.status(&*volume, |next| {
            let status = next.status.get_or_insert_default();
            if status.phase.as_deref() != Some(phase) {
                status.phase = Some(phase.to_owned());
                status.last_phase_transition_time = Some(cx.clock().time());
            }
        })
        .await?;
        Ok(Action::await_change())
    }
}

impl Volumes {
    /// Phase of a volume whose claim is gone. The content is up to the administrator or the provisioner.
    fn released(&self, volume: &PersistentVolume) -> &'static str {
        let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
        let provisioned = volume.annotation("pv.kubernetes.io/provisioned-by").is_some();
        match policy {
            Some("Delete" | "Recycle") if !provisioned => "Failed",
            _ => "Released",
        }
    }
}
