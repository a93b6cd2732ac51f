//! Frees what no pod needs: containers and logs of pods that are over, and images without a container.
//!
//! As upstream (`DeleteAllUnusedContainers`, `DeleteUnusedImages`). An image that was not there at the start
//! stays for two minutes: the pod that it was pulled for may have no container yet.

use std::{
    collections::{HashMap, HashSet},
    io,
    time::Duration,
};

use k8s_core::meta::ObjectExt;
use k8s_runtime::{ContainerState, beneath};

use crate::{context::Context, types::*};

/// Least age of an image.
const YOUNG: Duration = Duration::from_secs(120);

/// Removes sandboxes, containers and logs of pods that are over.
pub(super) async fn containers(cx: &Context) {
    let all = match cx.runtime.list().await {
        Ok(all) => all,
        Err(error) => return tracing::warn!(%error, "runtime not listed"),
    };
    for sandbox in all {
        let spec = &sandbox.spec;
        let is_idle = !sandbox.ready
            && sandbox.containers.iter().all(|c| matches!(c.state, ContainerState::Exited { .. }));
        let pod = cx.pods.get(&spec.namespace, &spec.name).filter(|pod| pod.uid() == spec.uid);
        let phase = pod.as_ref().and_then(|pod| pod.status.as_ref()?.phase.clone());
        let is_over = matches!(phase.as_deref(), Some("Failed" | "Succeeded"));
        if !is_idle || !is_over || cx.ledger.requests(&spec.uid).is_some() {
            continue;
        }
        if let Err(error) = cx.runtime.remove_sandbox(&sandbox.id).await {
            tracing::warn!(sandbox = %sandbox.id, %error, "sandbox not removed");
            continue;
        }
        cx.disown_sandbox(&sandbox.id);
        let logs = cx.config.pod_log_dir(&spec.namespace, &spec.name, &spec.uid);
        match beneath::remove_all(&logs) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = ?logs, %error, "logs not removed");
            }
            _ => {}
        }
        tracing::info!(pod = %format!("{}/{}", spec.namespace, spec.name), "containers of a pod that is over removed");
    }
}

/// The images of the node, and when they were first seen.
#[derive(Debug, Default)]
pub(super) struct ImagesSeen {
    /// `None`: at the start.
    known: HashMap<String, Option<Timestamp>>,
    started: bool,
}

impl ImagesSeen {
    /// Notes which images there are.
    pub(super) async fn look(&mut self, cx: &Context) {
        let Ok(images) = cx.images.store().list().await else { return };
        let now = self.started.then(|| cx.clock.now());
        let ids: HashSet<&str> = images.iter().map(|image| image.id.as_str()).collect();
        self.known.retain(|id, _| ids.contains(id.as_str()));
        for image in &images {
            self.known.entry(image.id.clone()).or_insert(now);
        }
        self.started = true;
    }

    /// Removes the images that no container and no admitted pod uses.
    pub(super) async fn remove_unused(&mut self, cx: &Context) {
        self.look(cx).await;
        let used = match used(cx).await {
            Ok(used) => used,
            Err(error) => return tracing::warn!(%error, "runtime not listed"),
        };
        let now = cx.clock.now();
        let is_young = |at: Timestamp| now.duration_since(at).unsigned_abs() < YOUNG;
        let unused = self.known.iter().filter(|(id, at)| !used.contains(*id) && !at.is_some_and(is_young));
        let mut unused: Vec<String> = unused.map(|(id, _)| id.clone()).collect();
        unused.sort();
        for id in unused {
            match cx.images.store().remove(&id).await {
                Ok(()) => tracing::info!(image = id, "unused image removed"),
                Err(error) => tracing::warn!(image = id, %error, "image not removed"),
            }
        }
    }
}

/// Returns the ids of the images that containers have, and those that admitted pods name.
async fn used(cx: &Context) -> Result<HashSet<String>, k8s_runtime::RuntimeError> {
    let sandboxes = cx.runtime.list().await?;
    let specs = sandboxes.into_iter().flat_map(|sandbox| sandbox.containers).map(|c| c.spec);
    let mut used: HashSet<String> =
        specs.flat_map(|spec| spec.mounts.into_iter().map(|mount| mount.image).chain([spec.image])).collect();
    for entry in cx.ledger.entries() {
        let Some(spec) = &entry.pod.spec else { continue };
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let of_volume = |volume: &Volume| volume.image.as_ref()?.reference.clone();
        let volumes = spec.volumes.iter().flatten().filter_map(of_volume);
        for name in containers.filter_map(|c| c.image.clone()).chain(volumes) {
            if let Ok(Some(image)) = cx.images.store().find(&name).await {
                used.insert(image.id);
            }
        }
    }
    Ok(used)
}
