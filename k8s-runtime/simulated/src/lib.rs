//! Nodes and pods without containers, for tests and for clusters of thousands of nodes on one machine.
//!
//! A simulated node registers itself and renews its lease. A pod that is bound to it gets an address, starts,
//! becomes ready, exits and restarts as its [`Script`] says, and ends when it is deleted.
//!
//! ```
//! use k8s_apiserver::{ApiServer, User};
//! use k8s_core::{api::Pod, cache::{Cache, reflect}, client::ListParams, clock::Clock};
//! use k8s_simulated::{NodeShape, Simulation, register};
//! use k8s_store::Store;
//! use serde_json::json;
//! use tokio_util::sync::CancellationToken;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let server = ApiServer::builder(Store::memory()).without_plugins(["ServiceAccount"]).build().await?;
//! let client = server.client_as(User::admin());
//! register(&client, &Clock::system(), "node-0", &NodeShape::default()).await?;
//! let cache = Cache::<Pod>::new();
//! let _reflector = reflect(client.all::<Pod>(), ListParams::default(), cache.clone());
//! let writer = client.clone();
//! let simulation = Simulation::new(cache, move |_node| writer.clone());
//!
//! let pods = client.namespaced::<Pod>("default");
//! let spec = json!({"nodeName": "node-0", "containers": [{"name": "c", "image": "web:1"}]});
//! let web: Pod = serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": spec}))?;
//! let test = async {
//!     pods.create(&web).await?;
//!     let running = |pod: &Pod| pod.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Running"));
//!     pods.wait_until("web", running).await
//! };
//! tokio::select! {
//!     web = test => assert!(web?.status.unwrap().pod_ip.is_some()),
//!     () = simulation.run(CancellationToken::new()) => unreachable!(),
//! }
//! # Ok(()) }
//! ```
//!
//! Flow: [`Simulation`] follows caches that others fill, so that a whole control plane has one copy of each
//! object. A pod's next step is decided from its script without clock and I/O; when it is due, one request
//! writes the status.
//!
//! Guarantees:
//! 1. There is no task, timer or connection per node or pod: memory per pod is a few hundred bytes beside
//!    the cache.
//! 2. A pod's phase never goes back, and a final one stays, whoever wrote it.
//! 3. No two running pods of a range have one address.
//! 4. A pod that is deleted says that it has ended before it goes.
//! 5. The time is a [`Clock`](k8s_core::clock::Clock) and tokio's timer: with paused time, hours pass at
//!    once.
//!
//! Not here: images, volumes, probes, admission by the node, processes (`k8s-kubelet` over a runtime has
//! those).

mod addresses;
mod api;
mod board;
mod duration;
mod kwok;
mod life;
mod nodes;
mod parts;
mod report;
mod script;
mod simulation;
mod staging;
mod usage;

pub use api::Kubelets;
pub use nodes::{NodeShape, register};
pub use script::{EXIT, READY_AFTER, RUN_FOR, START_AFTER, STOP_AFTER, STUCK, Script};
pub use simulation::{FAKE_NODE, Simulation};
pub use usage::{USAGE_CPU, USAGE_MEMORY};
