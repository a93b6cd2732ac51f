//! Converts container states into records: from the runtime, or from the pod's status as an earlier kubelet
//! wrote it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use k8s_runtime::{
    ContainerSpec, ContainerState as RuntimeState, ContainerStatus as RuntimeStatus, SandboxStatus,
    beneath::Directory,
};

use super::{
    life::{Exit, Phase, Record},
    world::{Observed, Seen},
};
use crate::{cgroups::Size, context::Context, logs, types::*};

/// Labels and annotations of containers and sandboxes, with upstream's names.
pub(crate) mod keys {
    pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
    pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
    pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    pub(crate) const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
    pub(crate) const MESSAGE_FILE: &str = "io.kubernetes.container.terminationMessageFile";
    pub(crate) const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
    pub(crate) const IMAGE_REF: &str = "io.kubernetes.container.imageRef";
    pub(crate) const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
}

const LONGEST_MESSAGE: usize = 4096;
const LONGEST_LOG_MESSAGE: usize = 2048;
const LOG_MESSAGE_LINES: usize = 80;

/// Name of the runtime, the scheme of container ids.
pub(crate) fn runtime_name(cx: &Context) -> String {
    let version = cx.runtime.version();
    version.split("://").next().unwrap_or_default().to_owned()
}

pub(crate) fn timestamp(at: SystemTime) -> Timestamp {
    Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Converts a container of the current sandbox into the world's form.
pub(crate) fn observed(cx: &Context, status: &RuntimeStatus) -> Observed {
    Observed { name: status.spec.name.clone(), record: from_runtime(cx, status) }
}

/// Converts a sandbox and its containers into the world's form.
pub(crate) fn seen(cx: &Context, sandbox: SandboxStatus) -> Seen {
    let mut containers: Vec<_> = sandbox.containers.iter().collect();
    containers.sort_by_key(|c| (c.spec.attempt, c.created_at));
    let containers = containers.into_iter().map(|c| observed(cx, c)).collect();
    Seen { sandbox: Arc::new(sandbox), containers }
}

/// Builds the record of a container in the current sandbox.
pub(crate) fn from_runtime(cx: &Context, status: &RuntimeStatus) -> Record {
    let phase = match &status.state {
        RuntimeState::Created => Phase::Created,
        RuntimeState::Running { started_at, .. } => Phase::Running { started_at: timestamp(*started_at) },
        RuntimeState::Exited { started_at, finished_at, code, oom_killed, message } => {
            let reason = match (code, oom_killed) {
                (_, true) => "OOMKilled",
                (0, false) => "Completed",
                (_, false) if started_at.is_none() && !message.is_empty() => "StartError",
                _ => "Error",
            };
            let message = if message.is_empty() { last_words(cx, status, *code) } else { message.clone() };
            Phase::Exited(Exit {
                code: *code,
                reason: reason.to_owned(),
                message,
                started_at: started_at.map(timestamp),
                finished_at: timestamp(*finished_at),
            })
        }
    };
    Record {
        id: Some(status.id.clone()),
        full_id: format!("{}://{}", runtime_name(cx), status.id),
        attempt: status.spec.attempt,
        phase,
        image_id: image_ref(&status.spec),
        log: status.spec.log_path.clone(),
        in_sandbox: true,
        size: Size::of(&status.spec),
    }
}

/// `imageID`: the image's reference with digest, else its id.
pub(crate) fn image_ref(spec: &ContainerSpec) -> String {
    spec.annotations.get(keys::IMAGE_REF).cloned().unwrap_or_else(|| spec.image.clone())
}

/// Returns the termination message: the message file, or by `terminationMessagePolicy` the end of the log.
fn last_words(cx: &Context, status: &RuntimeStatus, code: i32) -> String {
    let annotations = &status.spec.annotations;
    let file = annotations.get(keys::MESSAGE_FILE).map(Path::new);
    let mut bytes = file.and_then(|f| read_start(f, LONGEST_MESSAGE)).unwrap_or_default();
    let policy = annotations.get(keys::MESSAGE_POLICY).map(String::as_str);
    if bytes.is_empty() && code != 0 && policy == Some("FallbackToLogsOnError") {
        let log = logs::LogFile::new(&cx.config.log_dir, &status.spec.log_path);
        bytes = logs::tail_text(&log, LOG_MESSAGE_LINES, LONGEST_LOG_MESSAGE);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn read_start(path: &Path, limit: usize) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let dir = Directory::open(path.parent()?).ok()?.without_links();
    dir.read(Path::new(path.file_name()?)).ok()?.take(limit as u64).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Returns the current and the previous instance from the pod's status, if the runtime has neither.
pub(crate) fn from_status(status: &ContainerStatus, now: Timestamp) -> (Option<Record>, Option<Record>) {
    let record = |id: Option<&str>, attempt: i32, exit: Exit| Record {
        id: None,
        full_id: id.unwrap_or_default().to_owned(),
        attempt: u32::try_from(attempt).unwrap_or(0),
        phase: Phase::Exited(exit),
        image_id: status.image_id.clone(),
        log: PathBuf::new(),
        in_sandbox: false,
        size: Size::default(),
    };
    let ended = |end: &ContainerStateTerminated| Exit {
        code: end.exit_code,
        reason: end.reason.clone().unwrap_or_default(),
        message: end.message.clone().unwrap_or_default(),
        started_at: end.started_at.as_ref().map(|t| t.0),
        finished_at: end.finished_at.as_ref().map_or(now, |t| t.0),
    };
    let last_end = status.last_state.as_ref().and_then(|s| s.terminated.as_ref());
    let last = || {
        last_end.map(|end| {
            record(end.container_id.as_deref(), status.restart_count.saturating_sub(1), ended(end))
        })
    };
    let state = status.state.clone().unwrap_or_default();
    if let Some(end) = &state.terminated {
        return (Some(record(end.container_id.as_deref(), status.restart_count, ended(end))), last());
    }
    if let Some(running) = &state.running {
        let exit = Exit {
            code: 137,
            reason: "ContainerStatusUnknown".into(),
            message: "The container could not be located when the pod was restarted. The container used to be Running"
                .into(),
            started_at: running.started_at.as_ref().map(|t| t.0),
            finished_at: now,
        };
        return (Some(record(status.container_id.as_deref(), status.restart_count, exit)), last());
    }
    // The container waited for its restart: its last state is that of the current instance.
    let current = last_end.map(|end| record(end.container_id.as_deref(), status.restart_count, ended(end)));
    (current, None)
}
