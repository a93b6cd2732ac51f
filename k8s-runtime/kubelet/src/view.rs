//! Pods and containers as the kubelet's API and metrics show them.

use std::{collections::HashMap, path::PathBuf};

use k8s_runtime::{ContainerId, SandboxId};

use crate::types::{PodStatus, Timestamp};

/// A pod as the kubelet's API shows it.
#[derive(Clone, Debug, Default)]
pub(crate) struct PodView {
    pub(crate) sandbox: Option<SandboxId>,
    pub(crate) containers: HashMap<String, ContainerView>,
    /// Status as computed last; the API server's copy may be older.
    pub(crate) status: PodStatus,
}

/// A container as the kubelet's API shows it.
#[derive(Clone, Debug, Default)]
pub(crate) struct ContainerView {
    /// Id of the newest container, running or exited.
    pub(crate) id: Option<ContainerId>,
    pub(crate) running: bool,
    /// Start of the running container. `None`: it does not run.
    pub(crate) running_since: Option<Timestamp>,
    pub(crate) waiting: Option<String>,
    pub(crate) log: Option<PathBuf>,
    pub(crate) previous_log: Option<PathBuf>,
}
