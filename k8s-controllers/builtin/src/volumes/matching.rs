//! Matches volumes to claims. Pure.

use std::sync::Arc;

use k8s_core::{
    api::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim},
    meta::{LabelSelector, ObjectExt, Quantity, node::NodeTerm},
};

/// Annotation with the class, older than the field. It takes precedence.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

pub(crate) fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let field = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref());
    claim.annotation(CLASS).or(field).unwrap_or_default()
}

/// Returns true if the claim names a class, or says that it wants none.
pub(super) fn has_class(claim: &PersistentVolumeClaim) -> bool {
    let field = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_ref());
    claim.annotation(CLASS).is_some() || field.is_some()
}

fn class_of_volume(volume: &PersistentVolume) -> &str {
    let field = volume.spec.as_ref().and_then(|s| s.storage_class_name.as_deref());
    volume.annotation(CLASS).or(field).unwrap_or_default()
}

/// Returns namespace, name and (once bound) uid of a volume's claim.
pub(crate) fn claim_of(volume: &PersistentVolume) -> Option<(&str, &str, Option<&str>)> {
    let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
    let uid = reference.uid.as_deref().filter(|u| !u.is_empty());
    Some((reference.namespace.as_deref()?, reference.name.as_deref()?, uid))
}

/// Returns the storage of a list of resources.
pub(crate) fn size(
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

fn mode(mode: Option<&String>) -> &str {
    mode.map_or("Filesystem", String::as_str)
}

/// Returns true if claim and volume have the same volume mode.
pub(super) fn has_mode_of(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let wanted = claim.spec.as_ref().and_then(|s| s.volume_mode.as_ref());
    mode(wanted) == mode(volume.spec.as_ref().and_then(|s| s.volume_mode.as_ref()))
}

fn capacity(volume: &PersistentVolume) -> Quantity {
    size(volume.spec.as_ref().and_then(|s| s.capacity.as_ref()))
}

/// Returns the storage that a claim requests.
pub(crate) fn request(claim: &PersistentVolumeClaim) -> Quantity {
    size(claim.spec.as_ref().and_then(|s| s.resources.as_ref()?.requests.as_ref()))
}

fn has_modes_of(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let has = |wanted: &String| {
        volume.spec.iter().flat_map(|s| s.access_modes.iter().flatten()).any(|mode| mode == wanted)
    };
    claim.spec.iter().flat_map(|s| s.access_modes.iter().flatten()).all(has)
}

fn has_attributes_of(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let wanted = claim.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref());
    let theirs = volume.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref());
    wanted.unwrap_or_default() == theirs.unwrap_or_default()
}

/// Returns true if the volume is reserved for the claim, or bound to it.
pub(crate) fn is_meant(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    claim_of(volume).is_some_and(|(namespace, name, uid)| {
        namespace == claim.namespace() && name == claim.name() && uid.is_none_or(|uid| uid == claim.uid())
    })
}

/// Returns why a volume that a claim names does not satisfy it.
pub(super) fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<String> {
    let checks = [
        (!volume.is_deleting(), format!("the volume is marked for deletion {:?}", volume.name())),
        (capacity(volume) >= request(claim), "requested PV is too small".to_owned()),
        (class_of_volume(volume) == class_of_claim(claim), "storageClassName does not match".to_owned()),
        (has_attributes_of(volume, claim), "volumeAttributesClassName does not match".to_owned()),
        (has_mode_of(volume, claim), "incompatible volumeMode".to_owned()),
        (has_modes_of(volume, claim), "incompatible accessMode".to_owned()),
    ];
    checks.into_iter().find(|(holds, _)| !holds).map(|(_, why)| why)
}

/// Volumes that a claim may get.
#[derive(Clone, Copy, Debug)]
pub(super) enum Among<'a> {
    /// Any free one.
    All,
    /// Those that the node of its first pod reaches.
    Of(&'a Node),
    /// Only one that is reserved for it: the claim waits for its first pod.
    Reserved,
}

/// Returns a volume reserved for the claim, else the one with the fewest access modes and then the smallest
/// that satisfies it. For a node the access modes do not count.
pub(super) fn best(
    claim: &PersistentVolumeClaim,
    all: &[Arc<PersistentVolume>],
    among: Among<'_>,
) -> Option<Arc<PersistentVolume>> {
    let selector = claim.spec.as_ref().and_then(|s| LabelSelector::from_api(s.selector.as_ref()?).ok());
    let satisfies = |volume: &&Arc<PersistentVolume>| {
        !volume.is_deleting()
            && capacity(volume) >= request(claim)
            && has_mode_of(volume, claim)
            && has_attributes_of(volume, claim)
    };
    let node = match among {
        Among::Of(node) => Some(node),
        Among::All | Among::Reserved => None,
    };
    let near = |volume: &PersistentVolume| node.is_none_or(|node| reaches(volume, node));
    if let Some(meant) = all.iter().filter(satisfies).find(|volume| is_meant(volume, claim)) {
        return near(meant).then(|| meant.clone());
    }
    if matches!(among, Among::Reserved) {
        return None;
    }
    let free = |volume: &&Arc<PersistentVolume>| {
        let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref());
        claim_of(volume).is_none()
            && phase == Some("Available")
            && class_of_volume(volume) == class_of_claim(claim)
            && has_modes_of(volume, claim)
            && selector.as_ref().is_none_or(|s| s.matches(volume.metadata.labels.as_ref()))
            && near(volume)
    };
    let modes = |volume: &PersistentVolume| match node {
        Some(_) => 0,
        None => volume.spec.as_ref().and_then(|s| s.access_modes.as_ref()).map_or(0, Vec::len),
    };
    let found = all.iter().filter(satisfies).filter(free);
    found.min_by_key(|v| (modes(v), capacity(v), v.name().to_owned())).cloned()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A volume: its size in Gi, access modes (`O` ReadWriteOnce, `X` ReadWriteMany), and parts of its spec.
    fn volume(name: &str, size: u32, modes: &str, extra: Value) -> Arc<PersistentVolume> {
        let mut spec = json!({
            "capacity": {"storage": format!("{size}Gi")}, "accessModes": access(modes), "storageClassName": "slow",
        });
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let meta = json!({"name": name, "labels": {"kind": name}});
        let volume = json!({"metadata": meta, "spec": spec, "status": {"phase": "Available"}});
        Arc::new(serde_json::from_value(volume).unwrap())
    }

    fn access(modes: &str) -> Vec<&str> {
        modes.chars().map(|c| if c == 'O' { "ReadWriteOnce" } else { "ReadWriteMany" }).collect()
    }

    fn claim(size: u32, modes: &str, extra: Value) -> PersistentVolumeClaim {
        let mut spec = json!({
            "resources": {"requests": {"storage": format!("{size}Gi")}}, "accessModes": access(modes),
            "storageClassName": "slow",
        });
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let meta = json!({"name": "c", "namespace": "a", "uid": "u"});
        serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
    }

    fn none() -> Value {
        json!({})
    }

    fn reserved(name: &str, uid: &str) -> Value {
        json!({"claimRef": {"namespace": "a", "name": name, "uid": uid}})
    }

    #[test]
    fn the_closest_volume_is_found() {
        let all = [
            volume("large", 10, "O", none()),
            volume("both", 3, "OX", none()),
            volume("small", 1, "O", none()),
            volume("right", 4, "O", none()),
            volume("fast", 2, "O", json!({"storageClassName": "fast"})),
            volume("raw", 2, "O", json!({"volumeMode": "Block"})),
            volume("taken", 2, "O", reserved("c", "other")),
            volume("theirs", 2, "O", reserved("d", "")),
        ];
        let found =
            |claim: &PersistentVolumeClaim| best(claim, &all, Among::All).map(|v| v.name().to_owned());
        for (want, claim) in [
            // Fewest access modes before the size.
            ("right", claim(2, "O", none())),
            ("both", claim(2, "X", none())),
            ("both", claim(2, "OX", none())),
            ("raw", claim(1, "O", json!({"volumeMode": "Block"}))),
            ("fast", claim(1, "O", json!({"storageClassName": "fast"}))),
            ("large", claim(1, "O", json!({"selector": {"matchLabels": {"kind": "large"}}}))),
            ("", claim(11, "O", none())),
            ("", claim(1, "O", json!({"storageClassName": ""}))),
            ("", claim(1, "O", json!({"volumeAttributesClassName": "gold"}))),
        ] {
            assert_eq!(found(&claim).unwrap_or_default(), want, "{claim:?}");
        }
        assert!(best(&claim(1, "O", none()), &all, Among::Reserved).is_none());
    }

    #[test]
    fn a_reserved_volume_is_for_its_claim() {
        let free = volume("free", 2, "O", none());
        let found = |one: &Arc<PersistentVolume>, among| {
            let all = [free.clone(), one.clone()];
            best(&claim(2, "O", none()), &all, among)
                .map_or("", |v| if v.name() == "free" { "free" } else { "one" })
        };
        for (extra, want) in
            [(reserved("c", ""), "one"), (reserved("c", "u"), "one"), (reserved("c", "v"), "free")]
        {
            assert_eq!(found(&volume("one", 5, "X", extra.clone()), Among::All), want, "{extra}");
        }
        let small = volume("one", 1, "O", reserved("c", ""));
        assert_eq!(found(&small, Among::All), "free", "too small for its claim");
        assert_eq!(found(&volume("one", 5, "O", reserved("c", "")), Among::Reserved), "one");
        let mut pending = (*volume("one", 2, "O", none())).clone();
        pending.status = None;
        assert!(best(&claim(2, "O", none()), &[Arc::new(pending)], Among::All).is_none());
    }

    #[test]
    fn a_named_volume_must_satisfy_the_claim() {
        let wanted = claim(2, "O", none());
        for (volume, want) in [
            (volume("v", 2, "O", none()), None),
            (volume("v", 1, "O", none()), Some("requested PV is too small")),
            (volume("v", 2, "X", none()), Some("incompatible accessMode")),
            (volume("v", 2, "O", json!({"volumeMode": "Block"})), Some("incompatible volumeMode")),
            (
                volume("v", 2, "O", json!({"storageClassName": "fast"})),
                Some("storageClassName does not match"),
            ),
        ] {
            assert_eq!(mismatch(&volume, &wanted).as_deref(), want);
        }
    }
}
