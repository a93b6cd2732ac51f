//! Controls of level restricted: pods run without privileges, and say so.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    baseline::{added, is_confined, masked, seccomp_fields},
    controls::Violation,
    pod::{Offenders, Pod, count, quote_all, security},
};
use crate::value::{array_at, str_at};

/// Minor version since which Windows pods need not set fields that only Linux has.
const WINDOWS: u32 = 25;
/// Minor version since which pods in a user namespace may run as its root.
const USER_NAMESPACES: u32 = 35;

/// Kinds of volumes that a pod may have.
const VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// Kinds of volumes that messages name. Others are `unknown`.
const OTHER_VOLUMES: [&str; 21] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "gitRepo",
    "nfs",
    "iscsi",
    "glusterfs",
    "rbd",
    "flexVolume",
    "cinder",
    "cephfs",
    "flocker",
    "fc",
    "azureFile",
    "vsphereVolume",
    "quobyte",
    "azureDisk",
    "photonPersistentDisk",
    "portworxVolume",
    "scaleIO",
    "storageos",
];

pub(super) fn privilege_escalation(pod: &Pod<'_>, minor: u32) -> Option<Violation> {
    if minor >= WINDOWS && pod.is_windows() {
        return None;
    }
    let found = Offenders::in_containers(pod, |container, _| {
        security(container, "/allowPrivilegeEscalation") != Some(&Value::Bool(false))
    });
    let who = found.names()?;
    let detail = format!("{who} must set securityContext.allowPrivilegeEscalation=false");
    Violation::new("allowPrivilegeEscalation != false", detail)
}

pub(super) fn capabilities(pod: &Pod<'_>, minor: u32) -> Option<Violation> {
    if minor >= WINDOWS && pod.is_windows() {
        return None;
    }
    let keeping = Offenders::in_containers(pod, |container, _| {
        !array_at(container, "/securityContext/capabilities/drop").iter().any(|name| name == "ALL")
    });
    let adding = Offenders::in_containers(pod, |container, values| {
        added(container, |name| name == "NET_BIND_SERVICE", values)
    });
    let mut problems = Vec::new();
    if let Some(who) = keeping.names() {
        problems.push(format!("{who} must set securityContext.capabilities.drop=[\"ALL\"]"));
    }
    if let Some(who) = adding.names() {
        let which = adding.quoted_values();
        problems.push(format!("{who} must not include {which} in securityContext.capabilities.add"));
    }
    if problems.is_empty() {
        return None;
    }
    Violation::new("unrestricted capabilities", problems.join("; "))
}

pub(super) fn proc_mount(pod: &Pod<'_>, _: u32) -> Option<Violation> {
    masked(pod)
}

pub(super) fn volumes(pod: &Pod<'_>, _: u32) -> Option<Violation> {
    let (mut names, mut kinds) = (Vec::new(), BTreeSet::new());
    for volume in pod.volumes() {
        let has = |kind: &&&str| volume.get(**kind).is_some_and(|source| !source.is_null());
        if VOLUMES.iter().find(has).is_none() {
            names.push(str_at(volume, "/name"));
            kinds.insert(OTHER_VOLUMES.iter().find(has).copied().unwrap_or("unknown"));
        }
    }
    if names.is_empty() {
        return None;
    }
    let (use_, noun) = (if names.len() == 1 { "uses" } else { "use" }, count("volume", names.len()));
    let types = count("restricted volume type", kinds.len());
    let detail = format!("{noun} {} {use_} {types} {}", quote_all(names), quote_all(kinds));
    Violation::new("restricted volume types", detail)
}

pub(super) fn run_as_non_root(pod: &Pod<'_>, minor: u32) -> Option<Violation> {
    if minor >= USER_NAMESPACES && pod.has_user_namespace() {
        return None;
    }
    const REASON: &str = "runAsNonRoot != true";
    let is_false = |value: &Value, _: &mut BTreeSet<String>| value == &Value::Bool(false);
    if let Some(who) = Offenders::in_contexts(pod, "/runAsNonRoot", is_false).names() {
        return Violation::new(REASON, format!("{who} must not set securityContext.runAsNonRoot=false"));
    }
    let who = unset(pod, "/runAsNonRoot", |value| value == &Value::Bool(true))?;
    Violation::new(REASON, format!("{who} must set securityContext.runAsNonRoot=true"))
}

pub(super) fn run_as_user(pod: &Pod<'_>, minor: u32) -> Option<Violation> {
    if minor >= USER_NAMESPACES && pod.has_user_namespace() {
        return None;
    }
    let is_root = |value: &Value, _: &mut BTreeSet<String>| value.as_i64() == Some(0);
    let who = Offenders::in_contexts(pod, "/runAsUser", is_root).names()?;
    Violation::new("runAsUser=0", format!("{who} must not set runAsUser=0"))
}

pub(super) fn seccomp(pod: &Pod<'_>, minor: u32) -> Option<Violation> {
    if minor >= WINDOWS && pod.is_windows() {
        return None;
    }
    if let Some(violation) = seccomp_fields(pod) {
        return Some(violation);
    }
    let who = unset(pod, "/seccompProfile", |profile| is_confined(str_at(profile, "/type")))?;
    let detail =
        format!("{who} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"");
    Violation::new("seccompProfile", detail)
}

/// Returns `pod or container "a"` for the containers without a field that the pod's context does not set
/// well either. `None`: it is set for all of them.
fn unset(pod: &Pod<'_>, pointer: &str, is_good: impl Fn(&Value) -> bool) -> Option<String> {
    if security(pod.spec, pointer).is_some_and(is_good) {
        return None;
    }
    let found = Offenders::in_containers(pod, |container, _| security(container, pointer).is_none());
    found.names().map(|who| format!("pod or {who}"))
}
