//! Everything that is known about a pod.

use std::sync::Arc;

use k8s_core::meta::ObjectExt;
use k8s_runtime::SandboxId;

use super::{admit::Refusal, life::*};
use crate::types::*;

/// The pod's volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Volumes {
    Absent,
    Busy { failures: u32 },
    Ready,
    Failed { retry_at: Timestamp, failures: u32 },
}

/// The pod's sandbox.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Sandbox {
    Absent {
        attempt: u32,
    },
    Busy {
        attempt: u32,
        failures: u32,
    },
    Ready {
        id: SandboxId,
        attempt: u32,
    },
    /// It died; its containers with it.
    Dead {
        id: SandboxId,
        attempt: u32,
    },
    Failed {
        retry_at: Timestamp,
        failures: u32,
        attempt: u32,
    },
}

/// Why the pod is being ended.
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

/// How far the pod's end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Containers are being stopped.
    Stopping,
    /// The sandbox, network and volumes are being taken down.
    TakingDown { failures: u32 },
    /// Taking down failed.
    Retry { at: Timestamp, failures: u32 },
    /// Nothing runs any more and nothing is mounted.
    Down,
    /// The object is being deleted.
    Finishing,
    /// Nothing is left to do.
    Finished,
}

/// The pod's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) cause: Cause,
    pub(crate) stage: Stage,
    /// When containers that still run are killed.
    pub(crate) kill_at: Timestamp,
}

/// Everything known about one pod.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) pod: Arc<Pod>,
    pub(crate) volumes: Volumes,
    /// The volumes are there, and are being brought up to date.
    pub(crate) refreshing: bool,
    pub(crate) sandbox: Sandbox,
    /// The pod has its addresses, or needs none.
    pub(crate) network_ready: bool,
    pub(crate) containers: Vec<Life>,
    /// Main containers were started in this sandbox: init containers are not run again.
    pub(crate) initialized: bool,
    pub(crate) ending: Option<Ending>,
    /// The object is no longer in the API.
    pub(crate) gone: bool,
    /// When the pod was first seen by this kubelet (or its status said so).
    pub(crate) start_time: Timestamp,
    /// Services are known, so that containers can be told.
    pub(crate) services_known: bool,
    /// Why this node does not run the pod.
    pub(crate) refusal: Option<Refusal>,
}

impl World {
    /// A pod that nothing is known about.
    pub(crate) fn new(pod: Arc<Pod>, now: Timestamp) -> Self {
        let start_time = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or(now, |t| t.0);
        let mut world = World {
            pod,
            volumes: Volumes::Absent,
            refreshing: false,
            sandbox: Sandbox::Absent { attempt: 0 },
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

    /// The specification.
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
                // A failed init container is tried again unless the pod never restarts; a successful one is not.
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

    /// The grace period of a deletion, or that of the specification.
    pub(crate) fn grace(&self) -> i64 {
        let spec = self.spec().termination_grace_period_seconds.unwrap_or(30);
        let grace = if self.pod.is_deleting() || self.gone {
            self.pod.metadata.deletion_grace_period_seconds.unwrap_or(spec)
        } else {
            spec
        };
        grace.max(1)
    }
}

/// An ephemeral container has the fields of a container.
fn as_container(ephemeral: &EphemeralContainer) -> Option<Container> {
    serde_json::from_value(serde_json::to_value(ephemeral).ok()?).ok()
}
