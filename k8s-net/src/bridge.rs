//! The routed pod network: a veth pair and a route per pod, pod addresses from the node's CIDR.
//!
//! Flow: [`Bridge::start`] first adds unreachable ("guard") routes for the pod and service CIDRs, then
//! creates a bridge, which has no ports: it holds the node's addresses on the pod network (the gateway, the
//! cluster DNS). The kubelet calls [`PodNetwork::attach`] for each sandbox. A pod has a `/32` address and the
//! gateway as its default route; the node has a route to each pod. So every packet between pods is routed,
//! filtered and connection-tracked by the node, and replies of a service pass the node that translated the
//! address. No two pods share a link: there is no ARP between them.
//!
//! Guarantees:
//! 1. No packet for a pod or service address leaves by the default route, from start on, also after a kill
//!    -9.
//! 2. Attach is idempotent; addresses survive a restart.
//! 3. Every object created carries the cluster's name (bridge, tables, the comments of rules in other
//!    programs' firewalls) or is in the cluster's group of links; [`cleanup`] removes exactly those. The
//!    sysctl `ip_forward` stays on: other programs may rely on it by then.
//! 4. What a pod sends with an IP address or MAC that is not its own is dropped, and so is what others send
//!    with a pod's.
//! 5. With network policies ([`crate::policy`]) a new pod is closed until its rules are in the kernel.
//!
//! A pod that an earlier version connected to the bridge is taken out of it when the kubelet attaches it
//! again.
//!
//! Not here: services (see [`crate::proxy`]), policies (see [`crate::policy`]), routes to other nodes (see
//! [`crate::routes`]), IPv6.

mod attach;
pub(crate) mod firewalls;
mod ipam;
pub(crate) mod rules;

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use async_trait::async_trait;
use ipnet::Ipv4Net;
use k8s_core::meta::ObjectKey;

use crate::{
    cidr,
    nft::Nft,
    pod::{PodAttachment, PodNetwork, PodNetworkError},
    policy::gate::{self, Gate},
    rtnl::{How, Link, Route, Rtnl},
    sysctl,
};
use ipam::{Ipam, IpamError, KeptPort};

/// Metric of the guard routes: higher than any real route's, so that every real route wins.
const GUARD_METRIC: u32 = 0x7fff_0000;

/// Settings of the pod bridge.
#[derive(Clone, Debug)]
pub struct BridgeConfig {
    /// Name of the cluster's nf_tables tables; the pod table's is `TABLE-pods`.
    pub table: String,
    /// Name of the bridge, at most 15 bytes. See [`bridge_name`].
    pub bridge: String,
    /// Pod CIDR of this node. Its first address is the bridge's.
    pub pod_cidr: Ipv4Net,
    /// Pod CIDR of the cluster.
    pub cluster_cidr: Ipv4Net,
    /// Service CIDR of the cluster.
    pub service_cidr: Ipv4Net,
    /// TCP ports of the node's own agents, which firewalls of other programs must let pods reach.
    pub reserved_ports: Vec<u16>,
    /// MTU in bytes; 0 means 1500.
    pub mtu: u32,
    /// Directory of the address allocations.
    pub state_dir: PathBuf,
}

/// Errors of creating or removing the bridge.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BridgeError {
    /// The bridge name is not a valid link name. Not retryable.
    #[error("{0:?} is no name for a link: 1 to 15 bytes without '/' and blanks")]
    Name(String),
    /// A foreign route overlaps with one of the CIDRs. Not retryable until that route is removed.
    #[error("range {range} is in use: there is a route to {route} by link {link:?}")]
    RangeInUse {
        /// The configured CIDR.
        range: Ipv4Net,
        /// Destination of the foreign route.
        route: Ipv4Net,
        /// Link of the foreign route.
        link: String,
    },
    /// The pod CIDR has no room for a gateway and a pod.
    #[error("pod range {0} is too small")]
    TooSmall(Ipv4Net),
    /// A system call failed.
    #[error("{context}: {source}")]
    Io {
        /// The operation that failed.
        context: String,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// The address allocations could not be read.
    #[error("address allocations: {0}")]
    State(String),
}

fn context(context: impl Into<String>) -> impl FnOnce(io::Error) -> BridgeError {
    let context = context.into();
    move |source| BridgeError::Io { context, source }
}

/// Returns the name of a cluster's bridge: the cluster's name if it fits into the 15 bytes of a link name,
/// otherwise a prefix of it and a checksum.
///
/// ```
/// use k8s_net::bridge::bridge_name;
/// assert_eq!(bridge_name("shop"), "hk-shop");
/// let long = bridge_name("a-cluster-with-a-long-name");
/// assert!(long.starts_with("hk-") && long.len() == 15); // the most that Linux takes
/// ```
#[must_use]
pub fn bridge_name(cluster: &str) -> String {
    let fits =
        cluster.len() <= 12 && cluster.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if fits && !cluster.is_empty() {
        return format!("hk-{cluster}");
    }
    format!("hk-{:012x}", checksum(cluster.as_bytes()) & 0xffff_ffff_ffff)
}

/// FNV-1a. The hash must be stable over versions, because link names outlive a process.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

/// The node's pod network. Dropping it leaves bridge and links in place, because running pods need them.
///
/// ```
/// use k8s_net::{bridge::{Bridge, BridgeConfig, bridge_name, cleanup}, pod::{PodAttachment, PodNetwork}};
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let config = BridgeConfig {
///     table: "shop".into(),
///     bridge: bridge_name("shop"),
///     pod_cidr: "10.42.0.0/24".parse()?,
///     cluster_cidr: "10.42.0.0/16".parse()?,
///     service_cidr: "10.43.0.0/16".parse()?,
///     reserved_ports: vec![6443, 10250],
///     mtu: 0,
///     state_dir: "/var/lib/shop/network".into(),
/// };
/// let bridge = Bridge::start(config.clone())?; // needs root
/// let pod = PodAttachment {
///     sandbox: "a1b2".into(),
///     namespace: "default".into(),
///     name: "web".into(),
///     netns: "/run/netns/web".into(),
///     host_ports: Vec::new(),
/// };
/// println!("{:?} behind {}", bridge.attach(&pod).await?, bridge.gateway());
/// bridge.detach(&pod).await?;
/// cleanup(&config)?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Bridge(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: BridgeConfig,
    index: u32,
    state: Mutex<State>,
    /// Closes new pods until their policies are known.
    gate: OnceLock<Gate>,
}

#[derive(Debug)]
struct State {
    ipam: Ipam,
    nft: Nft,
}

impl Bridge {
    /// Creates the bridge, or adopts an existing one. Blocks for a few milliseconds.
    pub fn start(config: BridgeConfig) -> Result<Self, BridgeError> {
        let name = &config.bridge;
        if name.is_empty() || name.len() > 15 || name.contains(|c: char| c == '/' || c.is_whitespace()) {
            return Err(BridgeError::Name(name.clone()));
        }
        let gateway = gateway_of(&config)?;
        let mtu = if config.mtu == 0 { 1500 } else { config.mtu };
        let mut rtnl = Rtnl::open().map_err(context("open rtnetlink"))?;
        check_ranges(&mut rtnl, &config)?;
        for range in [config.cluster_cidr, config.service_cidr] {
            rtnl.set_route(&guard(range)).map_err(context(format!("guard route for {range}")))?;
        }
        sysctl::set("net/ipv4/ip_forward", "1").map_err(context("enable net.ipv4.ip_forward"))?;
        rtnl.add_bridge(name, gateway_mac(name), mtu).map_err(context(format!("make bridge {name}")))?;
        let index = rtnl.index_of(name).and_then(|i| i.ok_or_else(|| io::Error::other("it is not there")));
        let index = index.map_err(context(format!("find bridge {name}")))?;
        // No IPv6 addresses on the bridge. `route_localnet` lets packets of 127.0.0.1 be forwarded to pods,
        // for node ports.
        let _ = sysctl::set(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1");
        sysctl::set(&format!("net/ipv4/conf/{name}/route_localnet"), "1")
            .map_err(context("set route_localnet"))?;
        rtnl.set_group(index, rules::link_group(name)).map_err(context(format!("group of {name}")))?;
        rtnl.add_address(index, gateway, 32).map_err(context(format!("address {gateway} on {name}")))?;
        rtnl.set_up(index).map_err(context(format!("switch on {name}")))?;
        rtnl.set_route(&service_route(&config, index, gateway))
            .map_err(context(format!("route {} to {name}", config.service_cidr)))?;
        let ipam = Ipam::open(&config.state_dir.join("ipam"), config.pod_cidr)
            .map_err(|e| BridgeError::State(e.to_string()))?;
        let mut nft = Nft::open().map_err(context("open nf_tables"))?;
        nft.commit(rules::build(&config, &ipam)).map_err(context("make the pod table"))?;
        firewalls::open(&config, true);
        let state = Mutex::new(State { ipam, nft });
        Ok(Bridge(Arc::new(Inner { config, index, state, gate: OnceLock::new() })))
    }

    /// Returns the bridge's address, the gateway of every pod.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        gateway_of(&self.0.config).unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// Adds an address to the bridge, so that a server of the node (the cluster DNS) can listen on it.
    pub fn add_address(&self, address: Ipv4Addr) -> Result<(), BridgeError> {
        let done = Rtnl::open().and_then(|mut rtnl| rtnl.add_address(self.0.index, address, 32));
        done.map_err(context(format!("address {address} on {}", self.0.config.bridge)))
    }

    /// Removes an address that [`Bridge::add_address`] added.
    pub fn remove_address(&self, address: Ipv4Addr) -> Result<(), BridgeError> {
        let done = Rtnl::open().and_then(|mut rtnl| rtnl.del_address(self.0.index, address, 32));
        done.map_err(context(format!("address {address} on {}", self.0.config.bridge)))
    }

    /// Closes new pods until their policies are known. The first call counts.
    pub(crate) fn set_gate(&self, gate: Gate) {
        let _ = self.0.gate.set(gate);
    }

    /// Returns the link's index.
    pub(crate) fn index(&self) -> u32 {
        self.0.index
    }

    /// Returns the configured ranges of pods and Services.
    pub(crate) fn ranges(&self) -> [Ipv4Net; 2] {
        [self.0.config.cluster_cidr, self.0.config.service_cidr]
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A poisoned lock means that a thread panicked between two operations; files and kernel state are
        // each consistent.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allocates the pod's address and announces it to the kernel's tables.
    fn reserve_blocking(&self, pod: &PodAttachment) -> Result<Ipv4Addr, PodNetworkError> {
        let ports = attach::kept_ports(&pod.host_ports, &self.0.config.reserved_ports)?;
        let config = &self.0.config;
        let mut state = self.state();
        let old: Vec<KeptPort> = state.ipam.ports_of(&pod.sandbox).to_vec();
        let address = state.ipam.allocate(&pod.sandbox, ports.clone()).map_err(pod_error)?;
        let is_known = state.ipam.is_announced(address);
        if old == ports && is_known {
            return Ok(address);
        }
        if !is_known
            && let Err(source) =
                gate::close(&mut state.nft, &config.table, address, self.0.gate.get().is_some())
        {
            let _ = state.ipam.release(&pod.sandbox);
            let context = format!("close {}/{} until its policies are known", pod.namespace, pod.name);
            return Err(PodNetworkError::Io { context, source });
        }
        let change = rules::change(config, &pod.sandbox, address, &old, &ports, is_known);
        if let Err(e) = state.nft.commit(change) {
            let _ = state.ipam.release(&pod.sandbox);
            return Err(host_port_error(pod, e));
        }
        state.ipam.set_announced(address);
        Ok(address)
    }

    fn connect_blocking(&self, pod: &PodAttachment, address: Ipv4Addr) -> Result<(), PodNetworkError> {
        let config = &self.0.config;
        let mtu = if config.mtu == 0 { 1500 } else { config.mtu };
        let host = attach::host_link(&config.bridge, &pod.sandbox);
        attach::connect(&attach::Ends {
            host: &host,
            group: rules::link_group(&config.bridge),
            netns: &pod.netns,
            address,
            gateway: self.gateway(),
            gateway_mac: gateway_mac(&config.bridge),
            mtu,
        })
        .map_err(|source| PodNetworkError::Io {
            context: format!("connect {}/{} to the pod network", pod.namespace, pod.name),
            source,
        })
    }

    fn release_blocking(&self, sandbox: &str) -> Result<(), PodNetworkError> {
        let host = attach::host_link(&self.0.config.bridge, sandbox);
        let gone = Rtnl::open().and_then(|mut rtnl| rtnl.del_link(&host));
        gone.map_err(|source| PodNetworkError::Io { context: format!("remove link {host}"), source })?;
        let mut state = self.state();
        let announced = state.ipam.address_of(sandbox).is_some_and(|a| state.ipam.is_announced(a));
        if let Some((address, allocation)) = state.ipam.release(sandbox).map_err(pod_error)?
            && announced
        {
            if let Err(error) = gate::forget(&mut state.nft, &self.0.config.table, address) {
                tracing::warn!(%address, %error, "open a pod's address");
            }
            if let Some(gate) = self.0.gate.get() {
                gate.leave(address);
            }
            let change = rules::withdraw(&self.0.config, address, &allocation);
            if let Err(source) = state.nft.commit(change) {
                // The table was flushed by another program; the next start rebuilds it from the allocation
                // files.
                tracing::warn!(%address, error = %source, "remove a pod's firewall entries");
            }
        }
        Ok(())
    }

    fn retain_blocking(&self, live: &[String]) -> Result<(), PodNetworkError> {
        let dead: Vec<String> = {
            let state = self.state();
            let sandboxes = state.ipam.allocations().map(|(_, a)| a.sandbox.clone());
            sandboxes.filter(|s| !live.contains(s)).collect()
        };
        dead.iter().try_for_each(|sandbox| self.release_blocking(sandbox))
    }
}

fn pod_error(error: IpamError) -> PodNetworkError {
    match error {
        IpamError::Exhausted(range) => PodNetworkError::Exhausted { range: range.to_string() },
        IpamError::Io { path, source } => PodNetworkError::Io { context: path.display().to_string(), source },
    }
}

fn host_port_error(pod: &PodAttachment, source: io::Error) -> PodNetworkError {
    if source.raw_os_error() == Some(libc::EEXIST) {
        let ports: Vec<_> = pod.host_ports.iter().map(|p| p.host_port.to_string()).collect();
        return PodNetworkError::Other(format!(
            "host port is in use by another pod (wanted: {})",
            ports.join(", ")
        ));
    }
    PodNetworkError::Io { context: format!("host ports of {}/{}", pod.namespace, pod.name), source }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PodNetworkError> + Send + 'static,
) -> Result<T, PodNetworkError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(PodNetworkError::Other(format!("network worker: {e}"))))
}

#[async_trait]
impl PodNetwork for Bridge {
    async fn attach(&self, pod: &PodAttachment) -> Result<Vec<IpAddr>, PodNetworkError> {
        let key = ObjectKey::new(&pod.namespace, &pod.name);
        let (bridge, attachment) = (self.clone(), pod.clone());
        let address = blocking(move || bridge.reserve_blocking(&attachment)).await?;
        let (bridge, attachment) = (self.clone(), pod.clone());
        let connected = blocking(move || bridge.connect_blocking(&attachment, address));
        let passed = async {
            if let Some(gate) = self.0.gate.get() {
                gate.pass(key, address).await;
            }
        };
        let (connected, ()) = futures::future::join(connected, passed).await;
        connected?;
        Ok(vec![IpAddr::V4(address)])
    }

    async fn detach(&self, pod: &PodAttachment) -> Result<(), PodNetworkError> {
        let (bridge, sandbox) = (self.clone(), pod.sandbox.clone());
        blocking(move || bridge.release_blocking(&sandbox)).await
    }

    async fn retain(&self, live: &[String]) -> Result<(), PodNetworkError> {
        let (bridge, live) = (self.clone(), live.to_vec());
        blocking(move || bridge.retain_blocking(&live)).await
    }
}

fn gateway_of(config: &BridgeConfig) -> Result<Ipv4Addr, BridgeError> {
    let range = config.pod_cidr;
    cidr::nth(range, 1).filter(|_| cidr::size(range) >= 4).ok_or(BridgeError::TooSmall(range))
}

/// Returns the MAC of the node's end of all links of pods.
pub(crate) fn gateway_mac(bridge: &str) -> [u8; 6] {
    let hash = checksum(bridge.as_bytes()).to_ne_bytes();
    [0x02, hash[0], hash[1], hash[2], hash[3], hash[4]]
}

fn guard(range: Ipv4Net) -> Route {
    Route { to: range, how: How::Unreachable, metric: GUARD_METRIC }
}

fn service_route(config: &BridgeConfig, index: u32, gateway: Ipv4Addr) -> Route {
    Route { to: config.service_cidr, how: How::Link { index, source: Some(gateway) }, metric: 0 }
}

/// Refuses CIDRs that overlap with another link's routes: taking them over would cut off their hosts.
fn check_ranges(rtnl: &mut Rtnl, config: &BridgeConfig) -> Result<(), BridgeError> {
    let routes = rtnl.routes().map_err(context("list routes"))?;
    let links = rtnl.links().map_err(context("list links"))?;
    let group = rules::link_group(&config.bridge);
    let own = |index| {
        let link = links.iter().find(|link| Some(link.index) == index);
        link.is_some_and(|link| link.name == config.bridge || link.group == group)
    };
    for range in [config.cluster_cidr, config.service_cidr] {
        let foreign = routes.iter().find(|r| {
            r.link.is_some() && !(r.is_ours && r.gateway.is_some()) && range.contains(&r.to) && !own(r.link)
        });
        if let Some(found) = foreign {
            let link = links.iter().find(|l| Some(l.index) == found.link).map(|l| l.name.clone());
            return Err(BridgeError::RangeInUse { range, route: found.to, link: link.unwrap_or_default() });
        }
    }
    Ok(())
}

/// Removes everything that [`Bridge::start`] and its pods created: links, routes, tables, allocations.
/// Blocking and idempotent.
///
/// A failed removal does not stop the others; the first error is returned.
pub fn cleanup(config: &BridgeConfig) -> Result<(), BridgeError> {
    let mut rtnl = Rtnl::open().map_err(context("open rtnetlink"))?;
    let mut first = Ok(());
    let mut note = |result: Result<(), BridgeError>| {
        if first.is_ok() {
            first = result;
        }
    };
    let index = rtnl.index_of(&config.bridge).map_err(context("look for the bridge"))?;
    let group = rules::link_group(&config.bridge);
    let links = rtnl.links().map_err(context("list links"))?;
    // An earlier version made them ports of the bridge.
    let is_pods = |link: &Link| (index.is_some() && link.master == index) || link.group == group;
    for link in links.iter().filter(|link| is_pods(link) && Some(link.index) != index) {
        note(rtnl.del_link(&link.name).map_err(context(format!("remove link {}", link.name))));
    }
    if index.is_some() {
        note(rtnl.del_link(&config.bridge).map_err(context(format!("remove bridge {}", config.bridge))));
    }
    // If our own start failed because another cluster uses these CIDRs, the guards and routes are the other
    // cluster's.
    if check_ranges(&mut rtnl, config).is_ok() {
        for range in [config.cluster_cidr, config.service_cidr] {
            note(rtnl.del_route(&guard(range)).map_err(context(format!("remove guard route for {range}"))));
        }
        let others = crate::routes::remove(&mut rtnl, config.cluster_cidr);
        note(others.map_err(context("remove routes to other nodes")));
    }
    note(firewalls::close(&config.table).map_err(context("close the firewalls of other programs")));
    note(remove_table(config));
    let folder = config.state_dir.join("ipam");
    match std::fs::remove_dir_all(&folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => note(Err(context(folder.display().to_string())(e))),
        _ => {}
    }
    first
}

/// Removes the pod table. Blocking and idempotent.
pub(crate) fn remove_table(config: &BridgeConfig) -> Result<(), BridgeError> {
    let table = rules::table_name(config);
    let done = Nft::open().and_then(|mut nft| nft.drop_table(&table));
    done.map_err(context(format!("remove table {table}")))
}

#[cfg(test)]
mod tests {
    use super::bridge_name;

    #[test]
    fn bridge_names_fit_and_differ() {
        assert_eq!(bridge_name("demo"), "hk-demo");
        let (long, other) =
            (bridge_name("a-very-long-cluster-name"), bridge_name("a-very-long-cluster-namf"));
        assert!(long.len() <= 15 && long != other);
        assert!(bridge_name("").len() <= 15 && !bridge_name("a b").contains(' '));
    }
}
