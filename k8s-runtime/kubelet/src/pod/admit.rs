//! Admission: rejects pods that this node cannot run as specified, before anything is created for them.
//!
//! Flow: [`admit`] checks, in upstream's order, the pressure of the node ([`under_pressure`]), the
//! specification alone ([`before_fit`], [`isolation`]), and the room beside the other pods ([`fit`]). A pod
//! that is rejected fails for good, with the reason. A critical pod that lacks resources preempts others
//! ([`preempt`]). [`for_sandbox`] checks what may change later, such as a missing RuntimeClass; the kubelet
//! retries. Reasons and messages are upstream's (`pkg/kubelet/lifecycle`, `pkg/kubelet/eviction`,
//! `pkg/kubelet/sysctl`, `pkg/security/apparmor`, `pkg/kubelet/userns`).
//! Guarantees:
//! 1. A pod runs only with the isolation that it asks for.
//! 2. The requests of admitted pods fit the node's allocatable resources, and no two have the same host port,
//!    but for pods that an earlier kubelet admitted ([`crate::ledger`]).

mod fit;
mod preempt;

pub(crate) use preempt::is_critical;

use std::{borrow::Cow, time::Duration};

use super::{allocate, records};
use crate::{
    context::Context,
    eviction::EVICTED,
    ledger::{Disruption, Entry, Held, Leash},
    node,
    resources::{Qos, qos},
    sysctls::Sysctls,
    types::*,
};
use k8s_core::{
    events::involved_container,
    meta::{ObjectExt, node::is_tolerated},
};

const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Reason and message of a rejected pod's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: Cow<'static, str>,
    pub(crate) message: String,
}

/// Beginning of the status message of a rejected pod.
const REJECTED: &str = "Pod was rejected: ";

impl Refusal {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Refusal { reason: reason.into(), message: message.into() }
    }

    /// Returns the message of the pod's status.
    pub(crate) fn status_message(&self) -> String {
        format!("{REJECTED}{}", self.message)
    }

    /// Returns the refusal that a pod's status tells, if a kubelet rejected it before.
    fn recorded(status: &PodStatus) -> Option<Self> {
        let message = status.message.as_deref()?.strip_prefix(REJECTED)?;
        let is_failed = status.phase.as_deref() == Some("Failed") && status.container_statuses.is_none();
        is_failed.then(|| Refusal {
            reason: status.reason.clone().unwrap_or_default().into(),
            message: message.into(),
        })
    }
}

/// Returns `true` for pods that a kubelet admitted before and that are not over: they have sandboxes here, or
/// a start time.
pub(crate) fn was_admitted(pod: &Pod, has_sandboxes: bool) -> bool {
    let has_started = pod.status.as_ref().is_some_and(|s| s.start_time.is_some());
    !is_over(pod) && (has_sandboxes || has_started)
}

/// Returns `true` if the pod's phase is terminal.
fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Failed" | "Succeeded"))
}

/// Admits a pod, or returns the reason for which it is rejected. Pods that are over or being deleted are not
/// checked, since nothing is started for them.
pub(crate) async fn admit(cx: &Context, pod: &Pod, has_sandboxes: bool) -> Result<Leash, Refusal> {
    if is_over(pod) {
        let recorded = pod.status.as_ref().and_then(Refusal::recorded);
        return recorded.map_or_else(|| Ok(Leash::default()), Err);
    }
    if has_sandboxes {
        return Ok(cx.ledger.hold(pod));
    }
    if pod.is_deleting() {
        return Ok(Leash::default());
    }
    if was_admitted(pod, has_sandboxes) {
        isolation(pod, &cx.sysctls)?;
        return Ok(cx.ledger.hold(pod));
    }
    under_pressure(pod, &cx.pressure.names())?;
    sysctls(pod, &cx.sysctls)?;
    before_fit(pod)?;
    let leash = fitting(cx, pod).await?;
    if let Err(refusal) = app_armor(pod) {
        allocate::release(cx, pod.uid());
        return Err(refusal);
    }
    Ok(leash)
}

/// Admits a pod if it fits. Where only resources are missing, a critical pod preempts others.
async fn fitting(cx: &Context, pod: &Pod) -> Result<Leash, Refusal> {
    let mut node = node::cached(cx);
    let mut is_fresh = false;
    loop {
        let failures = match cx.ledger.admit(pod, |held| match fit::failures(pod, &node, held) {
            none if none.is_empty() => Ok(()),
            some => Err(some),
        }) {
            Ok(leash) => return Ok(leash),
            Err(failures) => failures,
        };
        if !is_fresh && failures.iter().all(fit::Failure::is_affinity) {
            // The labels may have been changed a moment ago.
            is_fresh = true;
            if let Ok(fresh) = cx.client.all::<Node>().get(&cx.config.node_name).await {
                node = fresh.into();
                continue;
            }
        }
        if !is_critical(pod) {
            return Err(first(&failures));
        }
        let others = failures.iter().find(|f| !matches!(f, fit::Failure::Insufficient { .. }));
        if let Some(other) = others {
            return Err(other.refusal());
        }
        make_room(cx, pod, &failures).await?;
        return Ok(cx.ledger.hold(pod));
    }
}

/// The reason for which a resize is not allocated now.
#[derive(Debug)]
pub(crate) enum Obstacle {
    Refused(Refusal),
    /// A critical pod gets its room from these pods. Empty: some are ending already.
    Victims(Vec<Entry>),
}

/// Checks a resize beside the pods that the node has otherwise. As upstream, one of a critical pod preempts
/// others if only resources are missing.
pub(crate) fn resize(pod: &Pod, node: &Node, others: &Held, pressure: &[&str]) -> Result<(), Obstacle> {
    under_pressure(pod, pressure).map_err(Obstacle::Refused)?;
    let failures = fit::failures(pod, node, others);
    if failures.is_empty() {
        return Ok(());
    }
    let other = failures.iter().find(|f| !matches!(f, fit::Failure::Insufficient { .. }));
    if !is_critical(pod) || other.is_some() {
        return Err(Obstacle::Refused(other.map_or_else(|| first(&failures), fit::Failure::refusal)));
    }
    if others.entries().any(|entry| entry.leash.is_ending()) {
        return Err(Obstacle::Victims(Vec::new()));
    }
    let victims = victims(pod, others, &failures).map_err(Obstacle::Refused)?;
    Err(Obstacle::Victims(victims.into_iter().cloned().collect()))
}

fn first(failures: &[fit::Failure]) -> Refusal {
    let unknown = "GeneralPredicates failed due to unknown reason, which is unexpected.";
    failures.first().map_or_else(|| Refusal::new("UnknownReason", unknown), fit::Failure::refusal)
}

/// Chooses the pods that a critical pod preempts.
fn victims<'a>(pod: &Pod, others: &'a Held, failures: &[fit::Failure]) -> Result<Vec<&'a Entry>, Refusal> {
    preempt::victims(pod, others.entries(), failures).map_err(|why| {
        let why = format!("preemption: error finding a set of pods to preempt: {why}");
        let text = "Unexpected error while attempting to recover from admission failure";
        Refusal::new("UnexpectedAdmissionError", format!("{text}: {why}"))
    })
}

/// Ends pods for a critical one.
pub(crate) fn preempt<'a>(cx: &Context, pod: &Pod, victims: impl IntoIterator<Item = &'a Entry>) {
    for victim in victims {
        tracing::info!(pod = %victim.pod.key(), critical = %pod.key(), "pod preempted");
        cx.events.warning(involved_container(&victim.pod, None), PREEMPTING, PREEMPTED);
        victim.leash.end(Disruption {
            reason: PREEMPTING,
            message: PREEMPTED.into(),
            condition: Some(TARGETED.into()),
            grace: None,
        });
    }
}

/// Preempts pods, and waits until they have ended.
async fn make_room(cx: &Context, pod: &Pod, failures: &[fit::Failure]) -> Result<(), Refusal> {
    let others = cx.ledger.beside(pod.uid()).0;
    let victims = victims(pod, &others, failures)?;
    preempt(cx, pod, victims.iter().copied());
    let grace = |victim: &&Entry| {
        let own = victim.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
        u64::try_from(own.unwrap_or(30)).unwrap_or(0)
    };
    let longest = victims.iter().map(grace).max().unwrap_or(0);
    let uids: Vec<String> = victims.iter().map(|victim| victim.pod.uid().to_owned()).collect();
    let patience = Duration::from_secs(longest.saturating_mul(3) / 2).max(LEAST_PATIENCE);
    tokio::select! {
        () = cx.ledger.released(&uids) => {}
        () = cx.clock.sleep(patience) => {
            tracing::warn!(critical = %pod.key(), "preempted pods still run, admitting the critical pod");
        }
    }
    Ok(())
}

/// Least time to wait for preempted pods, as upstream.
const LEAST_PATIENCE: Duration = Duration::from_secs(10);
/// Message of the condition DisruptionTarget of a preempted pod.
const TARGETED: &str = "Pod was preempted by Kubelet to accommodate a critical pod.";
/// Reason of the event and the status of a preempted pod.
const PREEMPTING: &str = "Preempting";
/// Message of the event and the status of a preempted pod.
const PREEMPTED: &str = "Preempted in order to admit critical pod";

/// Rejects pods that would be evicted next. Memory pressure concerns BestEffort pods only.
fn under_pressure(pod: &Pod, conditions: &[&str]) -> Result<(), Refusal> {
    if conditions.is_empty() || is_critical(pod) {
        return Ok(());
    }
    let spec = pod.spec.clone().unwrap_or_default();
    if conditions == ["MemoryPressure"] {
        let taint = Taint {
            key: "node.kubernetes.io/memory-pressure".into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        let tolerations = spec.tolerations.as_deref().unwrap_or_default();
        if qos(&spec) != Qos::BestEffort || is_tolerated(&taint, tolerations) {
            return Ok(());
        }
    }
    Err(Refusal::new(EVICTED, format!("The node had condition: [{}]. ", conditions.join(" "))))
}

/// Rejects pods for other operating systems, and groups that the runtime cannot set.
fn before_fit(pod: &Pod) -> Result<(), Refusal> {
    if pod.label("kubernetes.io/os").is_some_and(|os| os != "linux") {
        let message = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return Err(Refusal::new("PodOSSelectorNodeLabelDoesNotMatch", message));
    }
    let spec = pod.spec.as_ref();
    if spec.and_then(|s| s.os.as_ref()).is_some_and(|os| os.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        return Err(Refusal::new("PodOSNotSupported", message));
    }
    let security = spec.and_then(|s| s.security_context.as_ref());
    if security.and_then(|s| s.supplemental_groups_policy.as_deref()) == Some("Strict") {
        let message = "SupplementalGroupsPolicy=Strict is not supported in this node";
        return Err(Refusal::new("SupplementalGroupsPolicyNotSupported", message));
    }
    Ok(())
}

/// Rejects a pod whose isolation this node cannot provide.
fn isolation(pod: &Pod, allowed: &Sysctls) -> Result<(), Refusal> {
    sysctls(pod, allowed)?;
    app_armor(pod)
}

fn sysctls(pod: &Pod, sysctls: &Sysctls) -> Result<(), Refusal> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let wanted = spec.security_context.iter().flat_map(|s| s.sysctls.iter().flatten());
    for sysctl in wanted {
        sysctls
            .check(&sysctl.name, spec)
            .map_err(|why| Refusal::new("SysctlForbidden", format!("forbidden sysctl: {why}")))?;
    }
    Ok(())
}

fn app_armor(pod: &Pod) -> Result<(), Refusal> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let whole = spec.security_context.as_ref().and_then(|s| s.app_armor_profile.as_ref());
    let own = contexts(spec).filter_map(|s| s.app_armor_profile.as_ref());
    let mut annotations = pod.metadata.annotations.iter().flatten();
    let by_annotation =
        annotations.any(|(key, value)| key.starts_with(APPARMOR_ANNOTATION) && value != "unconfined");
    if whole.into_iter().chain(own).any(is_confined) || by_annotation {
        return Err(Refusal::new("AppArmor", format!("Cannot enforce AppArmor: {NO_APPARMOR}")));
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

    fn refusal(spec: Value, allowed: &[&str]) -> Option<(String, String)> {
        let annotations = spec["annotations"].clone();
        let pod = json!({"metadata": {"annotations": annotations}, "spec": spec});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let allowed: Vec<String> = allowed.iter().map(|s| (*s).to_owned()).collect();
        isolation(&pod, &Sysctls::new(&allowed).unwrap()).err().map(|r| (r.reason.into_owned(), r.message))
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
            assert_eq!(have, want.map(|m| ("SysctlForbidden".to_owned(), m)), "{name} {more} {allowed:?}");
        }
    }

    #[test]
    fn pressure_refuses_all_but_critical_pods() {
        let limits = json!([{"name": "c", "resources": {"requests": {"cpu": "1m"}}}]);
        let tolerating = json!([{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]);
        for (spec, conditions, refused) in [
            (json!({"containers": []}), &[][..], false),
            (json!({"containers": []}), &["MemoryPressure"], true),
            (json!({"containers": limits}), &["MemoryPressure"], false),
            (json!({"containers": [], "tolerations": tolerating}), &["MemoryPressure"], false),
            (json!({"containers": limits}), &["DiskPressure"], true),
            (
                json!({"containers": limits, "tolerations": tolerating}),
                &["MemoryPressure", "DiskPressure"],
                true,
            ),
            (json!({"containers": [], "priority": 2_000_000_000}), &["DiskPressure"], false),
            (json!({"containers": [], "priority": 1_999_999_999}), &["DiskPressure"], true),
        ] {
            let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
            let message = format!("The node had condition: [{}]. ", conditions.join(" "));
            let want = if refused { Err(Refusal::new("Evicted", message)) } else { Ok(()) };
            assert_eq!(under_pressure(&pod, conditions), want, "{spec} {conditions:?}");
        }
    }

    #[test]
    fn other_operating_systems_and_strict_groups_are_refused() {
        for (pod, reason) in [
            (json!({"spec": {"os": {"name": "linux"}}}), None),
            (json!({"spec": {"os": {"name": "windows"}}}), Some("PodOSNotSupported")),
            (json!({"metadata": {"labels": {"kubernetes.io/os": "linux"}}}), None),
            (
                json!({"metadata": {"labels": {"kubernetes.io/os": "plan9"}}}),
                Some("PodOSSelectorNodeLabelDoesNotMatch"),
            ),
            (json!({"spec": {"securityContext": {"supplementalGroupsPolicy": "Merge"}}}), None),
            (
                json!({"spec": {"securityContext": {"supplementalGroupsPolicy": "Strict"}}}),
                Some("SupplementalGroupsPolicyNotSupported"),
            ),
        ] {
            let mut whole = json!({"spec": {"containers": []}});
            for part in ["metadata", "spec"] {
                for (key, value) in pod[part].as_object().into_iter().flatten() {
                    whole[part][key] = value.clone();
                }
            }
            let have = before_fit(&serde_json::from_value(whole).unwrap()).err();
            assert_eq!(have.map(|r| r.reason.into_owned()).as_deref(), reason, "{pod}");
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
                let message = "Cannot enforce AppArmor: AppArmor is not enabled on the host";
                ("AppArmor".to_owned(), message.to_owned())
            });
            assert_eq!(refusal(spec.clone(), &[]), want, "{spec}");
        }
    }
}
