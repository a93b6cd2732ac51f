//! Computes a pod's status from its world. Pure.
//!
//! Phases, conditions, reasons and messages are upstream's (`pkg/kubelet/kubelet_pods.go`,
//! `pkg/kubelet/status/generate.go`).

use std::net::IpAddr;

use k8s_core::meta::ObjectExt;

use super::{admit::Refusal, life::*, resize, world::*};
use crate::{
    cgroups::{self, Size},
    resources,
    types::*,
};

/// Inputs of the status other than the world.
pub(crate) struct Facts<'a> {
    pub(crate) host_ips: &'a [IpAddr],
    pub(crate) pod_ips: &'a [IpAddr],
}

/// Types of the conditions that the kubelet owns. All others belong to other writers.
pub(crate) const OWN_CONDITIONS: [&str; 7] = [
    "PodScheduled",
    "PodReadyToStartContainers",
    "Initialized",
    "ContainersReady",
    "Ready",
    resize::PENDING,
    resize::IN_PROGRESS,
];

/// Condition that the kubelet writes for pods that it evicts or preempts, and other writers for theirs.
const DISRUPTION_TARGET: &str = "DisruptionTarget";
/// Reason of the kubelet's [`DISRUPTION_TARGET`].
const BY_KUBELET: &str = "TerminationByKubelet";

/// Returns `true` for conditions that this kubelet wrote.
fn is_own(condition: &PodCondition) -> bool {
    OWN_CONDITIONS.contains(&condition.type_.as_str())
        || (condition.type_ == DISRUPTION_TARGET && condition.reason.as_deref() == Some(BY_KUBELET))
}

/// Computes the status of a pod. Transition times are taken over from `old`.
pub(crate) fn compute(
    now: Timestamp,
    world: &World,
    facts: &Facts<'_>,
    old: Option<&PodStatus>,
) -> PodStatus {
    if let Some(refusal) = &world.refusal {
        return refused(world, refusal, old);
    }
    let spec = world.spec();
    let has_init = spec.init_containers.as_ref().is_some_and(|i| !i.is_empty());
    let of_role = |roles: &[Role]| {
        let lives = world.containers.iter().filter(|l| roles.contains(&l.role));
        lives.map(|life| container_status(world, life, has_init)).collect::<Vec<_>>()
    };
    let init = of_role(&[Role::Init, Role::Sidecar]);
    let mains = of_role(&[Role::Main]);
    let ephemeral = of_role(&[Role::Ephemeral]);
    let deadline = world.ending.is_some_and(|e| e.cause == Cause::Deadline);
    let is_disrupted = world.ending.is_some_and(|e| e.cause == Cause::Disrupted);
    let disrupted = world.disrupted.as_ref().filter(|_| is_disrupted);
    let alive = world.containers.iter().any(Life::is_alive);
    let old_phase = old.and_then(|o| o.phase.as_deref());
    let phase = match old_phase {
        Some(end @ ("Failed" | "Succeeded")) => end.to_owned(),
        _ if deadline || (is_disrupted && !alive) => "Failed".to_owned(),
        _ => phase(world, &mains).to_owned(),
    };
    let is_running = phase == "Running";
    let generation = world.pod.metadata.generation;
    let mut conditions = conditions(now, world, &phase, &init, &mains, old, generation);
    if let Some(message) = disrupted.and_then(|why| why.condition.clone())
        && !conditions.iter().any(|c| c.type_ == DISRUPTION_TARGET)
    {
        conditions.push(PodCondition {
            type_: DISRUPTION_TARGET.into(),
            status: "True".into(),
            reason: Some(BY_KUBELET.into()),
            message: Some(message),
            last_transition_time: Some(seconds(now)),
            observed_generation: generation,
            last_probe_time: None,
        });
    }
    let ip = |ips: &[IpAddr]| ips.first().map(ToString::to_string);
    let some = |list: Vec<ContainerStatus>| (!list.is_empty()).then_some(list);
    let mut status = PodStatus {
        phase: Some(phase),
        conditions: Some(conditions),
        host_ip: ip(facts.host_ips),
        host_ips: (!facts.host_ips.is_empty())
            .then(|| facts.host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        pod_ip: ip(facts.pod_ips),
        pod_ips: (!facts.pod_ips.is_empty())
            .then(|| facts.pod_ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect()),
        start_time: Some(seconds(world.start_time)),
        init_container_statuses: some(init),
        container_statuses: some(mains),
        ephemeral_container_statuses: some(ephemeral),
        qos_class: Some(resources::qos(spec).name().to_owned()),
        observed_generation: generation,
        resources: Some(actual_pod_resources(world, is_running)),
        allocated_resources: Some(resources::to_api(&resources::pod_requests(spec)))
            .filter(|list| !list.is_empty()),
        ..PodStatus::default()
    };
    if deadline {
        status.reason = Some("DeadlineExceeded".into());
        status.message = Some("Pod was active on the node longer than the specified deadline".into());
    } else if let Some(why) = disrupted.filter(|_| !alive) {
        status.reason = Some(why.reason.into());
        status.message = Some(why.message.clone());
    } else if let Some(old) = old {
        status.reason = old.reason.clone();
        status.message = old.message.clone();
    }
    status
}

/// Computes the status of a rejected pod. It has no containers.
fn refused(world: &World, refusal: &Refusal, old: Option<&PodStatus>) -> PodStatus {
    let live = world.pod.status.as_ref();
    let conditions = old.or(live).and_then(|s| s.conditions.clone()).unwrap_or_default();
    PodStatus {
        phase: Some("Failed".into()),
        reason: Some(refusal.reason.clone().into_owned()),
        message: Some(refusal.status_message()),
        conditions: Some(conditions),
        start_time: Some(seconds(world.start_time)),
        qos_class: Some(resources::qos(world.spec()).name().to_owned()),
        observed_generation: world.pod.metadata.generation,
        ..PodStatus::default()
    }
}

/// Truncates to whole seconds, the precision of the API.
fn seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

fn terminated(record: &Record, exit: &Exit) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: Some(record.full_id.clone()),
        exit_code: exit.code,
        reason: Some(exit.reason.clone()),
        message: (!exit.message.is_empty()).then(|| exit.message.clone()),
        started_at: Some(exit.started_at.map_or(Time(Timestamp::UNIX_EPOCH), seconds)),
        finished_at: Some(seconds(exit.finished_at)),
        signal: None,
    }
}

fn state_of(record: &Record) -> ContainerState {
    match &record.phase {
        Phase::Created => ContainerState {
            waiting: Some(ContainerStateWaiting { reason: Some("ContainerCreating".into()), message: None }),
            ..ContainerState::default()
        },
        Phase::Running { started_at } => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(seconds(*started_at)) }),
            ..ContainerState::default()
        },
        Phase::Exited(exit) => {
            ContainerState { terminated: Some(terminated(record, exit)), ..ContainerState::default() }
        }
    }
}

fn waiting(reason: &str, message: &str) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: (!message.is_empty()).then(|| message.to_owned()),
        }),
        ..ContainerState::default()
    }
}

fn container_status(world: &World, life: &Life, has_init: bool) -> ContainerStatus {
    let default_reason = if has_init && life.role != Role::Ephemeral && !world.initialized {
        "PodInitializing"
    } else {
        "ContainerCreating"
    };
    let current = life.current.as_ref();
    let last = life.last.as_ref().filter(|r| r.exit().is_some());
    // A container that waits for its restart: the state has the reason, and the last state has the exit.
    let (state, last) = match (current, &life.hold) {
        (Some(record), Some(hold)) if record.exit().is_some() && world.ending.is_none() => {
            (waiting(&hold.reason, &hold.message), Some(record))
        }
        (Some(record), _) => (state_of(record), last),
        (None, Some(hold)) => (waiting(&hold.reason, &hold.message), last),
        (None, None) => (waiting(default_reason, ""), last),
    };
    let running = life.is_running();
    let init_done = life.role == Role::Init && life.exit().is_some_and(|e| e.code == 0);
    ContainerStatus {
        name: life.name.clone(),
        image: life.spec.image.clone().unwrap_or_default(),
        image_id: current.map(|r| r.image_id.clone()).unwrap_or_default(),
        container_id: current.map(|r| r.full_id.clone()),
        restart_count: current.map_or(0, |r| i32::try_from(r.attempt).unwrap_or(i32::MAX)),
        state: Some(state),
        last_state: Some(last.map(state_of).unwrap_or_default()),
        started: Some(running && life.started),
        ready: init_done || is_ready(life),
        resources: (life.role != Role::Ephemeral).then(|| actual_resources(world, life)),
        allocated_resources: life.spec.resources.as_ref().and_then(|r| r.requests.clone()),
        volume_mounts: life.spec.volume_mounts.as_ref().map(|mounts| {
            mounts
                .iter()
                .map(|m| VolumeMountStatus {
                    name: m.name.clone(),
                    mount_path: m.mount_path.clone(),
                    read_only: m.read_only,
                    recursive_read_only: (m.read_only == Some(true)).then(|| "Disabled".to_owned()),
                    ..VolumeMountStatus::default()
                })
                .collect()
        }),
        ..ContainerStatus::default()
    }
}

/// Returns the resources that a container has: the allocated ones, with other amounts of CPU and memory where
/// the running instance has others.
fn actual_resources(world: &World, life: &Life) -> ResourceRequirements {
    let mut resources = life.spec.resources.clone().unwrap_or_default();
    let Some(record) = life.current.as_ref().filter(|_| life.is_running()) else { return resources };
    let (have, want) = (&record.size, Size::wanted(world.spec(), &life.spec));
    let number = |amount: u64| i64::try_from(amount).unwrap_or(i64::MAX);
    if have.quota_us != want.quota_us {
        replace(resources.limits.as_mut(), "cpu", have.cpu_limit());
    }
    if have.memory_bytes != want.memory_bytes {
        replace(resources.limits.as_mut(), "memory", have.memory_bytes);
    }
    if have.requests.cpu_milli != want.requests.cpu_milli {
        replace(resources.requests.as_mut(), "cpu", Some(number(have.requests.cpu_milli)));
    }
    if have.requests.memory_bytes != want.requests.memory_bytes {
        replace(resources.requests.as_mut(), "memory", Some(number(have.requests.memory_bytes)));
    }
    resources
}

/// Replaces an amount of a list; 0 and `None` remove it.
fn replace(list: Option<&mut resources::List>, name: &str, amount: Option<i64>) {
    let Some(list) = list else { return };
    list.remove(name);
    if let Some(amount) = amount.filter(|amount| *amount > 0) {
        list.extend(resources::to_api(&[(name.to_owned(), amount)].into()));
    }
}

/// Returns the resources that a pod has. Those of a running pod are those of its cgroup: CPU and memory, and
/// limits where all containers have one.
fn actual_pod_resources(world: &World, is_running: bool) -> ResourceRequirements {
    let spec = world.spec();
    let some = |list: resources::List| (!list.is_empty()).then_some(list);
    let mut requests = resources::to_api(&resources::pod_requests(spec));
    let mut limits = resources::to_api(&resources::pod_limits(spec));
    let want = cgroups::pod(spec);
    if is_running {
        let own = resources::whole(spec);
        let is_own = |list: Option<&resources::List>, name: &str| list.is_some_and(|l| l.contains_key(name));
        requests.retain(|name, _| {
            matches!(name.as_str(), "cpu" | "memory") || is_own(own.and_then(|r| r.requests.as_ref()), name)
        });
        limits.retain(|name, _| match name.as_str() {
            "cpu" => want.cpu_quota_us.is_some(),
            "memory" => want.memory_bytes.is_some(),
            name => is_own(own.and_then(|r| r.limits.as_ref()), name),
        });
    }
    if let Sandbox::Ready(sandbox) = &world.sandbox
        && world.resize.progress.is_some()
    {
        let have = &sandbox.spec.resources;
        if want.memory_bytes.is_some() && have.memory_bytes != want.memory_bytes {
            replace(Some(&mut limits), "memory", have.memory_bytes);
        }
        if want.cpu_quota_us.is_some() && have.cpu_quota_us != want.cpu_quota_us {
            replace(Some(&mut limits), "cpu", have.cpu_quota_us.map(|quota| quota / 100));
        }
        if let Some(shares) = have.cpu_shares.filter(|_| have.cpu_shares != want.cpu_shares) {
            // Rounded as upstream does.
            let milli = i64::try_from(shares.saturating_mul(1000).div_ceil(1024)).unwrap_or(i64::MAX);
            replace(Some(&mut requests), "cpu", Some(milli));
        }
    }
    ResourceRequirements { requests: some(requests), limits: some(limits), claims: None }
}

fn is_ready(life: &Life) -> bool {
    life.is_running() && life.started && life.ready
}

fn phase(world: &World, mains: &[ContainerStatus]) -> &'static str {
    let (mut waiting, mut running, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for status in mains {
        let state = status.state.clone().unwrap_or_default();
        let ended_before = status.last_state.as_ref().is_some_and(|l| l.terminated.is_some());
        if state.running.is_some() {
            running += 1;
        } else if let Some(end) = &state.terminated {
            stopped += 1;
            succeeded += i32::from(end.exit_code == 0);
        } else if ended_before {
            stopped += 1;
        } else {
            waiting += 1;
        }
    }
    let init_failed = !world.initialized
        && world.containers.iter().any(|l| {
            l.role == Role::Init && l.exit().is_some_and(|e| e.code != 0 && !l.policy.restarts(e.code))
        });
    if init_failed {
        return "Failed";
    }
    let end = |all_succeeded: bool| if all_succeeded { "Succeeded" } else { "Failed" };
    if let Some(ending) = &world.ending
        && !matches!(ending.stage, Stage::Stopping)
    {
        return end(waiting == 0 && running == 0 && stopped == succeeded);
    }
    let init_pending = !world.initialized
        && world.containers.iter().any(|l| match l.role {
            Role::Init => l.exit().is_none_or(|e| e.code != 0),
            Role::Sidecar => !l.started,
            Role::Main | Role::Ephemeral => false,
        });
    if init_pending || waiting > 0 {
        return "Pending";
    }
    if running > 0 {
        return "Running";
    }
    if stopped == 0 {
        return "Pending";
    }
    let goes_on = world
        .containers
        .iter()
        .filter(|l| l.role == Role::Main)
        .any(|l| l.replaced || l.exit().is_none_or(|e| l.policy.restarts(e.code)));
    if goes_on { "Running" } else { end(stopped == succeeded) }
}

/// Status, reason and message of a condition.
type Verdict = (bool, Option<&'static str>, Option<String>);

fn conditions(
    now: Timestamp,
    world: &World,
    phase: &str,
    init: &[ContainerStatus],
    mains: &[ContainerStatus],
    old: Option<&PodStatus>,
    generation: Option<i64>,
) -> Vec<PodCondition> {
    let old_conditions = old.and_then(|o| o.conditions.as_deref()).unwrap_or_default();
    let containers_ready = containers_ready(world, phase, mains);
    let ready = readiness(world, &containers_ready, old_conditions);
    let verdicts: [(&str, Verdict); 5] = [
        (OWN_CONDITIONS[0], (true, None, None)),
        (OWN_CONDITIONS[1], (matches!(world.sandbox, Sandbox::Ready(_)) && world.network_ready, None, None)),
        (OWN_CONDITIONS[2], initialized(world, phase, init)),
        (OWN_CONDITIONS[3], containers_ready),
        (OWN_CONDITIONS[4], ready),
    ];
    let own = verdicts.into_iter().map(|(type_, (is, reason, message))| {
        let status = if is { "True" } else { "False" };
        let before = old_conditions.iter().find(|c| c.type_ == type_);
        let since = before.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
        PodCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.map(str::to_owned),
            message,
            last_transition_time: Some(since.unwrap_or_else(|| seconds(now))),
            observed_generation: generation,
            last_probe_time: None,
        }
    });
    let foreign = old_conditions.iter().filter(|c| !OWN_CONDITIONS.contains(&c.type_.as_str())).cloned();
    let resize = world.resize.conditions().filter(|_| !matches!(phase, "Failed" | "Succeeded"));
    own.chain(resize).chain(foreign).collect()
}

fn names(statuses: impl Iterator<Item = String>) -> String {
    format!("[{}]", statuses.collect::<Vec<_>>().join(" "))
}

fn initialized(world: &World, phase: &str, init: &[ContainerStatus]) -> Verdict {
    if phase == "Succeeded" {
        return (true, Some("PodCompleted"), None);
    }
    let incomplete = |s: &&ContainerStatus| {
        let sidecar = world.life(&s.name).is_some_and(|l| l.role == Role::Sidecar);
        if sidecar { s.started != Some(true) } else { !s.ready }
    };
    if world.initialized || !init.iter().any(|s| incomplete(&s)) {
        return (true, None, None);
    }
    let list = names(init.iter().filter(incomplete).map(|s| s.name.clone()));
    (false, Some("ContainersNotInitialized"), Some(format!("containers with incomplete status: {list}")))
}

fn containers_ready(world: &World, phase: &str, mains: &[ContainerStatus]) -> Verdict {
    match phase {
        "Succeeded" => return (false, Some("PodCompleted"), None),
        "Failed" => return (false, Some("PodFailed"), None),
        _ => {}
    }
    let sidecars =
        world.containers.iter().filter(|l| l.role == Role::Sidecar && !is_ready(l)).map(|l| l.name.clone());
    let unready: Vec<String> =
        sidecars.chain(mains.iter().filter(|s| !s.ready).map(|s| s.name.clone())).collect();
    if unready.is_empty() {
        return (true, None, None);
    }
    let list = names(unready.into_iter());
    (false, Some("ContainersNotReady"), Some(format!("containers with unready status: {list}")))
}

fn readiness(world: &World, containers_ready: &Verdict, conditions: &[PodCondition]) -> Verdict {
    if !containers_ready.0 {
        return containers_ready.clone();
    }
    let live = world.pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or(conditions);
    let problems: Vec<String> = world
        .spec()
        .readiness_gates
        .iter()
        .flatten()
        .filter_map(|gate| {
            let type_ = &gate.condition_type;
            match live.iter().find(|c| &c.type_ == type_) {
                None => {
                    Some(format!("corresponding condition of pod readiness gate {type_:?} does not exist."))
                }
                Some(c) if c.status != "True" => Some(format!(
                    "the status of pod readiness gate {type_:?} is not \"True\", but {}",
                    c.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    if problems.is_empty() {
        (true, None, None)
    } else {
        (false, Some("ReadinessGatesNotReady"), Some(problems.join(", ")))
    }
}

/// Merges the kubelet's part of a status into the pod; other writers' fields and conditions stay.
pub(crate) fn merge(pod: &mut Pod, ours: &PodStatus) {
    let base = pod.status.take().unwrap_or_default();
    let own: Vec<PodCondition> = ours.conditions.iter().flatten().filter(|c| is_own(c)).cloned().collect();
    let replaced = |c: &PodCondition| is_own(c) || own.iter().any(|mine| mine.type_ == c.type_);
    let foreign: Vec<PodCondition> =
        base.conditions.iter().flatten().filter(|c| !replaced(c)).cloned().collect();
    pod.status = Some(PodStatus {
        conditions: Some(own.into_iter().chain(foreign).collect()),
        resize: base.resize.clone(),
        nominated_node_name: base.nominated_node_name.clone(),
        resource_claim_statuses: base.resource_claim_statuses.clone(),
        extended_resource_claim_status: base.extended_resource_claim_status.clone(),
        node_allocatable_resource_claim_statuses: base.node_allocatable_resource_claim_statuses.clone(),
        ..ours.clone()
    });
}

/// Pod name in upstream's messages: `name_namespace(uid)`.
pub(crate) fn full_name(pod: &Pod) -> String {
    format!("{}_{}({})", pod.name(), pod.namespace(), pod.uid())
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
