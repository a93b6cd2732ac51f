//! Rotation: a log that grew too large is renamed with the time in its name, and the runtime opens a new one.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_core::meta::ObjectExt;
use tracing::warn;

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
                if !fs::metadata(log).is_ok_and(|m| m.len() > cx.config.log_max_size) {
                    continue;
                }
                let stamp = cx.clock.now().strftime("%Y%m%d-%H%M%S").to_string();
                let moved = match rotate(log, &stamp, cx.config.log_max_files) {
                    Ok(moved) => moved,
                    Err(e) => {
                        warn!(path = ?log, error = %e, "log not rotated");
                        continue;
                    }
                };
                if let Err(e) = cx.runtime.reopen_log(id).await {
                    warn!(container = %id, error = %e, "log not reopened");
                    // The runtime still writes to the file it has open: give it its name back.
                    if let Err(e) = fs::rename(&moved, log) {
                        warn!(path = ?log, error = %e, "log not renamed back");
                    }
                }
            }
        }
    }
}

/// The rotated parts of a log, oldest first.
pub(crate) fn parts(log: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|n| n.to_str())) else {
        return Vec::new();
    };
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let prefix = format!("{name}.");
    let mut parts: Vec<PathBuf> = entries
        .flatten()
        .filter(|e| e.file_name().to_str().is_some_and(|f| f.starts_with(&prefix)))
        .map(|e| e.path())
        .collect();
    parts.sort();
    parts
}

/// Renames a log and removes parts beyond `files` (the one being written included). Returns the new name.
fn rotate(log: &Path, stamp: &str, files: usize) -> io::Result<PathBuf> {
    let old = parts(log);
    let keep = files.saturating_sub(2);
    for part in old.iter().take(old.len().saturating_sub(keep)) {
        fs::remove_file(part)?;
    }
    let mut name = log.as_os_str().to_owned();
    name.push(format!(".{stamp}"));
    let moved = PathBuf::from(name);
    fs::rename(log, &moved)?;
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        for n in 0..6 {
            fs::write(&log, n.to_string()).unwrap();
            rotate(&log, &format!("20260101-00000{n}"), 3).unwrap();
        }
        let left: Vec<String> = parts(&log).iter().map(|p| fs::read_to_string(p).unwrap()).collect();
        assert_eq!(left, ["4", "5"]);
    }
}
