//! Cluster DNS: answers queries for services and pods, and forwards all others.
//!
//! Flow: a server has UDP and TCP sockets, an index of names and settings. [`Dns::start`] runs it in this
//! process, [`Dns::hold`] in a [holder](run_if_holder) process that goes on answering without this one. A
//! feed keeps the index equal to caches of Services and EndpointSlices, and the settings to the Corefile of
//! the ConfigMap [`CONFIG_MAP`]. Queries for the cluster domain are answered from the index; others are
//! forwarded as the settings say, and their answers are cached.
//!
//! Guarantees:
//! 1. NXDOMAIN is never returned for a name of the cluster before the caches are synced (SERVFAIL until
//!    then).
//! 2. An upstream server that does not respond costs a client at most four seconds; then it gets SERVFAIL.
//!    Our own address is never used as an upstream.
//! 3. UDP responses fit the size that the client advertised; longer ones are truncated with TC set, and TCP
//!    serves them in full.
//! 4. Reverse lookups of pods and services are never forwarded.
//! 5. Memory is bounded whatever clients ask: waiting queries are limited in all and for each client, and so
//!    are the answers that are kept.
//!
//! Messages are encoded and decoded by `hickory-proto`. The server is ours: hickory's own keeps records in
//! zones that are loaded, while these answers are read from the index at each query.
//!
//! Not here: DNSSEC, DNS over TLS. The listen address must exist on the machine
//! ([`crate::bridge::Bridge::add_address`] adds the cluster DNS address to the bridge).

mod answer;
mod cache;
mod config_map;
mod corefile;
mod feed;
mod forward;
mod holder;
mod hosts;
mod index;
mod keeper;
mod limits;
mod packets;
mod settings;
mod state;
mod tcp;
mod udp;
mod wire;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use ipnet::Ipv4Net;
use k8s_core::{
    api::api::{
        core::v1::{ConfigMap, Service},
        discovery::v1::EndpointSlice,
    },
    cache::Cache,
    events::Recorder,
};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::cidr;
pub use config_map::{CONFIG_MAP, standard_corefile};
pub use holder::run_if_holder;
pub use settings::DnsSettings;

use answer::Zone;
use config_map::Origin;
use feed::Sources;
use keeper::Keeper;
use state::State;

/// Settings of the DNS server.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// Listen address (UDP and TCP); port 0 picks a free one.
    pub listen: SocketAddr,
    /// Cluster domain, usually `cluster.local`.
    pub cluster_domain: String,
    /// Pod and service CIDRs: reverse lookups in them are never forwarded.
    pub ranges: Vec<Ipv4Net>,
    /// Lists the upstream servers; usually `/etc/resolv.conf`. `None`: queries outside of the cluster domain
    /// get SERVFAIL.
    pub resolv_conf: Option<PathBuf>,
}

impl DnsConfig {
    fn domain(&self) -> String {
        self.cluster_domain.trim_matches('.').to_lowercase()
    }

    fn origin(&self, own: IpAddr) -> Origin {
        Origin { domain: self.domain(), own, resolv_conf: self.resolv_conf.clone() }
    }
}

/// Source of a DNS server's settings.
#[derive(Clone, Debug)]
pub enum Corefile {
    /// The cluster domain is answered, all else is forwarded to the servers of `resolv.conf`.
    Standard,
    /// The ConfigMap [`CONFIG_MAP`] in a cache; without it, as [`Corefile::Standard`]. What it has that is
    /// not done is told in events about it.
    Cached(Cache<ConfigMap>, Recorder),
}

/// Errors of starting the server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DnsError {
    /// The address is in use, or not an address of this machine.
    #[error("listen on {address} ({protocol}): {source}")]
    Listen {
        /// The listen address.
        address: SocketAddr,
        /// `UDP` or `TCP`.
        protocol: &'static str,
        /// Error of `bind`.
        #[source]
        source: io::Error,
    },
    /// The holder process does not start or does not answer.
    #[error("holder process of cluster DNS: {source}")]
    Holder {
        /// Error of the process or of its control socket.
        #[source]
        source: io::Error,
    },
}

/// A running DNS server. Dropping it stops it.
///
/// ```
/// use k8s_core::cache::Cache;
/// use k8s_net::dns::{Dns, DnsConfig};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = DnsConfig {
///     listen: "127.0.0.1:0".parse()?,
///     cluster_domain: "cluster.local".into(),
///     ranges: vec!["10.42.0.0/16".parse()?, "10.43.0.0/16".parse()?],
///     resolv_conf: None, // forwards nothing
/// };
/// // Reflectors of a real program fill the caches.
/// let dns = Dns::start(config, Cache::new(), Cache::new()).await?;
/// assert_ne!(dns.address().port(), 0);
/// dns.shutdown().await;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Dns {
    address: SocketAddr,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    _guard: DropGuard,
}

impl Dns {
    /// Binds the sockets and serves from caches that the caller's reflectors fill.
    ///
    /// # Errors
    /// [`DnsError::Listen`].
    pub async fn start(
        config: DnsConfig,
        services: Cache<Service>,
        slices: Cache<EndpointSlice>,
    ) -> Result<Self, DnsError> {
        Self::start_with(config, services, slices, Corefile::Standard).await
    }

    /// As [`Dns::start`], with settings of a Corefile.
    ///
    /// # Errors
    /// [`DnsError::Listen`].
    pub async fn start_with(
        config: DnsConfig,
        services: Cache<Service>,
        slices: Cache<EndpointSlice>,
        corefile: Corefile,
    ) -> Result<Self, DnsError> {
        let failed = |protocol, address| move |source| DnsError::Listen { address, protocol, source };
        let udp = UdpSocket::bind(config.listen).await.map_err(failed("UDP", config.listen))?;
        let address = udp.local_addr().map_err(failed("UDP", config.listen))?;
        let tcp = TcpListener::bind(address).await.map_err(failed("TCP", address))?;
        let origin = config.origin(address.ip());
        let standard = origin.standard(origin.servers().await);
        let zone = Zone { name: config.domain(), address: address.ip(), ranges: config.ranges };
        let state = State::new(zone, standard);
        let mut dns = Self::at(address);
        let sources = dns.sources(origin, services, slices, corefile);
        let fed = state.clone();
        dns.spawn(async move {
            // A state in this process takes everything.
            let _ = sources.follow(&*fed).await;
        });
        dns.spawn(udp::serve(state.clone(), Arc::new(udp)));
        dns.spawn(tcp::serve(state, tcp));
        Ok(dns)
    }

    /// Finds the holder process of a directory, or starts one, and feeds it. Afterwards it goes on answering
    /// without this process, from the last records that it has got, until [`Dns::release`].
    ///
    /// The program must call [`run_if_holder`] first in `main`. `directory` must be this user's alone:
    /// whoever may write in it can take the names. `name` is that of the process; Linux shows 15 bytes.
    ///
    /// # Errors
    /// [`DnsError`].
    pub async fn hold(
        (config, directory, name): (DnsConfig, &Path, &str),
        services: Cache<Service>,
        slices: Cache<EndpointSlice>,
        corefile: Corefile,
    ) -> Result<Self, DnsError> {
        let origin = config.origin(config.listen.ip());
        let start = holder::Start {
            name: name.to_owned(),
            directory: directory.to_owned(),
            domain: config.domain(),
            address: config.listen,
            ranges: config.ranges.iter().map(ToString::to_string).collect(),
            settings: origin.standard(origin.servers().await),
        };
        let keeper = Keeper::find_or_start(start).await?;
        let mut dns = Self::at(config.listen);
        let sources = dns.sources(origin, services, slices, corefile);
        dns.spawn(keeper.feed(sources));
        Ok(dns)
    }

    /// Ends the holder process of a directory, if there is one. Blocking and idempotent.
    ///
    /// # Errors
    /// The process does not end.
    pub fn release(directory: &Path) -> io::Result<()> {
        if directory.exists() { keeper::stop(directory) } else { Ok(()) }
    }

    /// Returns the holder process of a directory.
    #[must_use]
    pub fn holder(directory: &Path) -> Option<u32> {
        keeper::process(directory)
    }

    fn at(address: SocketAddr) -> Self {
        let stop = CancellationToken::new();
        Dns { address, tasks: JoinSet::new(), stop: stop.clone(), _guard: stop.drop_guard() }
    }

    fn spawn(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = work => {}
            }
        });
    }

    /// Returns what the server is fed with, and begins to follow the settings.
    fn sources(
        &mut self,
        origin: Origin,
        services: Cache<Service>,
        slices: Cache<EndpointSlice>,
        corefile: Corefile,
    ) -> Sources {
        let (tell, settings) = watch::channel(None);
        let sources = Sources::new(&origin.domain, services, slices, settings);
        let (maps, recorder) = match corefile {
            Corefile::Standard => {
                let empty = Cache::new();
                empty.advance(1);
                (empty, Recorder::silent())
            }
            Corefile::Cached(maps, recorder) => (maps, recorder),
        };
        self.spawn(origin.follow(maps, recorder, tell));
        sources
    }

    /// Returns the listen address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops the tasks of this process. A server in this process frees its address; a holder goes on.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Returns the conventional cluster DNS address: the tenth of the service CIDR.
///
/// ```
/// let address = k8s_net::dns::default_address("10.43.0.0/16".parse().unwrap());
/// assert_eq!(address, Some("10.43.0.10".parse().unwrap()));
/// ```
#[must_use]
pub fn default_address(service_cidr: Ipv4Net) -> Option<IpAddr> {
    cidr::nth(service_cidr, 10).map(IpAddr::V4)
}
