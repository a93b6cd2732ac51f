//! The node components as single programs: kubelet with the pod network, and kube-proxy with the cluster DNS.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use super::components::{Connection, config_file, stop_token};
use crate::{
    exit::{Code, Failure},
    extensions::Extensions,
    network::{Network, NetworkConfig, Parts},
    node::{self, LocalNode, NodeConfig},
    open_images,
    paths::{Lock, Paths},
    pki::Pki,
    ranges,
};
use ipnet::Ipv4Net;
use k8s_runtime::Runtime;

/// Network settings that are equal on all nodes of a cluster.
#[derive(Debug, clap::Args)]
struct Ranges {
    /// Pod CIDR of the cluster.
    #[arg(long, default_value = "10.42.0.0/16", value_parser = ranges::parse)]
    cluster_cidr: Ipv4Net,
    /// Service CIDR.
    #[arg(long, default_value = "10.43.0.0/16", value_parser = ranges::parse)]
    service_cluster_ip_range: Ipv4Net,
    /// Cluster DNS address.
    #[arg(long, default_value = "10.43.0.10")]
    cluster_dns: Ipv4Addr,
    /// Cluster domain.
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// Name of the node (default: the host name).
    #[arg(long, visible_alias = "node-name")]
    hostname_override: Option<String>,
}

impl Ranges {
    fn network(&self, paths: &Paths, node_pods: Option<Ipv4Net>) -> NetworkConfig {
        NetworkConfig {
            cluster: paths.id.clone(),
            node_name: self.node_name(),
            pods: self.cluster_cidr,
            services: self.service_cluster_ip_range,
            node_pods,
            dns: self.cluster_dns,
            domain: self.cluster_domain.clone(),
            state_dir: paths.network(),
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
    /// Configuration file (KubeletConfiguration: `clusterDNS`, `clusterDomain`, `port`, `address`, `podCIDR`,
    /// `allowedUnsafeSysctls`).
    #[arg(long)]
    config: Option<PathBuf>,
}

/// The container runtime of a kubelet, and the pod network that it needs.
enum Containers {
    /// The embedded runtime.
    Embedded(Network),
    /// A runtime of the distribution, with a pod network of its own.
    Added(Arc<dyn Runtime>),
}

/// Supported fields of a KubeletConfiguration.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct KubeletFile {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "clusterDNS")]
    cluster_dns: Vec<Ipv4Addr>,
    cluster_domain: Option<String>,
    port: Option<u16>,
    address: Option<IpAddr>,
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    allowed_unsafe_sysctls: Vec<String>,
}

impl Kubelet {
    pub(super) async fn run(mut self, extensions: Extensions) -> Result<(), Failure> {
        let file: KubeletFile = config_file(self.config.as_ref())?;
        if let Some(dns) = file.cluster_dns.first() {
            self.ranges.cluster_dns = *dns;
        }
        if let Some(domain) = file.cluster_domain {
            self.ranges.cluster_domain = domain;
        }
        self.port = file.port.unwrap_or(self.port);
        self.address = file.address.unwrap_or(self.address);
        self.allowed_unsafe_sysctls.extend(file.allowed_unsafe_sysctls);
        if let Some(range) = file.pod_cidr {
            self.pod_cidr =
                Some(ranges::parse(&range).map_err(|e| Failure::new(Code::Usage, format!("podCIDR: {e}")))?);
        }
        let paths = Paths::new(&self.root_dir)?;
        if extensions.runtime.is_none() {
            node::check(&paths)?;
        }
        let _lock = Lock::take(&paths)?;
        let client = self.connection.client("kubelet")?;
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
        let config = NodeConfig {
            name: self.ranges.node_name(),
            address,
            dns: IpAddr::V4(self.ranges.cluster_dns),
            domain: self.ranges.cluster_domain.clone(),
            pod_cidr: network.map(|network| network.node_pods().into()),
            api: self.tls(address)?,
            allowed_unsafe_sysctls: std::mem::take(&mut self.allowed_unsafe_sysctls),
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
        stop_token().cancelled().await;
        node.shutdown().await;
        if let Containers::Embedded(network) = containers {
            network.shutdown().await;
        }
        Ok(())
    }

    /// The kubelet's API over TLS, with a certificate of the cluster's CA.
    fn tls(&self, address: IpAddr) -> Result<Option<(SocketAddr, Arc<k8s_tls::ServerConfig>)>, Failure> {
        let Some(directory) = self.cert_dir.as_ref().filter(|_| self.port != 0) else { return Ok(None) };
        let pki = Pki::open(directory).map_err(Failure::because("certificates"))?;
        Ok(Some((
            SocketAddr::new(self.address, self.port),
            node::kubelet_tls(&pki, &self.ranges.node_name(), address)?,
        )))
    }
}

/// Run the service proxy and the cluster DNS alone.
#[derive(Debug, clap::Args)]
pub(super) struct Proxy {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    ranges: Ranges,
    /// Directory of the proxy's state; on the same machine and for the same cluster, the kubelet's.
    #[arg(long, default_value = "/var/lib/hyperkube")]
    root_dir: PathBuf,
    /// Configuration file (KubeProxyConfiguration: `clusterCIDR`).
    #[arg(long)]
    config: Option<PathBuf>,
}

/// Supported fields of a KubeProxyConfiguration.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ProxyFile {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: Option<String>,
}

impl Proxy {
    pub(super) async fn run(mut self) -> Result<(), Failure> {
        let file: ProxyFile = config_file(self.config.as_ref())?;
        if let Some(range) = file.cluster_cidr {
            self.ranges.cluster_cidr =
                ranges::parse(&range).map_err(|e| Failure::new(Code::Usage, format!("clusterCIDR: {e}")))?;
        }
        if !nix::unistd::geteuid().is_root() {
            return Err(Failure::new(
                Code::Permission,
                "the service proxy changes the kernel's tables and needs root",
            ));
        }
        let paths = Paths::new(&self.root_dir)?;
        let client = self.connection.client("kube-proxy")?;
        let config = self.ranges.network(&paths, None);
        let network = Network::start(&config, &client, Parts::All).await?;
        // The DNS server answers with or without this Service, and a proxy's own credentials may not create
        // it.
        if let Err(e) = crate::network::publish_dns(&client, self.ranges.cluster_dns).await {
            eprintln!("the Service kube-system/kube-dns was not made: {e}");
        }
        println!("services are proxied");
        stop_token().cancelled().await;
        network.shutdown().await;
        Ok(())
    }
}
