//! The embedded runtime: containers by this program and a Linux kernel alone.
//!
//! Flow: the program starts itself again as a single-threaded [zygote](run_if_zygote). Per pod the zygote
//! forks a shim, which creates the pod's namespaces and forks its containers. [`Embedded`] talks to each shim
//! over a socket in the sandbox's directory. It keeps a model of all sandboxes in memory and updates it from
//! the shims' events.
//! Guarantees:
//! 1. Containers outlive this process and the zygote. [`Embedded::new`] on the same directories finds all of
//!    them.
//! 2. A sandbox's resources outside of its processes are recorded before they are created, so that a removal
//!    (or [`reset()`]) after a crash finds them.
//!
//! Not here: images (see [`crate::images`]), and networks (they attach to the namespace in
//! [`SandboxStatus`](crate::SandboxStatus)).
//!
//! A program that uses it must start with:
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

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use self::{cgroup::Cgroups, model::Model, zygote::Zygote};
pub use self::{
    in_use::{has_sandboxes, images_in_use},
    preflight::{Missing, preflight},
    reset::{leftovers, reset},
    zygote::run_if_zygote,
};
use crate::{api::RuntimeError, images::ImageStore, private_directory};

/// The name, directories and cgroups of an embedded runtime. Two runtimes must share neither a directory nor
/// the cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbeddedConfig {
    /// Name of the program. Its shims are processes `NAME-shim`, of which Linux shows 15 bytes.
    #[serde(default)]
    pub name: String,
    /// Directory of persistent state: records, shim logs, container root filesystems. Its file system must
    /// support overlayfs upper directories.
    pub root: PathBuf,
    /// Directory that a reboot may empty, usually below `/run`: pinned network namespaces and shared memory.
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

/// Path of the file from which [`reset()`] reads the configuration.
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
    /// Opens a runtime on its directories and reconnects to every running shim.
    ///
    /// # Errors
    /// [`RuntimeError::Io`] if a directory cannot be used. Missing kernel features are errors of single
    /// operations; check them beforehand with [`preflight()`].
    pub fn new(
        config: EmbeddedConfig,
        images: Arc<ImageStore>,
    ) -> BoxFuture<'static, Result<Embedded, RuntimeError>> {
        // Boxed: callers' crates need not compile it again.
        Box::pin(Self::open(config, images))
    }

    async fn open(config: EmbeddedConfig, images: Arc<ImageStore>) -> Result<Embedded, RuntimeError> {
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
