//! The service proxy: redirects connections to a Service's addresses and node ports to one of its endpoints,
//! in the kernel.
//!
//! Flow: [`Proxy::start`] reads Services and EndpointSlices from caches, `plan` computes the desired state of
//! each service, and `table` turns the difference to the installed state into one nf_tables transaction.
//! Changes that arrive together are applied together.
//!
//! Guarantees:
//! 1. Only the table of its settings is touched; [`cleanup`] removes it. Stopping leaves it in place:
//!    running pods keep their services.
//! 2. A change costs a few map elements, whatever the number of services. Packets see the state of before or
//!    after.
//! 3. Endpoints that are not ready get no new connections; established ones are left alone.
//! 4. If another program damaged the table, the next change rebuilds it whole.
//!
//! Not here: IPv6, `loadBalancerSourceRanges`, health check node ports, topology hints.

mod conntrack;
mod metrics;
mod plan;
mod rules;
mod table;

use std::{
    collections::HashSet,
    future::pending,
    io,
    time::{Duration, Instant},
};

use futures::FutureExt;
use ipnet::Ipv4Net;
use k8s_core::{
    api::api::{core::v1::Service, discovery::v1::EndpointSlice},
    cache::{Cache, Change, Subscription},
    meta::{ObjectExt, ObjectKey},
};
use k8s_metrics::Registry;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, warn};

use crate::nft::Nft;
use metrics::Metrics;
use table::Table;

const BY_SERVICE: &str = "service";

/// Settings of the proxy.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Name of the nf_tables table. No other program may have one of this name.
    pub table: String,
    /// Name of this node, for the traffic policies `Local`.
    pub node_name: String,
    /// Pod CIDR of the cluster. `None`: only the node itself counts as inside the cluster.
    pub cluster_cidr: Option<Ipv4Net>,
    /// Service CIDR of the cluster. `None`: addresses in it without a service are not rejected.
    pub service_cidr: Option<Ipv4Net>,
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
/// use k8s_core::{api::{EndpointSlice, Service}, cache::{Cache, reflect}, client::{Client, ListParams}};
/// use k8s_metrics::Registry;
/// use k8s_net::proxy::{Proxy, ProxyConfig, cleanup};
///
/// async fn run(client: Client) -> Result<(), Box<dyn std::error::Error>> {
///     let (services, slices) = (Cache::<Service>::new(), Cache::<EndpointSlice>::new());
///     let _services = reflect(client.all(), ListParams::default(), services.clone());
///     let _slices = reflect(client.all(), ListParams::default(), slices.clone());
///     let config = ProxyConfig {
///         table: "shop".into(),
///         node_name: "node-1".into(),
///         cluster_cidr: Some("10.42.0.0/16".parse()?),
///         service_cidr: Some("10.43.0.0/16".parse()?),
///         metrics: Registry::default(),
///     };
///     let proxy = Proxy::start(config, services, slices)?; // needs root
///     proxy.synced().await;
///     println!("{} services", proxy.stats().borrow().services);
///     proxy.shutdown().await;
///     Ok(cleanup("shop")?)
/// }
/// ```
#[derive(Debug)]
pub struct Proxy {
    stats: watch::Receiver<ProxyStats>,
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
    /// Starts a proxy over caches that the caller fills. It writes rules once both are synced.
    #[expect(clippy::disallowed_methods, reason = "the proxy waits for its worker at shutdown")]
    pub fn start(
        config: ProxyConfig,
        services: Cache<Service>,
        slices: Cache<EndpointSlice>,
    ) -> Result<Self, ProxyError> {
        slices.add_index(BY_SERVICE, |slice: &EndpointSlice| {
            service_of(slice).into_iter().map(|k| k.to_string()).collect()
        });
        let nft =
            Nft::open().map_err(|source| ProxyError::Io { context: "open nf_tables".into(), source })?;
        let (sender, stats) = watch::channel(ProxyStats::default());
        let stop = CancellationToken::new();
        let table = Table::new(&config.table, config.cluster_cidr, config.service_cidr);
        let kernel = Kernel { nft, table, broken: true };
        let metrics = Metrics::new(&config.metrics);
        let worker = Worker { config, services, slices, kernel: Some(kernel), metrics, stats: sender };
        let task = tokio::spawn(worker.run(stop.clone()));
        Ok(Proxy { stats, task, stop: stop.clone(), _guard: stop.drop_guard() })
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

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    slice.label(plan::SERVICE_NAME).map(|name| ObjectKey::new(slice.namespace(), name))
}

/// Connection and table; moved to a blocking thread for each transaction.
struct Kernel {
    nft: Nft,
    table: Table,
    /// The kernel's state is unknown: rebuild the table.
    broken: bool,
}

struct Worker {
    config: ProxyConfig,
    services: Cache<Service>,
    slices: Cache<EndpointSlice>,
    kernel: Option<Kernel>,
    metrics: Metrics,
    stats: watch::Sender<ProxyStats>,
}

/// Services to plan again.
#[derive(Default)]
struct Dirty {
    keys: HashSet<ObjectKey>,
    all: bool,
}

impl Dirty {
    fn service(&mut self, change: Change<Service>) {
        match change {
            Change::Added(service) | Change::Modified(_, service) | Change::Deleted(service) => {
                self.keys.insert(service.key());
            }
            Change::Resync => self.all = true,
        }
    }

    fn slice(&mut self, change: Change<EndpointSlice>) {
        match change {
            Change::Added(slice) | Change::Deleted(slice) => self.keys.extend(service_of(&slice)),
            Change::Modified(old, new) => {
                self.keys.extend(service_of(&old));
                self.keys.extend(service_of(&new));
            }
            Change::Resync => self.all = true,
        }
    }

    /// Takes all pending changes; returns `false` when a cache was dropped.
    fn drain(&mut self, services: &mut Subscription<Service>, slices: &mut Subscription<EndpointSlice>) {
        while let Some(Some(change)) = services.next().now_or_never() {
            self.service(change);
        }
        while let Some(Some(change)) = slices.next().now_or_never() {
            self.slice(change);
        }
    }
}

impl Worker {
    async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.work() => {}
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the kernel applies rules in real time")]
    async fn work(&mut self) {
        let (mut services, mut slices) = (self.services.subscribe(), self.slices.subscribe());
        self.services.synced().await;
        self.slices.synced().await;
        let mut dirty = Dirty { all: true, ..Dirty::default() };
        let mut delay = Duration::from_millis(100);
        loop {
            let since = Instant::now();
            dirty.drain(&mut services, &mut slices);
            match self.apply(&mut dirty, since).await {
                Ok(()) => delay = Duration::from_millis(100),
                Err(error) => {
                    self.metrics.failed();
                    warn!(%error, table = self.config.table, "service rules, will be made anew");
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(Duration::from_secs(10));
                    continue;
                }
            }
            let collection = self.kernel.as_ref().and_then(|k| k.table.next_collection());
            let collection = async {
                match collection {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                change = services.next() => match change {
                    Some(change) => dirty.service(change),
                    None => return,
                },
                change = slices.next() => match change {
                    Some(change) => dirty.slice(change),
                    None => return,
                },
                () = collection => {}
            }
        }
    }

    fn plan(&self, key: &ObjectKey) -> Vec<plan::PortPlan> {
        let Some(service) = self.services.by_key(key) else { return Vec::new() };
        let slices = self.slices.by_index(BY_SERVICE, &key.to_string());
        let mut plans = plan::plan(&service, &slices, &self.config.node_name);
        let ranges: Vec<_> = self.config.cluster_cidr.into_iter().chain(self.config.service_cidr).collect();
        plan::drop_addresses_of_the_cluster(&mut plans, &ranges);
        plans
    }

    async fn apply(&mut self, dirty: &mut Dirty, since: Instant) -> io::Result<()> {
        let Some(mut kernel) = self.kernel.take() else { return Err(io::Error::other("worker was lost")) };
        let rebuild = kernel.broken || dirty.all;
        let keys: Vec<ObjectKey> = if rebuild {
            dirty.keys.clear();
            self.services.list().iter().map(|s| s.key()).collect()
        } else {
            if kernel.table.has_contested() {
                dirty.keys.extend(kernel.table.take_contested());
            }
            dirty.keys.drain().collect()
        };
        dirty.all = false;
        let plans: Vec<_> = keys.into_iter().map(|key| (self.plan(&key), key)).map(|(p, k)| (k, p)).collect();
        let count = self.services.len();
        let (kernel, result) = tokio::task::spawn_blocking(move || {
            let result = kernel.apply(plans, rebuild);
            (kernel, result)
        })
        .await
        .map_err(io::Error::other)?;
        self.kernel = Some(kernel);
        if result? {
            let last = since.elapsed();
            debug!(?last, "service rules applied");
            self.metrics.applied(last);
            self.stats.send_modify(|s| {
                *s = ProxyStats { transactions: s.transactions + 1, last, services: count };
            });
        }
        Ok(())
    }
}

impl Kernel {
    /// Applies the plans; returns true if there was a change.
    #[expect(clippy::disallowed_methods, reason = "the kernel applies rules in real time")]
    fn apply(&mut self, plans: Vec<(ObjectKey, Vec<plan::PortPlan>)>, rebuild: bool) -> io::Result<bool> {
        let now = Instant::now();
        let mut batch = if rebuild { self.table.rebuild() } else { self.table.batch() };
        self.table.collect(&mut batch, now);
        let left = self.table.change(&mut batch, plans, now);
        if batch.is_empty() {
            return Ok(false);
        }
        let done = self.nft.commit(batch);
        self.broken = done.is_err();
        done?;
        let udp: HashSet<_> = left.into_iter().filter(|(p, _)| *p == 17).map(|(_, b)| b).collect();
        if !udp.is_empty()
            && let Err(error) = conntrack::forget_udp(&udp)
        {
            warn!(%error, "forget UDP flows to endpoints that left");
        }
        Ok(true)
    }
}
