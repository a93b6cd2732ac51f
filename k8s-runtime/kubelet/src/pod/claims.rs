//! ResourceClaims of a pod: it is not started before the drivers of all of its devices have prepared them.
//!
//! Guarantee: a pod whose claims have devices gets no sandbox, because no driver is registered here.
//!
//! Not here: the registration of drivers and their `NodePrepareResources`. A claim without devices needs
//! none.

use k8s_core::{api::api::resource::v1::ResourceClaim, meta::ObjectExt};

use crate::{context::Context, types::*};

/// A claim that the pod needs.
#[derive(Debug, PartialEq, Eq)]
struct Needed {
    name: String,
    /// Made from a template: the pod must control it.
    generated: bool,
}

/// Prepares the devices of the pod's claims.
///
/// # Errors
/// The reason for which the pod cannot be started now. Retry: a claim may become usable.
pub(crate) async fn prepare(cx: &Context, pod: &Pod) -> Result<(), String> {
    let failed = |why: String| format!("prepare dynamic resources: {why}");
    for needed in needed(pod).map_err(failed)? {
        let claims = cx.client.namespaced::<ResourceClaim>(pod.namespace());
        let claim = claims.get(&needed.name).await;
        let claim = claim.map_err(|e| failed(format!("fetch ResourceClaim {}: {e}", needed.name)))?;
        check(pod, &needed, &claim).map_err(failed)?;
    }
    Ok(())
}

/// Returns the claims of a pod, that of its extended resources included.
fn needed(pod: &Pod) -> Result<Vec<Needed>, String> {
    let mut all = Vec::new();
    for entry in pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten()) {
        let of_pod = || format!("pod \"{}/{}\"", pod.namespace(), pod.name());
        if let Some(name) = &entry.resource_claim_name {
            all.push(Needed { name: name.clone(), generated: false });
        } else if entry.resource_claim_template_name.is_some() {
            let mut statuses = pod.status.iter().flat_map(|s| s.resource_claim_statuses.iter().flatten());
            let status = statuses.find(|status| status.name == entry.name);
            let status = status.ok_or_else(|| format!("{}: ResourceClaim not created yet", of_pod()))?;
            // Without a name, no claim is needed.
            all.extend(status.resource_claim_name.clone().map(|name| Needed { name, generated: true }));
        } else {
            let entry = &entry.name;
            return Err(format!(
                "{}, spec.resourceClaim {entry:?}: none of the supported fields are set",
                of_pod()
            ));
        }
    }
    let extended = pod.status.as_ref().and_then(|status| status.extended_resource_claim_status.as_ref());
    all.extend(extended.map(|e| Needed { name: e.resource_claim_name.clone(), generated: false }));
    Ok(all)
}

/// Checks that the pod may use the claim, and that it needs no driver.
fn check(pod: &Pod, needed: &Needed, claim: &ResourceClaim) -> Result<(), String> {
    if needed.generated && claim.controller_ref().is_none_or(|owner| owner.uid != pod.uid()) {
        return Err(format!(
            "ResourceClaim {}/{} was not created for Pod {}/{} (Pod is not owner)",
            claim.namespace(),
            claim.name(),
            pod.namespace(),
            pod.name()
        ));
    }
    let mut reserved = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
    if !reserved.any(|consumer| consumer.uid == pod.uid()) {
        return Err(format!(
            "pod {} ({}) is not allowed to use ResourceClaim {} ({})",
            pod.name(),
            pod.uid(),
            claim.name(),
            claim.uid()
        ));
    }
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    let allocation = allocation.ok_or_else(|| format!("ResourceClaim {}: not allocated", claim.name()))?;
    let mut results = allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten());
    results.next().map_or(Ok(()), |first| Err(format!("DRA driver {} is not registered", first.driver)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(claims: Value, status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "a", "uid": "u1"},
            "spec": {"containers": [], "resourceClaims": claims}, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn claims_come_from_the_spec_and_the_status() {
        let names = |claims: Value, status: Value| -> Result<Vec<String>, String> {
            needed(&pod(claims, status)).map(|all| all.into_iter().map(|n| n.name).collect())
        };
        let own = json!([{"name": "own", "resourceClaimTemplateName": "t"}]);
        let refused = names(own.clone(), json!({})).unwrap_err();
        assert_eq!(refused, "pod \"a/p\": ResourceClaim not created yet");
        let status = json!({"resourceClaimStatuses": [{"name": "own", "resourceClaimName": "p-own-x"}],
            "extendedResourceClaimStatus": {"resourceClaimName": "more", "requestMappings": []}});
        assert_eq!(names(own.clone(), status).unwrap(), ["p-own-x", "more"]);
        assert!(names(own, json!({"resourceClaimStatuses": [{"name": "own"}]})).unwrap().is_empty());
        assert_eq!(names(json!([{"name": "s", "resourceClaimName": "x"}]), json!({})).unwrap(), ["x"]);
        assert!(names(json!([{"name": "s"}]), json!({})).is_err());
        assert!(names(json!([]), json!({})).unwrap().is_empty());
    }

    #[test]
    fn devices_without_their_driver_keep_the_pod_back() {
        let refusal = |generated: bool, status: Value| {
            let claim = json!({"metadata": {"name": "c", "namespace": "a", "uid": "u9"}, "spec": {}, "status": status});
            let needed = Needed { name: "c".into(), generated };
            check(&pod(json!([]), json!({})), &needed, &serde_json::from_value(claim).unwrap())
        };
        let reserved = json!([{"resource": "pods", "name": "p", "uid": "u1"}]);
        let err = |why: &str| Err(why.to_owned());
        assert_eq!(refusal(false, json!({})), err("pod p (u1) is not allowed to use ResourceClaim c (u9)"));
        let other = json!([{"resource": "pods", "name": "p", "uid": "u0"}]);
        assert!(refusal(false, json!({"reservedFor": other})).is_err(), "an earlier pod of this name");
        assert_eq!(refusal(false, json!({"reservedFor": reserved})), err("ResourceClaim c: not allocated"));
        let results = json!([{"request": "r", "driver": "d.example.com", "pool": "p", "device": "x"}]);
        let allocated = json!({"reservedFor": reserved, "allocation": {"devices": {"results": results}}});
        assert_eq!(refusal(false, allocated.clone()), err("DRA driver d.example.com is not registered"));
        let foreign = "ResourceClaim a/c was not created for Pod a/p (Pod is not owner)";
        assert_eq!(refusal(true, allocated), err(foreign));
        assert_eq!(refusal(false, json!({"reservedFor": reserved, "allocation": {"devices": {}}})), Ok(()));
    }
}
