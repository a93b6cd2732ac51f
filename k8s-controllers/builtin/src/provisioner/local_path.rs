//! The driver of the class `local-path`: a volume is a directory of the node of its first pod.
//!
//! Flow: [`LocalPath::provision`] only names the directory. The kubelet of the node makes it when it mounts
//! the volume, and removes it when [`LocalPath::delete`] asks it to, through the API server's proxy to nodes
//! (`DELETE /api/v1/nodes/NODE/proxy/localVolumes/HANDLE`).
//!
//! Guarantee: a volume removes no directory but that of its own name, and its request goes nowhere but to the
//! kubelet's own port of a node: names with `:` or `/` are refused before anything is sent.
//! Not here: limits. The capacity is recorded and not enforced.

use std::collections::BTreeMap;

use http::Method;
use k8s_controllers::Context;
use k8s_core::{
    api::api::core::v1::{
        CSIPersistentVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume,
        PersistentVolumeSpec, VolumeNodeAffinity,
    },
    meta::ObjectExt,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{Failure, Provisioner, Wanted};

/// Name of the driver: the provisioner of the class `local-path`, and the CSI driver of its volumes.
pub const DRIVER: &str = "local-path.hyperkube.dev";
/// Attribute of a volume with the name of its node.
const NODE: &str = "node";
/// Most bytes of the name of a directory that the driver makes.
const LONGEST: usize = 200;
/// Most bytes of a directory's name on a file system.
const LONGEST_NAME: usize = 255;
/// Most bytes of a node's name.
const LONGEST_NODE: usize = 253;

/// The driver of the class `local-path`.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalPath;

/// Returns the name of a volume's directory.
fn handle(wanted: &Wanted<'_>) -> String {
    let mut name = format!("{}_{}_{}", wanted.volume, wanted.claim.namespace(), wanted.claim.name());
    // Names are ASCII.
    name.truncate(LONGEST);
    name
}

/// Returns what a claim asks for and no directory has.
fn refused(wanted: &Wanted<'_>) -> Option<String> {
    let spec = wanted.claim.spec.clone().unwrap_or_default();
    let modes = spec.access_modes.unwrap_or_default();
    if let Some(mode) =
        modes.iter().find(|mode| !["ReadWriteOnce", "ReadWriteOncePod"].contains(&mode.as_str()))
    {
        return Some(format!(
            "spec.accessModes: {mode} is not supported, only ReadWriteOnce and ReadWriteOncePod"
        ));
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Some("spec.volumeMode: Block is not supported, only Filesystem".into());
    }
    if spec.selector.is_some() {
        return Some("spec.selector is not supported".into());
    }
    if let Some(name) = wanted.class.parameters.iter().flat_map(BTreeMap::keys).next() {
        return Some(format!("parameter {name:?} of the class is not supported; there are none"));
    }
    let options = wanted.class.mount_options.as_ref().is_some_and(|options| !options.is_empty());
    options.then(|| {
        "Mount options are not supported by the provisioner but StorageClass has mount options".into()
    })
}

impl Provisioner for LocalPath {
    fn name(&self) -> &'static str {
        DRIVER
    }

    async fn provision(&self, _: &Context, wanted: &Wanted<'_>) -> Result<PersistentVolumeSpec, Failure> {
        spec(wanted)
    }

    async fn delete(&self, cx: &Context, volume: &PersistentVolume) -> Result<(), Failure> {
        let Some(path) = target(volume)? else { return Ok(()) };
        match cx.client().bytes(Method::DELETE, &path, "", "").await {
            // The node is gone and the directory with it, or this kubelet makes no such directories.
            Err(e) if e.is_not_found() => Ok(()),
            other => other.map(drop).map_err(|e| Failure::again(format!("remove the directory: {e}"))),
        }
    }
}

fn spec(wanted: &Wanted<'_>) -> Result<PersistentVolumeSpec, Failure> {
    if let Some(why) = refused(wanted) {
        return Err(Failure::again(why));
    }
    let node = wanted.node.ok_or_else(|| {
        Failure::again("no node was chosen: the class must have volumeBindingMode: WaitForFirstConsumer")
    })?;
    const HOST: &str = "kubernetes.io/hostname";
    let host = node
        .label(HOST)
        .ok_or_else(|| Failure::elsewhere(format!("node {:?} has no label {HOST}", node.name())))?;
    let here = NodeSelectorRequirement {
        key: HOST.into(),
        operator: "In".into(),
        values: Some(vec![host.to_owned()]),
    };
    let term = NodeSelectorTerm { match_expressions: Some(vec![here]), match_fields: None };
    Ok(PersistentVolumeSpec {
        csi: Some(CSIPersistentVolumeSource {
            driver: DRIVER.into(),
            volume_handle: handle(wanted),
            volume_attributes: Some([(NODE.to_owned(), node.name().to_owned())].into()),
            ..CSIPersistentVolumeSource::default()
        }),
        node_affinity: Some(VolumeNodeAffinity {
            required: Some(NodeSelector { node_selector_terms: vec![term] }),
        }),
        ..PersistentVolumeSpec::default()
    })
}

/// Returns true for a name of a node. Others, such as `node:6443`, mean other ports to the proxy.
fn is_subdomain(name: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.iter().all(|c| inner(*c) || *c == b'-')
            && bytes.first().is_some_and(|c| inner(*c))
            && bytes.last().is_some_and(|c| inner(*c))
    };
    name.len() <= LONGEST_NODE && name.split('.').all(label)
}

/// Returns true for what can be the name of a directory.
fn is_directory(name: &str) -> bool {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= LONGEST_NAME && !name.starts_with('.') && name.chars().all(valid)
}

/// Returns the path of the request that removes a volume's directory. `None`: it has no node.
///
/// # Errors
/// The volume was written by hand, and names what is not its own.
fn target(volume: &PersistentVolume) -> Result<Option<String>, Failure> {
    let Some(csi) = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()) else {
        return Err(Failure::again("spec.csi: the volume has another source"));
    };
    let handle = &csi.volume_handle;
    // Whoever writes a PersistentVolume by hand names any directory. Only its own is removed.
    if csi.driver != DRIVER || !handle.strip_prefix(volume.name()).is_some_and(|rest| rest.starts_with('_')) {
        let why =
            format!("spec.csi.volumeHandle: {handle:?} is not the directory of volume {:?}", volume.name());
        return Err(Failure::again(why));
    }
    if !is_directory(handle) {
        let why = format!(
            "spec.csi.volumeHandle: {handle:?} is not the name of a directory: at most \
             {LONGEST_NAME} letters, digits, '-', '_' and '.', and no '.' first"
        );
        return Err(Failure::again(why));
    }
    let node = csi.volume_attributes.as_ref().and_then(|all| all.get(NODE));
    if let Some(node) = node.filter(|node| !is_subdomain(node)) {
        let why = format!(
            "spec.csi.volumeAttributes[{NODE}]: {node:?} is not the name of a node: \
             lower case letters, digits, '-' and '.'"
        );
        return Err(Failure::again(why));
    }
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    Ok(node.map(|node| format!("/api/v1/nodes/{}/proxy/localVolumes/{}", encoded(node), encoded(handle))))
}

#[cfg(test)]
mod tests {
    use k8s_core::api::api::{
        core::v1::{Node, PersistentVolumeClaim},
        storage::v1::StorageClass,
    };
    use serde_json::{Value, json};

    use super::*;

    fn made(claim: Value, class: Value, node: Option<&str>) -> Result<PersistentVolumeSpec, String> {
        let meta = json!({"name": "c".repeat(253), "namespace": "a", "uid": "u"});
        let claim: PersistentVolumeClaim =
            serde_json::from_value(json!({"metadata": meta, "spec": claim})).unwrap();
        let mut full = json!({"metadata": {"name": "local-path"}, "provisioner": DRIVER});
        full.as_object_mut().unwrap().extend(class.as_object().unwrap().clone());
        let class: StorageClass = serde_json::from_value(full).unwrap();
        let node: Option<Node> = node.map(|host| {
            let labels = json!({"kubernetes.io/hostname": host});
            serde_json::from_value(json!({"metadata": {"name": "n.x", "labels": labels}})).unwrap()
        });
        let wanted = Wanted { volume: "pvc-u", claim: &claim, class: &class, node: node.as_ref() };
        spec(&wanted).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_volume_is_a_directory_of_its_node() {
        let spec = made(json!({"accessModes": ["ReadWriteOnce"]}), json!({}), Some("h")).unwrap();
        let volume = |name: &str, spec: &PersistentVolumeSpec| -> PersistentVolume {
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
        };
        let path = target(&volume("pvc-u", &spec)).unwrap().unwrap();
        assert!(path.starts_with("/api/v1/nodes/n%2Ex/proxy/localVolumes/pvc%2Du%5Fa%5Fccc"), "{path}");
        let csi = spec.csi.clone().unwrap();
        assert_eq!(csi.volume_handle.len(), LONGEST);
        let affinity = serde_json::to_value(&spec.node_affinity).unwrap();
        assert_eq!(
            affinity.pointer("/required/nodeSelectorTerms/0/matchExpressions/0/values"),
            Some(&json!(["h"]))
        );

        // A volume that somebody wrote removes no directory of another.
        for name in ["pvc-v", "pvc-", "pvc"] {
            assert!(target(&volume(name, &spec)).is_err(), "{name}");
        }
        let mut other = spec.clone();
        other.csi.as_mut().unwrap().volume_handle = "../pvc-u_a".into();
        assert!(target(&volume("pvc-u", &other)).is_err());
    }

    #[test]
    fn a_request_goes_to_a_node_and_its_kubelet_only() {
        let volume = |name: &str, node: &str, handle: &str| -> PersistentVolume {
            let csi = json!({"driver": DRIVER, "volumeHandle": handle, "volumeAttributes": {"node": node}});
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"csi": csi}})).unwrap()
        };
        let long = format!("v_{}", "a".repeat(254));
        for (node, handle, field) in [
            ("vm:6443", "v_a", "volumeAttributes[node]"),
            ("https:vm:6443", "v_a", "volumeAttributes[node]"),
            ("vm/proxy", "v_a", "volumeAttributes[node]"),
            ("..", "v_a", "volumeAttributes[node]"),
            ("", "v_a", "volumeAttributes[node]"),
            ("VM", "v_a", "volumeAttributes[node]"),
            ("vm-", "v_a", "volumeAttributes[node]"),
            ("vm%3A1", "v_a", "volumeAttributes[node]"),
            (&"a".repeat(254), "v_a", "volumeAttributes[node]"),
            ("vm", "v_a/../b", "volumeHandle"),
            ("vm", "v_a?x", "volumeHandle"),
            ("vm", "v_%2F", "volumeHandle"),
            ("vm", "v_\0", "volumeHandle"),
            ("vm", &long, "volumeHandle"),
        ] {
            let failure = target(&volume("v", node, handle)).unwrap_err();
            assert!(failure.to_string().contains(field), "{node} {handle}: {failure}");
            assert!(failure.remedy == crate::provisioner::Remedy::Again, "{failure}");
        }
        assert!(target(&volume(".v", "vm", ".v_a")).is_err(), "hidden directories are the kubelet's own");
        let path = target(&volume("v", "vm-0.x", "v_a_B.c")).unwrap();
        assert_eq!(path.as_deref(), Some("/api/v1/nodes/vm%2D0%2Ex/proxy/localVolumes/v%5Fa%5FB%2Ec"));
    }

    #[test]
    fn what_a_directory_cannot_do_is_refused() {
        for (claim, class, want) in [
            (json!({"accessModes": ["ReadWriteMany"]}), json!({}), "ReadWriteMany"),
            (json!({"volumeMode": "Block"}), json!({}), "Block"),
            (json!({"selector": {}}), json!({}), "spec.selector"),
            (json!({}), json!({"parameters": {"nodePath": "/x"}}), "nodePath"),
            (json!({}), json!({"mountOptions": ["ro"]}), "Mount options"),
        ] {
            let why = made(claim, class, Some("h")).unwrap_err();
            assert!(why.contains(want), "{why}");
        }
        assert!(made(json!({}), json!({}), None).unwrap_err().contains("WaitForFirstConsumer"));
    }
}
