//! Expansion of volumes: tells the user of a claim that asks for more than it has that a resizer of its driver
//! must expand the volume.
//!
//! No built-in volume type can be expanded by a controller; external resizers (CSI) watch the claims
//! themselves.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use k8s_core::{
    api::api::core::v1::{PersistentVolume, PersistentVolumeClaim},
    meta::ObjectExt,
};

use super::{matching, volume_name};
use crate::Options;
use k8s_controllers::{Action, Context, Controller, Environment, Error, EventType, Reconcile, predicates};

/// Runs the controller.
pub(crate) fn start(environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    let sizes = predicates::changed(|claim: &PersistentVolumeClaim| {
        (matching::request(claim), claim.status.as_ref().and_then(|status| status.capacity.clone()))
    });
    Controller::<PersistentVolumeClaim>::new()
        .named("volume_expand")
        .when(sizes)
        .reads::<PersistentVolume>()
        .run_in(environment, Expansion)
        .boxed()
}

/// Returns true for a bound claim that asks for more than its volume has.
fn is_wanted(claim: &PersistentVolumeClaim, volume: Option<&PersistentVolume>) -> bool {
    let status = claim.status.as_ref();
    let is_bound = status.and_then(|s| s.phase.as_deref()) == Some("Bound")
        && volume.is_some_and(|volume| matching::is_meant(volume, claim));
    is_bound && matching::request(claim) > matching::size(status.and_then(|s| s.capacity.as_ref()))
}

struct Expansion;

impl Reconcile for Expansion {
    type Kind = PersistentVolumeClaim;

    async fn reconcile(&self, cx: &Context, claim: Arc<PersistentVolumeClaim>) -> Result<Action, Error> {
        let volume = cx.caches().of::<PersistentVolume>().get("", volume_name(&claim));
        if is_wanted(&claim, volume.as_deref()) && !claim.is_deleting() {
            let message = "waiting for an external controller to expand this PVC";
            cx.event(&*claim, EventType::Normal, "ExternalExpanding", message);
        }
        Ok(Action::await_change())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_bound_claim_may_ask_for_more() {
        let claim = |phase: &str, wanted: &str, has: &str| -> PersistentVolumeClaim {
            serde_json::from_value(json!({
                "metadata": {"name": "c", "namespace": "a", "uid": "u"},
                "spec": {"volumeName": "v", "resources": {"requests": {"storage": wanted}}},
                "status": {"phase": phase, "capacity": {"storage": has}},
            }))
            .unwrap()
        };
        let volume = |uid: &str| -> PersistentVolume {
            let claim = json!({"namespace": "a", "name": "c", "uid": uid});
            serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": {"claimRef": claim}})).unwrap()
        };
        assert!(is_wanted(&claim("Bound", "2Gi", "1Gi"), Some(&volume("u"))));
        assert!(!is_wanted(&claim("Bound", "1024Mi", "1Gi"), Some(&volume("u"))));
        assert!(!is_wanted(&claim("Pending", "2Gi", "1Gi"), Some(&volume("u"))));
        assert!(!is_wanted(&claim("Bound", "2Gi", "1Gi"), Some(&volume("w"))));
        assert!(!is_wanted(&claim("Bound", "2Gi", "1Gi"), None));
    }
}
