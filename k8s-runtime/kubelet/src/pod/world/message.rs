//! Messages: the inputs of the state machine.

use std::{net::IpAddr, sync::Arc};

use k8s_runtime::{SandboxId, SandboxStatus};

use super::{
    super::{admit::Refusal, resize::Resized},
    Hold, Record,
};
use crate::{ledger::Disruption, probe, types::*, volumes::Mounted};

/// State of a container as the runtime reports it.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    pub(crate) name: String,
    pub(crate) record: Record,
}

/// State of a sandbox as the runtime reports it, with its containers in the order of their creation.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) sandbox: Arc<SandboxStatus>,
    pub(crate) containers: Vec<Observed>,
}

/// Result of [`Effect::Start`](super::Effect::Start).
#[derive(Clone, Debug)]
pub(crate) enum StartOutcome {
    /// It runs (or has exited since), and its postStart hook is done.
    Started(Record),
    /// No container was created; retry after the hold.
    Held(Hold),
    /// It was created and exited at once, or was killed since its hook failed.
    Failed(Record),
    /// The pod terminates.
    Cancelled,
}

/// The decision on a resize. The pod is the one that asked for it.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    /// The node has allocated what the pod asks for.
    Allocated(Arc<Pod>),
    /// The node has no room now.
    Deferred(Arc<Pod>, Refusal),
}

/// An input of the state machine.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    /// The first message: the pod's sandboxes in the runtime. `refusal` is the reason for which this node
    /// rejects the pod if it has no sandbox.
    Adopt { seen: Vec<Seen>, refusal: Option<Refusal> },
    /// A requested time has come.
    Tick,
    /// The kubelet evicts or preempts the pod.
    Disrupt(Disruption),
    /// The object has changed.
    Pod(Arc<Pod>),
    /// The object is gone; this is its last state.
    Gone(Arc<Pod>),
    /// A container was started or has exited.
    Container(Observed),
    /// A sandbox has died; these were its containers.
    SandboxGone { id: SandboxId, containers: Vec<Observed> },
    /// The pod's sandboxes after a listing, since events may have been lost.
    Listed(Vec<Seen>),
    /// The service cache has synced.
    Services,
    /// The volumes are set up, or the set-up failed.
    Volumes(Result<Mounted, String>),
    /// The sandbox is created and connected, or that failed.
    Sandbox(Result<(Arc<SandboxStatus>, Vec<IpAddr>), String>),
    /// The devices of the pod's claims cannot be prepared, so that no sandbox is made.
    Unprepared(String),
    /// A container's process runs; its postStart hook may not be done.
    Running { name: String, record: Record },
    /// A start has ended.
    Started { name: String, outcome: StartOutcome },
    /// A stop has ended. `None`: the runtime does not know the container.
    Stopped { name: String, record: Option<Record> },
    /// A probe's verdict has changed, or the probe failed again.
    Probe(probe::Report),
    /// A ConfigMap or Secret of the pod has changed.
    Source,
    /// The node has decided on a resize.
    Resize(Verdict),
    /// The sizes of the pod and its containers are changed, or that failed.
    Resized(Resized),
    /// The pod is taken down, or that failed.
    TakenDown(Result<(), String>),
    /// The object is deleted, or that failed.
    Deleted(Result<(), String>),
}
