//! The node components as single programs: kubelet with the pod network, and kube-proxy with the cluster DNS.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    components::{Connection, stop_token},
    config::ConfigFile,
    exit::{Code, Failure},
    health,
};
use crate::{
    ClusterError,
    eviction::EvictionFlags,
    extensions::Extensions,
    network::{Network, NetworkConfig, Parts},
    node::{self, LocalNode, NodeConfig},
    open_images,
    paths::{Lock, Paths},
    pki::Pki,
    ranges,
    renewal::Renewals,
    serving::PolicyFlags,
};
use ipnet::Ipv4Net;
use k8s_metrics::Registry;
use k8s_runtime::Runtime;
use k8s_tls::ServerTls;
use tokio_util::sync::CancellationToken;

/// Network settings that are equal on all nodes of a cluster.
#[derive(Debug, clap::Args)]
struct Ranges {
    /// Pod CIDR of the cluster.
    #[arg(long, default_value = ranges::PODS, value_parser = ranges::parse)]
    cluster_cidr: Ipv4Net,
    /// Service CIDR.
    #[arg(long, default_value = ranges::SERVICES, value_parser = ranges::parse)]
    service_cluster_ip_range: Ipv4Net,
    /// Cluster DNS address.
    #[arg(long, default_value = ranges::DNS)]
    cluster_dns: Ipv4Addr,
    /// Cluster domain.
    #[arg(long, default_value = ranges::DOMAIN)]
    cluster_domain: String,
    /// Name of the node (default: the host name).
    #[arg(long, visible_alias = "node-name")]
    hostname_override: Option<String>,
}

impl Ranges {
    fn network(&self, paths: &Paths, node_pods: Option<Ipv4Net>) -> NetworkConfig {
        NetworkConfig {
            program: paths.name.clone(),
            cluster: paths.id.clone(),
            node_name: self.node_name(),
            pods: self.cluster_cidr,
            services: self.service_cluster_ip_range,
            node_pods,
            dns: self.cluster_dns,
            domain: self.cluster_domain.clone(),
            state_dir: paths.network(),
            // The defaults of the API server and the kubelet, which may be restarting.
            reserved_ports: vec![6443, 10250],
            hold_dns: true,
            metrics: Registry::default(),
        }
    }

    fn node_name(&self) -> String {
        self.hostname_override.clone().unwrap_or_else(crate::host_name)
    }
}

/// Run the node agent and the pod network alone.
#[derive(Debug, clap::Args)]
pub(super) struct Kubelet {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    ranges: Ranges,
    /// Directory of the node's state.
    #[arg(long, default_value = "/var/lib/hyperkube")]
    root_dir: PathBuf,
    /// Address of the node (default: detected).
    #[arg(long)]
    node_ip: Option<IpAddr>,
    /// Pod CIDR of the node (default: the first /24 of the cluster's).
    #[arg(long, value_parser = ranges::parse)]
    pod_cidr: Option<Ipv4Net>,
    /// Port of the kubelet's API; 0 disables it.
    #[arg(long, default_value_t = 10250)]
    port: u16,
    /// Address of the kubelet's API.
    #[arg(long, default_value = "0.0.0.0")]
    address: IpAddr,
    /// Directory of the CA that signs the API server's client certificate and this kubelet's serving
    /// certificate (default: the cluster's certificate directory, if it is on this machine).
    #[arg(long)]
    cert_dir: Option<PathBuf>,
    /// Sysctls that pods may set in addition to the safe ones, comma-separated; a trailing `*` matches any
    /// suffix. Only sysctls of a pod's own namespaces (`kernel.shm*`, `kernel.msg*`, `kernel.sem`,
    /// `fs.mqueue.*`, `net.*`).
    #[arg(long, value_delimiter = ',')]
    allowed_unsafe_sysctls: Vec<String>,
    #[command(flatten)]
    eviction: EvictionFlags,
    #[command(flatten)]
    policy: PolicyFlags,
    #[command(flatten)]
    _config: ConfigFile,
}

/// The container runtime of a kubelet, and the pod network that it needs.
enum Containers {
    /// The embedded runtime.
    Embedded(Network),
    /// A runtime of the distribution, with a pod network of its own.
    Added(Arc<dyn Runtime>),
}

impl Kubelet {
    pub(super) async fn run(mut self, name: &str, extensions: Extensions) -> Result<(), Failure> {
        self.connection.check_node(&self.ranges.node_name())?;
        let eviction = self.eviction.upstream()?;
        let paths = Paths::new(name, &self.root_dir)?;
        if extensions.runtime.is_none() {
            node::check(&paths)?;
        }
        let _lock = Lock::take(&paths)?;
        let metrics = Registry::default();
        let client = self.connection.client("kubelet", &metrics)?;
        let containers = match extensions.runtime {
            Some(runtime) => Containers::Added(runtime),
            None => {
                let config = self.ranges.network(&paths, self.pod_cidr);
                crate::network::record(&paths, &config)?;
                Containers::Embedded(Network::start(&config, &client, Parts::Pods).await?)
            }
        };
        let network = match &containers {
            Containers::Embedded(network) => Some(network),
            Containers::Added(_) => None,
        };
        let address = self.node_ip.or_else(crate::network::own_address);
        let address =
            address.or_else(|| network.map(Network::gateway)).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let stop = stop_token();
        let api = self.tls(name, address, &stop)?;
        let config = NodeConfig {
            name: self.ranges.node_name(),
            address,
            dns: IpAddr::V4(self.ranges.cluster_dns),
            domain: self.ranges.cluster_domain.clone(),
            pod_cidr: network.map(|network| network.node_pods().into()),
            api,
            eviction,
            allowed_unsafe_sysctls: std::mem::take(&mut self.allowed_unsafe_sysctls),
            metrics,
        };
        let node = match &containers {
            Containers::Added(runtime) => {
                LocalNode::with_runtime(&paths.kubelet(), &config, &client, runtime.clone()).await?
            }
            Containers::Embedded(network) => {
                let pods = network.pod_network();
                LocalNode::start(&paths, &config, &client, pods, open_images(&paths)?).await?
            }
        };
        println!("node {} runs", node.name());
        stop.cancelled().await;
        node.shutdown().await;
        if let Containers::Embedded(network) = containers {
            network.shutdown().await;
        }
        Ok(())
    }

    /// The kubelet's API over TLS, with a certificate of the cluster's CA that is renewed until `stop`.
    #[expect(clippy::disallowed_methods, reason = "the task ends with the program's token")]
    fn tls(
        &self,
        name: &str,
        address: IpAddr,
        stop: &CancellationToken,
    ) -> Result<Option<(SocketAddr, ServerTls)>, Failure> {
        let policy = self.policy.policy()?;
        if self.port == 0 {
            return Ok(None);
        }
        let Some(directory) = &self.cert_dir else {
            tracing::warn!(
                port = self.port,
                "the kubelet's API (logs, exec, metrics) is not served: --cert-dir names no CA for its certificate"
            );
            return Ok(None);
        };
        let pki = Arc::new(Pki::open(name, directory).map_err(ClusterError::from)?);
        let (signed, node) = (pki.validity(), self.ranges.node_name());
        let configs = {
            let pki = pki.clone();
            move || node::kubelet_tls(&pki, &policy, &node, address)
        };
        let tls = ServerTls::new(configs()?);
        let (renewals, renewed) = (Renewals::default(), tls.clone());
        renewals.add("kubelet", move || configs().map(|configs| renewed.replace(configs)));
        tokio::spawn(renewals.run(pki, signed, stop.clone()));
        Ok(Some((SocketAddr::new(self.address, self.port), tls)))
    }
}

/// Run the service proxy and the cluster DNS alone.
#[derive(Debug, clap::Args)]
pub(super) struct Proxy {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    ranges: Ranges,
    /// Listen address of /metrics, in plain HTTP; port 0 disables it.
    #[arg(long, default_value = "127.0.0.1:10249")]
    metrics_bind_address: SocketAddr,
    /// Listen address of /healthz, /livez and /readyz, in plain HTTP; port 0 disables it. Upstream's default
    /// is all addresses.
    #[arg(long, default_value = "127.0.0.1:10256")]
    healthz_bind_address: SocketAddr,
    /// Directory of the proxy's state; on the same machine and for the same cluster, the kubelet's.
    #[arg(long, default_value = "/var/lib/hyperkube")]
    root_dir: PathBuf,
    #[command(flatten)]
    _config: ConfigFile,
}

impl Proxy {
    pub(super) async fn run(self, name: &str) -> Result<(), Failure> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Failure::new(
                Code::Permission,
                "the service proxy changes the kernel's tables and needs root",
            ));
        }
        let paths = Paths::new(name, &self.root_dir)?;
        let config = self.ranges.network(&paths, None);
        let client = self.connection.client("kube-proxy", &config.metrics)?;
        let stop = stop_token();
        k8s_controllers::metrics::process::register(&config.metrics);
        let synced = Arc::new(AtomicBool::new(false));
        let ready = {
            let synced = synced.clone();
            move || match synced.load(Ordering::Relaxed) {
                true => Ok(()),
                false => Err("the service rules are not in the kernel yet".to_owned()),
            }
        };
        health::serve(self.metrics_bind_address, &config.metrics, ready.clone(), &stop).await?;
        health::serve(self.healthz_bind_address, &Registry::default(), ready, &stop).await?;
        let network = Network::start(&config, &client, Parts::All).await?;
        synced.store(true, Ordering::Relaxed);
        // The DNS server answers with or without this Service, and a proxy's own credentials may not create
        // it.
        let made = crate::network::publish_dns(&client.named(name), config.dns, &config.domain).await;
        if let Err(e) = made {
            eprintln!("the Service kube-system/kube-dns was not made: {e}");
        }
        println!("services are proxied");
        stop.cancelled().await;
        network.shutdown().await;
        Ok(())
    }
}
