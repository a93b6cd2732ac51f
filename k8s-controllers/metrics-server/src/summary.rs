//! The kubelet's `Summary`, as far as it is read.

use jiff::Timestamp;
use serde::Deserialize;

/// `GET /stats/summary`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Summary {
    pub node: Stats,
    #[serde(default)]
    pub pods: Vec<PodStats>,
}

/// Use of a node or of a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Stats {
    /// Name of a container.
    pub name: String,
    pub start_time: Option<Timestamp>,
    pub cpu: Option<Cpu>,
    pub memory: Option<Memory>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Cpu {
    pub time: Timestamp,
    /// Nano-CPU, over a time that only the kubelet knows.
    pub usage_nano_cores: Option<u64>,
    /// CPU nanoseconds since the start.
    pub usage_core_nano_seconds: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Memory {
    /// Bytes that cannot be given up.
    pub working_set_bytes: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodStats {
    pub pod_ref: PodRef,
    #[serde(default)]
    pub containers: Vec<Stats>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct PodRef {
    pub name: String,
    pub namespace: String,
    pub uid: String,
}
