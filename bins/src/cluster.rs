//! [`Cluster`]: a whole cluster in this process, with a builder.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ipnet::Ipv4Net;
use k8s_apiserver::{ApiServer, User};
use k8s_core::client::{Client, Kubeconfig};
use k8s_runtime::images::{ImageStore, Registries};

use crate::{
    control_plane::{ControlPlane, ControlPlaneConfig},
    exit::{Code, Failure},
    extras::Extras,
    identities,
    network::{Network, NetworkConfig, Parts},
    node::{self, LocalNode, NodeConfig},
    paths::{Lock, Paths},
    ranges,
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

/// Builder of a [`Cluster`]. Every setting has a default.
#[derive(Clone, Debug)]
pub struct Builder {
    data_dir: PathBuf,
    memory: bool,
    forget_state: bool,
    node: Node,
    listen: Option<SocketAddr>,
    advertise: Option<IpAddr>,
    pods: Ipv4Net,
    services: Ipv4Net,
    dns: Option<Ipv4Addr>,
    domain: String,
    node_name: Option<String>,
    tls_names: Vec<String>,
    controllers: Vec<String>,
    extras: Extras,
}

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
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            data_dir: "/var/lib/hyperkube".into(),
            memory: false,
            forget_state: false,
            node: Node::Local,
            listen: None,
            advertise: None,
            pods: Ipv4Net::new_assert(Ipv4Addr::new(10, 42, 0, 0), 16),
            services: Ipv4Net::new_assert(Ipv4Addr::new(10, 43, 0, 0), 16),
            dns: None,
            domain: "cluster.local".into(),
            node_name: None,
            tls_names: Vec::new(),
            controllers: vec!["*".into()],
            extras: Extras::default(),
        }
    }

    /// Returns an in-process client of a cluster administrator.
    #[must_use]
    pub fn client(&self) -> Client {
        self.plane.client()
    }

    /// Returns the API as a `tower::Service` of a cluster administrator. kube-rs programs can use it without
    /// a socket.
    #[must_use]
    pub fn service(&self) -> ApiServer {
        self.plane.server.service_as(User::admin())
    }

    /// Returns the API's listen address; `None` without a socket.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.plane.address
    }

    /// Returns the administrator's kubeconfig as YAML.
    ///
    /// # Errors
    /// The cluster has no listen address.
    pub fn kubeconfig(&self) -> Result<String, Failure> {
        Ok(self.kubeconfig_named("hyperkube")?.to_yaml())
    }

    /// Returns the administrator's kubeconfig with a context of this name.
    ///
    /// # Errors
    /// As [`Cluster::kubeconfig`].
    pub fn kubeconfig_named(&self, name: &str) -> Result<Kubeconfig, Failure> {
        self.plane.kubeconfig(name)
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
    pub async fn ready(&self, within: Duration) -> Result<(), Failure> {
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
    pub async fn down(self) -> Result<(), Failure> {
        let paths = self.paths.clone();
        self.shutdown().await;
        tokio::task::spawn_blocking(move || crate::reset::remove(&paths))
            .await
            .map_err(Failure::because("remove the cluster"))?
    }
}

impl Builder {
    /// Data directory. Default: `/var/lib/hyperkube`.
    #[must_use]
    pub fn data_dir(mut self, path: impl AsRef<Path>) -> Self {
        self.data_dir = path.as_ref().to_owned();
        self
    }
    /// Keeps objects in memory only; the data directory then holds only keys and containers.
    #[must_use]
    pub fn memory(mut self) -> Self {
        self.memory = true;
        self
    }
    /// If the store's file is empty or of another program, moves it aside, starts with an empty store, and
    /// removes the containers of its pods. Default: such a file is an error.
    #[must_use]
    pub fn forget_state(mut self, forget: bool) -> Self {
        self.forget_state = forget;
        self
    }
    /// Nodes that run in this process. Default: [`Node::Local`].
    #[must_use]
    pub fn node(mut self, node: Node) -> Self {
        self.node = node;
        self
    }
    /// Serves the API over TLS on this address; port 0 picks a free one. Default: no socket.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = Some(address);
        self
    }
    /// Address at which pods and other nodes reach this machine. Default: detected.
    #[must_use]
    pub fn advertise(mut self, address: IpAddr) -> Self {
        self.advertise = Some(address);
        self
    }
    /// Pod CIDR of the cluster. Default: 10.42.0.0/16.
    #[must_use]
    pub fn pods(mut self, range: Ipv4Net) -> Self {
        self.pods = range.trunc();
        self
    }
    /// Service CIDR. Default: 10.43.0.0/16.
    #[must_use]
    pub fn services(mut self, range: Ipv4Net) -> Self {
        self.services = range.trunc();
        self
    }
    /// Cluster DNS address. Default: the tenth of the service CIDR.
    #[must_use]
    pub fn dns(mut self, address: Ipv4Addr) -> Self {
        self.dns = Some(address);
        self
    }
    /// Cluster domain. Default: `cluster.local`.
    #[must_use]
    pub fn domain(mut self, domain: &str) -> Self {
        self.domain = domain.into();
        self
    }
    /// Name of the node on this machine. Default: the host name.
    #[must_use]
    pub fn node_name(mut self, name: &str) -> Self {
        self.node_name = Some(name.into());
        self
    }
    /// Additional names and addresses (SANs) for the server certificate.
    #[must_use]
    pub fn tls_names(mut self, names: &[String]) -> Self {
        self.tls_names = names.to_vec();
        self
    }
    /// Selects built-in controllers: `*` for all, `-name` to exclude one. Default: all.
    #[must_use]
    pub fn controllers(mut self, names: &[String]) -> Self {
        self.controllers = names.to_vec();
        self
    }

    /// Extensions of the control plane: admission functions, resources, controllers.
    #[must_use]
    pub fn extras(mut self, extras: Extras) -> Self {
        self.extras = extras;
        self
    }

    /// Starts the cluster. On return the API serves requests; [`Cluster::ready`] waits for the nodes.
    ///
    /// # Errors
    /// A one-line message and an exit code. Everything that was started is stopped again.
    pub async fn start(self) -> Result<Cluster, Failure> {
        let paths = Paths::new(&self.data_dir)?;
        if ranges::overlap(self.pods, self.services) {
            return Err(Failure::new(
                Code::Usage,
                format!(
                    "pod range {} and service range {} overlap; choose others with --cluster-cidr and --service-cidr",
                    self.pods, self.services
                ),
            ));
        }
        if self.node == Node::Local && self.extras.runtime.is_none() {
            node::check(&paths)?;
        }
        let lock = Lock::take(&paths)?;
        let gateway = IpAddr::V4(ranges::nth(self.pods, 1));
        let advertise = self.advertise.or_else(crate::network::own_address).unwrap_or(gateway);
        let dns = self.dns.unwrap_or_else(|| ranges::nth(self.services, 10));
        let plane = ControlPlane::start(
            &paths,
            &ControlPlaneConfig {
                listen: self.listen,
                advertise,
                services: self.services,
                pods: self.pods,
                domain: self.domain.clone(),
                memory: self.memory,
                forget_state: self.forget_state,
                tls_names: self.tls_names.clone(),
                controllers: self.controllers.clone(),
                extras: self.extras.clone(),
            },
        )
        .await?;
        let mut cluster = Cluster { paths, plane, nodes: Vec::new(), network: None, _lock: lock };
        match cluster.add_nodes(&self, advertise, dns).await {
            Ok(()) => Ok(cluster),
            Err(e) => {
                cluster.shutdown().await;
                Err(e)
            }
        }
    }
}

impl Cluster {
    async fn add_nodes(&mut self, choices: &Builder, address: IpAddr, dns: Ipv4Addr) -> Result<(), Failure> {
        let name = choices.node_name.clone().unwrap_or_else(host_name);
        let mut config = NodeConfig {
            name,
            address,
            dns: IpAddr::V4(dns),
            domain: choices.domain.clone(),
            pod_cidr: None,
            api: None,
            allowed_unsafe_sysctls: Vec::new(),
            metrics: self.plane.server.metrics().clone(),
        };
        let server = self.plane.server.clone();
        let kubelet = |name: &str| server.client_as(User::node(name));
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
                if let Some(runtime) = &choices.extras.runtime {
                    let root = self.paths.kubelet();
                    let client = kubelet(&config.name);
                    self.add(LocalNode::with_runtime(&root, &config, &client, runtime.clone()).await?);
                    return Ok(());
                }
                let network = NetworkConfig {
                    cluster: self.paths.id.clone(),
                    node_name: config.name.clone(),
                    pods: choices.pods,
                    services: choices.services,
                    node_pods: None,
                    dns,
                    domain: choices.domain.clone(),
                    state_dir: self.paths.network(),
                    metrics: config.metrics.clone(),
                };
                crate::network::record(&self.paths, &network)?;
                let proxy = server.client_as(User::new(identities::PROXY, &[]));
                let network = Network::start(&network, &proxy, Parts::All).await?;
                config.pod_cidr = Some(network.node_pods().into());
                let pods = network.pod_network();
                self.network = Some(network);
                let images = open_images(&self.paths)?;
                self.add(LocalNode::start(&self.paths, &config, &kubelet(&config.name), pods, images).await?);
                let client = self.client();
                crate::network::publish_dns(&client, dns)
                    .await
                    .map_err(Failure::because("make the kube-dns Service"))?;
            }
        }
        Ok(())
    }

    fn add(&mut self, node: LocalNode) {
        self.plane.kubelets.add(node.name(), node.connector());
        self.nodes.push(node);
    }
}

/// Opens the image store of a data directory, with its `registries.yaml` if present.
///
/// # Errors
/// The directory or the file cannot be used.
pub fn open_images(paths: &Paths) -> Result<Arc<ImageStore>, Failure> {
    paths.make().map_err(Failure::io(format!("data directory {}", paths.data.display())))?;
    let mut images = ImageStore::open(paths.images()).map_err(Failure::because("image store"))?;
    let file = paths.data.join("registries.yaml");
    if let Ok(text) = std::fs::read_to_string(&file) {
        let registries = Registries::parse(&text)
            .map_err(|e| Failure::new(Code::Usage, format!("{}: {e}", file.display())))?;
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
