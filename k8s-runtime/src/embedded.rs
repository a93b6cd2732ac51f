//! The embedded runtime: real containers with nothing but this program and a Linux kernel.
//!
//! Flow: the program starts itself again as a single-threaded [zygote](run_if_zygote); per pod that forks one
//! shim, which makes the pod's namespaces and forks its containers. [`Embedded`] talks to each shim over a
//! socket in the sandbox's directory, and keeps a model of everything in memory that shims' events keep true.
//! Guarantees: containers outlive this process and the zygote; [`Embedded::new`] on the same directories
//! finds all of them again; whatever a sandbox made outside of its processes is listed in its record before
//! it is made, so that a removal (or [`reset()`]) after any crash finds it.
//! Not here: images (see [`crate::images`]), networks (a [`SandboxStatus`](crate::SandboxStatus) names the
//! namespace that one attaches to).
//!
//! A program that uses it begins with:
//! ```no_run
//! // First in `main`:
//! k8s_runtime::embedded::run_if_zygote();
//! // ... then threads, tokio, everything else
//! ```

mod cgroup;
mod client;
mod devices;
mod in_use;
mod model;
mod preflight;
mod protocol;
mod reset;
mod runtime;
mod sandbox_files;
mod shim;
mod streams;
mod wire;
mod zygote;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use serde::{Deserialize, Serialize};

use self::{cgroup::Cgroups, model::Model, zygote::Zygote};
pub use self::{
    in_use::{has_sandboxes, images_in_use},
    preflight::{Missing, preflight},
    reset::{leftovers, reset},
    zygote::run_if_zygote,
};
use crate::{api::RuntimeError, images::ImageStore, private_directory};

/// The directories and cgroups of an embedded runtime. Two runtimes must not share any of the three.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbeddedConfig {
    /// Persistent state: records, logs of shims, container roots. Must be on a file system that overlayfs can
    /// write to.
    pub root: PathBuf,
    /// Directory that a reboot may empty: pinned network namespaces and shared memory, below `/run` most
    /// often.
    pub run: PathBuf,
    /// Name of this runtime's control group below every controller's root, such as `hyperkube-1a2b`.
    pub cgroup_root: String,
}

impl EmbeddedConfig {
    fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    fn sandbox(&self, id: &str) -> PathBuf {
        self.sandboxes().join(id)
    }

    fn shims_cgroup(&self) -> String {
        format!("{}/_shims", self.cgroup_root)
    }

    fn check(&self) -> Result<(), RuntimeError> {
        let name = &self.cgroup_root;
        let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        if !name.split('/').all(plain) {
            return Err(RuntimeError::Invalid(format!("invalid cgroup name {name:?}")));
        }
        for path in [&self.root, &self.run] {
            if !path.is_absolute() {
                return Err(RuntimeError::Invalid(format!("{path:?} is not an absolute path")));
            }
        }
        Ok(())
    }
}

/// The file that lets [`reset()`] know what was configured.
fn config_file(root: &Path) -> PathBuf {
    root.join("runtime.json")
}

/// The embedded runtime. Dropping it leaves all containers running.
#[derive(Debug)]
pub struct Embedded {
    config: EmbeddedConfig,
    images: Arc<ImageStore>,
    cgroups: Cgroups,
    zygote: Mutex<Option<Zygote>>,
    model: Arc<Model>,
}

impl Embedded {
    /// Opens a runtime on its directories and takes over every shim that is still there.
    ///
    /// # Errors
    /// [`RuntimeError::Io`] when a directory cannot be used. Missing kernel features show as errors of single
    /// operations; ask [`preflight()`] for them beforehand.
    pub async fn new(config: EmbeddedConfig, images: Arc<ImageStore>) -> Result<Embedded, RuntimeError> {
        config.check()?;
        for directory in [&config.root, &config.sandboxes(), &config.run] {
            private_directory(directory).map_err(RuntimeError::io(format!("make {directory:?}")))?;
        }
        let file = config_file(&config.root);
        protocol::write_json(&file, &config).map_err(RuntimeError::io(format!("write {file:?}")))?;
        let cgroups = Cgroups::detect().map_err(RuntimeError::io("find cgroups"))?;
        let model = Arc::new(Model::new(config.clone(), cgroups.clone()));
        model.adopt().await?;
        Ok(Embedded { config, images, cgroups, zygote: Mutex::new(None), model })
    }
}
