//! Controls of level baseline: known ways out of a container are closed.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    controls::Violation,
    pod::{Offenders, Pod, count, quote_all, security},
};
use crate::value::{array_at, bool_at, int_at, str_at};

/// Prefix of the annotation that chose a container's AppArmor profile before the field did.
const APP_ARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
/// Annotation that chose a pod's seccomp profile.
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
/// Prefix of the annotation that chose a container's seccomp profile.
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";

/// Capabilities that a container may add: those that runtimes give by default.
const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Sysctls that a pod may set, with the minor version since which it may.
const SYSCTLS: [(&str, u32); 12] = [
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
];

/// Types of SELinux that may be set, with the minor version since which they may.
const SE_LINUX_TYPES: [(&str, u32); 5] = [
    ("", 0),
    ("container_t", 0),
    ("container_init_t", 0),
    ("container_kvm_t", 0),
    ("container_engine_t", 31),
];

fn is_known(table: &[(&str, u32)], name: &str, minor: u32) -> bool {
    table.iter().any(|(known, since)| *known == name && minor >= *since)
}

/// Returns true for profile types that confine: that of the runtime and one of the node.
pub(super) fn is_confined(kind: &str) -> bool {
    matches!(kind, "RuntimeDefault" | "Localhost")
}

pub(super) fn app_armor(pod: &Pod<'_>, _: u32) -> Option<Violation> {
    let found = Offenders::in_contexts(pod, "/appArmorProfile", |profile, values| {
        let kind = str_at(profile, "/type");
        !is_confined(kind) && keep(values, kind)
    });
    let mut annotations: Vec<String> = pod
        .annotations()
        .into_iter()
        .flatten()
        .filter(|(key, _)| key.starts_with(APP_ARMOR_ANNOTATION))
        .filter_map(|(key, value)| Some((key, value.as_str()?)))
        .filter(|(_, value)| !matches!(*value, "" | "runtime/default") && !value.starts_with("localhost/"))
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    annotations.sort();
    let mut who: Vec<String> = found.names().into_iter().collect();
    if !annotations.is_empty() {
        who.push(count("annotation", annotations.len()));
    }
    if who.is_empty() {
        return None;
    }
    let values: Vec<String> = found.values.into_iter().chain(annotations).collect();
    let detail =
        format!("{} must not set AppArmor profile type to {}", who.join(" and "), quote_all(&values));
    Violation::new(count("forbidden AppArmor profile", values.len()), detail)
}

pub(super) fn capabilities(pod: &Pod<'_>, _: u32) -> Option<Violation> {
    let found = Offenders::in_containers(pod, |container, values| {
        added(container, |name| CAPABILITIES.contains(&name), values)
    });
    found.names()?;
    let (who, which) = (found.container_names(), found.quoted_values());
    let detail = format!("{who} must not include {which} in securityContext.capabilities.add");
    Violation::new("non-default capabilities", detail)
}

/// Collects the capabilities that a container adds and may not. Returns true if there are any.
pub(super) fn added(container: &Value, may: impl Fn(&str) -> bool, values: &mut BTreeSet<String>) -> bool {
    let added = array_at(container, "/securityContext/capabilities/add").iter().filter_map(Value::as_str);
    let mut any = false;
    for name in added.filter(|name| !may(name)) {
        any = keep(values, name);
    }
    any
}

pub(super) fn host_namespaces(pod: &Pod<'_>, _: u32) -> Option<Violation> {
    let shared: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|field| pod.spec.get(**field) == Some(&Value::Bool(true)))
        .map(|field| format!("{field}=true"))
        .collect();
    if shared.is_empty() {
        return None;
    }
    Violation::new("host namespaces", shared.join(", "))
}

pub(super) fn host_path_volumes(pod: &Pod<'_>, _: u32) -> Option<Violation> {
    let of_host = |volume: &&Value| volume.get("hostPath").is_some_and(|source| !source.is_null());
    let names: Vec<&str> = pod.volumes().iter().filter(of_host).map(|v| str_at(v, "/name")).collect();
    if names.is_empty() {
        return None;
    }
    Violation::new("hostPath volumes", format!("{} {}", count("volume", names.len()), quote_all(names)))
}

pub(super) fn host_ports(pod: &Pod<'_>, _: u32) -> Option<Violation> {
    let found = Offenders::in_containers(pod, |container, values| {
        let ports = array_at(container, "/ports").iter().filter_map(|port| int_at(port, "/hostPort"));
        let mut any = false;
        for port in ports.filter(|port| *port != 0) {
            any = keep(values, &port.to_string());
        }
        any
    });
    found.names()?;
    let use_ = if found.containers.len() == 1 { "uses" } else { "use" };
    let ports: Vec<&str> = found.values.iter().map(String::as_str).collect();
    let (who, noun) = (found.container_names(), count("hostPort", ports.len()));
    Violation::new("hostPort", format!("{who} {use_} {noun} {}", ports.join(", ")))
}

/// Fields of a container that name a handler with a host.
const HANDLERS: [&str; 5] =
    ["/livenessProbe", "/readinessProbe", "/startupProbe", "/lifecycle/postStart", "/lifecycle/preStop"];

pub(super) fn probe_hosts(pod: &Pod<'_>, _: u32) -> Option<Violation> {
    let mut found = Offenders::in_containers(pod, |container, values| {
        let mut any = false;
        for handler in HANDLERS {
            for kind in ["httpGet", "tcpSocket"] {
                let host = str_at(container, &format!("{handler}/{kind}/host"));
                any |= !host.is_empty() && keep(values, host);
            }
        }
        any
    });
    found.names()?;
    found.containers.sort_unstable();
    found.containers.dedup();
    let use_ = if found.containers.len() == 1 { "uses" } else { "use" };
    let noun = count("probe or lifecycle host", found.values.len());
    let detail = format!("{} {use_} {noun} {}", found.container_names(), found.quoted_values());
    Violation::new("probe or lifecycle host", detail)
}

pub(super) fn privileged(pod: &Pod<'_>, _: u32) -> Option<Violation> {
    let found =
        Offenders::in_containers(pod, |container, _| bool_at(container, "/securityContext/privileged"));
    let who = found.names()?;
    Violation::new("privileged", format!("{who} must not set securityContext.privileged=true"))
}

/// Since 1.35 pods in a user namespace may unmask /proc.
pub(super) fn proc_mount(pod: &Pod<'_>, minor: u32) -> Option<Violation> {
    if minor >= 35 && pod.has_user_namespace() { None } else { masked(pod) }
}

/// Requires the default mount of /proc.
pub(super) fn masked(pod: &Pod<'_>) -> Option<Violation> {
    let found = Offenders::in_containers(pod, |container, values| {
        let kind = security(container, "/procMount").and_then(Value::as_str);
        kind.is_some_and(|kind| kind != "Default" && keep(values, kind))
    });
    let who = found.names()?;
    let detail = format!("{who} must not set securityContext.procMount to {}", found.quoted_values());
    Violation::new("procMount", detail)
}

pub(super) fn se_linux(pod: &Pod<'_>, minor: u32) -> Option<Violation> {
    let (mut user, mut role) = (false, false);
    let found = Offenders::in_contexts(pod, "/seLinuxOptions", |options, types| {
        let kind = str_at(options, "/type");
        let wrong = !is_known(&SE_LINUX_TYPES, kind, minor) && keep(types, kind);
        let sets = |field| !str_at(options, field).is_empty();
        user |= sets("/user");
        role |= sets("/role");
        wrong || sets("/user") || sets("/role")
    });
    let who = found.names()?;
    let mut problems = Vec::new();
    if !found.values.is_empty() {
        problems.push(format!("{} {}", count("type", found.values.len()), found.quoted_values()));
    }
    if user {
        problems.push("user may not be set".to_owned());
    }
    if role {
        problems.push("role may not be set".to_owned());
    }
    let detail = format!("{who} set forbidden securityContext.seLinuxOptions: {}", problems.join("; "));
    Violation::new("seLinuxOptions", detail)
}

/// Before 1.19 annotations chose the profile.
pub(super) fn seccomp(pod: &Pod<'_>, minor: u32) -> Option<Violation> {
    if minor < 19 { seccomp_annotations(pod) } else { seccomp_fields(pod) }
}

fn seccomp_annotations(pod: &Pod<'_>) -> Option<Violation> {
    let annotations = pod.annotations()?;
    let of_containers = pod.containers().map(|c| format!("{SECCOMP_CONTAINER}{}", str_at(c, "/name")));
    let forbidden: BTreeSet<String> = std::iter::once(SECCOMP_POD.to_owned())
        .chain(of_containers)
        .filter_map(|key| {
            let value = annotations.get(&key)?.as_str()?;
            let fine = matches!(value, "runtime/default" | "docker/default");
            (!fine && !value.starts_with("localhost/")).then(|| format!("{key}={value:?}"))
        })
        .collect();
    if forbidden.is_empty() {
        return None;
    }
    let list: Vec<&str> = forbidden.iter().map(String::as_str).collect();
    let detail = format!("forbidden {} {}", count("annotation", list.len()), list.join(", "));
    Violation::new("seccompProfile", detail)
}

/// Refuses profiles that do not confine. A profile that is not set is fine.
pub(super) fn seccomp_fields(pod: &Pod<'_>) -> Option<Violation> {
    let found = Offenders::in_contexts(pod, "/seccompProfile", |profile, values| {
        let kind = str_at(profile, "/type");
        !is_confined(kind) && keep(values, kind)
    });
    let who = found.names()?;
    let values = found.quoted_values();
    let detail = format!("{who} must not set securityContext.seccompProfile.type to {values}");
    Violation::new("seccompProfile", detail)
}

pub(super) fn sysctls(pod: &Pod<'_>, minor: u32) -> Option<Violation> {
    let all = array_at(pod.spec, "/securityContext/sysctls").iter().map(|sysctl| str_at(sysctl, "/name"));
    let forbidden: Vec<&str> = all.filter(|name| !is_known(&SYSCTLS, name, minor)).collect();
    if forbidden.is_empty() {
        return None;
    }
    Violation::new("forbidden sysctls", forbidden.join(", "))
}

pub(super) fn windows_host_process(pod: &Pod<'_>, _: u32) -> Option<Violation> {
    let is_true = |value: &Value, _: &mut BTreeSet<String>| value == &Value::Bool(true);
    let who = Offenders::in_contexts(pod, "/windowsOptions/hostProcess", is_true).names()?;
    let detail = format!("{who} must not set securityContext.windowsOptions.hostProcess=true");
    Violation::new("hostProcess", detail)
}

/// Adds a value. Returns true, for use in conditions.
fn keep(values: &mut BTreeSet<String>, value: &str) -> bool {
    values.insert(value.to_owned());
    true
}
