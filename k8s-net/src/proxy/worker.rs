//! The proxy's loop: collects changes, plans the services that they concern, and applies the plans.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    future::pending,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt;
use ipnet::Ipv4Net;
use k8s_core::{
    api::api::{
        core::v1::{Node, Service},
        discovery::v1::EndpointSlice,
    },
    cache::{Cache, Change, Subscription},
    events::involved,
    meta::{ObjectExt, ObjectKey},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    ProxyConfig, ProxyStats,
    health::Checks,
    metrics::Metrics,
    own_ports::{self, OwnPorts, PortUse},
    plan::{self, Backend, Here, PortPlan, Zone},
    table::{Contest, Table},
};
use crate::{
    conntrack::{self, End},
    nft::Nft,
};

const BY_SERVICE: &str = "service";
/// Number of ports that a node publishes at most; the kernel's table has all.
const MOST_PORTS: usize = 1000;

type Plans = Vec<(ObjectKey, Vec<PortPlan>)>;

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    slice.label(plan::SERVICE_NAME).map(|name| ObjectKey::new(slice.namespace(), name))
}

/// Connection and table; moved to a blocking thread for each transaction.
struct Kernel {
    nft: Nft,
    table: Table,
    ports: OwnPorts,
    /// The kernel's state is unknown: rebuild the table.
    broken: bool,
}

/// Returns the ranges of pods and Services.
fn own_ranges(config: &ProxyConfig) -> Vec<Ipv4Net> {
    let added = config.added_ranges.list();
    let texts = added.iter().flat_map(|object| object.spec.iter().flat_map(|s| s.cidrs.iter().flatten()));
    let added = texts.filter_map(|text| text.parse::<Ipv4Net>().ok());
    config.cluster_cidr.into_iter().chain(config.service_cidr).chain(added).collect()
}

pub(super) struct Worker {
    config: ProxyConfig,
    services: Cache<Service>,
    slices: Cache<EndpointSlice>,
    nodes: Cache<Node>,
    here: Here,
    kernel: Option<Kernel>,
    checks: Checks,
    /// Last refusal told about a service.
    told: HashMap<ObjectKey, String>,
    metrics: Metrics,
    stats: watch::Sender<ProxyStats>,
    own: watch::Sender<Option<Vec<String>>>,
}

/// Services to plan again.
#[derive(Default)]
struct Dirty {
    keys: HashSet<ObjectKey>,
    /// All services, and a new table.
    all: bool,
    /// This node.
    node: bool,
    /// The ports of the node itself.
    ports: bool,
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

    fn node(&mut self, change: &Change<Node>, own: &str) {
        self.node |= match change {
            Change::Added(node) | Change::Modified(_, node) | Change::Deleted(node) => node.name() == own,
            Change::Resync => true,
        };
    }
}

/// The outcome of a transaction.
struct Applied {
    changed: bool,
    contests: Vec<Contest>,
    own: BTreeSet<PortUse>,
}

impl Worker {
    pub(super) fn new(
        config: ProxyConfig,
        (services, slices, nodes): (Cache<Service>, Cache<EndpointSlice>, Cache<Node>),
        nft: Nft,
        stats: watch::Sender<ProxyStats>,
        own: watch::Sender<Option<Vec<String>>>,
    ) -> Self {
        slices.add_index(BY_SERVICE, |slice: &EndpointSlice| {
            service_of(slice).into_iter().map(|k| k.to_string()).collect()
        });
        let table = Table::new(&config.table, config.cluster_cidr, config.service_cidr);
        let reserved = config.reserved_ports.iter();
        let reserved = reserved.map(|port| PortUse { protocol: 6, address: None, port: *port }).collect();
        let kernel = Kernel { nft, table, ports: OwnPorts::new(&config.table, reserved), broken: true };
        let here = Here { node: config.node_name.clone(), ranges: own_ranges(&config), ..Here::default() };
        let metrics = Metrics::new(&config.metrics);
        Worker {
            config,
            services,
            slices,
            nodes,
            here,
            kernel: Some(kernel),
            checks: Checks::new(),
            told: HashMap::new(),
            metrics,
            stats,
            own,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.work() => {}
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the kernel applies rules in real time")]
    async fn work(&mut self) {
        let (mut services, mut slices) = (self.services.subscribe(), self.slices.subscribe());
        let (mut nodes, mut ranges) = (self.nodes.subscribe(), self.config.added_ranges.subscribe());
        self.services.synced().await;
        self.slices.synced().await;
        self.nodes.synced().await;
        let mut dirty = Dirty { all: true, node: true, ports: true, ..Dirty::default() };
        let mut delay = Duration::from_millis(100);
        let mut reading = tokio::time::interval(own_ports::INTERVAL);
        reading.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        reading.reset();
        loop {
            let since = Instant::now();
            drain(&mut services, |change| dirty.service(change));
            drain(&mut slices, |change| dirty.slice(change));
            drain(&mut nodes, |change| dirty.node(&change, &self.config.node_name));
            drain(&mut ranges, |_| dirty.node = true);
            match self.apply(&mut dirty, since).await {
                Ok(()) => delay = Duration::from_millis(100),
                Err(error) => {
                    self.metrics.failed();
                    self.checks.set_healthy(false);
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
                change = nodes.next() => match change {
                    Some(change) => dirty.node(&change, &self.config.node_name),
                    None => return,
                },
                Some(_) = ranges.next() => dirty.node = true,
                _ = reading.tick() => dirty.ports = true,
                () = collection => {}
            }
        }
    }

    /// Returns the services to plan, in the order in which they get an address that several want: first
    /// those to which a load balancer gave it, then the oldest.
    fn affected(&mut self, dirty: &mut Dirty, rebuild: bool, contested: Vec<ObjectKey>) -> Vec<ObjectKey> {
        let mut moved = false;
        if std::mem::take(&mut dirty.node) {
            let before = self.here.clone();
            self.here.learn(self.nodes.get("", &self.config.node_name).as_deref());
            self.here.ranges = own_ranges(&self.config);
            moved = before != self.here;
        }
        let mut keys = std::mem::take(&mut dirty.keys);
        if rebuild || moved {
            keys.extend(self.services.list().iter().map(|service| service.key()));
        }
        if dirty.ports {
            keys.extend(self.checks.closed());
        }
        keys.extend(contested);
        let rank = |key: &ObjectKey| {
            let service = self.services.by_key(key)?;
            Some((!plan::has_balancer(&service), service.metadata.creation_timestamp.clone()))
        };
        let mut keys: Vec<_> = keys.into_iter().map(|key| (rank(&key), key)).collect();
        keys.sort();
        keys.into_iter().map(|(_, key)| key).collect()
    }

    fn plan(&mut self, key: &ObjectKey) -> Vec<PortPlan> {
        let service = self.services.by_key(key);
        let slices = service.as_ref().map(|_| self.slices.by_index(BY_SERVICE, &key.to_string()));
        let slices = slices.unwrap_or_default();
        let health = service.as_ref().and_then(|s| plan::health(s, &slices, &self.config.node_name));
        if let Err(error) = self.checks.set(key, health)
            && let Some((service, (port, _))) = service.as_ref().zip(health)
        {
            let node = &self.config.node_name;
            let message = format!("node {node} failed to start healthcheck {key} on port {port}: {error}");
            self.config.recorder.warning(involved(&**service), "FailedToStartServiceHealthcheck", message);
        }
        service.map(|service| plan::plan(&service, &slices, &self.here)).unwrap_or_default()
    }

    async fn apply(&mut self, dirty: &mut Dirty, since: Instant) -> io::Result<()> {
        let Some(mut kernel) = self.kernel.take() else { return Err(io::Error::other("worker was lost")) };
        let rebuild = std::mem::take(&mut dirty.all) || kernel.broken;
        let keys = self.affected(dirty, rebuild, kernel.table.take_contested());
        let plans: Plans = keys.into_iter().map(|key| (self.plan(&key), key)).map(|(p, k)| (k, p)).collect();
        let mut wanted: BTreeSet<_> =
            plans.iter().flat_map(|(_, ports)| ports.iter().flat_map(wants)).collect();
        let read = std::mem::take(&mut dirty.ports) || rebuild || kernel.ports.is_new(&wanted);
        if read {
            wanted.extend(self.services.list().iter().flat_map(|service| wants_outside(service)));
        }
        let planned: Vec<ObjectKey> = plans.iter().map(|(key, _)| key.clone()).collect();
        let count = self.services.len();
        let (kernel, result) = tokio::task::spawn_blocking(move || {
            let result = kernel.apply(plans, rebuild, read.then_some(wanted));
            (kernel, result)
        })
        .await
        .map_err(io::Error::other)?;
        self.kernel = Some(kernel);
        let applied = result?;
        self.checks.set_healthy(true);
        if applied.changed {
            let last = since.elapsed();
            debug!(?last, "service rules applied");
            self.metrics.applied(last);
            self.stats.send_modify(|s| {
                *s = ProxyStats { transactions: s.transactions + 1, last, services: count };
            });
        }
        self.tell(&planned, read, &applied);
        if read {
            let own: Vec<String> = applied.own.iter().take(MOST_PORTS).map(ToString::to_string).collect();
            self.own.send_if_modified(|told| {
                let is_new = told.as_ref() != Some(&own);
                *told = Some(own);
                is_new
            });
        }
        Ok(())
    }

    /// Tells which external IPs of a Service are not answered here, and why. (Of load balancers' addresses
    /// their controller tells.)
    fn tell(&mut self, planned: &[ObjectKey], all: bool, applied: &Applied) {
        let with_external: Vec<Arc<Service>> = if all {
            self.services.list()
        } else {
            planned.iter().filter_map(|key| self.services.by_key(key)).collect()
        };
        for service in with_external {
            let key = service.key();
            let Some(refusal) = self.refusal(&service, applied) else {
                self.told.remove(&key);
                continue;
            };
            if self.told.get(&key) != Some(&refusal) {
                self.config.recorder.warning(involved(&*service), "ExternalIPInUse", &*refusal);
                self.told.insert(key, refusal);
            }
        }
    }

    fn refusal(&self, service: &Service, applied: &Applied) -> Option<String> {
        let spec = service.spec.as_ref().filter(|spec| spec.external_ips.is_some())?;
        let ips = spec.external_ips.iter().flatten().filter_map(|ip| ip.parse::<std::net::Ipv4Addr>().ok());
        let (ips, key, node) = (ips.collect::<Vec<_>>(), service.key(), &self.config.node_name);
        let contest = applied.contests.iter().find(|c| c.service == key && ips.contains(&c.address));
        if let Some(Contest { address, protocol, port, holder, .. }) = contest {
            let protocol = crate::protocol_name(*protocol);
            return Some(format!("port {port}/{protocol} of {address} belongs to Service {holder}"));
        }
        let own = ips.iter().filter(|ip| self.here.addresses.contains(ip));
        let mut taken = own.flat_map(|ip| wants_outside(service).into_iter().map(move |port| (*ip, port)));
        let (address, (protocol, port)) = taken.find(|(ip, (protocol, port))| {
            let used = |address| PortUse { protocol: *protocol, address, port: *port };
            applied.own.contains(&used(None)) || applied.own.contains(&used(Some(*ip)))
        })?;
        let protocol = crate::protocol_name(protocol);
        Some(format!("port {port}/{protocol} of {address} is in use on node {node} itself"))
    }
}

fn drain<K: k8s_core::meta::Object>(changes: &mut Subscription<K>, mut each: impl FnMut(Change<K>)) {
    while let Some(Some(change)) = changes.next().now_or_never() {
        each(change);
    }
}

/// Protocols and ports that a plan wants on external addresses.
fn wants(port: &PortPlan) -> impl Iterator<Item = (u8, u16)> {
    port.fronts.iter().filter(|front| front.zone == Zone::Outside).map(|front| (port.protocol, front.port))
}

/// As [`wants`], of a Service that may have external addresses.
fn wants_outside(service: &Service) -> Vec<(u8, u16)> {
    let Some(spec) = service.spec.as_ref() else { return Vec::new() };
    if spec.type_.as_deref() != Some("LoadBalancer") && spec.external_ips.is_none() {
        return Vec::new();
    }
    let ports = spec.ports.iter().flatten();
    ports
        .filter_map(|port| {
            let protocol = crate::protocol_number(port.protocol.as_deref().unwrap_or_default())?;
            Some((protocol, u16::try_from(port.port).ok()?))
        })
        .collect()
}

impl Kernel {
    /// Applies the plans. `wanted`: the node's own ports are read first, those that services want included.
    #[expect(clippy::disallowed_methods, reason = "the kernel applies rules in real time")]
    fn apply(
        &mut self,
        plans: Plans,
        rebuild: bool,
        wanted: Option<BTreeSet<(u8, u16)>>,
    ) -> io::Result<Applied> {
        let now = Instant::now();
        let own = match wanted {
            Some(wanted) => {
                let read = self.ports.read(&mut self.nft, wanted, now);
                // The plans are lost with the error.
                self.broken |= read.is_err();
                Some(read?)
            }
            None => None,
        };
        let mut batch = if rebuild { self.table.rebuild() } else { self.table.batch() };
        if let Some(own) = own {
            self.table.set_own(&mut batch, &own);
        }
        self.table.collect(&mut batch, now);
        let (left, contests) = self.table.change(&mut batch, plans, now);
        let own = self.table.own().clone();
        if batch.is_empty() {
            return Ok(Applied { changed: false, contests, own });
        }
        let done = self.nft.commit(batch);
        self.broken = done.is_err();
        done?;
        let udp = left.into_iter().filter(|(protocol, _)| *protocol == 17);
        let udp: HashSet<_> = udp.map(|(_, Backend { address, port })| End { address, port }).collect();
        if !udp.is_empty()
            && let Err(error) = conntrack::forget_udp(&udp)
        {
            warn!(%error, "forget UDP flows to endpoints that left");
        }
        Ok(Applied { changed: true, contests, own })
    }
}
