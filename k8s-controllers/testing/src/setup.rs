//! Settings that all runs of a lab have in common.

use std::{path::PathBuf, sync::Arc, time::Duration};

use k8s_simulated::Script;
use serde_json::Value;

use crate::{base::Shape, node::Director, process::Program};

/// Default time without write attempts after which a cluster counts as settled. Longer than any retry delay
/// of this project's controllers after a fault.
const CALM: Duration = Duration::from_secs(45);

#[derive(Clone)]
pub(crate) struct Setup {
    /// Changes to the API server's builder.
    pub(crate) shapes: Vec<Shape>,
    /// CustomResourceDefinitions of the same resources, for an existing cluster.
    pub(crate) definitions: Vec<Value>,
    /// Objects of the initial cluster.
    pub(crate) manifests: Vec<Value>,
    pub(crate) programs: Vec<Program>,
    pub(crate) nodes: usize,
    pub(crate) director: Director,
    /// Nodes renew their leases.
    pub(crate) heartbeats: bool,
    /// Timeout of [`Running::settle`](crate::Running::settle).
    pub(crate) patience: Duration,
    /// Time without writes after which a cluster counts as settled.
    pub(crate) calm: Duration,
    /// Longest wait for a program to repeat a request that a fault hit.
    pub(crate) retries: Duration,
    /// Panics that end a task only do not fail a run.
    pub(crate) panics: bool,
    /// File for the first seed's trace.
    pub(crate) record: Option<PathBuf>,
    pub(crate) whole_trace: bool,
}

impl std::fmt::Debug for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setup")
            .field("programs", &self.programs)
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            shapes: Vec::new(),
            definitions: Vec::new(),
            manifests: Vec::new(),
            programs: Vec::new(),
            nodes: 0,
            director: Arc::new(Script::of),
            heartbeats: false,
            patience: Duration::from_secs(3 * 3600),
            calm: CALM,
            retries: Duration::from_secs(600),
            panics: false,
            record: None,
            whole_trace: false,
        }
    }
}
