//! Decides which volumes are attached to a node. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::Arc,
    time::Duration,
};

use k8s_core::{
    api::{
        api::{
            core::v1::{
                AttachedVolume, CSIPersistentVolumeSource, Node, PersistentVolume, PersistentVolumeClaim, Pod,
            },
            storage::v1::{VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec},
        },
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    },
    meta::ObjectExt,
};
use ring::digest::{SHA256, digest};

use crate::pods;

/// Annotation of nodes whose kubelet leaves attaching to this controller.
const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// Prefix of the names of CSI volumes in a node's status.
const CSI: &str = "kubernetes.io/csi/";
/// Time after which a volume is detached from a node that is not ready, although it may be mounted.
pub(super) const LONGEST_UNMOUNT: Duration = Duration::from_secs(6 * 60);

/// What is observed about a node.
pub(super) struct Observed<'a> {
    pub(super) node: &'a Node,
    pub(super) is_ready: bool,
    /// Pods of the node.
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) claim: &'a (dyn Fn(&Pod, &str) -> Option<Arc<PersistentVolumeClaim>> + Sync),
    pub(super) volume: &'a (dyn Fn(&str) -> Option<Arc<PersistentVolume>> + Sync),
    /// Returns false for a driver whose volumes need not be attached.
    pub(super) is_attached_by: &'a (dyn Fn(&str) -> bool + Sync),
    /// The attachments of all nodes.
    pub(super) attachments: &'a [Arc<VolumeAttachment>],
    /// Returns the time since no pod of the node needs a volume.
    pub(super) unwanted: &'a (dyn Fn(&str) -> Duration + Sync),
}

/// An event of the pod with a uid.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) pod: String,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// What is to be done, in this order: the status is written before an attachment is deleted.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// `status.volumesAttached`, if it changes.
    pub(super) report: Option<Vec<AttachedVolume>>,
    pub(super) delete: Vec<Arc<VolumeAttachment>>,
    pub(super) create: Vec<VolumeAttachment>,
    pub(super) said: Vec<Said>,
    /// Volumes that are attached, or being attached, and that no pod needs.
    pub(super) unwanted: Vec<String>,
    /// Something waits for time to pass, or for another node.
    pub(super) waits: bool,
}

/// Returns the volume of an attachment.
pub(super) fn volume_of(attachment: &VolumeAttachment) -> Option<&str> {
    attachment.spec.source.persistent_volume_name.as_deref()
}

fn unique_name(source: &CSIPersistentVolumeSource) -> String {
    format!("{CSI}{}^{}", source.driver, source.volume_handle)
}

/// Returns the name that kubelets look an attachment up by.
pub(super) fn name_of(source: &CSIPersistentVolumeSource, node: &str) -> String {
    let text = format!("{}{}{node}", source.volume_handle, source.driver);
    digest(&SHA256, text.as_bytes()).as_ref().iter().fold("csi-".to_owned(), |mut name, byte| {
        // Writing to a String does not fail.
        let _ = write!(name, "{byte:02x}");
        name
    })
}

/// Returns true for a name of [`name_of`], of any volume and node.
pub(super) fn is_own_name(name: &str) -> bool {
    let digest = name.strip_prefix("csi-");
    digest.is_some_and(|digest| digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn is_attached(attachment: &VolumeAttachment) -> bool {
    !attachment.is_deleting() && attachment.status.as_ref().is_some_and(|status| status.attached)
}

/// Returns true for a volume that several nodes may use.
fn is_shared(volume: &PersistentVolume) -> bool {
    let modes = volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    modes.is_empty() || modes.iter().any(|mode| mode == "ReadWriteMany" || mode == "ReadOnlyMany")
}

impl Observed<'_> {
    /// Returns the volumes that the node's pods need, with the pods.
    fn wanted(&self) -> BTreeMap<String, (Arc<PersistentVolume>, Vec<Arc<Pod>>)> {
        let mut wanted: BTreeMap<String, (Arc<PersistentVolume>, Vec<Arc<Pod>>)> = BTreeMap::new();
        if self.node.annotation(MANAGED) != Some("true") {
            return wanted;
        }
        for pod in self.pods.iter().filter(|pod| !pods::is_terminal(pod)) {
            for claim in super::claim_names(pod) {
                let claim = (self.claim)(pod, &claim);
                let name = claim.as_deref().map(crate::volumes::volume_name).unwrap_or_default().to_owned();
                let Some(volume) = Some(&name).filter(|n| !n.is_empty()).and_then(|n| (self.volume)(n))
                else {
                    continue;
                };
                let source = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
                if source.is_some_and(|source| (self.is_attached_by)(&source.driver)) {
                    wanted.entry(name).or_insert_with(|| (volume, Vec::new())).1.push(pod.clone());
                }
            }
        }
        wanted
    }

    /// Returns true if a volume may be detached: it is not mounted, or its node is down.
    fn may_detach(&self, volume: &str, unique: &str) -> bool {
        let status = self.node.status.as_ref();
        let mounted = status.is_some_and(|s| s.volumes_in_use.iter().flatten().any(|name| name == unique));
        let mut taints = self.node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        let out_of_service = taints.any(|taint| taint.key == OUT_OF_SERVICE);
        let timed_out = !self.is_ready && (self.unwanted)(volume) > LONGEST_UNMOUNT;
        !mounted || out_of_service || timed_out
    }

    pub(super) fn plan(&self) -> Plan {
        let (wanted, mut plan) = (self.wanted(), Plan::default());
        let before =
            self.node.status.as_ref().and_then(|s| s.volumes_attached.as_deref()).unwrap_or_default();
        // Volumes of others stay as they are.
        let mut after: Vec<AttachedVolume> =
            before.iter().filter(|one| !one.name.starts_with(CSI)).cloned().collect();
        let (mut there, mut elsewhere) = (BTreeSet::new(), BTreeSet::new());
        for attachment in self.attachments {
            let Some(name) = volume_of(attachment) else { continue };
            if attachment.spec.node_name != self.node.name() {
                elsewhere.insert(name);
                continue;
            }
            there.insert(name);
            let volume = (self.volume)(name);
            let source = volume.as_ref().and_then(|volume| volume.spec.as_ref()?.csi.as_ref());
            let unique = source.map(unique_name).unwrap_or_default();
            let pods = wanted.get(name).map(|(_, pods)| pods);
            let told = before.iter().any(|one| one.name == unique);
            if pods.is_none() {
                plan.unwanted.push(name.to_owned());
                if attachment.is_deleting() {
                    continue;
                }
                if self.may_detach(name, &unique) {
                    plan.delete.push(attachment.clone());
                    continue;
                }
                plan.waits = true;
            }
            if is_attached(attachment) {
                let say = |pod: &Arc<Pod>| Said {
                    pod: pod.uid().to_owned(),
                    reason: "SuccessfulAttachVolume",
                    message: format!("AttachVolume.Attach succeeded for volume {name:?} "),
                };
                plan.said.extend(pods.into_iter().flatten().filter(|_| !told).map(say));
                after.push(AttachedVolume { name: unique, device_path: String::new() });
            } else if let Some(error) = attachment.status.as_ref().and_then(|s| s.attach_error.as_ref()) {
                let why = error.message.as_deref().unwrap_or_default();
                let say = |pod: &Arc<Pod>| Said {
                    pod: pod.uid().to_owned(),
                    reason: "FailedAttachVolume",
                    message: format!("AttachVolume.Attach failed for volume {name:?} : {why}"),
                };
                plan.said.extend(pods.into_iter().flatten().map(say));
            }
        }
        for (name, (volume, pods)) in &wanted {
            if there.contains(name.as_str()) {
                continue;
            }
            if elsewhere.contains(name.as_str()) && !is_shared(volume) {
                let message = format!(
                    "Multi-Attach error for volume {name:?} Volume is already exclusively attached to one node and can't be attached to another"
                );
                plan.said.extend(pods.iter().map(|pod| Said {
                    pod: pod.uid().to_owned(),
                    reason: "FailedAttachVolume",
                    message: message.clone(),
                }));
                plan.waits = true;
                continue;
            }
            plan.create.extend(self.build(volume));
        }
        after.sort_by(|a, b| a.name.cmp(&b.name));
        plan.report = (after != before).then_some(after);
        plan
    }

    fn build(&self, volume: &PersistentVolume) -> Option<VolumeAttachment> {
        let source = volume.spec.as_ref()?.csi.as_ref()?;
        let metadata = ObjectMeta { name: Some(name_of(source, self.node.name())), ..ObjectMeta::default() };
        let spec = VolumeAttachmentSpec {
            attacher: source.driver.clone(),
            node_name: self.node.name().to_owned(),
            source: VolumeAttachmentSource {
                persistent_volume_name: Some(volume.name().to_owned()),
                ..VolumeAttachmentSource::default()
            },
        };
        Some(VolumeAttachment { metadata, spec, status: None })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const UNIQUE: &str = "kubernetes.io/csi/x.io^h";

    /// Parts of a case about the volume `v` and the node `n`.
    struct Case {
        node: Node,
        has_pod: bool,
        is_ready: bool,
        shared: bool,
        required: bool,
        attachments: Vec<Arc<VolumeAttachment>>,
        unwanted: Duration,
    }

    fn attachment(node: &str, attached: bool) -> Arc<VolumeAttachment> {
        let source = json!({"persistentVolumeName": "v"});
        let made = json!({"metadata": {"name": node}, "spec": {"attacher": "x.io", "nodeName": node, "source": source},
            "status": {"attached": attached}});
        Arc::new(serde_json::from_value(made).unwrap())
    }

    fn case() -> Case {
        let node = json!({"metadata": {"name": "n", "annotations": {MANAGED: "true"}}, "status": {}});
        Case {
            node: serde_json::from_value(node).unwrap(),
            has_pod: true,
            is_ready: true,
            shared: false,
            required: true,
            attachments: Vec::new(),
            unwanted: Duration::ZERO,
        }
    }

    impl Case {
        /// The steps in words, with the report (`=` and the number of volumes) and the reasons of events.
        fn steps(&self) -> Vec<String> {
            let volumes = json!([{"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]);
            let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [], "volumes": volumes}});
            let pods: Vec<Arc<Pod>> =
                self.has_pod.then(|| Arc::new(serde_json::from_value(pod).unwrap())).into_iter().collect();
            let claim = || serde_json::from_value(json!({"metadata": {}, "spec": {"volumeName": "v"}})).ok();
            let mode = if self.shared { "ReadWriteMany" } else { "ReadWriteOnce" };
            let spec = json!({"csi": {"driver": "x.io", "volumeHandle": "h"}, "accessModes": [mode]});
            let volume = || serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": spec})).ok();
            let (required, unwanted) = (self.required, self.unwanted);
            let observed = Observed {
                node: &self.node,
                is_ready: self.is_ready,
                pods: &pods,
                claim: &|_, name| claim().filter(|_| name == "c").map(Arc::new),
                volume: &|name| volume().filter(|_| name == "v").map(Arc::new),
                is_attached_by: &|_| required,
                attachments: &self.attachments,
                unwanted: &|_| unwanted,
            };
            let plan = observed.plan();
            let report = plan.report.map(|all| format!("={}", all.len()));
            let delete = plan.delete.iter().map(|one| format!("-{}", one.name()));
            let create = plan.create.iter().map(|one| format!("+{}", one.spec.node_name));
            let said = plan.said.iter().map(|said| said.reason.to_owned());
            let waits = plan.waits.then(|| "waits".to_owned());
            report.into_iter().chain(delete).chain(create).chain(said).chain(waits).collect()
        }
    }

    const NONE: [&str; 0] = [];

    #[test]
    fn volumes_of_pods_are_attached_and_reported() {
        let mut case = case();
        assert_eq!(case.steps(), ["+n"]);
        case.required = false;
        assert_eq!(case.steps(), NONE, "the driver wants none");
        case.required = true;
        case.attachments = vec![attachment("n", false)];
        assert_eq!(case.steps(), NONE, "the attacher is at work");
        case.attachments = vec![attachment("n", true)];
        assert_eq!(case.steps(), ["=1", "SuccessfulAttachVolume"]);
        case.node.status =
            serde_json::from_value(json!({"volumesAttached": [{"name": UNIQUE, "devicePath": ""}]})).unwrap();
        assert_eq!(case.steps(), NONE);
        case.node.metadata.annotations = None;
        case.attachments.clear();
        assert_eq!(case.steps(), ["=0"], "the kubelet attaches by itself");
    }

    #[test]
    fn names_tell_whose_an_attachment_is() {
        let source = CSIPersistentVolumeSource {
            driver: "x.io".into(),
            volume_handle: "h".into(),
            ..Default::default()
        };
        assert!(is_own_name(&name_of(&source, "n")));
        assert!(!is_own_name("va-e2e-fqkdb") && !is_own_name("csi-abc"));
    }

    #[test]
    fn a_volume_is_on_one_node_unless_it_is_shared() {
        let mut case = case();
        case.attachments = vec![attachment("other", true)];
        assert_eq!(case.steps(), ["FailedAttachVolume", "waits"]);
        case.shared = true;
        assert_eq!(case.steps(), ["+n"]);
    }

    #[test]
    fn a_mounted_volume_is_not_detached() {
        let mut case = case();
        case.has_pod = false;
        case.attachments = vec![attachment("n", true)];
        let status = |used: &[&str]| {
            let attached = json!([{"name": UNIQUE, "devicePath": ""}]);
            serde_json::from_value(json!({"volumesAttached": attached, "volumesInUse": used})).unwrap()
        };
        case.node.status = status(&[UNIQUE]);
        assert_eq!(case.steps(), ["waits"]);
        case.unwanted = Duration::from_secs(361);
        assert_eq!(case.steps(), ["waits"], "a ready node unmounts it");
        case.is_ready = false;
        assert_eq!(case.steps(), ["=0", "-n"]);
        case.unwanted = Duration::ZERO;
        let taints = json!({"taints": [{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]});
        case.node.spec = serde_json::from_value(taints).unwrap();
        assert_eq!(case.steps(), ["=0", "-n"]);
        case.node.spec = None;
        case.node.status = status(&[]);
        assert_eq!(case.steps(), ["=0", "-n"]);
    }

    #[test]
    fn the_name_is_the_one_that_kubelets_compute() {
        let source = CSIPersistentVolumeSource {
            driver: "d".into(),
            volume_handle: "v".into(),
            ..CSIPersistentVolumeSource::default()
        };
        // The SHA-256 of "vdn".
        let want = ring::digest::digest(&SHA256, b"vdn");
        assert!(name_of(&source, "n").starts_with(&format!(
            "csi-{:02x}{:02x}",
            want.as_ref()[0],
            want.as_ref()[1]
        )));
        assert_eq!(name_of(&source, "n").len(), 4 + 64);
    }
}
