//! The service proxy: redirects connections to a Service's addresses and node ports to one of its endpoints,
//! in the kernel.
//!
//! Flow: [`Proxy::start`] reads Services, EndpointSlices and its own Node from caches, `plan` computes the
//! desired state of each service, and `table` turns the difference to the installed state into one nf_tables
//! transaction (`worker`). Changes that arrive together are applied together.
//!
//! Guarantees:
//! 1. Only the table of its settings is touched; [`cleanup`] removes it. Stopping leaves it in place:
//!    running pods keep their services.
//! 2. A change costs a few map elements, whatever the number of services. Packets see the state of before or
//!    after.
//! 3. Endpoints that are not ready get no new connections; established ones are left alone.
//! 4. If another program damaged the table, the next change rebuilds it whole.
//! 5. No service takes a port from the node: connections to the node's own ports (`own_ports`) are not
//!    redirected, except to node ports. Of two services that want one address and port, the older one has it.
//!
//! Not here: IPv6; the choice of a load balancer's addresses (see the controller `service-lb-controller` of
//! `k8s-builtin`).

mod health;
mod metrics;
pub(crate) mod own_ports;
mod plan;
mod publish;
mod rules;
mod table;
mod worker;

pub use publish::{OWN_PORTS, publish_own_ports};

use std::{io, time::Duration};

use ipnet::Ipv4Net;
use k8s_core::{
    api::api::{
        core::v1::{Node, Service},
        discovery::v1::EndpointSlice,
        networking::v1::ServiceCIDR,
    },
    cache::Cache,
    events::Recorder,
};
use k8s_metrics::Registry;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::nft::Nft;
use worker::Worker;

/// Settings of the proxy.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Name of the nf_tables table. No other program may have one of this name.
    pub table: String,
    /// Name of this node, for the traffic policies `Local` and for hints.
    pub node_name: String,
    /// Pod CIDR of the cluster. `None`: only the node itself counts as inside the cluster.
    pub cluster_cidr: Option<Ipv4Net>,
    /// Service CIDR of the cluster. `None`: addresses in it without a service are not rejected.
    pub service_cidr: Option<Ipv4Net>,
    /// ServiceCIDRs, whose addresses are no external IPs. An empty cache: only `service_cidr`.
    pub added_ranges: Cache<ServiceCIDR>,
    /// TCP ports that are the node's even while nothing listens on them: those of its own agents.
    pub reserved_ports: Vec<u16>,
    /// Recorder of events about Services. [`Recorder::silent`]: none.
    pub recorder: Recorder,
    /// Registry of the proxy's metrics.
    pub metrics: Registry,
}

/// Errors of starting or removing the proxy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// The kernel refused a change.
    #[error("{context}: {source}")]
    Io {
        /// The operation that failed.
        context: String,
        /// Error of the netlink request.
        #[source]
        source: io::Error,
    },
}

/// Statistics of the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProxyStats {
    /// Transactions committed since the start.
    pub transactions: u64,
    /// Duration of the last transaction, from the first change seen to the kernel's acknowledgement.
    pub last: Duration,
    /// Services in the table.
    pub services: usize,
}

/// A running proxy. Dropping it stops it and leaves the table in place.
///
/// ```
/// use k8s_core::{
///     api::{EndpointSlice, Node, Service},
///     cache::{Cache, reflect},
///     client::{Client, ListParams},
///     events::Recorder,
/// };
/// use k8s_metrics::Registry;
/// use k8s_net::proxy::{Proxy, ProxyConfig, cleanup};
///
/// async fn run(client: Client) -> Result<(), Box<dyn std::error::Error>> {
///     let (services, slices) = (Cache::<Service>::new(), Cache::<EndpointSlice>::new());
///     let nodes = Cache::<Node>::new();
///     let _nodes = reflect(client.all(), ListParams::default(), nodes.clone());
///     let _services = reflect(client.all(), ListParams::default(), services.clone());
///     let _slices = reflect(client.all(), ListParams::default(), slices.clone());
///     let config = ProxyConfig {
///         table: "shop".into(),
///         node_name: "node-1".into(),
///         cluster_cidr: Some("10.42.0.0/16".parse()?),
///         service_cidr: Some("10.43.0.0/16".parse()?),
///         added_ranges: Cache::new(),
///         reserved_ports: vec![6443, 10250],
///         recorder: Recorder::silent(),
///         metrics: Registry::default(),
///     };
///     let proxy = Proxy::start(config, services, slices, nodes)?; // needs root
///     proxy.synced().await;
///     println!("{} services", proxy.stats().borrow().services);
///     proxy.shutdown().await;
///     Ok(cleanup("shop")?)
/// }
/// ```
#[derive(Debug)]
pub struct Proxy {
    stats: watch::Receiver<ProxyStats>,
    own_ports: watch::Receiver<Option<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
    _guard: DropGuard,
}

/// Removes a service table. Blocking and idempotent.
pub fn cleanup(table: &str) -> Result<(), ProxyError> {
    let done = Nft::open().and_then(|mut nft| nft.drop_table(table));
    done.map_err(|source| ProxyError::Io { context: format!("remove table {table}"), source })
}

impl Proxy {
    /// Starts a proxy over caches that the caller fills. It writes rules once all are synced. Of `nodes` only
    /// this node is read.
    #[expect(clippy::disallowed_methods, reason = "the proxy waits for its worker at shutdown")]
    pub fn start(
        config: ProxyConfig,
        services: Cache<Service>,
        slices: Cache<EndpointSlice>,
        nodes: Cache<Node>,
    ) -> Result<Self, ProxyError> {
        let nft =
            Nft::open().map_err(|source| ProxyError::Io { context: "open nf_tables".into(), source })?;
        let (sender, stats) = watch::channel(ProxyStats::default());
        let (own, own_ports) = watch::channel(None);
        let stop = CancellationToken::new();
        let worker = Worker::new(config, (services, slices, nodes), nft, sender, own);
        let task = tokio::spawn(worker.run(stop.clone()));
        Ok(Proxy { stats, own_ports, task, stop: stop.clone(), _guard: stop.drop_guard() })
    }

    /// Returns the ports that the node itself uses, as `TCP/22` or `UDP/192.0.2.2:53`, sorted. `None` until
    /// they were read; they are read every ten seconds.
    #[must_use]
    pub fn own_ports(&self) -> watch::Receiver<Option<Vec<String>>> {
        self.own_ports.clone()
    }

    /// Waits until the first rules are in the kernel.
    pub async fn synced(&self) {
        // The sender lives as long as the worker; if that ended there is nothing to wait for.
        let _ = self.stats.clone().wait_for(|s| s.transactions > 0).await;
    }

    /// Returns the statistics; they change after every transaction.
    #[must_use]
    pub fn stats(&self) -> watch::Receiver<ProxyStats> {
        self.stats.clone()
    }

    /// Stops the proxy; the rules stay in the kernel.
    pub async fn shutdown(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}
