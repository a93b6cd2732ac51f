//! Everything a node needs, joined: bridge, service proxy, cluster DNS, over one pair of caches.
//!
//! Flow: [`NodeNet::start`] makes bridge and guard routes first, then starts the proxy, gives the DNS address to the bridge, starts
//! DNS there and keeps the routes to other nodes' pods. [`NodeNet::shutdown`] stops the tasks and keeps what running pods need; [`cleanup`] removes all of it, also
//! after a kill -9, from the configuration alone.
//!
//! The parts work alone, too: [`crate::bridge`], [`crate::proxy`], [`crate::dns`].

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use k8s_core::{
    api::api::{
        core::v1::{Node, Service},
        discovery::v1::EndpointSlice,
    },
    cache::{Cache, Reflector, reflect},
    client::{Client, ListParams},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    bridge::{self, Bridge, BridgeConfig, BridgeError, bridge_name},
    cidr::Cidr,
    dns::{Dns, DnsConfig, DnsError},
    pod::PodNetwork,
    preflight::{self, PreflightError},
    proxy::{self, Proxy, ProxyConfig, ProxyError},
    routes,
};

/// A node's network. `Default` has the ranges of DESIGN and the name `hyperkube`.
#[derive(Clone, Debug)]
pub struct NodeNetConfig {
    /// The cluster's name; bridge and tables carry it.
    pub name: String,
    /// This node's name.
    pub node_name: String,
    /// The node's part of the pods' range.
    pub pod_cidr: Cidr,
    /// All pods.
    pub cluster_cidr: Cidr,
    /// All services.
    pub service_cidr: Cidr,
    /// The cluster DNS's address; `None`: no DNS here.
    pub dns_ip: Option<Ipv4Addr>,
    /// The cluster domain.
    pub cluster_domain: String,
    /// Names the servers for foreign names.
    pub resolv_conf: Option<PathBuf>,
    /// Where allocations are kept.
    pub state_dir: PathBuf,
    /// Largest packet; 0: 1500.
    pub mtu: u32,
}

impl Default for NodeNetConfig {
    fn default() -> Self {
        NodeNetConfig {
            name: "hyperkube".into(),
            node_name: String::new(),
            pod_cidr: Cidr::new(Ipv4Addr::new(10, 42, 0, 0), 24),
            cluster_cidr: Cidr::new(Ipv4Addr::new(10, 42, 0, 0), 16),
            service_cidr: Cidr::new(Ipv4Addr::new(10, 43, 0, 0), 16),
            dns_ip: Some(Ipv4Addr::new(10, 43, 0, 10)),
            cluster_domain: "cluster.local".into(),
            resolv_conf: Some("/etc/resolv.conf".into()),
            state_dir: "/var/lib/hyperkube/net".into(),
            mtu: 0,
        }
    }
}

impl NodeNetConfig {
    /// The bridge's part.
    #[must_use]
    pub fn bridge(&self) -> BridgeConfig {
        BridgeConfig {
            cluster: self.name.clone(),
            bridge: bridge_name(&self.name),
            pod_cidr: self.pod_cidr,
            cluster_cidr: self.cluster_cidr,
            service_cidr: self.service_cidr,
            mtu: self.mtu,
            state_dir: self.state_dir.clone(),
        }
    }

    /// The proxy's part.
    #[must_use]
    pub fn proxy(&self) -> ProxyConfig {
        ProxyConfig {
            cluster: self.name.clone(),
            node_name: self.node_name.clone(),
            cluster_cidr: Some(self.cluster_cidr),
            service_cidr: Some(self.service_cidr),
        }
    }

    /// The DNS server's part, at an address.
    #[must_use]
    pub fn dns(&self, address: IpAddr) -> DnsConfig {
        DnsConfig {
            listen: SocketAddr::new(address, 53),
            cluster_domain: self.cluster_domain.clone(),
            ranges: vec![self.cluster_cidr, self.service_cidr],
            resolv_conf: self.resolv_conf.clone(),
        }
    }
}

/// Why a node has no network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeNetError {
    /// The kernel lacks something.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// The bridge.
    #[error("pod network: {0}")]
    Bridge(#[from] BridgeError),
    /// The service proxy.
    #[error("service proxy: {0}")]
    Proxy(#[from] ProxyError),
    /// Cluster DNS.
    #[error("cluster DNS: {0}")]
    Dns(#[from] DnsError),
    /// A worker was lost.
    #[error("network worker: {0}")]
    Worker(String),
}

/// What keeps caches and routes current; dropping it ends that.
#[derive(Debug)]
struct Feeds {
    _services: Reflector,
    _slices: Reflector,
    _nodes: Reflector,
    _routes: DropGuard,
}

/// A node's running network.
#[derive(Debug)]
pub struct NodeNet {
    config: NodeNetConfig,
    bridge: Bridge,
    proxy: Proxy,
    dns: Option<Dns>,
    _feeds: Option<Feeds>,
}

async fn blocking<T: Send + 'static, E: Into<NodeNetError> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, NodeNetError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Into::into),
        Err(error) => Err(NodeNetError::Worker(error.to_string())),
    }
}

impl NodeNet {
    /// Starts all parts with caches of their own.
    pub async fn start(config: NodeNetConfig, client: &Client) -> Result<Self, NodeNetError> {
        let (services, slices) = (Cache::<Service>::new(), Cache::<EndpointSlice>::new());
        let (own, range) = (config.node_name.clone(), config.cluster_cidr);
        let services_feed = reflect(client.all::<Service>(), ListParams::default(), services.clone());
        let slices_feed = reflect(client.all::<EndpointSlice>(), ListParams::default(), slices.clone());
        let mut net = Self::start_with(config, services, slices).await?;
        // Only after the bridge, which checks the ranges.
        let nodes = Cache::<Node>::new();
        let nodes_feed = reflect(client.all::<Node>(), ListParams::default(), nodes.clone());
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = routes::follow(nodes, own, range) => {}
            }
        });
        net._feeds = Some(Feeds {
            _services: services_feed,
            _slices: slices_feed,
            _nodes: nodes_feed,
            _routes: stop.drop_guard(),
        });
        Ok(net)
    }

    /// Starts all parts over caches that somebody else fills.
    pub async fn start_with(
        config: NodeNetConfig,
        services: Cache<Service>,
        slices: Cache<EndpointSlice>,
    ) -> Result<Self, NodeNetError> {
        blocking(preflight::check).await?;
        let settings = config.bridge();
        let bridge = blocking(move || Bridge::start(settings)).await?;
        let proxy = Proxy::start(config.proxy(), services.clone(), slices.clone())?;
        let dns = match config.dns_ip {
            Some(address) => {
                let on = bridge.clone();
                blocking(move || on.add_address(address)).await?;
                Some(Dns::start(config.dns(address.into()), services, slices).await?)
            }
            None => None,
        };
        Ok(NodeNet { config, bridge, proxy, dns, _feeds: None })
    }

    /// What the kubelet connects pods with.
    #[must_use]
    pub fn pod_network(&self) -> Arc<dyn PodNetwork> {
        Arc::new(self.bridge.clone())
    }

    /// The service proxy.
    #[must_use]
    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// Waits until the first service rules are in the kernel.
    pub async fn synced(&self) {
        self.proxy.synced().await;
    }

    /// Stops the tasks. Bridge, links, routes and rules stay: running pods need them.
    pub async fn shutdown(self) {
        self.proxy.shutdown().await;
        if let Some(dns) = self.dns {
            dns.shutdown().await;
        }
    }

    /// Stops and removes everything.
    pub async fn remove(self) -> Result<(), NodeNetError> {
        let config = self.config.clone();
        self.shutdown().await;
        blocking(move || cleanup(&config)).await
    }
}

/// Removes everything that a node's network made; fine when there is nothing. Blocking. Everything is tried; the first error is returned.
pub fn cleanup(config: &NodeNetConfig) -> Result<(), NodeNetError> {
    let rules = proxy::cleanup(&config.name);
    bridge::cleanup(&config.bridge())?;
    rules?;
    Ok(())
}
