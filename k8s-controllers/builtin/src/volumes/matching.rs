//! Matches volumes to claims. Pure.

use std::sync::Arc;

use k8s_core::{
    api::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim},
    meta::{LabelSelector, ObjectExt, Quantity, node::NodeTerm},
};

/// Annotation with the class, older than the field. It takes precedence.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

pub(super) fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let field = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref());
    claim.annotation(CLASS).or(field).unwrap_or_default()
}

fn class_of_volume(volume: &PersistentVolume) -> &str {
    let field = volume.spec.as_ref().and_then(|s| s.storage_class_name.as_deref());
    volume.annotation(CLASS).or(field).unwrap_or_default()
}

/// Returns namespace, name and (once bound) uid of a volume's claim.
pub(super) fn claim_of(volume: &PersistentVolume) -> Option<(&str, &str, Option<&str>)> {
    let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
    let uid = reference.uid.as_deref().filter(|u| !u.is_empty());
    Some((reference.namespace.as_deref()?, reference.name.as_deref()?, uid))
}

fn size(
    map: Option<
        &std::collections::BTreeMap<String, k8s_core::api::apimachinery::pkg::api::resource::Quantity>,
    >,
) -> Quantity {
    map.and_then(|m| m.get("storage")).and_then(|q| Quantity::try_from(q).ok()).unwrap_or(Quantity::ZERO)
}

/// Returns true if the volume's node affinity, if it has one, selects the node.
fn reaches(volume: &PersistentVolume, node: &Node) -> bool {
    let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()?.required.as_ref());
    affinity.is_none_or(|a| NodeTerm::of(a).iter().any(|term| term.matches(node)))
}

/// Returns a volume reserved for the claim, else the smallest that is large enough and matches in all
/// other ways.
pub(super) fn best(
    claim: &PersistentVolumeClaim,
    all: &[Arc<PersistentVolume>],
    node: Option<&Node>,
) -> Option<Arc<PersistentVolume>> {
    let spec = claim.spec.clone().unwrap_or_default();
    let wanted = size(spec.resources.as_ref().and_then(|r| r.requests.as_ref()));
    let selector = spec.selector.as_ref().and_then(|s| LabelSelector::from_api(s).ok());
    let mode = |m: Option<&String>| m.map_or("Filesystem", String::as_str).to_owned();
    let is_meant = |volume: &PersistentVolume| {
        claim_of(volume).is_some_and(|(ns, name, uid)| {
            ns == claim.namespace() && name == claim.name() && uid.is_none_or(|u| u == claim.uid())
        })
    };
    if let Some(meant) = all.iter().find(|v| is_meant(v)) {
        return Some(meant.clone());
    }
    let fits = |volume: &Arc<PersistentVolume>| {
        let Some(theirs) = &volume.spec else { return false };
        theirs.claim_ref.is_none()
            && !volume.is_deleting()
            && size(theirs.capacity.as_ref()) >= wanted
            && class_of_volume(volume) == class_of_claim(claim)
            && mode(theirs.volume_mode.as_ref()) == mode(spec.volume_mode.as_ref())
            && spec
                .access_modes
                .iter()
                .flatten()
                .all(|m| theirs.access_modes.iter().flatten().any(|n| n == m))
            && selector.as_ref().is_none_or(|s| s.matches(volume.metadata.labels.as_ref()))
            && node.is_none_or(|n| reaches(volume, n))
    };
    let capacity = |v: &Arc<PersistentVolume>| size(v.spec.as_ref().and_then(|s| s.capacity.as_ref()));
    all.iter().filter(|v| fits(v)).min_by_key(|v| (capacity(v), v.name().to_owned())).cloned()
}
