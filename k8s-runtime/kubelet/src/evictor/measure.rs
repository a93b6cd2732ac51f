//! Measures the usage of pods, for their order and their limits.
//!
//! Trees of volumes and layers are read only where a limit or a shortage of disk asks for it.

use std::{collections::BTreeMap, io, path::PathBuf, time::Duration};

use futures::{StreamExt, stream};
use k8s_core::meta::ObjectExt;
use k8s_runtime::{ContainerId, DiskUsage, beneath};

use crate::{
    context::Context,
    eviction::{
        local::is_in_memory,
        rank::{ContainerUsage, Usage},
    },
    types::*,
};

/// Number of containers that are read at a time.
const AT_ONCE: usize = 16;
/// Maximum time to read a tree.
const PATIENCE: Duration = Duration::from_secs(30);

/// Returns name and id of a pod's containers. `running`: of running ones only.
fn containers(cx: &Context, pod: &Pod, running: bool) -> Vec<(String, ContainerId)> {
    let Some(view) = cx.view(pod.uid()) else { return Vec::new() };
    let wanted = view.containers.into_iter().filter(|(_, container)| container.running || !running);
    let mut all: Vec<_> = wanted.filter_map(|(name, container)| Some((name, container.id?))).collect();
    all.sort();
    all
}

/// Measures memory and processes of a pod. `None`: nothing of it runs.
pub(crate) async fn memory(cx: &Context, pod: &Pod) -> Option<Usage> {
    let read = stream::iter(containers(cx, pod, true)).map(|(name, id)| async move {
        let stats = cx.runtime.stats(&id).await.ok()?;
        let (memory, pids) = (Some(stats.working_set_bytes), stats.pids);
        Some(ContainerUsage { name, memory, pids, ..ContainerUsage::default() })
    });
    let containers: Vec<_> = read.buffered(AT_ONCE).filter_map(std::future::ready).collect().await;
    (!containers.is_empty()).then(|| Usage { containers, volumes: BTreeMap::new() })
}

/// Measures layers, logs and volumes of a pod. Each tree counts up to a bit more than `enough` bytes.
pub(crate) async fn disk(cx: &Context, pod: &Pod, enough: u64) -> Usage {
    let logs = cx.config.pod_log_dir(pod.namespace(), pod.name(), pod.uid());
    let mut all = Vec::new();
    for (name, id) in containers(cx, pod, false) {
        let layer = cx.runtime.disk_usage(&id, enough).await;
        let layer = layer.inspect_err(|e| tracing::debug!(container = %id, error = %e, "layer not measured"));
        let (layer, logs) = (layer.unwrap_or_default(), tree(logs.join(&name), enough).await);
        all.push(ContainerUsage { name, layer: Some(layer), logs: Some(logs), ..ContainerUsage::default() });
    }
    Usage { containers: all, volumes: volumes(cx, pod, enough).await }
}

/// Measures the volumes of a pod that are on the disk of its node.
pub(crate) async fn volumes(cx: &Context, pod: &Pod, enough: u64) -> BTreeMap<String, DiskUsage> {
    let mut found = BTreeMap::new();
    let dir = cx.config.pod_dir(pod.uid()).join("volumes");
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let plugin = match (&volume.empty_dir, &volume.config_map) {
            (Some(source), _) if !is_in_memory(source) => "kubernetes.io~empty-dir",
            (_, Some(_)) => "kubernetes.io~configmap",
            _ => continue,
        };
        let used = tree(dir.join(plugin).join(&volume.name), enough).await;
        found.insert(volume.name.clone(), used);
    }
    found
}

/// Measures a tree. A missing one is empty.
async fn tree(path: PathBuf, enough: u64) -> DiskUsage {
    match beneath::measure(path.clone(), enough, PATIENCE).await {
        Ok(used) => used,
        Err(e) if e.kind() == io::ErrorKind::NotFound => DiskUsage::default(),
        Err(error) => {
            tracing::warn!(?path, %error, "not measured");
            DiskUsage::default()
        }
    }
}
