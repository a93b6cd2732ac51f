//! The node in this process: runtime, images, pod network, kubelet.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use http::{Request, Response};
use ipnet::IpNet;
use k8s_apiserver::proxy::NodeConnector;
use k8s_core::{
    api::api::core::v1::Node,
    client::{Body, BoxError, Client, ListParams, WatchEvent},
};
use k8s_kubelet::{Config, Eviction, Kubelet, KubeletApi, KubeletError};
use k8s_metrics::Registry;
use k8s_net::pod::PodNetwork;
use k8s_runtime::{
    Images, Runtime,
    embedded::{Embedded, EmbeddedConfig, preflight},
    images::ImageStore,
    simulated::SimulatedImages,
};

use crate::{error::ClusterError, paths::Paths};

/// Settings of a node.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Name of the node.
    pub name: String,
    /// Address of the node.
    pub address: IpAddr,
    /// Cluster DNS address.
    pub dns: IpAddr,
    /// Cluster domain.
    pub domain: String,
    /// Pod CIDR of the node.
    pub pod_cidr: Option<IpNet>,
    /// Address and port of the kubelet's API; `None`: it is called in this process only.
    pub api: Option<(std::net::SocketAddr, k8s_tls::ServerTls)>,
    /// Sysctls beside the safe ones that pods may set.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Thresholds of eviction.
    pub eviction: Eviction,
    /// Registry of the kubelet's metrics.
    pub metrics: Registry,
}

/// A running node.
pub struct LocalNode {
    kubelet: Kubelet,
    /// The node's image store; `None` if the runtime needs no images.
    pub images: Option<Arc<ImageStore>>,
}

impl std::fmt::Debug for LocalNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalNode").field("name", &self.kubelet.node_name()).finish_non_exhaustive()
    }
}

/// Returns the runtime's name, directories and cgroup.
#[must_use]
pub fn runtime_config(paths: &Paths) -> EmbeddedConfig {
    EmbeddedConfig {
        name: paths.name.clone(),
        root: paths.containers(),
        run: paths.run.clone(),
        cgroup_root: paths.cgroup(),
    }
}

/// Checks that this machine can run containers.
///
/// # Errors
/// The missing requirement and its remedy.
pub fn check(paths: &Paths) -> Result<(), ClusterError> {
    if !nix::unistd::geteuid().is_root() {
        let what = "a node that runs containers needs root; run this as root (sudo)";
        return Err(ClusterError::Permission(what.to_owned()));
    }
    let missing = preflight(&runtime_config(paths));
    if missing.is_empty() {
        return Ok(());
    }
    Err(ClusterError::Machine { missing: missing.iter().map(ToString::to_string).collect() })
}

impl LocalNode {
    /// Starts a node with real containers.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn start(
        paths: &Paths,
        config: &NodeConfig,
        client: &Client,
        network: Arc<dyn PodNetwork>,
        images: Arc<ImageStore>,
    ) -> Result<Self, ClusterError> {
        let runtime = Embedded::new(runtime_config(paths), images.clone())
            .await
            .map_err(ClusterError::of("container runtime"))?;
        let kubelet = start_kubelet(
            (&paths.kubelet(), &paths.logs(), Some(paths.images())),
            config,
            client,
            Arc::new(runtime),
            images.clone(),
            Some(network),
        )
        .await?;
        Ok(LocalNode { kubelet, images: Some(images) })
    }

    /// Starts a node on a runtime that needs no images.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn with_runtime(
        root: &Path,
        config: &NodeConfig,
        client: &Client,
        runtime: Arc<dyn Runtime>,
    ) -> Result<Self, ClusterError> {
        let images = Arc::new(SimulatedImages);
        let directories = (root, &*root.join("logs"), None);
        let kubelet = start_kubelet(directories, config, client, runtime, images, None).await?;
        Ok(LocalNode { kubelet, images: None })
    }

    /// Returns the kubelet's API for calls in this process.
    #[must_use]
    pub fn connector(&self) -> Arc<dyn NodeConnector> {
        Arc::new(InProcess(self.kubelet.api()))
    }

    /// Returns the name of the node.
    #[must_use]
    pub fn name(&self) -> &str {
        self.kubelet.node_name()
    }

    /// Stops the kubelet. Containers keep running.
    pub async fn shutdown(self) {
        self.kubelet.shutdown().await;
    }
}

/// Returns the TLS configuration of a kubelet's API: a new certificate for the node. Client certificates of
/// the cluster's CA are accepted; callers without one need a bearer token.
///
/// # Errors
/// The certificate cannot be created.
pub fn kubelet_tls(
    pki: &crate::pki::Pki,
    policy: &k8s_tls::Policy,
    name: &str,
    address: IpAddr,
) -> Result<k8s_tls::ServerConfigs, ClusterError> {
    let identity = pki.server(&format!("kubelet-{name}"), &[name], &[address])?;
    let clients = k8s_tls::ClientAuth::Optional(pki.ca().as_bytes());
    let settings = k8s_tls::ServerSettings { clients, alpn: &[], named: &[], policy };
    k8s_tls::server_with(&identity.tls(), &settings).map_err(ClusterError::of("kubelet TLS"))
}

async fn start_kubelet(
    (root, logs, image_dir): (&Path, &Path, Option<PathBuf>),
    config: &NodeConfig,
    client: &Client,
    runtime: Arc<dyn Runtime>,
    images: Arc<dyn Images>,
    network: Option<Arc<dyn PodNetwork>>,
) -> Result<Kubelet, ClusterError> {
    let (root, logs) = (root.to_owned(), logs.to_owned());
    let node = config.clone();
    let machine_pressure = network.is_some();
    let simulated = network.is_none() && !nix::unistd::geteuid().is_root();
    let mut builder = Kubelet::builder(client.named("kubelet"), &config.name)
        .configure(move |c: &mut Config| {
            c.root_dir = root;
            c.log_dir = logs;
            c.image_dir = image_dir;
            c.cluster_dns = vec![node.dns];
            c.cluster_domain = node.domain;
            c.node_ips = vec![node.address];
            c.pod_cidr = node.pod_cidr;
            c.kubelet_version = k8s_apiserver::health::VERSION.into();
            c.tmpfs = !simulated;
            c.machine_pressure = machine_pressure;
            c.allowed_unsafe_sysctls = node.allowed_unsafe_sysctls;
            c.eviction = node.eviction;
            match node.api {
                Some((address, tls)) => {
                    c.bind_address = address.ip();
                    c.port = address.port();
                    c.tls = Some(tls);
                }
                None => {
                    c.port = 0;
                    c.tls = None;
                }
            }
        })
        .metrics(config.metrics.clone())
        .runtime(runtime)
        .images(images);
    if let Some(network) = network {
        builder = builder.network(network);
    }
    builder.start().await.map_err(|e| match e {
        KubeletError::Listen { address, source } if source.kind() == std::io::ErrorKind::AddrInUse => {
            ClusterError::KubeletPortInUse { address, source }
        }
        e => ClusterError::of("start the kubelet")(e),
    })
}

/// A kubelet in this process, called without HTTP.
struct InProcess(KubeletApi);

#[async_trait]
impl NodeConnector for InProcess {
    async fn call(&self, _: &serde_json::Value, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        Ok(self.0.handle(request).await)
    }
}

/// Waits until a node is ready.
///
/// # Errors
/// The node is not ready within `within`.
pub async fn wait_ready(client: &Client, name: &str, within: Duration) -> Result<(), ClusterError> {
    use futures::StreamExt;
    let is_ready = |node: &Node| {
        let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
        conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
    };
    let watch = async {
        loop {
            let params = ListParams::default().fields(format!("metadata.name={name}"));
            let Ok(mut events) = client.all::<Node>().watch(&params).await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            while let Some(Ok(event)) = events.next().await {
                if let WatchEvent::Added(node) | WatchEvent::Modified(node) = event
                    && is_ready(&node)
                {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(within, watch)
        .await
        .map_err(|_| ClusterError::NotReady { node: name.to_owned(), within })
}
