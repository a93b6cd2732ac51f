//! PersistentVolume binder: binds claims to volumes.
//!
//! Flow: [`plan`] decides about claims and volumes; [`matching`] finds the closest free volume that
//! satisfies a claim. The volume is bound first (its `claimRef` with the claim's uid), then the claim.
//! After a crash in between the binding is completed, because the volume's `claimRef` decides.
//!
//! Invariants:
//! 1. A volume is bound to one claim at most, and only to one that it satisfies.
//! 2. A claim that was bound is never bound to another volume: without its own it is `Lost`.
//! 3. A volume counts as released only after the API server has said that its claim does not exist.
//! 4. A volume that a user has reserved for a claim goes to no other, and the reservation outlives a binding
//!    that is given up.
//! 5. The controller deletes no volume. One with the policy `Delete` that no provisioner made is `Failed`.
//!
//! Not here: provisioning volumes ([`crate::provisioner`], or a provisioner outside), and attaching them
//! ([`attach`]).

pub(super) mod attach;
pub(super) mod ephemeral;
pub(super) mod expand;
pub(super) mod matching;
mod plan;
pub(super) mod protection;

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use k8s_core::{
    api::api::{
        core::v1::{
            Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus, Pod,
        },
        storage::v1::StorageClass,
    },
    meta::{Object, ObjectExt, ObjectKey},
};

use self::plan::{Fate, Observed, Verdict, Word};
use super::{Options, pods};
use k8s_controllers::{Action, Caches, Context, Controller, Environment, Error, Reconcile};

const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
pub(crate) const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Annotations of a claim with the provisioner that is to make its volume; the second one is older.
pub(crate) const PROVISIONER: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];

pub(super) fn start(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    let claims = Controller::<PersistentVolumeClaim>::new()
        .named("persistentvolume-controller")
        // One worker: two claims must not bind the same volume.
        .workers(1)
        .watches::<PersistentVolume>(claims_for)
        .watches::<StorageClass>(|caches, _| waiting(caches))
        .reads::<Node>()
        .reads::<Pod>()
        .run_in(environment.clone(), Claims);
    let volumes = Controller::<PersistentVolume>::new()
        .named("persistentvolume-controller-volumes")
        .watches::<PersistentVolumeClaim>(volumes_for)
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

/// Returns the claim's volume; for a claim without one, those that are meant for it: they must learn that it
/// is gone.
fn volumes_for(caches: &Caches, claim: &PersistentVolumeClaim) -> Vec<ObjectKey> {
    match volume_name(claim) {
        "" => {
            let all = caches.of::<PersistentVolume>().list();
            all.iter().filter(|v| matching::is_meant(v, claim)).map(|v| v.key()).collect()
        }
        name => vec![ObjectKey::new("", name)],
    }
}

fn waiting(caches: &Caches) -> Vec<ObjectKey> {
    let all = caches.of::<PersistentVolumeClaim>().list();
    all.iter().filter(|c| volume_name(c).is_empty()).map(|c| c.key()).collect()
}

/// Returns the volume that a claim names, or an empty text.
pub(crate) fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default()
}

struct Claims;

impl Reconcile for Claims {
    type Kind = PersistentVolumeClaim;

    async fn reconcile(&self, cx: &Context, claim: Arc<PersistentVolumeClaim>) -> Result<Action, Error> {
        if claim.is_deleting() {
            return Ok(Action::await_change());
        }
        match decide(cx, &claim) {
            Verdict::Bind(volume) => {
                let volume = mark_volume(cx, &volume, &claim).await?;
                let claim = mark_claim(cx, &claim, &volume).await?;
                set_phase(cx, &claim, "Bound", Some(&volume)).await?;
            }
            Verdict::Classify(class) => {
                let mut next = (*claim).clone();
                next.spec.get_or_insert_default().storage_class_name = Some(class);
                cx.replace(&next).await?;
            }
            Verdict::Pending(word) => {
                tell(cx, &*claim, word);
                set_phase(cx, &claim, "Pending", None).await?;
            }
            Verdict::Provision(provisioner, word) => {
                let claim = ask(cx, claim, &provisioner).await?;
                tell(cx, &*claim, Some(word));
                set_phase(cx, &claim, "Pending", None).await?;
            }
            Verdict::Lost(word) => {
                let name = volume_name(&claim);
                let missing = cx.caches().of::<PersistentVolume>().get("", name).is_none();
                if missing
                    && !name.is_empty()
                    && cx.api::<PersistentVolume>("").get_opt(name).await?.is_some()
                {
                    // The cache is behind; the volume's arrival queues the claim again.
                    return Ok(Action::await_change());
                }
                if claim.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Lost") {
                    tell(cx, &*claim, Some(word));
                }
                set_phase(cx, &claim, "Lost", None).await?;
            }
        }
        Ok(Action::await_change())
    }
}

fn decide(cx: &Context, claim: &PersistentVolumeClaim) -> Verdict {
    let placed = claim.annotation(SELECTED_NODE);
    let node: Option<Arc<Node>> = placed.and_then(|name| cx.caches().of().get("", name));
    let uses = |pod: &&Arc<Pod>| {
        let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        pods::node_name(pod).is_empty()
            && volumes
                .any(|v| v.persistent_volume_claim.as_ref().is_some_and(|c| c.claim_name == claim.name()))
    };
    let all = cx.caches().of::<Pod>().in_namespace(claim.namespace());
    let mut waiting: Vec<String> = all.iter().filter(uses).map(|pod| pod.name().to_owned()).collect();
    waiting.sort();
    let class = cx.caches().of::<StorageClass>().get("", matching::class_of_claim(claim));
    let classes = cx.caches().of::<StorageClass>().list();
    let observed = Observed {
        claim,
        volumes: &cx.caches().of::<PersistentVolume>().list(),
        class: class.as_deref(),
        default: plan::default_class(&classes),
        is_placed: placed.is_some(),
        node: node.as_deref(),
        waiting: &waiting,
    };
    observed.verdict()
}

/// Writes the provisioner into the claim's annotations, for which the provisioner waits.
async fn ask(
    cx: &Context,
    claim: Arc<PersistentVolumeClaim>,
    provisioner: &str,
) -> Result<Arc<PersistentVolumeClaim>, Error> {
    if PROVISIONER.iter().all(|key| claim.annotation(key) == Some(provisioner)) {
        return Ok(claim);
    }
    let mut next = (*claim).clone();
    let annotations = next.metadata.annotations.get_or_insert_default();
    annotations.extend(PROVISIONER.map(|key| (key.to_owned(), provisioner.to_owned())));
    cx.replace(&next).await.map(Arc::new)
}

fn tell<K: Object>(cx: &Context, object: &K, word: Option<Word>) {
    if let Some(Word { kind, reason, message }) = word {
        cx.event(object, kind, reason, message);
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
        let is_new = status.phase.as_deref() != Some(phase);
        status.phase = Some(phase.to_owned());
        status.access_modes = spec.and_then(|s| s.access_modes.clone());
        // The size of a bound claim is told by who makes its volume larger.
        if is_new || spec.is_none() {
            status.capacity = spec.and_then(|s| s.capacity.clone());
            let class = spec.and_then(|s| s.volume_attributes_class_name.clone());
            status.current_volume_attributes_class_name = class.filter(|name| !name.is_empty());
        }
    })
    .await
}

struct Volumes;

impl Reconcile for Volumes {
    type Kind = PersistentVolume;

    async fn reconcile(&self, cx: &Context, volume: Arc<PersistentVolume>) -> Result<Action, Error> {
        let claim = claim_of(cx, &volume).await?;
        match plan::fate(&volume, claim.as_deref()) {
            Fate::Phase(phase) => set_volume_phase(cx, &volume, phase, None).await?,
            Fate::Failed(word) => {
                let status = volume.status.as_ref();
                if status.and_then(|s| s.message.as_deref()) != Some(&word.message) {
                    cx.event(&*volume, word.kind, word.reason, word.message.clone());
                }
                set_volume_phase(cx, &volume, "Failed", Some(word.message)).await?;
            }
            Fate::Unbind => {
                let free = cx.replace(&plan::unbound(&volume)).await?;
                set_volume_phase(cx, &free, "Available", None).await?;
            }
            Fate::Mismatch(ours, theirs) => {
                tell(cx, &*volume, Some(ours));
                if let Some(claim) = claim {
                    tell(cx, &*claim, Some(theirs));
                }
            }
            Fate::Wait => {}
        }
        Ok(Action::await_change())
    }
}

/// Returns the claim with the uid of the volume's `claimRef`. The API server is asked before it counts as
/// gone: the cache may be behind.
async fn claim_of(
    cx: &Context,
    volume: &PersistentVolume,
) -> Result<Option<Arc<PersistentVolumeClaim>>, Error> {
    let Some((namespace, name, Some(uid))) = matching::claim_of(volume) else { return Ok(None) };
    let cached = cx.caches().of::<PersistentVolumeClaim>().get(namespace, name);
    if let Some(claim) = cached.filter(|claim| claim.uid() == uid) {
        return Ok(Some(claim));
    }
    let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref());
    if matches!(phase, Some("Released" | "Failed")) {
        return Ok(None);
    }
    let live = cx.api::<PersistentVolumeClaim>(namespace).get_opt(name).await?;
    Ok(live.filter(|live| live.uid() == uid).map(Arc::new))
}

async fn set_volume_phase(
    cx: &Context,
    volume: &PersistentVolume,
    phase: &str,
    message: Option<String>,
) -> Result<(), Error> {
    cx.status(volume, |next| {
        let status = next.status.get_or_insert_default();
        status.message = message;
        if status.phase.as_deref() != Some(phase) {
            status.phase = Some(phase.to_owned());
            status.last_phase_transition_time = Some(cx.clock().time());
        }
    })
    .await
}
