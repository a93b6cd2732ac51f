//! Starts a container: image, configuration, create, start, postStart.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use k8s_core::{events::involved_container, meta::ObjectExt};
use k8s_runtime::{ContainerId, RuntimeError};
use tokio_util::sync::CancellationToken;

use super::{
    container_spec::{self, Input},
    life::{Exit, Hold, Phase, Record},
    records,
    worker::Mailbox,
    world::{Message, StartContainer, StartOutcome},
};
use crate::{
    cgroups::Size,
    context::Context,
    images::{ImageError, Wanted},
    probe::handler,
    types::*,
    volumes::Mounted,
};

/// The start of one container.
pub(crate) struct Job {
    pub(crate) cx: Arc<Context>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) what: StartContainer,
    pub(crate) pod_ips: Vec<IpAddr>,
    pub(crate) mounted: Arc<Mounted>,
    /// Cancelled when the pod terminates: a start without a container yet is abandoned.
    pub(crate) cancel: CancellationToken,
    pub(crate) mailbox: Mailbox,
}

impl Job {
    /// Runs the start. Sends [`Message::Running`] as soon as the process runs.
    pub(crate) async fn run(self) -> StartOutcome {
        let prepared = tokio::select! {
            prepared = self.prepare() => prepared,
            () = self.cancel.cancelled() => return StartOutcome::Cancelled,
        };
        match prepared {
            Ok(spec) => self.create_and_start(spec).await,
            Err(hold) => StartOutcome::Held(hold),
        }
    }

    fn name(&self) -> &str {
        &self.what.container.name
    }

    fn hold(&self, seconds: i64, reason: &str, message: String) -> Hold {
        let now = self.cx.clock.now();
        Hold {
            until: now.saturating_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(now),
            reason: reason.to_owned(),
            message,
            on_source: false,
        }
    }

    /// The volumes that the container mounts.
    fn mounted_volumes(&self) -> impl Iterator<Item = &Volume> {
        let volumes = self.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        volumes.filter(|volume| {
            self.what.container.volume_mounts.iter().flatten().any(|mount| mount.name == volume.name)
        })
    }

    async fn prepare(&self) -> Result<k8s_runtime::ContainerSpec, Hold> {
        let cx = &*self.cx;
        let held = |e: ImageError| Hold {
            until: e.retry_at,
            reason: e.reason.to_owned(),
            message: e.message,
            on_source: false,
        };
        let wanted = Wanted::by_container(&self.what.container);
        let image = cx.images.ensure(&cx.sources, &self.pod, wanted).await.map_err(held)?;
        let mut volume_images = HashMap::new();
        for volume in self.mounted_volumes() {
            if let Some(wanted) = Wanted::by_volume(volume) {
                let image = cx.images.ensure(&cx.sources, &self.pod, wanted).await.map_err(held)?;
                volume_images.insert(volume.name.clone(), image.id);
            }
        }
        let input = Input {
            pod: &self.pod,
            container: &self.what.container,
            attempt: self.what.attempt,
            image: &image,
            volume_images: &volume_images,
            mounted: &self.mounted,
            pod_ips: &self.pod_ips,
        };
        container_spec::build(cx, &input).await.map_err(|e| {
            cx.events.warning(
                involved_container(&self.pod, Some(self.name())),
                "Failed",
                format!("Error: {e}"),
            );
            Hold { on_source: true, ..self.hold(10, "CreateContainerConfigError", e.to_string()) }
        })
    }

    async fn create_and_start(self, spec: k8s_runtime::ContainerSpec) -> StartOutcome {
        let cx = &*self.cx;
        let (pod, name) = (&*self.pod, Some(self.name()));
        if let Some(leftover) = &self.what.leftover
            && let Err(e) = super::sandbox::gone_is_fine(cx.runtime.remove(leftover).await)
        {
            return StartOutcome::Held(self.hold(5, "CreateContainerError", e.to_string()));
        }
        let id = match cx.runtime.create(&self.what.sandbox, &spec).await {
            Ok(id) => id,
            Err(e) => {
                cx.events.warning(involved_container(pod, name), "Failed", format!("Error: {e}"));
                return StartOutcome::Held(self.hold(10, "CreateContainerError", e.to_string()));
            }
        };
        cx.events.normal(
            involved_container(pod, name),
            "Created",
            format!("Created container: {}", self.name()),
        );
        let record = Record {
            id: Some(id.clone()),
            full_id: format!("{}://{id}", records::runtime_name(cx)),
            attempt: self.what.attempt,
            phase: Phase::Created,
            image_id: records::image_ref(&spec),
            log: spec.log_path.clone(),
            in_sandbox: true,
            size: Size::of(&spec),
        };
        if let Err(e) = cx.runtime.start(&id).await {
            return self.start_failed(record, &e);
        }
        cx.events.normal(
            involved_container(pod, name),
            "Started",
            format!("Started container {}", self.name()),
        );
        let record = match cx.runtime.status(&id).await {
            Ok(status) => records::from_runtime(cx, &status),
            // The process runs; an event will report its exit.
            Err(_) => Record { phase: Phase::Running { started_at: cx.clock.now() }, ..record },
        };
        self.mailbox.send(Message::Running { name: self.name().to_owned(), record: record.clone() });
        let ended = self.post_start(&id).await;
        self.remove_stale().await;
        match ended {
            Ok(()) => StartOutcome::Started(record),
            Err(()) => match cx.runtime.status(&id).await {
                Ok(status) => StartOutcome::Failed(records::from_runtime(cx, &status)),
                Err(_) => StartOutcome::Started(record),
            },
        }
    }

    fn start_failed(&self, record: Record, e: &RuntimeError) -> StartOutcome {
        let message = format!("failed to start container {}: {e}", record.full_id);
        self.cx.events.warning(
            involved_container(&self.pod, Some(self.name())),
            "Failed",
            format!("Error: {message}"),
        );
        let exit = Exit {
            code: 128,
            reason: "StartError".into(),
            message,
            started_at: None,
            finished_at: self.cx.clock.now(),
        };
        StartOutcome::Failed(Record { phase: Phase::Exited(exit), ..record })
    }

    /// Runs the postStart hook. If it fails, the container is killed.
    async fn post_start(&self, id: &ContainerId) -> Result<(), ()> {
        let Some(hook) = self.what.container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else {
            return Ok(());
        };
        let call =
            handler::Target { cx: &self.cx, id, container: &self.what.container, pod_ips: &self.pod_ips };
        let result = tokio::select! {
            result = call.run(hook) => result,
            () = self.cancel.cancelled() => return Ok(()),
        };
        let Err(why) = result else { return Ok(()) };
        let message = format!("PostStartHook failed: {why}");
        self.cx.events.warning(
            involved_container(&self.pod, Some(self.name())),
            "FailedPostStartHook",
            &message,
        );
        self.cx.events.normal(
            involved_container(&self.pod, Some(self.name())),
            "Killing",
            "FailedPostStartHook",
        );
        let grace = self.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
        let grace = std::time::Duration::from_secs(u64::try_from(grace).unwrap_or(0));
        if let Err(e) = self.cx.runtime.stop(id, grace).await {
            tracing::warn!(pod = %self.pod.key(), container = self.name(), error = %e, "container not stopped");
        }
        Err(())
    }

    /// Removes old instances; one exited container is kept for `kubectl logs --previous`.
    async fn remove_stale(&self) {
        let Some(Record { id: Some(id), log, .. }) = &self.what.stale else { return };
        if let Err(e) = super::sandbox::gone_is_fine(self.cx.runtime.remove(id).await) {
            tracing::debug!(container = %id, error = %e, "dead container not removed");
        }
        crate::logs::remove(&crate::logs::LogFile::new(&self.cx.config.log_dir, log));
    }
}
