//! Decisions about ResourceClaims of pods. Pure.

use k8s_core::{
    api::{
        api::{
            core::v1::{Pod, PodResourceClaim},
            resource::v1::{ResourceClaim, ResourceClaimConsumerReference, ResourceClaimTemplate},
        },
        apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    },
    meta::{ObjectExt, owner_reference},
};

/// Annotation of a generated claim: the entry of the pod's `spec.resourceClaims`.
pub(super) const ENTRY: &str = "resource.kubernetes.io/pod-claim-name";
/// Finalizer of an allocated claim.
pub(super) const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// Maximum number of reservations of a claim.
const MOST_RESERVED: usize = 256;
/// Maximum length of a generated name without its five random characters.
const LONGEST_BASE: usize = 57;

/// The claim of an entry of `spec.resourceClaims`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named<'a> {
    /// The claim's name; `true` if it is generated.
    Claim(&'a str, bool),
    /// The pod's status says that no claim is needed.
    NotNeeded,
    /// The pod's status does not have the name yet.
    NotYet,
}

/// Iterates over `spec.resourceClaims`.
pub(super) fn entries(pod: &Pod) -> impl Iterator<Item = &PodResourceClaim> {
    pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten())
}

/// Returns the claim of an entry.
pub(super) fn named<'a>(pod: &'a Pod, entry: &'a PodResourceClaim) -> Named<'a> {
    if let Some(name) = &entry.resource_claim_name {
        return Named::Claim(name, false);
    }
    let mut statuses = pod.status.iter().flat_map(|s| s.resource_claim_statuses.iter().flatten());
    match statuses.find(|status| status.name == entry.name) {
        None => Named::NotYet,
        Some(status) => {
            status.resource_claim_name.as_deref().map_or(Named::NotNeeded, |name| Named::Claim(name, true))
        }
    }
}

/// Returns the names of all claims of a pod that are known, that of its extended resources included.
pub(super) fn claim_names(pod: &Pod) -> Vec<&str> {
    let named = entries(pod).filter_map(|entry| match named(pod, entry) {
        Named::Claim(name, _) => Some(name),
        Named::NotNeeded | Named::NotYet => None,
    });
    let extended = pod.status.as_ref().and_then(|s| s.extended_resource_claim_status.as_ref());
    named.chain(extended.map(|status| status.resource_claim_name.as_str())).collect()
}

/// Returns the pod's node.
pub(super) fn node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

/// Returns true if none of the pod's containers runs or ever will.
pub(super) fn is_done(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed")) || (pod.is_deleting() && node(pod).is_none())
}

/// Returns true if the claim was generated for the pod.
pub(super) fn is_for(pod: &Pod, claim: &ResourceClaim) -> bool {
    claim.controller_ref().is_some_and(|owner| owner.uid == pod.uid())
}

/// Returns the pod that a claim was generated for.
pub(super) fn owner(claim: &ResourceClaim) -> Option<&OwnerReference> {
    claim.controller_ref().filter(|owner| owner.api_version == "v1" && owner.kind == "Pod")
}

/// Returns the claim of an entry with this template. The server completes the name.
pub(super) fn build(pod: &Pod, entry: &PodResourceClaim, template: &ResourceClaimTemplate) -> ResourceClaim {
    let metadata = template.spec.metadata.clone().unwrap_or_default();
    let mut annotations = metadata.annotations.unwrap_or_default();
    annotations.insert(ENTRY.to_owned(), entry.name.clone());
    ResourceClaim {
        metadata: ObjectMeta {
            generate_name: Some(base_name(pod.name(), &entry.name)),
            namespace: Some(pod.namespace().to_owned()),
            labels: metadata.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![OwnerReference {
                block_owner_deletion: None,
                ..owner_reference(pod)
            }]),
            ..ObjectMeta::default()
        },
        spec: template.spec.spec.clone(),
        status: None,
    }
}

/// Returns `POD-ENTRY-`; if that is too long, both parts are cut in proportion to their lengths.
fn base_name(pod: &str, entry: &str) -> String {
    let full = format!("{pod}-{entry}-");
    if full.len() <= LONGEST_BASE {
        return full;
    }
    let cut = |part: &str| -> String { part.chars().take(part.len() * LONGEST_BASE / full.len()).collect() };
    format!("{}-{}", cut(pod), cut(entry))
}

fn reservations(claim: &ResourceClaim) -> &[ResourceClaimConsumerReference] {
    claim.status.as_ref().and_then(|status| status.reserved_for.as_deref()).unwrap_or_default()
}

/// Returns true if any consumer has the claim reserved.
pub(super) fn is_reserved(claim: &ResourceClaim) -> bool {
    !reservations(claim).is_empty()
}

fn is_pod(consumer: &ResourceClaimConsumerReference) -> bool {
    consumer.api_group.as_deref().unwrap_or_default().is_empty() && consumer.resource == "pods"
}

/// Iterates over the pods for which a claim is reserved.
pub(super) fn consumers(claim: &ResourceClaim) -> impl Iterator<Item = &ResourceClaimConsumerReference> {
    reservations(claim).iter().filter(|consumer| is_pod(consumer))
}

/// Returns the claim with a reservation for the pod. `None`: the claim is not allocated, is reserved
/// already, or has as many reservations as it can have.
pub(super) fn reserve(pod: &Pod, claim: &ResourceClaim) -> Option<ResourceClaim> {
    claim.status.as_ref()?.allocation.as_ref()?;
    let all = reservations(claim);
    if all.len() >= MOST_RESERVED || all.iter().any(|consumer| consumer.uid == pod.uid()) {
        return None;
    }
    let mut next = claim.clone();
    let status = next.status.get_or_insert_default();
    status.reserved_for.get_or_insert_default().push(ResourceClaimConsumerReference {
        api_group: None,
        name: pod.name().to_owned(),
        resource: "pods".to_owned(),
        uid: pod.uid().to_owned(),
    });
    Some(next)
}

/// Returns the claim without the reservations of pods that are gone (by uid), and without its allocation if
/// it is needed no longer. `None`: there is nothing to write.
pub(super) fn release(claim: &ResourceClaim, gone: &[String]) -> Option<ResourceClaim> {
    let mut next = claim.clone();
    let status = next.status.get_or_insert_default();
    let all = status.reserved_for.get_or_insert_default();
    let before = all.len();
    all.retain(|consumer| !is_pod(consumer) || !gone.contains(&consumer.uid));
    let (fewer, unused) = (all.len() < before, all.is_empty());
    let ends = unused && has_finalizer(claim) && (fewer || claim.is_deleting());
    let deallocated = ends && status.allocation.take().is_some();
    if unused {
        status.reserved_for = None;
    }
    (fewer || deallocated).then_some(next)
}

fn has_finalizer(claim: &ResourceClaim) -> bool {
    claim.metadata.finalizers.iter().flatten().any(|name| name == FINALIZER)
}

/// Returns true if the finalizer is to be removed. `before` is the claim as it was read, `live` as it is now.
pub(super) fn finalizer_ends(before: &ResourceClaim, live: &ResourceClaim) -> bool {
    let allocated = live.status.as_ref().is_some_and(|status| status.allocation.is_some());
    let released = reservations(live).len() < reservations(before).len();
    has_finalizer(live) && !allocated && !is_reserved(live) && (released || live.is_deleting())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "a", "uid": "u1"},
            "spec": {"containers": [], "resourceClaims": [
                {"name": "own", "resourceClaimTemplateName": "t"}, {"name": "shared", "resourceClaimName": "s"}]},
            "status": status,
        }))
        .unwrap()
    }

    fn claim(finalizers: &[&str], status: Value) -> ResourceClaim {
        let metadata = json!({"name": "c", "namespace": "a", "finalizers": finalizers});
        serde_json::from_value(json!({"metadata": metadata, "spec": {}, "status": status})).unwrap()
    }

    fn reserved(uids: &[&str]) -> Value {
        uids.iter().map(|uid| json!({"resource": "pods", "name": uid, "uid": uid})).collect()
    }

    #[test]
    fn names_come_from_the_spec_or_the_status() {
        let new = pod(json!({}));
        let all: Vec<Named<'_>> = entries(&new).map(|entry| named(&new, entry)).collect();
        assert_eq!(all, [Named::NotYet, Named::Claim("s", false)]);
        let known = pod(json!({"resourceClaimStatuses": [{"name": "own", "resourceClaimName": "p-own-x"}]}));
        assert_eq!(claim_names(&known), ["p-own-x", "s"]);
        let none = pod(json!({"resourceClaimStatuses": [{"name": "own"}]}));
        assert_eq!(entries(&none).map(|entry| named(&none, entry)).next(), Some(Named::NotNeeded));
    }

    #[test]
    fn long_names_are_cut_in_proportion() {
        assert_eq!(base_name("web", "gpu"), "web-gpu-");
        let cut = base_name(&"p".repeat(100), &"e".repeat(50));
        assert!(cut.len() <= LONGEST_BASE && cut.contains("-e") && cut.starts_with("ppp"), "{cut}");
    }

    #[test]
    fn the_allocation_goes_with_the_last_reservation() {
        let allocation = json!({"devices": {}});
        let live =
            claim(&[FINALIZER], json!({"allocation": allocation, "reservedFor": reserved(&["u1", "u2"])}));
        let one = release(&live, &["u1".into()]).unwrap();
        assert!(one.status.as_ref().unwrap().allocation.is_some());
        assert!(!finalizer_ends(&live, &one));
        let none = release(&live, &["u1".into(), "u2".into()]).unwrap();
        assert_eq!(none.status.as_ref().unwrap().allocation, None);
        assert!(finalizer_ends(&live, &none));
        // Never reserved: it stays allocated, until it is deleted.
        let mut unused = claim(&[FINALIZER], json!({"allocation": allocation}));
        assert_eq!(release(&unused, &[]), None);
        assert!(!finalizer_ends(&unused, &unused));
        unused.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert_eq!(release(&unused, &[]).unwrap().status.unwrap().allocation, None);
        // Without the finalizer the scheduler did not allocate it.
        let foreign = claim(&[], json!({"allocation": allocation, "reservedFor": reserved(&["u1"])}));
        assert!(release(&foreign, &["u1".into()]).unwrap().status.unwrap().allocation.is_some());
        // Consumers that are no pods are kept.
        let other = json!([{"apiGroup": "example.com", "resource": "things", "name": "x", "uid": "u1"}]);
        assert_eq!(release(&claim(&[FINALIZER], json!({"reservedFor": other})), &["u1".into()]), None);
    }

    #[test]
    fn a_pod_is_reserved_once_and_only_an_allocated_claim() {
        assert_eq!(reserve(&pod(json!({})), &claim(&[], json!({}))), None);
        let free = claim(&[], json!({"allocation": {"devices": {}}}));
        let first = reserve(&pod(json!({})), &free).unwrap();
        assert_eq!(reserve(&pod(json!({})), &first), None);
        let uids: Vec<String> = (0..MOST_RESERVED).map(|n| n.to_string()).collect();
        let uids: Vec<&str> = uids.iter().map(String::as_str).collect();
        let full = claim(&[], json!({"allocation": {"devices": {}}, "reservedFor": reserved(&uids)}));
        assert_eq!(reserve(&pod(json!({})), &full), None);
    }
}
