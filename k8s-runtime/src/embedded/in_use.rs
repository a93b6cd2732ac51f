//! Existing containers and their images, read from the runtime's records; works with and without a running
//! node process.

use std::{collections::BTreeMap, fs, io, path::Path};

use super::protocol::{ContainerRecord, SandboxRecord, read_json};
use crate::api::ContainerState;

/// Returns the image ids used by containers and their image volumes of the runtime with this state directory,
/// each with the `namespace/pod` of one such pod. Exited containers do not count.
///
/// # Errors
/// The records cannot be read.
pub fn images_in_use(root: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for sandbox in entries(&root.join("sandboxes"))? {
        let Some(record) = known(read_json::<SandboxRecord>(&sandbox.join("sandbox.json")))? else {
            continue;
        };
        for container in entries(&sandbox.join("c"))? {
            let Some(made) = known(read_json::<ContainerRecord>(&container.join("container.json")))? else {
                continue;
            };
            let state = known(read_json::<ContainerState>(&container.join("state.json")))?;
            if !matches!(state, Some(ContainerState::Exited { .. })) {
                let pod = format!("{}/{}", record.spec.namespace, record.spec.name);
                let volumes = made.volume_layers.into_keys();
                for image in volumes.chain([made.spec.image]) {
                    found.entry(image).or_insert_with(|| pod.clone());
                }
            }
        }
    }
    Ok(found)
}

/// Returns `true` if the runtime with this state directory has sandboxes.
#[must_use]
pub fn has_sandboxes(root: &Path) -> bool {
    // An unreadable directory may contain sandboxes.
    entries(&root.join("sandboxes")).map_or(true, |all| !all.is_empty())
}

/// Returns the entries of a directory; none if it does not exist.
fn entries(directory: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    match fs::read_dir(directory) {
        Ok(all) => all.map(|entry| entry.map(|e| e.path())).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// Maps a record that is already removed or not yet written to `None`.
fn known<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}
