//! The state machine of a pod. Pure: no clock, no I/O, no tasks.
//!
//! Flow: [`World::on`] takes [`Message`]s, updates the world, asks [`plan::decide`](super::plan::decide) for
//! the next steps, and returns them as [`Effect`]s. The result of an effect comes back as a message.
//! Guarantees:
//! 1. An operation on a container, the sandbox or the volumes is marked in the world before its effect is
//!    returned, so that it never runs twice at once.
//! 2. A terminating pod starts no container.
//! 3. The restart count of a container never decreases.
//! 4. If a wait ends by time alone, every answer has an [`Effect::WakeAt`].
//!
//! Not here: performing effects ([`worker`](super::worker)), the text of the status
//! ([`status`](super::status)).

mod adopt;
mod effect;
#[cfg(test)]
mod laws;
mod message;
mod on;
mod resizing;
mod step;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, sync::Arc, time::Duration};

use k8s_core::{json, meta::ObjectExt};
use k8s_runtime::{SandboxId, SandboxStatus};

pub(crate) use self::{
    effect::{Effect, PodEvent, StartContainer, StopContainer},
    message::{Message, Observed, Seen, StartOutcome, Verdict},
};
use super::{admit::Refusal, life::*, resize::Resize};
use crate::{allocation::Allocation, eviction::EVICTED, ledger::Disruption, types::*, volumes::Mounted};

/// State of the pod's volumes.
#[derive(Clone, Debug)]
pub(crate) enum Volumes {
    Absent,
    /// First set-up is running. `stale`: a source has changed since its start.
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

/// Refresh of mounted volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refresh {
    /// Due at this time (`None`: no time limit), or when a source changes.
    Due(Option<Timestamp>),
    /// Running. `stale`: a source has changed since its start.
    Busy { stale: bool },
}

impl Volumes {
    /// Returns `true` while a set-up or refresh is running.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self, Volumes::Busy { .. } | Volumes::Ready { refresh: Refresh::Busy { .. }, .. })
    }
}

/// State of the pod's sandbox.
#[derive(Clone, Debug)]
pub(crate) enum Sandbox {
    Absent {
        attempt: u32,
    },
    /// Being created or connected. `old`: the sandbox to be replaced or connected again.
    Busy {
        attempt: u32,
        failures: u32,
        old: Option<Arc<SandboxStatus>>,
    },
    Ready(Arc<SandboxStatus>),
    /// Dead, with all of its containers.
    Dead(Arc<SandboxStatus>),
    Failed {
        retry_at: Timestamp,
        failures: u32,
        attempt: u32,
        old: Option<Arc<SandboxStatus>>,
    },
}

impl Sandbox {
    /// Returns the newest sandbox.
    pub(crate) fn status(&self) -> Option<&Arc<SandboxStatus>> {
        match self {
            Sandbox::Absent { .. } => None,
            Sandbox::Busy { old, .. } | Sandbox::Failed { old, .. } => old.as_ref(),
            Sandbox::Ready(status) | Sandbox::Dead(status) => Some(status),
        }
    }
}

/// Cause of a pod's termination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// All containers are done.
    Completed,
    /// `activeDeadlineSeconds` has passed.
    Deadline,
    /// The object is being deleted, or is gone.
    Deleted,
    /// Somebody else set the phase to Failed or Succeeded.
    Declared,
    /// This node rejected the pod.
    Refused,
    /// The kubelet has evicted or preempted it.
    Disrupted,
}

/// Stage of a pod's termination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Containers are being stopped.
    Stopping,
    /// Sandbox, network and volumes are being taken down.
    TakingDown { failures: u32 },
    /// The take-down failed; the next attempt is at this time.
    Retry { at: Timestamp, failures: u32 },
    /// Nothing of the pod runs or is mounted.
    Down,
    /// The object is being deleted.
    Finishing,
    /// Nothing is left to do.
    Finished,
}

impl Stage {
    /// Returns `true` if nothing of the pod runs or is mounted any more.
    pub(crate) fn is_down(self) -> bool {
        match self {
            Stage::Stopping | Stage::TakingDown { .. } | Stage::Retry { .. } => false,
            Stage::Down | Stage::Finishing | Stage::Finished => true,
        }
    }
}

/// A pod's termination: its cause and stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) cause: Cause,
    pub(crate) stage: Stage,
    /// Time of SIGKILL for the containers that still run.
    pub(crate) kill_at: Timestamp,
}

/// State of a pod.
#[derive(Clone, Debug)]
pub(crate) struct World {
    /// The pod with the resources that are allocated to it.
    pub(crate) pod: Arc<Pod>,
    /// The pod as it is in the API, with the resources that it asks for.
    pub(crate) desired: Arc<Pod>,
    pub(crate) allocation: Allocation,
    pub(crate) resize: Resize,
    pub(crate) volumes: Volumes,
    pub(crate) sandbox: Sandbox,
    /// Previous sandboxes, which are removed with the pod.
    pub(crate) old_sandboxes: Vec<Arc<SandboxStatus>>,
    /// IP addresses of the pod. They remain after the sandbox has died, until the next one is created.
    pub(crate) pod_ips: Vec<IpAddr>,
    /// The pod has its addresses, or uses the host's network.
    pub(crate) network_ready: bool,
    pub(crate) containers: Vec<Life>,
    /// Main containers have been started in this sandbox, so init containers are not run again.
    pub(crate) initialized: bool,
    pub(crate) ending: Option<Ending>,
    /// The object is no longer in the API.
    pub(crate) gone: bool,
    /// `status.startTime`: the time at which a kubelet first saw the pod.
    pub(crate) start_time: Timestamp,
    /// The service cache has synced, so that containers can get their service variables.
    pub(crate) services_known: bool,
    /// Reason for which this node rejected the pod.
    pub(crate) refusal: Option<Refusal>,
    /// The reason for which the kubelet has evicted or preempted the pod.
    pub(crate) disrupted: Option<Disruption>,
}

impl World {
    /// Creates the state of a pod without containers and sandboxes.
    pub(crate) fn new(pod: Arc<Pod>, now: Timestamp) -> Self {
        let start_time = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or(now, |t| t.0);
        let status = pod.status.clone().unwrap_or_default();
        let mut world = World {
            allocation: Allocation::of(&pod),
            resize: Resize::read(&status, now),
            desired: pod.clone(),
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
            disrupted: None,
        };
        world.take_spec();
        world
    }

    /// Returns the pod's specification; empty if the object has none.
    pub(crate) fn spec(&self) -> &PodSpec {
        static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
        self.pod.spec.as_ref().unwrap_or(&EMPTY)
    }

    /// Updates the containers from the specification, which may add ephemeral containers and change images.
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
                // A failed init container is retried unless the policy is Never. A successful one is not run
                // again.
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
                    old.replaced = true;
                    old.kill = Some(format!("Container {} definition changed, will be restarted", life.name));
                }
                *life = Life { role: life.role, policy: life.policy, spec: life.spec.clone(), ..old };
            }
        }
        self.containers = wanted;
    }

    /// Returns a container by name.
    pub(crate) fn life(&self, name: &str) -> Option<&Life> {
        self.containers.iter().find(|l| l.name == name)
    }

    /// Returns a container by name.
    pub(crate) fn life_mut(&mut self, name: &str) -> Option<&mut Life> {
        self.containers.iter_mut().find(|l| l.name == name)
    }

    /// Returns `true` if the kubelet has evicted the pod, so that it ends for that.
    fn is_evicted(&self) -> bool {
        self.ending.is_some_and(|ending| ending.cause == Cause::Disrupted)
            && self.disrupted.as_ref().is_some_and(|why| why.reason == EVICTED)
    }

    /// Returns the grace period of the deletion, else of the specification; at least 1 s.
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

/// Converts an ephemeral container; it has the fields of a container.
fn as_container(ephemeral: &EphemeralContainer) -> Option<Container> {
    json::from_slice(&json::to_vec(ephemeral).ok()?).ok()
}
