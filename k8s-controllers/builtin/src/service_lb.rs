//! The built-in service load balancer: Services of type LoadBalancer get the addresses of ready nodes, as in
//! k3s. The nodes' service proxies answer on them.
//!
//! Flow: [`plan`] computes which addresses a Service may have, [`claims`] decides between Services that want
//! one port of one address, and the status is written. Nodes publish the ports that they use themselves in
//! the ConfigMap [`OWN_PORTS`].
//!
//! Invariants:
//! 1. A port of an address belongs to one Service: to the one that has it in its status; after a start, to
//!    the older one. External IPs of an older Service, and node ports, belong to theirs.
//! 2. A Service has an address with all of its ports, or not at all. A refusal is told by an event.
//! 3. While no node is ready, addresses stay. A Service has at most 64.
//! 4. Services of another `loadBalancerClass` are left alone. A Service that is no longer of the type
//!    LoadBalancer loses its addresses.
//!
//! Not here: source ranges and the traffic itself (`k8s_net::proxy`), addresses announced by ARP. No
//! finalizer `service.kubernetes.io/load-balancer-cleanup` is set: upstream's protects resources outside of
//! the cluster, and here nothing but the Service itself has to go. With it, no Service could be deleted while
//! the controller is off.

mod claims;
mod plan;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_controllers::{
    Action, Caches, Context, Controller, Environment, Error, EventType, Reconcile, predicates,
};
use k8s_core::{
    api::api::{
        core::v1::{ConfigMap, LoadBalancerIngress, LoadBalancerStatus, Node, Service},
        discovery::v1::EndpointSlice,
    },
    client::ListParams,
    meta::{ObjectExt, ObjectKey},
};

pub use self::plan::CLASS;
use self::{
    claims::Claims,
    plan::{Place, Port},
};
use crate::Options;

/// Namespace and name of the ConfigMap whose entry `NODE` lists the ports that the node uses itself
/// (`TCP/22`, `UDP/192.0.2.2:53`), separated by blanks.
pub const OWN_PORTS: (&str, &str) = ("kube-system", "service-lb-ports");

/// Index: Services of this load balancer, under one entry and under each port.
const BALANCED: &str = "service-lb";
const ALL: &str = "";
/// Index: external IPs.
const EXTERNAL: &str = "service-lb-external-ips";
/// Index: node ports.
const NODE_PORTS: &str = "service-lb-node-ports";
/// Index: EndpointSlices by Service.
const SLICES: &str = "service-lb-slices";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Number of addresses that a Service has at most; clients use no more.
const MOST_ADDRESSES: usize = 64;
/// From this number of nodes on, a Service is decided about once in [`PAUSE`].
const MANY_NODES: usize = 500;
const PAUSE: Duration = Duration::from_secs(1);
/// Time after which a Service without all addresses is decided about again.
const AGAIN: Duration = Duration::from_secs(300);

/// Runs the load balancer.
pub(super) fn start(mut environment: Environment, _: Options) -> BoxFuture<'static, ()> {
    let fields = format!("metadata.name={}", OWN_PORTS.1);
    environment.caches =
        environment.caches.scoped::<ConfigMap>(ListParams { fields, ..ListParams::default() });
    index(&environment.caches);
    let state = Arc::new(Mutex::new(State::default()));
    let holders = state.clone();
    let wants = |service: &Service| {
        let external = service.spec.as_ref().and_then(|spec| spec.external_ips.clone());
        // An address that goes from a status is free for others.
        let given = plan::given(service);
        (plan::is_ours(service), plan::ports(service), plan::node_ports(service), external, given)
    };
    let serving = |slice: &EndpointSlice| {
        let slice = [Arc::new(slice.clone())];
        plan::nodes_with_endpoints(&slice).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    Controller::<Service>::new()
        .named("service-lb-controller")
        // One after the other: of two Services that are created, the first gets the port.
        .workers(1)
        .watches_when::<Service>(predicates::changed(wants), move |caches, service| {
            let holds = lock(&holders).claims.holds_any(&service.key()) || !plan::given(service).is_empty();
            let external = service.spec.as_ref().is_some_and(|spec| spec.external_ips.is_some());
            // Those of a Service that only waits concern nobody.
            let own = if holds || external { plan::ports(service) } else { Vec::new() };
            rivals(caches, service, own.into_iter().chain(plan::node_ports(service)))
        })
        .watches_when::<Node>(predicates::changed(|node: &Node| plan::place(node, "")), |caches, _| {
            all(caches)
        })
        .watches::<ConfigMap>(|caches, map| if is_own_ports(map) { all(caches) } else { Vec::new() })
        .watches_when::<EndpointSlice>(predicates::changed(serving), |caches, slice| {
            let name = slice.label(SERVICE_NAME).unwrap_or_default();
            let service = caches.of::<Service>().get(slice.namespace(), name);
            let local = service.filter(|service| plan::is_ours(service) && plan::is_local(service));
            // It gives up nodes without endpoints, and others may wait for those.
            local
                .map(|s| [vec![s.key()], rivals(caches, &s, plan::ports(&s).into_iter())].concat())
                .unwrap_or_default()
        })
        .run_in(environment, ServiceLb { state })
}

fn index(caches: &Caches) {
    let services = caches.of::<Service>();
    services.add_index(BALANCED, |service: &Service| {
        if !plan::is_ours(service) {
            return Vec::new();
        }
        let ports = plan::ports(service).into_iter().map(|port| port.to_string());
        ports.chain([ALL.to_owned()]).collect()
    });
    services.add_index(EXTERNAL, |service: &Service| {
        let ips = service.spec.iter().flat_map(|spec| spec.external_ips.iter().flatten());
        // Not with the ports: both lists may be long.
        ips.filter_map(|ip| ip.parse::<IpAddr>().ok()).map(|ip| ip.to_string()).collect()
    });
    services.add_index(NODE_PORTS, |service: &Service| {
        plan::node_ports(service).iter().map(ToString::to_string).collect()
    });
    caches.of::<EndpointSlice>().add_index(SLICES, |slice: &EndpointSlice| {
        let name = slice.label(SERVICE_NAME);
        name.map(|name| ObjectKey::new(slice.namespace(), name).to_string()).into_iter().collect()
    });
}

fn is_own_ports(map: &ConfigMap) -> bool {
    (map.namespace(), map.name()) == OWN_PORTS
}

/// Creation time and key: the smaller is the older one.
fn age(service: &Service) -> impl Ord + use<> {
    (service.metadata.creation_timestamp.as_ref().map(|time| time.0), service.key())
}

/// Returns all Services of this load balancer, the oldest first.
fn all(caches: &Caches) -> Vec<ObjectKey> {
    oldest_first(caches.of::<Service>().by_index(BALANCED, ALL))
}

/// Returns the other Services of this load balancer that want one of these ports, the oldest first.
fn rivals(caches: &Caches, service: &Service, ports: impl Iterator<Item = Port>) -> Vec<ObjectKey> {
    let services = caches.of::<Service>();
    let mut found: Vec<_> = ports.flat_map(|port| services.by_index(BALANCED, &port.to_string())).collect();
    found.retain(|other| other.key() != service.key());
    oldest_first(found)
}

fn oldest_first(mut services: Vec<Arc<Service>>) -> Vec<ObjectKey> {
    services.sort_by_key(|service| age(service));
    services.dedup_by_key(|service| service.key());
    services.iter().map(|service| service.key()).collect()
}

#[derive(Debug, Default)]
struct State {
    claims: Claims,
    /// The claims have what the status of Services says.
    seeded: bool,
    /// Last decision about each Service.
    decided: HashMap<ObjectKey, Decided>,
}

#[derive(Debug)]
struct Decided {
    /// Reason for missing addresses, as told by an event. Empty if the Service has all.
    refusal: String,
    at: Timestamp,
    /// The Service's generation at that time.
    generation: Option<i64>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct ServiceLb {
    state: Arc<Mutex<State>>,
}

/// Addresses of a Service, and why it has no others.
#[derive(Debug, Default)]
struct Outcome {
    addresses: Vec<IpAddr>,
    refusals: Vec<String>,
}

impl Reconcile for ServiceLb {
    type Kind = Service;

    async fn reconcile(&self, cx: &Context, service: Arc<Service>) -> Result<Action, Error> {
        let given = plan::given(&service);
        if !plan::is_ours(&service) {
            let had = self.forget(&service.key());
            if !plan::is_balanced(&service) && (had || !given.is_empty()) {
                cx.event(&*service, EventType::Normal, "DeletingLoadBalancer", "Deleting load balancer");
                // Most API servers have emptied the status with the change of the type.
                if !given.is_empty() {
                    write(cx, &service, &[]).await?;
                }
                cx.event(&*service, EventType::Normal, "DeletedLoadBalancer", "Deleted load balancer");
            }
            return Ok(Action::await_change());
        }
        if let Some(wait) = self.too_soon(cx, &service) {
            return Ok(Action::requeue_after(wait));
        }
        let places = places(cx.caches());
        let none = "There are no available nodes for LoadBalancer".to_owned();
        let outcome = if places.is_empty() {
            Outcome { addresses: given.clone(), refusals: vec![none.clone()] }
        } else {
            self.decide(cx.caches(), &service, &places)
        };
        let refusal = outcome.refusals.join("; ");
        let is_new = {
            let mut state = lock(&self.state);
            let decided = Decided {
                refusal: refusal.clone(),
                at: cx.clock().now(),
                generation: service.metadata.generation,
            };
            let before = state.decided.insert(service.key(), decided);
            !refusal.is_empty() && before.is_none_or(|before| before.refusal != refusal)
        };
        if is_new && places.is_empty() {
            cx.event(&*service, EventType::Warning, "UnAvailableLoadBalancer", none);
        } else if is_new {
            let why = format!("Error syncing load balancer: failed to ensure load balancer: {refusal}");
            cx.event(&*service, EventType::Warning, "SyncLoadBalancerFailed", why);
        }
        // A freed address is seen as a change; the later attempt is for a missed one.
        let next = if refusal.is_empty() { Action::await_change() } else { Action::requeue_after(AGAIN) };
        if outcome.addresses == given {
            return Ok(next);
        }
        let is_first = given.is_empty();
        if is_first {
            cx.event(&*service, EventType::Normal, "EnsuringLoadBalancer", "Ensuring load balancer");
        }
        write(cx, &service, &outcome.addresses).await?;
        if is_first {
            cx.event(&*service, EventType::Normal, "EnsuredLoadBalancer", "Ensured load balancer");
        } else if !outcome.addresses.is_empty() {
            let message = "Updated load balancer with new hosts";
            cx.event(&*service, EventType::Normal, "UpdatedLoadBalancer", message);
        }
        Ok(next)
    }

    async fn gone(&self, cx: &Context) -> Result<Action, Error> {
        let _ = self.forget(cx.key());
        Ok(Action::await_change())
    }
}

/// Returns the nodes to which load balancers may lead, by name.
fn places(caches: &Caches) -> Vec<Place> {
    let map = caches.of::<ConfigMap>().get(OWN_PORTS.0, OWN_PORTS.1);
    let data = map.as_ref().and_then(|map| map.data.as_ref());
    let own = |node: &str| data.and_then(|data| data.get(node)).map(String::as_str).unwrap_or_default();
    let nodes = caches.of::<Node>().list();
    let mut places: Vec<_> = nodes.iter().filter_map(|node| plan::place(node, own(node.name()))).collect();
    places.sort_by(|a, b| a.node.cmp(&b.node));
    places
}

impl ServiceLb {
    /// Forgets a Service; returns true if it was known.
    fn forget(&self, service: &ObjectKey) -> bool {
        let mut state = lock(&self.state);
        state.claims.keep(service, &[], &[]);
        state.decided.remove(service).is_some()
    }

    /// Returns the time to wait in a cluster of many nodes if only nodes changed since the last decision.
    /// Thousands become ready one after the other.
    fn too_soon(&self, cx: &Context, service: &Service) -> Option<Duration> {
        if cx.caches().of::<Node>().len() < MANY_NODES {
            return None;
        }
        let state = lock(&self.state);
        let last =
            state.decided.get(&service.key()).filter(|d| d.generation == service.metadata.generation)?;
        PAUSE.checked_sub(cx.clock().since(last.at)).filter(|wait| !wait.is_zero())
    }

    fn decide(&self, caches: &Caches, service: &Service, places: &[Place]) -> Outcome {
        let (key, ports) = (service.key(), plan::ports(service));
        let mut outcome = Outcome::default();
        let slices = caches.of::<EndpointSlice>().by_index(SLICES, &key.to_string());
        let serving = plan::is_local(service).then(|| plan::nodes_with_endpoints(&slices));
        let mut state = lock(&self.state);
        state.seed(caches);
        let still_wants = |other: &ObjectKey, address: IpAddr, port: &Port| {
            let other = caches.of::<Service>().by_key(other).filter(|other| plan::is_ours(other));
            other.is_some_and(|other| {
                let ports = plan::ports(&other);
                ports.contains(port)
                    && plan::candidates(&other, places)
                        .any(|(place, offered)| offered == address && place.used(address, &ports).is_none())
            })
        };
        let mut asked = false;
        for (place, address) in plan::candidates(service, places) {
            asked = true;
            if outcome.addresses.len() >= MOST_ADDRESSES {
                break;
            }
            if serving.as_ref().is_some_and(|nodes| !nodes.contains(place.node.as_str())) {
                continue;
            }
            let refusal = if let Some(port) = place.used(address, &ports) {
                Some(format!("port {port} of {address} is in use on node {} itself", place.node))
            } else if let Some((port, owner)) =
                owner_of(caches, service, address, &ports, |port| state.claims.has(&key, address, port))
            {
                Some(format!("port {port} of {address} belongs to Service {owner}"))
            } else {
                let taken = state.claims.take(&key, address, &ports, still_wants);
                taken
                    .err()
                    .map(|(port, holder)| format!("port {port} of {address} belongs to Service {holder}"))
            };
            match refusal {
                Some(refusal) if outcome.refusals.len() < MOST_ADDRESSES => outcome.refusals.push(refusal),
                Some(_) => {}
                None => outcome.addresses.push(address),
            }
        }
        if let (false, Some(wanted)) = (asked, plan::requested(service)) {
            outcome.refusals.push(format!("no ready node has the address {wanted} of spec.loadBalancerIP"));
        }
        outcome.addresses.dedup();
        state.claims.keep(&key, &outcome.addresses, &ports);
        outcome
    }
}

/// Returns the Service to which one of these ports belongs without being a load balancer's: an older one's
/// external IP, or another's node port.
fn owner_of(
    caches: &Caches,
    service: &Service,
    address: IpAddr,
    ports: &[Port],
    has: impl Fn(&Port) -> bool,
) -> Option<(Port, ObjectKey)> {
    let services = caches.of::<Service>();
    let external = services.by_index(EXTERNAL, &address.to_string());
    let older: Vec<(Vec<Port>, ObjectKey)> = external
        .iter()
        .filter(|other| age(other) < age(service))
        .map(|other| (plan::ports(other), other.key()))
        .collect();
    ports.iter().find_map(|port| {
        let older = || older.iter().find(|(ports, _)| ports.contains(port)).map(|(_, key)| key.clone());
        let by_node_port = || {
            let all = services.by_index(NODE_PORTS, &port.to_string());
            all.into_iter().find(|other| other.key() != service.key()).map(|other| other.key())
        };
        // A Service keeps its address, whatever an older one asks for later.
        let older = if has(port) { None } else { older() };
        older.or_else(by_node_port).map(|owner| (port.clone(), owner))
    })
}

impl State {
    /// Gives Services what their status says, once; of two that have the same, the older one.
    fn seed(&mut self, caches: &Caches) {
        if std::mem::replace(&mut self.seeded, true) {
            return;
        }
        let services = caches.of::<Service>();
        for service in all(caches).iter().filter_map(|key| services.by_key(key)) {
            for address in plan::given(&service) {
                // Taken already: the Service loses the address when its turn comes.
                let _ = self.claims.take(&service.key(), address, &plan::ports(&service), |_, _, _| true);
            }
        }
    }
}

/// Writes the addresses into a Service's status.
async fn write(cx: &Context, service: &Service, addresses: &[IpAddr]) -> Result<(), Error> {
    let mut next = service.clone();
    let points: Vec<_> = addresses
        .iter()
        .map(|address| LoadBalancerIngress {
            ip: Some(address.to_string()),
            ip_mode: Some("VIP".to_owned()),
            ..LoadBalancerIngress::default()
        })
        .collect();
    let ingress = Some(points).filter(|points| !points.is_empty());
    next.status.get_or_insert_default().load_balancer = Some(LoadBalancerStatus { ingress });
    cx.replace_status(&next).await.map(drop)
}
