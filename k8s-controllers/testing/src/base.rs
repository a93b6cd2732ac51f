//! The initial clusters of runs: built once per lab, then forked.

use std::{
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use jiff::Timestamp;
use k8s_apiserver::{ApiServer, Pace, User};
use k8s_core::{
    api::api::core::v1::ServiceAccount, client::Client, clock::Clock, custom::CustomResource, random,
};
use k8s_store::Store;
use serde_json::{Value, json};

use crate::node;
#[cfg(feature = "wall-clock")]
use crate::wall_clock;

/// Seeds reserved for building the initial clusters. A run with the same seed would repeat the uids of their
/// objects.
const OF_EMPTY: u64 = u64::MAX;
const OF_IMAGE: u64 = u64::MAX - 1;

/// A change to the builder of each API server of a lab.
pub(crate) type Shape = Arc<dyn Fn(k8s_apiserver::Builder) -> k8s_apiserver::Builder + Send + Sync>;

/// Serves a custom resource.
pub(crate) fn serving<T: CustomResource>() -> Shape {
    Arc::new(|server| server.resource::<T>())
}

/// Start of virtual time, the same for all runs, so that runs are reproducible.
pub(crate) fn epoch() -> Timestamp {
    Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_hours(24 * 365 * 50)
}

/// Returns true in a tokio runtime with paused time. Tokio does not tell, but a paused clock does not advance
/// while this thread works.
#[expect(clippy::disallowed_methods, reason = "compares the two clocks")]
pub(crate) fn time_is_virtual() -> bool {
    let (real, tokio) = (std::time::Instant::now(), tokio::time::Instant::now());
    while real.elapsed() < Duration::from_micros(5) {
        std::hint::spin_loop();
    }
    tokio.elapsed().is_zero()
}

/// Intervals of the server's background work: long, because a run may skip years.
fn pace() -> Pace {
    let day = 24 * 3600;
    Pace {
        bookmark_every: Duration::from_secs(day),
        watch_seconds: 90 * day..120 * day,
        sweep_every: Duration::from_secs(600),
        compact_every: Duration::ZERO,
    }
}

fn runtime_builder() -> tokio::runtime::Builder {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // With I/O for programs that wait for signals. An idle driver costs nothing.
    builder.enable_all();
    builder
}

fn build(mut builder: tokio::runtime::Builder) -> tokio::runtime::Runtime {
    builder.build().unwrap_or_else(|e| panic!("start the runtime of a lab: {e}"))
}

/// Creates a runtime in real time.
pub(crate) fn real_runtime() -> tokio::runtime::Runtime {
    build(runtime_builder())
}

/// Makes the clocks of the standard library and of the crates over it follow a lab's clock, on this thread
/// and the threads of its runtime, until that ends. Without the feature `wall-clock` it does nothing.
pub(crate) fn follow(clock: &Clock) {
    #[cfg(feature = "wall-clock")]
    wall_clock::follow(clock);
    #[cfg(not(feature = "wall-clock"))]
    let _ = clock;
}

/// Runs a future in virtual time with a seeded random generator. The clock advances only when no task is
/// ready.
pub(crate) fn block_on<F: Future>(seed: u64, future: F) -> F::Output {
    let _seeded = random::seeded(seed);
    let mut builder = runtime_builder();
    builder.start_paused(true);
    #[cfg(feature = "wall-clock")]
    let _shared = wall_clock::share(&mut builder);
    build(builder).block_on(future)
}

/// The admission plugin that taints new nodes.
pub(crate) const TAINTS: &str = "TaintNodesByCondition";

pub(crate) async fn server(store: Store, clock: Clock, shapes: &[Shape]) -> ApiServer {
    let builder = ApiServer::builder(store).clock(clock).pace(pace());
    // Nodes are ready, and the controller that takes the taint of new ones off may not be among the lab's.
    let builder = builder.without_plugins([TAINTS]);
    let builder = shapes.iter().fold(builder, |builder, shape| shape(builder));
    builder.build().await.unwrap_or_else(|e| panic!("start the API server of a lab: {e}"))
}

/// Forks the cluster that is common to all labs: an API server's own objects and the default service account.
fn empty() -> Store {
    static EMPTY: OnceLock<Store> = OnceLock::new();
    let made = EMPTY.get_or_init(|| {
        block_on(OF_EMPTY, async {
            let server = server(Store::memory(), Clock::starting_at(epoch()), &[]).await;
            let client = server.client_as(User::admin());
            // Pods are not admitted without it, and the controller that creates it may not be among the
            // lab's.
            let account = ServiceAccount {
                metadata: serde_json::from_value(json!({"name": "default"})).unwrap_or_default(),
                ..ServiceAccount::default()
            };
            let made = client.namespaced::<ServiceAccount>("default").create(&account).await;
            made.unwrap_or_else(|e| panic!("make the default service account: {e}"));
            // Virtual time advances once the server's start-up tasks are idle.
            tokio::time::sleep(Duration::from_millis(1)).await;
            server.store().clone()
        })
    });
    made.fork()
}

/// Builds the initial cluster of a lab's runs.
pub(crate) fn image(shapes: &[Shape], nodes: usize, manifests: &[Value]) -> Store {
    let store = empty();
    block_on(OF_IMAGE, async {
        let clock = Clock::starting_at(epoch());
        let server = server(store, clock.clone(), shapes).await;
        let client = server.client_as(User::admin());
        for i in 0..nodes {
            let made = node::register(&client, &clock, &format!("node-{i}")).await;
            made.unwrap_or_else(|e| panic!("register a node: {e}"));
        }
        for manifest in manifests {
            crate::objects::apply(&client, manifest).await.unwrap_or_else(|e| panic!("{e}"));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        server.store().clone()
    })
}

/// Returns a client for the current context of a kubeconfig.
pub(crate) fn existing(path: Option<std::path::PathBuf>) -> Result<Client, String> {
    use k8s_core::client::{Kubeconfig, Remote};
    let path = path
        .or_else(|| std::env::var_os("KUBECONFIG").filter(|v| !v.is_empty()).map(Into::into))
        .or_else(|| std::env::var_os("HOME").map(|home| std::path::Path::new(&home).join(".kube/config")))
        .ok_or("USE_EXISTING_CLUSTER is set, but neither KUBECONFIG nor HOME is")?;
    let config = Kubeconfig::read(&path).map_err(|e| e.to_string())?;
    let config = config.remote(None).map_err(|e| e.to_string())?;
    Ok(Client::new(Remote::new(&config).map_err(|e| e.to_string())?))
}
