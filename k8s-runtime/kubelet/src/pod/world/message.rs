//! Everything that changes the world of a pod.

use std::{net::IpAddr, sync::Arc};

use k8s_runtime::{SandboxId, SandboxStatus};

use super::{super::admit::Refusal, Hold, Record};
use crate::{probe, types::*, volumes::Mounted};

/// A container as the runtime has it.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    pub(crate) name: String,
    pub(crate) record: Record,
}

/// A sandbox as the runtime has it, with its containers in the order in which they were made.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) sandbox: Arc<SandboxStatus>,
    pub(crate) containers: Vec<Observed>,
}

/// The outcome of [`Effect::Start`](super::Effect::Start).
#[derive(Clone, Debug)]
pub(crate) enum StartOutcome {
    /// It runs (or has ended meanwhile) and its postStart hook is done.
    Started(Record),
    /// No container was made; try again after the hold.
    Held(Hold),
    /// It was made and ended at once, or was ended for its hook's failure.
    Failed(Record),
    /// The pod ends.
    Cancelled,
}

/// Something that changes the world.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    /// The first message: sandboxes that the runtime has of this pod, and the reason for which this node does
    /// not run a pod that it has nothing of.
    Adopt { seen: Vec<Seen>, refusal: Option<Refusal> },
    /// Time has passed.
    Tick,
    /// The object changed.
    Pod(Arc<Pod>),
    /// The object is gone; its last state.
    Gone(Arc<Pod>),
    /// The runtime says that a container has started or ended.
    Container(Observed),
    /// The runtime says that a sandbox is gone, and that these were its containers.
    SandboxGone { id: SandboxId, containers: Vec<Observed> },
    /// Events may have been lost: the runtime has these sandboxes.
    Listed(Vec<Seen>),
    /// Services are known.
    Services,
    /// The volumes are set up, or the reason why not.
    Volumes(Result<Mounted, String>),
    /// The sandbox is made and connected, or the reason why not.
    Sandbox(Result<(Arc<SandboxStatus>, Vec<IpAddr>), String>),
    /// A container's process runs; its postStart hook may still run.
    Running { name: String, record: Record },
    /// A start is over.
    Started { name: String, outcome: StartOutcome },
    /// A stop is over. `None`: the runtime no longer knows the container.
    Stopped { name: String, record: Option<Record> },
    /// A probe turned, or failed without turning.
    Probe(probe::Report),
    /// A ConfigMap or Secret that the pod uses changed.
    Source,
    /// The pod is taken down, or the reason why not.
    TakenDown(Result<(), String>),
    /// The object is deleted, or the reason why not.
    Deleted(Result<(), String>),
}
