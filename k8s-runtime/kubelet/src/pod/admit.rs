//! Admission: rejects pods that this node cannot run as specified, before anything is created for them.
//!
//! Flow: [`admit`] checks the specification alone. A pod that it rejects fails for good, with the reason.
//! [`for_sandbox`] checks what may change later, such as a missing RuntimeClass; the kubelet retries. Reasons
//! and messages are upstream's (`pkg/kubelet/sysctl`, `pkg/security/apparmor`, `pkg/kubelet/userns`).
//! Guarantee: a pod runs only with the isolation that it asks for.

use k8s_core::meta::ObjectExt;

use super::records;
use crate::{context::Context, sysctls::Sysctls, types::*};

const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Reason and message of a rejected pod's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Rejects a pod that this node must not run.
pub(crate) fn admit(pod: &Pod, sysctls: &Sysctls) -> Result<(), Refusal> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let wanted = spec.security_context.iter().flat_map(|s| s.sysctls.iter().flatten());
    for sysctl in wanted {
        sysctls.check(&sysctl.name, spec).map_err(|why| Refusal {
            reason: "SysctlForbidden",
            message: format!("forbidden sysctl: {why}"),
        })?;
    }
    let whole = spec.security_context.as_ref().and_then(|s| s.app_armor_profile.as_ref());
    let own = contexts(spec).filter_map(|s| s.app_armor_profile.as_ref());
    let mut annotations = pod.metadata.annotations.iter().flatten();
    let by_annotation =
        annotations.any(|(key, value)| key.starts_with(APPARMOR_ANNOTATION) && value != "unconfined");
    if whole.into_iter().chain(own).any(is_confined) || by_annotation {
        return Err(Refusal {
            reason: "AppArmor",
            message: format!("Cannot enforce AppArmor: {NO_APPARMOR}"),
        });
    }
    Ok(())
}

/// Upstream's message. It applies whatever the kernel supports, since the runtime sets no AppArmor profile.
const NO_APPARMOR: &str = "AppArmor is not enabled on the host";

fn is_confined(profile: &AppArmorProfile) -> bool {
    profile.type_ != "Unconfined"
}

/// Rejects a container whose isolation the runtime cannot provide. Ephemeral containers are checked here
/// only, since they are added after [`admit`].
pub(crate) fn container(security: &SecurityContext) -> Result<(), String> {
    if security.app_armor_profile.as_ref().is_some_and(is_confined) {
        return Err(format!("Cannot enforce AppArmor: {NO_APPARMOR}"));
    }
    if is_unmasked(security) {
        return Err(UNMASKED.to_owned());
    }
    Ok(())
}

const UNMASKED: &str = "`hostUsers` must be false to use `Unmasked`";

fn is_unmasked(security: &SecurityContext) -> bool {
    security.proc_mount.as_deref() == Some("Unmasked")
}

fn contexts(spec: &PodSpec) -> impl Iterator<Item = &SecurityContext> {
    let main = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let main = main.filter_map(|c| c.security_context.as_ref());
    main.chain(spec.ephemeral_containers.iter().flatten().filter_map(|c| c.security_context.as_ref()))
}

/// Returns an error if the pod's sandbox cannot be created now.
pub(crate) async fn for_sandbox(cx: &Context, pod: &Pod) -> Result<(), String> {
    let spec = pod.spec.clone().unwrap_or_default();
    if let Some(name) = spec.runtime_class_name.as_deref().filter(|n| !n.is_empty()) {
        let class = cx.client.all::<RuntimeClass>().get(name).await;
        let class = class.map_err(|e| format!("failed to lookup RuntimeClass {name}: {e}"))?;
        let handler = class.handler;
        // The runtime's containers are equivalent to runc's, and RuntimeClasses of existing clusters name
        // `runc`.
        if handler != "runc" && handler != records::runtime_name(cx) {
            return Err(format!("failed to get sandbox runtime: no runtime for {handler:?} is configured"));
        }
    }
    if spec.host_users == Some(false) {
        return Err("can't set `spec.hostUsers: false`, runtime does not support user namespaces".into());
    }
    if contexts(&spec).any(is_unmasked) {
        tracing::debug!(pod = %pod.key(), "procMount Unmasked without a user namespace");
        return Err(UNMASKED.to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn refusal(spec: Value, allowed: &[&str]) -> Option<(&'static str, String)> {
        let annotations = spec["annotations"].clone();
        let pod = json!({"metadata": {"annotations": annotations}, "spec": spec});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let allowed: Vec<String> = allowed.iter().map(|s| (*s).to_owned()).collect();
        admit(&pod, &Sysctls::new(&allowed).unwrap()).err().map(|r| (r.reason, r.message))
    }

    fn with_sysctl(name: &str, more: Value) -> Value {
        let mut spec =
            json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        spec
    }

    #[test]
    fn sysctls_are_safe_or_allowed_and_never_the_hosts() {
        let net = json!({"hostNetwork": true});
        let ipc = json!({"hostIPC": true});
        let forbidden = |name: &str, why: &str| Some(format!("forbidden sysctl: {name:?} {why}"));
        for (name, more, allowed, want) in [
            ("net.ipv4.ip_local_port_range", json!({}), &[][..], None),
            ("net/ipv4/tcp_rmem", json!({}), &[], None),
            ("kernel.shm_rmid_forced", net.clone(), &[], None),
            ("vm.swappiness", json!({}), &[], forbidden("vm.swappiness", "not allowlisted")),
            (
                "kernel.core_pattern",
                json!({}),
                &["net.*"],
                forbidden("kernel.core_pattern", "not allowlisted"),
            ),
            ("net.core.somaxconn", json!({}), &[], forbidden("net.core.somaxconn", "not allowlisted")),
            ("net.core.somaxconn", json!({}), &["net.core.*"], None),
            ("net/core/somaxconn", json!({}), &["net/core/somaxconn"], None),
            ("kernel.shmmax", json!({}), &["kernel.shm*"], None),
            (
                "net.ipv4.ip_local_port_range",
                net.clone(),
                &[],
                forbidden("net.ipv4.ip_local_port_range", "not allowed with host Net enabled"),
            ),
            (
                "net.core.somaxconn",
                net,
                &["net.*"],
                forbidden("net.core.somaxconn", "not allowed with host Net enabled"),
            ),
            (
                "kernel.shm_rmid_forced",
                ipc.clone(),
                &[],
                forbidden("kernel.shm_rmid_forced", "not allowed with host IPC enabled"),
            ),
            (
                "fs.mqueue.msg_max",
                ipc,
                &["fs.mqueue.*"],
                forbidden("fs.mqueue.msg_max", "not allowed with host IPC enabled"),
            ),
        ] {
            let have = refusal(with_sysctl(name, more.clone()), allowed);
            assert_eq!(have, want.map(|m| ("SysctlForbidden", m)), "{name} {more} {allowed:?}");
        }
    }

    #[test]
    fn only_namespaced_sysctls_can_be_allowed() {
        for pattern in ["kernel.*", "*", "vm.swappiness", "kernel.core_pattern", "net.a*b", "NET.x", ""] {
            assert!(Sysctls::new(&[pattern.to_owned()]).is_err(), "{pattern}");
        }
    }

    #[test]
    fn apparmor_is_refused_unless_unconfined() {
        let annotation = |value: &str| json!({"container.apparmor.security.beta.kubernetes.io/c": value});
        let profile = |type_: &str| json!({"appArmorProfile": {"type": type_}});
        let container = |type_: &str| json!([{"name": "c", "securityContext": profile(type_)}]);
        for (spec, refused) in [
            (json!({"containers": []}), false),
            (json!({"containers": [], "securityContext": profile("Unconfined")}), false),
            (json!({"containers": [], "securityContext": profile("RuntimeDefault")}), true),
            (json!({"containers": container("Unconfined")}), false),
            (json!({"containers": container("Localhost")}), true),
            (json!({"containers": [], "initContainers": container("RuntimeDefault")}), true),
            (json!({"containers": [], "annotations": annotation("unconfined")}), false),
            (json!({"containers": [], "annotations": annotation("runtime/default")}), true),
            (json!({"containers": [], "annotations": annotation("localhost/x")}), true),
        ] {
            let want = refused.then(|| {
                ("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned())
            });
            assert_eq!(refusal(spec.clone(), &[]), want, "{spec}");
        }
    }
}
