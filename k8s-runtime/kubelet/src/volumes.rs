//! Volumes: directories and files for the pod's containers, with one plugin per volume type.
//!
//! Flow: [`set_up`] makes a pod's volumes and returns their host paths. It is called again when a ConfigMap,
//! Secret or ClusterTrustBundle changes or a token is due for refresh, and then updates the contents.
//! [`cleanup::remove_pod_dir`] removes everything of a pod from mountinfo alone, so that it also works after
//! a crash.
//!
//! Guarantee: a reader of a ConfigMap, Secret, downward API or projected volume sees one version completely,
//! never a mixture ([`atomic`]).
//! Not here: attaching disks, network file systems; pods with such volumes get a `FailedMount` event.

mod atomic;
pub(crate) mod cleanup;
mod config_map;
mod downward_api;
mod empty_dir;
mod host_path;
mod image;
pub(crate) mod local_path;
mod ownership;
mod payload;
mod persistent;
mod projected;
mod secret;
mod unsupported;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;
use k8s_core::meta::ObjectExt;

use crate::{
    context::Context, env::ConfigError, pod_certificates::CertificateError, sources::SourceError,
    trust::TrustError, types,
};

/// The reason for which a volume cannot be used yet. Every variant is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error("{0}")]
    Source(#[from] SourceError),
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Api(#[from] k8s_core::client::Error),
    #[error("{0}")]
    Trust(#[from] TrustError),
    #[error("{0}")]
    Certificate(#[from] CertificateError),
    #[error("references non-existent {kind} key: {key}")]
    Key { kind: &'static str, key: String },
    #[error("hostPath type check failed: {path:?} is not {want}")]
    HostPathType { path: PathBuf, want: &'static str },
    #[error("{context} {path:?}: {source}")]
    Io { context: &'static str, path: PathBuf, source: std::io::Error },
    #[error("invalid path {0:?}: must be relative and stay inside the volume")]
    Path(String),
    #[error("{0}")]
    Other(String),
}

impl VolumeError {
    fn io<E: Into<std::io::Error>>(context: &'static str, path: &Path) -> impl FnOnce(E) -> VolumeError {
        move |e| VolumeError::Io { context, path: path.to_owned(), source: e.into() }
    }
}

/// An object that the contents of a volume or a container's environment depend on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Reference {
    ConfigMap(String),
    Secret(String),
    /// All ClusterTrustBundles.
    TrustBundles,
}

/// The pod and the directories for which a plugin sets a volume up.
pub(crate) struct Setup<'a> {
    pub(crate) cx: &'a Context,
    pub(crate) pod: &'a types::Pod,
    pub(crate) fs_group: Option<u32>,
    volumes_dir: PathBuf,
    refresh_at: Mutex<Option<types::Timestamp>>,
}

impl Setup<'_> {
    /// Path of a volume's directory; it may not exist yet.
    fn dir(&self, plugin: &str, name: &str) -> PathBuf {
        self.volumes_dir.join(format!("kubernetes.io~{plugin}")).join(name)
    }

    /// Requests another set-up at `when` or earlier.
    fn refresh_at(&self, when: types::Timestamp) {
        let mut slot = self.refresh_at.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = Some(slot.map_or(when, |have| have.min(when)));
    }
}

/// A volume of a pod.
#[async_trait]
pub(crate) trait Volume: Send + Sync {
    /// Creates the volume or updates its contents, and returns its path on the host.
    async fn set_up(&self, setup: &Setup<'_>) -> Result<PathBuf, VolumeError>;
    /// Returns the objects that the contents depend on.
    fn references(&self) -> Vec<Reference> {
        Vec::new()
    }
}

type Plugin = fn(&types::Volume) -> Option<Box<dyn Volume>>;

/// The plugins in order; the last one accepts every volume.
const PLUGINS: &[Plugin] = &[
    empty_dir::plugin,
    config_map::plugin,
    secret::plugin,
    projected::plugin,
    downward_api::plugin,
    host_path::plugin,
    image::plugin,
    persistent::plugin,
    unsupported::plugin,
];

fn plugin_for(volume: &types::Volume) -> Option<Box<dyn Volume>> {
    PLUGINS.iter().find_map(|plugin| plugin(volume))
}

/// The volumes of a pod on the host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mounted {
    pub(crate) paths: HashMap<String, PathBuf>,
    /// The time to set up again even if nothing changes (tokens get old).
    pub(crate) refresh_at: Option<types::Timestamp>,
}

/// The volume that failed, and the reason.
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume {volume:?} : {source}")]
pub(crate) struct MountError {
    volume: String,
    #[source]
    source: VolumeError,
}

/// Returns the objects that a pod's volumes depend on.
pub(crate) fn references(pod: &types::Pod) -> Vec<Reference> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.filter_map(plugin_for).flat_map(|v| v.references()).collect()
}

/// Creates a pod's volumes or updates their contents.
pub(crate) async fn set_up(cx: &Context, pod: &types::Pod) -> Result<Mounted, MountError> {
    let spec = pod.spec.clone().unwrap_or_default();
    let fs_group =
        spec.security_context.as_ref().and_then(|s| s.fs_group).and_then(|g| u32::try_from(g).ok());
    let setup = Setup {
        cx,
        pod,
        fs_group,
        volumes_dir: cx.config.pod_dir(pod.uid()).join("volumes"),
        refresh_at: Mutex::new(None),
    };
    let work = spec.volumes.iter().flatten().map(|volume| {
        let setup = &setup;
        async move {
            let failed = |source| MountError { volume: volume.name.clone(), source };
            let plugin = plugin_for(volume).ok_or_else(|| {
                failed(VolumeError::Other("the volume has no source that this kubelet knows".into()))
            })?;
            let path = plugin.set_up(setup).await.map_err(failed)?;
            Ok((volume.name.clone(), path))
        }
    });
    let paths = futures::future::try_join_all(work).await?.into_iter().collect();
    let refresh_at = *setup.refresh_at.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Mounted { paths, refresh_at })
}
