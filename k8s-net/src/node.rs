//! A node's network in one type: pod network, service proxy, network policies, cluster DNS and routes over
//! one set of caches.
//!
//! Flow: [`NodeNet::start`] creates bridge and guard routes first, then starts the proxy, adds the DNS
//! address to the bridge, starts the DNS server there and maintains the routes to other nodes' pods. Network
//! policies are applied by [`NodeNet::start`]; new pods wait for theirs. [`NodeNet::shutdown`] stops the
//! tasks and keeps the links and rules that running pods need, and the process that holds the cluster DNS if
//! there is one. [`cleanup`] removes everything, also after a kill -9, from the configuration alone.
//!
//! The parts are usable alone: [`crate::bridge`], [`crate::proxy`], [`crate::dns`].

#![expect(clippy::disallowed_methods, reason = "the task ends with its cancellation token")]

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use futures::future::BoxFuture;
use ipnet::Ipv4Net;
use k8s_core::{
    api::{
        Pod,
        api::{
            core::v1::{ConfigMap, Namespace, Node, Service},
            discovery::v1::EndpointSlice,
            networking::v1::{NetworkPolicy, ServiceCIDR},
        },
    },
    cache::{Cache, Reflector, reflect, reflect_trimmed},
    client::{Client, ListParams},
    clock::Clock,
    events::Recorder,
};
use k8s_metrics::Registry;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    bridge::{self, Bridge, BridgeConfig, BridgeError, bridge_name, firewalls},
    dns::{self, Corefile, Dns, DnsConfig, DnsError},
    pod::PodNetwork,
    policy::{self, Policies, PolicyConfig, PolicyError},
    preflight::{self, PreflightError},
    proxy::{self, Proxy, ProxyConfig, ProxyError},
    routes, service_ranges,
};

/// Settings of a node's network. `Default` has the CIDRs of DESIGN and the name `hyperkube`.
#[derive(Clone, Debug)]
pub struct NodeNetConfig {
    /// Name of the program; the names of tables begin with it. Clusters of two programs on one machine then
    /// share no table, even if `name` is the same.
    pub program: String,
    /// Cluster name; the names of bridge and tables contain it.
    pub name: String,
    /// Name of this node's Node object.
    pub node_name: String,
    /// Pod CIDR of this node.
    pub pod_cidr: Ipv4Net,
    /// Pod CIDR of the cluster.
    pub cluster_cidr: Ipv4Net,
    /// Service CIDR of the cluster.
    pub service_cidr: Ipv4Net,
    /// Cluster DNS address. `None`: no DNS server on this node.
    pub dns_ip: Option<Ipv4Addr>,
    /// Cluster domain, usually `cluster.local`.
    pub cluster_domain: String,
    /// Lists the upstream DNS servers.
    pub resolv_conf: Option<PathBuf>,
    /// Name of a process that holds the cluster DNS and goes on without this one, see [`Dns::hold`]. The
    /// program must call [`crate::dns::run_if_holder`] first in `main`. `None`: this process answers.
    pub dns_holder: Option<String>,
    /// Directory of the address allocations.
    pub state_dir: PathBuf,
    /// MTU in bytes; 0 means 1500.
    pub mtu: u32,
    /// TCP ports that are the node's even while nothing listens on them: those of its own agents.
    pub reserved_ports: Vec<u16>,
    /// Registry of the proxy's metrics. Default: one of its own.
    pub metrics: Registry,
}

impl Default for NodeNetConfig {
    fn default() -> Self {
        NodeNetConfig {
            program: "hyperkube".into(),
            name: "hyperkube".into(),
            node_name: String::new(),
            pod_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 42, 0, 0), 24),
            cluster_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 42, 0, 0), 16),
            service_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 43, 0, 0), 16),
            dns_ip: Some(Ipv4Addr::new(10, 43, 0, 10)),
            cluster_domain: "cluster.local".into(),
            resolv_conf: Some("/etc/resolv.conf".into()),
            dns_holder: None,
            state_dir: "/var/lib/hyperkube/net".into(),
            mtu: 0,
            reserved_ports: Vec::new(),
            metrics: Registry::default(),
        }
    }
}

impl NodeNetConfig {
    /// Returns the name of the service table, `PROGRAM-NAME`; the pod table's is `PROGRAM-NAME-pods`.
    ///
    /// ```
    /// use k8s_net::node::NodeNetConfig;
    /// let (program, name) = ("shopkube".into(), "1a2b".into());
    /// let config = NodeNetConfig { program, name, ..NodeNetConfig::default() };
    /// assert_eq!(config.table(), "shopkube-1a2b");
    /// ```
    #[must_use]
    pub fn table(&self) -> String {
        format!("{}-{}", self.program, self.name)
    }

    /// Returns the settings of the bridge.
    #[must_use]
    pub fn bridge(&self) -> BridgeConfig {
        BridgeConfig {
            table: self.table(),
            bridge: bridge_name(&self.name),
            pod_cidr: self.pod_cidr,
            cluster_cidr: self.cluster_cidr,
            service_cidr: self.service_cidr,
            reserved_ports: self.reserved_ports.clone(),
            mtu: self.mtu,
            state_dir: self.state_dir.clone(),
        }
    }

    /// Returns the settings of the proxy, without a recorder of events and without added ranges.
    #[must_use]
    pub fn proxy(&self) -> ProxyConfig {
        ProxyConfig {
            table: self.table(),
            node_name: self.node_name.clone(),
            cluster_cidr: Some(self.cluster_cidr),
            service_cidr: Some(self.service_cidr),
            added_ranges: Cache::new(),
            reserved_ports: self.reserved_ports.clone(),
            recorder: Recorder::silent(),
            metrics: self.metrics.clone(),
        }
    }

    /// Returns the settings of network policies, without a recorder of events. Their table is `TABLE-policy`.
    #[must_use]
    pub fn policies(&self) -> PolicyConfig {
        PolicyConfig {
            table: policy::gate::table_beside(&self.table()),
            node_name: self.node_name.clone(),
            cluster_cidr: Some(self.cluster_cidr),
            dns: self.dns_ip,
            recorder: Recorder::silent(),
        }
    }

    /// Returns the settings of the DNS server at `ip`.
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

/// Errors of starting or removing a node's network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeNetError {
    /// The kernel lacks a feature.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// The bridge could not be created or removed.
    #[error("pod network: {0}")]
    Bridge(#[from] BridgeError),
    /// The service proxy failed.
    #[error("service proxy: {0}")]
    Proxy(#[from] ProxyError),
    /// Network policies could not be started or removed.
    #[error("network policies: {0}")]
    Policy(#[from] PolicyError),
    /// The DNS server failed.
    #[error("cluster DNS: {0}")]
    Dns(#[from] DnsError),
    /// A background task panicked.
    #[error("network worker: {0}")]
    Worker(String),
}

/// The reflectors of the caches and the task for routes, ports and firewalls. Dropping it stops them.
#[derive(Debug)]
struct Feeds {
    _services: Reflector,
    _ranges: Reflector,
    _slices: Reflector,
    _nodes: Reflector,
    _corefile: Reflector,
    _namespaces: Reflector,
    _pods: Reflector,
    _policies: Reflector,
    _routes: DropGuard,
}

/// A node's running network.
#[derive(Debug)]
pub struct NodeNet {
    config: NodeNetConfig,
    bridge: Bridge,
    proxy: Proxy,
    dns: Option<Dns>,
    policies: Option<Policies>,
    _feeds: Option<Feeds>,
}

/// Drops what neither the proxy nor the DNS server reads: with many endpoints it is most of the memory.
pub(crate) fn trim(slice: &mut EndpointSlice) {
    slice.metadata.managed_fields = None;
    slice.metadata.annotations = None;
    slice.metadata.owner_references = None;
    for endpoint in slice.endpoints.iter_mut().flatten() {
        endpoint.target_ref = None;
        endpoint.zone = None;
        endpoint.deprecated_topology = None;
    }
}

async fn blocking<T: Send + 'static, E: Into<NodeNetError> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, NodeNetError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Into::into),
        Err(error) => Err(NodeNetError::Worker(error.to_string())),
    }
}

/// Caches that the parts read.
type Caches = (Cache<Service>, Cache<EndpointSlice>, Cache<Node>, Cache<ServiceCIDR>);

impl NodeNet {
    /// Starts all parts with caches of their own.
    pub fn start(config: NodeNetConfig, client: &Client) -> BoxFuture<'static, Result<Self, NodeNetError>> {
        // Boxed: callers' crates need not compile it again.
        Box::pin(Self::begin(config, client.clone()))
    }

    async fn begin(config: NodeNetConfig, client: Client) -> Result<Self, NodeNetError> {
        let (services, slices) = (Cache::<Service>::new(), Cache::<EndpointSlice>::new());
        let (own, range) = (config.node_name.clone(), config.cluster_cidr);
        let services_feed = reflect(client.all::<Service>(), ListParams::default(), services.clone());
        let slices_feed = reflect_trimmed(client.all(), ListParams::default(), slices.clone(), trim);
        let nodes = Cache::<Node>::new();
        let nodes_feed = reflect(client.all::<Node>(), ListParams::default(), nodes.clone());
        let ranges = Cache::<ServiceCIDR>::new();
        let ranges_feed = reflect(client.all::<ServiceCIDR>(), ListParams::default(), ranges.clone());
        let maps = Cache::<ConfigMap>::new();
        let (namespace, name) = dns::CONFIG_MAP;
        let named = ListParams::default().fields(format!("metadata.name={name}"));
        let corefile_feed = reflect(client.namespaced(namespace), named, maps.clone());
        let recorder = Recorder::on_host(&client, Clock::system(), "kube-proxy", &own);
        let caches = (services, slices, nodes.clone(), ranges.clone());
        let corefile =
            Corefile::Cached(maps, Recorder::on_host(&client, Clock::system(), "cluster-dns", &own));
        let namespaces = Cache::<Namespace>::new();
        let namespaces_feed = reflect(client.all::<Namespace>(), ListParams::default(), namespaces.clone());
        let pods = Cache::<Pod>::new();
        let pods_feed = reflect_trimmed(client.all(), ListParams::default(), pods.clone(), policy::trim);
        let rules = Cache::<NetworkPolicy>::new();
        let rules_feed = reflect(client.all::<NetworkPolicy>(), ListParams::default(), rules.clone());
        let settings = PolicyConfig { recorder: recorder.clone(), ..config.policies() };
        let mut net = Self::launch(config, caches, recorder, corefile).await?;
        let policies = Policies::start(settings, namespaces, pods, rules)?;
        net.bridge.set_gate(policies.gate());
        net.policies = Some(policies);
        // After the bridge, because that checks the CIDRs.
        let stop = CancellationToken::new();
        let (stopped, ports, node) = (stop.clone(), net.proxy.own_ports(), own.clone());
        let (bridge, on) = (net.config.bridge(), net.bridge.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                ((), (), (), ()) = futures::future::join4(
                    routes::follow(nodes, own, range),
                    service_ranges::follow(ranges, on),
                    proxy::publish_own_ports(client, node, ports),
                    firewalls::keep_open(bridge),
                ) => {}
            }
        });
        net._feeds = Some(Feeds {
            _services: services_feed,
            _slices: slices_feed,
            _nodes: nodes_feed,
            _corefile: corefile_feed,
            _namespaces: namespaces_feed,
            _pods: pods_feed,
            _policies: rules_feed,
            _ranges: ranges_feed,
            _routes: stop.drop_guard(),
        });
        Ok(net)
    }

    /// Starts all parts but network policies over caches that the caller fills. The proxy sends no events.
    pub async fn start_with(
        config: NodeNetConfig,
        services: Cache<Service>,
        slices: Cache<EndpointSlice>,
        nodes: Cache<Node>,
    ) -> Result<Self, NodeNetError> {
        Self::launch(config, (services, slices, nodes, Cache::new()), Recorder::silent(), Corefile::Standard)
            .await
    }

    async fn launch(
        config: NodeNetConfig,
        (services, slices, nodes, added_ranges): Caches,
        recorder: Recorder,
        corefile: Corefile,
    ) -> Result<Self, NodeNetError> {
        blocking(preflight::check).await?;
        let settings = config.bridge();
        let bridge = blocking(move || Bridge::start(settings)).await?;
        let settings = ProxyConfig { recorder, added_ranges, ..config.proxy() };
        let proxy = Proxy::start(settings, services.clone(), slices.clone(), nodes)?;
        let dns = match config.dns_ip {
            Some(address) => {
                let on = bridge.clone();
                blocking(move || on.add_address(address)).await?;
                let settings = config.dns(address.into());
                Some(match &config.dns_holder {
                    Some(name) => {
                        let held = (settings, config.state_dir.as_path(), name.as_str());
                        Dns::hold(held, services, slices, corefile).await?
                    }
                    None => Dns::start_with(settings, services, slices, corefile).await?,
                })
            }
            None => None,
        };
        Ok(NodeNet { config, bridge, proxy, dns, policies: None, _feeds: None })
    }

    /// Returns the pod network for the kubelet.
    #[must_use]
    pub fn pod_network(&self) -> Arc<dyn PodNetwork> {
        Arc::new(self.bridge.clone())
    }

    /// Returns the network policies; `None` if they were not started.
    #[must_use]
    pub fn policies(&self) -> Option<&Policies> {
        self.policies.as_ref()
    }

    /// Returns the service proxy.
    #[must_use]
    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// Waits until the first service rules are in the kernel.
    pub async fn synced(&self) {
        self.proxy.synced().await;
    }

    /// Stops the tasks. Bridge, links, routes, rules and a process that holds the cluster DNS stay, because
    /// running pods need them.
    pub async fn shutdown(self) {
        self.proxy.shutdown().await;
        if let Some(policies) = self.policies {
            policies.shutdown().await;
        }
        if let Some(dns) = self.dns {
            dns.shutdown().await;
        }
    }

    /// Stops the tasks and removes everything from the kernel.
    pub async fn remove(self) -> Result<(), NodeNetError> {
        let config = self.config.clone();
        self.shutdown().await;
        blocking(move || cleanup(&config)).await
    }
}

/// Removes everything that a node's network created. Blocking and idempotent. A failed removal does not stop
/// the others; the first error is returned.
pub fn cleanup(config: &NodeNetConfig) -> Result<(), NodeNetError> {
    let held = Dns::release(&config.state_dir).map_err(|source| DnsError::Holder { source });
    let rules = proxy::cleanup(&config.table());
    // Last, so that no pod is open before it is gone.
    let network = bridge::cleanup(&config.bridge());
    policy::cleanup(&config.policies().table)?;
    network?;
    rules?;
    held?;
    Ok(())
}

/// Removes the tables of a node's network, and nothing else. Blocking and idempotent.
pub fn remove_tables(config: &NodeNetConfig) -> Result<(), NodeNetError> {
    proxy::cleanup(&config.table())?;
    bridge::remove_table(&config.bridge())?;
    policy::cleanup(&config.policies().table)?;
    Ok(())
}
