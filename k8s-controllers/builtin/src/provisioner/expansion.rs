//! Decides how large a volume is to be made. Pure.
//!
//! A claim's status remembers the size that its driver was last asked for, so that a driver that was
//! interrupted is asked for the same size again, and a claim may ask for less after a size that was
//! infeasible (upstream's `RecoverVolumeExpansionFailure`).

use k8s_core::{
    api::{
        api::core::v1::{
            PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimCondition,
            PersistentVolumeClaimStatus,
        },
        apimachinery::pkg::apis::meta::v1::Time,
    },
    meta::{ObjectExt, Quantity},
};

use crate::{
    conditions::{self, Condition},
    volumes::{PROVISIONED_BY, matching},
};

const STORAGE: &str = "storage";
const RESIZING: &str = "Resizing";
const FAILED: &str = "ControllerResizeError";

/// State of an expansion, in `status.allocatedResourceStatuses`.
pub(super) const IN_PROGRESS: &str = "ControllerResizeInProgress";
/// As [`IN_PROGRESS`]: the driver will never have this size.
pub(super) const INFEASIBLE: &str = "ControllerResizeInfeasible";

/// Returns the size that this driver is to give the volume of a claim. `None`: nothing is to be done.
pub(super) fn wanted(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
    driver: &str,
) -> Option<Quantity> {
    let status = claim.status.as_ref()?;
    let is_bound = status.phase.as_deref() == Some("Bound") && matching::is_meant(volume, claim);
    let is_ours = volume.annotation(PROVISIONED_BY) == Some(driver);
    let request = matching::request(claim);
    if !is_bound || !is_ours || claim.is_deleting() || request <= matching::size(status.capacity.as_ref()) {
        return None;
    }
    let asked = status.allocated_resources.as_ref().map(|all| matching::size(Some(all)));
    let state = status.allocated_resource_statuses.as_ref().and_then(|all| all.get(STORAGE));
    match (state.map(String::as_str), asked) {
        // It may have that size by now.
        (Some(IN_PROGRESS), Some(asked)) if !asked.is_zero() => Some(asked),
        // A node is at work, for a driver of another make.
        (Some(state), _) if state.starts_with("NodeResize") => None,
        _ => Some(request),
    }
}

/// Notes that the driver is asked for a size.
pub(super) fn begin(status: &mut PersistentVolumeClaimStatus, size: &Quantity, now: &Time) {
    status.allocated_resources.get_or_insert_default().insert(STORAGE.into(), size.to_api());
    set_state(status, Some(IN_PROGRESS));
    let resizing = PersistentVolumeClaimCondition::make(RESIZING, "True", "", "", now);
    conditions::set(&mut status.conditions, resizing);
}

/// Notes why the driver has not made the size. `is_final`: it never will.
pub(super) fn fail(status: &mut PersistentVolumeClaimStatus, why: &str, is_final: bool, now: &Time) {
    set_state(status, Some(if is_final { INFEASIBLE } else { IN_PROGRESS }));
    conditions::set(
        &mut status.conditions,
        PersistentVolumeClaimCondition::make(FAILED, "True", "", why, now),
    );
}

/// Notes that the volume has a size.
pub(super) fn finish(status: &mut PersistentVolumeClaimStatus, size: &Quantity) {
    status.capacity.get_or_insert_default().insert(STORAGE.into(), size.to_api());
    set_state(status, None);
    for kind in [RESIZING, FAILED] {
        conditions::remove(&mut status.conditions, kind);
    }
}

fn set_state(status: &mut PersistentVolumeClaimStatus, state: Option<&str>) {
    let all = status.allocated_resource_statuses.get_or_insert_default();
    match state {
        Some(state) => drop(all.insert(STORAGE.into(), state.into())),
        None => drop(all.remove(STORAGE)),
    }
    if all.is_empty() {
        status.allocated_resource_statuses = None;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn claim(request: &str, status: Value) -> PersistentVolumeClaim {
        let mut full = json!({"phase": "Bound", "capacity": {"storage": "1Gi"}});
        full.as_object_mut().unwrap().extend(status.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "metadata": {"name": "c", "namespace": "a", "uid": "u"},
            "spec": {"volumeName": "v", "resources": {"requests": {"storage": request}}},
            "status": full,
        }))
        .unwrap()
    }

    fn volume(driver: &str, uid: &str) -> PersistentVolume {
        serde_json::from_value(json!({
            "metadata": {"name": "v", "annotations": {PROVISIONED_BY: driver}},
            "spec": {"claimRef": {"namespace": "a", "name": "c", "uid": uid}},
        }))
        .unwrap()
    }

    #[test]
    fn a_driver_is_asked_for_one_size_until_it_answers() {
        let state = |state: &str, asked: &str| json!({"allocatedResources": {"storage": asked}, "allocatedResourceStatuses": {"storage": state}});
        for (request, status, want) in [
            ("1Gi", json!({}), None),
            ("1024Mi", json!({}), None),
            ("2Gi", json!({}), Some("2Gi")),
            ("2Gi", json!({"phase": "Lost"}), None),
            ("2Gi", state(IN_PROGRESS, "3Gi"), Some("3Gi")),
            ("4Gi", state(IN_PROGRESS, "3Gi"), Some("3Gi")),
            ("2Gi", state(INFEASIBLE, "3Gi"), Some("2Gi")),
            ("3Gi", state(INFEASIBLE, "3Gi"), Some("3Gi")),
            ("2Gi", json!({"allocatedResources": {"storage": "1Gi"}}), Some("2Gi")),
            ("2Gi", state("NodeResizePending", "2Gi"), None),
        ] {
            let claim = claim(request, status.clone());
            let got = wanted(&claim, &volume("x.io", "u"), "x.io").map(|size| size.to_string());
            assert_eq!(got.as_deref(), want, "{request} {status}");
            for other in [volume("y.io", "u"), volume("x.io", "w")] {
                assert_eq!(wanted(&claim, &other, "x.io"), None);
            }
        }
    }

    #[test]
    fn the_status_tells_how_far_it_is() {
        let now = Time(k8s_core::api::jiff::Timestamp::UNIX_EPOCH);
        let size: Quantity = "2Gi".parse().unwrap();
        let mut status = claim("2Gi", json!({})).status.unwrap();
        begin(&mut status, &size, &now);
        fail(&mut status, "no room", false, &now);
        let text = serde_json::to_value(&status).unwrap();
        assert_eq!(text["allocatedResources"]["storage"], "2Gi");
        assert_eq!(text["allocatedResourceStatuses"]["storage"], IN_PROGRESS);
        assert_eq!(text["conditions"][0]["type"], RESIZING);
        assert_eq!(
            (&text["conditions"][1]["type"], &text["conditions"][1]["message"]),
            (&json!(FAILED), &json!("no room"))
        );
        let before = status.clone();
        begin(&mut status, &size, &now);
        assert_eq!(status, before, "to try again changes nothing");
        fail(&mut status, "never", true, &now);
        assert_eq!(status.allocated_resource_statuses.as_ref().unwrap()[STORAGE], INFEASIBLE);
        finish(&mut status, &size);
        let want = json!({"phase": "Bound", "capacity": {"storage": "2Gi"},
            "allocatedResources": {"storage": "2Gi"}});
        assert_eq!(serde_json::to_value(&status).unwrap(), want);
    }
}
