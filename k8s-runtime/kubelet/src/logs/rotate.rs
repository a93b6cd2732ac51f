//! Rotation for runtimes that do not rotate by themselves: a log that grew too large is renamed with the time
//! in its name, and the runtime opens a new one.

use std::{fs, io, sync::Arc, time::Duration};

use k8s_core::meta::ObjectExt;
use k8s_runtime::log_files;
use tracing::warn;

use super::LogFile;
use crate::context::Context;

const EVERY: Duration = Duration::from_secs(10);

/// Rotates the logs of running containers. Runs until it is dropped.
pub(crate) async fn run(cx: Arc<Context>) {
    loop {
        cx.clock.sleep(EVERY).await;
        for pod in cx.pods.list() {
            let Some(view) = cx.view(pod.uid()) else { continue };
            for container in view.containers.values().filter(|c| c.running) {
                let (Some(id), Some(log)) = (&container.id, &container.log) else { continue };
                let log = &LogFile::new(&cx.config.log_dir, log);
                if !log.open().and_then(|f| f.metadata()).is_ok_and(|m| m.len() > cx.config.log_max_size) {
                    continue;
                }
                let rotated = log.directory().and_then(|directory| {
                    log_files::rotate(&directory, log.name(), cx.clock.now(), cx.config.log_max_files)
                });
                let moved = match rotated {
                    Ok(moved) => moved,
                    Err(e) => {
                        warn!(?log, error = %e, "log not rotated");
                        continue;
                    }
                };
                if let Err(e) = cx.runtime.reopen_log(id).await {
                    warn!(container = %id, error = %e, "log not reopened");
                    // The runtime still writes to the renamed file: rename it back.
                    if let Err(e) = rename(log, &moved, log.name()) {
                        warn!(?log, error = %e, "log not renamed back");
                    }
                }
            }
        }
    }
}

/// Renames a file within a log's directory.
fn rename(log: &LogFile, from: &str, to: &str) -> io::Result<()> {
    let dir = log.directory()?;
    fs::rename(dir.entry(from)?, dir.entry(to)?)
}
