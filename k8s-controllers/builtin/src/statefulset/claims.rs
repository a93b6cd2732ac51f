//! Claims of the pods of a StatefulSet: their making, and their owners by the retention policy. Pure.
//!
//! The controller deletes no claim. The policy decides who owns one, and the garbage collector deletes it
//! with its owner: the set (`whenDeleted`), or a pod that is scaled away (`whenScaled`).

use k8s_core::{
    api::{
        api::{
            apps::v1::StatefulSet,
            core::v1::{PersistentVolumeClaim, Pod},
        },
        apimachinery::pkg::apis::meta::v1::OwnerReference,
    },
    meta::{Object, ObjectExt, owner_reference},
};

use super::identity::claim_name;

/// Retention of claims.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Retention {
    /// Claims are deleted with the set.
    pub(super) with_set: bool,
    /// Claims are deleted with pods that are scaled away.
    pub(super) with_pod: bool,
}

impl Retention {
    pub(super) fn of(set: &StatefulSet) -> Self {
        let policy =
            set.spec.as_ref().and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
        let deletes = |text: Option<&String>| text.is_some_and(|text| text == "Delete");
        Retention {
            with_set: deletes(policy.and_then(|p| p.when_deleted.as_ref())),
            with_pod: deletes(policy.and_then(|p| p.when_scaled.as_ref())),
        }
    }

    /// Returns true if the set owns the claim of a pod.
    fn owner_is_set(self, scaled_away: bool) -> bool {
        self.with_set && !(self.with_pod && scaled_away)
    }

    /// Returns true if the pod owns its claim.
    fn owner_is_pod(self, scaled_away: bool) -> bool {
        self.with_pod && scaled_away
    }
}

/// Builds the claim of a template for an ordinal.
pub(super) fn build(
    set: &StatefulSet,
    template: &PersistentVolumeClaim,
    ordinal: i32,
) -> PersistentVolumeClaim {
    let mut claim = template.clone();
    claim.status = None;
    claim.metadata.name = Some(claim_name(set, template, ordinal));
    claim.metadata.namespace = Some(set.namespace().to_owned());
    let selected = set.spec.as_ref().and_then(|spec| spec.selector.match_labels.clone());
    claim.metadata.labels.get_or_insert_default().extend(selected.unwrap_or_default());
    if Retention::of(set).owner_is_set(false) {
        claim.metadata.owner_references.get_or_insert_default().push(owner_reference(set));
    }
    claim
}

/// Returns true if a reference names an object, whichever uid it has.
fn names<O: Object>(reference: &OwnerReference, object: &O) -> bool {
    let own = owner_reference(object);
    reference.api_version == own.api_version && reference.kind == own.kind && reference.name == own.name
}

/// Returns true if a claim has a reference to a former object of this one's name.
pub(super) fn is_stale<O: Object>(claim: &PersistentVolumeClaim, object: &O) -> bool {
    let references = claim.metadata.owner_references.iter().flatten();
    references.into_iter().find(|r| names(r, object)).is_some_and(|r| r.uid != object.uid())
}

/// Owners that a claim should have instead of those that it has.
#[derive(Debug, PartialEq)]
pub(super) struct Owners {
    pub(super) references: Vec<OwnerReference>,
    /// Another controller owns the claim, and the policy is ignored for it.
    pub(super) conflict: bool,
}

/// Returns the owners that the claim of a pod should have; `None` if it has them, or if it belongs to former
/// objects. `scaled_away`: the pod's ordinal is out of the set's range.
pub(super) fn owners(
    set: &StatefulSet,
    pod: &Pod,
    claim: &PersistentVolumeClaim,
    scaled_away: bool,
) -> Option<Owners> {
    if is_stale(claim, set) || is_stale(claim, pod) {
        return None;
    }
    let retention = Retention::of(set);
    let has = claim.metadata.owner_references.clone().unwrap_or_default();
    let ours = |reference: &OwnerReference| names(reference, set) || names(reference, pod);
    let mut wanted: Vec<OwnerReference> = has.iter().filter(|r| !ours(r)).cloned().collect();
    let foreign = wanted.iter().any(|r| r.controller == Some(true));
    let conflict = foreign && retention != Retention::default();
    if !conflict {
        if retention.owner_is_set(scaled_away) {
            wanted.push(owner_reference(set));
        }
        if retention.owner_is_pod(scaled_away) {
            wanted.push(owner_reference(pod));
        }
    }
    let told = |all: &[OwnerReference]| {
        let mut all: Vec<(String, bool)> =
            all.iter().map(|r| (r.uid.clone(), r.controller == Some(true))).collect();
        all.sort();
        all
    };
    (told(&has) != told(&wanted)).then_some(Owners { references: wanted, conflict })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(when_deleted: &str, when_scaled: &str) -> StatefulSet {
        let policy = json!({"whenDeleted": when_deleted, "whenScaled": when_scaled});
        let spec = json!({"selector": {"matchLabels": {"app": "db"}}, "template": {}, "persistentVolumeClaimRetentionPolicy": policy});
        serde_json::from_value(
            json!({"metadata": {"name": "db", "namespace": "a", "uid": "s"}, "spec": spec}),
        )
        .unwrap()
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "db-1", "namespace": "a", "uid": "p"}})).unwrap()
    }

    fn reference(kind: &str, uid: &str) -> Value {
        match kind {
            "StatefulSet" => {
                json!({"apiVersion": "apps/v1", "kind": kind, "name": "db", "uid": uid, "controller": true})
            }
            "Pod" => {
                json!({"apiVersion": "v1", "kind": kind, "name": "db-1", "uid": uid, "controller": true})
            }
            _ => json!({"apiVersion": "x/v1", "kind": kind, "name": "x", "uid": uid, "controller": true}),
        }
    }

    fn claim(owners: &[Value]) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "data-db-1", "ownerReferences": owners}})).unwrap()
    }

    /// Uids of the owners that a claim of these owners gets; `None`: it stays.
    fn uids(set: &StatefulSet, owners: &[Value], scaled_away: bool) -> Option<Vec<String>> {
        let wanted = super::owners(set, &pod(), &claim(owners), scaled_away)?;
        Some(wanted.references.into_iter().map(|r| r.uid).collect())
    }

    #[test]
    fn the_policy_decides_who_owns_a_claim() {
        for (when_deleted, when_scaled, scaled_away, want) in [
            ("Retain", "Retain", false, vec![]),
            ("Retain", "Retain", true, vec![]),
            ("Delete", "Retain", false, vec!["s"]),
            ("Delete", "Retain", true, vec!["s"]),
            ("Retain", "Delete", false, vec![]),
            ("Retain", "Delete", true, vec!["p"]),
            ("Delete", "Delete", false, vec!["s"]),
            ("Delete", "Delete", true, vec!["p"]),
        ] {
            let set = set(when_deleted, when_scaled);
            for had in [vec![], vec!["s"], vec!["p"], vec!["s", "p"]] {
                let owners: Vec<Value> = had
                    .iter()
                    .map(|uid| reference(if *uid == "s" { "StatefulSet" } else { "Pod" }, uid))
                    .collect();
                let expected = (had != want).then(|| want.iter().map(|uid| (*uid).to_owned()).collect());
                let case = (when_deleted, when_scaled, scaled_away, &had);
                assert_eq!(uids(&set, &owners, scaled_away), expected, "{case:?}");
            }
        }
    }

    #[test]
    fn claims_of_others_and_of_former_objects_are_left_alone() {
        let set = set("Delete", "Delete");
        assert_eq!(uids(&set, &[reference("StatefulSet", "former")], false), None);
        assert_eq!(uids(&set, &[reference("Pod", "former")], true), None);
        assert_eq!(uids(&set, &[reference("Other", "o")], false), None, "its controller keeps it");
        let both = [reference("Other", "o"), reference("StatefulSet", "s")];
        assert_eq!(uids(&set, &both, false), Some(vec!["o".to_owned()]));
        let mut plain = reference("StatefulSet", "s");
        plain["controller"] = false.into();
        assert_eq!(uids(&set, &[plain], false), Some(vec!["s".to_owned()]), "made its controller");
    }

    #[test]
    fn a_claim_is_made_of_its_template() {
        let template = json!({"metadata": {"name": "data", "labels": {"a": "b"}}, "spec": {"accessModes": ["ReadWriteOnce"]}});
        let template: PersistentVolumeClaim = serde_json::from_value(template).unwrap();
        let made = serde_json::to_value(build(&set("Delete", "Retain"), &template, 4)).unwrap();
        let metadata = &made["metadata"];
        assert_eq!((&metadata["name"], &metadata["namespace"]), (&json!("data-db-4"), &json!("a")));
        assert_eq!(metadata["labels"], json!({"a": "b", "app": "db"}));
        assert_eq!(metadata["ownerReferences"][0]["uid"], "s");
        assert_eq!(made["spec"]["accessModes"], json!(["ReadWriteOnce"]));
    }
}
