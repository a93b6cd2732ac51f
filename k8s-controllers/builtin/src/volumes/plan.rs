//! Decides about a claim and about a volume. Pure.

use std::{cmp::Reverse, sync::Arc};

use k8s_controllers::EventType;
use k8s_core::{
    api::api::{
        core::v1::{Node, PersistentVolume, PersistentVolumeClaim},
        storage::v1::StorageClass,
    },
    meta::ObjectExt,
};

use super::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, PROVISIONED_BY,
    matching::{self, Among},
    volume_name,
};

/// Provisioner of classes whose volumes are made by hand.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// Content of an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) kind: EventType,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

fn warning(reason: &'static str, message: impl Into<String>) -> Word {
    Word { kind: EventType::Warning, reason, message: message.into() }
}

fn normal(reason: &'static str, message: impl Into<String>) -> Word {
    Word { kind: EventType::Normal, reason, message: message.into() }
}

/// Decision about a claim.
#[derive(Debug)]
pub(super) enum Verdict {
    Bind(Arc<PersistentVolume>),
    /// Give it this class: it was created when there was no default class.
    Classify(String),
    Pending(Option<Word>),
    /// The provisioner of this name makes a volume: say so in the claim's annotations, and by the event.
    Provision(String, Word),
    /// The claim was bound, and its volume is gone or another claim's.
    Lost(Word),
}

/// What is observed about a claim.
pub(super) struct Observed<'a> {
    pub(super) claim: &'a PersistentVolumeClaim,
    pub(super) volumes: &'a [Arc<PersistentVolume>],
    /// The class that the claim names, if it exists.
    pub(super) class: Option<&'a StorageClass>,
    /// Name of the default class.
    pub(super) default: Option<&'a str>,
    /// True if the scheduler has chosen a node for the claim's first pod.
    pub(super) is_placed: bool,
    /// That node, if it exists.
    pub(super) node: Option<&'a Node>,
    /// Names of pods without a node that refer to the claim.
    pub(super) waiting: &'a [String],
}

impl Observed<'_> {
    pub(super) fn verdict(&self) -> Verdict {
        let named = volume_name(self.claim);
        let volume = self.volumes.iter().find(|v| !named.is_empty() && v.name() == named);
        if self.claim.annotation(BIND_COMPLETED).is_some() {
            return self.bound(named, volume);
        }
        match volume {
            None if named.is_empty() => self.find(),
            None => Verdict::Pending(None),
            Some(volume) if matching::is_meant(volume, self.claim) => Verdict::Bind(volume.clone()),
            Some(volume) if matching::claim_of(volume).is_some() => {
                let message = format!("volume {named:?} already bound to a different claim.");
                Verdict::Pending(Some(warning("FailedBinding", message)))
            }
            Some(volume) => match matching::mismatch(volume, self.claim) {
                None => Verdict::Bind(volume.clone()),
                Some(why) => {
                    let message = format!("Cannot bind to requested volume {named:?}: {why}");
                    Verdict::Pending(Some(warning("VolumeMismatch", message)))
                }
            },
        }
    }

    fn bound(&self, named: &str, volume: Option<&Arc<PersistentVolume>>) -> Verdict {
        let lost = |what: &str| {
            let message = format!("Bound claim has lost {what}. Data on the volume is lost!");
            Verdict::Lost(warning("ClaimLost", message))
        };
        match volume {
            None if named.is_empty() => lost("reference to PersistentVolume"),
            None => lost("its PersistentVolume"),
            Some(volume) => match matching::claim_of(volume) {
                None => Verdict::Bind(volume.clone()),
                Some((_, _, Some(uid))) if uid == self.claim.uid() => Verdict::Bind(volume.clone()),
                Some(_) => {
                    let message = "Two claims are bound to the same volume, this one is bound incorrectly";
                    Verdict::Lost(warning("ClaimMisbound", message))
                }
            },
        }
    }

    /// Finds a volume for a claim that names none.
    fn find(&self) -> Verdict {
        let mode = self.class.and_then(|class| class.volume_binding_mode.as_deref());
        let delayed = mode == Some("WaitForFirstConsumer");
        let among = match self.node {
            Some(node) if delayed => Among::Of(node),
            _ if delayed => Among::Reserved,
            _ => Among::All,
        };
        match matching::best(self.claim, self.volumes, among) {
            Some(volume) => Verdict::Bind(volume),
            None if let Some(class) = self.default.filter(|_| !matching::has_class(self.claim)) => {
                Verdict::Classify(class.to_owned())
            }
            None if delayed && !self.is_placed => Verdict::Pending(Some(self.first_consumer())),
            None => match self.class.filter(|class| class.provisioner != NO_PROVISIONER) {
                Some(class) => {
                    Verdict::Provision(class.provisioner.clone(), provisioning(&class.provisioner))
                }
                None => Verdict::Pending(Some(self.unprovisioned())),
            },
        }
    }

    fn first_consumer(&self) -> Word {
        match self.waiting {
            [] => normal("WaitForFirstConsumer", "waiting for first consumer to be created before binding"),
            [pod] => normal("WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
            pods => {
                let message = format!("waiting for pods {} to be scheduled", pods.join(","));
                normal("WaitForPodScheduled", message)
            }
        }
    }

    fn unprovisioned(&self) -> Word {
        let name = matching::class_of_claim(self.claim);
        match self.class {
            Some(_) => normal(
                "FailedBinding",
                "no persistent volumes available for this claim and its storage class makes none",
            ),
            None if name.is_empty() => normal(
                "FailedBinding",
                "no persistent volumes available for this claim and no storage class is set",
            ),
            None => {
                warning("ProvisioningFailed", format!("storageclass.storage.k8s.io \"{name}\" not found"))
            }
        }
    }
}

fn provisioning(provisioner: &str) -> Word {
    let message = format!(
        "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
    );
    normal("ExternalProvisioning", message)
}

/// Returns the name of the default class: of several the newest.
pub(super) fn default_class(classes: &[Arc<StorageClass>]) -> Option<&str> {
    let is_default = |class: &&Arc<StorageClass>| {
        let keys = [
            "storageclass.kubernetes.io/is-default-class",
            "storageclass.beta.kubernetes.io/is-default-class",
        ];
        keys.iter().any(|key| class.annotation(key) == Some("true"))
    };
    let created = |class: &StorageClass| class.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let newest = classes.iter().filter(is_default).min_by_key(|c| (Reverse(created(c)), c.name().to_owned()));
    newest.map(|class| class.name())
}

/// Decision about a volume.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Set this phase.
    Phase(&'static str),
    /// Set the phase `Failed`, with the event's message.
    Failed(Word),
    /// Give up the binding: the claim is bound to another volume.
    Unbind,
    /// The claim does not fit: tell both, and leave the phase. The words are for volume and claim.
    Mismatch(Word, Word),
    /// The binding is not complete yet.
    Wait,
}

/// Decides about a volume. `claim` is the claim with the uid of its `claimRef`, if it exists.
pub(super) fn fate(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> Fate {
    if matching::claim_of(volume).is_none_or(|(_, _, uid)| uid.is_none()) {
        return Fate::Phase("Available");
    }
    let Some(claim) = claim else { return reclaim(volume) };
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    match volume_name(claim) {
        "" if !matching::has_mode_of(volume, claim) => Fate::Mismatch(
            warning(
                "VolumeMismatch",
                format!(
                    "Cannot bind PersistentVolume to requested PersistentVolumeClaim {:?} due to incompatible volumeMode.",
                    claim.name()
                ),
            ),
            warning(
                "VolumeMismatch",
                format!(
                    "Cannot bind PersistentVolume {:?} to requested PersistentVolumeClaim due to incompatible volumeMode.",
                    volume.name()
                ),
            ),
        ),
        "" => Fate::Wait,
        name if name == volume.name() => Fate::Phase("Bound"),
        _ if volume.annotation(PROVISIONED_BY).is_some() && policy == Some("Delete") => reclaim(volume),
        _ => Fate::Unbind,
    }
}

/// Decides about a volume whose claim is gone. Its content is up to the administrator or the provisioner.
fn reclaim(volume: &PersistentVolume) -> Fate {
    let Some(spec) = volume.spec.as_ref() else { return Fate::Phase("Released") };
    let external = spec.csi.is_some()
        || volume.annotation(PROVISIONED_BY).is_some_and(|name| !name.starts_with("kubernetes.io/"));
    match spec.persistent_volume_reclaim_policy.as_deref() {
        Some("Recycle") => {
            Fate::Failed(warning("VolumeFailedRecycle", "No recycler plugin found for the volume!"))
        }
        Some("Delete") if !external => {
            let why = match &spec.host_path {
                Some(host) => format!(
                    "the cluster deletes no hostPath volumes: remove the directory {:?} of the node and the PersistentVolume",
                    host.path
                ),
                None => "no deletable volume plugin matched".to_owned(),
            };
            let name = volume.name();
            let message = format!("error getting deleter volume plugin for volume {name:?}: {why}");
            Fate::Failed(warning("VolumeFailedDelete", message))
        }
        _ => Fate::Phase("Released"),
    }
}

/// Returns a volume without its claim. One that a user reserved stays so, without the claim's uid.
pub(super) fn unbound(volume: &PersistentVolume) -> PersistentVolume {
    let mut next = volume.clone();
    let annotations = next.metadata.annotations.as_mut();
    let ours = annotations.is_some_and(|all| all.remove(BOUND_BY_CONTROLLER).is_some());
    if let Some(spec) = &mut next.spec {
        if ours {
            spec.claim_ref = None;
        } else if let Some(reference) = &mut spec.claim_ref {
            reference.uid = None;
        }
    }
    next
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn claim(extra: Value, bound: bool) -> PersistentVolumeClaim {
        let mut spec =
            json!({"resources": {"requests": {"storage": "2Gi"}}, "accessModes": ["ReadWriteOnce"]});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let annotations = if bound { json!({BIND_COMPLETED: "yes"}) } else { json!({}) };
        let meta = json!({"name": "c", "namespace": "a", "uid": "u", "annotations": annotations});
        serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
    }

    fn volume(extra: Value) -> PersistentVolume {
        let mut spec = json!({"capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"]});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let status = json!({"phase": "Available"});
        serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": spec, "status": status})).unwrap()
    }

    fn of(name: &str, uid: &str) -> Value {
        json!({"claimRef": {"namespace": "a", "name": name, "uid": uid}})
    }

    /// `bind`, `pending` or `lost`, with the event's reason.
    fn verdict(claim: &PersistentVolumeClaim, volumes: Vec<PersistentVolume>, class: Option<&str>) -> String {
        let class = class.map(|mode| {
            let class = json!({"metadata": {"name": "s"}, "provisioner": "p", "volumeBindingMode": mode});
            serde_json::from_value::<StorageClass>(class).unwrap()
        });
        let volumes: Vec<Arc<PersistentVolume>> = volumes.into_iter().map(Arc::new).collect();
        let observed = Observed {
            claim,
            volumes: &volumes,
            class: class.as_ref(),
            default: None,
            is_placed: false,
            node: None,
            waiting: &[],
        };
        match observed.verdict() {
            Verdict::Bind(_) => "bind".into(),
            Verdict::Classify(class) => format!("class {class}"),
            Verdict::Pending(word) => format!("pending {}", word.map_or("-", |word| word.reason)),
            Verdict::Provision(by, word) => format!("{by} {}", word.reason),
            Verdict::Lost(word) => format!("lost {}", word.reason),
        }
    }

    #[test]
    fn claims_are_bound_pending_or_lost() {
        let named = || json!({"volumeName": "v"});
        for (bound, spec, volume, want) in [
            (false, json!({}), Some(volume(json!({}))), "bind"),
            (false, json!({}), None, "pending FailedBinding"),
            (false, json!({"storageClassName": "s"}), None, "pending ProvisioningFailed"),
            (false, named(), None, "pending -"),
            (false, named(), Some(volume(json!({}))), "bind"),
            (false, named(), Some(volume(json!({"volumeMode": "Block"}))), "pending VolumeMismatch"),
            (false, named(), Some(volume(of("c", ""))), "bind"),
            (false, named(), Some(volume(of("d", "w"))), "pending FailedBinding"),
            (true, json!({}), None, "lost ClaimLost"),
            (true, named(), None, "lost ClaimLost"),
            (true, named(), Some(volume(json!({}))), "bind"),
            (true, named(), Some(volume(of("c", "u"))), "bind"),
            (true, named(), Some(volume(of("c", "w"))), "lost ClaimMisbound"),
        ] {
            let found = verdict(&claim(spec.clone(), bound), volume.clone().into_iter().collect(), None);
            assert_eq!(found, want, "{bound} {spec} {volume:?}");
        }
        let classed = claim(json!({"storageClassName": "s"}), false);
        assert_eq!(verdict(&classed, vec![], Some("Immediate")), "p ExternalProvisioning");
        let delayed = Some("WaitForFirstConsumer");
        let free = volume(json!({"storageClassName": "s"}));
        assert_eq!(verdict(&classed, vec![free], delayed), "pending WaitForFirstConsumer");
        assert_eq!(verdict(&classed, vec![volume(of("c", ""))], delayed), "bind", "a reserved one at once");
    }

    #[test]
    fn a_default_class_that_comes_late_is_given() {
        let class = |name: &str, key: &str, day: u8| {
            let made = format!("2026-11-{day:02}T00:00:00Z");
            let metadata = json!({"name": name, "creationTimestamp": made, "annotations": {key: "true"}});
            let class = json!({"metadata": metadata, "provisioner": "p"});
            Arc::new(serde_json::from_value::<StorageClass>(class).unwrap())
        };
        let (own, beta) = (
            "storageclass.kubernetes.io/is-default-class",
            "storageclass.beta.kubernetes.io/is-default-class",
        );
        let all = [class("old", own, 1), class("z", beta, 5), class("new", own, 5), class("not", "other", 9)];
        assert_eq!(default_class(&all), Some("new"));
        assert_eq!(default_class(&all[3..]), None);
        let observe = |claim: &PersistentVolumeClaim, volumes: &[Arc<PersistentVolume>]| {
            let observed = Observed {
                claim,
                volumes,
                class: None,
                default: Some("new"),
                is_placed: false,
                node: None,
                waiting: &[],
            };
            matches!(observed.verdict(), Verdict::Classify(class) if class == "new")
        };
        assert!(observe(&claim(json!({}), false), &[]));
        assert!(!observe(&claim(json!({}), false), &[Arc::new(volume(json!({})))]), "a volume first");
        assert!(!observe(&claim(json!({"storageClassName": ""}), false), &[]), "it wants none");
    }

    #[test]
    fn volumes_have_a_fate() {
        let ours = claim(json!({"volumeName": "v"}), true);
        let elsewhere = claim(json!({"volumeName": "w"}), true);
        let open = claim(json!({}), false);
        let with = |policy: &str| {
            let mut spec = of("c", "u");
            spec["persistentVolumeReclaimPolicy"] = policy.into();
            volume(spec)
        };
        let reason = |fate: Fate| match fate {
            Fate::Failed(word) => word.reason.to_owned(),
            other => format!("{other:?}"),
        };
        let phase = |phase: &str| format!("Phase({phase:?})");
        assert_eq!(reason(fate(&volume(json!({})), None)), phase("Available"));
        assert_eq!(reason(fate(&volume(of("c", "")), Some(&open))), phase("Available"));
        assert_eq!(reason(fate(&with("Retain"), Some(&ours))), phase("Bound"));
        assert_eq!(fate(&with("Retain"), Some(&open)), Fate::Wait);
        assert_eq!(fate(&with("Retain"), Some(&elsewhere)), Fate::Unbind);
        assert_eq!(reason(fate(&with("Retain"), None)), phase("Released"));
        assert_eq!(reason(fate(&with("Delete"), None)), "VolumeFailedDelete");
        assert_eq!(reason(fate(&with("Recycle"), None)), "VolumeFailedRecycle");
        let mut provisioned = with("Delete");
        provisioned.metadata.annotations = Some([(PROVISIONED_BY.to_owned(), "x.io/y".to_owned())].into());
        assert_eq!(reason(fate(&provisioned, None)), phase("Released"), "its provisioner deletes it");
        assert_eq!(reason(fate(&provisioned, Some(&elsewhere))), phase("Released"));
        let mut raw = with("Retain");
        raw.spec.as_mut().unwrap().volume_mode = Some("Block".into());
        assert!(matches!(fate(&raw, Some(&open)), Fate::Mismatch(..)));
    }

    #[test]
    fn a_reservation_outlives_the_binding() {
        let mut ours = volume(of("c", "u"));
        assert_eq!(unbound(&ours).spec.unwrap().claim_ref.unwrap().uid, None);
        ours.metadata.annotations = Some([(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned())].into());
        assert_eq!(unbound(&ours).spec.unwrap().claim_ref, None);
    }
}
