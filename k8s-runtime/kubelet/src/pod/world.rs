//! The state machine of a pod. Pure: no clock, no I/O, no tasks.
//!
//! Flow: [`World::on`] takes [`Message`]s, changes the world, has [`plan::decide`](super::plan::decide) say
//! what to do next, and returns it as [`Effect`]s. Whatever an effect begins comes back as a message.
//! Guarantees:
//! 1. Work on a container, on the sandbox and on the volumes is marked in the world before its effect is
//!    returned, so that it is never begun twice at once.
//! 2. A pod that has come to its end starts no container again.
//! 3. The restart count of a container never goes down.
//! 4. A wait that time alone ends has an [`Effect::WakeAt`] in each answer.
//!
//! Not here: performing effects ([`worker`](super::worker)), the text of the status
//! ([`status`](super::status)).

mod adopt;
mod effect;
#[cfg(test)]
mod laws;
mod message;
mod on;
mod step;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, sync::Arc, time::Duration};

use k8s_core::meta::ObjectExt;
use k8s_runtime::{SandboxId, SandboxStatus};

pub(crate) use self::{
    effect::{Effect, PodEvent, StartContainer, StopContainer},
    message::{Message, Observed, Seen, StartOutcome},
};
use super::{admit::Refusal, life::*};
use crate::{types::*, volumes::Mounted};

/// The state of the pod's volumes.
#[derive(Clone, Debug)]
pub(crate) enum Volumes {
    Absent,
    /// Set up for the first time. `stale`: a source has changed since it began.
    Busy {
        failures: u32,
        stale: bool,
    },
    Ready {
        mounted: Arc<Mounted>,
        refresh: Refresh,
    },
    Failed {
        retry_at: Timestamp,
        failures: u32,
    },
}

/// The renewal of contents that are mounted already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refresh {
    /// Due at this time, or when a source changes.
    Due(Option<Timestamp>),
    /// Under way. `stale`: a source has changed since it began.
    Busy { stale: bool },
}

impl Volumes {
    /// Work on them is under way.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self, Volumes::Busy { .. } | Volumes::Ready { refresh: Refresh::Busy { .. }, .. })
    }
}

/// The state of the pod's sandbox.
#[derive(Clone, Debug)]
pub(crate) enum Sandbox {
    Absent {
        attempt: u32,
    },
    /// Made or connected. `old`: the sandbox that is replaced or connected again.
    Busy {
        attempt: u32,
        failures: u32,
        old: Option<Arc<SandboxStatus>>,
    },
    Ready(Arc<SandboxStatus>),
    /// It died; its containers with it.
    Dead(Arc<SandboxStatus>),
    Failed {
        retry_at: Timestamp,
        failures: u32,
        attempt: u32,
        old: Option<Arc<SandboxStatus>>,
    },
}

impl Sandbox {
    /// The newest sandbox that was made.
    pub(crate) fn status(&self) -> Option<&Arc<SandboxStatus>> {
        match self {
            Sandbox::Absent { .. } => None,
            Sandbox::Busy { old, .. } | Sandbox::Failed { old, .. } => old.as_ref(),
            Sandbox::Ready(status) | Sandbox::Dead(status) => Some(status),
        }
    }
}

/// The reason for which the pod ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Everything in it has ended for good.
    Completed,
    /// `activeDeadlineSeconds` is over.
    Deadline,
    /// Its object is being deleted, or is gone.
    Deleted,
    /// Somebody else declared it failed or succeeded.
    Declared,
    /// This node does not run it.
    Refused,
}

/// The stage of the pod's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Containers are being stopped.
    Stopping,
    /// The sandbox, network and volumes are being taken down.
    TakingDown { failures: u32 },
    /// Taking down failed; it is tried again at this time.
    Retry { at: Timestamp, failures: u32 },
    /// Nothing runs any more and nothing is mounted.
    Down,
    /// The object is being deleted.
    Finishing,
    /// Nothing is left to do.
    Finished,
}

/// The end of a pod: its cause and its progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) cause: Cause,
    pub(crate) stage: Stage,
    /// The time at which containers that still run are killed.
    pub(crate) kill_at: Timestamp,
}

/// Everything known about one pod.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) pod: Arc<Pod>,
    pub(crate) volumes: Volumes,
    pub(crate) sandbox: Sandbox,
    /// Sandboxes before that one. They are removed with the pod.
    pub(crate) old_sandboxes: Vec<Arc<SandboxStatus>>,
    /// The pod's addresses. Those of a dead sandbox stay until another one is made.
    pub(crate) pod_ips: Vec<IpAddr>,
    /// The pod has its addresses, or needs none.
    pub(crate) network_ready: bool,
    pub(crate) containers: Vec<Life>,
    /// Main containers were started in this sandbox: init containers are not run again.
    pub(crate) initialized: bool,
    pub(crate) ending: Option<Ending>,
    /// The object is no longer in the API.
    pub(crate) gone: bool,
    /// The time at which a kubelet first saw the pod.
    pub(crate) start_time: Timestamp,
    /// Services are known, so that containers can be told.
    pub(crate) services_known: bool,
    /// The reason for which this node does not run the pod.
    pub(crate) refusal: Option<Refusal>,
}

impl World {
    /// A pod that nothing is known about.
    pub(crate) fn new(pod: Arc<Pod>, now: Timestamp) -> Self {
        let start_time = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or(now, |t| t.0);
        let mut world = World {
            pod,
            volumes: Volumes::Absent,
            sandbox: Sandbox::Absent { attempt: 0 },
            old_sandboxes: Vec::new(),
            pod_ips: Vec::new(),
            network_ready: false,
            containers: Vec::new(),
            initialized: false,
            ending: None,
            gone: false,
            start_time,
            services_known: true,
            refusal: None,
        };
        world.take_spec();
        world
    }

    /// The pod's specification; empty if the object has none.
    pub(crate) fn spec(&self) -> &PodSpec {
        static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
        self.pod.spec.as_ref().unwrap_or(&EMPTY)
    }

    /// Brings the containers in line with the specification (which gains ephemeral ones and changes images).
    pub(crate) fn take_spec(&mut self) {
        let spec = self.spec();
        let policy = RestartPolicy::parse(spec.restart_policy.as_deref()).unwrap_or(RestartPolicy::Always);
        let own = |c: &Container| RestartPolicy::parse(c.restart_policy.as_deref());
        let mut wanted = Vec::new();
        for container in spec.init_containers.iter().flatten() {
            let life = match own(container) {
                Some(RestartPolicy::Always) => {
                    Life::new(Role::Sidecar, RestartPolicy::Always, container.clone())
                }
                Some(other) => Life::new(Role::Init, other, container.clone()),
                // A failed init container is tried again unless the pod never restarts; a successful one is
                // not.
                None if policy == RestartPolicy::Never => Life::new(Role::Init, policy, container.clone()),
                None => Life::new(Role::Init, RestartPolicy::OnFailure, container.clone()),
            };
            wanted.push(life);
        }
        for container in &spec.containers {
            wanted.push(Life::new(Role::Main, own(container).unwrap_or(policy), container.clone()));
        }
        for container in spec.ephemeral_containers.iter().flatten() {
            if let Some(container) = as_container(container) {
                wanted.push(Life::new(Role::Ephemeral, RestartPolicy::Never, container));
            }
        }
        let mut known = std::mem::take(&mut self.containers);
        for life in &mut wanted {
            if let Some(at) = known.iter().position(|k| k.name == life.name) {
                let mut old = known.swap_remove(at);
                if old.spec.image != life.spec.image
                    && old.is_running()
                    && life.policy != RestartPolicy::Never
                {
                    old.kill = Some(format!("Container {} definition changed, will be restarted", life.name));
                }
                *life = Life { role: life.role, policy: life.policy, spec: life.spec.clone(), ..old };
            }
        }
        self.containers = wanted;
    }

    /// One container.
    pub(crate) fn life(&self, name: &str) -> Option<&Life> {
        self.containers.iter().find(|l| l.name == name)
    }

    /// One container.
    pub(crate) fn life_mut(&mut self, name: &str) -> Option<&mut Life> {
        self.containers.iter_mut().find(|l| l.name == name)
    }

    /// The grace period of a deletion, or that of the specification; at least 1 s.
    fn grace_time(&self) -> Duration {
        let spec = self.spec().termination_grace_period_seconds.unwrap_or(30);
        let grace = if self.pod.is_deleting() || self.gone {
            self.pod.metadata.deletion_grace_period_seconds.unwrap_or(spec)
        } else {
            spec
        };
        Duration::from_secs(u64::try_from(grace).unwrap_or(0).max(1))
    }
}

/// An ephemeral container has the fields of a container.
fn as_container(ephemeral: &EphemeralContainer) -> Option<Container> {
    serde_json::from_value(serde_json::to_value(ephemeral).ok()?).ok()
}
