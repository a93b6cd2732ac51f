//! Effects: the operations that the state machine requests.

use std::{borrow::Cow, net::IpAddr, sync::Arc};

use k8s_runtime::{ContainerId, SandboxId, SandboxStatus};

use super::{
    super::{resize::Plan, sandbox::Extent},
    Record,
};
use crate::{allocation::Allocation, types::*};

/// An operation outside of the world.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    /// Record an Event about the pod.
    Event(PodEvent),
    /// Set up the volumes, or refresh their contents. Result: `Message::Volumes`.
    SetUpVolumes,
    /// Remove the old sandbox, then create and connect a new one. Result: `Message::Sandbox`, or
    /// `Message::Unprepared`.
    MakeSandbox { attempt: u32, old: Option<Arc<SandboxStatus>> },
    /// Connect an existing sandbox. If the pod terminates before the network answers, the result has
    /// `known_ips`. Result: `Message::Sandbox`.
    Connect { sandbox: Arc<SandboxStatus>, known_ips: Vec<IpAddr> },
    /// Create and start a container. Results: `Message::Running` once it runs, then `Message::Started`.
    Start(Box<StartContainer>),
    /// Stop a container. Result: `Message::Stopped`.
    Stop(Box<StopContainer>),
    /// Ask the node for the resources of this pod (`None`: for no others than it has). Result:
    /// `Message::Resize`.
    Propose(Option<Arc<Pod>>),
    /// Keep the allocation for the next kubelet.
    SaveAllocation(Allocation),
    /// Change the sizes of the pod and its containers. Result: `Message::Resized`.
    Resize(Box<Plan>),
    /// Terminate the pod: cancel starts without a container yet, and kill containers at this time. It may
    /// move to an earlier time.
    End { kill_at: Timestamp },
    /// Disconnect the network, stop (or remove) the sandboxes, unmount. Result: `Message::TakenDown`.
    TakeDown { sandboxes: Vec<Arc<SandboxStatus>>, extent: Extent },
    /// Delete the object unless it is `gone`. Result: `Message::Deleted`.
    Delete { gone: bool },
    /// Send `Message::Tick` at this time, unless another message comes first.
    WakeAt(Timestamp),
}

/// An Event about the pod or one of its containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodEvent {
    pub(crate) warning: bool,
    pub(crate) container: Option<String>,
    pub(crate) reason: Cow<'static, str>,
    pub(crate) message: String,
}

impl PodEvent {
    pub(super) fn normal(reason: &'static str, message: impl Into<String>) -> Effect {
        let (reason, message) = (reason.into(), message.into());
        Effect::Event(PodEvent { warning: false, container: None, reason, message })
    }

    pub(super) fn warning(
        container: Option<&str>,
        reason: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Effect {
        let container = container.map(str::to_owned);
        let (reason, message) = (reason.into(), message.into());
        Effect::Event(PodEvent { warning: true, container, reason, message })
    }
}

/// A container to create and start.
#[derive(Clone, Debug)]
pub(crate) struct StartContainer {
    pub(crate) container: Arc<Container>,
    pub(crate) attempt: u32,
    pub(crate) sandbox: SandboxId,
    /// A container of this attempt that was created and never started; it is removed first.
    pub(crate) leftover: Option<ContainerId>,
    /// An older exited instance, which is removed once this one runs.
    pub(crate) stale: Option<Record>,
}

/// A container to stop.
#[derive(Clone, Debug)]
pub(crate) struct StopContainer {
    pub(crate) container: Arc<Container>,
    pub(crate) id: ContainerId,
    /// Message of the event.
    pub(crate) why: String,
    /// Time of SIGKILL. `None`: the end of the pod's grace period, see [`Effect::End`].
    pub(crate) kill_at: Option<Timestamp>,
}
