//! Rotation: a log that grew too large is renamed with the time in its name, and the runtime opens a new one.

use std::{fs, io, sync::Arc, time::Duration};

use k8s_core::meta::ObjectExt;
use tracing::warn;

use super::LogFile;
use crate::context::Context;

const EVERY: Duration = Duration::from_secs(10);

/// Rotates the logs of running containers until it is dropped.
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
                let stamp = cx.clock.now().strftime("%Y%m%d-%H%M%S").to_string();
                let moved = match rotate(log, &stamp, cx.config.log_max_files) {
                    Ok(moved) => moved,
                    Err(e) => {
                        warn!(?log, error = %e, "log not rotated");
                        continue;
                    }
                };
                if let Err(e) = cx.runtime.reopen_log(id).await {
                    warn!(container = %id, error = %e, "log not reopened");
                    // The runtime still writes to the file it has open: give it its name back.
                    if let Err(e) = rename(log, &moved, log.name()) {
                        warn!(?log, error = %e, "log not renamed back");
                    }
                }
            }
        }
    }
}

/// Renames a log and removes parts beyond `files` (the one being written included). Returns the new name.
fn rotate(log: &LogFile, stamp: &str, files: usize) -> io::Result<String> {
    let (dir, old) = (log.directory()?, log.parts());
    let keep = files.saturating_sub(2);
    for part in old.iter().take(old.len().saturating_sub(keep)) {
        fs::remove_file(dir.entry(part)?)?;
    }
    let moved = format!("{}.{stamp}", log.name());
    rename(log, log.name(), &moved)?;
    Ok(moved)
}

/// Renames within a log's directory.
fn rename(log: &LogFile, from: &str, to: &str) -> io::Result<()> {
    let dir = log.directory()?;
    fs::rename(dir.entry(from)?, dir.entry(to)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let log = LogFile::new(dir.path(), &path);
        for n in 0..6 {
            fs::write(&path, n.to_string()).unwrap();
            rotate(&log, &format!("20260101-00000{n}"), 3).unwrap();
        }
        let left: Vec<String> =
            log.parts().iter().map(|p| fs::read_to_string(dir.path().join(p)).unwrap()).collect();
        assert_eq!(left, ["4", "5"]);
    }
}
