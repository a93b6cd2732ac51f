//! Cluster DNS: answers queries for services and pods, and forwards all others.
//!
//! Flow: [`Dns::start`] binds UDP and TCP and maintains an index of names from caches. Queries for the
//! cluster domain are answered from the index; others are forwarded unchanged to the name servers of
//! `resolv.conf`.
//!
//! Guarantees:
//! 1. NXDOMAIN is never returned before the caches are synced (SERVFAIL until then).
//! 2. An upstream server that does not respond costs a client at most four seconds; then it gets SERVFAIL.
//!    Our own address is never used as an upstream.
//! 3. UDP responses fit the size that the client advertised; longer ones are truncated with TC set, and TCP
//!    serves them in full.
//!
//! Messages are encoded and decoded by `hickory-proto`. The server is ours: hickory's own keeps records in zones
//! that are loaded, while these answers are read from the caches at each query.
//!
//! Not here: a cache of forwarded answers, DNSSEC. The listen address must exist on the machine
//! ([`crate::bridge::Bridge::add_address`] adds the cluster DNS address to the bridge).

mod answer;
mod forward;
mod index;

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock, atomic::AtomicBool, atomic::Ordering},
    time::Duration,
};

use hickory_proto::op::{Message, MessageType, ResponseCode};
use ipnet::Ipv4Net;
use k8s_core::{
    api::api::{core::v1::Service, discovery::v1::EndpointSlice},
    cache::{Cache, Change},
    meta::{ObjectExt, ObjectKey},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use crate::cidr;
use answer::{Plan, Zone};
use index::Index;

const BY_SERVICE: &str = "dns-service";
/// Limit of concurrent forwarded queries and TCP connections.
const MOST_PENDING: usize = 1024;
const IDLE: Duration = Duration::from_secs(10);

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
}

/// A running DNS server. Dropping it stops it.
#[derive(Debug)]
pub struct Dns {
    address: SocketAddr,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    _guard: DropGuard,
}

struct Shared {
    zone: Zone,
    upstreams: Vec<SocketAddr>,
    index: RwLock<Index>,
    complete: AtomicBool,
    pending: Arc<Semaphore>,
}

impl Dns {
    /// Binds the sockets and serves from caches that the caller's reflectors fill.
    pub async fn start(
        config: DnsConfig,
        services: Cache<Service>,
        slices: Cache<EndpointSlice>,
    ) -> Result<Self, DnsError> {
        let failed = |protocol, address| move |source| DnsError::Listen { address, protocol, source };
        let udp = UdpSocket::bind(config.listen).await.map_err(failed("UDP", config.listen))?;
        let address = udp.local_addr().map_err(failed("UDP", config.listen))?;
        let tcp = TcpListener::bind(address).await.map_err(failed("TCP", address))?;
        let text = match &config.resolv_conf {
            Some(path) => tokio::fs::read_to_string(path).await.unwrap_or_default(),
            None => String::new(),
        };
        let name = config.cluster_domain.trim_matches('.').to_lowercase();
        let shared = Arc::new(Shared {
            zone: Zone { name, address: address.ip(), ranges: config.ranges },
            upstreams: forward::servers(&text, address.ip()),
            index: RwLock::default(),
            complete: AtomicBool::new(false),
            pending: Arc::new(Semaphore::new(MOST_PENDING)),
        });
        slices.add_index(BY_SERVICE, |slice: &EndpointSlice| {
            service_of(slice).iter().map(ObjectKey::to_string).collect()
        });
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(until(stop.clone(), follow(shared.clone(), services, slices)));
        tasks.spawn(until(stop.clone(), serve_udp(shared.clone(), Arc::new(udp))));
        tasks.spawn(until(stop.clone(), serve_tcp(shared, tcp)));
        Ok(Dns { address, tasks, stop: stop.clone(), _guard: stop.drop_guard() })
    }

    /// Returns the bound address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops the server and frees the address.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let label = slice.label("kubernetes.io/service-name")?;
    Some(ObjectKey::new(slice.namespace(), label))
}

/// Maintains the index from cache changes.
async fn follow(shared: Arc<Shared>, services: Cache<Service>, slices: Cache<EndpointSlice>) {
    let (mut service_changes, mut slice_changes) = (services.subscribe(), slices.subscribe());
    services.synced().await;
    slices.synced().await;
    let refresh = |key: ObjectKey| {
        let service = services.by_key(&key);
        let entries = service.map(|service| {
            let slices = slices.by_index(BY_SERVICE, &key.to_string());
            index::entries(&service, &slices, &shared.zone.name)
        });
        shared.index.write().unwrap_or_else(PoisonError::into_inner).set(key, entries.unwrap_or_default());
    };
    let refresh_all = || {
        let known = shared.index.read().unwrap_or_else(PoisonError::into_inner).services();
        let present = services.list().into_iter().map(|s| s.key());
        known.into_iter().chain(present).collect::<HashSet<_>>().into_iter().for_each(refresh);
    };
    refresh_all();
    shared.complete.store(true, Ordering::Release);
    loop {
        tokio::select! {
            change = service_changes.next() => match change {
                Some(Change::Added(s) | Change::Modified(_, s) | Change::Deleted(s)) => refresh(s.key()),
                Some(Change::Resync) => refresh_all(),
                None => return,
            },
            change = slice_changes.next() => match change {
                Some(Change::Added(s) | Change::Deleted(s)) => service_of(&s).into_iter().for_each(refresh),
                Some(Change::Modified(old, new)) => {
                    let keys: HashSet<_> = service_of(&old).into_iter().chain(service_of(&new)).collect();
                    keys.into_iter().for_each(refresh);
                }
                Some(Change::Resync) => refresh_all(),
                None => return,
            },
        }
    }
}

/// A response, or a query to be forwarded.
enum Step {
    Done(Option<Vec<u8>>),
    Ask(Message, Box<Plan>),
}

impl Shared {
    fn step(&self, bytes: &[u8], tcp: bool) -> Step {
        let Ok(question) = Message::from_vec(bytes) else {
            return Step::Done(form_error(bytes));
        };
        if question.metadata.message_type != MessageType::Query {
            return Step::Done(None);
        }
        if let Some(reply) = answer::apex(&question, &self.zone) {
            return Step::Done(answer::encode(&question, &reply, tcp));
        }
        let plan = {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            let complete = self.complete.load(Ordering::Acquire);
            answer::plan(&question, &self.zone, complete.then_some(&*index))
        };
        match plan {
            Plan::Answer(reply) => Step::Done(answer::encode(&question, &reply, tcp)),
            other => Step::Ask(question, Box::new(other)),
        }
    }

    async fn ask(&self, bytes: &[u8], question: Message, plan: Plan, tcp: bool) -> Option<Vec<u8>> {
        let failure = || answer::encode(&question, &answer::reply(&question, ResponseCode::ServFail), tcp);
        match plan {
            Plan::Forward => match forward::ask(&self.upstreams, bytes, tcp).await {
                Some(answer) => Some(answer),
                None => failure(),
            },
            Plan::Follow(mut reply, query) => {
                let mut next = Message::query();
                next.metadata.recursion_desired = true;
                next.add_query(query);
                let found = match next.to_vec() {
                    Ok(bytes) => forward::ask(&self.upstreams, &bytes, true).await,
                    Err(_) => None,
                };
                // If the target cannot be resolved, the CNAME alone is returned: the client may know another
                // server.
                if let Some(found) = found.and_then(|bytes| Message::from_vec(&bytes).ok()) {
                    reply.add_answers(found.answers);
                }
                answer::encode(&question, &reply, tcp)
            }
            Plan::Answer(reply) => answer::encode(&question, &reply, tcp),
        }
    }
}

/// FORMERR for a query that cannot be parsed; `None` if even its id is missing.
fn form_error(bytes: &[u8]) -> Option<Vec<u8>> {
    let head = bytes.get(..12).filter(|h| h[2] & 0x80 == 0)?;
    Some(vec![head[0], head[1], 0x80 | (head[2] & 0x79), 1, 0, 0, 0, 0, 0, 0, 0, 0])
}

async fn serve_udp(shared: Arc<Shared>, socket: Arc<UdpSocket>) {
    let mut waiting = JoinSet::new();
    let mut buffer = vec![0; 65_535];
    loop {
        while waiting.try_join_next().is_some() {}
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(got) => got,
            Err(error) => {
                // An ICMP error about an earlier response.
                debug!(%error, "receive");
                continue;
            }
        };
        match shared.step(&buffer[..length], false) {
            Step::Done(Some(answer)) => drop(socket.send_to(&answer, peer).await),
            Step::Done(None) => {}
            Step::Ask(question, plan) => {
                // Over the limit: the query is dropped, and the client retries.
                let Ok(permit) = shared.pending.clone().try_acquire_owned() else { continue };
                let (shared, socket, bytes) = (shared.clone(), socket.clone(), buffer[..length].to_vec());
                waiting.spawn(async move {
                    if let Some(answer) = shared.ask(&bytes, question, *plan, false).await {
                        drop(socket.send_to(&answer, peer).await);
                    }
                    drop(permit);
                });
            }
        }
    }
}

async fn serve_tcp(shared: Arc<Shared>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let Ok(permit) = shared.pending.clone().try_acquire_owned() else { continue };
        let shared = shared.clone();
        connections.spawn(async move {
            let _ = talk(&shared, stream).await;
            drop(permit);
        });
    }
}

async fn talk(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let length = tokio::time::timeout(IDLE, stream.read_u16()).await??;
        let mut bytes = vec![0; usize::from(length)];
        tokio::time::timeout(IDLE, stream.read_exact(&mut bytes)).await??;
        let answer = match shared.step(&bytes, true) {
            Step::Done(answer) => answer,
            Step::Ask(question, plan) => shared.ask(&bytes, question, *plan, true).await,
        };
        let Some(answer) = answer else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await?;
    }
}

/// Returns the conventional cluster DNS address: the tenth of the service CIDR.
#[must_use]
pub fn default_address(service_cidr: Ipv4Net) -> Option<IpAddr> {
    cidr::nth(service_cidr, 10).map(IpAddr::V4)
}
