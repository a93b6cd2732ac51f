//! Resizes of a running pod. Pure.
//!
//! Flow: [`decide`] compares the sizes that the containers and the sandbox have with those of the allocated
//! specification. A container whose resize policy says so is replaced. All other changes are one [`Plan`],
//! which `pod/actuate.rs` carries out. Conditions, events and the order of steps are upstream's
//! (`pkg/kubelet/kuberuntime`, `doPodResizeAction`; `pkg/kubelet/status`; `pkg/kubelet/events/resize.go`).
//! Guarantees:
//! 1. The sum of the containers' limits is never above the pod's: a pod grows before its containers, and
//!    shrinks after them.
//! 2. A container that does not run is sized when it starts, after the pod.
//!
//! Not here: the decision whether the node has room (`pod/allocate.rs`).

use k8s_core::json;
use k8s_runtime::{ContainerId, Requests, Resources, SandboxId};
use serde::Serialize;

use super::{life::*, plan::Act, world::*};
use crate::{cgroups, cgroups::Size, types::*};

pub(crate) const PENDING: &str = "PodResizePending";
pub(crate) const IN_PROGRESS: &str = "PodResizeInProgress";
const DEFERRED: &str = "Deferred";
const ERROR: &str = "Error";

/// What a condition about a resize says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    /// Empty: none.
    pub(crate) reason: String,
    pub(crate) message: String,
    /// Generation of the pod that asked for the resize.
    pub(crate) generation: Option<i64>,
    since: Timestamp,
    seen: Timestamp,
}

/// Work on the cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Work {
    #[default]
    Idle,
    Busy,
    /// It failed; the next attempt is at this time.
    Retry(Timestamp),
}

/// State of a pod's resize.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resize {
    pub(crate) pending: Option<Note>,
    pub(crate) progress: Option<Note>,
    pub(crate) work: Work,
}

impl Note {
    /// Returns the note that follows on another one. The time of the transition stays with the reason.
    fn after(
        old: Option<&Note>,
        now: Timestamp,
        reason: &str,
        message: &str,
        generation: Option<i64>,
    ) -> Self {
        let since = old.filter(|old| old.reason == reason).map_or(now, |old| old.since);
        Note { reason: reason.to_owned(), message: message.to_owned(), generation, since, seen: now }
    }

    fn read(condition: &PodCondition, now: Timestamp) -> Self {
        let at = |time: Option<&Time>| time.map_or(now, |t| t.0);
        Note {
            reason: condition.reason.clone().unwrap_or_default(),
            message: condition.message.clone().unwrap_or_default(),
            generation: condition.observed_generation,
            since: at(condition.last_transition_time.as_ref()),
            seen: at(condition.last_probe_time.as_ref()),
        }
    }

    fn condition(&self, type_: &str) -> PodCondition {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let seconds = |at: Timestamp| Time(Timestamp::from_second(at.as_second()).unwrap_or(at));
        PodCondition {
            type_: type_.to_owned(),
            status: "True".to_owned(),
            reason: text(&self.reason),
            message: text(&self.message),
            observed_generation: self.generation,
            last_transition_time: Some(seconds(self.since)),
            last_probe_time: Some(seconds(self.seen)),
        }
    }
}

impl Resize {
    /// Takes over what an earlier kubelet wrote to the status.
    pub(crate) fn read(status: &PodStatus, now: Timestamp) -> Self {
        let find = |type_: &str| {
            let found = status.conditions.iter().flatten().find(|c| c.type_ == type_);
            found.map(|condition| Note::read(condition, now))
        };
        Resize { pending: find(PENDING), progress: find(IN_PROGRESS), work: Work::Idle }
    }

    /// Notes that the node has no room. Returns `true` for the first time, also of a newer generation.
    pub(super) fn defer(&mut self, now: Timestamp, message: &str, generation: Option<i64>) -> bool {
        let note = Note::after(self.pending.as_ref(), now, DEFERRED, message, generation);
        let is_new = self
            .pending
            .as_ref()
            .is_none_or(|old| (&old.reason, old.generation) != (&note.reason, note.generation));
        // A repeated attempt is no news.
        if is_new || self.pending.as_ref().is_some_and(|old| old.message != note.message) {
            self.pending = Some(note);
        }
        is_new
    }

    /// Notes the begin of a resize. What an earlier one failed with is forgotten.
    pub(super) fn begin(&mut self, now: Timestamp, generation: Option<i64>) {
        self.pending = None;
        self.progress = Some(Note::after(None, now, "", "", generation));
        if self.work != Work::Busy {
            self.work = Work::Idle;
        }
    }

    /// Notes a failed attempt. Returns its generation if it is news.
    pub(super) fn fail(&mut self, now: Timestamp, message: &str) -> Option<Option<i64>> {
        let old = self.progress.as_ref()?;
        let note = Note::after(Some(old), now, ERROR, message, old.generation);
        if (&old.reason, &old.message) == (&note.reason, &note.message) {
            return None;
        }
        let generation = note.generation;
        self.progress = Some(note);
        Some(generation)
    }

    /// The conditions for the pod's status.
    pub(crate) fn conditions(&self) -> impl Iterator<Item = PodCondition> {
        let notes = [(PENDING, &self.pending), (IN_PROGRESS, &self.progress)];
        notes.into_iter().filter_map(|(type_, note)| Some(note.as_ref()?.condition(type_)))
    }
}

/// A change of cgroups.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    Pod(Resources),
    /// `resources` are written; `requests` are those that the container has then.
    Container {
        id: ContainerId,
        resources: Resources,
        requests: Requests,
    },
}

/// Changes of a pod's cgroups, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) sandbox: Option<SandboxId>,
    pub(crate) steps: Vec<Step>,
    /// The pod's new memory limit, bytes, if it is lower than before.
    pub(crate) lower_pod: Option<i64>,
    /// Names, ids and new memory limits, bytes, of the containers whose limit becomes lower.
    pub(crate) lower: Vec<(String, ContainerId, i64)>,
    /// The running containers of the pod.
    pub(crate) running: Vec<ContainerId>,
}

/// Result of a plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Resized {
    /// The steps that were done.
    pub(crate) done: Vec<Step>,
    /// The reason for which the others were not.
    pub(crate) error: Option<String>,
}

/// A running container of another size than it should have.
struct Misfit<'a> {
    life: &'a Life,
    id: &'a ContainerId,
    have: &'a Size,
    want: Size,
}

impl Misfit<'_> {
    fn cpu_differs(&self) -> bool {
        self.have.requests.cpu_milli != self.want.requests.cpu_milli
            || self.have.quota_us != self.want.quota_us
    }

    fn memory_differs(&self) -> bool {
        self.have.requests.memory_bytes != self.want.requests.memory_bytes
            || self.have.memory_bytes != self.want.memory_bytes
    }

    /// Returns `true` if the resize policy of a resource that changes asks for a restart.
    fn needs_restart(&self) -> bool {
        let restarts = |resource: &str| {
            let mut policies = self.life.spec.resize_policy.iter().flatten();
            policies.any(|p| p.resource_name == resource && p.restart_policy == "RestartContainer")
        };
        self.life.policy != RestartPolicy::Never
            && self.life.role != Role::Init
            && ((self.cpu_differs() && restarts("cpu")) || (self.memory_differs() && restarts("memory")))
    }

    /// Returns old and new amount of the memory: limits, else requests.
    fn memory(&self) -> (Option<i64>, Option<i64>) {
        change(
            (self.have.memory_bytes, self.want.memory_bytes),
            (self.have.requests.memory_bytes, self.want.requests.memory_bytes),
        )
    }

    /// Returns old and new amount of the CPU: limits, else requests.
    fn cpu(&self) -> (Option<i64>, Option<i64>) {
        change(
            (self.have.quota_us, self.want.quota_us),
            (self.have.requests.cpu_milli, self.want.requests.cpu_milli),
        )
    }
}

fn change(limits: (Option<i64>, Option<i64>), requests: (u64, u64)) -> (Option<i64>, Option<i64>) {
    let number = |n: u64| Some(i64::try_from(n).unwrap_or(i64::MAX));
    if limits.0 == limits.1 { (number(requests.0), number(requests.1)) } else { limits }
}

/// Returns `true` if `new` is less than `old`; `None` is unlimited.
fn is_less(old: Option<i64>, new: Option<i64>) -> bool {
    new.unwrap_or(i64::MAX) < old.unwrap_or(i64::MAX)
}

fn misfits(world: &World) -> impl Iterator<Item = Misfit<'_>> {
    let sized = world.containers.iter().filter(|life| life.role != Role::Ephemeral && life.is_running());
    sized.filter_map(|life| {
        let record = life.current.as_ref()?;
        let want = Size::wanted(world.spec(), &life.spec);
        let misfit = Misfit { life, id: record.id.as_ref()?, have: &record.size, want };
        (*misfit.have != misfit.want).then_some(misfit)
    })
}

/// Returns `true` while containers or the pod have other sizes than were allocated.
pub(super) fn is_due(world: &World) -> bool {
    misfits(world).next().is_some()
        || world.containers.iter().any(|life| life.is_between())
        || (world.resize.progress.is_some() && !plan(world).steps.is_empty())
}

/// Decides the steps towards the allocated sizes. Returns `false` if containers must wait with their start
/// until the pod has its size.
pub(super) fn decide(now: Timestamp, world: &World, acts: &mut Vec<Act>) -> bool {
    if world.resize.progress.is_none() {
        return true;
    }
    let mut replaced = misfits(world).filter(Misfit::needs_restart).peekable();
    if replaced.peek().is_some() {
        for life in replaced.map(|misfit| misfit.life).filter(|life| life.op.is_none() && !life.replaced) {
            let why = format!("Container {} resize requires restart", life.name);
            acts.push(Act::Replace(life.name.clone(), why));
        }
        return true;
    }
    match world.resize.work {
        Work::Busy => false,
        _ if plan(world).steps.is_empty() => true,
        Work::Retry(at) if now < at => {
            acts.push(Act::WakeAt(at));
            true
        }
        Work::Idle | Work::Retry(_) => {
            acts.push(Act::Resize);
            false
        }
    }
}

/// Returns the changes that are due: memory first, then CPU; each of them the pod's growth, the containers'
/// decreases and increases, and then the pod's decrease.
pub(super) fn plan(world: &World) -> Plan {
    let mut plan = Plan::default();
    let Sandbox::Ready(sandbox) = &world.sandbox else { return plan };
    plan.sandbox = Some(sandbox.id.clone());
    let (have, want) = (&sandbox.spec.resources, cgroups::pod(world.spec()));
    let misfits: Vec<Misfit<'_>> = misfits(world).collect();
    plan.running = world
        .containers
        .iter()
        .filter(|life| life.is_running())
        .filter_map(|life| life.current.as_ref()?.id.clone())
        .collect();

    // A limit that is not wanted (any more) stays.
    let memory = want.memory_bytes.filter(|_| want.memory_bytes != have.memory_bytes);
    let resources = Resources { memory_bytes: memory, ..Resources::default() };
    let shrinks = is_less(have.memory_bytes, memory);
    let pod = memory.map(|_| Step::Pod(resources));
    plan.lower_pod = memory.filter(|_| shrinks);
    plan.steps.extend(pod.clone().filter(|_| !shrinks));
    let mut changed: Vec<&Misfit<'_>> = misfits.iter().filter(|m| m.memory_differs()).collect();
    changed.sort_by_key(|m| !is_less(m.memory().0, m.memory().1));
    for misfit in changed {
        let requests = Requests {
            memory_bytes: misfit.want.requests.memory_bytes,
            cpu_milli: misfit.have.requests.cpu_milli,
        };
        plan.steps.push(Step::Container { id: misfit.id.clone(), resources: misfit.want.memory(), requests });
        if let Some(limit) = misfit.want.memory_bytes
            && is_less(misfit.have.memory_bytes, Some(limit))
        {
            plan.lower.push((misfit.life.name.clone(), misfit.id.clone(), limit));
        }
    }
    plan.steps.extend(pod.filter(|_| shrinks));

    let quota = want.cpu_quota_us.filter(|_| want.cpu_quota_us != have.cpu_quota_us);
    let quota_step = quota.map(|quota| {
        let (cpu_quota_us, cpu_period_us) = (Some(quota), want.cpu_period_us);
        Step::Pod(Resources { cpu_quota_us, cpu_period_us, ..Resources::default() })
    });
    let lower_quota = is_less(have.cpu_quota_us, quota);
    let shares = want.cpu_shares.filter(|_| want.cpu_shares != have.cpu_shares);
    let shares_step =
        shares.map(|shares| Step::Pod(Resources { cpu_shares: Some(shares), ..Resources::default() }));
    let fewer_shares = shares < have.cpu_shares;
    // Limits grow before requests, and shrink after them.
    plan.steps.extend(quota_step.clone().filter(|_| !lower_quota));
    plan.steps.extend(shares_step.clone().filter(|_| !fewer_shares));
    let mut changed: Vec<&Misfit<'_>> = misfits.iter().filter(|m| m.cpu_differs()).collect();
    changed.sort_by_key(|m| !is_less(m.cpu().0, m.cpu().1));
    for misfit in changed {
        let (id, requests) = (misfit.id.clone(), misfit.want.requests);
        plan.steps.push(Step::Container { id, resources: misfit.want.cpu(), requests });
    }
    plan.steps.extend(shares_step.filter(|_| fewer_shares));
    plan.steps.extend(quota_step.filter(|_| lower_quota));
    plan
}

#[derive(Serialize)]
struct Summary<'a> {
    #[serde(rename = "initContainers", skip_serializing_if = "Vec::is_empty")]
    init_containers: Vec<Part>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    containers: Vec<Part>,
    generation: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
}

#[derive(Serialize)]
struct Part {
    name: String,
    resources: ResourceRequirements,
}

/// Returns the message of an event about a resize: the beginning, and the pod's resources as JSON.
pub(super) fn event_message(begin: &str, pod: &Pod, generation: Option<i64>, error: &str) -> String {
    let part =
        |c: &Container| Part { name: c.name.clone(), resources: c.resources.clone().unwrap_or_default() };
    let spec = pod.spec.as_ref();
    let summary = Summary {
        init_containers: spec.iter().flat_map(|s| s.init_containers.iter().flatten()).map(part).collect(),
        containers: spec.iter().flat_map(|s| &s.containers).map(part).collect(),
        generation: generation.unwrap_or(0),
        error,
    };
    match json::to_vec(&summary).map(String::from_utf8) {
        Ok(Ok(text)) => format!("{begin}: {text}"),
        Ok(Err(_)) | Err(_) => begin.to_owned(),
    }
}

#[cfg(test)]
#[path = "resize_tests.rs"]
mod tests;
