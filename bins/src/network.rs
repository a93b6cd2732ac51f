//! Network of the node on this machine: pod network, service proxy, DNS.

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::PathBuf,
    sync::Arc,
};

use http::Method;
use ipnet::Ipv4Net;
use k8s_core::client::{Client, Error};
use k8s_metrics::Registry;
use k8s_net::{
    bridge::{Bridge, bridge_name},
    dns::{CONFIG_MAP, Dns, standard_corefile},
    node::{NodeNet, NodeNetConfig},
    pod::PodNetwork,
};
use serde_json::json;

use crate::{apply::apply, error::ClusterError, paths::Paths, ranges};

/// Settings of a node's network.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Name of the distribution, the first part of the names of tables.
    pub program: String,
    /// Cluster name, part of the names of links and tables.
    pub cluster: String,
    /// Name of the node.
    pub node_name: String,
    /// Pod CIDR of the cluster.
    pub pods: Ipv4Net,
    /// Service CIDR.
    pub services: Ipv4Net,
    /// Pod CIDR of the node. `None`: the first /24 of the cluster's.
    pub node_pods: Option<Ipv4Net>,
    /// Listen address of the DNS server.
    pub dns: Ipv4Addr,
    /// Cluster domain.
    pub domain: String,
    /// Directory of the address allocations.
    pub state_dir: PathBuf,
    /// TCP ports of the node's own agents, which no Service may take.
    pub reserved_ports: Vec<u16>,
    /// True if a process of its own answers names, which goes on when this one ends.
    pub hold_dns: bool,
    /// Registry of the proxy's metrics.
    pub metrics: Registry,
}

/// Parts of the network that run in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// The pod network only.
    Pods,
    /// Pod network, service proxy and DNS.
    All,
}

/// A running network.
pub struct Network {
    running: Running,
    node_pods: Ipv4Net,
}

enum Running {
    /// The pod network only.
    Pods(Bridge),
    /// Pod network, proxy and DNS. They adopt a bridge that another process created.
    Whole(Box<NodeNet>),
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("node_pods", &self.node_pods).finish_non_exhaustive()
    }
}

/// Returns the name of the process that holds the cluster DNS. Linux shows 15 bytes of it.
fn dns_name(program: &str) -> String {
    const SUFFIX: &str = "-dns";
    let cut: String = program.chars().filter(char::is_ascii_graphic).take(15 - SUFFIX.len()).collect();
    cut + SUFFIX
}

/// Converts to `k8s-net`'s settings.
fn node_net(config: &NetworkConfig) -> NodeNetConfig {
    NodeNetConfig {
        program: config.program.clone(),
        name: config.cluster.clone(),
        node_name: config.node_name.clone(),
        pod_cidr: config.node_range(),
        cluster_cidr: config.pods,
        service_cidr: config.services,
        dns_ip: Some(config.dns),
        cluster_domain: config.domain.clone(),
        state_dir: config.state_dir.clone(),
        reserved_ports: config.reserved_ports.clone(),
        dns_holder: config.hold_dns.then(|| dns_name(&config.program)),
        metrics: config.metrics.clone(),
        ..NodeNetConfig::default()
    }
}

impl NetworkConfig {
    /// Returns the pod CIDR of the node.
    #[must_use]
    pub fn node_range(&self) -> Ipv4Net {
        let first = || Ipv4Net::new_assert(self.pods.network(), self.pods.prefix_len().max(24));
        self.node_pods.unwrap_or_else(first)
    }
}

impl Network {
    /// Creates the bridge and the guard routes, then starts proxy and DNS.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn start(config: &NetworkConfig, client: &Client, parts: Parts) -> Result<Self, ClusterError> {
        let missing =
            |e: &dyn std::fmt::Display| ClusterError::Machine { missing: vec![format!("network: {e}")] };
        let settings = node_net(config);
        let running = if parts == Parts::Pods {
            let bridge = tokio::task::spawn_blocking(move || Bridge::start(settings.bridge()));
            Running::Pods(bridge.await.map_err(ClusterError::of("network"))?.map_err(|e| missing(&e))?)
        } else {
            Running::Whole(Box::new(
                NodeNet::start(settings, &client.named("kube-proxy")).await.map_err(|e| missing(&e))?,
            ))
        };
        Ok(Network { running, node_pods: config.node_range() })
    }

    /// Returns the pod network for the kubelet.
    #[must_use]
    pub fn pod_network(&self) -> Arc<dyn PodNetwork> {
        match &self.running {
            Running::Pods(bridge) => Arc::new(bridge.clone()),
            Running::Whole(net) => net.pod_network(),
        }
    }

    /// Returns the pod CIDR of the node.
    #[must_use]
    pub fn node_pods(&self) -> Ipv4Net {
        self.node_pods
    }

    /// Returns this machine's address on the pod network.
    #[must_use]
    pub fn gateway(&self) -> IpAddr {
        IpAddr::V4(ranges::nth(self.node_pods, 1))
    }

    /// Stops the tasks; links and rules of running pods stay in the kernel.
    pub async fn shutdown(self) {
        if let Running::Whole(net) = self.running {
            net.shutdown().await;
        }
    }
}

/// Reads the settings recorded in a data directory, for removal.
fn recorded(paths: &Paths) -> Option<NetworkConfig> {
    let text = std::fs::read_to_string(paths.network().join("config.json")).ok()?;
    let value: serde_json::Value = serde_json::from_str(&text).ok()?;
    let at = |key: &str| value.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    let range = |key: &str| ranges::parse(&at(key)).ok();
    // Without a name, the tables are those of an earlier version, of any distribution.
    let program = value.get("program").and_then(serde_json::Value::as_str).unwrap_or("hyperkube").to_owned();
    Some(NetworkConfig {
        program,
        cluster: at("cluster"),
        node_name: String::new(),
        pods: range("pods")?,
        services: range("services")?,
        node_pods: range("node_pods"),
        dns: at("dns").parse().ok()?,
        domain: String::new(),
        state_dir: paths.network(),
        reserved_ports: Vec::new(),
        hold_dns: false,
        metrics: Registry::default(),
    })
}

/// Records the settings before anything is created, so that `reset` can remove it after any crash. Removes
/// tables of an earlier version, which had other names.
///
/// # Errors
/// The file cannot be written, or the tables cannot be removed.
pub fn record(paths: &Paths, config: &NetworkConfig) -> Result<(), ClusterError> {
    let directory = paths.network();
    if let Some(before) = recorded(paths).map(|before| node_net(&before))
        && before.table() != node_net(config).table()
    {
        k8s_net::node::remove_tables(&before).map_err(ClusterError::of("remove the tables of before"))?;
    }
    let text = json!({
        "program": config.program, "cluster": config.cluster, "pods": config.pods.to_string(), "services": config.services.to_string(),
        "node_pods": config.node_range().to_string(), "dns": config.dns,
    });
    std::fs::create_dir_all(&directory)
        .and_then(|()| std::fs::write(directory.join("config.json"), text.to_string()))
        .map_err(ClusterError::io(format!("write in {}", directory.display())))
}

/// Lists the remains of a cluster's network on this machine, one per line.
#[must_use]
pub fn leftovers(paths: &Paths) -> Vec<String> {
    let Some(config) = recorded(paths) else { return Vec::new() };
    let bridge = bridge_name(&config.cluster);
    let there = std::path::Path::new("/sys/class/net").join(&bridge).exists();
    let network = there
        .then(|| format!("network: bridge {bridge}, its routes, and table {}", node_net(&config).table()));
    let dns = Dns::holder(&config.state_dir).map(|process| format!("cluster DNS: process {process}"));
    network.into_iter().chain(dns).collect()
}

/// Removes a cluster's network from this machine.
///
/// # Errors
/// Something could not be removed.
pub fn cleanup(paths: &Paths) -> Result<(), ClusterError> {
    let Some(config) = recorded(paths) else { return Ok(()) };
    k8s_net::node::cleanup(&node_net(&config)).map_err(ClusterError::of("remove the network"))
}

/// Returns this machine's address on the default route; `None` without a route. Sends no packet.
#[must_use]
pub fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // An address reserved for documentation: connecting a UDP socket only looks up the route.
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified() && !address.is_loopback()).then_some(address)
}

/// Creates or updates the Service `kube-dns` in kube-system. Creates the ConfigMap with the Corefile if there
/// is none.
///
/// # Errors
/// The API server's error.
pub async fn publish_dns(client: &Client, dns: Ipv4Addr, domain: &str) -> Result<(), Error> {
    let ports = json!([
        {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
    ]);
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"}},
        "spec": {"clusterIP": dns, "ports": ports},
    });
    apply(client, "/api/v1/namespaces/kube-system/services/kube-dns", &service).await?;
    let (namespace, name) = CONFIG_MAP;
    let metadata = json!({"namespace": namespace, "name": name});
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata,
        "data": {"Corefile": standard_corefile(domain)},
    });
    let path = format!("/api/v1/namespaces/{namespace}/configmaps");
    match client.bytes(Method::POST, &path, "application/json", map.to_string()).await {
        Err(e) if e.is_already_exists() => Ok(()),
        // As `apply`: a store that cannot write keeps what it has.
        Err(e) if e.status().is_some_and(|status| status.code() == 503) => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table_of(paths: &Paths) -> Option<String> {
        recorded(paths).map(|config| node_net(&config).table())
    }

    #[test]
    fn tables_have_the_distributions_name_and_those_of_before_are_known() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new("shopkube", directory.path()).unwrap();
        std::fs::create_dir_all(paths.network()).unwrap();
        assert_eq!(table_of(&paths), None);
        let file = paths.network().join("config.json");
        let before = r#"{"cluster": "1a2b3c4d", "pods": "10.42.0.0/16", "services": "10.43.0.0/16", "node_pods": "10.42.0.0/24", "dns": "10.43.0.10"}"#;
        std::fs::write(&file, before).unwrap();
        assert_eq!(table_of(&paths).unwrap(), "hyperkube-1a2b3c4d");
        let config = NetworkConfig { program: "shopkube".into(), ..recorded(&paths).unwrap() };
        // As after a reset: there are no tables of before to remove, which needs root.
        std::fs::remove_file(&file).unwrap();
        record(&paths, &config).unwrap();
        assert_eq!(table_of(&paths).unwrap(), "shopkube-1a2b3c4d");
        record(&paths, &config).unwrap();
    }
}
