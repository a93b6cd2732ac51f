//! [`Cluster`]: a whole cluster in this process, with a builder.

mod builder;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ipnet::Ipv4Net;
use k8s_apiserver::{ApiServer, User};
use k8s_controllers::metrics::counted;
use k8s_core::client::{Client, Kubeconfig};
use k8s_kubelet::Eviction;
use k8s_runtime::{
    Runtime,
    images::{ImageStore, Registries},
};
use k8s_tls::ServerTls;

use crate::{
    addons::Addon,
    control_plane::{ControlPlane, Kubeconfigs, limits},
    error::ClusterError,
    extensions::Builder,
    identities,
    ingress::{self, Ingress, IngressConfig},
    network::{Network, NetworkConfig, Parts},
    node::{self, LocalNode, NodeConfig},
    paths::{Lock, Paths},
    renewal::Renewals,
    settings::ClusterSettings,
    simulated::{SimulatedConfig, SimulatedNodes},
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
    /// Port of the kubelet's API on this machine; 0: no socket.
    pub(crate) kubelet_port: u16,
    /// Thresholds of eviction on this machine.
    pub(crate) eviction: Eviction,
    /// Serve the API over TLS on the settings' address.
    pub(crate) listens: bool,
    pub(crate) memory: bool,
    /// Choices about simulated nodes.
    pub(crate) simulated: SimulatedConfig,
}

/// Builder of a [`Cluster`].
pub type ClusterBuilder = Builder<ClusterConfig>;

/// A running cluster.
pub struct Cluster {
    paths: Paths,
    plane: ControlPlane,
    nodes: Vec<LocalNode>,
    simulated: Option<SimulatedNodes>,
    network: Option<Network>,
    ingress: Option<Ingress>,
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
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let directory = tempfile::tempdir()?;
    /// # let data = directory.path();
    /// use hyperkube::{Cluster, Node};
    /// let cluster = Cluster::builder().data_dir(data).memory().node(Node::None).start().await?;
    /// assert_eq!((cluster.nodes().len(), cluster.address()), (0, None));
    /// cluster.shutdown().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn builder() -> ClusterBuilder {
        Builder::new(ClusterConfig {
            name: "hyperkube".into(),
            settings: ClusterSettings::default(),
            node: Node::Local,
            node_name: None,
            kubelet_port: 0,
            eviction: crate::eviction::default(),
            listens: false,
            memory: false,
            simulated: SimulatedConfig::default(),
        })
    }

    /// Returns an in-process client of a cluster administrator.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let directory = tempfile::tempdir()?;
    /// # let data = directory.path();
    /// use hyperkube::{Cluster, Node};
    /// use k8s_core::{api::Namespace, client::ListParams};
    /// let cluster = Cluster::builder().data_dir(data).memory().node(Node::None).start().await?;
    /// let namespaces = cluster.client().all::<Namespace>().list(&ListParams::default()).await?;
    /// assert!(namespaces.iter().any(|n| n.metadata.name.as_deref() == Some("kube-system")));
    /// # cluster.shutdown().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn client(&self) -> Client {
        self.plane.api.client()
    }

    /// Returns the API as a `tower::Service` of a cluster administrator. kube-rs programs can use it without
    /// a socket.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let directory = tempfile::tempdir()?;
    /// # let data = directory.path();
    /// use hyperkube::{Cluster, Node};
    /// let cluster = Cluster::builder().data_dir(data).memory().node(Node::None).start().await?;
    /// let kube = kube::Client::new(cluster.service(), "default");
    /// assert_eq!(kube.apiserver_version().await?.major, "1");
    /// # cluster.shutdown().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn service(&self) -> ApiServer {
        self.plane.api.server.service_as(User::admin())
    }

    /// Returns the API's listen address; `None` without a socket.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let directory = tempfile::tempdir()?;
    /// # let data = directory.path();
    /// use hyperkube::{Cluster, Node};
    /// let builder = Cluster::builder().data_dir(data).memory().node(Node::None);
    /// let cluster = builder.listen("127.0.0.1:0".parse()?).start().await?;
    /// println!("kubectl --server https://{}", cluster.address().expect("it listens"));
    /// # cluster.shutdown().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.plane.api.address
    }

    /// Returns the administrator's kubeconfig as YAML. Its context has the cluster's name.
    ///
    /// # Errors
    /// [`ClusterError::NoAddress`], [`ClusterError::Certificate`].
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let directory = tempfile::tempdir()?;
    /// # let data = directory.path();
    /// use hyperkube::{Cluster, ClusterError, Node};
    /// let builder = || Cluster::builder().data_dir(data).memory().node(Node::None);
    /// let cluster = builder().listen("127.0.0.1:0".parse()?).start().await?;
    /// std::fs::write(data.join("kubeconfig"), cluster.kubeconfig()?)?;
    /// cluster.shutdown().await;
    ///
    /// let closed = builder().start().await?;
    /// assert!(matches!(closed.kubeconfig(), Err(ClusterError::NoAddress)));
    /// # closed.shutdown().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn kubeconfig(&self) -> Result<String, ClusterError> {
        Ok(self.admin_kubeconfig()?.to_yaml())
    }

    /// Returns the administrator's kubeconfig.
    ///
    /// # Errors
    /// As [`Cluster::kubeconfig`].
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let directory = tempfile::tempdir()?;
    /// # let data = directory.path();
    /// use hyperkube::{Cluster, Node};
    /// let builder = Cluster::builder().data_dir(data).memory().node(Node::None);
    /// let cluster = builder.listen("127.0.0.1:0".parse()?).start().await?;
    /// assert_eq!(cluster.admin_kubeconfig()?.current_context, "hyperkube");
    /// # cluster.shutdown().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn admin_kubeconfig(&self) -> Result<Kubeconfig, ClusterError> {
        self.plane.api.admin_kubeconfig()
    }

    /// Returns the image store of the node on this machine, if there is one.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use hyperkube::Cluster;
    /// use k8s_runtime::images::ImageBuilder;
    /// let cluster = Cluster::builder().data_dir("/var/lib/shop").start().await?; // needs root
    /// if let Some(images) = cluster.images() {
    ///     // Pods can use the image at once, without a registry.
    ///     let image = ImageBuilder::new().file("target/release/shop", "/shop", 0o755);
    ///     image.entrypoint(["/shop"]).import(&images, "shop:1")?;
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn images(&self) -> Option<Arc<ImageStore>> {
        self.nodes.iter().find_map(|n| n.images.clone())
    }

    /// Returns the names of the nodes in this process.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let directory = tempfile::tempdir()?;
    /// # let data = directory.path();
    /// use hyperkube::{Cluster, Node};
    /// let builder = Cluster::builder().data_dir(data).memory().node(Node::simulated(2));
    /// let cluster = builder.node_name("shelf").start().await?;
    /// assert_eq!(cluster.nodes(), ["shelf-0", "shelf-1"]);
    /// # cluster.shutdown().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn nodes(&self) -> Vec<&str> {
        let simulated = self.simulated.iter().flat_map(SimulatedNodes::names);
        self.nodes.iter().map(LocalNode::name).chain(simulated).collect()
    }

    /// Waits until all nodes of this process are ready.
    ///
    /// # Errors
    /// A node is not ready within `within`.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let directory = tempfile::tempdir()?;
    /// # let data = directory.path();
    /// use std::time::Duration;
    /// use hyperkube::{Cluster, Node};
    /// let cluster = Cluster::builder().data_dir(data).memory().node(Node::simulated(1)).start().await?;
    /// cluster.ready(Duration::from_secs(30)).await?;
    /// # cluster.shutdown().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub async fn ready(&self, within: Duration) -> Result<(), ClusterError> {
        let client = self.client();
        // Simulated nodes were registered as ready.
        for node in &self.nodes {
            node::wait_ready(&client, node.name(), within).await?;
        }
        Ok(())
    }

    /// Waits until the API's listener fails; forever if there is none. A running cluster does not end by
    /// itself otherwise.
    ///
    /// # Errors
    /// The listener's error. The cluster still serves clients in this process; shut it down.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use hyperkube::Cluster;
    /// let mut cluster = Cluster::builder().listen("127.0.0.1:6443".parse()?).start().await?;
    /// tokio::select! {
    ///     ended = cluster.ended() => ended?,
    ///     _ = tokio::signal::ctrl_c() => {}
    /// }
    /// cluster.shutdown().await;
    /// # Ok(()) }
    /// ```
    pub async fn ended(&mut self) -> Result<(), ClusterError> {
        self.plane.api.ended().await
    }

    /// Returns the cluster's directories.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let directory = tempfile::tempdir()?;
    /// # let data = directory.path();
    /// use hyperkube::{Cluster, Node};
    /// let cluster = Cluster::builder().data_dir(data).node(Node::None).start().await?;
    /// assert_eq!(cluster.paths().store(), data.join("state.redb"));
    /// # cluster.shutdown().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Stops the cluster. Containers keep running; the next start on the same data directory adopts them.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let directory = tempfile::tempdir()?;
    /// # let data = directory.path();
    /// use hyperkube::{Cluster, Node};
    /// use k8s_core::{api::ConfigMap, client::ListParams};
    /// let start = || Cluster::builder().data_dir(data).node(Node::None).start();
    /// let cluster = start().await?;
    /// let map = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"shelves": "3"}});
    /// cluster.client().namespaced::<ConfigMap>("default").apply("shop", &map).await?;
    /// cluster.shutdown().await;
    ///
    /// // The next start continues from the data directory.
    /// let cluster = start().await?;
    /// assert!(cluster.client().namespaced::<ConfigMap>("default").get("shop").await.is_ok());
    /// # cluster.shutdown().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub async fn shutdown(mut self) {
        self.plane.api.begin_shutdown().await;
        if let Some(ingress) = self.ingress {
            ingress.shutdown().await;
        }
        for node in self.nodes {
            node.shutdown().await;
        }
        if let Some(simulated) = self.simulated {
            simulated.shutdown().await;
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
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let directory = tempfile::tempdir()?;
    /// # let data = directory.path();
    /// use hyperkube::{Cluster, Node};
    /// let cluster = Cluster::builder().data_dir(data).node(Node::None).start().await?;
    /// cluster.down().await?;
    /// assert!(!data.exists());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub async fn down(self) -> Result<(), ClusterError> {
        let paths = self.paths.clone();
        self.shutdown().await;
        tokio::task::spawn_blocking(move || crate::reset::remove(&paths))
            .await
            .map_err(ClusterError::of("remove the cluster"))?
    }
}

impl Cluster {
    /// Returns the source of kubeconfigs, for steps of [`Cluster::renewals`].
    pub(crate) fn kubeconfigs(&self) -> Kubeconfigs {
        self.plane.api.kubeconfigs.clone()
    }

    /// Returns the steps that renew certificates while the cluster runs.
    pub(crate) fn renewals(&self) -> &Renewals {
        &self.plane.api.renewals
    }

    async fn add_nodes(
        &mut self,
        choices: &ClusterConfig,
        runtime: Option<Arc<dyn Runtime>>,
        address: IpAddr,
        (pods, dns): (Ipv4Net, Ipv4Addr),
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
            eviction: choices.eviction.clone(),
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
                let name = &config.name;
                let names = match count {
                    1 => vec![name.clone()],
                    _ => (0..count).map(|i| format!("{name}-{i}")).collect(),
                };
                let choices = &choices.simulated;
                self.simulated =
                    Some(SimulatedNodes::start(&self.plane, names, address, pods, choices).await?);
            }
            Node::Local => {
                config.api = self.kubelet_api(choices, &config)?;
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
                    reserved_ports: [choices.settings.https_listen_port, choices.kubelet_port]
                        .into_iter()
                        .filter(|port| *port != 0)
                        .collect(),
                    hold_dns: true,
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
                crate::network::publish_dns(&client, dns, &choices.settings.cluster_domain)
                    .await
                    .map_err(ClusterError::of("make the kube-dns Service"))?;
                if !choices.settings.disable.contains(&Addon::Ingress) {
                    self.ingress = Some(self.ingress(choices, &config).await?);
                }
            }
        }
        Ok(())
    }

    /// Starts the Ingress controller of the node on this machine.
    async fn ingress(&self, choices: &ClusterConfig, node: &NodeConfig) -> Result<Ingress, ClusterError> {
        let api = &self.plane.api;
        let gateway = self.network.as_ref().map_or(node.address, Network::gateway);
        let account = User::service_account("kube-system", ingress::ACCOUNT);
        let config = IngressConfig {
            pki: &api.pki,
            renewals: &api.renewals,
            client: api.client_as(account),
            admin: self.client(),
            gateway,
            node: (&node.name, node.address),
            refused: vec![
                choices.settings.cluster_cidr.into(),
                choices.settings.service_cidr.into(),
                gateway.into(),
                node.address.into(),
            ],
            flags: &choices.settings.ingress,
            // Each may have one to an endpoint; as many descriptors are left for all else.
            connections: limits().connections / 3,
            metrics: node.metrics.clone(),
        };
        Ingress::start(config).await
    }

    /// Returns address and TLS of the kubelet's API on this machine. The certificate is renewed with the
    /// cluster's.
    fn kubelet_api(
        &self,
        choices: &ClusterConfig,
        node: &NodeConfig,
    ) -> Result<Option<(SocketAddr, ServerTls)>, ClusterError> {
        if choices.kubelet_port == 0 {
            return Ok(None);
        }
        let policy = choices.settings.serving.policy()?;
        let (pki, name, address) = (self.plane.api.pki.clone(), node.name.clone(), node.address);
        let configs = move || node::kubelet_tls(&pki, &policy, &name, address);
        let tls = ServerTls::new(configs()?);
        let renewed = tls.clone();
        self.renewals().add("kubelet", move || configs().map(|configs| renewed.replace(configs)));
        Ok(Some((SocketAddr::new(address, choices.kubelet_port), tls)))
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
