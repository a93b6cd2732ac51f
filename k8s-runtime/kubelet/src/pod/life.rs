//! One container of a pod: its specification, its newest process and the one before.

use std::{path::PathBuf, sync::Arc};

use k8s_runtime::ContainerId;

use crate::{backoff::Backoff, types::*};

/// The purpose of a container in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container that keeps running beside the others.
    Sidecar,
    /// One of `spec.containers`.
    Main,
    /// Added to a running pod for debugging.
    Ephemeral,
}

/// The restart policy of a container.
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

    /// True if a container that ended with this code is started again.
    pub(crate) fn restarts(self, code: i32) -> bool {
        match self {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => code != 0,
            RestartPolicy::Never => false,
        }
    }
}

/// The end of a container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Exit {
    pub(crate) code: i32,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) finished_at: Timestamp,
}

/// The phase of a container that was made.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Phase {
    Created,
    Running { started_at: Timestamp },
    Exited(Exit),
}

/// A container that was made: the newest one of its name, or the one before.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    /// `None`: known only from the pod's status, the runtime no longer has it.
    pub(crate) id: Option<ContainerId>,
    /// The whole id as the status has it, `runtime://id`.
    pub(crate) full_id: String,
    pub(crate) attempt: u32,
    pub(crate) phase: Phase,
    pub(crate) image_id: String,
    pub(crate) log: PathBuf,
    /// It was made in the sandbox that the pod has now.
    pub(crate) in_sandbox: bool,
}

impl Record {
    pub(crate) fn exit(&self) -> Option<&Exit> {
        match &self.phase {
            Phase::Exited(exit) => Some(exit),
            Phase::Created | Phase::Running { .. } => None,
        }
    }
}

/// The reason for which a container does not start yet, and the time until which it waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) until: Timestamp,
    pub(crate) reason: String,
    pub(crate) message: String,
    /// Try at once when a ConfigMap or Secret of the pod changes.
    pub(crate) on_source: bool,
}

/// Work on a container that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Starting,
    Stopping,
}

/// One container of the pod's specification.
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
    /// postStart is done and the startup probe (if any) succeeded.
    pub(crate) started: bool,
    /// The postStart hook is done, or there is none.
    pub(crate) hook_done: bool,
    /// The readiness probe says so, or there is none.
    pub(crate) ready: bool,
    /// A liveness or startup probe failed: it is to be killed, with this message.
    pub(crate) kill: Option<String>,
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
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.current, Some(Record { phase: Phase::Running { .. }, .. }))
    }

    /// It can have a process, or is about to.
    pub(crate) fn is_alive(&self) -> bool {
        self.op.is_some() || matches!(&self.current, Some(r) if r.exit().is_none())
    }

    /// The end of the current container, if it has ended.
    pub(crate) fn exit(&self) -> Option<&Exit> {
        self.current.as_ref().and_then(Record::exit)
    }

    /// The number that the next container of this name gets.
    pub(crate) fn next_attempt(&self) -> u32 {
        match &self.current {
            Some(Record { phase: Phase::Created, attempt, .. }) => *attempt,
            Some(record) => record.attempt + 1,
            None => 0,
        }
    }

    /// A newer container of this name.
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
    }
}
