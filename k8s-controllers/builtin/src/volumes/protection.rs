//! Protection of claims and volumes in use: their finalizer goes when nothing uses them.
//!
//! Invariants:
//! 1. A claim that is being deleted stays as long as a pod with a node refers to it. The pods that the API
//!    server has are asked, too, because a cache may be behind.
//! 2. A volume that is being deleted stays as long as it is bound.
//! 3. Every claim and volume that is not being deleted has its finalizer. (The admission plugin
//!    StorageObjectInUseProtection sets it at creation; this controller, on older ones.)

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use k8s_core::{
    api::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume},
    client::ListParams,
    meta::{ObjectExt, ObjectKey},
};

use crate::{Options, pods::node_name};
use k8s_controllers::{Action, Context, Controller, Environment, Error, Reconcile};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";
/// Time after which a claim is looked at again whose pods the cache does not have yet.
const BEHIND: Duration = Duration::from_secs(5);

/// Index of pods by the claims that they name.
const BY_CLAIM: &str = "claims of protection";

/// Runs the protection of claims.
pub(crate) fn claims(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    let pods = environment.caches.of::<Pod>();
    pods.add_index(BY_CLAIM, |pod| claims_of(pod).iter().map(ToString::to_string).collect());
    Controller::<PersistentVolumeClaim>::new()
        .named("pvc-protection-controller")
        .watches::<Pod>(|_, pod| claims_of(pod))
        .run_in(environment, Claims)
        .boxed()
}

/// Runs the protection of volumes.
pub(crate) fn volumes(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    Controller::<PersistentVolume>::new()
        .named("pv-protection-controller")
        .run_in(environment, Volumes)
        .boxed()
}

/// Returns the name of the claim of a volume, and true if it is an ephemeral one.
fn claim_of(pod: &Pod, volume: &Volume) -> Option<(String, bool)> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some((claim.claim_name.clone(), false)),
        (None, Some(_)) => Some((format!("{}-{}", pod.name(), volume.name), true)),
        (None, None) => None,
    }
}

fn volumes_of(pod: &Pod) -> impl Iterator<Item = (String, bool)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| claim_of(pod, volume))
}

/// Returns the claims that a pod refers to, those of its ephemeral volumes included.
fn claims_of(pod: &Pod) -> Vec<ObjectKey> {
    volumes_of(pod).map(|(name, _)| ObjectKey::new(pod.namespace(), &name)).collect()
}

/// Returns true if a pod on a node refers to a claim.
///
/// Three pods do not count, as upstream: a pod without a node, because the kubelet starts no pod whose claim
/// is being deleted; a pod whose ephemeral volume has the claim of an earlier pod of its name; and, for its
/// own ephemeral claims, a pod that was deleted without grace, because its finalizers may wait for the
/// claims.
fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let ended = pod.is_deleting() && pod.metadata.deletion_grace_period_seconds == Some(0);
    let is_own = || claim.controller_ref().is_some_and(|owner| owner.uid == pod.uid());
    !node_name(pod).is_empty()
        && pod.namespace() == claim.namespace()
        && volumes_of(pod)
            .any(|(name, is_ephemeral)| name == claim.name() && (!is_ephemeral || (!ended && is_own())))
}

struct Claims;

impl Reconcile for Claims {
    type Kind = PersistentVolumeClaim;

    async fn reconcile(&self, cx: &Context, claim: Arc<PersistentVolumeClaim>) -> Result<Action, Error> {
        let mut all = claim.metadata.finalizers.clone().unwrap_or_default();
        let has = all.iter().any(|name| name == CLAIM);
        match (claim.is_deleting(), has) {
            (false, false) => all.push(CLAIM.to_owned()),
            (true, true) => {
                let cached = cx.caches().of::<Pod>().by_index(BY_CLAIM, &claim.key().to_string());
                if cached.iter().any(|pod| uses(pod, &claim)) {
                    return Ok(Action::await_change());
                }
                let live = cx.api::<Pod>(claim.namespace()).list(&ListParams::default()).await?;
                if let Some(pod) = live.iter().find(|pod| uses(pod, &claim)) {
                    tracing::debug!(claim = %claim.key(), pod = pod.name(), "in use, says the API server");
                    return Ok(Action::requeue_after(BEHIND));
                }
                all.retain(|name| name != CLAIM);
            }
            _ => return Ok(Action::await_change()),
        }
        let mut next = PersistentVolumeClaim::clone(&claim);
        next.metadata.finalizers = Some(all);
        cx.replace(&next).await?;
        Ok(Action::await_change())
    }
}

struct Volumes;

impl Reconcile for Volumes {
    type Kind = PersistentVolume;

    async fn reconcile(&self, cx: &Context, volume: Arc<PersistentVolume>) -> Result<Action, Error> {
        let mut all = volume.metadata.finalizers.clone().unwrap_or_default();
        let has = all.iter().any(|name| name == VOLUME);
        let bound = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        match (volume.is_deleting(), has) {
            (false, false) => all.push(VOLUME.to_owned()),
            (true, true) if !bound => all.retain(|name| name != VOLUME),
            _ => return Ok(Action::await_change()),
        }
        let mut next = PersistentVolume::clone(&volume);
        next.metadata.finalizers = Some(all);
        cx.replace(&next).await?;
        Ok(Action::await_change())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(node: &str, volumes: Value, metadata: Value) -> Pod {
        let spec = json!({"nodeName": node, "containers": [], "volumes": volumes});
        let mut full = json!({"name": "p", "namespace": "a", "uid": "u"});
        full.as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
        serde_json::from_value(json!({"metadata": full, "spec": spec})).unwrap()
    }

    fn claim(name: &str, owner: &str) -> PersistentVolumeClaim {
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": owner, "controller": true});
        let metadata = json!({"name": name, "namespace": "a", "ownerReferences": [owner]});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    #[test]
    fn pods_on_nodes_use_their_claims() {
        let named = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
        let own = json!([{"name": "v", "ephemeral": {}}]);
        let (plain, deleting) = (json!({}), json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}));
        let with = |seconds: u32| {
            let mut metadata = deleting.clone();
            metadata["deletionGracePeriodSeconds"] = seconds.into();
            metadata
        };
        for (pod, claim, want) in [
            (pod("n", named.clone(), plain.clone()), claim("data", "x"), true),
            (pod("", named.clone(), plain.clone()), claim("data", "x"), false),
            (pod("n", named.clone(), json!({"namespace": "b"})), claim("data", "x"), false),
            (pod("n", named.clone(), with(30)), claim("data", "x"), true),
            (pod("n", named.clone(), with(0)), claim("data", "x"), true),
            (pod("n", own.clone(), with(0)), claim("p-v", "u"), false),
            (pod("n", own.clone(), plain.clone()), claim("p-v", "u"), true),
            (pod("n", own.clone(), plain.clone()), claim("p-v", "of an earlier pod"), false),
            (pod("n", own, plain), claim("data", "u"), false),
        ] {
            assert_eq!(uses(&pod, &claim), want, "{pod:?} {claim:?}");
        }
    }
}
