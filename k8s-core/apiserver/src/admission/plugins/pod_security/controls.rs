//! Controls of the Pod Security Standards: the table, and the evaluation of a pod against a level.
//!
//! Each row is one control with the versions in which each level has it. The order of the rows is the order
//! of violations in messages: those of baseline by name, then those of restricted.

use std::ops::Range;

use super::{
    baseline,
    pod::Pod,
    policy::{Level, LevelVersion},
    restricted,
};

/// Newest minor version in which a control changed. Later versions and `latest` mean this one.
pub(super) const NEWEST: u32 = 35;

/// A broken control.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    /// Short name of the problem, such as `host namespaces`.
    pub(super) reason: String,
    /// Offenders and values, such as `hostPID=true`.
    pub(super) detail: String,
}

impl Violation {
    pub(super) fn new(reason: impl Into<String>, detail: impl Into<String>) -> Option<Self> {
        Some(Violation { reason: reason.into(), detail: detail.into() })
    }
}

/// Checks a pod by the rules of a minor version.
type Check = fn(&Pod<'_>, u32) -> Option<Violation>;

/// A row of the table. Ranges are minor versions of Kubernetes 1.
pub(super) struct Control {
    pub(super) name: &'static str,
    /// Versions in which level baseline has the control.
    pub(super) baseline: Range<u32>,
    /// Versions in which level restricted has it. It ends where a stricter control takes its place.
    pub(super) restricted: Range<u32>,
    check: Check,
}

const ALWAYS: Range<u32> = 0..u32::MAX;
const NEVER: Range<u32> = 0..0;

const fn since(minor: u32) -> Range<u32> {
    minor..u32::MAX
}

const fn until(minor: u32) -> Range<u32> {
    0..minor
}

const fn control(name: &'static str, baseline: Range<u32>, restricted: Range<u32>, check: Check) -> Control {
    Control { name, baseline, restricted, check }
}

/// All controls.
pub(super) static CONTROLS: &[Control] = &[
    control("appArmorProfile", ALWAYS, ALWAYS, baseline::app_armor),
    control("capabilities_baseline", ALWAYS, until(22), baseline::capabilities),
    control("hostNamespaces", ALWAYS, ALWAYS, baseline::host_namespaces),
    control("hostPathVolumes", ALWAYS, NEVER, baseline::host_path_volumes),
    control("hostPorts", ALWAYS, ALWAYS, baseline::host_ports),
    control("hostProbesAndHostLifecycle", since(34), since(34), baseline::probe_hosts),
    control("privileged", ALWAYS, ALWAYS, baseline::privileged),
    control("procMount", ALWAYS, until(35), baseline::proc_mount),
    control("seLinuxOptions", ALWAYS, ALWAYS, baseline::se_linux),
    control("seccompProfile_baseline", ALWAYS, until(19), baseline::seccomp),
    control("sysctls", ALWAYS, ALWAYS, baseline::sysctls),
    control("windowsHostProcess", ALWAYS, ALWAYS, baseline::windows_host_process),
    control("allowPrivilegeEscalation", NEVER, since(8), restricted::privilege_escalation),
    control("capabilities_restricted", NEVER, since(22), restricted::capabilities),
    control("procMount_restricted", NEVER, since(35), restricted::proc_mount),
    control("restrictedVolumes", NEVER, ALWAYS, restricted::volumes),
    control("runAsNonRoot", NEVER, ALWAYS, restricted::run_as_non_root),
    control("runAsUser", NEVER, since(23), restricted::run_as_user),
    control("seccompProfile_restricted", NEVER, since(19), restricted::seccomp),
];

/// Returns the controls that a pod breaks at a level and version.
pub(super) fn evaluate(policy: LevelVersion, pod: &Pod<'_>) -> Vec<Violation> {
    let found = broken(policy, pod).map(|(control, violation)| {
        tracing::trace!(control = control.name, %policy, "pod security violation");
        violation
    });
    found.collect()
}

/// Iterates over the broken controls with their violations.
pub(super) fn broken<'a>(
    policy: LevelVersion,
    pod: &'a Pod<'_>,
) -> impl Iterator<Item = (&'static Control, Violation)> + 'a {
    let minor = policy.version.minor().min(NEWEST);
    let has = move |control: &&'static Control| match policy.level {
        Level::Privileged => false,
        Level::Baseline => control.baseline.contains(&minor),
        Level::Restricted => control.restricted.contains(&minor),
    };
    CONTROLS.iter().filter(has).filter_map(move |control| Some((control, (control.check)(pod, minor)?)))
}

/// Returns violations as the message about one pod has them: `reason (detail), reason (detail)`.
pub(super) fn details(violations: &[Violation]) -> String {
    let text = |v: &Violation| match v.detail.as_str() {
        "" => v.reason.clone(),
        detail => format!("{} ({detail})", v.reason),
    };
    violations.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// Returns violations as the message about many pods has them: the reasons only.
pub(super) fn reasons(violations: &[Violation]) -> String {
    violations.iter().map(|v| v.reason.as_str()).collect::<Vec<_>>().join(", ")
}
