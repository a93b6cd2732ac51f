//! The containers that exist and the images that they run from, by the runtime's records: it does not matter
//! if the node's process is running or not.

use std::{collections::BTreeMap, fs, io, path::Path};

use super::protocol::{ContainerRecord, SandboxRecord, read_json};
use crate::api::ContainerState;

/// Image ids that containers of the runtime with this state directory use, each with `namespace/pod` of one
/// such pod. A container that has ended uses none.
///
/// # Errors
/// When the records cannot be read.
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
                found.entry(made.spec.image).or_insert(pod);
            }
        }
    }
    Ok(found)
}

/// True if the runtime with this state directory has made sandboxes that were not removed.
#[must_use]
pub fn has_sandboxes(root: &Path) -> bool {
    // A directory that cannot be read may be full of them.
    entries(&root.join("sandboxes")).map_or(true, |all| !all.is_empty())
}

/// The entries of a directory; none where it is not there.
fn entries(directory: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    match fs::read_dir(directory) {
        Ok(all) => all.map(|entry| entry.map(|e| e.path())).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// A record that may be gone meanwhile, or not be written yet.
fn known<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}
