//! [`Environment`]: the content of a server.

use serde::Serialize;
use serde_json::Value;

use crate::{
    error::EnvironmentError,
    manifests,
    server::{self, Server},
};

/// CustomResourceDefinitions of a server.
///
/// ```
/// let options = k8s_envtest::CRDInstallOptions { paths: vec!["config/crd".into()], ..Default::default() };
/// assert!(options.crds.is_empty());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CRDInstallOptions {
    /// Files of definitions, and directories of such files (`*.yaml`, `*.yml`, `*.json`; no subdirectories).
    /// Relative paths are relative to the working directory: for `cargo test`, the package's.
    pub paths: Vec<String>,
    /// Definitions as JSON.
    pub crds: Vec<String>,
}

/// Settings of the `envtest` crate's downloads. They have no effect, because there is nothing to download.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct BinaryAssetsSettings {
    /// No effect.
    pub download_binary_assets: bool,
    /// No effect: the API is that of Kubernetes 1.36.
    pub download_binary_assets_version: Option<String>,
    /// No effect.
    pub download_binary_assets_index_url: Option<String>,
    /// No effect.
    pub binary_assets_directory: Option<String>,
}

/// The content of a server to be created.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let server = k8s_envtest::Environment::default().create().await?;
/// assert!(server.exist());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Environment {
    /// CustomResourceDefinitions to install.
    pub crd_install_options: CRDInstallOptions,
    /// No effect: for source compatibility with the `envtest` crate.
    pub binary_assets_settings: BinaryAssetsSettings,
    /// Number of simulated nodes. 0: no nodes, scheduler and controllers.
    pub(crate) nodes: usize,
}

impl Environment {
    /// Adds a definition or a list of definitions: `T::crd()` of any kube version, or JSON.
    ///
    /// # Errors
    /// [`EnvironmentError::CrdSerialize`], [`EnvironmentError::UnsupportedCrdType`].
    pub fn with_crds(mut self, crds: impl Serialize) -> Result<Self, EnvironmentError> {
        let all = match serde_json::to_value(crds)? {
            Value::Array(all) => all,
            one => vec![one],
        };
        for one in &all {
            if !one.is_object() {
                return Err(EnvironmentError::UnsupportedCrdType);
            }
            self.crd_install_options.crds.push(one.to_string());
        }
        Ok(self)
    }

    /// Adds files and directories of definitions: see [`CRDInstallOptions::paths`].
    ///
    /// # Errors
    /// [`EnvironmentError::NoSuchFileOrDirectory`].
    pub fn with_crds_from_paths(mut self, crd_paths: Vec<String>) -> Result<Self, EnvironmentError> {
        for path in crd_paths {
            if let Err(source) = std::fs::metadata(&path) {
                return Err(EnvironmentError::NoSuchFileOrDirectory { path, source });
            }
            self.crd_install_options.paths.push(path);
        }
        Ok(self)
    }

    /// Adds all built-in controllers, the scheduler and simulated nodes, named from `node-0`. Pods are
    /// `Running` without containers.
    ///
    /// ```
    /// use kube::{Api, api::PostParams};
    /// use k8s_core::api::Pod;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let server = k8s_envtest::Environment::default().with_nodes(1).create().await?;
    /// let pods: Api<Pod> = Api::namespaced(server.client()?, "default");
    /// let spec = serde_json::json!({"containers": [{"name": "c", "image": "web:1"}]});
    /// let web = serde_json::from_value(serde_json::json!({"metadata": {"name": "web"}, "spec": spec}))?;
    /// pods.create(&PostParams::default(), &web).await?;
    /// let running = kube::runtime::conditions::is_pod_running();
    /// kube::runtime::wait::await_condition(pods, "web", running).await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn with_nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Starts a server. On return it serves the definitions. Time passes as on the wall.
    ///
    /// # Errors
    /// [`EnvironmentError`].
    pub async fn create(&self) -> Result<Server, EnvironmentError> {
        let definitions =
            manifests::definitions(&self.crd_install_options.paths, &self.crd_install_options.crds)?;
        server::start(self.nodes, definitions).await
    }
}
