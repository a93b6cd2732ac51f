//! [`Cluster`]: a whole cluster in this process, with a builder.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use ipnet::Ipv4Net;
use k8s_apiserver::{ApiServer, User, auth::AuthorizationMode};
use k8s_controllers::metrics::counted;
use k8s_core::client::{Client, Kubeconfig};
use k8s_runtime::{
    Runtime,
    images::{ImageStore, Registries},
};
use tokio_util::sync::CancellationToken;

use crate::{
    control_plane::{ApiConfig, ControlPlane, limits},
    error::ClusterError,
    extensions::Builder,
    identities,
    network::{Network, NetworkConfig, Parts},
    node::{self, LocalNode, NodeConfig},
    paths::{Lock, Paths, default_data_dir},
    ranges,
    settings::ClusterSettings,
};

/// The nodes that run in this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Node {
    /// No node: a control plane only.
    None,
    /// This machine, with real containers. Requires root.
    #[default]
    Local,
    /// This number of nodes with simulated containers.
    Simulated(usize),
}

impl Node {
    /// Returns [`Node::Local`]: this machine, with real containers.
    #[must_use]
    pub fn local() -> Self {
        Node::Local
    }
    /// Returns [`Node::Simulated`]: `count` nodes with simulated containers. Does not require root.
    #[must_use]
    pub fn simulated(count: usize) -> Self {
        Node::Simulated(count)
    }
}

/// Settings of a [`Cluster`]. Every one has a default.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    pub(crate) name: String,
    pub(crate) settings: ClusterSettings,
    pub(crate) node: Node,
    pub(crate) node_name: Option<String>,
    /// Serve the API over TLS on the settings' address.
    pub(crate) listens: bool,
    pub(crate) memory: bool,
}

/// Builder of a [`Cluster`].
pub type ClusterBuilder = Builder<ClusterConfig>;

/// A running cluster.
pub struct Cluster {
    paths: Paths,
    plane: ControlPlane,
    nodes: Vec<LocalNode>,
    network: Option<Network>,
    /// Data directory lock, held until the cluster is down.
    _lock: Lock,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("data", &self.paths.data).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Returns a builder. Defaults: this machine as the node, an embedded durable store, no socket.
    pub fn builder() -> ClusterBuilder {
        Builder::new(ClusterConfig {
            name: "hyperkube".into(),
            settings: ClusterSettings::default(),
            node: Node::Local,
            node_name: None,
            listens: false,
            memory: false,
        })
    }

    /// Returns an in-process client of a cluster administrator.
    #[must_use]
    pub fn client(&self) -> Client {
        self.plane.api.client()
    }

    /// Returns the API as a `tower::Service` of a cluster administrator. kube-rs programs can use it without
    /// a socket.
    #[must_use]
    pub fn service(&self) -> ApiServer {
        self.plane.api.server.service_as(User::admin())
    }

    /// Returns the API's listen address; `None` without a socket.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.plane.api.address
    }

    /// Returns the administrator's kubeconfig as YAML. Its context has the cluster's name.
    ///
    /// # Errors
    /// [`ClusterError::NoAddress`], [`ClusterError::Certificate`].
    pub fn kubeconfig(&self) -> Result<String, ClusterError> {
        Ok(self.admin_kubeconfig()?.to_yaml())
    }

    /// Returns the administrator's kubeconfig.
    ///
    /// # Errors
    /// As [`Cluster::kubeconfig`].
    pub fn admin_kubeconfig(&self) -> Result<Kubeconfig, ClusterError> {
        self.plane.api.admin_kubeconfig()
    }

    /// Returns the image store of the node on this machine, if there is one.
    #[must_use]
    pub fn images(&self) -> Option<Arc<ImageStore>> {
        self.nodes.iter().find_map(|n| n.images.clone())
    }

    /// Returns the names of the nodes in this process.
    #[must_use]
    pub fn nodes(&self) -> Vec<&str> {
        self.nodes.iter().map(LocalNode::name).collect()
    }

    /// Waits until all nodes of this process are ready.
    ///
    /// # Errors
    /// A node is not ready within `within`.
    pub async fn ready(&self, within: Duration) -> Result<(), ClusterError> {
        let client = self.client();
        for node in &self.nodes {
            node::wait_ready(&client, node.name(), within).await?;
        }
        Ok(())
    }

    /// Returns the cluster's directories.
    #[must_use]
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Stops the cluster. Containers keep running; the next start on the same data directory adopts them.
    pub async fn shutdown(self) {
        for node in self.nodes {
            node.shutdown().await;
        }
        if let Some(network) = self.network {
            network.shutdown().await;
        }
        self.plane.shutdown().await;
    }

    /// Stops the cluster and removes containers, network and data directory.
    ///
    /// # Errors
    /// Something could not be removed; the message lists it.
    pub async fn down(self) -> Result<(), ClusterError> {
        let paths = self.paths.clone();
        self.shutdown().await;
        tokio::task::spawn_blocking(move || crate::reset::remove(&paths))
            .await
            .map_err(ClusterError::of("remove the cluster"))?
    }
}

impl ClusterBuilder {
    /// Name of the cluster's distribution: context of its kubeconfig, default data directory `/var/lib/NAME`,
    /// directory `/run/NAME`, prefix of its control groups. 1 to 32 lower-case letters, digits or `-`. A data
    /// directory belongs to one name. Default: `hyperkube`.
    pub fn name(mut self, name: &str) -> Self {
        if self.base.settings.data_dir == default_data_dir(&self.base.name) {
            self.base.settings.data_dir = default_data_dir(name);
        }
        self.base.name = name.into();
        self
    }
    /// Data directory. Default: `/var/lib/NAME`.
    pub fn data_dir(mut self, path: impl AsRef<Path>) -> Self {
        self.base.settings.data_dir = path.as_ref().to_owned();
        self
    }
    /// Keeps objects in memory only; the data directory then holds only keys and containers.
    pub fn memory(mut self) -> Self {
        self.base.memory = true;
        self
    }
    /// If the store's file is empty or of another program, moves it aside, starts with an empty store, and
    /// removes the containers of its pods. Default: such a file is an error.
    pub fn forget_state(mut self, forget: bool) -> Self {
        self.base.settings.forget_state = forget;
        self
    }
    /// Nodes that run in this process. Default: [`Node::Local`].
    pub fn node(mut self, node: Node) -> Self {
        self.base.node = node;
        self
    }
    /// Serves the API over TLS on this address; port 0 picks a free one. Default: no socket.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.base.listens = true;
        self.base.settings.bind_address = address.ip();
        self.base.settings.https_listen_port = address.port();
        self
    }
    /// Address at which pods and other nodes reach this machine. Default: detected.
    pub fn advertise(mut self, address: IpAddr) -> Self {
        self.base.settings.advertise_address = Some(address);
        self
    }
    /// Pod CIDR of the cluster. Default: 10.42.0.0/16.
    pub fn pods(mut self, range: Ipv4Net) -> Self {
        self.base.settings.cluster_cidr = range.trunc();
        self
    }
    /// Service CIDR. Default: 10.43.0.0/16.
    pub fn services(mut self, range: Ipv4Net) -> Self {
        self.base.settings.service_cidr = range.trunc();
        self
    }
    /// Cluster DNS address. Default: the tenth of the service CIDR.
    pub fn dns(mut self, address: Ipv4Addr) -> Self {
        self.base.settings.cluster_dns = Some(address);
        self
    }
    /// Cluster domain. Default: `cluster.local`.
    pub fn domain(mut self, domain: &str) -> Self {
        self.base.settings.cluster_domain = domain.into();
        self
    }
    /// Name of the node on this machine. Default: the host name.
    pub fn node_name(mut self, name: &str) -> Self {
        self.base.node_name = Some(name.into());
        self
    }
    /// Additional names and addresses (SANs) for the server certificate.
    pub fn tls_names(mut self, names: &[String]) -> Self {
        self.base.settings.tls_san = names.to_vec();
        self
    }
    /// Starts the cluster. On return the API serves requests; [`Cluster::ready`] waits for the nodes.
    ///
    /// # Errors
    /// [`ClusterError`]. Everything that was started is stopped again.
    pub async fn start(self) -> Result<Cluster, ClusterError> {
        let Builder { base: config, mut extensions } = self;
        let settings = &config.settings;
        let paths = Paths::new(&config.name, &settings.data_dir)?;
        let (pods, services) = (settings.cluster_cidr, settings.service_cidr);
        if ranges::overlap(pods, services) {
            let reason = format!(
                "pod range {pods} and service range {services} overlap; choose others with --cluster-cidr and --service-cidr"
            );
            return Err(ClusterError::invalid("address ranges", reason));
        }
        let runtime = extensions.runtime.take();
        if config.node == Node::Local && runtime.is_none() {
            node::check(&paths)?;
        }
        let selection = extensions.select(&settings.controllers)?;
        let lock = Lock::take(&paths)?;
        let gateway = IpAddr::V4(ranges::nth(pods, 1));
        let advertise = settings.advertise_address.or_else(crate::network::own_address).unwrap_or(gateway);
        let dns = settings.cluster_dns.unwrap_or_else(|| ranges::nth(services, 10));
        let listen = SocketAddr::new(settings.bind_address, settings.https_listen_port);
        let api = ApiConfig {
            listen: config.listens.then_some(listen),
            advertise,
            services,
            node_ports: (30000, 32767),
            pods: Some(pods),
            domain: settings.cluster_domain.clone(),
            memory: config.memory,
            forget_state: settings.forget_state,
            tls_names: settings.tls_san.clone(),
            pki: None,
            client_ca: Vec::new(),
            tokens: HashMap::new(),
            anonymous: true,
            authorization: AuthorizationMode::Rbac,
            warn_unenforced: true,
            limits: limits(),
        };
        let plane = ControlPlane::start(&paths, api, selection, pods, extensions).await?;
        let mut cluster = Cluster { paths, plane, nodes: Vec::new(), network: None, _lock: lock };
        match cluster.add_nodes(&config, runtime, advertise, dns).await {
            Ok(()) => Ok(cluster),
            Err(e) => {
                cluster.shutdown().await;
                Err(e)
            }
        }
    }

    /// Runs the cluster until `shutdown` is cancelled, then stops it as [`Cluster::shutdown`] does.
    ///
    /// # Errors
    /// As [`ClusterBuilder::start`].
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), ClusterError> {
        let cluster = self.start().await?;
        shutdown.cancelled().await;
        cluster.shutdown().await;
        Ok(())
    }
}

impl Cluster {
    async fn add_nodes(
        &mut self,
        choices: &ClusterConfig,
        runtime: Option<Arc<dyn Runtime>>,
        address: IpAddr,
        dns: Ipv4Addr,
    ) -> Result<(), ClusterError> {
        let name = choices.node_name.clone().unwrap_or_else(host_name);
        let mut config = NodeConfig {
            name,
            address,
            dns: IpAddr::V4(dns),
            domain: choices.settings.cluster_domain.clone(),
            pod_cidr: None,
            api: None,
            allowed_unsafe_sysctls: Vec::new(),
            metrics: self.plane.api.server.metrics().clone(),
        };
        let kubelet = {
            let metrics = config.metrics.clone();
            let server = self.plane.api.server.clone();
            move |name: &str| counted(&server.client_as(User::node(name)), &metrics)
        };
        match choices.node {
            Node::None => {}
            Node::Simulated(count) => {
                let base = config.name.clone();
                for i in 0..count {
                    config.name = if count == 1 { base.clone() } else { format!("{base}-{i}") };
                    let root = self.paths.data.join("simulated").join(&config.name);
                    self.add(LocalNode::simulated(&root, &config, &kubelet(&config.name)).await?);
                }
            }
            Node::Local => {
                if let Some(runtime) = runtime {
                    let root = self.paths.kubelet();
                    let client = kubelet(&config.name);
                    self.add(LocalNode::with_runtime(&root, &config, &client, runtime).await?);
                    return Ok(());
                }
                let network = NetworkConfig {
                    program: self.paths.name.clone(),
                    cluster: self.paths.id.clone(),
                    node_name: config.name.clone(),
                    pods: choices.settings.cluster_cidr,
                    services: choices.settings.service_cidr,
                    node_pods: None,
                    dns,
                    domain: choices.settings.cluster_domain.clone(),
                    state_dir: self.paths.network(),
                    metrics: config.metrics.clone(),
                };
                crate::network::record(&self.paths, &network)?;
                let proxy = self.plane.api.client_as(User::new(identities::PROXY, &[]));
                let network = Network::start(&network, &proxy, Parts::All).await?;
                config.pod_cidr = Some(network.node_pods().into());
                let pods = network.pod_network();
                self.network = Some(network);
                let images = open_images(&self.paths)?;
                self.add(LocalNode::start(&self.paths, &config, &kubelet(&config.name), pods, images).await?);
                let client = self.client();
                crate::network::publish_dns(&client, dns)
                    .await
                    .map_err(ClusterError::of("make the kube-dns Service"))?;
            }
        }
        Ok(())
    }

    fn add(&mut self, node: LocalNode) {
        self.plane.api.kubelets.add(node.name(), node.connector());
        self.nodes.push(node);
    }
}

/// Opens the image store of a data directory, with its `registries.yaml` if present.
///
/// # Errors
/// The directory or the file cannot be used.
pub fn open_images(paths: &Paths) -> Result<Arc<ImageStore>, ClusterError> {
    paths.check_owner()?;
    paths.make().map_err(ClusterError::io(format!("data directory {}", paths.data.display())))?;
    let agent = concat!("/", env!("CARGO_PKG_VERSION"));
    let mut images = ImageStore::open(paths.images())
        .map_err(ClusterError::of("image store"))?
        .with_user_agent(&format!("{}{agent}", paths.name));
    let file = paths.data.join("registries.yaml");
    if let Ok(text) = std::fs::read_to_string(&file) {
        let registries =
            Registries::parse(&text).map_err(|e| ClusterError::invalid(file.display().to_string(), e))?;
        images = images.with_registries(registries);
    }
    Ok(Arc::new(images))
}

/// Returns the host name in lower case, the default node name.
#[must_use]
pub fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|h| h.into_string().ok()).unwrap_or_default();
    let name = name.to_lowercase();
    if name.is_empty() || name == "(none)" { "localhost".into() } else { name }
}
