//! Simulated nodes: the life of each pod is a [`Script`], and a deleted pod ends without a
//! process.
//!
//! A node registers itself, renews its lease, and writes pod status as a kubelet would: start, readiness,
//! exit, restarts with back-off. By default a pod runs at once. Its annotations ([`EXIT`], [`RUN_FOR`],
//! [`START_AFTER`], [`READY_AFTER`], [`STOP_AFTER`], [`STUCK`]) or a function that returns scripts change
//! that. The crate [`k8s_simulated`] does it.
//!
//! Not here: images, volumes, real probes. `k8s-kubelet` over its simulated runtime has those.

use std::{sync::Arc, time::Duration};

use k8s_core::{
    api::api::core::v1::Pod,
    cache::{Cache, reflect},
    client::{Client, Error, ListParams},
    clock::Clock,
};
use k8s_simulated::{NodeShape, Script, Simulation};
use tokio_util::sync::CancellationToken;

use crate::hub::Hub;

pub use k8s_simulated::{EXIT, READY_AFTER, RUN_FOR, START_AFTER, STOP_AFTER, STUCK};

/// Interval of lease renewals.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(10);

/// Returns the script of a pod.
pub(crate) type Director = Arc<dyn Fn(&Pod) -> Script + Send + Sync>;

/// Creates a ready Node with capacity for 110 pods.
///
/// # Errors
/// The API server's error.
pub async fn register(client: &Client, clock: &Clock, name: &str) -> Result<(), Error> {
    k8s_simulated::register(client, clock, name, &NodeShape::default()).await
}

/// Simulates a node until the future is dropped. Its pods get addresses of 10.42.INDEX.0/24.
pub async fn run(client: Client, clock: Clock, name: String, index: usize) {
    let pods = Cache::new();
    let params = ListParams::default().fields(format!("spec.nodeName={name}"));
    let _reflector = reflect(client.all::<Pod>(), params, pods.clone());
    let third = u8::try_from(index % 256).unwrap_or(0);
    let range = format!("10.42.{third}.0/24").parse().ok();
    let simulation = Simulation::new(pods, move |_| client.clone()).clock(clock);
    let simulation = range.into_iter().fold(simulation, Simulation::addresses);
    simulation.heartbeats(HEARTBEAT, [name]).run(CancellationToken::new()).await;
}

/// Simulates all pods of a lab until the future is dropped. `beats`: nodes that renew their leases.
pub(crate) async fn follow(
    client: Client,
    clock: Clock,
    director: Director,
    hub: Arc<Hub>,
    beats: Option<Vec<String>>,
) {
    let pods = Cache::new();
    let _reflector = reflect(client.all::<Pod>(), ListParams::default(), pods.clone());
    let simulation = Simulation::new(pods, move |_| client.clone())
        .clock(clock)
        .scripts(move |pod| director(pod))
        .on_wait(move |after| hub.await_script(after));
    let simulation = match beats {
        Some(names) => simulation.heartbeats(HEARTBEAT, names),
        None => simulation,
    };
    simulation.run(CancellationToken::new()).await;
}
