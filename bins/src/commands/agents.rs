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
    components::{Connection, config_file, stop_token},
    health,
};
use crate::{
    exit::{Code, Failure},
    network::{Network, NetworkConfig, Parts},
    node::{self, LocalNode, NodeConfig},
    open_images,
    paths::{Lock, Paths},
    pki::Pki,
    ranges,
};
use ipnet::Ipv4Net;
use k8s_metrics::Registry;

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
    /// Configuration file (KubeletConfiguration: `clusterDNS`, `clusterDomain`, `port`, `address`, `podCIDR`,
    /// `allowedUnsafeSysctls`).
    #[arg(long)]
    config: Option<PathBuf>,
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
    pub(super) async fn run(mut self) -> Result<(), Failure> {
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
        node::check(&paths)?;
        let _lock = Lock::take(&paths)?;
        let client = self.connection.client("kubelet")?;
        let network = self.ranges.network(&paths, self.pod_cidr);
        crate::network::record(&paths, &network)?;
        let metrics = network.metrics.clone();
        let network = Network::start(&network, &client, Parts::Pods).await?;
        let address = self.node_ip.or_else(crate::network::own_address).unwrap_or_else(|| network.gateway());
        let config = NodeConfig {
            name: self.ranges.node_name(),
            address,
            dns: IpAddr::V4(self.ranges.cluster_dns),
            domain: self.ranges.cluster_domain.clone(),
            pod_cidr: Some(network.node_pods().into()),
            api: self.tls(address)?,
            allowed_unsafe_sysctls: std::mem::take(&mut self.allowed_unsafe_sysctls),
            metrics,
        };
        let images = open_images(&paths)?;
        let node = LocalNode::start(&paths, &config, &client, network.pod_network(), images).await?;
        println!("node {} runs", node.name());
        stop_token().cancelled().await;
        node.shutdown().await;
        network.shutdown().await;
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
    /// Listen address of /metrics, in plain HTTP; port 0 disables it.
    #[arg(long, default_value = "127.0.0.1:10249")]
    metrics_bind_address: SocketAddr,
    /// Listen address of /healthz, /livez and /readyz, in plain HTTP; port 0 disables it. Upstream's default is
    /// all addresses.
    #[arg(long, default_value = "127.0.0.1:10256")]
    healthz_bind_address: SocketAddr,
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
        if let Err(e) = crate::network::publish_dns(&client, self.ranges.cluster_dns).await {
            eprintln!("the Service kube-system/kube-dns was not made: {e}");
        }
        println!("services are proxied");
        stop.cancelled().await;
        network.shutdown().await;
        Ok(())
    }
}
