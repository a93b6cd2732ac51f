//! Protection of claims and volumes in use: their finalizer goes when nothing uses them.
//!
//! Invariants:
//! 1. A claim that is being deleted stays as long as a pod with a node refers to it.
//! 2. A volume that is being deleted stays as long as it is bound.
//! 3. Every claim and volume that is not being deleted has its finalizer. (The admission plugin
//!    StorageObjectInUseProtection sets it at creation; this controller, on older ones.)

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use k8s_core::{
    api::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
    meta::{ObjectExt, ObjectKey},
};

use crate::Options;
use k8s_controllers::{Action, Context, Controller, Environment, Error, Reconcile};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";

/// Runs the protection of claims.
pub(crate) fn claims(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
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

/// Returns the claims that a pod refers to, those of its ephemeral volumes included.
fn claims_of(pod: &Pod) -> Vec<ObjectKey> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let names = volumes.filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", pod.name(), volume.name)),
        (None, None) => None,
    });
    names.map(|name| ObjectKey::new(pod.namespace(), &name)).collect()
}

/// Returns true if a pod on a node refers to a claim. A pod without a node is not started with a claim that
/// is being deleted.
fn is_used(pods: &[Arc<Pod>], claim: &ObjectKey) -> bool {
    let placed = |pod: &&Arc<Pod>| {
        pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty())
    };
    pods.iter().filter(placed).any(|pod| claims_of(pod).contains(claim))
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
                let pods = cx.caches().of::<Pod>().list();
                if is_used(&pods, &claim.key()) {
                    return Ok(Action::await_change());
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
    use super::*;

    fn pod(name: &str, node: &str, volumes: serde_json::Value) -> Arc<Pod> {
        let spec = serde_json::json!({"nodeName": node, "containers": [], "volumes": volumes});
        let metadata = serde_json::json!({"name": name, "namespace": "a"});
        Arc::new(serde_json::from_value(serde_json::json!({"metadata": metadata, "spec": spec})).unwrap())
    }

    #[test]
    fn pods_on_nodes_use_their_claims() {
        let claim = serde_json::json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
        let ephemeral = serde_json::json!([{"name": "v", "ephemeral": {}}]);
        let (data, own) = (ObjectKey::new("a", "data"), ObjectKey::new("a", "p-v"));
        assert!(is_used(&[pod("p", "n", claim.clone())], &data));
        assert!(!is_used(&[pod("p", "", claim)], &data), "it has no node");
        assert!(is_used(&[pod("p", "n", ephemeral.clone())], &own));
        assert!(!is_used(&[pod("p", "n", ephemeral)], &data));
    }
}
