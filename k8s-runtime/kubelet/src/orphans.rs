//! Removes sandboxes and directories of pods that were deleted while no kubelet ran.
//!
//! Guarantee: nothing is removed before the cache of pods is complete.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_core::meta::ObjectExt;
use k8s_runtime::{ContainerState, SandboxStatus};
use tracing::{info, warn};

use crate::{
    context::Context,
    pod::{
        records::keys,
        sandbox::{self, Extent, PodFiles},
    },
};

const RETRIES: u32 = 6;

/// Removes the sandboxes and directories of deleted pods.
pub(crate) async fn remove(cx: Arc<Context>, known: Vec<SandboxStatus>) {
    // List the directories before the cache: the pod of a directory created in between is then in the cache.
    let dirs = subdirectories(&cx.config.root_dir.join("pods"));
    let live: std::collections::HashSet<String> = cx.pods.list().iter().map(|p| p.uid().to_owned()).collect();
    let mut orphans: BTreeMap<String, Vec<SandboxStatus>> = BTreeMap::new();
    for sandbox in &known {
        if !live.contains(&sandbox.spec.uid) {
            orphans.entry(sandbox.spec.uid.clone()).or_default().push(sandbox.clone());
        }
    }
    for dir in dirs {
        if !live.contains(&dir) {
            orphans.entry(dir).or_default();
        }
    }
    futures::future::join_all(orphans.into_iter().map(|(uid, sandboxes)| remove_one(&cx, uid, sandboxes)))
        .await;
    if let Some(network) = &cx.network {
        let keep: Vec<String> =
            known.iter().filter(|s| live.contains(&s.spec.uid)).map(|s| s.id.0.clone()).collect();
        // Pods may have been started in between: list the sandboxes again.
        let now = cx.runtime.list().await.unwrap_or_default();
        let all: Vec<String> = keep.into_iter().chain(now.into_iter().map(|s| s.id.0)).collect();
        if let Err(e) = network.retain(&all).await {
            warn!(error = %e, "addresses of former pods not freed");
        }
    }
}

fn subdirectories(dir: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}

async fn remove_one(cx: &Context, uid: String, sandboxes: Vec<SandboxStatus>) {
    let sandboxes: Vec<Arc<SandboxStatus>> = sandboxes.into_iter().map(Arc::new).collect();
    info!(uid, sandboxes = sandboxes.len(), "removing what is left of a pod that is no more");
    let grace =
        sandboxes.first().and_then(|s| s.spec.annotations.get(keys::GRACE)?.parse().ok()).unwrap_or(30);
    let running = sandboxes.iter().flat_map(|s| &s.containers);
    let running = running.filter(|c| matches!(c.state, ContainerState::Running { .. }));
    let stops = running.map(|container| async {
        if let Err(e) = cx.runtime.stop(&container.id, Duration::from_secs(grace)).await {
            warn!(container = %container.id, error = %e, "container not stopped");
        }
    });
    futures::future::join_all(stops).await;
    let logs = sandboxes.first().map(|s| s.spec.log_directory.clone());
    let files =
        PodFiles { dir: cx.config.pod_dir(&uid), logs: logs.unwrap_or_else(|| cx.config.log_dir.join(&uid)) };
    for attempt in 0..RETRIES {
        match sandbox::take_down(cx, &sandboxes, &files, Extent::Remove).await {
            Ok(()) => return,
            Err(e) => warn!(uid, error = e, "not removed, trying again"),
        }
        cx.clock.sleep(Duration::from_secs(1 << attempt)).await;
    }
}
