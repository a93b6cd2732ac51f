//! The network of this machine's node: pod network, service proxy, DNS.

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::PathBuf,
    sync::Arc,
};

use k8s_core::client::{Client, Error};
use k8s_net::{
    bridge::{Bridge, bridge_name},
    cidr::Cidr,
    node::{NodeNet, NodeNetConfig},
    pod::PodNetwork,
    proxy,
};
use serde_json::json;

use crate::{
    control_plane::apply,
    exit::{Code, Failure},
    paths::Paths,
    ranges::Range,
};

/// What a node's network is told.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Names of what is made on the machine carry this.
    pub cluster: String,
    /// The node's name.
    pub node_name: String,
    /// All pods of the cluster.
    pub pods: Range,
    /// All services of the cluster.
    pub services: Range,
    /// The node's part of the pods' range; `None`: the first /24.
    pub node_pods: Option<Range>,
    /// Address that the DNS server listens on.
    pub dns: Ipv4Addr,
    /// The cluster's DNS domain.
    pub domain: String,
    /// Where allocations are kept.
    pub state_dir: PathBuf,
}

/// Which parts of the network run in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// The pod network.
    Pods,
    /// Pod network, service proxy and DNS.
    All,
}

/// A running network.
pub struct Network {
    running: Running,
    node_pods: Range,
}

enum Running {
    /// The pod network alone.
    Pods(Bridge),
    /// Proxy and DNS as well. (They need the bridge, and take over one that another process made.)
    Whole(Box<NodeNet>),
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("node_pods", &self.node_pods).finish_non_exhaustive()
    }
}

fn cidr(range: Range) -> Result<Cidr, Failure> {
    range.to_string().parse().map_err(|e| Failure::new(Code::Usage, format!("range {range}: {e}")))
}

/// The configuration as `k8s-net` has it.
fn node_net(config: &NetworkConfig) -> Result<NodeNetConfig, Failure> {
    Ok(NodeNetConfig {
        name: config.cluster.clone(),
        node_name: config.node_name.clone(),
        pod_cidr: cidr(config.node_range())?,
        cluster_cidr: cidr(config.pods)?,
        service_cidr: cidr(config.services)?,
        dns_ip: Some(config.dns),
        cluster_domain: config.domain.clone(),
        state_dir: config.state_dir.clone(),
        ..NodeNetConfig::default()
    })
}

impl NetworkConfig {
    /// The node's part of the pods' range.
    #[must_use]
    pub fn node_range(&self) -> Range {
        self.node_pods.unwrap_or(Range { network: self.pods.network, prefix: self.pods.prefix.max(24) })
    }
}

impl Network {
    /// Makes the bridge and the guard routes, then starts proxy and DNS.
    ///
    /// # Errors
    /// One clear line and a code.
    pub async fn start(config: &NetworkConfig, client: &Client, parts: Parts) -> Result<Self, Failure> {
        let missing = |e: &dyn std::fmt::Display| Failure::new(Code::Preflight, format!("network: {e}"));
        let settings = node_net(config)?;
        let running = if parts == Parts::Pods {
            let bridge = tokio::task::spawn_blocking(move || Bridge::start(settings.bridge()));
            Running::Pods(bridge.await.map_err(Failure::because("network"))?.map_err(|e| missing(&e))?)
        } else {
            Running::Whole(Box::new(
                NodeNet::start(settings, &client.named("kube-proxy")).await.map_err(|e| missing(&e))?,
            ))
        };
        Ok(Network { running, node_pods: config.node_range() })
    }

    /// What connects pods.
    #[must_use]
    pub fn pod_network(&self) -> Arc<dyn PodNetwork> {
        match &self.running {
            Running::Pods(bridge) => Arc::new(bridge.clone()),
            Running::Whole(net) => net.pod_network(),
        }
    }

    /// The node's part of the pods' range.
    #[must_use]
    pub fn node_pods(&self) -> Range {
        self.node_pods
    }

    /// The address that this machine has on the pod network.
    #[must_use]
    pub fn gateway(&self) -> IpAddr {
        IpAddr::V4(self.node_pods.nth(1))
    }

    /// Stops; what running pods need stays in the kernel.
    pub async fn shutdown(self) {
        if let Running::Whole(net) = self.running {
            net.shutdown().await;
        }
    }
}

/// What a data directory's network was told, for removing it.
fn recorded(paths: &Paths) -> Option<NetworkConfig> {
    let text = std::fs::read_to_string(paths.network().join("config.json")).ok()?;
    let value: serde_json::Value = serde_json::from_str(&text).ok()?;
    let at = |key: &str| value.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    Some(NetworkConfig {
        cluster: at("cluster"),
        node_name: String::new(),
        pods: at("pods").parse().ok()?,
        services: at("services").parse().ok()?,
        node_pods: at("node_pods").parse().ok(),
        dns: at("dns").parse().ok()?,
        domain: String::new(),
        state_dir: paths.network(),
    })
}

/// Writes down what will be made, before it is made, so that `reset` can remove it after any crash.
///
/// # Errors
/// When the file cannot be written.
pub fn record(paths: &Paths, config: &NetworkConfig) -> Result<(), Failure> {
    let directory = paths.network();
    let text = json!({
        "cluster": config.cluster, "pods": config.pods.to_string(), "services": config.services.to_string(),
        "node_pods": config.node_range().to_string(), "dns": config.dns,
    });
    std::fs::create_dir_all(&directory)
        .and_then(|()| std::fs::write(directory.join("config.json"), text.to_string()))
        .map_err(Failure::because(format!("write in {}", directory.display())))
}

/// What is there of a cluster's network on this machine, one line each.
#[must_use]
pub fn leftovers(paths: &Paths) -> Vec<String> {
    let Some(config) = recorded(paths) else { return Vec::new() };
    let bridge = bridge_name(&config.cluster);
    let there = std::path::Path::new("/sys/class/net").join(&bridge).exists();
    there
        .then(|| {
            format!("network: bridge {bridge}, its routes, and table {}", proxy::table_name(&config.cluster))
        })
        .into_iter()
        .collect()
}

/// Removes a cluster's network from this machine.
///
/// # Errors
/// What could not be removed.
pub fn cleanup(paths: &Paths) -> Result<(), Failure> {
    let Some(config) = recorded(paths) else { return Ok(()) };
    k8s_net::node::cleanup(&node_net(&config)?).map_err(Failure::because("remove the network"))
}

/// The address that this machine has on the way to others; `None` when it has no way. No packet is sent.
#[must_use]
pub fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // An address of the range for documentation: the route decides, nothing is sent.
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified() && !address.is_loopback()).then_some(address)
}

/// Makes the Service by which the cluster's DNS is known.
///
/// # Errors
/// When the API server refuses.
pub async fn publish_dns(client: &Client, dns: Ipv4Addr) -> Result<(), Error> {
    let ports = json!([
        {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
    ]);
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"}},
        "spec": {"clusterIP": dns, "ports": ports},
    });
    apply(client, "/api/v1/namespaces/kube-system/services/kube-dns", &service).await
}
