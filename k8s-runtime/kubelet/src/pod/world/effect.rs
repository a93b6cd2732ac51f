//! Everything that the world of a pod asks for.

use std::{net::IpAddr, sync::Arc};

use k8s_runtime::{ContainerId, SandboxId, SandboxStatus};

use super::{super::sandbox::Extent, Record};
use crate::types::*;

/// Something to do outside of the world.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    /// Record an event.
    Event(PodEvent),
    /// Set the volumes up, or bring their contents up to date. Answer: `Message::Volumes`.
    SetUpVolumes,
    /// Remove the old sandbox, make one and connect it. Answer: `Message::Sandbox`.
    MakeSandbox { attempt: u32, old: Option<Arc<SandboxStatus>> },
    /// Connect a sandbox that is there. The addresses are the answer of a pod that ends before the network
    /// answers. Answer: `Message::Sandbox`.
    Connect { sandbox: Arc<SandboxStatus>, known_ips: Vec<IpAddr> },
    /// Make and start a container. Answers: `Message::Running` once it runs, then `Message::Started`.
    Start(Box<StartContainer>),
    /// Stop a container. Answer: `Message::Stopped`.
    Stop(Box<StopContainer>),
    /// The pod ends: starts that have not made a container yet are cancelled, and containers are killed at
    /// this time. It can move nearer later.
    End { kill_at: Timestamp },
    /// Stop (or remove) sandboxes, disconnect the network, unmount. Answer: `Message::TakenDown`.
    TakeDown { sandboxes: Vec<Arc<SandboxStatus>>, extent: Extent },
    /// Delete the object, unless it is `gone` already. Answer: `Message::Deleted`.
    Delete { gone: bool },
    /// Send `Message::Tick` at this time, unless another message comes before.
    WakeAt(Timestamp),
}

/// An event of the pod, or of one of its containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodEvent {
    pub(crate) warning: bool,
    pub(crate) container: Option<String>,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl PodEvent {
    pub(super) fn normal(reason: &'static str, message: impl Into<String>) -> Effect {
        Effect::Event(PodEvent { warning: false, container: None, reason, message: message.into() })
    }

    pub(super) fn warning(
        container: Option<&str>,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Effect {
        let container = container.map(str::to_owned);
        Effect::Event(PodEvent { warning: true, container, reason, message: message.into() })
    }
}

/// A container to make and start.
#[derive(Clone, Debug)]
pub(crate) struct StartContainer {
    pub(crate) container: Arc<Container>,
    pub(crate) attempt: u32,
    pub(crate) sandbox: SandboxId,
    /// A container of this attempt that was made and never started. It is removed first.
    pub(crate) leftover: Option<ContainerId>,
    /// An older dead container. It is removed once this one runs.
    pub(crate) stale: Option<Record>,
}

/// A container to stop.
#[derive(Clone, Debug)]
pub(crate) struct StopContainer {
    pub(crate) container: Arc<Container>,
    pub(crate) id: ContainerId,
    /// Message of the event.
    pub(crate) why: String,
    /// `None`: killed when the pod's time is over, see [`Effect::End`].
    pub(crate) kill_at: Option<Timestamp>,
}
