//! A container of a pod: its specification, its current and its previous instance.

use std::{path::PathBuf, sync::Arc};

use k8s_runtime::ContainerId;

use crate::{backoff::Backoff, cgroups::Size, types::*};

/// Kind of a container in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Init container: runs to completion before the next one starts.
    Init,
    /// Sidecar: an init container with `restartPolicy: Always`; it runs beside the others.
    Sidecar,
    /// One of `spec.containers`.
    Main,
    /// Ephemeral container, added to a running pod for debugging.
    Ephemeral,
}

/// Restart policy of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub(super) fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            Some("Always") => Some(RestartPolicy::Always),
            Some("OnFailure") => Some(RestartPolicy::OnFailure),
            Some("Never") => Some(RestartPolicy::Never),
            _ => None,
        }
    }

    /// Returns `true` if a container with this exit code is restarted.
    pub(crate) fn restarts(self, code: i32) -> bool {
        match self {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => code != 0,
            RestartPolicy::Never => false,
        }
    }
}

/// Exit code and times of an exited container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Exit {
    pub(crate) code: i32,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) finished_at: Timestamp,
}

/// Phase of a created container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Phase {
    Created,
    Running { started_at: Timestamp },
    Exited(Exit),
}

/// A created container: the current or the previous instance.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    /// Id in the runtime. `None`: known only from the pod's status; the runtime has removed it.
    pub(crate) id: Option<ContainerId>,
    /// Id in the pod's status, `runtime://id`.
    pub(crate) full_id: String,
    pub(crate) attempt: u32,
    pub(crate) phase: Phase,
    pub(crate) image_id: String,
    pub(crate) log: PathBuf,
    /// The container belongs to the pod's current sandbox.
    pub(crate) in_sandbox: bool,
    /// CPU and memory that it has.
    pub(crate) size: Size,
}

impl Record {
    pub(crate) fn exit(&self) -> Option<&Exit> {
        match &self.phase {
            Phase::Exited(exit) => Some(exit),
            Phase::Created | Phase::Running { .. } => None,
        }
    }
}

/// A container does not start yet: the reason, and the time of the next attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) until: Timestamp,
    pub(crate) reason: String,
    pub(crate) message: String,
    /// Retry at once when a ConfigMap or Secret of the pod changes.
    pub(crate) on_source: bool,
}

/// The operation that runs on a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Starting,
    Stopping,
}

/// A container of the pod's specification.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) policy: RestartPolicy,
    pub(crate) spec: Arc<Container>,
    pub(crate) current: Option<Record>,
    pub(crate) last: Option<Record>,
    pub(crate) op: Option<Op>,
    pub(crate) hold: Option<Hold>,
    pub(crate) backoff: Backoff,
    /// The postStart hook is done and the startup probe (if any) has succeeded.
    pub(crate) started: bool,
    /// The postStart hook is done or not defined.
    pub(crate) hook_done: bool,
    /// The readiness probe has succeeded or is not defined.
    pub(crate) ready: bool,
    /// A liveness or startup probe failed: kill the container, with this message.
    pub(crate) kill: Option<String>,
    /// The specification has changed, and this instance is stopped and replaced.
    pub(crate) replaced: bool,
}

impl Life {
    pub(super) fn new(role: Role, policy: RestartPolicy, spec: Container) -> Self {
        Life {
            name: spec.name.clone(),
            role,
            policy,
            spec: Arc::new(spec),
            current: None,
            last: None,
            op: None,
            hold: None,
            backoff: Backoff::default(),
            started: false,
            hook_done: false,
            ready: false,
            kill: None,
            replaced: false,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.current, Some(Record { phase: Phase::Running { .. }, .. }))
    }

    /// Returns the start of the running instance.
    pub(crate) fn running_since(&self) -> Option<Timestamp> {
        match self.current.as_ref()?.phase {
            Phase::Running { started_at } => Some(started_at),
            Phase::Created | Phase::Exited(_) => None,
        }
    }

    /// Returns `true` if the container has a process or is being started.
    pub(crate) fn is_alive(&self) -> bool {
        self.op.is_some() || matches!(&self.current, Some(r) if r.exit().is_none())
    }

    /// Returns `true` between the end of an instance that is replaced and the start of the next one.
    pub(crate) fn is_between(&self) -> bool {
        self.replaced && self.exit().is_some() && self.hold.is_none()
    }

    /// Returns the exit of the current instance, if it has exited.
    pub(crate) fn exit(&self) -> Option<&Exit> {
        self.current.as_ref().and_then(Record::exit)
    }

    /// Returns the attempt number of the next instance.
    pub(crate) fn next_attempt(&self) -> u32 {
        match &self.current {
            Some(Record { phase: Phase::Created, attempt, .. }) => *attempt,
            Some(record) => record.attempt + 1,
            None => 0,
        }
    }

    /// Replaces the current instance by a newer one.
    pub(crate) fn renew(&mut self, record: Record) {
        if let Some(old) = self.current.replace(record)
            && old.exit().is_some()
        {
            self.last = Some(old);
        }
        self.hold = None;
        self.started = false;
        self.hook_done = false;
        self.ready = false;
        self.kill = None;
        self.replaced = false;
    }
}
